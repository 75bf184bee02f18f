"""Pictures of evaluations: the confusion of classes, and maps laid over their frames."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...cache import fsio
from ...cache.errors import CmcrError
from ..decoders import decode_image

if TYPE_CHECKING:
    from .items import LocalizationItem
    from .localization_measures import Map

_NAMED = 60  # classes whose names are still legible on the axes
_MAP_SHARE = 0.45
_EDGE = (57, 211, 83)


def confusion_picture(confusion: npt.NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Draw the confusion of classes, each row as shares of its class, and write a PNG atomically.

    Parameters
    ----------
    confusion : (C, C)
        Items by true class (row) and predicted class (column).
    classes : sequence of str
        Names; on the axes up to 60 of them.
    path : Path
        The file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(counts, 1)  # (C, C)
    size = float(np.clip(0.2 * len(classes) + 2.5, 5, 14))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes: Any = FigureCanvasAgg(figure).figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    correct = np.trace(confusion) / max(int(confusion.sum()), 1)
    axes.set_title(f"{int(confusion.sum()):,} items, {100 * correct:.1f}% on the diagonal", loc="left", fontsize=10)
    if len(classes) <= _NAMED:
        places = np.arange(len(classes))
        axes.set_xticks(places, classes, rotation=90, fontsize=7)
        axes.set_yticks(places, classes, fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    _write(buffer.getvalue(), path)


def overlay(item: LocalizationItem, scores: Map, ciou: float, folder: Path) -> Path:
    """Draw a frame with its map and its boxes, and write ``<key>.png`` into the folder.

    Parameters
    ----------
    item : LocalizationItem
        Its ``path`` is the frame; without one the map is drawn on grey.
    scores : (224, 224)
        The map; its own range is spread over the colours.
    ciou : float
        Printed in the corner.
    folder : Path
        Made where it is missing.
    """
    from matplotlib import colormaps
    from PIL import Image, ImageDraw

    spread = scores.max() - scores.min()
    level = (scores - scores.min()) / (spread if spread > 0 else 1.0)
    colours = (np.asarray(colormaps["inferno"](level))[:, :, :3] * 255).astype(np.uint8)
    if item.path is not None and not item.path.is_file():
        raise CmcrError("The frame of an overlay does not exist.", where=str(item.path), todo="check path in the list")
    grey = Image.new("RGB", (336, 336), (128, 128, 128))
    frame = grey if item.path is None else decode_image(item.path.read_bytes(), item.path.name)
    heat = Image.fromarray(colours).resize(frame.size, Image.Resampling.BILINEAR)
    out = Image.blend(frame, heat, _MAP_SHARE)
    pen = ImageDraw.Draw(out)
    width, height = out.size
    for left, top, right, bottom in item.boxes:
        x0, x1 = sorted((left * width, right * width))
        y0, y1 = sorted((top * height, bottom * height))
        pen.rectangle((x0, y0, x1, y1), outline=_EDGE, width=max(2, width // 150))
    pen.text((6, 4), f"cIoU {ciou:.2f}" if item.audible else "nothing sounds", fill=(255, 255, 255), stroke_width=1,
             stroke_fill=(0, 0, 0))  # fmt: skip
    buffer = io.BytesIO()
    out.save(buffer, format="PNG")
    path = folder / (re.sub(r"[^A-Za-z0-9._+-]", "_", item.key) + ".png")
    _write(buffer.getvalue(), path)
    return path


def _write(data: bytes, path: Path) -> None:
    with fsio.naming_folder(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    fsio.write_atomic(path, data)
