"""The items of a localization test: a sound, a frame, and where in the frame its source is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.errors import CmcrError
from .lists.entries import Box


@dataclass(frozen=True)
class LocalizationItem:
    """One pair of a sound and a frame.

    Parameters
    ----------
    key : str
        Name of the pair.
    audio, image : str
        Keys of the sound and of the frame in their caches.
    boxes : tuple of Box
        Where the source is; none where the sound has no source in the frame.
    consensus : int
        Boxes over a pixel that make it count fully (:func:`box_map`).
    path : Path, optional
        The frame's file, for overlays.
    """

    key: str
    audio: str
    image: str
    boxes: tuple[Box, ...]
    consensus: int = 1
    path: Path | None = None

    @property
    def audible(self) -> bool:
        """Whether the frame shows a source of the sound."""
        return bool(self.boxes)


def read_items(path: str | Path) -> list[LocalizationItem]:
    """Items from a JSONL file with ``key``, ``boxes`` and, where they differ from the key, ``audio`` and ``image``.

    A box is left, top, right, bottom as shares of width and height. ``path`` is relative to the file's folder.

    Raises
    ------
    CmcrError
        The file is missing or empty, a line is no such record, or a key comes twice; names the line.
    """
    place, items, seen = Path(path), list[LocalizationItem](), set[str]()
    for number, record in read_jsonl(place):
        item = _item(record, place, number)
        if item.key in seen:
            raise CmcrError(f"The key {item.key!r} comes twice.", where=f"{place}, line {number}", todo="keep one")
        seen.add(item.key)
        items.append(item)
    if not items:
        raise CmcrError("The list of items is empty.", where=str(place), todo="make it: cmcr evaluate prepare")
    return items


def read_jsonl(place: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and records of a JSONL file; blank lines are passed over."""
    try:
        with place.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise CmcrError("A line is no JSON object.", where=f"{place}, line {number}")
                    yield number, record
    except FileNotFoundError as error:
        raise CmcrError("The list does not exist.", where=str(place), todo="check the path") from error
    except (OSError, ValueError) as error:
        raise CmcrError(f"The list cannot be read as JSONL: {error}", where=str(place)) from error


def _item(record: dict[str, Any], place: Path, number: int) -> LocalizationItem:
    key = record.get("key")
    audio, image = record.get("audio", key), record.get("image", key)
    consensus, file = record.get("consensus", 1), record.get("path")
    names = all(isinstance(name, str) and name for name in (key, audio, image))
    if not names or "boxes" not in record or not isinstance(consensus, int) or consensus < 1:
        raise CmcrError(
            "An item has a key, boxes (a list, empty where nothing sounds) and perhaps audio, image, consensus, path.",
            where=f"{place}, line {number}",
            todo="make the list with: cmcr evaluate prepare",
        )
    boxes = boxes_of(record["boxes"], f"{place}, line {number}")
    return LocalizationItem(
        str(key), str(audio), str(image), boxes, consensus, None if file is None else place.parent / str(file)
    )


def boxes_of(value: Any, where: str) -> tuple[Box, ...]:
    """Checked boxes: lists of four finite numbers."""
    return tuple(_box(one, where) for one in (value if isinstance(value, list) else [value]))


def _box(value: Any, where: str) -> Box:
    numbers = value if isinstance(value, list) and len(value) == 4 else [None]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        raise CmcrError(
            f"{str(value)[:60]} is no box.", where=where, todo="[left, top, right, bottom] as shares of the frame"
        )
    left, top, right, bottom = map(float, numbers)
    return left, top, right, bottom
