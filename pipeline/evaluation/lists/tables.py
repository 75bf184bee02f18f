"""Reading official lists: CSV, JSON and VOC-like XML, with errors that name file and line."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ....cache.errors import CmcrError


def read_text(path: str | Path) -> str:
    """Text of a list, also of a ``.gz``."""
    place = Path(path)
    try:
        raw = place.read_bytes()
        return (gzip.decompress(raw) if place.suffix == ".gz" else raw).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise CmcrError("The list does not exist.", where=str(place), todo="check the path") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CmcrError(f"The list cannot be read as text: {error}", where=str(place)) from error


def read_rows(path: str | Path, delimiter: str = ",") -> list[tuple[int, list[str]]]:
    """Line numbers and cells of the lines of a table that are not blank."""
    lines = read_text(path).splitlines(keepends=True)
    if delimiter != ",":  # no quoting there
        return [(n, [c.strip() for c in line.split(delimiter)]) for n, line in enumerate(lines, 1) if line.strip()]
    reader = csv.reader(lines)
    try:
        return [
            (reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise CmcrError(f"The list is no table: {error}", where=f"{path}, line {reader.line_num}") from error


def read_records(path: str | Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a CSV with a header that has at least these columns."""
    rows = read_rows(path)
    head = rows[0][1] if rows else []
    if missing := [name for name in columns if name not in head]:
        raise CmcrError(
            f"The list has no column {missing[0]!r}; it has {', '.join(head) or 'no header'}.",
            where=str(path),
            todo=f"give the official list, whose columns are {', '.join(columns)}",
        )
    out = []
    for line, cells in rows[1:]:
        if len(cells) != len(head):
            raise CmcrError(f"{len(cells)} cells, but the header has {len(head)}.", where=f"{path}, line {line}")
        out.append((line, dict(zip(head, cells, strict=True))))
    return out


def read_json(path: str | Path) -> Any:
    """Content of a JSON file."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise CmcrError(f"The list is no JSON: {error}", where=str(path), todo="give the official list") from error


def malformed(path: str | Path, error: Exception) -> CmcrError:
    """The error for a list that lacks what its format has."""
    what = f"no {error}" if isinstance(error, KeyError) else str(error)
    return CmcrError(
        f"The list is not in the form of this benchmark ({what}).", where=str(path), todo="give the official list"
    )


def read_xml_boxes(path: Path) -> list[tuple[int, int, int, int]]:
    """Boxes of one annotation of Flickr-SoundNet in pixels of 256: left, top, right, bottom.

    ``bbox`` elements one level below the children of the root; their first element is a name, the next four are the
    numbers (SLAVC, datasets.py, ``load_all_bboxes``).
    """
    try:
        root = ElementTree.fromstring(read_text(path))
        boxes = []
        for entry in root.iterfind("*/bbox"):
            left, top, right, bottom = (int(number.text or "") for number in list(entry)[1:5])
            boxes.append((left, top, right, bottom))
        return boxes
    except (ElementTree.ParseError, ValueError) as error:
        raise CmcrError(f"The annotation cannot be read: {error}", where=str(path)) from error
