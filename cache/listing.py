"""Which caches lie below a folder."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import CacheError
from .manifest import MANIFEST_NAME
from .reader import Cache, open_cache


def find_caches(folder: str | Path) -> list[Cache]:
    """The caches below a folder, itself included, sorted by path; folders inside a cache are not searched.

    Raises
    ------
    CacheError
        If the folder does not exist, or a cache in it cannot be opened.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CacheError("There is no such folder.", where=str(folder), todo="give a folder with caches below it")
    found = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        if MANIFEST_NAME in files:
            folders.clear()
            found.append(open_cache(place))
    return found
