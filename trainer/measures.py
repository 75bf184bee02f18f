"""The retrieval measures of single queries from the places of their relevant items, in closed form under ties.

Each is defined in ``docs/metrics.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .ranking import Ints, Places

Floats = npt.NDArray[np.float64]
Ties = Literal["expected", "optimistic"]
Settings = tuple[tuple[int, ...], int, Ties]  # cut-offs of recall and precision, cut-off of nDCG, rule for ties


@dataclass(frozen=True)
class PerQuery:
    """Measures of each query that has a relevant item.

    ``query`` (Q',) row; ``recall`` (any hit), ``true_recall`` and ``precision`` (Q', len(ks)); ``ap``, ``first`` (rank
    of the first relevant item), ``rr`` and ``ndcg`` (Q',).
    """

    query: Ints
    recall: Floats
    true_recall: Floats
    precision: Floats
    ap: Floats
    first: Floats
    rr: Floats
    ndcg: Floats


@dataclass(frozen=True)
class _TieGroups:
    """Runs of equal score that hold a relevant item, by query and rank; arrays over runs.

    ``query`` row; ``higher`` items above the run; ``size`` items in it; ``hits`` relevant ones in it; ``above``
    relevant items above it.
    """

    query: Ints
    higher: Ints
    size: Ints
    hits: Ints
    above: Ints


def _tie_groups(query: Ints, higher: Ints, size: Ints) -> _TieGroups:
    """Runs from the places of the relevant items, one entry an item."""
    order = np.lexsort((higher, query))
    query, higher, size = query[order], higher[order], size[order]
    new = np.ones(len(query), bool)
    new[1:] = (query[1:] != query[:-1]) | (higher[1:] != higher[:-1])
    first = np.flatnonzero(new)
    hits = np.diff(np.append(first, len(query)))
    start_of_query = np.searchsorted(query, query[first])  # items are sorted by query
    return _TieGroups(query[first], higher[first], size[first], hits, first - start_of_query)


def block_measures(where: Places, count: int, start: int, gallery: int, settings: Settings) -> PerQuery:
    """Measures of the queries of a block that have a relevant item; ``count`` queries from number ``start`` on."""
    ks, ndcg_at, ties = settings
    groups = _tie_groups(where.query, where.higher, where.equal)
    ranked = groups
    if ties == "optimistic":  # every relevant item has a place of its own, the one of gallery order
        ranked = _tie_groups(where.query, where.higher + where.before, np.ones_like(where.equal))
    relevant = np.bincount(where.query, minlength=count)
    keep = np.flatnonzero(relevant)
    leading = np.searchsorted(groups.query, keep)  # the best run of each query
    high, size, hits = groups.higher[leading], groups.size[leading], groups.hits[leading]
    if ties == "optimistic":
        size, hits = np.ones_like(size), np.ones_like(hits)
    found = np.stack([_found(ranked, count, k)[keep] for k in ks], 1)  # (Q', len(ks))
    return PerQuery(
        query=start + keep,
        recall=np.stack([_any_hit(high, size, hits, k) for k in ks], 1),
        true_recall=found / relevant[keep, None],
        precision=found / np.asarray(ks),
        ap=_average_precision(ranked, relevant, gallery)[keep],
        # the mean of the least of r draws from 1..n without repetition is (n + 1) / (r + 1)
        first=(high + (size + 1) / (hits + 1)).astype(np.float64),
        rr=_reciprocal_rank(high, size, hits, gallery),
        ndcg=_ndcg(ranked, relevant, gallery, ndcg_at)[keep],
    )


def _any_hit(high: Ints, size: Ints, hits: Ints, k: int) -> Floats:
    """P(a relevant item is in the first k) = 1 − C(n−r, m)/C(n, m), m the places of the run in the first k. (Q',)"""
    slots = np.clip(k - high, 0, size)  # m
    miss = np.ones(len(high))
    for i in range(int(slots.max(initial=0))):
        taken = i < slots
        miss[taken] *= np.maximum(size - hits - i, 0)[taken] / (size - i)[taken]
    return 1 - miss


def _found(groups: _TieGroups, count: int, k: int) -> Floats:
    """Expected number of relevant items among the first k. (count,)"""
    inside = groups.hits * np.clip(k - groups.higher, 0, groups.size) / groups.size
    return np.bincount(groups.query, inside, minlength=count).astype(np.float64)


def _harmonic(gallery: int) -> Floats:
    """H_0 .. H_G."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, gallery + 1))])


def _average_precision(groups: _TieGroups, relevant: Ints, gallery: int) -> Floats:
    """Expected average precision under ties (count,).

    McSherry and Najork 2008, "Computing information retrieval performance measures efficiently in the presence of tied
    scores", section on average precision: Σ_runs r/n Σ_{i=1..n} (R + 1 + (i−1)(r−1)/(n−1)) / (t + i), over the number
    of relevant items; n items and r relevant ones in the run, t and R above it. The inner sum in closed form,
    c = (r−1)/(n−1): (R + 1 − c (t + 1)) (H_{t+n} − H_t) + c n.
    """
    t, n, r, above = groups.higher, groups.size, groups.hits, groups.above
    harmonic = _harmonic(gallery)
    c = (r - 1) / np.maximum(n - 1, 1)
    inner = (above + 1 - c * (t + 1)) * (harmonic[t + n] - harmonic[t]) + c * n
    inner = np.where(n == 1, (above + 1) / (t + 1), inner)
    out: Floats = np.bincount(groups.query, r / n * inner, minlength=len(relevant)) / np.maximum(relevant, 1)
    return out


def _reciprocal_rank(high: Ints, size: Ints, hits: Ints, gallery: int) -> Floats:
    """E[1 / rank of the first relevant item] (Q',): P(it is the j-th of its run) = C(n−j, r−1)/C(n, r)."""
    harmonic = _harmonic(gallery)
    out = np.where(size == 1, 1 / (high + 1), (harmonic[high + size] - harmonic[high]) / size)  # right for r = 1
    for i in np.flatnonzero(hits > 1):
        n, r = int(size[i]), int(hits[i])
        j = np.arange(1, n - r + 2)
        ratios = (n - r - j[:-1] + 1) / (n - j[:-1])  # P(j + 1) / P(j)
        out[i] = (r / n * np.concatenate([[1.0], np.cumprod(ratios)]) / (high[i] + j)).sum()
    return out


def _ndcg(groups: _TieGroups, relevant: Ints, gallery: int, k: int) -> Floats:
    """Expected DCG@k with discounts 1/log2(1 + rank), over that of the best order (count,). Source as above."""
    discounts = 1 / np.log2(np.arange(2, gallery + 2))
    discounts[k:] = 0
    total = np.concatenate([[0.0], np.cumsum(discounts)])  # (G + 1,)
    gain = groups.hits / groups.size * (total[groups.higher + groups.size] - total[groups.higher])
    best = np.where(relevant > 0, total[np.minimum(relevant, gallery)], 1.0)
    out: Floats = np.bincount(groups.query, gain, minlength=len(relevant)) / best
    return out
