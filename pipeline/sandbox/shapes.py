"""Point clouds of the sandbox: toys on a square board, material as the finish of their surface."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

from .world import Composition, keyed_seed

Cloud = npt.NDArray[np.float32]
_Points = npt.NDArray[np.float64]
_Primitive = Callable[[int, np.random.Generator], tuple[_Points, _Points]]
_Part = tuple[str, tuple[float, float, float], tuple[float, float, float], float]

POINTS = 1024
_BOARD = 64
_POOL = 6000
_SIDE_OF_SIZE = {"small": 0.42, "medium": 0.60, "large": 0.86}

# per kind: (primitive, half axes, centre, share of the points); z is up, the toy fits [-1, 1] and stands on z = -1
_KINDS: dict[str, tuple[_Part, ...]] = {
    "bell": (
        ("cone", (0.85, 0.85, 0.8), (0, 0, -0.05), 0.6),
        ("disc", (0.95, 0.95, 0.06), (0, 0, -0.8), 0.2),
        ("sphere", (0.2, 0.2, 0.2), (0, 0, 0.85), 0.2),
    ),
    "drum": (("cylinder", (0.85, 0.85, 0.6), (0, 0, -0.4), 0.6), ("disc", (0.85, 0.85, 0.02), (0, 0, 0.2), 0.4)),
    "dog": (
        ("sphere", (0.65, 0.3, 0.3), (-0.1, 0, -0.2), 0.35),
        ("sphere", (0.3, 0.25, 0.25), (0.7, 0, 0.35), 0.25),
        ("box", (0.08, 0.08, 0.35), (0.35, 0.2, -0.65), 0.1),
        ("box", (0.08, 0.08, 0.35), (0.35, -0.2, -0.65), 0.1),
        ("box", (0.08, 0.08, 0.35), (-0.5, 0.2, -0.65), 0.1),
        ("box", (0.08, 0.08, 0.35), (-0.5, -0.2, -0.65), 0.1),
    ),
    "bird": (
        ("sphere", (0.5, 0.35, 0.35), (0, 0, -0.1), 0.35),
        ("sphere", (0.22, 0.22, 0.22), (0.5, 0, 0.35), 0.15),
        ("disc", (0.3, 0.95, 0.04), (-0.05, 0, 0.1), 0.4),
        ("cone", (0.08, 0.08, 0.15), (0.5, 0, 0.7), 0.1),
    ),
    "engine": (
        ("box", (0.95, 0.35, 0.3), (0, 0, -0.4), 0.4),
        ("box", (0.3, 0.35, 0.35), (-0.6, 0, 0.25), 0.3),
        ("cylinder", (0.15, 0.15, 0.4), (0.6, 0, 0.3), 0.3),
    ),
    "clock": (
        ("wheel", (0.8, 0.2, 0.8), (0, 0, -0.1), 0.75),
        ("sphere", (0.2, 0.2, 0.2), (-0.5, 0, 0.8), 0.12),
        ("sphere", (0.2, 0.2, 0.2), (0.5, 0, 0.8), 0.13),
    ),
    "whistle": (
        ("wheel", (0.5, 0.3, 0.5), (0.4, 0, -0.45), 0.6),
        ("box", (0.55, 0.25, 0.12), (-0.4, 0, -0.1), 0.4),
    ),
    "guitar": (
        ("disc", (0.5, 0.62, 0.12), (-0.55, 0, -0.8), 0.35),
        ("disc", (0.35, 0.42, 0.12), (0.05, 0, -0.8), 0.25),
        ("box", (0.6, 0.07, 0.07), (0.7, 0, -0.75), 0.4),
    ),
    "trumpet": (
        ("lying cone", (0.5, 0.5, 0.45), (0.55, 0, -0.3), 0.5),
        ("lying cylinder", (0.1, 0.1, 0.6), (-0.4, 0, -0.3), 0.3),
        ("box", (0.25, 0.08, 0.2), (-0.2, 0, -0.6), 0.2),
    ),
    "cat": (
        ("sphere", (0.45, 0.45, 0.6), (0, 0, -0.4), 0.4),
        ("sphere", (0.35, 0.35, 0.33), (0.1, 0, 0.4), 0.3),
        ("cone", (0.12, 0.12, 0.16), (0.1, 0.22, 0.85), 0.1),
        ("cone", (0.12, 0.12, 0.16), (0.1, -0.22, 0.85), 0.1),
        ("torus", (0.4, 0.4, 0.06), (-0.4, 0, -0.85), 0.1),
    ),
    "frog": (
        ("sphere", (0.8, 0.75, 0.35), (0, 0, -0.6), 0.6),
        ("sphere", (0.2, 0.2, 0.2), (0.4, 0.35, -0.15), 0.2),
        ("sphere", (0.2, 0.2, 0.2), (0.4, -0.35, -0.15), 0.2),
    ),
    "rattle": (("sphere", (0.5, 0.5, 0.5), (0, 0, 0.5), 0.65), ("cylinder", (0.1, 0.1, 0.55), (0, 0, -0.5), 0.35)),
    "bee": (
        ("sphere", (0.75, 0.35, 0.35), (0, 0, -0.3), 0.45),
        ("disc", (0.3, 0.4, 0.02), (0, 0.5, 0.35), 0.22),
        ("disc", (0.3, 0.4, 0.02), (0, -0.5, 0.35), 0.22),
        ("cone", (0.08, 0.08, 0.15), (-0.75, 0, -0.1), 0.11),
    ),
    "kettle": (
        ("cylinder", (0.6, 0.6, 0.45), (0, 0, -0.55), 0.45),
        ("standing torus", (0.5, 0.5, 0.06), (0, 0, 0.25), 0.25),
        ("lying cone", (0.15, 0.15, 0.25), (0.75, 0, -0.3), 0.15),
        ("disc", (0.6, 0.6, 0.05), (0, 0, -0.1), 0.15),
    ),
    "ball": (("sphere", (0.9, 0.9, 0.9), (0, 0, -0.1), 1.0),),
    "phone": (
        ("box", (0.55, 0.7, 0.25), (0, 0, -0.75), 0.4),
        ("wheel", (0.35, 0.1, 0.35), (0.1, 0, -0.3), 0.15),
        ("box", (0.12, 0.9, 0.1), (0, 0, 0.25), 0.25),
        ("sphere", (0.2, 0.2, 0.2), (0, 0.8, 0.1), 0.1),
        ("sphere", (0.2, 0.2, 0.2), (0, -0.8, 0.1), 0.1),
    ),
}


def sample_cloud(composition: Composition, rng: np.random.Generator) -> Cloud:
    """Sample a cloud, (POINTS, 3) float32.

    Toys stand on a board of fixed side, so that their size survives scaling of the whole to a unit ball. Place, turn,
    scale and noise are nuisance; the colour is not visible.
    """
    board = np.column_stack([rng.uniform(-1, 1, (_BOARD, 2)), rng.normal(0, 0.005, _BOARD)])
    each = np.full(composition.count, (POINTS - _BOARD) // composition.count)
    each[: (POINTS - _BOARD) % composition.count] += 1
    toys = [
        _toy(composition, number, rng) + np.array([x, y, 0.0])
        for number, (x, y) in zip(each.tolist(), _places(composition.count, rng), strict=True)
    ]
    cloud = np.concatenate([board, *toys]) * rng.uniform(0.7, 1.4)
    spun = cloud @ _turn(rng.uniform(-0.25, 0.25)).T  # (POINTS, 3)
    return np.asarray(spun[rng.permutation(POINTS)], np.float32)


def _places(count: int, rng: np.random.Generator) -> _Points:
    """Centres of the toys on the board, (count, 2)."""
    if count == 1:
        return rng.uniform(-0.2, 0.2, (1, 2))
    cells = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])
    return np.asarray(cells[rng.permutation(4)[:count]] + rng.uniform(-0.06, 0.06, (count, 2)))


def _toy(composition: Composition, number: int, rng: np.random.Generator) -> _Points:
    """Sample one toy that stands on z = 0, (number, 3)."""
    points, normals = _pool(composition.kind)
    chosen = rng.choice(_POOL, number, replace=False)
    lift = _finish(composition.material, points[chosen], rng)  # (number,)
    placed = points[chosen] + normals[chosen] * lift[:, None] + np.array([0, 0, 1.0])
    half = _SIDE_OF_SIZE[composition.size] / 2 * rng.uniform(0.96, 1.04)
    return np.asarray(placed @ _turn(rng.uniform(-0.25, 0.25)).T * half)


def _finish(material: str, points: _Points, rng: np.random.Generator) -> _Points:
    """How far the surface stands out, (N,): glass smooth, metal ridged, wood rough, rubber studded."""
    number = len(points)
    if material == "glass":
        return np.zeros(number)
    if material == "metal":
        return np.asarray(0.09 * np.sign(np.sin(points[:, 2] * 11 + 0.7)))
    if material == "wood":
        return rng.normal(0, 0.11, number)
    return 0.32 * (rng.random(number) < 0.22)


def _turn(angle: float) -> _Points:
    """Rotation about the z axis, (3, 3)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


