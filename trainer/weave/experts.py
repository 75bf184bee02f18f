"""The candidates of ``weave`` that need no training: a shrunk linear map, and a walk over anchors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..projectors import Projector, affine, bridge, identity
from .data import WeaveData, complete

_BLOCK = 4096
_TINY = 1e-12
_FLOOR = 1e-3  # of the largest eigenvalue: directions below it are rounding, and are not blown up


@dataclass(frozen=True)
class Expert:
    """Two cores on centred unit rows, into one space.

    Parameters
    ----------
    name : str
        ``linear``, ``anchors`` or ``trained``.
    cores : (Projector, Projector)
    settings : dict
        What tells this candidate from others of its name; the arguments of the function that made it.
    """

    name: str
    cores: tuple[Projector, Projector]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def simplicity(self) -> tuple[float, ...]:
        """Order within one kind: a stronger shrinkage is simpler, so is a broader softmax, so is less whitening."""
        if self.name == "linear":
            return (self.settings["power"],)
        return (-self.settings["scale"], -self.settings["whiten"]) if self.name == "anchors" else ()

    def rows(self, side: int, vectors: Tensor) -> Tensor:
        """Unit rows (B, d) of centred unit rows (B, D) of that side."""
        with torch.inference_mode():
            parts = [F.normalize(self.cores[side](block), dim=1) for block in torch.split(vectors, _BLOCK)]
        return torch.cat(parts)


def linear(data: WeaveData, power: float, kept: int | None = None) -> Expert:
    """Procrustes, shrunk towards what the two spaces share most.

    With T1ᵀT2 = U S Vᵀ, the maps are U S^(power/2) and V S^(power/2): power 0 is the orthogonal Procrustes solution
    (Schönemann 1966), power 1 weighs every direction by its covariance across the spaces, as partial least squares do.
    """
    first, second = (side.overlap for side in data.sides)
    u, s, vt = torch.linalg.svd(first.T @ second, full_matrices=False)
    root = (s / s[0].clamp_min(_TINY)) ** (power / 2)  # (d,)
    maps = (u * root, vt.T * root)  # (D1, d), (D2, d)
    if kept is None:
        heads = tuple(affine(m.T.contiguous(), None, m.shape[0]) for m in maps)
    else:
        led = maps[kept] @ maps[1 - kept].T  # (D_kept, D_led)
        heads = _placed(kept, affine(led, None, led.shape[1]), led.shape[0])
    return Expert("linear", (heads[0], heads[1]), {"power": power})


def anchor_keys(data: WeaveData, scale: float, count: int, seed: int) -> list[Tensor]:
    """The anchors, seen in each space: unit rows (M, D1) and (M, D2), M ≤ ``count``.

    An anchor is an overlap item together with its completion, (t + x)/‖t + x‖ in each space: the item's neighbourhood
    in *both* modalities, so that a picture is compared with pictures and not across the gap. More than ``count`` are
    clustered in both spaces at once.
    """
    points = [F.normalize(side.overlap + complete(side.overlap, side.bank, scale), dim=1) for side in data.sides]
    return points if len(data) <= count else cluster(points, count, seed)


def anchors(data: WeaveData, scale: float, whiten: float, count: int, seed: int, kept: int | None = None) -> Expert:
    """The walk over at most ``count`` anchors: :func:`walk` over :func:`anchor_keys`."""
    return walk(anchor_keys(data, scale, count, seed), scale, whiten, kept)


def walk(keys: Sequence[Tensor], scale: float, whiten: float, kept: int | None = None) -> Expert:
    """Both spaces meet in what a vector resembles: the same anchors, seen from either side.

    A vector becomes Σ_m softmax_m(scale · x·C_m) V_m, with C the anchors of its own space and V those of both spaces
    side by side (of the kept one alone, where one is kept), centred, their covariance raised to −whiten/2.
    """
    values = torch.cat(list(keys), dim=1) if kept is None else keys[kept]
    values = _whitened(values - values.mean(dim=0), whiten)  # (M, D1 + D2), or (M, D_kept)
    heads = tuple(bridge(key, values, None, scale) for key in keys)
    if kept is not None:
        heads = _placed(kept, heads[1 - kept], values.shape[1])
    return Expert("anchors", (heads[0], heads[1]), {"scale": scale, "whiten": whiten})


def _placed(kept: int, led: Projector, dim: int) -> tuple[Projector, ...]:
    """Both cores where one side is kept as it is."""
    return (identity(dim), led) if kept == 0 else (led, identity(dim))


def _whitened(rows: Tensor, power: float) -> Tensor:
    """Centred rows (M, D) times C^(-power/2), C their covariance."""
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    values = values.clamp_min(max(float(values[-1]) * _FLOOR, _TINY))  # (D,)
    scaled: Tensor = rows @ ((vectors * values ** (-power / 2)) @ vectors.T)
    return scaled


def cluster(points: list[Tensor], count: int, seed: int, rounds: int = 6) -> list[Tensor]:
    """Spherical k-means on row-aligned points of both spaces; unit means (≤ count, D) of each cluster in each space."""
    joint = F.normalize(torch.cat(points, dim=1), dim=1)  # (N, D1 + D2)
    order = torch.randperm(len(joint), generator=torch.Generator().manual_seed(seed))
    centres = joint[order[:count]]
    for _ in range(rounds):
        owner = torch.cat([(block @ centres.T).argmax(dim=1) for block in torch.split(joint, _BLOCK)])  # (N,)
        sums = torch.zeros_like(centres).index_add_(0, owner, joint)
        filled = sums.square().sum(dim=1, keepdim=True) > 0
        centres = torch.where(filled, F.normalize(sums, dim=1), centres)
    used = torch.bincount(owner, minlength=count) > 0
    return [F.normalize(torch.zeros(count, p.shape[1]).index_add_(0, owner, p), dim=1)[used] for p in points]


def untrained(
    data: WeaveData,
    powers: tuple[float, ...],
    scales: tuple[float, ...],
    whitens: tuple[float, ...],
    count: int,
    seed: int,
    kept: int | None,
) -> Iterator[Expert]:
    """Every candidate of the two kinds, over their grids."""
    for power in powers:
        yield linear(data, power, kept)
    for scale in scales if whitens else ():
        keys = anchor_keys(data, scale, count, seed)
        for whiten in whitens:
            yield walk(keys, scale, whiten, kept)
