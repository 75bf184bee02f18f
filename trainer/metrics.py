"""Retrieval measures over blocks of queries, ties at their expectation; each is defined in ``docs/metrics.md``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ..cache.errors import CmcrError
from .measures import Floats, PerQuery, Settings, Ties, block_measures
from .ranking import FEW, Places, Relevance, Scores, places
from .scoring import Rows, as_rows, score_blocks, tiled_places

Vectors = npt.NDArray[np.float32]
# Scores, and relevant pairs, of the blocks of whole rows: 2^24 in float32 are 64 MB.
_SCORES, _PAIRS = 1 << 24, 1 << 20


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
    true_recall : mapping of int to float
        Mean share of a query's relevant items that are among the first k; R@k where each query has one.
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
    true_recall: Mapping[int, float]
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
            **{f"true_R@{k}": value for k, value in self.true_recall.items()},
            **{f"P@{k}": value for k, value in self.precision.items()},
            **self.macro,
            "queries": self.queries,
            "skipped": self.skipped,
            "gallery": self.gallery,
            "ties": self.ties,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RetrievalMetrics:
        """Measures from what :meth:`to_json` gave; those of single queries are not part of it, and empty here."""

        def cuts(prefix: str) -> dict[int, float]:
            found = {name: value for name, value in record.items() if name.startswith(f"{prefix}@")}
            return {int(name.rpartition("@")[2]): value for name, value in found.items()}

        recall, ((ndcg_at, ndcg),) = cuts("R"), cuts("nDCG").items()
        none, wide = np.empty(0), np.empty((0, len(recall)))
        return cls(
            queries=record["queries"],
            skipped=record["skipped"],
            gallery=record["gallery"],
            ties=record["ties"],
            recall=dict(sorted(recall.items())),
            true_recall=dict(sorted(cuts("true_R").items())),
            precision=dict(sorted(cuts("P").items())),
            mean_average_precision=record["mAP"],
            mean_reciprocal_rank=record["MRR"],
            median_rank=record["median_rank"],
            ndcg=ndcg,
            ndcg_at=ndcg_at,
            macro={name: value for name, value in record.items() if name.startswith("macro_")},
            per_query=PerQuery(none.astype(np.int64), wide, wide, wide, none, none, none, none),
        )


def retrieval_metrics(
    queries: Vectors | Rows,
    gallery: Vectors | Rows,
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
    queries, gallery : (Q, D) and (G, D), arrays or Rows
        Vectors of the shared space; cosines are computed in float64 and rounded to 2^-24. Rows are read in pieces.
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
        Queries at once.
    device : str
        Where the scores are computed.
    """
    settings = _settings(ks, ndcg_at, ties)
    asking, asked = _checked(queries, gallery, relevance)
    place = _float64_device(device)
    if _is_sparse(relevance):
        in_order = settings[2] == "optimistic"
        there, _ = tiled_places(asking, asked, relevance, block=block, device=place, in_order=in_order, both=False)
        return _of_places(there, relevance, settings)
    most = int(relevance.counts().max(initial=1))
    size = max(1, min(block, _SCORES // max(1, len(asked)), _PAIRS // max(1, most)))
    return _of_blocks(score_blocks(asking, asked, size, place), relevance, settings)


def both_directions(
    queries: Vectors | Rows, gallery: Vectors | Rows, relevance: Relevance, **settings: Any
) -> tuple[RetrievalMetrics, RetrievalMetrics]:
    """Query to gallery, then gallery to query; settings as in :func:`retrieval_metrics`.

    Where relevant items are few, both come from one pass over the scores.
    """
    back = relevance.transposed()
    if not _is_sparse(relevance):
        there = retrieval_metrics(queries, gallery, relevance, **settings)
        return there, retrieval_metrics(gallery, queries, back, **settings)
    cuts = _settings(settings.get("ks", (1, 5, 10)), settings.get("ndcg_at", 10), settings.get("ties", "expected"))
    asking, asked = _checked(queries, gallery, relevance)
    place = _float64_device(settings.get("device", "cpu"))
    in_order, block = cuts[2] == "optimistic", settings.get("block", 1024)
    one, other = tiled_places(asking, asked, relevance, block=block, device=place, in_order=in_order, both=True)
    assert other is not None
    return _of_places(one, relevance, cuts), _of_places(other, back, cuts)


def _is_sparse(relevance: Relevance) -> bool:
    """Whether there are so few relevant pairs that counting for each of them beats sorting whole rows of scores."""
    return int(relevance.counts().sum()) <= FEW * max(len(relevance), relevance.gallery)


def _float64_device(device: str) -> str:
    """The device, or the CPU in place of one that has no float64."""
    return "cpu" if device.startswith("mps") else device


def _checked(queries: Vectors | Rows, gallery: Vectors | Rows, relevance: Relevance) -> tuple[Rows, Rows]:
    asking, asked = as_rows(queries), as_rows(gallery)
    if asking.dim != asked.dim:
        raise CmcrError(
            f"queries ({len(asking)}, {asking.dim}) and gallery ({len(asked)}, {asked.dim}) are not vectors of one "
            "dimension",
            todo="project both through the same connector",
        )
    if (len(asking), len(asked)) != (len(relevance), relevance.gallery):
        raise CmcrError(
            f"relevance is for {len(relevance)} queries and {relevance.gallery} gallery items; "
            f"there are {len(asking)} and {len(asked)}"
        )
    return asking, asked


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
    return _of_blocks(scores, relevance, _settings(ks, ndcg_at, ties))


def _settings(ks: Sequence[int], ndcg_at: int, ties: Ties) -> Settings:
    if ties not in get_args(Ties) or not ks or min(ks) < 1 or ndcg_at < 1:
        raise CmcrError(
            f"ties is {ties!r} and cut-offs are {list(ks)}", todo="ties: expected or optimistic; cut-offs from 1"
        )
    return tuple(ks), ndcg_at, ties


def _of_blocks(scores: Iterable[tuple[int, Scores]], relevance: Relevance, settings: Settings) -> RetrievalMetrics:
    """Measures from blocks of whole rows of scores."""
    parts = []
    for start, block in scores:
        query, item = relevance.rows(start, start + block.shape[0])
        where = places(block, query, item, in_order=settings[2] == "optimistic")
        parts.append(block_measures(where, block.shape[0], start, relevance.gallery, settings))
    return _summary(parts, relevance, settings)


def _of_places(where: Places, relevance: Relevance, settings: Settings) -> RetrievalMetrics:
    """Measures from the places of all relevant pairs at once."""
    part = block_measures(where, len(relevance), 0, relevance.gallery, settings)
    return _summary([part], relevance, settings)


def _summary(parts: Sequence[PerQuery], relevance: Relevance, settings: Settings) -> RetrievalMetrics:
    """Means over the queries that have a relevant item."""
    ks, ndcg_at, ties = settings
    names = ("query", "recall", "true_recall", "precision", "ap", "first", "rr", "ndcg")
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
        true_recall=dict(zip(ks, map(float, every.true_recall.mean(0)), strict=True)),
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