@cache
def _pool(kind: str) -> tuple[_Points, _Points]:
    """Many points of a kind's surface and their outward directions, each (_POOL, 3)."""
    rng = np.random.default_rng(keyed_seed("cmcr-sandbox-shape-1", kind))
    parts = _KINDS[kind]
    numbers = rng.multinomial(_POOL, [part[3] for part in parts])
    points, normals = [], []
    for (primitive, axes, centre, _), number in zip(parts, numbers.tolist(), strict=True):
        surface, outward = _PRIMITIVES[primitive](number, rng)
        points.append(surface * axes + np.asarray(centre))
        normals.append(outward)
    order = rng.permutation(_POOL)
    return np.concatenate(points)[order], np.concatenate(normals)[order]


def _sphere(n: int, rng: np.random.Generator) -> tuple[_Points, _Points]:
    x = rng.normal(size=(n, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, x


def _around(n: int, rng: np.random.Generator) -> _Points:
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.column_stack([np.cos(angle), np.sin(angle), np.zeros(n)])


def _cylinder(n: int, rng: np.random.Generator) -> tuple[_Points, _Points]:
    out = _around(n, rng)
    return out + np.outer(rng.uniform(-1, 1, n), [0, 0, 1.0]), out


def _cone(n: int, rng: np.random.Generator) -> tuple[_Points, _Points]:
    out, down = _around(n, rng), np.sqrt(rng.uniform(0.02, 1, n))
    return out * down[:, None] + np.outer(1 - 2 * down, [0, 0, 1.0]), out


def _disc(n: int, rng: np.random.Generator) -> tuple[_Points, _Points]:
    out = _around(n, rng) * np.sqrt(rng.random(n))[:, None]
    side = rng.choice([-1.0, 1.0], n)
    return out + np.outer(side, [0, 0, 1.0]), np.outer(side, [0, 0, 1.0])


def _box(n: int, rng: np.random.Generator) -> tuple[_Points, _Points]:
    x = rng.uniform(-1, 1, (n, 3))
    face, side = rng.integers(3, size=n), rng.choice([-1.0, 1.0], n)
    x[np.arange(n), face] = side
    out = np.zeros((n, 3))
    out[np.arange(n), face] = side
    return x, out


def _torus(n: int, rng: np.random.Generator) -> tuple[_Points, _Points]:
    ring, angle = _around(n, rng), rng.uniform(0, 2 * np.pi, n)
    out = ring * np.cos(angle)[:, None] + np.outer(np.sin(angle), [0, 0, 1.0])
    return ring + out * np.array([0.12, 0.12, 1.0]), out


def _wheel(n: int, rng: np.random.Generator) -> tuple[_Points, _Points]:
    rim, face = _cylinder(n // 3, rng), _disc(n - n // 3, rng)
    points, normals = np.concatenate([rim[0], face[0]]), np.concatenate([rim[1], face[1]])
    return points[:, [0, 2, 1]], normals[:, [0, 2, 1]]


def _swapped(make: _Primitive, axes: list[int], sign: float) -> _Primitive:
    """Lay a primitive down by exchanging its axes."""

    def made(n: int, rng: np.random.Generator) -> tuple[_Points, _Points]:
        points, normals = make(n, rng)
        turn = np.array([sign, 1.0, 1.0])
        return points[:, axes] * turn, normals[:, axes] * turn

    return made


_PRIMITIVES: dict[str, _Primitive] = {
    "sphere": _sphere,
    "cylinder": _cylinder,
    "cone": _cone,
    "disc": _disc,
    "box": _box,
    "torus": _torus,
    "wheel": _wheel,
    "standing torus": _swapped(_torus, [0, 2, 1], 1.0),
    "lying cylinder": _swapped(_cylinder, [2, 1, 0], 1.0),
    "lying cone": _swapped(_cone, [2, 1, 0], -1.0),
}
