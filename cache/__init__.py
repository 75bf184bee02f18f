"""The cache room: format, shard plan, writer, reader, manifest, memory bank."""

from typing import Any

from ..cache.errors import CmcrError  # reaches above the folder, so that a stray `import cache` fails at once

_LAZY = {
    "Bank": "bank",
    "Cache": "reader",
    "CacheManifest": "manifest",
    "CacheWriter": "writer",
    "ShardData": "writer",
    "open_cache": "reader",
    "write_cache": "writer",
}
__all__ = ["CmcrError", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
