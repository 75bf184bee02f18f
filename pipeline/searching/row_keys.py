"""Keys of the rows that a search found, from the mapped key columns of the shards."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.reader import Cache

SINGLE = 32  # fewer rows are looked up one by one
HELD_BYTES = 64 << 20  # keys that may be held in memory
MOST_SHARDS = 1024  # columns held open: each holds a file descriptor


class RowKeys:
    """Keys by global row, quick for the rows of an answer.

    Single rows are read from the mapped key columns. The first question for many rows takes all keys into memory
    where they are small enough.

    Parameters
    ----------
    gallery : Cache
    """

    def __init__(self, gallery: Cache) -> None:
        self._gallery = gallery
        self._starts = gallery.starts.tolist()
        self._columns: dict[int, tuple[Any, Any]] = {}
        self._few_shards = len(gallery.shards) <= MOST_SHARDS
        width = max((marker.key_length for marker in gallery.shards), default=1)
        self._holdable = len(gallery) * width <= HELD_BYTES
        self._held: npt.NDArray[np.bytes_] | None = None

    def at(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Keys of (B,) rows, in the order asked for."""
        if len(rows) <= SINGLE and self._few_shards:
            return self._singly(rows)
        if not self._holdable:
            return self._gallery.keys(rows)
        if self._held is None:
            self._held = self._gallery.raw_keys_at(np.arange(len(self._gallery), dtype=np.int64))
        return [key.decode("utf-8") for key in self._held[rows].tolist()]

    def _singly(self, rows: npt.NDArray[np.int64]) -> list[str]:
        if self._held is not None:
            held = self._held
            return [held[row].decode("utf-8") for row in rows.tolist()]
        starts, columns = self._starts, self._columns
        keys, used = [], set()
        for row in rows.tolist():
            shard = bisect_right(starts, row) - 1
            if shard not in columns:
                columns[shard] = self._gallery.key_column(shard)
            used.add(shard)
            keys.append(columns[shard][1][row - starts[shard]].decode("utf-8"))
        for shard in used:  # pages count as memory of the process until they are given back
            columns[shard][0].count(1)
        return keys
