"""Retrieval measures over blocks of queries, ties at their expectation; each is defined in ``docs/metrics.md``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ..cache.errors import CmcrError
from .measures import Floats, PerQuery, Settings, Ties, block_measures
from .ranking import Places, Relevance, Scores, places, score_blocks

# Scores held at once: 2^24 in float64 are 128 MB.
_SCORES = 1 << 24


@dataclass(frozen=True)
class RetrievalMetrics:
    """Measures of one direction; all shares are between 0 and 1.

    Parameters
    ----------
    queries, skipped, gallery : int
        Queries that have a relevant item, queries that have none and are left out, gallery size.
    ties : str
        The rule that equal scores were counted by.
    recall : mapping of int to float
        R@k: share of queries with at least one relevant item among the first k ("any hit").
    precision : mapping of int to float
        P@k: mean share of relevant items among the first k.
    mean_average_precision, mean_reciprocal_rank, ndcg, median_rank : float
        mAP, MRR, nDCG at ``ndcg_at``, median of the first relevant item's rank (1 is best).
    macro : mapping of str to float
        mAP and P@k averaged over the queries of a class, then over the classes; empty where relevance is not by label.
    per_query : PerQuery
        The same for each query.
    """

    queries: int
    skipped: int
    gallery: int
    ties: Ties
    recall: Mapping[int, float]
    precision: Mapping[int, float]
    mean_average_precision: float
    mean_reciprocal_rank: float
    median_rank: float
    ndcg: float
    ndcg_at: int
    macro: Mapping[str, float]
    per_query: PerQuery = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Flat record under the usual names: ``R@1``, ``mAP``, ``median_rank``, ``macro_mAP``, ..."""
        return {
            **{f"R@{k}": value for k, value in self.recall.items()},
            "mAP": self.mean_average_precision,
            "median_rank": self.median_rank,
            "MRR": self.mean_reciprocal_rank,
            f"nDCG@{self.ndcg_at}": self.ndcg,
            **{f"P@{k}": value for k, value in self.precision.items()},
            **self.macro,
            "queries": self.queries,
            "skipped": self.skipped,
            "gallery": self.gallery,
            "ties": self.ties,
        }


