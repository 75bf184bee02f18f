"""Which rows of a table are new, and how they are cut into pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from ...cache.plan import Piece
from .base import Survey, Task
from .digest import new_digest
from .packing import Packer
from .rows import Row

if TYPE_CHECKING:
    from .tables import TableSource

_BLOCK = 2048


def plan_rows(source: TableSource, task: Task) -> Survey:
    """Pack the new rows of a table.

    Where all earlier pieces agree, the rows after them are new. Where some disagree (rows were put in, or changed), a
    table with a key column gives the rows whose keys the cache lacks; one without gives none, since its lines have
    other numbers now.
    """
    tail = source.compare(task.earlier)
    keyed = source.used.key is not None
    cutter = Cutter(source, task.packer)
    if not tail.changed:
        known = tail.known + _take_tail(source, task, cutter, tail.start or 0, tail.line if task.earlier else 1)
        return Survey(known, remarks=cutter.remarks())
    if not keyed:
        if tail.start is not None:
            _take_tail(source, task, cutter, tail.start, tail.line)
        return Survey(tail.known, tail.changed, remarks=cutter.remarks())
    return _take_unknown(source, task, cutter)


def _take_tail(source: TableSource, task: Task, cutter: Cutter, start: int, line: int) -> int:
    """Pack rows from ``start`` on, except those whose keys the cache has; returns how many these are."""
    skipped = 0
    keyed = source.used.key is not None
    # a keyed table is read whole, because its keys must be unique over all of it
    for block in _blocks(source.table.rows() if keyed else source.table.rows(start, None, line)):
        for row, done in zip(block, _known(source, task, block), strict=True):
            if row.start < start:
                continue
            if done:
                skipped += source.count(row)
                cutter.skip()
            else:
                cutter.take(row)
    cutter.flush()
    return skipped


def _take_unknown(source: TableSource, task: Task, cutter: Cutter) -> Survey:
    """Pack rows with new keys; match the others, in order, against the earlier pieces that are not where they were."""
    agree = {piece for piece in task.earlier if source.table.digest(piece.start, piece.stop) == piece.identity}
    spans = sorted((piece.start, piece.stop) for piece in agree)
    moved = Matcher(source, [piece for piece in task.earlier if piece not in agree])
    known = keyless = 0
    for block in _blocks(source.table.rows()):
        for row, done in zip(block, _known(source, task, block), strict=True):
            while spans and row.start >= spans[0][1]:
                spans.pop(0)
            settled = bool(spans) and row.start >= spans[0][0]
            unkeyed = not row.blank and not source.row_keys(row)
            keyless += unkeyed and not settled
            if settled or done or unkeyed or row.blank:
                cutter.skip()
                known += source.count(row) if settled or done else 0
                if not settled:
                    moved.see(row)
            else:
                cutter.take(row)
    cutter.flush()
    remarks = cutter.remarks()
    if keyless:
        remarks = (*remarks, f"{source.name}: {keyless} rows without a key in a stretch that changed are passed over")
    return Survey(known, moved.changed(), (), remarks)


class Matcher:
    """Finds earlier pieces again after rows were put in between: the known rows, in order, must give their digests."""

    def __init__(self, source: TableSource, pieces: Sequence[Piece]) -> None:
        self._source = source
        self._left = list(pieces)
        self._changed: list[str] = []
        self._begin()

    def _begin(self) -> None:
        self._digest, self._rows = new_digest(), 0
        self._digest.update(self._source.table.seed)

    def see(self, row: Row) -> None:
        """Take in one row that is not new."""
        if not self._left:
            return
        self._digest.update(row.raw)
        self._rows += self._source.count(row)
        if self._rows >= (self._left[0].rows or 0):
            piece = self._left.pop(0)
            if self._digest.hexdigest() != piece.identity:
                self._changed.append(f"{self._source.name} rows that began at line {piece.first or piece.start + 1}")
            self._begin()

    def changed(self) -> tuple[str, ...]:
        """Pieces that were not found again."""
        rest = (f"{self._source.name} rows that began at line {p.first or p.start + 1}" for p in self._left)
        return (*self._changed, *rest)


class Cutter:
    """Collects consecutive new rows into pieces that fit the packer's room."""

    def __init__(self, source: TableSource, packer: Packer) -> None:
        self._source = source
        self._packer = packer
        self._blank = 0
        self._begin()

    def _begin(self) -> None:
        self._rows = 0
        self._span: tuple[int, int, int] | None = None
        self._digest = new_digest()
        self._digest.update(self._source.table.seed)

    def take(self, row: Row) -> None:
        """Add a new row to the open piece; close it first where it would not fit."""
        count = self._source.count(row)
        self._blank += row.blank
        if self._rows and self._rows + count > self._packer.room:
            self.flush()
        start, line = self._span[::2] if self._span else (row.start, row.line)
        self._span = (start, row.stop, line)
        self._digest.update(row.raw)
        self._rows += count
        if self._rows >= self._packer.room:
            self.flush()

    def skip(self) -> None:
        """A row that is not new ends the open piece."""
        if self._span is not None:
            self.flush()

    def flush(self) -> None:
        """Hand the open piece to the packer; blank lines alone make none."""
        if self._span is not None and self._rows:
            start, stop, line = self._span
            kind = self._source.table.kind
            first = line if kind == "lines" else 0
            piece = Piece(kind, self._source.name, self._rows, self._digest.hexdigest(), start, stop, first)
            self._packer.add(piece)
        self._begin()

    def remarks(self) -> tuple[str, ...]:
        """What to say about blank lines."""
        return (f"{self._source.name}: {self._blank} blank lines are no items",) if self._blank else ()


def _blocks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    stream = iter(rows)
    while block := list(islice(stream, _BLOCK)):
        yield block


def _known(source: TableSource, task: Task, block: Sequence[Row]) -> Iterator[bool]:
    """Enter the keys of a block into the check; tell for each row whether the cache has its first key."""
    if source.used.key is None:
        return iter([False] * len(block))
    keys = [source.row_keys(row) for row in block]
    for key in (key for found in keys for key in found):
        task.keys.add(source, key)
    told = iter(task.known_keys([found[0] for found in keys if found]))
    return iter([bool(next(told)) if found else False for found in keys])
