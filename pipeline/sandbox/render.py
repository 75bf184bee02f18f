"""Pictures of the sandbox: toys on a table, with material, light, place, turn and noise."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from .sprites import SPRITE, sprite
from .world import Composition

Pixels = npt.NDArray[np.float32]

IMAGE_SIDE = 96
_SIDE_OF_SIZE = {"small": 25.0, "medium": 35.0, "large": 48.0}
_RGB = {
    "red": (212, 44, 46),
    "orange": (240, 134, 30),
    "yellow": (246, 210, 52),
    "green": (58, 158, 74),
    "blue": (48, 104, 208),
    "purple": (134, 66, 168),
    "white": (242, 242, 238),
    "black": (46, 46, 52),
}
_WALLS = ((226, 222, 212), (205, 218, 224), (222, 208, 216), (214, 224, 204), (236, 224, 196), (198, 204, 214))
_TABLES = ((190, 160, 128), (166, 176, 182), (178, 184, 150), (200, 178, 168), (150, 158, 172), (214, 196, 160))
_GRID = np.linspace(0, 1, SPRITE, dtype=np.float32)


def render(composition: Composition, rng: np.random.Generator) -> Image.Image:
    """Paint a picture, IMAGE_SIDE squared, RGB.

    Wall, table, light, place, turn, scale, hue and noise are nuisance; everything else is the composition.
    """
    canvas = _background(rng)
    toy = Image.fromarray(np.clip(_toy(composition, rng), 0, 255).astype(np.uint8), "RGBA")
    for x, y in _places(composition.count, rng):
        _paint_toy(canvas, toy, _SIDE_OF_SIZE[composition.size], x, y, rng)
    canvas *= np.float32(rng.uniform(0.88, 1.08))
    canvas += rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(1.0, 4.5))
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8), "RGB")


def image_bytes(image: Image.Image, kind: str = "PNG") -> bytes:
    """Encode a picture as the bytes of a PNG or JPEG file."""
    buffer = io.BytesIO()
    if kind == "JPEG":
        image.save(buffer, "JPEG", quality=92)
    else:
        image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _background(rng: np.random.Generator) -> Pixels:
    """Paint wall and table with a soft light, (IMAGE_SIDE, IMAGE_SIDE, 3) float32."""
    side = IMAGE_SIDE
    wall = np.asarray(_WALLS[int(rng.integers(len(_WALLS)))], np.float32) + rng.normal(0, 5, 3)
    table = np.asarray(_TABLES[int(rng.integers(len(_TABLES)))], np.float32) + rng.normal(0, 5, 3)
    rows = np.arange(side, dtype=np.float32)
    edge = side * rng.uniform(0.22, 0.5)
    mix = np.clip((rows - edge) / 2 + 0.5, 0, 1)[:, None]  # (side, 1)
    column = wall * (1 - mix) + table * mix + (rows[:, None] - edge) * 0.22 * mix  # (side, 3)
    slope = np.linspace(-1, 1, side, dtype=np.float32) * rng.uniform(-14, 14)
    return np.asarray(column[:, None, :] + slope[None, :, None], np.float32)  # (side, side, 3)


def _places(count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres of the toys, back to front: cells of a 2 x 2 grid in seeded choice, each with jitter."""
    if count == 1:
        return [(float(rng.uniform(30, 66)), float(rng.uniform(38, 66)))]
    cells = [(26.0, 28.0), (70.0, 28.0), (26.0, 70.0), (70.0, 70.0)]
    chosen = sorted(rng.permutation(4)[:count].tolist())
    return [(cells[i][0] + rng.uniform(-4, 4), cells[i][1] + rng.uniform(-4, 4)) for i in chosen]


def _paint_toy(
    canvas: Pixels, image: Image.Image, usual_side: float, x: float, y: float, rng: np.random.Generator
) -> None:
    """Blend one toy and its shadow into the canvas."""
    side = round(usual_side * rng.uniform(0.95, 1.05))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.resize((side, side), Image.Resampling.BOX, reducing_gap=2.0)
    image = image.rotate(float(rng.uniform(-10, 10)), Image.Resampling.BILINEAR, expand=True)
    pixels = np.asarray(image, np.float32)
    _shadow(canvas, x, y + side * 0.46, side * 0.46)
    top, left = round(y - image.height / 2), round(x - image.width / 2)
    rows = slice(max(top, 0), min(top + image.height, IMAGE_SIDE))
    columns = slice(max(left, 0), min(left + image.width, IMAGE_SIDE))
    part = pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    alpha = part[..., 3:] / 255
    canvas[rows, columns] = canvas[rows, columns] * (1 - alpha) + part[..., :3] * alpha


