"""Where global row numbers lie among the shards. Values only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .mapped import Indices


def checked(indices: npt.ArrayLike, total: int, where: str) -> Indices:
    """Row numbers as (B,) int64.

    Raises
    ------
    IndexError
        Not a list of integers, or one outside 0 to ``total - 1``.
    """
    wanted = np.atleast_1d(np.asarray(indices))
    if wanted.size and (wanted.dtype.kind not in "iu" or wanted.ndim != 1):
        raise IndexError(f"rows are asked for by a list of integers, not {wanted.dtype} {wanted.shape}")
    rows: Indices = wanted.astype(np.int64)
    if rows.size and (rows.min() < 0 or rows.max() >= total):
        raise IndexError(f"rows {rows.min()} to {rows.max()} asked for; {where} has {total} rows")
    return rows


def runs(starts: Indices, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(shard, first row, last row + 1) of every stretch of the rows ``start`` to ``stop``.

    ``starts`` (S + 1,) are the first rows of the shards, and the total.
    """
    shard = int(np.searchsorted(starts, start, side="right")) - 1
    while start < stop:
        base, end = int(starts[shard]), int(starts[shard + 1])
        if start < end:
            yield shard, start - base, min(stop, end) - base
            start = min(stop, end)
        shard += 1


def by_shard(starts: Indices, wanted: Indices) -> Iterator[tuple[int, Indices, Indices]]:
    """(shard, places in ``wanted``, ascending rows within the shard) for each shard that is touched."""
    order = np.argsort(wanted)
    ascending = wanted[order]
    shards = np.searchsorted(starts, ascending, side="right") - 1
    cuts = np.flatnonzero(np.diff(shards)) + 1
    for low, high in itertools.pairwise([0, *cuts.tolist(), len(order)]):
        if low < high:
            shard = int(shards[low])
            yield shard, order[low:high], ascending[low:high] - starts[shard]
