"""Completion with bfloat16 products: a mode of its own, whose error is measured against float64 and recorded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .completion import BlockSource, Completed, RunningSoftmax, Vectors, check_shapes, true_fp32
from .device import resolve_device

MEASURED_ROWS = 64


class _Bf16Softmax(RunningSoftmax):
    """Both products take and give bfloat16; peaks, sums and weights between them are float32."""

    def __init__(self, scaled: Tensor) -> None:
        super().__init__(scaled)
        self.narrow = scaled.bfloat16()

    def _add_tile(self, rows: slice, tile: Tensor) -> None:
        narrow = tile.bfloat16()
        scores = (self.narrow[rows] @ narrow.T).float()  # (q, b)
        old = self.peak[rows]
        peak = torch.maximum(old, scores.amax(dim=1, keepdim=True))
        weights = scores.sub_(peak).exp_().bfloat16()
        shrink = torch.exp(old - peak)
        self.mass[rows] = self.mass[rows] * shrink + weights.sum(dim=1, keepdim=True, dtype=torch.float32)
        self.total[rows] = self.total[rows] * shrink + (weights @ narrow).float()
        self.peak[rows] = peak


def complete_bf16(queries: Vectors, bank: BlockSource, tau: float, *, device: str = "cpu") -> Completed:
    """Complete some rows with bfloat16 products: as :func:`.completion.complete_rows`, less exact."""
    check_shapes(queries, bank)
    place = resolve_device(device)
    with true_fp32():
        state = _Bf16Softmax(torch.from_numpy(np.ascontiguousarray(queries)).to(place) / tau)
        for rows in bank.blocks():
            state.add(torch.from_numpy(rows).to(place))
        return state.result()


def complete_float64(queries: Vectors, bank: BlockSource, tau: float) -> Vectors:
    """The same sums in float64 on the CPU, for measuring: (B, D)."""
    scaled = torch.from_numpy(np.ascontiguousarray(queries)).double() / tau
    with torch.inference_mode():
        state = RunningSoftmax(scaled)
        for rows in bank.blocks():
            state.add(torch.from_numpy(rows).double())
        return state.result().vectors


@dataclass(frozen=True)
class MeasuredError:
    """Distances between unit vectors of a mode and of the truth, over a seeded sample of queries.

    Parameters
    ----------
    against : str
        What the truth was: ``float64`` or ``exact``.
    rows : int
        Queries measured.
    median, p99, largest : float
    """

    against: str
    rows: int
    median: float
    p99: float
    largest: float


def measured_error(vectors: Vectors, truth: Vectors, against: str) -> MeasuredError:
    """How far the unit vectors of some completions (B, D) are from the true ones."""
    one, other = (part.astype(np.float64) for part in (vectors, truth))
    one /= np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-300)
    other /= np.maximum(np.linalg.norm(other, axis=1, keepdims=True), 1e-300)
    away = np.linalg.norm(one - other, axis=1)
    values = (float(f"{value:.3e}") for value in (np.median(away), np.percentile(away, 99), away.max()))
    return MeasuredError(against, len(away), *values)
