"""Keys of the rows that a search found: held in memory where they are small, else from the mapped key columns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...cache.reader import Cache

HELD_BYTES = 64 << 20  # keys that may be held in memory


class RowKeys:
    """Keys by global row, quick for the rows of an answer.

    The first question takes all keys into memory where they are small enough: ten of them are then looked up in 2 µs,
    from mapped columns in 12 (docs/log.md).

    Parameters
    ----------
    gallery : Cache
    """

    def __init__(self, gallery: Cache) -> None:
        self._gallery = gallery
        self._width = max((marker.key_length for marker in gallery.shards), default=1)
        self._holdable = len(gallery) * self._width <= HELD_BYTES
        self._held: npt.NDArray[np.bytes_] | None = None

    def lines(self, rows: npt.NDArray[np.int64]) -> list[list[str]]:
        """Keys of (Q, k) rows."""
        if not self._holdable:
            keys = self._gallery.keys(rows.ravel())
            width = rows.shape[1]
            return [keys[at * width : (at + 1) * width] for at in range(len(rows))]
        held = self._all() if self._held is None else self._held
        return [[key.decode() for key in line] for line in held[rows].tolist()]

    def _all(self) -> npt.NDArray[np.bytes_]:
        held = np.empty(len(self._gallery), f"S{self._width}")
        at = 0
        for part in self._gallery.raw_keys(0, len(held)):
            held[at : at + len(part)] = part
            at += len(part)
        self._held = held
        return held
