"""The inside of an encode run, whose face is ``pipeline/encode.py``: settings, ordered prefetch, fixed batches, the run."""

from ...cache.errors import CmcrError as CmcrError
