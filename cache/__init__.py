"""The cache room: format, shard plan, writer, reader, manifest, memory bank."""

from .errors import CmcrError

__all__ = ["CmcrError"]
