"""Percentile bootstrap intervals of means over queries, seeded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..cache.errors import CmcrError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
DRAWS, LEVEL = 1000, 0.95
# Rows drawn at once: 2^21 numbers are 16 MB.
_DRAWN = 1 << 21


def bootstrap(
    values: npt.ArrayLike,
    groups: Ints | None = None,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Interval of each column's mean, by drawing queries with repetition.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (percentile interval). With groups the
    mean is over the queries of a group, then over the groups, and queries are drawn within their group: the groups are
    given, not sampled. Equal seeds draw the same queries, so intervals of differences can be made of differences.

    Parameters
    ----------
    values : (Q,) or (Q, M)
        One measure, or several, of each query.
    groups : (Q,) int64, optional
        Class of each query.
    draws : int
    level : float
        Share of the draws that the interval holds, between 0 and 1.
    seed : int

    Returns
    -------
    low, high : (M,) float64
        (1,) for one measure.
    """
    table = np.asarray(values, np.float64)
    table = table[:, None] if table.ndim == 1 else table  # (Q, M)
    if not len(table) or draws < 1 or not 0 < level < 1:
        raise CmcrError(f"no interval from {len(table)} queries, {draws} draws, level {level}")
    rng = np.random.default_rng(seed)
    every = np.zeros(len(table), np.int64) if groups is None else groups
    order = np.argsort(every, kind="stable")  # one pass, however many groups there are
    members = np.split(order, np.flatnonzero(np.diff(every[order])) + 1)
    means = np.zeros((draws, table.shape[1]))  # (draws, M)
    for rows in members:
        means += _drawn_means(table[rows], draws, rng) / len(members)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2), axis=0)
    return low, high


def grouped_mean(values: npt.ArrayLike, groups: Ints | None = None) -> float:
    """Mean over queries, or over the queries of a group and then over the groups."""
    plain = np.asarray(values, np.float64)
    if groups is None:
        return float(plain.mean())
    return float(np.mean([plain[groups == number].mean() for number in np.unique(groups)]))


def _drawn_means(values: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Means of as many rows as there are, drawn with repetition (draws, M)."""
    count = len(values)
    means = np.empty((draws, values.shape[1]))
    step = max(1, _DRAWN // count)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        rows = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]  # (size, count)
        times = np.bincount(rows.ravel(), minlength=size * count).reshape(size, count)
        means[start : start + size] = times @ values / count
    return means
