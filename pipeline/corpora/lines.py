"""Text files: one caption a line. Planned by byte ranges, so that no line is held in memory."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from ...cache.errors import CorpusError
from ...cache.keys import line_key, stem
from ...cache.ledger import Failure
from ...cache.plan import Piece
from ...cache.remote import Place
from ..encoders.base import Item
from .base import Survey, Task
from .digest import CHUNK, digest_range, new_digest
from .keys import unfit
from .packing import Packer

LINE_LIMIT = 1 << 24
NEWLINE = 10


@dataclass(frozen=True)
class LinesSource:
    """A UTF-8 text file with one caption a line; keys are ``<relative stem>:<9-digit line>``, blank lines counted."""

    name: str
    place: Place

    @property
    def root(self) -> Place:
        """The file itself."""
        return self.place

    @property
    def prefix(self) -> str:
        """``<relative stem>:``."""
        return f"{stem(self.name)}:"

    def explicit_keys(self) -> Iterator[tuple[str, str]]:
        """Nothing: keys are numbered."""
        return iter(())

    def holds(self, key: str) -> bool:
        """Whether the file has that many lines."""
        number = int(key.rpartition(":")[2])
        packer = Packer(1 << 62)
        scan(self.place, packer, self.name, 0, 1)
        packer.close()
        lines = packer.units[0].rows if packer.units else 0
        return 1 <= number <= (lines or 0)

    def survey(self, task: Task) -> Survey:
        """Keep earlier pieces whose bytes agree; plan what follows the last of them."""
        refuse_utf16(self.place)
        tail = compare_pieces(self.place, self.name, task.earlier)
        if tail.start is None:
            return Survey(tail.known, tail.changed)
        found = scan(self.place, task.packer, self.name, tail.start, tail.line)
        remarks = () if found or task.earlier else (f"{self.name} is empty: 0 captions",)
        return Survey(tail.known, tail.changed, (), remarks)

    def read(self, piece: Piece) -> Iterator[Item | Failure]:
        """Captions in order; a line that is blank, not UTF-8 or too long is a failure."""
        digest = new_digest()
        position = piece.start
        with open_source(self.place, self.name) as handle:
            handle.seek(piece.start)
            for number, (raw, length) in enumerate(
                raw_lines(handle, piece.stop - piece.start, digest.update), piece.first
            ):
                position += length
                yield self._item(raw, length, number)
            grown = not ends_line(handle, piece.stop)
        if digest.hexdigest() != piece.identity or position != piece.stop or grown:
            raise stale(self.place, f"lines from {piece.first} on")

    def _item(self, raw: bytes, length: int, number: int) -> Item | Failure:
        key = line_key(stem(self.name), number)
        caption = decode_line(raw, length, first=number == 1)
        if isinstance(caption, Failure):
            return Failure(key, caption.stage, caption.error, f"line {number} of {self.name}: {caption.message}")
        return Item(key, caption, name=f"{self.name}:{number}", caption=caption, source=self.name)


@dataclass(frozen=True)
class Tail:
    """Where new input begins in a file that only grows: byte and line; None if the end of what was planned changed."""

    start: int | None
    line: int
    known: int
    changed: tuple[str, ...]


def compare_pieces(place: Place, name: str, earlier: Sequence[Piece], seed: bytes = b"") -> Tail:
    """Compare earlier line pieces with the bytes that the file has now."""
    start: int | None = 0
    line, known = 1, 0
    changed: list[str] = []
    size = place.stat().st_size
    for piece in sorted(earlier, key=lambda p: p.start):
        rows = piece.rows or 0
        whole = piece.stop <= size and digest_range(place, piece.start, piece.stop, seed) == piece.identity
        line = piece.first + rows
        if not whole:
            start = None
            changed.append(f"{name} bytes {piece.start}-{piece.stop}")
            continue
        with place.open("rb") as handle:
            start = _after_newline(handle, piece.stop)
            if start is None:
                changed.append(f"{name} line {line - 1} (it has grown)")
                start = _next_line(handle, piece.stop)
            else:
                known += rows
    return Tail(start, line, known, tuple(changed))


def scan(place: Place, packer: Packer, name: str, start: int, line: int) -> int:
    """Cut a text file from ``start`` on into pieces that fill the packer's units; returns the lines found."""
    digest, begun, rows, total = new_digest(), start, 0, 0
    position = start
    open_end = False

    def emit(stop: int) -> None:
        nonlocal digest, begun, rows, line
        packer.add(Piece("lines", name, rows, digest.hexdigest(), begun, stop, line))
        line += rows
        digest, begun, rows = new_digest(), stop, 0

    with place.open("rb") as handle:
        handle.seek(start)
        while chunk := handle.read(CHUNK):
            view = memoryview(chunk)
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == NEWLINE) + 1
            used = taken = 0
            while used < len(ends):
                count = min(packer.room - rows, len(ends) - used)
                used += count
                cut = int(ends[used - 1])
                digest.update(view[taken:cut])
                taken, rows, total = cut, rows + count, total + count
                if rows == packer.room:
                    emit(position + cut)
            digest.update(view[taken:])
            position += len(chunk)
            open_end = chunk[-1] != NEWLINE
    if open_end:
        rows, total = rows + 1, total + 1
    if rows:
        emit(position)
    return total


