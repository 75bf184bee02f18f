"""Key rules: a key depends on the corpus alone, never on encoder, batch, shard size or absolute path."""

from __future__ import annotations

from .errors import ItemError

MAX_KEY_BYTES = 1024


def check_key(key: str) -> str:
    """Return ``key`` if a cache can hold it.

    Raises
    ------
    ItemError
        Empty, longer than :data:`MAX_KEY_BYTES` bytes of UTF-8, not valid Unicode, or with a NUL or a line break in it.
    """
    if not isinstance(key, str) or not key:
        raise ItemError("A key must be a non-empty text.", where=repr(key)[:80])
    try:
        size = len(key.encode("utf-8"))
    except UnicodeEncodeError:
        raise ItemError("A key must be valid Unicode.", where=ascii(key)[:80], todo="rename the item") from None
    if size > MAX_KEY_BYTES:
        raise ItemError(
            f"A key has at most {MAX_KEY_BYTES} bytes of UTF-8, this one has {size}.", where=key[:60] + "..."
        )
    if any(mark in key for mark in "\0\n\r"):
        raise ItemError("A key holds no NUL and no line break.", where=ascii(key)[:80], todo="rename the item")
    return key


def stem(path: str) -> str:
    """POSIX path without its last extension: ``a/b.en.txt`` gives ``a/b.en``; ``.hidden`` and ``a.`` stay.

    The key of a file of a folder is the stem of its path relative to the root that was given.
    """
    folder, slash, base = path.rpartition("/")
    dot = base.rfind(".")
    return f"{folder}{slash}{base[:dot]}" if 0 < dot < len(base) - 1 else path


def line_key(stem: str, line: int) -> str:
    """Key of a line of a text file or table: ``<relative stem>:<9-digit line>``; from 1, blank lines counted."""
    return f"{stem}:{line:09d}"


def row_key(row: int) -> str:
    """Key of a row that has only its number (0-based): nine digits."""
    return f"{row:09d}"


def tar_key(stem: str, key: str) -> str:
    """Key of a sample of a tar: ``<tar stem>/<__key__>``."""
    return f"{stem}/{key}"


def caption_key(key: str, number: int) -> str:
    """Key of one of several captions of an item: ``key#0``, ``key#1``, ..."""
    return check_key(f"{key}#{number}")
