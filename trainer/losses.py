"""The losses of C-MCR on projected rows, with logits in chunks.

The source is Wang et al., NeurIPS 2023 (arXiv 2305.14381); equations are numbered as in docs/method.md, which names the
parts as the paper does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .ranks import ALONE, Ranks

CHUNK_ELEMENTS = 1 << 21  # logits of a chunk: 8 MB of float32, so the passes over them stay near the caches
KEPT_ELEMENTS = 1 << 25  # logits kept for the backward pass: 128 MB of float32; beyond it they are computed twice


@dataclass(frozen=True)
class _Exponentials:
    """Σ exp(logit − shift) over rows and over columns, and the exponentials themselves where they are kept."""

    shift: float
    row_sum: Tensor  # (n,) of the rows here
    column_sum: Tensor  # (B,) over all rows
    kept: Tensor | None  # (n, B)

    def trustworthy(self, ranks: Ranks = ALONE) -> bool:
        """Whether nothing overflowed and what underflowed is below the rounding of every sum."""
        info = torch.finfo(self.row_sum.dtype)
        least = torch.minimum(self.row_sum.min(), self.column_sum.min())
        most = torch.maximum(self.row_sum.max(), self.column_sum.max())
        return ranks.all_true(bool((least >= info.tiny * len(self.column_sum) / info.eps) & (most <= info.max)))


def _exponentials(a: Tensor, b: Tensor, tau: float, chunk: int, keep: bool, ranks: Ranks = ALONE) -> _Exponentials:
    """One exponential per logit serves both directions: all share one shift, placed as high as the sums stay finite."""
    size = len(b)
    # no logit is larger (Cauchy and Schwarz)
    bound = float(ranks.largest(a.norm(dim=1).max()) * b.norm(dim=1).max()) / tau
    shift = bound - (math.log(torch.finfo(a.dtype).max) - math.log(size) - 1.0)
    row_sum, column_sum = a.new_empty(len(a)), a.new_zeros(size)
    kept = a.new_empty((len(a), size)) if keep else None
    for start in range(0, len(a), chunk):
        rows = slice(start, min(start + chunk, len(a)))
        logits = torch.matmul(a[rows] / tau, b.T, out=None if kept is None else kept[rows])  # (chunk, B)
        logits.sub_(shift).exp_()
        row_sum[rows] = logits.sum(dim=1)
        column_sum.add_(logits.sum(dim=0))
    return _Exponentials(shift, row_sum, ranks.sum_(column_sum), kept)


def _log_sums(a: Tensor, b: Tensor, tau: float, chunk: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """log Σ exp(logit) over rows and columns by running maxima, for logits whose spread one shift cannot hold."""
    row_lse = a.new_empty(len(a))
    column_max, column_sum = a.new_full((len(b),), float("-inf")), a.new_zeros(len(b))
    for start in range(0, len(a), chunk):
        logits = torch.matmul(a[start : start + chunk] / tau, b.T)  # (chunk, B)
        row_lse[start : start + chunk] = torch.logsumexp(logits, dim=1)
        new_max = torch.maximum(column_max, logits.amax(dim=0))
        column_sum.mul_(torch.exp(column_max - new_max)).add_(torch.exp(logits - new_max).sum(dim=0))
        column_max = new_max
    return row_lse, ranks.log_sum(column_max + column_sum.log())


class _SymmetricInfoNCE(torch.autograd.Function):
    """Symmetric InfoNCE whose working memory is a chunk of logits; (B, D), (B, D) -> scalar.

    Among several processes each takes the logits of its rows of ``a`` against all rows of ``b``: (n, B). Row sums are
    then complete, column sums and the gradient of ``b`` are summed over processes.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, tau: float, chunk: int, keep: bool, ranks: Ranks) -> Tensor:
        everyone = ranks.gather(b)  # (B, D)
        sums = _exponentials(a, everyone, tau, chunk, keep, ranks)
        ctx.shift = sums.shift if sums.trustworthy(ranks) else None
        if ctx.shift is None:
            row_lse, column_lse = _log_sums(a, everyone, tau, chunk, ranks)
            ctx.save_for_backward(a, everyone, row_lse, column_lse)
        else:
            row_lse, column_lse = sums.row_sum.log() + ctx.shift, sums.column_sum.log() + ctx.shift
            kept = [] if sums.kept is None else [sums.kept]
            ctx.save_for_backward(a, everyone, sums.row_sum.reciprocal(), sums.column_sum.reciprocal(), *kept)
        ctx.tau, ctx.chunk, ctx.ranks = tau, chunk, ranks
        diagonal = (a * b).sum(dim=1) / tau
        # equations 4 and 5: −½ mean_i [log softmax_j(a_i·b_j/τ)_i + log softmax_j(b_i·a_j/τ)_i]
        return 0.5 * (ranks.mean(row_lse - diagonal) + ranks.mean(column_lse[ranks.own] - diagonal))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors[:2]
        size, tau, first = len(b), ctx.tau, ctx.ranks.own.start or 0
        grad_a, grad_b = torch.empty_like(a), torch.zeros_like(b)
        for start in range(0, len(a), ctx.chunk):
            rows = slice(start, min(start + ctx.chunk, len(a)))
            weights = _softmax_sum(ctx, rows)  # (chunk, B)
            weights.diagonal(offset=first + start).sub_(2.0)
            torch.matmul(weights, b, out=grad_a[rows])
            grad_b.addmm_(weights.T, a[rows])
        scale = grads[0] * (0.5 / (size * tau))  # the mean over rows, the half, and d logits / d(a·b)
        # every process has a part of the gradient of every row of b
        of_b = ctx.ranks.own_of_sum(grad_b).mul_(scale) if ctx.needs_input_grad[1] else None
        return grad_a.mul_(scale), of_b, None, None, None, None


