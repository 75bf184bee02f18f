"""The inside of an encode run: settings, ordered prefetch, fixed batches. Its face is ``pipeline/encode.py``."""

from ...cache.errors import CmcrError as CmcrError
