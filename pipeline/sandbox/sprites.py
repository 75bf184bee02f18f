"""Silhouettes of the sandbox's toys: per kind a body, a trim and ink, drawn once at high resolution."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Mask = npt.NDArray[np.float32]

SPRITE = 72
_SCALE = 4


class Sprite(NamedTuple):
    """Coverage of the three layers of a toy, each (SPRITE, SPRITE) float32 in 0..1."""

    body: Mask
    trim: Mask
    ink: Mask


class _Layers:
    """Three drawing layers with coordinates from 0 to 100."""

    def __init__(self) -> None:
        side = SPRITE * _SCALE
        self.images = [Image.new("L", (side, side), 0) for _ in range(3)]
        self.body, self.trim, self.ink = (_Pen(image) for image in self.images)

    def sprite(self) -> Sprite:
        small = [image.resize((SPRITE, SPRITE), Image.Resampling.BOX) for image in self.images]
        return Sprite(*(np.asarray(image, np.float32) / 255 for image in small))


class _Pen:
    """Draws on one layer in percent of its side."""

    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image)
        self._unit = image.width / 100

    def _at(self, *values: float) -> list[float]:
        return [value * self._unit for value in values]

    def ellipse(self, left: float, top: float, right: float, bottom: float, fill: int = 255) -> None:
        self._draw.ellipse(self._at(left, top, right, bottom), fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, radius: float = 0, fill: int = 255) -> None:
        self._draw.rounded_rectangle(self._at(left, top, right, bottom), radius * self._unit, fill=fill)

    def polygon(self, *points: float, fill: int = 255) -> None:
        self._draw.polygon(self._at(*points), fill=fill)

    def line(self, *points: float, width: float = 4) -> None:
        self._draw.line(self._at(*points), fill=255, width=int(width * self._unit), joint="curve")

    def arc(self, left: float, top: float, right: float, bottom: float, start: float, end: float, width: float) -> None:
        self._draw.arc(self._at(left, top, right, bottom), start, end, fill=255, width=int(width * self._unit))


def _bell(a: _Layers) -> None:
    a.trim.ellipse(42, 4, 58, 20)
    a.body.ellipse(26, 12, 74, 62)
    a.body.polygon(26, 36, 74, 36, 80, 66, 92, 80, 8, 80, 20, 66)
    a.trim.box(8, 74, 92, 83, 4)
    a.ink.ellipse(40, 82, 60, 98)


def _drum(a: _Layers) -> None:
    a.body.box(10, 28, 90, 86, 6)
    a.body.ellipse(10, 72, 90, 98)
    a.trim.ellipse(10, 14, 90, 44)
    for left in (14, 38, 62):
        a.ink.line(left, 44, left + 12, 88, left + 24, 44, width=3)
    a.ink.arc(10, 14, 90, 44, 0, 360, 3)


def _dog(a: _Layers) -> None:
    a.body.box(14, 44, 74, 74, 14)
    for left in (16, 30, 52, 64):
        a.body.box(left, 64, left + 10, 96, 3)
    a.body.box(58, 18, 88, 52, 12)
    a.body.box(76, 30, 98, 50, 8)
    a.trim.polygon(56, 14, 68, 18, 64, 48, 52, 44)
    a.body.line(16, 50, 4, 24, width=8)
    a.ink.ellipse(74, 25, 81, 32)
    a.ink.ellipse(90, 29, 99, 39)


def _bird(a: _Layers) -> None:
    a.body.ellipse(18, 36, 76, 82)
    a.body.ellipse(54, 14, 88, 48)
    a.body.polygon(26, 52, 0, 34, 6, 62, 24, 70)
    a.trim.polygon(84, 26, 100, 33, 84, 40)
    a.trim.ellipse(28, 46, 58, 68)
    a.ink.ellipse(70, 23, 78, 31)
    a.ink.line(42, 80, 40, 97, width=4)
    a.ink.line(54, 80, 56, 97, width=4)


def _engine(a: _Layers) -> None:
    a.body.box(6, 42, 94, 74, 4)
    a.body.box(10, 14, 38, 48, 3)
    a.body.box(66, 24, 80, 46, 2)
    a.trim.box(60, 12, 86, 26, 3)
    a.trim.box(16, 20, 32, 36, 2)
    for left in (8, 38, 68):
        a.ink.ellipse(left, 70, left + 26, 96)
        a.trim.ellipse(left + 8, 78, left + 18, 88)


def _clock(a: _Layers) -> None:
    a.trim.ellipse(8, 2, 38, 30)
    a.trim.ellipse(62, 2, 92, 30)
    a.body.line(26, 80, 16, 97, width=9)
    a.body.line(74, 80, 84, 97, width=9)
    a.body.ellipse(10, 12, 90, 92)
    a.trim.ellipse(22, 24, 78, 80)
    a.ink.line(50, 52, 50, 30, width=5)
    a.ink.line(50, 52, 67, 60, width=5)


def _whistle(a: _Layers) -> None:
    a.body.ellipse(38, 36, 96, 94)
    a.body.polygon(2, 34, 66, 34, 66, 62, 2, 54)
    a.ink.polygon(40, 30, 58, 30, 52, 46, 42, 46)
    a.trim.ellipse(54, 52, 80, 78)
    a.trim.arc(82, 14, 100, 46, 0, 360, 4)


def _guitar(a: _Layers) -> None:
    a.trim.line(50, 54, 50, 6, width=9)
    a.trim.box(41, 0, 59, 14, 2)
    a.body.ellipse(30, 34, 70, 68)
    a.body.ellipse(20, 54, 80, 99)
    a.ink.ellipse(40, 54, 60, 74)
    a.ink.box(38, 84, 62, 89, 1)


def _trumpet(a: _Layers) -> None:
    a.body.polygon(60, 40, 97, 12, 97, 78, 60, 52)
    a.body.box(4, 41, 66, 51, 3)
    a.body.box(18, 66, 56, 76, 4)
    a.body.box(18, 44, 27, 74, 3)
    a.body.box(48, 44, 57, 74, 3)
    a.trim.ellipse(90, 12, 100, 78)
    a.trim.box(0, 37, 7, 55, 2)
    for left in (26, 36, 46):
        a.ink.box(left, 24, left + 6, 48, 2)


def _cat(a: _Layers) -> None:
    a.body.polygon(22, 4, 48, 24, 20, 36)
    a.body.polygon(78, 4, 52, 24, 80, 36)
    a.body.ellipse(18, 14, 82, 62)
    a.body.ellipse(22, 48, 78, 99)
    a.body.arc(62, 46, 98, 94, -60, 120, 9)
    a.trim.ellipse(36, 64, 64, 97)
    a.ink.ellipse(33, 30, 42, 42)
    a.ink.ellipse(58, 30, 67, 42)
    a.ink.polygon(45, 45, 55, 45, 50, 51)
    a.ink.line(12, 44, 34, 48, width=2)
    a.ink.line(88, 44, 66, 48, width=2)


def _frog(a: _Layers) -> None:
    a.body.ellipse(12, 40, 88, 92)
    a.body.ellipse(2, 62, 34, 96)
    a.body.ellipse(66, 62, 98, 96)
    for left in (16, 56):
        a.body.ellipse(left, 22, left + 28, 52)
        a.trim.ellipse(left + 5, 26, left + 23, 45)
        a.ink.ellipse(left + 10, 31, left + 19, 41)
    a.ink.arc(26, 40, 74, 74, 20, 160, 4)


def _rattle(a: _Layers) -> None:
    a.trim.line(40, 58, 14, 94, width=11)
    a.trim.arc(2, 76, 24, 99, 0, 360, 6)
    a.body.ellipse(28, 2, 96, 68)
    a.ink.line(34, 22, 88, 54, width=4)
    for left, top in ((58, 14), (72, 26), (42, 38), (58, 48)):
        a.trim.ellipse(left, top, left + 10, top + 10)


def _bee(a: _Layers) -> None:
    a.trim.ellipse(22, 6, 52, 48)
    a.trim.ellipse(46, 4, 74, 46)
    a.body.ellipse(10, 34, 90, 86)
    for left in (32, 48, 64):
        a.ink.box(left, 36, left + 8, 84, 3)
    a.ink.polygon(10, 54, 0, 60, 10, 66)
    a.ink.ellipse(78, 48, 85, 56)
    a.ink.line(82, 40, 92, 24, width=3)


def _kettle(a: _Layers) -> None:
    a.body.arc(22, 4, 74, 64, 180, 360, 7)
    a.body.ellipse(12, 32, 80, 96)
    a.body.box(12, 64, 80, 95, 10)
    a.body.polygon(72, 58, 88, 30, 99, 34, 80, 80)
    a.trim.box(30, 32, 62, 41, 4)
    a.ink.ellipse(40, 22, 52, 34)
    a.trim.box(12, 86, 80, 93, 3)


def _ball(a: _Layers) -> None:
    a.body.ellipse(6, 6, 94, 94)
    a.trim.ellipse(40, 6, 60, 94)
    a.ink.arc(6, -40, 94, 44, 20, 160, 4)
    a.ink.arc(6, 56, 94, 140, 200, 340, 4)


def _phone(a: _Layers) -> None:
    a.body.polygon(20, 40, 80, 40, 94, 92, 6, 92)
    a.ink.box(6, 18, 94, 32, 7)
    a.ink.box(2, 20, 24, 46, 8)
    a.ink.box(76, 20, 98, 46, 8)
    a.trim.ellipse(30, 46, 70, 86)
    a.ink.ellipse(43, 59, 57, 73)


_DRAWINGS: dict[str, Callable[[_Layers], None]] = {
    "bell": _bell,
    "drum": _drum,
    "dog": _dog,
    "bird": _bird,
    "engine": _engine,
    "clock": _clock,
    "whistle": _whistle,
    "guitar": _guitar,
    "trumpet": _trumpet,
    "cat": _cat,
    "frog": _frog,
    "rattle": _rattle,
    "bee": _bee,
    "kettle": _kettle,
    "ball": _ball,
    "phone": _phone,
}


@cache
def sprite(kind: str) -> Sprite:
    """Give the layers of a kind."""
    layers = _Layers()
    _DRAWINGS[kind](layers)
    return layers.sprite()