def _softmax_sum(ctx: Any, rows: slice) -> Tensor:
    """softmax over j plus softmax over i of the logits of some rows (chunk, B): one exponential times two scales."""
    a, b, row, column, *kept = ctx.saved_tensors
    if kept:
        weights: Tensor = (row[rows, None] + column).mul_(kept[0][rows])
        return weights
    logits = torch.matmul(a[rows] / ctx.tau, b.T)
    if ctx.shift is not None:
        return logits.sub_(ctx.shift).exp_().mul_(row[rows, None] + column)
    return torch.exp(logits - column).add_(logits.sub_(row[rows, None]).exp_())


def info_nce(a: Tensor, b: Tensor, tau: float, *, chunk: int | None = None, ranks: Ranks = ALONE) -> Tensor:
    """Symmetric InfoNCE between row-aligned unit rows (equations 4 and 5; van den Oord et al., arXiv 1807.03748).

    Parameters
    ----------
    a, b : tensors (B, D)
        Row i of each is a pair; the other rows are its negatives. Half-precision input is raised to float32 first.
    tau : float
        Temperature.
    chunk : int, optional
        Rows whose logits are held at a time; chosen from the size when not given. Memory is O(chunk · B) where the
        logits of the whole batch exceed 128 MB of float32.
    ranks : Ranks
        Among whom the batch is shared; ``a`` and ``b`` are then the rows of this process (n, D).

    Returns
    -------
    scalar tensor
        In natural logarithms, over the whole batch; the same number on every process.
    """
    a, b = _at_least_float32(a), _at_least_float32(b)
    size = ranks.rows_of(a)
    whole = len(a) * size <= KEPT_ELEMENTS and chunk is None
    rows = max(1, CHUNK_ELEMENTS // size) if chunk is None else chunk
    loss: Tensor = _SymmetricInfoNCE.apply(a, b, tau, rows, whole, ranks)  # type: ignore[no-untyped-call]
    return loss


def logits_bytes(size: int, chunk: int | None = None) -> int:
    """What the logits of one loss take in float32 for a batch of so many rows: kept between the passes, or a chunk."""
    if chunk is None and size * size <= KEPT_ELEMENTS:
        return 4 * size * size
    return 4 * size * min(size, chunk or max(1, CHUNK_ELEMENTS // size))


def intra(t: Tensor, x: Tensor, kind: Literal["plain", "squared"] = "plain", ranks: Ranks = ALONE) -> Tensor:
    """Mean distance between the overlap row and the completed row of one space (equation 6: attraction, no repulsion).

    Parameters
    ----------
    t, x : tensors (B, D)
        Projected unit rows.
    kind : str
        ``plain`` for mean_i ‖t_i − x_i‖, ``squared`` for mean_i ‖t_i − x_i‖².
    ranks : Ranks
        Among whom the batch is shared; the mean is over all of it.
    """
    squares = (_at_least_float32(t) - _at_least_float32(x)).square().sum(dim=1)  # (B,)
    if kind == "squared":
        return ranks.mean(squares)
    # The distance has no gradient at 0; the least normal number keeps it finite there and changes no other value.
    return ranks.mean(squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt())


@dataclass(frozen=True)
class LossWeights:
    """Temperatures and weights of the total: τ2, τ3, λ and the form of the intra term; rows of a chunk of logits."""

    tau2: float = 0.01
    tau3: float = 0.01
    lambda_intra: float = 0.1
    intra: Literal["plain", "squared"] = "plain"
    chunk: int | None = None


def cmcr_loss(
    overlap: tuple[Tensor, Tensor],
    completed: tuple[Tensor | None, Tensor | None],
    weights: LossWeights = LossWeights(),
    ranks: Ranks = ALONE,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss of C-MCR on projected rows, which are normalised here (equation 7: L = L_o + L_c + λ L_a).

    Parameters
    ----------
    overlap : two tensors (B, D)
        f_s(t_s) of both spaces.
    completed : two tensors (B, D), or None
        f_s(x_s). In a space without a bank the overlap rows stand in for it in L_c, and its half of L_a is left out;
        with no bank at all L = L_o.
    weights : LossWeights
    ranks : Ranks
        Among whom the batch is shared; the tensors hold the rows of this process.

    Returns
    -------
    (scalar tensor, dict of scalar tensors)
        The total and its parts ``overlap``, ``completed``, ``intra``.
    """
    t1, t2 = (_unit(rows) for rows in overlap)
    # L_o, equation 4: inter-MCR, overlap
    total = info_nce(t1, t2, weights.tau2, chunk=weights.chunk, ranks=ranks)
    parts = {"overlap": total}
    if completed[0] is None and completed[1] is None:
        return total, parts
    x1, x2 = (t if x is None else _unit(x) for t, x in zip((t1, t2), completed, strict=True))
    parts["completed"] = info_nce(
        x1, x2, weights.tau3, chunk=weights.chunk, ranks=ranks
    )  # L_c, equation 5: inter-MCR, completed
    attractions = [
        intra(t, x, weights.intra, ranks)
        for t, x, given in zip((t1, t2), (x1, x2), completed, strict=True)
        if given is not None
    ]
    parts["intra"] = 0.5 * torch.stack(attractions).sum()  # L_a, equation 6: intra-MCR
    return total + parts["completed"] + weights.lambda_intra * parts["intra"], parts  # L, equation 7


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(_at_least_float32(rows), dim=1)


def _at_least_float32(rows: Tensor) -> Tensor:
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
