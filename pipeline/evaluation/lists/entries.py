"""What an official list says of one item, and what became of a list beside a folder of media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of width and height


@dataclass(frozen=True)
class Entry:
    """One item of a benchmark.

    Parameters
    ----------
    key : str
        Key of its rows in every cache.
    media : mapping of str to tuple of str
        For each modality the names that its file may have, best first: stems, or paths relative to the media folder.
    label : str, optional
        Class.
    captions : tuple of str
        Captions, in the list's order.
    boxes : tuple of Box, optional
        Where the sound comes from; an empty tuple is a frame without its source, None a list without boxes.
    extra : mapping
        Other fields of the list that are worth keeping in /meta.
    """

    key: str
    media: Mapping[str, tuple[str, ...]]
    label: str | None = None
    captions: tuple[str, ...] = ()
    boxes: tuple[Box, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """What a list and a media folder gave: the files written, and what is missing, by modality."""

    benchmark: str
    folder: Path
    entries: int
    found: Mapping[str, int]
    missing: Mapping[str, tuple[str, ...]]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Counts, and every missing key."""
        return {
            "benchmark": self.benchmark,
            "entries": self.entries,
            "found": dict(self.found),
            "missing": {name: list(keys) for name, keys in self.missing.items()},
            "files": [path.name for path in self.files],
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """For people: counts and the first missing keys of each modality."""
        out = [f"{self.benchmark}: {self.entries:,} items in the list"]
        for name, count in self.found.items():
            gone = self.missing.get(name, ())
            first = ": " + ", ".join(gone[:5]) + (", ..." if len(gone) > 5 else "") if gone else ""
            out.append(f"  {name}: {count:,} found, {len(gone):,} missing{first}")
        out += [f"  {note}" for note in self.notes]
        return [*out, *(f"wrote {path}" for path in self.files)]