def retrieval_metrics(
    queries: npt.NDArray[np.float32],
    gallery: npt.NDArray[np.float32],
    relevance: Relevance,
    *,
    ks: Sequence[int] = (1, 5, 10),
    ties: Ties = "expected",
    ndcg_at: int = 10,
    block: int = 1024,
    device: str = "cpu",
) -> RetrievalMetrics:
    """Measures of ranking the gallery for each query by cosine.

    Parameters
    ----------
    queries, gallery : (Q, D) and (G, D)
        Vectors of the shared space; cosines are computed in float64 and rounded to 2^-24.
    relevance : Relevance
        Which gallery rows are relevant to each query.
    ks : sequence of int
        Cut-offs of recall and precision.
    ties : str
        ``expected``: equal scores count their expectation under random order, exactly. ``optimistic``: the rule of many
        published scripts; recall and ranks count strictly higher scores only, average precision, P@k and nDCG take
        equal scores in gallery order.
    ndcg_at : int
        Cut-off of nDCG.
    block : int
        Queries at once; made smaller where a block of scores would take over 128 MB.
    device : str
        Where the scores are computed.
    """
    if np.ndim(queries) != 2 or np.ndim(gallery) != 2 or queries.shape[1] != gallery.shape[1]:
        raise CmcrError(
            f"queries {np.shape(queries)} and gallery {np.shape(gallery)} are not vectors of one dimension",
            todo="project both through the same connector",
        )
    if (len(queries), len(gallery)) != (len(relevance), relevance.gallery):
        raise CmcrError(
            f"relevance is for {len(relevance)} queries and {relevance.gallery} gallery items; "
            f"there are {len(queries)} and {len(gallery)}"
        )
    size = max(1, min(block, _SCORES // max(1, len(gallery))))
    return rank_metrics(score_blocks(queries, gallery, size, device), relevance, ks=ks, ties=ties, ndcg_at=ndcg_at)


def both_directions(
    queries: npt.NDArray[np.float32], gallery: npt.NDArray[np.float32], relevance: Relevance, **settings: Any
) -> tuple[RetrievalMetrics, RetrievalMetrics]:
    """Query to gallery, then gallery to query; settings as in :func:`retrieval_metrics`."""
    there = retrieval_metrics(queries, gallery, relevance, **settings)
    return there, retrieval_metrics(gallery, queries, relevance.transposed(), **settings)


def chance(relevance: Relevance, *, ks: Sequence[int] = (1, 5, 10), ndcg_at: int = 10) -> RetrievalMetrics:
    """Measures of a random order, exactly: what constant vectors score."""
    query, _ = relevance.rows(0, len(relevance))
    level = np.full(len(query), relevance.gallery, np.int64)
    where = Places(query, np.zeros_like(query), level, np.zeros_like(query))
    parts = block_measures(where, len(relevance), 0, relevance.gallery, (tuple(ks), ndcg_at, "expected"))
    return _summary([parts], relevance, (tuple(ks), ndcg_at, "expected"))


def rank_metrics(
    scores: Iterable[tuple[int, Scores]],
    relevance: Relevance,
    *,
    ks: Sequence[int] = (1, 5, 10),
    ties: Ties = "expected",
    ndcg_at: int = 10,
) -> RetrievalMetrics:
    """Measures from any scores: blocks (number of the first query, (B, G)), higher is better, no NaN."""
    if ties not in get_args(Ties) or not ks or min(ks) < 1 or ndcg_at < 1:
        raise CmcrError(
            f"ties is {ties!r} and cut-offs are {list(ks)}", todo="ties: expected or optimistic; cut-offs from 1"
        )
    settings: Settings = (tuple(ks), ndcg_at, ties)
    parts = list(_measured(scores, relevance, settings))
    return _summary(parts, relevance, settings)


def _measured(scores: Iterable[tuple[int, Scores]], relevance: Relevance, settings: Settings) -> Iterator[PerQuery]:
    for start, block in scores:
        query, item = relevance.rows(start, start + block.shape[0])
        where = places(block, query, item, in_order=settings[2] == "optimistic")
        yield block_measures(where, block.shape[0], start, relevance.gallery, settings)


def _summary(parts: Sequence[PerQuery], relevance: Relevance, settings: Settings) -> RetrievalMetrics:
    """Means over the queries that have a relevant item."""
    ks, ndcg_at, ties = settings
    names = ("query", "recall", "precision", "ap", "first", "rr", "ndcg")
    queries = int((relevance.counts() > 0).sum())
    if not queries:
        raise CmcrError(
            "no query has a relevant item in the gallery",
            todo="check keys, pairs or labels: equal keys are relevant unless pairs or a label field say otherwise",
        )
    every = PerQuery(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
    return RetrievalMetrics(
        queries=queries,
        skipped=len(relevance) - queries,
        gallery=relevance.gallery,
        ties=ties,
        recall=dict(zip(ks, map(float, every.recall.mean(0)), strict=True)),
        precision=dict(zip(ks, map(float, every.precision.mean(0)), strict=True)),
        mean_average_precision=float(every.ap.mean()),
        mean_reciprocal_rank=float(every.rr.mean()),
        median_rank=float(np.median(every.first)),
        ndcg=float(every.ndcg.mean()),
        ndcg_at=ndcg_at,
        macro=_macro(every, relevance, ks),
        per_query=every,
    )


def _macro(every: PerQuery, relevance: Relevance, ks: Sequence[int]) -> dict[str, float]:
    """Mean over the queries of a class, then over the classes that have any."""
    if relevance.classes is None:
        return {}
    groups = relevance.query_groups[every.query]
    counts = np.bincount(groups, minlength=len(relevance.classes))
    present = counts > 0

    def macro(values: Floats) -> float:
        return float((np.bincount(groups, values, minlength=len(counts))[present] / counts[present]).mean())

    return {"macro_mAP": macro(every.ap), **{f"macro_P@{k}": macro(every.precision[:, i]) for i, k in enumerate(ks)}}
