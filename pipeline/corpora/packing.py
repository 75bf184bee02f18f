"""Greedy packing of pieces into units: in order, each unit filled up to the shard size."""

from __future__ import annotations

from ...cache.plan import Piece, Unit


class Packer:
    """Collects pieces into units of up to ``shard_size`` rows.

    A source asks :attr:`room` and cuts its next piece accordingly. A piece that cannot be cut (one table row with many
    captions) may make its unit larger than ``shard_size``.
    """

    def __init__(self, shard_size: int, first_shard: int = 0) -> None:
        self.shard_size = shard_size
        self.units: list[Unit] = []
        self._next = first_shard
        self._open: list[Piece] = []
        self._rows = 0

    @property
    def room(self) -> int:
        """Rows that still fit into the open unit; at least one."""
        return self.shard_size - self._rows

    def add(self, piece: Piece) -> None:
        """Put a piece into the open unit; a tar, whose rows are not counted, gets a unit of its own."""
        if piece.rows is None:
            self.close()
            self._open = [piece]
            self.close()
            return
        if self._open and piece.rows > self.room:
            self.close()
        self._open.append(piece)
        self._rows += piece.rows
        if self.room <= 0:
            self.close()

    def close(self) -> None:
        """End the open unit, if it has pieces."""
        if self._open:
            self.units.append(Unit(self._next, tuple(self._open)))
            self._next += 1
        self._open, self._rows = [], 0
