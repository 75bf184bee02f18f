"""Small pictures of one item: a photograph, the waveform of a sound, a cloud of points, a text."""

from __future__ import annotations

import base64
import io
import math
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..cache.errors import CmcrError
from .decoders import decode_audio, decode_image, decode_points, to_mono

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

INK = (28, 32, 38)
MUTED = (108, 116, 128)
PALE = (243, 245, 248)
EDGE = (222, 226, 232)
WAVE = (37, 99, 175)
POINT_NEAR, POINT_FAR = (24, 82, 140), (186, 208, 230)


@lru_cache(maxsize=64)
def font(size: int, wide: bool = False) -> Any:
    """Pillow's own typeface; with ``wide`` DejaVu Sans, which knows more alphabets."""
    from PIL import ImageFont

    if wide:
        import matplotlib

        return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
    return ImageFont.load_default(size=size)


def font_for(text: str, size: int) -> Any:
    """A typeface of that size that has the letters of the text."""
    return font(size, wide=any(ord(letter) > 255 for letter in text))


def wrap(draw: ImageDraw, text: str, face: Any, width: int, lines: int) -> list[str]:
    """Break a text into at most ``lines`` lines of at most ``width`` pixels; what does not fit ends in an ellipsis."""
    words = text.split()
    done: list[str] = []
    line = ""
    while words:
        word = words.pop(0)
        longer = f"{line} {word}".strip()
        if draw.textlength(longer, font=face) <= width:
            line = longer
            continue
        if line:
            done.append(line)
            words.insert(0, word)
            line = ""
        else:  # one word wider than the line: cut it
            cut = _fitting(draw, word, face, width)
            done.append(word[:cut])
            if word[cut:]:
                words.insert(0, word[cut:])
        if len(done) == lines:
            break
    else:
        return [*done, line] if line else done
    if words:
        done[-1] = _ellipsis(draw, done[-1], face, width)
    return done


def _fitting(draw: ImageDraw, word: str, face: Any, width: int) -> int:
    """Letters of a word that fit; file names break after a stroke, dash or dot where one stands late enough."""
    cut = len(word)
    while cut > 1 and draw.textlength(word[:cut], font=face) > width:
        cut -= 1
    after = 1 + max(word.rfind(mark, 0, cut) for mark in "/_-.") if cut < len(word) else 0
    return after if after > cut // 2 else cut


def _ellipsis(draw: ImageDraw, line: str, face: Any, width: int) -> str:
    while line and draw.textlength(line + "…", font=face) > width:
        line = line[:-1]
    return line.rstrip() + "…"


def blank(size: int) -> tuple[Image, ImageDraw]:
    """A pale square with a thin edge, and the pen for it."""
    from PIL import Image, ImageDraw

    tile = Image.new("RGB", (size, size), PALE)
    pen = ImageDraw.Draw(tile)
    pen.rectangle((0, 0, size - 1, size - 1), outline=EDGE)
    return tile, pen


