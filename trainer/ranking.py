"""Which gallery items are relevant to a query, and where a query's scores put them; see ``docs/metrics.md``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..cache.errors import CmcrError

Ints = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
_CAPTION_NUMBER = re.compile(r"#\d+$")
# Up to this many relevant items a query, one pass over the scores for each beats sorting the row.
FEW = 8


@dataclass(frozen=True)
class Relevance:
    """Which gallery rows are relevant to each query, without a matrix (Q, G).

    Queries with the same relevant rows share a group, so labels and keys take O(Q + G) memory.

    Parameters
    ----------
    query_groups : (Q,) int64
        Group of each query; -1 where nothing is relevant.
    indptr, indices : (groups + 1,) and (nnz,) int64
        Gallery rows of group i, ascending: ``indices[indptr[i]:indptr[i + 1]]``.
    gallery : int
        Gallery size G.
    gallery_groups : (G,) int64, optional
        Group of each gallery row where each has one at most (keys, labels).
    classes : tuple of str, optional
        Names of the groups where they are classes to average over.
    """

    query_groups: Ints
    indptr: Ints
    indices: Ints
    gallery: int
    gallery_groups: Ints | None = None
    classes: tuple[str, ...] | None = None

    @classmethod
    def from_labels(cls, queries: Sequence[str], gallery: Sequence[str]) -> Relevance:
        """Relevant = the same label. Other classes of the gallery are distractors; other queries are left out."""
        names = sorted(set(queries) & set(gallery))
        return cls._from_groups(queries, gallery, names, classes=tuple(names))

    @classmethod
    def from_keys(cls, queries: Sequence[str], gallery: Sequence[str]) -> Relevance:
        """Relevant = the same key.

        A numbered caption ``key#3`` belongs to the item ``key`` where the other side does not have that very caption.
        """
        left, right = set(queries), set(gallery)
        first = [key if key in right else _CAPTION_NUMBER.sub("", key) for key in queries]
        second = [key if key in left else _CAPTION_NUMBER.sub("", key) for key in gallery]
        return cls._from_groups(first, second, sorted(set(first) & set(second)))

    @classmethod
    def _from_groups(
        cls,
        queries: Sequence[str],
        gallery: Sequence[str],
        names: Sequence[str],
        classes: tuple[str, ...] | None = None,
    ) -> Relevance:
        number = {name: n for n, name in enumerate(names)}
        query_groups = np.array([number.get(name, -1) for name in queries], np.int64)  # (Q,)
        gallery_groups = np.array([number.get(name, -1) for name in gallery], np.int64)  # (G,)
        indptr, indices = _rows_of_groups(gallery_groups, len(names))
        return cls(query_groups, indptr, indices, len(gallery), gallery_groups, classes)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]], queries: Sequence[str], gallery: Sequence[str]) -> Relevance:
        """Relevant = listed as (query key, gallery key); an unknown key is a :class:`CmcrError`."""
        left, right = _positions(queries, "query"), _positions(gallery, "gallery")
        found: set[tuple[int, int]] = set()
        for query, item in pairs:
            for side, key, name in ((left, query, "query"), (right, item, "gallery")):
                if key not in side:
                    raise CmcrError(
                        f"the pair ({query}, {item}) names a {name} key that the {name} cache does not have: {key}",
                        todo="list pairs as query key, gallery key; keys of the two caches: `cmcr cache info`",
                    )
            found.add((left[query], right[item]))
        table = np.array(sorted(found), np.int64).reshape(-1, 2)  # (nnz, 2)
        return cls.from_rows(table[:, 0], table[:, 1], len(queries), len(gallery))

    @classmethod
    def from_rows(cls, query_rows: Ints, gallery_rows: Ints, queries: int, gallery: int) -> Relevance:
        """Relevant = listed by row numbers (nnz,), without repetition."""
        order = np.lexsort((gallery_rows, query_rows))
        indptr = np.zeros(queries + 1, np.int64)
        np.cumsum(np.bincount(query_rows, minlength=queries), out=indptr[1:])
        groups = np.where(np.diff(indptr) > 0, np.arange(queries), -1)
        return cls(groups, indptr, np.asarray(gallery_rows)[order], gallery)

    @classmethod
    def paired(cls, count: int) -> Relevance:
        """Row i of the gallery is the relevant one of query i."""
        rows = np.arange(count)
        return cls.from_rows(rows, rows, count, count)

    def __len__(self) -> int:
        return len(self.query_groups)

    def transposed(self) -> Relevance:
        """The other direction: gallery rows ask, queries are the gallery."""
        if self.gallery_groups is not None:
            indptr, indices = _rows_of_groups(self.query_groups, len(self.indptr) - 1)
            return Relevance(self.gallery_groups, indptr, indices, len(self), self.query_groups, self.classes)
        query_rows = np.repeat(np.arange(len(self)), self.counts())
        gallery_rows = self.rows(0, len(self))[1]
        return Relevance.from_rows(gallery_rows, query_rows, self.gallery, len(self))

    def counts(self) -> Ints:
        """Relevant rows of each query (Q,)."""
        sizes = np.append(np.diff(self.indptr), 0)  # the last entry is what group -1 reads
        out: Ints = sizes[self.query_groups]
        return out

    def rows(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Relevant pairs of the queries ``start:stop``: query minus ``start`` (nnz,), gallery row (nnz,), in order."""
        counts = self.counts()[start:stop]  # (B,)
        query = np.repeat(np.arange(stop - start), counts)
        inside = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        return query, self.indices[self.indptr[self.query_groups[start:stop]][query] + inside]


