"""Completion from the rows that an approximate index proposes, scored in float32; what it misses is estimated.

Inverted lists: each query visits the lists that are predicted to hold its mass, n_l exp(t·c_l/τ + v_l/2τ²) by their
sizes, means and spreads, until all but ``coverage`` of it is in them; all rows of a visited list take part. Queries
that visit a list meet it together, as one matrix product. Graph (HNSW): the k rows that a search brings. Neither
carries a certificate: the mass left out is estimated from a uniform sample of the other rows
(:func:`.missing_mass.estimate_mass`), and never called a bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache.bank import Bank, sample_rows
from ..cache.faiss_index import InvertedLists, row_chunks
from .completion import Vectors, check_shapes, true_fp32
from .device import resolve_device
from .missing_mass import MassEstimate, estimate_mass

SAMPLE_ROWS = 4096  # of the bank: what the missing mass is estimated from
_TILE = 1024
_DIRECTION = 2.5  # variance of a list towards a query, in units of spread²/D: measured on the kit (docs/completion.md)
_GATHER = 1 << 16  # candidate rows in memory at a time


@dataclass(frozen=True)
class Approximated:
    """Rows completed from candidates.

    Parameters
    ----------
    vectors : array (B, D) float32
        Weighted means over the candidates; not of unit length.
    neighbours : array (B,) float64
    k : array (B,) int64
        Candidates of each query.
    mass : MassEstimate
        Of what was left out.
    """

    vectors: Vectors
    neighbours: npt.NDArray[np.float64]
    k: npt.NDArray[np.int64]
    mass: MassEstimate


@dataclass(frozen=True)
class Sample:
    """A uniform sample of the bank: row numbers (S,) ascending and unit rows (S, D)."""

    numbers: npt.NDArray[np.int64]
    rows: Vectors


def bank_sample(bank: Bank, seed: int) -> Sample:
    """The seeded sample that missing mass is estimated from."""
    numbers = sample_rows(len(bank), min(SAMPLE_ROWS, len(bank)), seed)
    return Sample(numbers, bank.rows(numbers))


class _Sums:
    """Running softmax sums of queries that each see their own part of the bank (Milakov and Gimelshein 2018)."""

    def __init__(self, queries: Tensor, tau: float) -> None:
        self.scaled = queries / tau  # (B, D)
        self.peak = self.scaled.new_full((len(queries), 1), float("-inf"))
        self.mass = self.scaled.new_zeros((len(queries), 1))
        self.total = torch.zeros_like(self.scaled)

    def add(self, who: Tensor, rows: Tensor) -> None:
        """Some rows (n, D) into the sums of some queries (m,)."""
        scores = self.scaled[who] @ rows.T  # (m, n)
        old = self.peak[who]
        peak = torch.maximum(old, scores.amax(dim=1, keepdim=True))
        scores.sub_(peak).exp_()
        shrink = torch.exp(old - peak)
        self.mass[who] = self.mass[who] * shrink + scores.sum(dim=1, keepdim=True)
        self.total[who] = torch.addmm(self.total[who].mul_(shrink), scores, rows)
        self.peak[who] = peak

    def result(self) -> tuple[Vectors, npt.NDArray[np.float64]]:
        """Means (B, D) and effective numbers of neighbours (B,)."""
        vectors = self.total / self.mass
        entropy = self.mass.log() + self.peak - (self.scaled * vectors).sum(dim=1, keepdim=True)
        neighbours = entropy.exp().clamp_min(1.0)[:, 0].double()
        return vectors.cpu().numpy(), neighbours.cpu().numpy()


def complete_ivf(
    queries: Vectors,
    bank: Bank,
    lists: InvertedLists,
    sample: Sample,
    tau: float,
    coverage: float,
    *,
    device: str = "cpu",
) -> Approximated:
    """Complete some rows from the inverted lists that hold their mass.

    Parameters
    ----------
    queries : array (B, D) float32
    bank : Bank
    lists : InvertedLists
        Of the bank.
    sample : Sample
        Of the bank.
    tau : float
    coverage : float
        A query visits lists until all but this share of its predicted mass is in them.
    device : str
    """
    check_shapes(queries, bank)
    place = resolve_device(device)
    with true_fp32():
        sums = _Sums(torch.from_numpy(np.ascontiguousarray(queries)).to(place), tau)
        visited = _visited(sums.scaled, lists, coverage)  # (L, B)
        for first, last, numbers in row_chunks(lists):
            wanted = visited[first:last].any(dim=1)
            if not bool(wanted.any()):
                continue
            rows = torch.from_numpy(bank.rows(numbers)).to(place)
            cuts = (lists.starts[first : last + 1] - lists.starts[first]).tolist()
            for number in wanted.nonzero()[:, 0].tolist():
                low, high = cuts[number], cuts[number + 1]
                if low < high:
                    sums.add(visited[first + number].nonzero()[:, 0], rows[low:high])
        sizes = torch.from_numpy(lists.sizes).double().to(place)
        k = (visited.T.double() @ sizes).long()  # (B,)
        inverse = _list_of(lists, sample.numbers)
        mass = _estimate(sums, sample, k, lambda rows: visited[inverse][:, rows].T, len(bank))
        vectors, neighbours = sums.result()
    return Approximated(vectors, neighbours, k.cpu().numpy(), mass)


def _visited(scaled: Tensor, lists: InvertedLists, coverage: float) -> Tensor:
    """Which lists each query visits: (L, B) bool. The best is always one of them."""
    centroids = torch.from_numpy(lists.centroids).to(scaled.device)
    sizes = torch.from_numpy(lists.sizes.astype(np.float32)).to(scaled.device).log()  # (L,); empty lists: -inf
    spread = torch.from_numpy(lists.spread).to(scaled.device)
    sizes = sizes + _log_mean_exp(spread * (_DIRECTION / scaled.shape[1]) ** 0.5 * scaled[:1].norm(), sizes)
    visited = torch.empty((len(centroids), len(scaled)), dtype=torch.bool, device=scaled.device)
    for start in range(0, len(scaled), _TILE):
        rows = slice(start, start + _TILE)
        shares = torch.softmax(scaled[rows] @ centroids.T + sizes, dim=1)  # (q, L)
        ordered, order = shares.sort(dim=1, descending=True, stable=True)
        rest = ordered.flip(1).cumsum(dim=1).flip(1)  # from the smallest on: tiny coverages stay exact
        rest[:, 0] = 1.0
        chosen = torch.zeros_like(shares, dtype=torch.bool).scatter_(1, order, rest > coverage)
        visited[:, rows] = (chosen & (sizes > float("-inf"))).T
    return visited


def _log_mean_exp(deviation: Tensor, log_count: Tensor) -> Tensor:
    """log of the mean of exp over so many normal draws of this deviation: (L,).

    v/2 while that many draws reach where the mean is made; beyond, the largest draw is all of it (the freezing of the
    random energy model: Derrida 1981, Physical Review B 24, 2613).
    """
    reach = (2 * log_count.clamp_min(0)).sqrt()
    return torch.where(deviation <= reach, 0.5 * deviation.square(), deviation * reach - log_count.clamp_min(0))


def _list_of(lists: InvertedLists, numbers: npt.NDArray[np.int64]) -> Tensor:
    """The list that each row of an ascending sample is in: (S,)."""
    owner = np.empty(len(numbers), np.int64)
    for number, (low, high) in enumerate(zip(lists.starts, lists.starts[1:], strict=False)):
        _, here, _ = np.intersect1d(numbers, lists.rows[low:high], assume_unique=True, return_indices=True)
        owner[here] = number
    return torch.from_numpy(owner)


def _estimate(sums: _Sums, sample: Sample, k: Tensor, is_candidate: Any, rows: int) -> MassEstimate:
    """Sums over the sampled rows that are not candidates, for blocks of queries."""
    drawn = torch.from_numpy(sample.rows).to(sums.scaled.device)
    found = []
    for start in range(0, len(sums.scaled), _TILE):
        part = slice(start, start + _TILE)
        shares = torch.exp((sums.scaled[part] @ drawn.T - sums.peak[part]).clamp_max(80.0))  # (q, S)
        other = ~is_candidate(part)
        shares = shares.double() * other
        found.append(torch.stack([shares.sum(1), shares.square().sum(1), other.sum(1).double()]))
    first, second, count = torch.cat(found, dim=1).cpu().numpy()
    total = sums.mass[:, 0].double().cpu().numpy()
    return estimate_mass(total, first, second, count, (rows - k).double().cpu().numpy())


def complete_hnsw(
    queries: Vectors, bank: Bank, index: Any, sample: Sample, tau: float, k: int, *, device: str = "cpu"
) -> Approximated:
    """Complete some rows from the k bank rows that a graph search brings to each.

    Parameters
    ----------
    queries, bank, sample, tau, device
        As :func:`complete_ivf`.
    index : faiss.IndexHNSW
        Of the bank.
    k : int
        Candidates of each query, and breadth of the search.
    """
    check_shapes(queries, bank)
    place = resolve_device(device)
    k = min(k, len(bank))
    index.hnsw.efSearch = max(64, k)
    found = np.asarray(index.search(np.ascontiguousarray(queries), k)[1], np.int64)  # (B, k); -1: none
    found.sort(axis=1)
    with true_fp32():
        sums = _Sums(torch.from_numpy(np.ascontiguousarray(queries)).to(place), tau)
        for query in range(len(queries)):
            for start in range(0, k, _GATHER):
                numbers = found[query, start : start + _GATHER]
                numbers = numbers[numbers >= 0]
                if len(numbers):
                    sums.add(torch.tensor([query], device=place), torch.from_numpy(bank.rows(numbers)).to(place))
        counts = torch.from_numpy((found >= 0).sum(axis=1)).to(place)

        def is_candidate(part: slice) -> Tensor:
            mask = np.stack([np.isin(sample.numbers, row, assume_unique=False) for row in found[part]])
            return torch.from_numpy(mask).to(place)

        mass = _estimate(sums, sample, counts, is_candidate, len(bank))
        vectors, neighbours = sums.result()
    return Approximated(vectors, neighbours, counts.cpu().numpy(), mass)