def words_tile(text: str, size: int, *, muted: bool = False) -> Image:
    """A text set in the middle of a square, in the largest size that shows all of it."""
    tile, pen = blank(size)
    pad = size // 11
    limit = size - 2 * pad
    for points in (14,) if muted else (24, 21, 18, 16, 14):
        face = font_for(text, points)
        height = round(points * 1.35)
        lines = wrap(pen, text, face, limit, limit // height)
        if lines and not lines[-1].endswith("…"):
            break
    top = (size - height * len(lines)) // 2
    for n, line in enumerate(lines):
        left = (size - pen.textlength(line, font=face)) / 2
        pen.text((left, top + n * height), line, font=face, fill=MUTED if muted else INK)
    return tile


def picture_tile(picture: Image, size: int) -> Image:
    """A photograph fitted whole into a square."""
    from PIL import Image

    tile, pen = blank(size)
    scale = min(size / picture.width, size / picture.height)
    shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.convert("RGB").resize(shape, Image.Resampling.LANCZOS)
    tile.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    pen.rectangle((0, 0, size - 1, size - 1), outline=EDGE)
    return tile


def wave_tile(samples: npt.NDArray[np.float32], rate: int, size: int) -> Image:
    """The envelope of a mono sound (T,) in a square, loudest moment at full height, with its length in seconds."""
    tile, pen = blank(size)
    pad, middle = size // 14, size // 2
    width = size - 2 * pad
    peak = float(np.abs(samples).max()) if len(samples) else 0.0
    edges = np.linspace(0, len(samples), width // 3 + 1).astype(int)
    for n, (start, stop) in enumerate(pairwise(edges)):
        piece = samples[start : max(stop, start + 1)]
        loud = float(np.abs(piece).max()) / peak if len(piece) and peak > 0 else 0.0
        tall = max(1.0, loud * size * 0.36)
        left = pad + 3 * n
        pen.rounded_rectangle((left, middle - tall, left + 1, middle + tall), radius=1, fill=WAVE)
    note = f"{len(samples) / rate:.1f} s" if peak > 0 else f"{len(samples) / rate:.1f} s, silent"
    face = font(13)
    pen.text((size - pad - pen.textlength(note, font=face), size - pad - 12), note, font=face, fill=MUTED)
    return tile


def cloud_tile(points: npt.NDArray[np.float32], size: int, limit: int = 4096) -> Image:
    """A cloud of points (N, 3 or 6), z upwards, seen from above and the side; near points are dark and large."""
    from PIL import Image

    tile, pen = blank(2 * size)  # drawn twice as large and shrunk: round dots
    shown = points[:: max(1, -(-len(points) // limit))].astype(np.float64)
    xyz = shown[:, :3] - (shown[:, :3].max(0) + shown[:, :3].min(0)) / 2
    xyz /= max(float(np.linalg.norm(xyz, axis=1).max()), 1e-12)
    turn, tilt = math.radians(35), math.radians(22)
    x = xyz[:, 0] * math.cos(turn) - xyz[:, 1] * math.sin(turn)
    away = xyz[:, 0] * math.sin(turn) + xyz[:, 1] * math.cos(turn)
    up = xyz[:, 2] * math.cos(tilt) + away * math.sin(tilt)
    depth = away * math.cos(tilt) - xyz[:, 2] * math.sin(tilt)  # grows away from the eye
    zoom = 3.2 / (3.2 + depth)
    left, top = x * zoom, -up * zoom
    spread = max(float(np.ptp(left)), float(np.ptp(top)), 1e-12)
    left = size + (left - (left.max() + left.min()) / 2) * 1.68 * size / spread
    top = size + (top - (top.max() + top.min()) / 2) * 1.68 * size / spread
    near = (1 - depth) / 2
    colours = np.array(POINT_FAR) + near[:, None] * (np.array(POINT_NEAR) - np.array(POINT_FAR))
    for at in np.argsort(-depth, kind="stable"):
        radius = 2.2 + 3.2 * near[at]
        box = (left[at] - radius, top[at] - radius, left[at] + radius, top[at] + radius)
        red, green, blue = (int(part) for part in colours[at].clip(0, 255))
        pen.ellipse(box, fill=(red, green, blue))
    return tile.resize((size, size), Image.Resampling.LANCZOS)


def item_tile(modality: str, path: Path | None, text: str | None, size: int) -> Image:
    """The picture of one item; a neutral square that says why, where there is nothing to show."""
    if modality in ("text", "mix", "vector"):
        return words_tile(text, size) if text else words_tile("no text stored", size, muted=True)
    kind = {"image": "image", "audio": "sound", "pointcloud": "point cloud"}[modality]
    if path is None or not path.is_file():
        return words_tile(f"{kind} not found" if path is not None else f"{kind} not at hand", size, muted=True)
    try:
        data = path.read_bytes()
        if modality == "image":
            return picture_tile(decode_image(data, path.name), size)
        if modality == "audio":
            audio = decode_audio(data, path.name)
            return wave_tile(to_mono(audio, audio.rate), audio.rate, size)
        return cloud_tile(decode_points(data, path.name), size)
    except (CmcrError, OSError):
        return words_tile(f"{kind} cannot be read", size, muted=True)


def tile_uri(modality: str, path: Path | None, size: int) -> str:
    """The picture of an item's file as a ``data:`` URI, for pages."""
    data = io.BytesIO()
    item_tile(modality, path, None, size).save(data, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
