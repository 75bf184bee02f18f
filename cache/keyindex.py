"""Key look-up through a derived, memory-mapped index: 16 bytes a row.

``index/keys-<id>.idx`` holds the 64-bit hashes of all keys in ascending order (N x uint64, little-endian), then the
row of each (N x uint64). The id is a digest over the committed shards, so an index is never used for other content.
It is built when first needed, a partition of the hash range at a time, and may be deleted at any time. A hash only
nominates rows: the key itself is compared before a row is returned.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from . import fsio
from .errors import CacheError, DuplicateKeyError
from .keys import MAX_KEY_BYTES
from .mapped import Indices, MappedFile

if TYPE_CHECKING:
    from .reader import Cache

PARTITION_ROWS = 1 << 20
BLOCK_ROWS = 1 << 16
_U64 = np.dtype("<u8")
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")
Hashes = npt.NDArray[np.uint64]


_leave_no_file: ContextVar[bool] = ContextVar("leave_no_file", default=False)


def _mix(words: Hashes) -> Hashes:
    """The finaliser of splitmix64, which maps zero to zero."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash_keys(keys: npt.NDArray[np.bytes_]) -> Hashes:
    """64-bit hashes (N,) of NUL-padded keys (N,); the padding does not change them."""
    width = -(-keys.dtype.itemsize // 8) * 8
    words = np.ascontiguousarray(keys.astype(f"S{width}")).view(_U64).reshape(len(keys), width // 8)  # (N, W)
    total = np.zeros(len(keys), np.uint64)
    for column in range(width // 8):
        factor = np.uint64((0x9E3779B97F4A7C15 * (2 * column + 1)) & 0xFFFFFFFFFFFFFFFF | 1)
        total += _mix(words[:, column] * factor)
    return _mix(total)


def encode_keys(keys: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Keys asked for, as bytes (N,); those that no cache can hold become empty, which no stored key is."""
    raw = [key.encode("utf-8", "replace") for key in keys]
    return np.array([k if len(k) <= MAX_KEY_BYTES and b"\0" not in k else b"" for k in raw], dtype=np.bytes_)


def _name(cache: Cache) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for m in cache.shards:
        digest.update(f"{m.shard} {m.generation} {m.crc32} {m.ok}\n".encode())
    return f"keys-{digest.hexdigest()}.idx"


class KeyIndex:
    """The look-up of one opened cache."""

    def __init__(self, cache: Cache, file: MappedFile | None) -> None:
        self._cache = cache
        self._file = file

    def find(self, keys: Sequence[str]) -> Indices:
        """Global row of each key: (B,) int64, -1 where absent."""
        out = np.full(len(keys), -1, np.int64)
        if self._file is None or not len(keys):
            return out
        count = len(self._cache)
        wanted = encode_keys(keys)
        hashes = self._file.view(0, count, 1, _U64)[:, 0]
        rows = self._file.view(8 * count, count, 1, _U64)[:, 0]
        asked = hash_keys(wanted)
        order = np.argsort(asked)
        places = order[wanted[order] != b""]
        at = np.searchsorted(hashes, asked[places], side="left")
        while len(places):
            inside = at < count
            places, at = places[inside], at[inside]
            same = hashes[at] == asked[places]
            places, at = places[same], at[same]
            candidates = rows[at].astype(np.int64)
            equal = self._cache.raw_keys_at(candidates) == wanted[places]
            out[places[equal]] = candidates[equal]
            places, at = places[~equal], at[~equal] + 1  # a collision: the next row of the same hash
        self._file.count(len(wanted))
        return out


def open_index(cache: Cache) -> KeyIndex:
    """The key index of ``cache``, built if it is not there for exactly these shards.

    Raises
    ------
    DuplicateKeyError
        Two rows share a key.
    """
    if not len(cache):
        return KeyIndex(cache, None)
    folder = cache.path / "index"
    file, size = folder / _name(cache), 16 * len(cache)
    try:
        return KeyIndex(cache, MappedFile(file, size))
    except CacheError:
        pass  # not built yet, or cut short: build it
    if _leave_no_file.get():
        return _build_privately(cache, file, size)
    try:
        fsio.make_folder(folder)
        fsio.sweep(folder)
        build(cache, file)
        for old in folder.glob("keys-*.idx"):
            if old != file:
                old.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
            raise
        return _build_privately(cache, file, size)  # a read-only cache
    return KeyIndex(cache, MappedFile(file, size))


def _build_privately(cache: Cache, file: Path, size: int) -> KeyIndex:
    """An index for this process alone: the mapping outlives the name."""
    with tempfile.TemporaryDirectory() as private:
        build(cache, Path(private) / file.name)
        return KeyIndex(cache, MappedFile(Path(private) / file.name, size))


@contextmanager
def leaving_no_file() -> Iterator[None]:
    """Within it, indexes that are not there yet are built for this process and not kept: for a dry run."""
    token = _leave_no_file.set(True)
    try:
        yield
    finally:
        _leave_no_file.reset(token)


def _hashed_blocks(cache: Cache) -> Iterator[tuple[Indices, Hashes]]:
    """(rows, hashes) of every stretch of at most :data:`BLOCK_ROWS` rows."""
    for start in range(0, len(cache), BLOCK_ROWS):
        at = start
        for raw in cache.raw_keys(start, min(start + BLOCK_ROWS, len(cache))):
            yield np.arange(at, at + len(raw), dtype=np.int64), hash_keys(raw)
            at += len(raw)


def build(cache: Cache, file: Path) -> None:
    """Write the index of ``cache`` as ``file``, atomically, in memory of a few partitions.

    Hashes are counted, placed by partition of their range, then sorted a partition at a time.
    """
    count = len(cache)
    bits = max(0, (count - 1) // PARTITION_ROWS).bit_length()
    shift = np.uint64(64 - bits)
    sizes = np.zeros(1 << bits, np.int64)

    def parts_of(hashes: Hashes) -> Indices:
        return (hashes >> shift).astype(np.int64) if bits else np.zeros(len(hashes), np.int64)

    for _, hashes in _hashed_blocks(cache):
        sizes += np.bincount(parts_of(hashes), minlength=len(sizes))
    heads = np.concatenate([[0], np.cumsum(sizes)])
    temporary = fsio.temporary_name(file)
    try:
        with temporary.open("w+b", buffering=0) as handle:
            os.ftruncate(handle.fileno(), 16 * count)
            _place(cache, handle.fileno(), heads[:-1].copy(), parts_of)
            for low, high in zip(heads[:-1].tolist(), heads[1:].tolist(), strict=True):
                _sort(cache, handle.fileno(), low, high)
            os.fsync(handle.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _place(cache: Cache, handle: int, heads: Indices, parts_of: Callable[[Hashes], Indices]) -> None:
    """Append each block's hashes and rows to their partitions."""
    count = len(cache)
    for rows, hashes in _hashed_blocks(cache):
        parts = parts_of(hashes)
        order = np.argsort(parts, kind="stable")
        cuts = np.flatnonzero(np.diff(parts[order])) + 1
        for places in np.split(order, cuts):
            part = int(parts[places[0]])
            os.pwrite(handle, hashes[places].astype(_U64).tobytes(), 8 * int(heads[part]))
            os.pwrite(handle, rows[places].astype(_U64).tobytes(), 8 * (count + int(heads[part])))
            heads[part] += len(places)


def _read(handle: int, start: int, stop: int) -> Hashes:
    return np.frombuffer(os.pread(handle, 8 * (stop - start), 8 * start), _U64).astype(np.uint64)


def _sort(cache: Cache, handle: int, low: int, high: int) -> None:
    """Sort one partition in place and refuse a key that stands twice."""
    count = len(cache)
    hashes, rows = _read(handle, low, high), _read(handle, count + low, count + high)
    order = np.lexsort((rows, hashes))
    hashes, rows = hashes[order], rows[order]
    twins = np.flatnonzero(hashes[1:] == hashes[:-1])
    if len(twins):
        _refuse_duplicates(cache, hashes, rows.astype(np.int64), twins)
    os.pwrite(handle, hashes.astype(_U64).tobytes(), 8 * low)
    os.pwrite(handle, rows.astype(_U64).tobytes(), 8 * (count + low))


def _refuse_duplicates(cache: Cache, hashes: Hashes, rows: Indices, twins: Indices) -> None:
    """Compare the keys of rows whose hashes are equal."""
    for value in np.unique(hashes[twins]):
        low, high = (int(np.searchsorted(hashes, value, side=side)) for side in _SIDES)
        group = rows[low:high]
        seen: dict[str, int] = {}
        for row, key in zip(group.tolist(), cache.keys(group), strict=True):
            if key in seen:
                raise DuplicateKeyError(
                    f"Rows {seen[key]} and {row} have the same key {key!r} "
                    f"({_where(cache, seen[key])}; {_where(cache, row)}).",
                    where=str(cache.path),
                    todo="rename one of the two items, or choose another key column, and encode again",
                )
            seen[key] = row


def _where(cache: Cache, row: int) -> str:
    shard = int(np.searchsorted(cache.starts, row, side="right")) - 1
    source = cache.sources([row])[0]
    return f"shard {cache.shards[shard].shard}" + (f", {source}" if source else "")
