"""Hits without near-duplicates: a hit too close to a better one of the same query is passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...cache.errors import CmcrError
from ...cache.vectors import Float32

if TYPE_CHECKING:
    from ..searcher import Rows, Scores, Searcher


ROUNDING = 1e-6  # of a float32 cosine: equal rows are duplicates at 1


def distinct_topk(
    searcher: Searcher, vectors: Float32, k: int, cosine: float, among: Rows | None = None
) -> tuple[list[Scores], list[Rows]]:
    """The k best rows of each query of which none has a cosine of ``cosine`` or more with a better one.

    Answers are taken best first; more are fetched, twice as many each time, until k are kept or all were seen.

    Parameters
    ----------
    searcher : Searcher
    vectors : array (Q, D) float32
        Unit rows.
    k : int
    cosine : float
        Between 0, exclusive, and 1.
    among : array (A,) int64, optional
        Rows that may be returned.

    Returns
    -------
    scores, rows : lists of Q arrays, each at most k long
    """
    if not 0 < cosine <= 1:
        raise CmcrError(f"Near-duplicates have a cosine between 0 and 1, not {cosine}.", todo="for example 0.98")
    total = len(searcher.gallery) if among is None else len(among)
    scores: list[Scores] = [np.empty(0)] * len(vectors)
    rows: list[Rows] = [np.empty(0, np.int64)] * len(vectors)
    open_queries = np.arange(len(vectors))
    fetched = min(total, 4 * k)
    while len(open_queries):
        found_scores, found = searcher.topk(vectors[open_queries], fetched, among)
        still = []
        for query, line, numbers in zip(open_queries.tolist(), found_scores, found, strict=True):
            keep = _distinct(searcher.view.rows(numbers), k, cosine)
            scores[query], rows[query] = line[keep], numbers[keep]
            if len(keep) < k and fetched < total:
                still.append(query)
        open_queries, fetched = np.array(still, np.int64), min(total, 2 * fetched)
    return scores, rows


def _distinct(rows: Float32, k: int, cosine: float) -> list[int]:
    """Places of the first k rows (F, D), best first, that are no near-duplicates of those kept before them."""
    kept: list[int] = []
    for place in range(len(rows)):
        if not kept or float((rows[kept] @ rows[place]).max()) < cosine - ROUNDING:
            kept.append(place)
            if len(kept) == k:
                break
    return kept
