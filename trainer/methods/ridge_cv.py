"""The penalty of ``ridge`` by cross-validation over the overlap, from streamed sums of each fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...cache.errors import FitError
from .base import Floats, Moments, blocks

if TYPE_CHECKING:
    from ..pairs import Pairs

Ints = npt.NDArray[np.int64]
GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# Held-out items of a fold that are scored at most: the scores of a fold are then at most 32 MB.
_SCORED = 2000


@dataclass(frozen=True)
class CrossValidation:
    """Share of held-out items that are found first, for each penalty of the grid, and the best penalty."""

    grid: tuple[float, ...]
    top1: tuple[float, ...]

    @property
    def penalty(self) -> float:
        """The penalty with the largest share; the smallest of several."""
        return self.grid[int(np.argmax(self.top1))]

    @property
    def at_edge(self) -> bool:
        """Whether a wider grid might hold a better one."""
        return len(self.grid) > 1 and self.penalty in (min(self.grid), max(self.grid))


def choose_penalty(
    pairs: Pairs, grid: Sequence[float], folds: int, *, centred: bool, seed: int, scored: int = _SCORED
) -> CrossValidation:
    """Cross-validate the penalty by held-out retrieval.

    Each fold in turn is left out of the fit. An item of it counts where its row of space 1, mapped, is closer (cosine)
    to its own row of space 2 than to any other row of that fold. Centred, both sides lose the means of the rows that
    were fitted.

    Parameters
    ----------
    pairs : Pairs
    grid : sequence of float
        Penalties, tried in ascending order.
    folds : int
        Item i of a seeded permutation p is in the fold p_i mod ``folds``.
    centred : bool
    seed : int
    scored : int
        Largest number of items of a fold that are scored, against each other; the first ones in the order of the rows.

    Raises
    ------
    FitError
        The overlap has fewer than two items a fold.
    """
    if 2 * folds > pairs.N:
        raise FitError(
            f"{pairs.N} overlap items are too few for {folds} folds",
            where="fit.options.penalty",
            todo='give a number in place of penalty = "auto"',
        )
    fold = np.random.default_rng(seed).permutation(pairs.N) % folds  # (N,)
    parts = _fold_moments(pairs, fold, folds)
    tried = tuple(sorted(set(grid)))
    hits, count = np.zeros(len(tried)), 0
    for number in range(folds):
        rows = np.flatnonzero(fold == number)[:scored]
        hits += _hits(pairs, rows, _sum([part for n, part in enumerate(parts) if n != number]), tried, centred)
        count += len(rows)
    return CrossValidation(tried, tuple(float(share) for share in hits / count))


def _fold_moments(pairs: Pairs, fold: Ints, folds: int) -> list[Moments]:
    """Sums over the rows of each fold, in one pass."""
    first, second = (pairs.overlap[name].dim for name in pairs.names)
    xx, xy = np.zeros((folds, first, first)), np.zeros((folds, first, second))
    x, y = np.zeros((folds, first)), np.zeros((folds, second))
    start = 0
    for a, b in blocks(pairs):
        for number in range(folds):
            mine = fold[start : start + len(a)] == number
            one, two = a[mine], b[mine]  # (b, D1), (b, D2)
            xx[number] += one.T @ one
            xy[number] += one.T @ two
            x[number] += one.sum(0)
            y[number] += two.sum(0)
        start += len(a)
    counts = np.bincount(fold, minlength=folds)
    return [Moments(xx[n], xy[n], x[n] / counts[n], y[n] / counts[n], int(counts[n])) for n in range(folds)]


def _sum(parts: Sequence[Moments]) -> Moments:
    """Sums over several folds."""
    count = sum(part.count for part in parts)
    x, y = (sum(getattr(part, side) * part.count for part in parts) / count for side in "xy")
    return Moments(sum(p.xx for p in parts), sum(p.xy for p in parts), np.asarray(x), np.asarray(y), count)  # type: ignore[arg-type]


def _hits(pairs: Pairs, rows: Ints, fitted: Moments, grid: Sequence[float], centred: bool) -> Floats:
    """Held-out rows that find themselves first, under each penalty (len(grid),).

    One eigendecomposition XᵀX = V diag(s) Vᵀ serves every λ: W = V diag(1/(s + λ)) Vᵀ XᵀY.
    """
    first, second = (pairs.overlap[name].rows(rows).astype(np.float64) for name in pairs.names)  # (n, D1), (n, D2)
    if centred:
        first, second = first - fitted.x, second - fitted.y
        fitted = fitted.centred()
    values, vectors = np.linalg.eigh(fitted.xx)
    turned, target = first @ vectors, vectors.T @ fitted.xy  # (n, D1), (D1, D2)
    gallery = second / np.maximum(np.linalg.norm(second, axis=1, keepdims=True), np.finfo(float).tiny)
    own = np.arange(len(rows))
    found = [((turned / (values + penalty)) @ target @ gallery.T).argmax(1) == own for penalty in grid]  # of (n,)
    return np.array([hit.sum() for hit in found], np.float64)
