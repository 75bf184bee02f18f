"""Held-out queries of a gallery, their exact answers, and the recall of an index against them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...cache.bank import sample_rows
from ...cache.errors import CacheError
from ...cache.vectors import Float32, normalize_rows
from ..shared import SharedView
from .choice import EFFORTS
from .faiss_kinds import OpenIndex
from .topk import RunningTopK

K = 10
TIE = 1e-6  # scores of float32 nearer than this are one
BLOCK = 16384
MARGIN = 2.0  # standard errors
FIRST = 256  # queries that reach the target before all are asked


@dataclass(frozen=True)
class HeldOut:
    """Queries and their exact answers.

    Parameters
    ----------
    queries : array (Q, D) float32
        Unit rows.
    scores : array (Q, k) float64
        Exact cosines of the k best rows, falling; NaN where the gallery has fewer.
    rows : array (Q, k) int64
    drawn : int
        Rows that the gallery had when the queries were drawn.
    covered : int
        Rows of the gallery that the answers take into account.
    found : array (Q, k) float64, optional
        Cosines that the index found at ``effort`` among those rows, falling.
    effort : int
    """

    queries: Float32
    scores: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int64]
    drawn: int
    covered: int
    found: npt.NDArray[np.float64] | None = None
    effort: int = 0


def draw(view: SharedView, count: int, seed: int) -> HeldOut:
    """Queries halfway between two rows, drawn from the whole gallery by a seeded rule.

    Queries of another modality lie between the rows rather than around them, where an index misses more: for 36,000
    captions asked with pictures, a graph's recall on these is the pictures' own within half a point at every effort
    from 64 on, while on rows moved by a little noise it is up to fourteen points above it (docs/log.md).
    """
    pairs = sample_rows(len(view), min(2 * count, len(view)), seed)
    pairs = np.random.default_rng([seed, len(view)]).permutation(pairs)
    half = max(1, len(pairs) // 2)
    queries = view.rows(pairs[:half]) + view.rows(pairs[-half:])  # (Q, D); a single row stands for itself
    queries[~queries.any(axis=1)] = 1.0  # opposite rows have nothing between them
    normalize_rows(queries)
    return answered(view, queries, len(view))


def answered(view: SharedView, queries: Float32, drawn: int = 0) -> HeldOut:
    """Exact answers of the queries: one pass over the gallery."""
    k = min(K, len(view))
    empty = HeldOut(queries, np.full((len(queries), k), np.nan), np.full((len(queries), k), -1), drawn, 0)
    return grown(empty, view)


def grown(before: HeldOut, view: SharedView) -> HeldOut:
    """The answers after the gallery was appended to: only the new rows are read."""
    k = min(K, len(view))
    best = RunningTopK(before.queries, k)
    best.resume(before.scores, before.rows)
    for start, block in view.blocks(BLOCK, before.covered):
        best.update(start, block)
    scores, rows = best.result()
    return replace(before, scores=scores, rows=rows, covered=len(view))


@dataclass(frozen=True)
class Measured:
    """What an index finds of the held-out answers at an effort.

    Parameters
    ----------
    effort : int
    recall : float
        Recall@k: the share of the exact k best that is found; a row as good as the k-th counts as found.
    error : float
        Its standard error over the queries.
    found : array (Q, k) float64
        The cosines that were found, falling.
    """

    effort: int
    recall: float
    error: float
    found: npt.NDArray[np.float64]


def measure(index: OpenIndex, truth: HeldOut, effort: int) -> Measured:
    """Ask the index.

    Where it is inverted lists, and what they found at this effort before they grew is known, the newest part is asked
    alone: the other lists are as they were.
    """
    k = truth.scores.shape[1]
    known = truth.found if index.kind == "ivf" and truth.effort == effort else None
    newest = known is not None and len(index.parts) > 1
    scores, rows = index.search(truth.queries, k, effort, newest=newest)
    found = np.where(rows >= 0, scores, -np.inf).astype(np.float64)
    if newest and known is not None:
        found = -np.sort(-np.concatenate([known, found], axis=1), axis=1)[:, :k]
    shares = (found >= truth.scores[:, -1:] - TIE).mean(axis=1)  # (Q,)
    return Measured(effort, float(shares.mean()), float(shares.std() / len(shares) ** 0.5), found)


def tune(index: OpenIndex, truth: HeldOut, target: float, least: int = 0) -> Measured:
    """The least effort of the ladder, from ``least`` on, that reaches the target, and what was measured there.

    It reaches it where recall less two standard errors does: the least of many efforts that reach a number on some
    queries flatters itself on others. Where none does, the most effort and what it reaches.
    """
    steps = [step for step in EFFORTS[index.kind] if step >= least] or [least]
    few = replace(
        truth, queries=truth.queries[:FIRST], scores=truth.scores[:FIRST], rows=truth.rows[:FIRST], found=None
    )
    for step in steps:
        effort = min(step, index.most_effort)
        dear = len(truth.queries) > FIRST and effort not in (truth.effort, index.most_effort) and step != steps[-1]
        if dear and measure(index, few, effort).recall < target:
            continue
        done = measure(index, truth, effort)
        if done.recall - MARGIN * done.error >= target or effort < step:
            break
    return done


def to_bytes(truth: HeldOut) -> bytes:
    """The file of held-out queries: safetensors."""
    from safetensors.numpy import save

    tensors = {
        "queries": truth.queries,
        "scores": truth.scores,
        "rows": truth.rows,
        "counts": np.array([truth.drawn, truth.covered, truth.effort], np.int64),
    }
    if truth.found is not None:
        tensors["found"] = truth.found
    data: bytes = save(tensors)
    return data


def read(path: Path) -> HeldOut:
    """The file of held-out queries.

    Raises
    ------
    CacheError
        It is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
        drawn, covered, *effort = (int(count) for count in found["counts"])  # files of before have no effort
        return HeldOut(
            found["queries"], found["scores"], found["rows"], drawn, covered, found.get("found"), *effort[:1]
        )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CacheError(
            f"The held-out queries of an index cannot be read ({error}).",
            where=str(path),
            todo="delete that file; the index is made again",
        ) from error
