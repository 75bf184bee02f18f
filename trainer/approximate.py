"""Completion from the rows that an approximate index proposes, scored in float32; what it misses is estimated.

Inverted lists: each query visits the lists that are predicted to hold its mass, n_l exp(t·c_l/τ + v_l/2τ²) by their
sizes, means and spreads: those above ``least_share`` of the best one; all rows of a visited list take part. Queries
that visit a list meet it together, as one matrix product. Graph (HNSW): the k rows that a search brings. Neither
carries a certificate: the mass left out is estimated from a uniform sample of the other rows
(:func:`.missing_mass.estimate_mass`), and never called a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
_TILE = 256  # queries: what is predicted of all lists for so many stays in a shared cache
_DIRECTION = 2.5  # variance of a list towards a query, in units of spread²/D: measured on the kit (docs/completion.md)
_GATHER = 1 << 16  # candidate rows in memory at a time
_SCAN = 1 << 20
_COLUMNS = ("vectors", "neighbours", "k")
_VISITS = 192 << 20  # lists times queries of a pass: a byte each


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

    def add_shifted(self, who: Tensor, rows: Tensor) -> None:
        """As :meth:`add`, with the peaks as they are: half the work on a list of few rows."""
        scores = torch.addmm(-self.peak[who], self.scaled[who], rows.T).exp_()  # (m, n)
        self.mass.index_add_(0, who, scores.sum(dim=1, keepdim=True))
        self.total.index_add_(0, who, scores @ rows)

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
    least_share: float,
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
    least_share : float
        A query visits the lists that are predicted to hold more than this share of what its best one holds.
    device : str
    """
    check_shapes(queries, bank)
    place = resolve_device(device)
    owner = _list_of(lists, sample.numbers)
    size = max(_TILE, _VISITS // len(lists.sizes))
    with true_fp32():
        parts = [
            _complete_ivf(
                torch.from_numpy(np.ascontiguousarray(queries[start : start + size])).to(place),
                bank, lists, sample, owner, tau, least_share,
            )
            for start in range(0, len(queries), size)
        ]  # fmt: skip
    if len(parts) == 1:
        return parts[0]
    vectors, neighbours, k = (np.concatenate([getattr(p, name) for p in parts]) for name in _COLUMNS)
    low, estimate, high = (
        np.concatenate([getattr(p.mass, name) for p in parts]) for name in ("low", "estimate", "high")
    )
    return Approximated(vectors, neighbours, k, MassEstimate(estimate, low, high))


def _complete_ivf(
    queries: Tensor,
    bank: Bank,
    lists: InvertedLists,
    sample: Sample,
    owner: Tensor,
    tau: float,
    least_share: float,
) -> Approximated:
    """One pass over the lists, for as many queries as share it."""
    sums = _Sums(queries, tau)
    visited, shift = _visited(sums.scaled, lists, least_share)  # (L, B), (B, 1)
    sums.peak = shift
    k = _visit(sums.add_shifted, bank, lists, visited)
    if not bool((torch.isfinite(sums.mass) & (sums.mass > 0)).all()):  # scores far from what the means say
        sums = _Sums(queries, tau)
        _visit(sums.add, bank, lists, visited)
    mass = _estimate(sums, sample, k, lambda part: visited[owner, part], len(bank))
    vectors, neighbours = sums.result()
    return Approximated(vectors, neighbours, k.cpu().numpy(), mass)


def _visit(add: Callable[[Tensor, Tensor], None], bank: Bank, lists: InvertedLists, visited: Tensor) -> Tensor:
    """Bring each list that anybody visits to those who do; how many rows each then met: (B,)."""
    met = torch.zeros(visited.shape[1], dtype=torch.int64, device=visited.device)
    sizes = torch.from_numpy(lists.sizes).to(visited.device)
    for first, last, numbers in row_chunks(lists):
        who, where = visited[first:last].nonzero().T.contiguous().flip(0)  # ascending in the list
        if len(who) == 0:
            continue
        met.index_add_(0, who, sizes[where + first])
        rows = torch.from_numpy(bank.rows(numbers)).to(visited.device)
        meetings = torch.bincount(where, minlength=last - first).tolist()
        cuts = (lists.starts[first : last + 1] - lists.starts[first]).tolist()
        for number, some in enumerate(who.split(meetings)):
            if len(some) and cuts[number] < cuts[number + 1]:
                add(some, rows[cuts[number] : cuts[number + 1]])
    return met


def _visited(scaled: Tensor, lists: InvertedLists, least_share: float) -> tuple[Tensor, Tensor]:
    """Which lists each query visits (L, B) bool, the best always among them; and a shift for its scores (B, 1).

    Lists stand in rows throughout: what is asked next is who visits a list.
    """
    centroids = torch.from_numpy(lists.centroids).to(scaled.device)
    sizes = torch.from_numpy(lists.sizes.astype(np.float32)).to(scaled.device).log()  # (L,); empty lists: -inf
    spread = torch.from_numpy(lists.spread).to(scaled.device)
    mass = sizes + _log_mean_exp(spread * (_DIRECTION / scaled.shape[1]) ** 0.5 * scaled[:1].norm(), sizes)
    below_best = math.log(least_share) if least_share > 0 else float("-inf")
    visited = torch.empty((len(centroids), len(scaled)), dtype=torch.bool, device=scaled.device)
    shift = scaled.new_empty((len(scaled), 1))
    for start in range(0, len(scaled), _TILE):
        rows = slice(start, start + _TILE)
        predicted = torch.addmm(mass[:, None], centroids, scaled[rows].T)  # log n_l exp(t·c_l/τ + ...) (L, q)
        best = predicted.amax(dim=0)  # (q,)
        torch.gt(predicted, best + below_best, out=visited[:, rows])
        # no row is far above the mass of the best list: e^88 of room there, and below it down to e^-87
        shift[rows, 0] = best
    return visited, shift


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
    for start in range(0, len(lists.rows), _SCAN):
        rows = lists.rows[start : start + _SCAN]
        places = np.searchsorted(numbers, rows).clip(max=len(numbers) - 1)
        found = np.flatnonzero(numbers[places] == rows)
        owner[places[found]] = np.searchsorted(lists.starts, start + found, side="right") - 1
    return torch.from_numpy(owner)


def _estimate(sums: _Sums, sample: Sample, k: Tensor, is_candidate: Any, rows: int) -> MassEstimate:
    """Sums over the sampled rows that are not candidates, for tiles of queries; ``is_candidate`` gives (S, q) bool."""
    drawn = torch.from_numpy(sample.rows).to(sums.scaled.device)
    found = []
    for start in range(0, len(sums.scaled), _TILE):
        part = slice(start, start + _TILE)
        known = is_candidate(part)
        shares = torch.addmm(-sums.peak[part].T, drawn, sums.scaled[part].T)  # (S, q)
        shares.clamp_max_(40.0).exp_().masked_fill_(known, 0.0)
        first = shares.sum(dim=0)
        second = shares.square_().sum(dim=0)
        found.append(torch.stack([first.double(), second.double(), len(drawn) - known.sum(dim=0).double()]))
    linear, squares, count = torch.cat(found, dim=1).cpu().numpy()
    total = sums.mass[:, 0].double().cpu().numpy()
    return estimate_mass(total, linear, squares, count, (rows - k).double().cpu().numpy())


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
            return torch.from_numpy(mask.T).to(place)

        mass = _estimate(sums, sample, counts, is_candidate, len(bank))
        vectors, neighbours = sums.result()
    return Approximated(vectors, neighbours, counts.cpu().numpy(), mass)
