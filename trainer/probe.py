"""How sharply some queries look at a bank: one pass, kept as histograms of cosines, answers for any temperature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..cache.bank import sample_rows
from ..cache.reader import Cache
from .completion import BANK_TILE, BlockSource, Vectors, check_shapes, true_fp32
from .device import resolve_device
from .missing_mass import mass_bound, score_slack, vector_bound

PROBE_ROWS = 128
_BINS = 4096
_EDGE = 1.001  # cosines of rows normalised in float32 lie within
Float64 = npt.NDArray[np.float64]


def probe_queries(query: Cache, seed: int, rows: int = PROBE_ROWS) -> Vectors:
    """A seeded sample of the queries, as unit rows: (P, D)."""
    return query.rows(sample_rows(len(query), min(rows, len(query)), seed))


@dataclass(frozen=True)
class Sharpness:
    """Cosines of probe queries with every bank row, counted in narrow bins (0.0005 wide).

    Parameters
    ----------
    counts : array (P, bins) int64
        Of each query, from the highest cosine down.
    cosines : array (bins,) float64
        Middle of each bin.
    dim : int
        Width of the space.
    """

    counts: npt.NDArray[np.int64]
    cosines: Float64
    dim: int

    @property
    def rows(self) -> int:
        """Rows of the bank."""
        return int(self.counts[0].sum())

    def _weights(self, tau: float) -> tuple[Float64, Float64]:
        """exp((s − s_1)/τ) of each bin (P, bins), and the sums of the rows down to it."""
        best = self.cosines[(self.counts > 0).argmax(axis=1)][:, None]  # (P, 1)
        weights = np.exp(np.minimum(0.0, (self.cosines - best) / tau))
        return weights, np.cumsum(self.counts * weights, axis=1)

    def neighbours(self, tau: float) -> Float64:
        """Effective number of bank rows averaged at a temperature: exp(H), (P,)."""
        weights, sums = self._weights(tau)
        best = self.cosines[(self.counts > 0).argmax(axis=1)][:, None]
        total = sums[:, -1]
        mean = (self.counts * weights * (self.cosines - best)).sum(axis=1) / total  # of the scores, under the weights
        return np.asarray(np.exp(np.log(total) - mean / tau), np.float64)

    def certified(self, tau: float, tolerance: float) -> Float64:
        """Rows that a certified top-k needs: (P,)."""
        weights, sums = self._weights(tau)
        kept = np.cumsum(self.counts, axis=1)
        length = np.cumsum(self.counts * weights * self.cosines, axis=1) / np.maximum(sums, 1e-300)
        slack = score_slack(self.dim) / tau
        worst = np.log(np.maximum(weights, 1e-300)) + 2 * slack
        error = vector_bound(mass_bound(sums, worst, self.rows - kept), np.maximum(length, 1e-30))
        holds = (length > 0) & (error <= tolerance) & (kept > 0)
        return np.where(holds.any(axis=1), np.take_along_axis(kept, holds.argmax(axis=1)[:, None], 1)[:, 0], self.rows)

    def massive(self, tau: float, missing: float) -> Float64:
        """Rows that hold all but this share of the mass: (P,)."""
        _, sums = self._weights(tau)
        kept = np.cumsum(self.counts, axis=1)
        enough = sums >= (1 - missing) * sums[:, -1:]
        return np.asarray(np.take_along_axis(kept, enough.argmax(axis=1)[:, None], 1)[:, 0], np.float64)


def measure_sharpness(queries: Vectors, bank: BlockSource, *, device: str = "cpu") -> Sharpness:
    """Count the cosines of some queries (P, D) with all rows of a bank."""
    check_shapes(queries, bank)
    place = resolve_device(device)
    probe = torch.from_numpy(np.ascontiguousarray(queries)).to(place)
    counts = torch.zeros(len(probe) * _BINS, dtype=torch.int64)
    offsets = (torch.arange(len(probe), device=place) * _BINS)[:, None]
    with true_fp32():
        for block in bank.blocks():
            rows = torch.from_numpy(block).to(place)
            for start in range(0, len(rows), BANK_TILE):
                scores = probe @ rows[start : start + BANK_TILE].T  # (P, b)
                places = ((_EDGE - scores) * (_BINS / (2 * _EDGE))).long().clamp_(0, _BINS - 1)
                counts += torch.bincount((places + offsets).flatten().cpu(), minlength=len(counts))
    middles = _EDGE - (np.arange(_BINS) + 0.5) * (2 * _EDGE / _BINS)
    return Sharpness(counts.view(len(probe), _BINS).numpy(), middles, bank.dim)
