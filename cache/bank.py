"""A memory bank: several caches of one space as one matrix, or a seeded sample of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from .errors import CacheError
from .mapped import Indices
from .reader import Cache
from .vectors import Float32, normalize_rows

_SCAN = 1 << 20


def _priorities(rows: Indices, seed: int) -> npt.NDArray[np.uint64]:
    """A pseudo-random 64-bit number for each row (splitmix64 of row and seed): (B,)."""
    words = rows.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0x9E3779B97F4A7C15), (29, 1)):
        words = (words ^ (words >> np.uint64(shift))) * np.uint64(factor)
    return words


def sample_rows(total: int, rows: int, seed: int) -> Indices:
    """``rows`` of ``total`` row numbers, ascending, each set equally likely: those of the smallest priorities.

    A larger sample of the same seed contains the smaller one. Memory is that of the sample and one block.
    """
    best, numbers = np.empty(0, np.uint64), np.empty(0, np.int64)
    for start in range(0, total, _SCAN):
        block = np.arange(start, min(start + _SCAN, total), dtype=np.int64)
        best = np.concatenate([best, _priorities(block, seed)])
        numbers = np.concatenate([numbers, block])
        if len(best) > rows:
            keep = np.argpartition(best, rows - 1)[:rows]
            best, numbers = best[keep], numbers[keep]
    return np.sort(numbers)


class Bank:
    """Rows of one or several caches of the same space, one after the other.

    Parameters
    ----------
    caches : sequence of Cache
        At least one; all of one space and dim. Modalities may differ.
    rows : int, optional
        Take a sample of this many rows instead of all.
    seed : int
        Of the sample.

    Raises
    ------
    CacheError
        No cache, no row, or caches of different spaces or dims.
    """

    def __init__(self, caches: Sequence[Cache], rows: int | None = None, seed: int = 0) -> None:
        if not caches:
            raise CacheError("A bank needs at least one cache.")
        self.caches = tuple(caches)
        self.seed = seed
        first = self.caches[0]
        self.dim, self.space_id = first.dim, first.manifest.space_id
        for other in self.caches[1:]:
            if (other.dim, other.manifest.space_id) != (self.dim, self.space_id):
                raise CacheError(
                    f"The caches of a bank are of one space: {first.path} is {self.space_id} ({self.dim} dimensions), "
                    f"{other.path} is {other.manifest.space_id} ({other.dim}).",
                    todo="give each space its own bank",
                )
        self._starts = np.cumsum([0, *(len(cache) for cache in self.caches)], dtype=np.int64)  # (C + 1,)
        total = int(self._starts[-1])
        if total == 0:
            raise CacheError("The bank has no rows.", where=", ".join(str(cache.path) for cache in self.caches))
        if rows is not None and rows < 1:
            raise CacheError(f"bank_rows is {rows}; a sample has at least one row.")
        self._sample = sample_rows(total, rows, seed) if rows is not None and rows < total else None

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._sample is None else len(self._sample)

    def blocks(self, size: int = 16384) -> Iterator[Float32]:
        """All rows in order, as unit rows: (B, D) float32, B = ``size`` except at the end, whatever the shards."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            if self._sample is not None:
                yield self.rows(np.arange(start, stop))
            else:
                yield self._range(start, stop)

    def _range(self, start: int, stop: int) -> Float32:
        parts = []
        for cache, low, high in zip(self.caches, self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True):
            first, last = max(start, low), min(stop, high)
            if first < last:
                parts.append(cache.read(first - low, last - low))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def rows(self, indices: npt.ArrayLike) -> Float32:
        """Rows by number in this bank, as unit rows: (B, D) float32."""
        wanted = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} asked for; the bank has {len(self)}")
        if self._sample is not None:
            wanted = self._sample[wanted]
        if len(self.caches) == 1:
            return self.caches[0].rows(wanted)
        owners = np.searchsorted(self._starts, wanted, side="right") - 1
        out = np.empty((len(wanted), self.dim), np.float32)
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            out[places] = self.caches[number].rows(wanted[places] - self._starts[number], normalize=False)
        normalize_rows(out)
        return out

    def content_id(self) -> str:
        """Identity of the rows: a hash over the caches' content, and the sample's size and seed."""
        digest = hashlib.blake2b(digest_size=16)
        for cache in self.caches:
            digest.update(cache.content_id().encode() + b"\n")
        if self._sample is not None:
            digest.update(f"{len(self._sample)} of {int(self._starts[-1])}, seed {self.seed}\n".encode())
        return digest.hexdigest()
