"""The optimiser and the schedule of the learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from .settings import FitSettings


def make_optimiser(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101); matrices decay, biases and scales of batch norms do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr)


def cosine_lr(peak: float, step: int, steps: int) -> float:
    """Learning rate: peak · ½(1 + cos(π step/steps)) (Loshchilov and Hutter, arXiv 1608.03983, equation 5)."""
    return peak * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def learning_rate(settings: FitSettings, step: int, steps: int) -> float:
    """Learning rate of a step (from 0) of so many: a linear rise over the warm-up, then the schedule over the rest.

    The first step of a warm-up of w has lr/w; ``linear`` falls from lr in the first step after it towards 0.
    """
    warm = min(settings.warmup_steps(steps), steps)
    if step < warm:
        return settings.lr * (step + 1) / warm
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "linear":
        return settings.lr * (1.0 - (step - warm) / (steps - warm))
    return cosine_lr(settings.lr, step - warm, steps - warm)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Use this learning rate for all parameters from now on."""
    for group in optimiser.param_groups:
        group["lr"] = lr


def gradient_norm(model: nn.Module) -> torch.Tensor:
    """Euclidean norm over all gradients, a scalar tensor."""
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return torch.stack(norms).norm() if norms else torch.zeros(())
