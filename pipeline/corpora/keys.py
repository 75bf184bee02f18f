"""Keys of a corpus: names and texts that a cache can hold, and duplicates found before anything is written."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...cache.errors import DuplicateKeyError, ItemError
from ...cache.keys import check_key
from ...cache.ledger import Failure
from ..encoders.base import Item

if TYPE_CHECKING:
    from .base import Source

_PLAIN = 256
_LINE = re.compile(r"(.+:)(\d{9,})", re.DOTALL)


def path_text(path: str) -> str:
    """A path as text that UTF-8 can hold: bytes that are not UTF-8 become ``\\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def text_path(text: str) -> str:
    """The inverse of :func:`path_text` for a path that does not exist as it reads."""
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m.group(1), 16)]), text.encode())
    return os.fsdecode(raw)


def unfit(text: str) -> str | None:
    """Why a text cannot be stored as UTF-8 in HDF5, or None."""
    if text.isascii():
        return "it contains a NUL character" if "\0" in text else None
    if "\0" in text:
        return "it contains a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode (a lone surrogate)"
    return None


def admit(item: Item) -> Item | Failure:
    """The item with a caption and record that UTF-8 can hold, or a failure if a cache cannot hold its key."""
    key = item.key
    # nearly all keys are plain; the full rule is for the others
    if not (0 < len(key) <= _PLAIN and key.isascii() and key.isprintable()):
        try:
            check_key(key)
        except ItemError as error:
            return Failure(ascii(key)[1:201], "read", "BadKey", error.what)
    if item.meta is None and (item.caption is None or item.caption is item.data):
        return item
    return replace(item, caption=_storable(item.caption), meta=_storable(item.meta))


def _storable(value: Any) -> Any:
    """A JSON value without NUL and lone surrogates in its texts."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode() if unfit(value) else value
    if isinstance(value, dict):
        return {_storable(name): _storable(one) for name, one in value.items()}
    return [_storable(one) for one in value] if isinstance(value, list) else value


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class KeyCheck:
    """Finds keys that occur twice in one corpus, holding eight bytes a key.

    Keys made by rule (lines, tar samples) are covered by their prefix; explicit ones (paths, columns) by hashes, and
    sources are scanned again only to name the two places of a duplicate.
    """

    def __init__(self) -> None:
        self._prefixes: dict[str, Source] = {}
        self._hashes: dict[int, array[int]] = {}
        self._sources: list[Source] = []
        self._suspects: list[tuple[str, Source, Source]] = []

    def enter(self, source: Source) -> None:
        """Make a source known, before any key is added."""
        self._sources.append(source)
        self._hashes[id(source)] = array("Q")
        if source.prefix is None:
            return
        other = self._prefixes.setdefault(source.prefix, source)
        if other is not source:
            raise DuplicateKeyError(
                f"two inputs give keys that begin with {source.prefix!r}",
                where=f"{other.place} and {source.place}",
                todo="give the folder that holds both, so that keys carry their paths, or rename one",
            )

    def add(self, source: Source, key: str) -> None:
        """Take in one explicit key."""
        self._hashes[id(source)].append(_hash(key))
        if self._prefixes:
            for prefix in _prefixes_of(key):
                owner = self._prefixes.get(prefix)
                if owner is not None and owner is not source:
                    self._suspects.append((key, source, owner))

    def finish(self) -> None:
        """Raise DuplicateKeyError naming both places if any key occurs twice."""
        for key, source, owner in self._suspects:
            if owner.holds(key):
                raise _duplicate(key, str(source.place), str(owner.place))
        filled = [np.frombuffer(hashes, dtype=np.uint64) for hashes in self._hashes.values() if len(hashes)]
        if not filled:
            return
        ordered = np.sort(np.concatenate(filled))
        repeated = {int(h) for h in ordered[1:][ordered[1:] == ordered[:-1]]}
        if not repeated:
            return
        seen: dict[str, str] = {}
        for source in self._sources:
            for key, place in source.explicit_keys():
                if _hash(key) in repeated:
                    if key in seen:
                        raise _duplicate(key, seen[key], place)
                    seen[key] = place


def _prefixes_of(key: str) -> Iterator[str]:
    if match := _LINE.fullmatch(key):
        yield match.group(1)
    cut = key.find("/")
    while cut >= 0:
        yield key[: cut + 1]
        cut = key.find("/", cut + 1)


def _duplicate(key: str, first: str, second: str) -> DuplicateKeyError:
    return DuplicateKeyError(
        f"two items have the key {key!r}",
        where=f"{first} and {second}",
        todo="keys must be unique in a corpus: rename one, leave one out, or give the folder above both",
    )
