"""Rows of JSONL and CSV files with the bytes that each stands in, quoted newlines included."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

from ...cache.errors import CorpusError
from ...cache.plan import PieceKind
from ...cache.remote import Place
from .digest import digest_range
from .lines import LINE_LIMIT, open_source, raw_lines


class Row(NamedTuple):
    """One row: its half-open range (bytes or row numbers), first line, raw bytes, and values or an error or neither."""

    start: int
    stop: int
    line: int
    raw: bytes
    values: Mapping[str, Any] | None
    error: str | None = None

    @property
    def blank(self) -> bool:
        """Whether this is an empty line, which is no item."""
        return self.values is None and self.error is None


_PEEK = 64
# one decoder for all lines: json.loads with an option would make one for each
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)
Update = Callable[[bytes], object]


class Table(Protocol):
    """A file of rows with named columns."""

    @property
    def kind(self) -> PieceKind:
        """``lines`` for byte ranges, ``rows`` for row ranges."""
        ...

    @property
    def place(self) -> Place:
        """The file."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns; of the first record, for JSONL."""
        ...

    @property
    def seed(self) -> bytes:
        """Bytes that decide how every row is read: the header of a CSV."""
        ...

    def rows(
        self, start: int = 0, stop: int | None = None, line: int = 1, update: Update | None = None
    ) -> Iterator[Row]:
        """Rows of a range, in order; ``update`` sees every byte that makes the identity of the range."""
        ...

    def digest(self, start: int, stop: int) -> str:
        """Identity of a range."""
        ...


def _ignore(raw: bytes) -> None:
    """See bytes and do nothing."""


@dataclass(frozen=True)
class JsonlTable:
    """One JSON object a line."""

    place: Place
    columns: tuple[str, ...]
    kind: PieceKind = "lines"
    seed: bytes = b""

    @classmethod
    def open(cls, place: Place) -> JsonlTable:
        """Open a file, with the fields of its first records as columns."""
        first = islice(cls(place, ()).rows(), _PEEK)
        return cls(place, tuple(dict.fromkeys(name for row in first for name in row.values or ())))

    def rows(
        self, start: int = 0, stop: int | None = None, line: int = 1, update: Update | None = None
    ) -> Iterator[Row]:
        """Records in order."""
        with open_source(self.place, self.place.name) as handle:
            handle.seek(start)
            left = (self.place.stat().st_size if stop is None else stop) - start
            for raw, length in raw_lines(handle, left, update or _ignore):
                values, error = _record(raw, length, first=line == 1)
                yield Row(start, start + length, line, raw, values, error)
                start, line = start + length, line + 1

    def digest(self, start: int, stop: int) -> str:
        """Digest of the bytes."""
        return digest_range(self.place, start, stop)


def _record(raw: bytes, length: int, *, first: bool) -> tuple[Mapping[str, Any] | None, str | None]:
    """Object of a JSON line, or why it is none; neither for a blank line."""
    if length > LINE_LIMIT:
        return None, f"{length} bytes in one line, more than {LINE_LIMIT}"
    if first:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    if not raw.strip():
        return None, None
    try:
        record = _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start} of the line"
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {error}"
    return (record, None) if isinstance(record, dict) else (None, f"a JSON {type(record).__name__}, not an object")


def _is_utf8(raw: bytes) -> bool:
    """Whether bytes are UTF-8."""
    if raw.isascii():
        return True
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True)
class CsvTable:
    """Comma or tab separated values with a header; quoted cells may hold newlines."""

    place: Place
    columns: tuple[str, ...]
    delimiter: str
    seed: bytes
    head_lines: int = 1
    kind: PieceKind = "lines"

    @classmethod
    def open(cls, place: Place, delimiter: str) -> CsvTable:
        """Open a file and read its header."""
        feed_of = cls(place, (), delimiter, b"")
        head = next(feed_of._cells(0, place.stat().st_size, 1, None), None)
        if head is None:
            return feed_of
        _, stop, _, raw, cells, error, lines = head
        if error or not cells:
            raise CorpusError(f"the header cannot be read: {error or 'the first line is blank'}", where=str(place))
        names = tuple(cell.strip() for cell in cells)
        if len(set(names)) < len(names):
            raise CorpusError(f"the header names a column twice: {', '.join(names)}", where=str(place))
        return cls(place, names, delimiter, raw[:stop], lines)

    def rows(
        self, start: int = 0, stop: int | None = None, line: int = 1, update: Update | None = None
    ) -> Iterator[Row]:
        """Rows in order, without the header."""
        if start == 0:
            start, line = len(self.seed), 1 + self.head_lines
        end = self.place.stat().st_size if stop is None else stop
        for begun, ended, number, raw, cells, error, _ in self._cells(start, end, line, update):
            if error is not None:
                yield Row(begun, ended, number, raw, None, error)
            elif not cells:
                yield Row(begun, ended, number, raw, None)
            elif len(cells) > len(self.columns):
                yield Row(
                    begun, ended, number, raw, None, f"{len(cells)} cells, but the header has {len(self.columns)}"
                )
            else:
                yield Row(begun, ended, number, raw, dict(zip(self.columns, cells, strict=False)))

    def digest(self, start: int, stop: int) -> str:
        """Digest of the header and the bytes."""
        return digest_range(self.place, start, stop, self.seed)

    def _cells(
        self, start: int, stop: int, line: int, update: Update | None
    ) -> Iterator[tuple[int, int, int, bytes, list[str], str | None, int]]:
        """Start, stop, first line, bytes, cells, error and number of lines of every row.

        ``csv`` takes a line only when it needs one, so what has been taken when a row comes out is exactly that row.
        """
        taken: list[bytes] = []
        sizes: list[int] = []

        def feed() -> Iterator[str]:
            for index, (raw, length) in enumerate(raw_lines(handle, stop - start, update or _ignore)):
                taken.append(raw)
                sizes.append(length)
                text = raw.removeprefix(codecs.BOM_UTF8) if start == 0 and index == 0 else raw
                yield text.decode("utf-8", "surrogateescape")

        with open_source(self.place, self.place.name) as handle:
            handle.seek(start)
            reader = csv.reader(feed(), delimiter=self.delimiter)
            position = start
            while True:
                cells: list[str] = []
                error: str | None = None
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as problem:
                    error = str(problem)
                if not sizes:
                    return
                raw = b"".join(taken)
                if error is None and not _is_utf8(raw):
                    error = "not UTF-8"
                ended = position + sum(sizes)
                yield position, ended, line, raw, cells, error, len(sizes)
                position, line = ended, line + len(sizes)
                taken.clear()
                sizes.clear()
