"""Regions of frames as rows of a cache: windows of a grid, or boxes from a file, each cropped and encoded."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...cache import manifest as manifests
from ...cache.errors import CacheError, CmcrError, ItemError
from ...cache.ledger import Failure
from ...cache.manifest import CacheManifest
from ...cache.reader import Cache, open_cache
from ...cache.writer import CacheWriter, ShardData
from ..decoders import decode_image
from ..embed import encode_inputs, load_tower
from .items import boxes_of, read_jsonl
from .lists.entries import Box

if TYPE_CHECKING:
    from PIL import Image

    from ..encoders.base import Encoder

FRAMES_A_SHARD = 64


@dataclass(frozen=True)
class RegionSettings:
    """Which regions of a frame are looked at.

    Parameters
    ----------
    grid : int
        n × n windows whose centres are evenly spread.
    window : float
        Side of a window as a share of the frame's; windows at the edge are moved inside.
    proposals : path, optional
        JSONL with ``key`` and ``boxes`` for each frame, in place of the grid; boxes as in :func:`read_items`.
    """

    grid: int = 7
    window: float = 1 / 3
    proposals: str | Path | None = None

    def __post_init__(self) -> None:
        if self.grid < 1 or not 0 < self.window <= 1:
            raise CmcrError(
                f"A grid of {self.grid} with windows of {self.window} is none.",
                todo="--grid from 1, --window above 0 and up to 1",
            )

    def windows(self) -> tuple[Box, ...]:
        """The windows of the grid, row by row."""
        low = np.clip((np.arange(self.grid) + 0.5) / self.grid - self.window / 2, 0, 1 - self.window).tolist()
        return tuple((x, y, x + self.window, y + self.window) for y in low for x in low)


@dataclass(frozen=True)
class Frame:
    """One frame: its key, its file, and its regions."""

    key: str
    path: Path
    boxes: tuple[Box, ...]


def read_frames(path: str | Path, settings: RegionSettings) -> list[Frame]:
    """Frames from a JSONL list with ``key`` and ``path`` (as ``cmcr evaluate prepare`` writes), with their regions.

    Raises
    ------
    CmcrError
        A line without key or path; no line; a frame that the proposals do not have.
    """
    place, frames = Path(path), list[Frame]()
    proposed = None if settings.proposals is None else _read_proposals(Path(settings.proposals))
    for number, record in read_jsonl(place):
        key, file = record.get("key"), record.get("path")
        if not isinstance(key, str) or not isinstance(file, str):
            raise CmcrError("A frame has a key and a path.", where=f"{place}, line {number}")
        boxes = settings.windows() if proposed is None else proposed.get(key, ())
        if not boxes:
            raise CmcrError(f"The proposals have no box for the frame {key!r}.", where=str(settings.proposals))
        frames.append(Frame(key, place.parent / file, boxes))
    if not frames:
        raise CmcrError("The list of frames is empty.", where=str(place), todo="make it: cmcr evaluate prepare")
    return frames


def _read_proposals(place: Path) -> dict[str, tuple[Box, ...]]:
    return {
        str(record.get("key")): boxes_of(record.get("boxes"), f"{place}, line {number}")
        for number, record in read_jsonl(place)
    }


def encode_regions(
    frames: str | Path,
    output: str | Path,
    *,
    encoder: str | Encoder,
    settings: RegionSettings | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Cache:
    """Crop and encode the regions of frames into a cache; run it again to resume.

    Parameters
    ----------
    frames : path
        As for :func:`read_frames`.
    output : path
        The cache: a row for each region, key ``<frame>/r0000`` and so on, box and frame in /meta. A frame that cannot
        be decoded becomes lines of the error ledger.
    encoder : str or Encoder
        Image encoder.
    settings : RegionSettings, optional
        Which regions.
    device : str
        Where the encoder runs.
    overwrite : bool
        Replace what is there.
    progress : callable, optional
        Told (shards done, shards in all).

    Raises
    ------
    CacheError
        The cache there holds other regions, or is of another encoder.
    """
    chosen = settings or RegionSettings()
    listed = read_frames(frames, chosen)
    tower = load_tower(encoder, "image", device) if isinstance(encoder, str) else encoder
    manifest = CacheManifest(
        tower.space.id, tower.space.name, "image", tower.name, tower.fingerprint(), tower.dim, made_from={}
    )
    groups = [listed[at : at + FRAMES_A_SHARD] for at in range(0, len(listed), FRAMES_A_SHARD)]
    units, start = [], 0
    for number, group in enumerate(groups):
        stop = start + sum(len(frame.boxes) for frame in group)
        units.append(manifests.rows_unit(number, "regions", start, stop, _identity(group)))
        start = stop
    grid = chosen.grid if chosen.proposals is None else None
    with CacheWriter.open(output, manifest, overwrite=overwrite) as writer:
        if not writer.plans:
            writer.append_plan(units, max(unit.rows or 1 for unit in units))
        elif manifests.units_of(writer.plans) != units:
            raise CacheError(
                "The cache there holds regions of other frames, boxes or files.",
                where=str(output),
                todo="choose another --output, or replace it with --overwrite",
            )
        pending = writer.pending()
        for unit in pending:
            data, failures = _encode_group(groups[unit.shard], tower, grid)
            writer.write_shard(unit, data, failures, expected=len(data.keys) + len(failures))
            if progress is not None:
                progress(unit.shard + 1, len(units))
    return open_cache(output)


def _identity(group: Sequence[Frame]) -> str:
    """Hash of the keys, boxes and file sizes of frames."""
    digest = hashlib.blake2b(digest_size=16)
    for frame in group:
        size = frame.path.stat().st_size if frame.path.is_file() else -1
        digest.update(json.dumps([frame.key, size, frame.boxes]).encode())
    return digest.hexdigest()


def _encode_group(group: Sequence[Frame], tower: Encoder, grid: int | None) -> tuple[ShardData, list[Failure]]:
    keys, crops, meta, failures = list[str](), list[bytes](), list[dict[str, Any] | None](), list[Failure]()
    for frame in group:
        names = [f"{frame.key}/r{n:04d}" for n in range(len(frame.boxes))]
        try:
            picture = decode_image(frame.path.read_bytes(), frame.path.name)
            crops += [crop(picture, box) for box in frame.boxes]
        except (ItemError, OSError) as error:
            reason = error.what if isinstance(error, ItemError) else f"{frame.path.name}: {error.strerror}"
            failures += [Failure(name, "decode", type(error).__name__, reason) for name in names]
            continue
        keys += names
        meta += [{"frame": frame.key, "box": list(box), "grid": grid} for box in frame.boxes]
    vectors = encode_inputs(tower, "image", crops) if crops else np.empty((0, tower.dim), np.float32)
    return ShardData(keys, vectors.astype(np.float16), meta=meta), failures


def crop(picture: Image.Image, box: Box) -> bytes:
    """A region of a picture as PNG, at least one pixel on each side."""
    width, height = picture.size
    left, top = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    right, bottom = max(round(box[2] * width), left + 1), max(round(box[3] * height), top + 1)
    buffer = io.BytesIO()
    region = picture.crop((max(left, 0), max(top, 0), min(right, width), min(bottom, height)))
    region.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