def _rows_of_groups(groups: Ints, count: int) -> tuple[Ints, Ints]:
    """Rows of each group as (indptr, indices), ascending inside a group; rows of group -1 are in none."""
    order = np.argsort(groups, kind="stable")
    order = order[np.searchsorted(groups[order], 0) :]
    indptr = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(groups[order], minlength=count), out=indptr[1:])
    return indptr, order


def _positions(keys: Sequence[str], side: str) -> dict[str, int]:
    positions = {key: n for n, key in enumerate(keys)}
    if len(positions) < len(keys):
        repeated = next(key for n, key in enumerate(keys) if positions[key] != n)
        raise CmcrError(f"the {side} has the key {repeated} more than once, so pairs cannot name its rows")
    return positions


@dataclass(frozen=True)
class Places:
    """Where the relevant items of a block of queries stand; arrays over the block's relevant pairs.

    ``query`` (nnz,) row in the block, ``higher`` items scored strictly higher, ``equal`` items of the same score, the
    relevant one included, ``before`` items of the same score earlier in the gallery (only where asked for, else 0).
    """

    query: Ints
    higher: Ints
    equal: Ints
    before: Ints


def places(scores: Scores, query: Ints, item: Ints, *, in_order: bool = False) -> Places:
    """Places of the relevant pairs (query, item), (nnz,) each, under scores (B, G), in O(B G) memory."""
    target = scores[query, item]  # (nnz,)
    counts = np.bincount(query, minlength=len(scores))  # (B,)
    higher, equal = (_count if counts.max(initial=0) <= FEW else _search)(scores, query, target)
    before = _earlier_equals(scores, query, item, higher) if in_order else np.zeros_like(higher)
    return Places(query, higher, equal, before)


def _count(scores: Scores, query: Ints, target: Scores) -> tuple[Ints, Ints]:
    """Items above and level with each target by comparing, in chunks of one target a query."""
    size = max(1, len(scores))
    higher, equal = np.zeros(len(query), np.int64), np.zeros(len(query), np.int64)
    for start in range(0, len(query), size):
        part = slice(start, start + size)
        own = len(query) == size and np.array_equal(query, np.arange(size))
        block, level = scores if own else scores[query[part]], target[part, None]  # (size, G), (size, 1)
        higher[part] = np.count_nonzero(block > level, axis=1)
        equal[part] = np.count_nonzero(block == level, axis=1)
    return higher, equal


def _search(scores: Scores, query: Ints, target: Scores) -> tuple[Ints, Ints]:
    """Items above and level with each target by sorting each row once; pairs are in the order of their queries."""
    ascending = np.sort(scores, axis=1)  # (B, G)
    ends = np.cumsum(np.bincount(query, minlength=len(scores)))
    below, up_to = np.zeros(len(query), np.int64), np.zeros(len(query), np.int64)
    for row, stop in enumerate(ends):
        part = slice(ends[row - 1] if row else 0, stop)
        below[part] = np.searchsorted(ascending[row], target[part], side="left")
        up_to[part] = np.searchsorted(ascending[row], target[part], side="right")
    return scores.shape[1] - up_to, up_to - below


def _earlier_equals(scores: Scores, query: Ints, item: Ints, higher: Ints) -> Ints:
    """How many items of the same score stand before each relevant one in the gallery."""
    order = np.argsort(-scores, axis=1, kind="stable")  # (B, G)
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(scores.shape[1]), order.shape), axis=1)
    out: Ints = place[query, item] - higher
    return out