def _shadow(canvas: Pixels, x: float, y: float, radius: float) -> None:
    """Darken a flat ellipse below a toy."""
    axis = np.arange(IMAGE_SIDE, dtype=np.float32)
    rows = slice(max(int(y - radius * 0.35), 0), max(int(y + radius * 0.35) + 1, 0))
    across = ((axis - x) / radius) ** 2
    along = ((axis[rows] - y) / (radius * 0.28)) ** 2
    canvas[rows] *= 1 - 0.3 * np.clip(1.4 - across[None, :] - along[:, None], 0, 1)[..., None]


def _toy(composition: Composition, rng: np.random.Generator) -> Pixels:
    """Colour the layers of a kind by colour and material: (SPRITE, SPRITE, 4) float32 in 0..255."""
    layers = sprite(composition.kind)
    base = np.asarray(_RGB[composition.colour], np.float32) + rng.normal(0, 7, 3).astype(np.float32)
    texture, gloss, glass = _material(composition.material, rng)
    body = base * texture[..., None] + gloss[..., None]  # (S, S, 3)
    light = base * 0.45 + np.float32(0.55 * 235)
    if composition.colour == "white":
        light = base * 0.78
    trim = light * (0.5 + 0.5 * texture[..., None]) + gloss[..., None] * 0.5
    ink = np.full(3, 34, np.float32)
    if composition.colour == "black":
        ink = np.full(3, 150, np.float32)
    out = np.empty((SPRITE, SPRITE, 4), np.float32)
    out[..., :3] = body
    for mask, colour in ((layers.trim, trim), (layers.ink, ink)):
        out[..., :3] = out[..., :3] * (1 - mask[..., None]) + colour * mask[..., None]
    solid = np.maximum(layers.ink, layers.trim * (0.6 if glass else 1.0))
    out[..., 3] = 255 * np.maximum(layers.body * (_glass_alpha(composition.kind) if glass else 1.0), solid)
    return out


def _material(material: str, rng: np.random.Generator) -> tuple[Pixels, Pixels, bool]:
    """Give texture (factor), gloss (added light) and whether one sees through; the maps are (SPRITE, SPRITE)."""
    x, y = _GRID[None, :], _GRID[:, None]
    shade = 1.08 - 0.3 * y + np.zeros_like(x)
    if material == "metal":
        # broad mirror bands, as on a polished cylinder
        band = np.sin((x * 0.75 + y * 0.5) * 2 * np.pi * 2.2 + rng.uniform(0, 2 * np.pi))
        return shade * (0.92 + 0.16 * band), 95 * np.clip(band - 0.35, 0, 1), False
    if material == "wood":
        wave = x + 0.05 * np.sin(y * 7 + rng.uniform(0, 6))
        grain = np.sin(wave * 2 * np.pi * 7 + rng.uniform(0, 6))
        return shade * (0.82 + 0.24 * np.clip(grain * 1.5, -1, 1)), np.zeros_like(shade), False
    if material == "glass":
        spot = np.exp(-(((x - 0.32) / 0.12) ** 2 + ((y - 0.36) / 0.16) ** 2))
        return shade * 1.1, 26 + 150 * spot, True
    # rubber: matte, with a grid of dark dots
    dots = np.cos(x * 2 * np.pi * 6) * np.cos(y * 2 * np.pi * 6)
    return 0.86 * (1 - 0.5 * (dots > 0.45)).astype(np.float32) + np.zeros_like(shade), np.zeros_like(shade), False


@cache
def _glass_alpha(kind: str) -> Pixels:
    """Opacity of a glass body: thin in the middle, dense along the rim."""
    body = sprite(kind).body
    eroded = np.zeros_like(body)
    eroded[6:-6, 6:-6] = body[6:-6, 6:-6]
    for shift, axis in ((5, 0), (-5, 0), (5, 1), (-5, 1)):
        eroded = np.minimum(eroded, np.roll(body, shift, axis))
    return 1.0 - 0.58 * eroded
