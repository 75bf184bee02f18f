"""Certified top-k completion: the rows that matter, and a bound of what leaving out the others costs.

One pass of float32 scores over the whole bank keeps, for each query, every row within a gap of its best: these are the
exact k best for some k. The least k whose certificate (:mod:`.missing_mass`) holds is kept; its scores are computed
again in float64. A query that needs more than M/20 rows is completed exactly instead, which is cheaper there.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .completion import BANK_TILE, QUERY_TILE, BlockSource, Vectors, check_shapes, complete_rows, true_fp32
from .device import resolve_device
from .missing_mass import mass_bound, rounded_up, score_slack, smallest_k, vector_bound

LARGEST_SHARE = 20  # beyond M/20 rows exact completion is cheaper
TOPK_ROWS = 256  # queries that share a pass: their candidates are in memory
_CANDIDATES = 8 << 20  # candidates held at a time, 16 bytes each


class RowBank(BlockSource, Protocol):
    """A bank whose rows can also be read by number."""

    def rows(self, indices: npt.ArrayLike) -> Vectors:
        """Unit rows (B, D) float32."""
        ...


@dataclass(frozen=True)
class Certified:
    """Rows completed from their k best bank rows.

    Parameters
    ----------
    vectors : array (B, D) float32
        The truncated, renormalised means x^; not of unit length.
    neighbours : array (B,) float64
        exp(H) of the truncated weights.
    k : array (B,) int64
        Bank rows averaged; M where the row was completed exactly.
    mass : array (B,) float64
        Upper bound of the mass left out; 0 where nothing was.
    error : array (B,) float64
        Upper bound of how far the unit vector is off; NaN where the row was completed exactly (no truncation).
    """

    vectors: Vectors
    neighbours: npt.NDArray[np.float64]
    k: npt.NDArray[np.int64]
    mass: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]


def complete_topk(
    queries: Vectors, bank: RowBank, tau: float = 0.01, tolerance: float = 1e-3, *, device: str = "cpu"
) -> Certified:
    """Complete some rows from their best bank rows, with a certificate for each.

    Parameters
    ----------
    queries : array (B, D) float32
        Unit rows.
    bank : Bank
        Unit rows (M, D) of the same space.
    tau : float
    tolerance : float
        Largest distance allowed between the unit vectors of the truncated and of the full mean.
    device : str
        Where the scores are computed.
    """
    check_shapes(queries, bank)
    parts = [
        _complete(queries[start : start + TOPK_ROWS], bank, tau, tolerance, device)
        for start in range(0, len(queries), TOPK_ROWS)
    ]
    return Certified(*(np.concatenate([getattr(part, name) for part in parts]) for name in Certified.__annotations__))


def _complete(queries: Vectors, bank: RowBank, tau: float, tolerance: float, device: str) -> Certified:
    rows, most = len(bank), max(1, len(bank) // LARGEST_SHARE)
    # the gap allows for Z = 1, so that it holds more rows than the certificate will need
    found = _Within(queries, tau * math.log(max(math.e, 16 * rows / tolerance)), 4 * most, device)
    start = 0
    with true_fp32():
        for block in bank.blocks():
            found.add(start, block)
            start += len(block)
    out = Certified(
        np.empty_like(queries), np.empty(len(queries)), np.full(len(queries), rows), *np.full((2, len(queries)), np.nan)
    )
    slack = score_slack(bank.dim) / tau
    whole = []
    for query, (numbers, scores) in enumerate(found.result()):
        exact = scores.astype(np.float64)
        below = float(found.floor[query]) / tau
        k = 0 if len(exact) == 0 else smallest_k(exact / tau, below, exact, rows, slack, tolerance)
        if not 0 < k <= most:
            whole.append(query)
            continue
        done = _average(queries[query], bank.rows(numbers[:k]), tau)
        worst = (exact[k] / tau if k < len(exact) else below) + slack - done.peak
        out.vectors[query], out.neighbours[query], out.k[query] = done.vector, done.neighbours, k
        out.mass[query] = mass_bound(done.total, worst, rows - k)
        out.error[query] = vector_bound(out.mass[query], float(np.linalg.norm(done.vector.astype(np.float64))))
    if whole:
        rest = complete_rows(queries[whole], bank, tau, device=device)
        out.vectors[whole], out.neighbours[whole], out.mass[whole] = rest.vectors, rest.neighbours, 0.0
    return out


class _Within:
    """For each query the bank rows whose score is within a gap of the best so far; at most ``most`` of them.

    A query that has more is given up: it will be completed exactly.
    """

    def __init__(self, queries: Vectors, gap: float, most: int, device: str) -> None:
        self.queries = torch.from_numpy(np.ascontiguousarray(queries)).to(resolve_device(device))
        self.gap, self.most = gap, most
        self.best = self.queries.new_full((len(queries), 1), float("-inf"))
        self.given_up = np.zeros(len(queries), bool)
        self.parts: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], Vectors]] = []
        self.held = 0

    def add(self, start: int, block: Vectors) -> None:
        """Look at a block of the bank, whose first row has the number ``start``."""
        tiles = torch.from_numpy(block).to(self.queries.device)
        for low in range(0, len(tiles), BANK_TILE):
            for first in range(0, len(self.queries), QUERY_TILE):
                self._add_tile(first, tiles[low : low + BANK_TILE], start + low)
        if self.held > _CANDIDATES:
            self._compact(_CANDIDATES // 2)

    def _add_tile(self, first: int, tile: Tensor, start: int) -> None:
        rows = slice(first, first + QUERY_TILE)
        scores = self.queries[rows] @ tile.T  # (q, b)
        self.best[rows] = torch.maximum(self.best[rows], scores.amax(dim=1, keepdim=True))
        floor = self.best[rows] - self.gap
        floor[torch.from_numpy(self.given_up[rows]).to(floor.device)] = float("inf")
        places = (scores >= floor).nonzero()  # (n, 2)
        values = scores[places[:, 0], places[:, 1]].cpu().numpy()
        owner, column = places.T.cpu().numpy()
        self.parts.append(((owner + first).astype(np.int32), column + start, values))
        self.held += len(values)

    @property
    def floor(self) -> Vectors:
        """Every row with a score of at least this is kept: (B,)."""
        lowest: Vectors = self.best.cpu().numpy()[:, 0] - np.float32(self.gap)
        return lowest

    def _compact(self, limit: int) -> None:
        """Forget rows that the best has left behind, and queries that have too many rows, alone or all together."""
        owner, number, score = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        floor = self.floor
        keep = score >= floor[owner]
        counts = np.bincount(owner[keep], minlength=len(floor))
        self.given_up |= counts > self.most
        counts[self.given_up] = 0
        order = np.argsort(-counts, kind="stable")  # where all together are too many, the largest go
        excess = np.cumsum(counts[order[::-1]])[::-1] > limit
        self.given_up[order[excess]] = True
        keep &= ~self.given_up[owner]
        self.parts = [(owner[keep], number[keep], score[keep])]
        self.held = int(keep.sum())

    def result(self) -> list[tuple[npt.NDArray[np.int64], Vectors]]:
        """(row numbers, scores), best first, of each query; none of a query that was given up."""
        self._compact(_CANDIDATES)
        owner, number, score = self.parts[0]
        order = np.lexsort((number, -score, owner))
        cuts = np.searchsorted(owner[order], np.arange(len(self.queries) + 1))
        return [(number[part], score[part]) for part in (order[a:b] for a, b in itertools.pairwise(cuts))]


@dataclass(frozen=True)
class _Average:
    vector: Vectors
    neighbours: float
    total: float
    peak: float


def _average(query: Vectors, rows: Vectors, tau: float) -> _Average:
    """Softmax-weighted mean of some rows, in float64; Z and the score that it is relative to."""
    wide = rows.astype(np.float64)  # (k, D)
    scaled = wide @ query.astype(np.float64) / tau  # (k,)
    peak = float(scaled.max())
    weights = np.exp(scaled - peak)
    total = float(weights.sum())
    weights /= total
    entropy = math.log(total) - float(weights @ (scaled - peak))
    return _Average((weights @ wide).astype(np.float32), max(1.0, math.exp(entropy)), total, peak)


def certificate_record(k: int, mass: float, error: float) -> dict[str, float]:
    """What ``/meta`` says of a certified row; a row completed exactly has no truncation error to bound."""
    record: dict[str, float] = {"k": k, "mass_bound": rounded_up(mass)}
    if not math.isnan(error):
        record["vector_bound"] = rounded_up(error)
    return record
