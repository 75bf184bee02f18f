"""Cosines of many queries with many gallery items in tiles: no array of the size of both sides is ever made.

Computed in float64 and rounded to multiples of 2^-24 (6e-8, float32 near 1), so that order and ties do not hang on
tile size, threads or library: a float32 product gives the same pair another last bit at another place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache.errors import CmcrError
from .ranking import FEW, Ints, Places, Relevance, Scores

Vectors = npt.NDArray[np.float32]
GRID = 1 << 24  # scores are held as whole numbers of 2^-24, which float32 holds exactly
_GALLERY_AT_ONCE = 2048
_PAIRS_AT_ONCE = 8192
_LEVELS_AT_ONCE = 64


@runtime_checkable
class Rows(Protocol):
    """Vectors that are read in pieces: an array, or a cache as it is seen in the shared space."""

    @property
    def dim(self) -> int:
        """Length of a vector, D."""
        ...

    def __len__(self) -> int:
        """How many there are, N."""
        ...

    def read(self, start: int, stop: int) -> Vectors:
        """Rows ``start:stop``: (stop - start, D) float32."""
        ...

    def take(self, indices: Ints) -> Vectors:
        """Rows by number, equal to the last bit to what :meth:`read` gives for them: (B, D) float32."""
        ...


@dataclass(frozen=True)
class ArrayRows:
    """Rows of an array (N, D) in memory."""

    array: npt.NDArray[np.float32]

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.array.shape[1])

    def __len__(self) -> int:
        return len(self.array)

    def read(self, start: int, stop: int) -> Vectors:
        """Rows ``start:stop``."""
        return np.asarray(self.array[start:stop], np.float32)

    def take(self, indices: Ints) -> Vectors:
        """Rows by number."""
        return np.asarray(self.array[indices], np.float32)


def as_rows(vectors: npt.NDArray[np.float32] | Rows) -> Rows:
    """Rows of an array, or rows as they are; an array that is not (N, D) is a :class:`CmcrError`."""
    if not isinstance(vectors, np.ndarray):
        return vectors
    if vectors.ndim != 2:
        raise CmcrError(f"vectors of shape {vectors.shape} are not rows (N, D)", todo="give one row for each item")
    return ArrayRows(vectors)


def score_blocks(
    queries: npt.NDArray[np.float32] | Rows, gallery: npt.NDArray[np.float32] | Rows, block: int, device: str = "cpu"
) -> Iterator[tuple[int, Scores]]:
    """Cosines of ``block`` queries at a time: (number of the first query, (B, G) float32); equal gallery rows tie."""
    asking, asked = as_rows(queries), as_rows(gallery)
    for start in range(0, len(asking), block):
        part = _scaled(asking.read(start, min(start + block, len(asking))), device)  # (B, D)
        out = np.empty((len(part), len(asked)), np.float32)  # (B, G)
        for low in range(0, len(asked), _GALLERY_AT_ONCE):
            high = min(low + _GALLERY_AT_ONCE, len(asked))
            tile = part @ _unit(asked.read(low, high), "gallery", device).T  # (B, C)
            out[:, low:high] = tile.round_().float().div_(GRID).cpu().numpy()
        yield start, out


def tiled_places(
    queries: Rows, gallery: Rows, relevance: Relevance, *, block: int, device: str, in_order: bool, both: bool
) -> tuple[Places, Places | None]:
    """Where the relevant items stand, in one or both directions from one pass over the tiles of scores.

    The scores of the relevant pairs are computed first; every tile (B, C) then adds how many of its scores are above
    and level with them. Memory is a tile and a few numbers for each relevant pair.

    Parameters
    ----------
    queries, gallery : Rows
        (Q, D) and (G, D).
    relevance : Relevance
        Which gallery rows are relevant to each query.
    block : int
        Queries in a tile, B.
    device : str
        Where tiles are computed.
    in_order : bool
        Count the earlier items of the same score too.
    both : bool
        Also the places of the queries for each gallery item.
    """
    query, item = relevance.rows(0, len(relevance))  # (P,), in the order of queries
    level = _levels(queries, gallery, query, item, device)  # (P,)
    there = _Side.of(query, item, level, len(queries), in_order)
    order = np.lexsort((query, item)) if both else None
    back = None
    if order is not None:
        back = _Side.of(item[order], query[order], level[torch.from_numpy(order).to(device)], len(gallery), in_order)
    for start in range(0, len(queries), block):
        stop = min(start + block, len(queries))
        part = _scaled(queries.read(start, stop), device)  # (B, D)
        own = slice(*np.searchsorted(query, (start, stop)))
        for low in range(0, len(gallery), _GALLERY_AT_ONCE):
            high = min(low + _GALLERY_AT_ONCE, len(gallery))
            tile = (part @ _unit(gallery.read(low, high), "gallery", device).T).round_().float()  # (B, C)
            # A pair's own score was computed apart: the same number stands in the tile, whatever the last bit.
            inside = own.start + np.flatnonzero((item[own] >= low) & (item[own] < high))
            at = torch.from_numpy(np.stack([query[inside] - start, item[inside] - low])).to(device)
            tile[at[0], at[1]] = level[torch.from_numpy(inside).to(device)]
            there.add(tile, start, low)
            if back is not None:
                back.add(tile.T.contiguous(), low, start)
    return there.places(), None if back is None else back.places()


@dataclass(frozen=True)
class _Side:
    """Counters of one direction, over its relevant pairs in the order of the asking rows."""

    asking: Ints  # (P,) row that asks
    item: Tensor  # (P,) row that is relevant to it
    level: Tensor  # (P,) score of the pair, as a whole number of 2^-24
    indptr: Ints  # (rows + 1,)
    higher: Tensor  # (P,)
    equal: Tensor  # (P,)
    before: Tensor  # (P,)
    in_order: bool

    @classmethod
    def of(cls, asking: Ints, item: Ints, level: Tensor, rows: int, in_order: bool) -> _Side:
        indptr = np.zeros(rows + 1, np.int64)
        np.cumsum(np.bincount(asking, minlength=rows), out=indptr[1:])
        higher, equal, before = torch.zeros(3, len(asking), dtype=torch.int64, device=level.device)
        return cls(asking, torch.from_numpy(item).to(level.device), level, indptr, higher, equal, before, in_order)

    def add(self, tile: Tensor, first_row: int, first_item: int) -> None:
        """Count the scores of a tile (R, C): asking rows from ``first_row``, items from ``first_item``."""
        begin = self.indptr[first_row : first_row + len(tile)]
        counts = self.indptr[first_row + 1 : first_row + len(tile) + 1] - begin  # (R,)
        for slot in range(min(int(counts.max(initial=0)), FEW)):  # the slot-th relevant item of each row that has one
            rows = np.flatnonzero((counts > slot) & (counts <= FEW))
            if len(rows):
                pairs = torch.from_numpy(begin[rows] + slot).to(tile.device)
                some = tile if len(rows) == len(tile) else tile[torch.from_numpy(rows).to(tile.device)]
                self._count(some, pairs, first_item)
        for row in np.flatnonzero(counts > FEW):
            self._count_many(tile[row], int(begin[row]), int(begin[row] + counts[row]), first_item)

    def _count(self, scores: Tensor, pairs: Tensor, first_item: int) -> None:
        """Add for the pair ``pairs[i]`` what the row i of ``scores`` (R, C) holds above and level with it."""
        level = self.level[pairs, None]  # (R, 1)
        flags = torch.empty_like(scores)  # sums of float32 flags are fast, and exact up to 2^24
        self.higher[pairs] += torch.gt(scores, level, out=flags).sum(1).long()
        same = torch.eq(scores, level, out=flags)
        self.equal[pairs] += same.sum(1).long()
        if self.in_order:
            column = first_item + torch.arange(scores.shape[1], device=scores.device)
            self.before[pairs] += (same * (column < self.item[pairs, None])).sum(1).long()

    def _count_many(self, scores: Tensor, start: int, stop: int, first_item: int) -> None:
        """The same for one row (C,) with many relevant items, by sorting it."""
        ascending, level = scores.sort().values, self.level[start:stop].contiguous()
        up_to = torch.searchsorted(ascending, level, right=True)
        self.higher[start:stop] += len(scores) - up_to
        self.equal[start:stop] += up_to - torch.searchsorted(ascending, level)
        if self.in_order:
            column = first_item + torch.arange(len(scores), device=scores.device)
            for low in range(start, stop, _LEVELS_AT_ONCE):
                part = slice(low, min(low + _LEVELS_AT_ONCE, stop))
                earlier = (scores == self.level[part, None]) & (column < self.item[part, None])
                self.before[part] += earlier.sum(1)

    def places(self) -> Places:
        """What was counted."""
        return Places(self.asking, *(part.cpu().numpy() for part in (self.higher, self.equal, self.before)))


def _levels(queries: Rows, gallery: Rows, query: Ints, item: Ints, device: str) -> Tensor:
    """Scores of the pairs (query, item), (P,) each, as float32 whole numbers of 2^-24."""
    out = torch.empty(len(query), dtype=torch.float32, device=device)
    for start in range(0, len(query), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        left = _scaled(queries.take(query[part]), device)  # (b, D)
        right = _unit(gallery.take(item[part]), "gallery", device)
        out[part] = (left * right).sum(1).round_().float()
    return out


def _scaled(rows: Vectors, device: str) -> Tensor:
    """Unit rows times 2^24, so that rounding a product rounds the cosine to the grid."""
    return _unit(rows, "query", device).mul_(GRID)


def _unit(rows: Vectors, name: str, device: str) -> Tensor:
    """Unit rows in float64; a zero row stays zero."""
    wide = torch.from_numpy(np.asarray(rows, np.float32)).to(device).double()
    if not bool(torch.isfinite(wide).all()):
        raise CmcrError(f"{name} vectors hold values that are not finite", todo="check the caches: `cmcr cache verify`")
    return torch.nn.functional.normalize(wide, dim=1)
