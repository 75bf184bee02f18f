"""Maps of where a sound comes from: cosines of its vector with the regions of a frame, laid out over the frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...cache.errors import CmcrError
from ...cache.reader import Cache
from ..relevance import READ_AT_ONCE
from ..shared import SharedView
from .items import LocalizationItem
from .lists.entries import Box
from .localization_measures import SIDE, Map

Ints = npt.NDArray[np.int64]
_ITEMS_AT_ONCE = 64


@dataclass
class FrameRegions:
    """Rows of a frame's regions in their cache, with their boxes; ``grid`` windows a side, None for proposals."""

    rows: list[int] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    grid: int | None = None


def regions_of(cache: Cache) -> dict[str, FrameRegions]:
    """Regions by frame, from the /meta of a cache that ``cmcr evaluate regions`` made.

    Raises
    ------
    CmcrError
        Rows without frame or box; a grid of which rows are missing.
    """
    found: dict[str, FrameRegions] = {}
    for start in range(0, len(cache), READ_AT_ONCE):
        rows = np.arange(start, min(start + READ_AT_ONCE, len(cache)))
        for row, record in zip(rows.tolist(), cache.meta(rows), strict=True):
            if not record or "frame" not in record or "box" not in record:
                raise CmcrError(
                    "A row of the regions names no frame and box.",
                    where=f"{cache.path}, row {row}",
                    todo="make the cache with: cmcr evaluate regions",
                )
            frame = found.setdefault(str(record["frame"]), FrameRegions(grid=record.get("grid")))
            frame.rows.append(row)
            frame.boxes.append(tuple(record["box"]))
    for name, frame in found.items():
        if frame.grid is not None and len(frame.rows) != frame.grid**2:
            raise CmcrError(
                f"The frame {name!r} has {len(frame.rows)} of {frame.grid**2} windows.",
                where=str(cache.path),
                todo="make the cache again: cmcr evaluate regions",
            )
    return found


def lay_out(scores: npt.NDArray[np.float64], regions: FrameRegions) -> Map:
    """Scores of regions (R,) as a map (224, 224).

    A grid is a picture of n × n pixels, widened bilinearly (as LVS widens its own maps, test.py). Of proposals a pixel
    takes the best one over it; where there is none, the lowest score of the frame.
    """
    if regions.grid is not None:
        small = torch.from_numpy(scores.reshape(1, 1, regions.grid, regions.grid))
        wide = torch.nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return np.asarray(wide[0, 0].numpy(), np.float64)
    out = np.full((SIDE, SIDE), scores.min())
    for score, box in zip(scores, regions.boxes, strict=True):
        left, top = (max(int(SIDE * share), 0) for share in box[:2])
        right, bottom = (min(int(np.ceil(SIDE * share)), SIDE) for share in box[2:])
        part = out[top:bottom, left:right]
        np.maximum(part, score, out=part)
    return out


@dataclass(frozen=True)
class MapSource:
    """Sounds and regions in the shared space, and the items that both have.

    ``missing`` are the keys of items whose sound or frame is in no cache.
    """

    sounds: SharedView
    regions: SharedView
    by_frame: dict[str, FrameRegions]
    items: tuple[LocalizationItem, ...]
    sound_rows: Ints  # (N,) of the items
    missing: tuple[str, ...]

    @classmethod
    def open(cls, sounds: SharedView, regions: SharedView, items: Sequence[LocalizationItem]) -> MapSource:
        """Join items with both caches by key."""
        by_frame = regions_of(regions.cache)
        rows = np.asarray(sounds.cache.index_of([item.audio for item in items]), np.int64)
        here = [row >= 0 and item.image in by_frame for row, item in zip(rows, items, strict=True)]
        if not any(here):
            raise CmcrError(
                "No item has both its sound and its frame in the caches.",
                where=f"items such as {items[0].audio!r} and {items[0].image!r}; sounds such as "
                f"{sounds.cache.keys([0])}, frames such as {list(by_frame)[:1]}",
                todo="encode with the keys of the list: cmcr evaluate prepare",
            )
        kept = tuple(item for item, present in zip(items, here, strict=True) if present)
        gone = tuple(item.key for item, present in zip(items, here, strict=True) if not present)
        return cls(sounds, regions, by_frame, kept, rows[np.array(here)], gone)

    def maps(self) -> Iterator[tuple[LocalizationItem, Map]]:
        """Each item with its map of (cosine + 1) / 2, between 0 and 1.

        That is SLAVC's scaling of S_AVL (test.py: from -1/τ .. 1/τ to 0 .. 1), where its score is cosine/τ.
        """
        for start in range(0, len(self.items), _ITEMS_AT_ONCE):
            some = self.items[start : start + _ITEMS_AT_ONCE]
            heard = self.sounds.rows(self.sound_rows[start : start + _ITEMS_AT_ONCE])  # (B, D)
            frames = [self.by_frame[item.image] for item in some]
            seen = self.regions.rows(np.concatenate([np.array(frame.rows, np.int64) for frame in frames]))  # (ΣR, D)
            edges = np.cumsum([0, *(len(frame.rows) for frame in frames)])
            for n, (item, frame) in enumerate(zip(some, frames, strict=True)):
                cosines = seen[edges[n] : edges[n + 1]].astype(np.float64) @ heard[n].astype(np.float64)  # (R,)
                yield item, lay_out((cosines + 1) / 2, frame)


def missing_note(missing: Sequence[str], total: int) -> str:
    """One line about items that were left out."""
    first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    return f"{len(missing):,} of {total:,} items are left out: their sound or frame is in no cache ({first})"


def figures_table(title: str, figures: dict[str, Any]) -> Any:
    """Figures for the terminal: shares in percent, counts as they are."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{100 * value:.2f}")
    return table
