"""95% bootstrap intervals of an evaluation's figures over its queries or items; defined in ``docs/metrics.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...trainer.bootstrap import DRAWS, LEVEL, bootstrap
from ...trainer.metrics import RetrievalMetrics
from .localization_measures import Detection, success_auc

Ints = npt.NDArray[np.int64]
Intervals = Mapping[str, tuple[float, float]]
HOW = {"level": LEVEL, "draws": DRAWS, "seed": 0, "kind": "percentile bootstrap over queries or items"}


def retrieval_intervals(metrics: RetrievalMetrics, groups: Ints | None = None) -> dict[str, tuple[float, float]]:
    """Intervals of every measure of one direction that is a mean over queries, named as in ``metrics.to_json()``.

    The median rank has none. Equal draws for all measures.

    Parameters
    ----------
    metrics : RetrievalMetrics
        With the measures of single queries.
    groups : (Q,) int64, optional
        Class of each query, where there are macro measures: queries are drawn within their class for these.
    """
    each = metrics.per_query
    columns = {
        **{f"R@{k}": each.recall[:, n] for n, k in enumerate(metrics.recall)},
        **{f"true_R@{k}": each.true_recall[:, n] for n, k in enumerate(metrics.true_recall)},
        **{f"P@{k}": each.precision[:, n] for n, k in enumerate(metrics.precision)},
        "mAP": each.ap,
        "MRR": each.rr,
        f"nDCG@{metrics.ndcg_at}": each.ndcg,
    }
    found = of_columns(columns)
    if metrics.macro and groups is not None:
        macro = {name: columns[name.removeprefix("macro_")] for name in metrics.macro}
        found |= of_columns(macro, groups[each.query])
    return found


def of_columns(columns: Mapping[str, npt.ArrayLike], groups: Ints | None = None) -> dict[str, tuple[float, float]]:
    """Interval of the mean of each column (Q,), with equal draws."""
    low, high = bootstrap(np.stack([np.asarray(column, np.float64) for column in columns.values()], 1), groups)
    return {name: (float(low[n]), float(high[n])) for n, name in enumerate(columns)}


def localization_intervals(found: Detection) -> dict[str, tuple[float, float]]:
    """Intervals over the audible items. The AUC is a mean over items too: that of each item's own success curve."""
    heard = found.ciou[found.audible]
    curve = np.array([success_auc(heard[n : n + 1]) for n in range(len(heard))])
    return of_columns({"cIoU@0.5": heard >= 0.5, "AUC": curve, "mean cIoU": heard})


def counterfactual_intervals(found: Detection) -> dict[str, tuple[float, float]]:
    """Intervals of AP and the F1 figures: items of both kinds are drawn together and the measure is made anew."""
    rng = np.random.default_rng(0)
    count, draws = len(found.ciou), np.empty((DRAWS, 3))
    for number in range(DRAWS):
        rows = rng.integers(0, count, count)
        drawn = Detection(found.audible[rows], found.ciou[rows], found.confidence[rows])
        draws[number] = drawn.average_precision(), drawn.max_f1(), drawn.max_f1_of_tenths()
    low, high = np.quantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    names = ("AP", "max-F1", "max-F1 of tenths")
    made = {name: (float(low[n]), float(high[n])) for n, name in enumerate(names)}
    return {**made, **localization_intervals(found)}


def to_json(intervals: Intervals) -> dict[str, list[float]]:
    """As a result file holds them: low and high by measure."""
    return {name: [low, high] for name, (low, high) in intervals.items()}


def from_json(record: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """What :func:`to_json` gave."""
    return {name: (float(low), float(high)) for name, (low, high) in record.items()}