def raw_lines(handle: BinaryIO, left: int, update: Callable[[bytes], object]) -> Iterator[tuple[bytes, int]]:
    """Lines of the next ``left`` bytes with their length, cut to the limit; ``update`` sees every byte."""
    while left > 0 and (raw := handle.readline(min(left, LINE_LIMIT))):
        update(raw)
        length = len(raw)
        while raw[-1:] != b"\n" and length < left and (more := handle.readline(min(left - length, LINE_LIMIT))):
            update(more)
            length += len(more)
            if more[-1:] == b"\n":
                break
        left -= length
        yield raw, length


def decode_line(raw: bytes, length: int, *, first: bool) -> str | Failure:
    """Caption of a raw line without BOM, CR and LF, or a failure without a key."""
    if length > LINE_LIMIT:
        return Failure("", "read", "LineTooLong", f"{length} bytes in one line, more than {LINE_LIMIT}")
    if first:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        caption = raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return Failure("", "read", "UnicodeDecodeError", f"not UTF-8 at byte {error.start} of the line")
    if not caption.strip():
        return Failure("", "read", "BlankLine", "blank line, no caption")
    if why := unfit(caption):
        return Failure("", "read", "UnfitText", why)
    return caption


def refuse_utf16(place: Place) -> None:
    """Raise for UTF-16 and UTF-32 files, which would read as one failure a line."""
    with open_source(place, place.name) as handle:
        head = handle.read(4)
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or head == codecs.BOM_UTF32_BE:
        raise CorpusError(
            "the file is UTF-16 or UTF-32, not UTF-8",
            where=str(place),
            todo="convert it, for example with iconv -f UTF-16 -t UTF-8",
        )


def open_source(place: Place, name: str) -> BinaryIO:
    """Open a source for reading; CorpusError if it is gone."""
    try:
        return place.open("rb")
    except OSError as error:
        raise CorpusError(
            f"the input {name} cannot be opened: {error.strerror}",
            where=str(place),
            todo="put it back, or give its place as an input",
        ) from error


def stale(place: Place, part: str) -> CorpusError:
    """The error for a source that no longer agrees with the plan."""
    return CorpusError(
        f"the input has changed since it was planned: {part}",
        where=str(place),
        todo="restore it and run again, or encode it into a new cache",
    )


def ends_line(handle: BinaryIO, stop: int) -> bool:
    """Whether the byte before ``stop`` ends a line: a newline there, or the end of the file or a newline after it."""
    return _after_newline(handle, stop) is not None


def _after_newline(handle: BinaryIO, stop: int) -> int | None:
    """Where the next line begins after a piece that ends at ``stop``; None if the line goes on."""
    if stop == 0:
        return 0
    handle.seek(stop - 1)
    around = handle.read(3)
    if around[:1] == b"\n" or len(around) <= 1:
        return stop
    rest = around[1:]
    if rest[:1] == b"\n":
        return stop + 1
    return stop + 2 if rest == b"\r\n" else None


def _next_line(handle: BinaryIO, position: int) -> int:
    """Byte at which the line after the one around ``position`` begins, or the end of the file."""
    handle.seek(position)
    while (part := handle.readline(LINE_LIMIT)) and part[-1:] != b"\n":
        pass
    return handle.tell()
