"""Batch norm over the rows of all processes: torch's own on GPUs, and one for CPU tensors, which torch's refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .ranks import Ranks


@contextmanager
def shared_norms(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Within the context the batch norms of ``model`` see the rows of all processes; one process changes nothing.

    The layers are exchanged for others on the same tensors, so optimisers, state dicts and other modules that share
    these tensors go on as before, and put back at the end.
    """
    exchanged: list[tuple[nn.Module, str, nn.BatchNorm1d, nn.Module]] = []
    if ranks.size > 1:
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.BatchNorm1d):
                    exchanged.append((parent, name, child, _shared(child, ranks)))
    for parent, name, _, shared in exchanged:
        setattr(parent, name, shared)
    try:
        yield
    finally:
        for parent, name, own, shared in exchanged:
            setattr(parent, name, own.train(shared.training))


def _shared(own: nn.BatchNorm1d, ranks: Ranks) -> nn.Module:
    """A layer over all processes on the tensors of ``own``."""
    shared: nn.Module
    options = (own.num_features, own.eps, own.momentum, own.affine, own.track_running_stats)
    with torch.device("meta"):  # the tensors made here are replaced at once
        shared = nn.SyncBatchNorm(*options) if _is_cuda(own) else SharedBatchNorm(ranks, *options)
    for name, parameter in own.named_parameters(recurse=False):
        setattr(shared, name, parameter)
    for name, buffer in own.named_buffers(recurse=False):
        setattr(shared, name, buffer)
    return shared.train(own.training)


def _is_cuda(module: nn.Module) -> bool:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(tensor.device.type == "cuda" for tensor in tensors)


class SharedBatchNorm(nn.BatchNorm1d):
    """Batch norm of rows (n, D) by the mean and variance of the rows of all processes.

    The statistics are an all-reduce of (sum, square sum, count) in float64, where forming the variance by a difference
    costs no digit of a float32 batch. The gradient goes through them, as it does in one process.
    """

    def __init__(self, ranks: Ranks, *options: Any) -> None:
        super().__init__(*options)
        self._ranks = ranks

    def forward(self, x: Tensor) -> Tensor:
        """Rows (n, D) to rows (n, D)."""
        if not self.training:
            return super().forward(x)
        made: tuple[Tensor, ...] = _Normalised.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, self.eps, self._ranks
        )
        out, mean, variance, count = made
        self._follow(mean, variance, float(count))
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Running statistics, by the rule of torch's batch norms: the unbiased variance, momentum or plain average."""
        if not self.track_running_stats:
            return
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - rate).add_(mean, alpha=rate)
        self.running_var.mul_(1 - rate).add_(variance * (count / max(count - 1, 1.0)), alpha=rate)


class _Normalised(torch.autograd.Function):
    """(x − E x) / √(Var x + eps) · w + b over the rows of all processes (Ioffe and Szegedy, arXiv 1502.03167)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks) -> Any:
        rows = x if x.dtype == torch.float64 else x.float()
        variance, mean = (moment.double() for moment in torch.var_mean(rows, dim=0, correction=0))  # of the rows here
        here = float(len(rows))
        sums = torch.cat([here * mean, here * (variance + mean.square()), mean.new_tensor([here])])  # (2D + 1,)
        total = ranks.sum_(sums)
        count = total[-1]
        mean = total[: len(mean)] / count
        variance = (total[len(mean) : -1] / count - mean.square()).clamp_min_(0)
        mean, variance = mean.to(rows.dtype), variance.to(rows.dtype)
        scale = torch.rsqrt(variance + eps)  # (D,)
        unit = (rows - mean).mul_(scale)  # (n, D)
        out = unit if weight is None else unit * weight
        out = out if bias is None else out + bias
        ctx.save_for_backward(unit, scale, weight)
        ctx.count, ctx.ranks = float(count), ranks
        ctx.mark_non_differentiable(mean, variance, count)
        return out.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        unit, scale, weight = ctx.saved_tensors
        grad = grads[0].to(unit.dtype)  # (n, D)
        of_bias, of_weight = grad.sum(dim=0), (grad * unit).sum(dim=0)  # of the rows here; the loop sums them
        # every process's rows went into the statistics, so what flows back through these is summed here
        through = ctx.ranks.sum_(torch.cat([of_bias, of_weight])) / ctx.count  # (2D,)
        dim = unit.shape[1]
        grad_x = grad - through[:dim] - unit * through[dim:]
        grad_x = grad_x * (scale if weight is None else scale * weight)
        return (
            grad_x.to(grads[0].dtype),
            of_weight if ctx.needs_input_grad[1] else None,
            of_bias if ctx.needs_input_grad[2] else None,
            None,
            None,
        )
