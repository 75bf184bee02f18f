"""JSONL, CSV, TSV and parquet as sources: a caption a row, or a path to a media file a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.keys import caption_key, line_key, stem
from ...cache.ledger import Failure
from ...cache.plan import Piece
from ...cache.remote import Place, RemotePath
from ..encoders.base import Item, Modality
from .base import CorpusSettings, Survey, Task
from .columns import Columns, caption_problem, captions_of, choose, key_text, record_of
from .digest import new_digest
from .folders import load_file
from .keys import path_text, unfit
from .lines import Tail, compare_pieces, ends_line, refuse_utf16, stale
from .names import extension
from .parquet import ParquetTable
from .rows import CsvTable, JsonlTable, Row, Table
from .table_plan import plan_rows


def open_table(place: Place) -> Table:
    """Open a table by its extension."""
    kind = extension(place.name)
    if kind == "parquet":
        return ParquetTable.open(place)
    refuse_utf16(place)
    return (
        JsonlTable.open(place) if kind in ("jsonl", "ndjson") else CsvTable.open(place, "\t" if kind == "tsv" else ",")
    )


@dataclass(frozen=True)
class TableSource:
    """A table; keys are its key column, or ``<relative stem>:<9-digit line>`` where it has none."""

    name: str
    place: Place
    modality: Modality
    settings: CorpusSettings
    table: Table
    used: Columns

    @classmethod
    def open(cls, name: str, place: Place, modality: Modality, settings: CorpusSettings) -> TableSource:
        """Open a table and choose its columns; NoColumnError where it lacks the one that the modality needs."""
        table = open_table(place)
        return cls(name, place, modality, settings, table, choose(table.columns, modality, settings, str(place)))

    @property
    def root(self) -> Place:
        """The folder that media paths are relative to; the file itself for captions."""
        return self.place if self.modality == "text" else self.place.parent

    @property
    def prefix(self) -> str | None:
        """``<relative stem>:`` where keys are lines."""
        return f"{stem(self.name)}:" if self.used.key is None else None

    def explicit_keys(self) -> Iterator[tuple[str, str]]:
        """Keys of the key column, with their lines."""
        if self.used.key is not None:
            for row in self.table.rows():
                for key in self.row_keys(row):
                    yield key, f"{self.place} line {row.line}"

    def holds(self, key: str) -> bool:
        """Whether a line has that number."""
        number = int(key.rpartition(":")[2])
        return any(row.line == number for row in self.table.rows())

    def survey(self, task: Task) -> Survey:
        """Keep earlier pieces whose identity agrees; plan the rows after them, or those whose keys are new."""
        survey = plan_rows(self, task)
        if survey.known or task.earlier or survey.remarks or next(self.table.rows(), None) is not None:
            return survey
        return Survey(remarks=(f"{self.name} has no rows",))

    def compare(self, earlier: Sequence[Piece]) -> Tail:
        """Where new rows begin, and which earlier pieces disagree."""
        if self.table.kind == "lines":
            return compare_pieces(self.place, self.name, earlier, self.table.seed)
        known, start, changed = 0, 0, list[str]()
        for piece in sorted(earlier, key=lambda p: p.start):
            if self.table.digest(piece.start, piece.stop) == piece.identity:
                known += piece.rows or 0
            else:
                changed.append(f"{self.name} rows {piece.start}-{piece.stop}")
            start = piece.stop
        return Tail(start if not changed else None, start + 1, known, tuple(changed))

    def row_keys(self, row: Row) -> list[str]:
        """Keys of a row's items by the key column; none for a row without a usable key."""
        if row.values is None:
            return []
        key = self._key(row)
        if key is None:
            return []
        count = self.count(row)
        return [key] if count == 1 else [f"{key}#{n}" for n in range(count)]

    def count(self, row: Row) -> int:
        """Items and failures that a row gives: none for a blank line, one for each caption of a list."""
        if row.blank:
            return 0
        if row.values is None or self.used.caption is None or self.modality != "text":
            return 1
        return len(captions_of(row.values.get(self.used.caption)))

    def read(self, piece: Piece) -> Iterator[Item | Failure]:
        """Items of the rows of a piece, in order."""
        digest = new_digest()
        digest.update(self.table.seed)
        for row in self.table.rows(piece.start, piece.stop, piece.first or 1, digest.update):
            if not row.blank:
                yield from self._items(row)
        if digest.hexdigest() != piece.identity or self._grown(piece):
            raise stale(self.place, f"rows from line {piece.first} on")

    def _grown(self, piece: Piece) -> bool:
        """Whether the last line of a piece goes on after it."""
        if self.table.kind != "lines":
            return False
        with self.place.open("rb") as handle:
            return not ends_line(handle, piece.stop)

    def _key(self, row: Row) -> str | None:
        if self.used.key is None or row.values is None:
            return line_key(stem(self.name), row.line)
        return key_text(row.values.get(self.used.key))

    def _items(self, row: Row) -> Iterator[Item | Failure]:
        spare = line_key(stem(self.name), row.line)
        where = f"line {row.line} of {self.name}"
        key = self._key(row)
        if row.values is None:
            yield Failure(spare, "read", "BadRow", f"{where}: {row.error}")
        elif key is None:
            shown = repr(row.values.get(self.used.key or ""))[:80]
            for _ in range(self.count(row)):
                yield Failure(spare, "read", "NoKey", f"{where}: {shown} in column {self.used.key} is no key")
        elif self.modality == "text":
            yield from self._captions(row, row.values, key, where)
        else:
            yield self._media(row.values, key, where)

    def _captions(self, row: Row, values: Any, key: str, where: str) -> Iterator[Item | Failure]:
        captions = captions_of(values.get(self.used.caption))
        meta = record_of(values, self.used)
        for number, caption in enumerate(captions):
            one = key if len(captions) == 1 else caption_key(key, number)
            if problem := caption_problem(caption):
                yield Failure(one, "read", "BadCaption", f"{where}: {problem}")
            else:
                yield Item(one, caption, name=f"{self.name}:{row.line}", caption=caption, source=self.name, meta=meta)

    def _media(self, values: Any, key: str, where: str) -> Item | Failure:
        data, path = self._load(values.get(self.used.path))
        if isinstance(data, Failure):
            return Failure(key, data.stage, data.error, f"{where}: {data.message}")
        caption = values.get(self.used.caption) if self.used.caption else None
        first = captions_of(caption)[0]
        text = first if caption_problem(first) is None else None
        source = self._relative(path) if path else self.name
        return Item(key, data, name=path or key, caption=text, source=source, meta=record_of(values, self.used))

    def _relative(self, path: str) -> str:
        """A path as it may stand in a cache: never absolute."""
        if not Path(path).is_absolute():
            return path
        if isinstance(self.place, RemotePath):
            return Path(path).name
        inside = Path(path).is_relative_to(self.place.parent)
        return Path(path).relative_to(self.place.parent).as_posix() if inside else Path(path).name

    def _load(self, cell: Any) -> tuple[bytes | Failure, str | None]:
        """Content of the file that a cell names, or that it holds itself."""
        if isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes):
            path = cell.get("path")
            return cell["bytes"], path_text(path) if isinstance(path, str) and path else None
        if isinstance(cell, dict):
            cell = cell.get("path")
        if isinstance(cell, bytes):
            return cell, None
        if not isinstance(cell, str) or not cell or unfit(cell):
            return Failure("", "read", "NoPath", f"{cell!r} in column {self.used.path} is no path"), None
        if "://" in cell or cell.startswith("pipe:"):
            return Failure("", "read", "RemotePath", f"{cell} is not beside the table; download it first"), None
        place = self._placed(cell)
        return load_file(self.place.parent, place, self.settings.max_item_bytes), place

    def _placed(self, path: str) -> str:
        """A path relative to the table's folder: as it reads, else inside the folder that is named like the table."""
        inside = f"{stem(self.place.name)}/{path}"
        beside = not (self.place.parent / path).exists() and (self.place.parent / inside).exists()
        return inside if beside else path
