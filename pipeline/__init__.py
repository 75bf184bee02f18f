"""The pipeline room: corpora, encoders, the encode run, projection, search, evaluation, the sandbox and its demo."""

from ..cache.errors import CmcrError

__all__ = ["CmcrError"]
