"""The cache room: format, shard plan, writer, reader, manifest, memory bank."""

from ..cache.errors import CmcrError  # reaches above the folder, so that a stray `import cache` fails at once

__all__ = ["CmcrError"]
