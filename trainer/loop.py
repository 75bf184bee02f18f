"""The training loop: what every trained method shares, whatever it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from ..cache.errors import FitError
from .batches import Batches, Indices
from .checkpoint import restore
from .optim import cosine_lr, gradient_norm, make_optimiser, set_lr

if TYPE_CHECKING:
    from .methods.base import FitRun
    from .settings import FitSettings

_LINES = 50
_CHECKPOINTS = 20


class Objective(Protocol):
    """What a loop trains: a model, and its loss on some rows."""

    model: nn.Module

    def loss(self, rows: Indices, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The total, a scalar with gradient, and its parts by name; a function of (rows, step, weights) alone."""
        ...

    def bad_rows(self, rows: Indices) -> str | None:
        """Which input vectors of these rows are not finite or are zero, in words; None where all are sound."""
        ...

    def keys(self, rows: Indices) -> list[str]:
        """Keys of rows, for messages."""
        ...


def train(objective: Objective, batches: Batches, settings: FitSettings, run: FitRun) -> None:
    """Train in place by AdamW under a cosine schedule, from the run's checkpoint where it has one.

    Killed and resumed ends in the same bits (CPU, same number of threads): order and noise are functions of the step.

    Raises
    ------
    FitError
        The loss or a gradient is not finite: names the step, keys of the batch and the likely cause.
    """
    model = objective.model
    optimiser = make_optimiser(model, settings.lr, settings.weight_decay)
    steps = settings.epochs * batches.per_epoch
    log_every = settings.log_every or max(1, steps // _LINES)
    save_every = settings.checkpoint_every or max(1, steps // _CHECKPOINTS)
    checkpoint = run.resume()
    if checkpoint is not None:
        restore(checkpoint, model, optimiser)
    done = 0 if checkpoint is None else checkpoint.step
    model.train()
    order_epoch, order = -1, None
    for step in range(done, steps):
        epoch, part = batches.slice_of(step)
        if order is None or epoch != order_epoch:
            order_epoch, order = epoch, batches.order(epoch)
        rate = cosine_lr(settings.lr, step, steps)
        record = _step(objective, optimiser, order[part], step, rate)
        if (step + 1) % log_every == 0 or step + 1 == steps:
            line = {"step": step + 1, "epoch": epoch + 1, "lr": rate, **{k: float(v) for k, v in record.items()}}
            run.log(line)
            run.advance(step + 1, steps, line)
        if (step + 1) % save_every == 0 and step + 1 < steps:
            run.save(step + 1, model, optimiser)
    model.eval()


def _step(
    objective: Objective, optimiser: torch.optim.Optimizer, rows: Indices, step: int, rate: float
) -> dict[str, Tensor]:
    """One step of the optimiser; its losses and gradient norm."""
    set_lr(optimiser, rate)
    optimiser.zero_grad(set_to_none=True)
    total, parts = objective.loss(rows, step)
    if not math.isfinite(total.item()):
        raise _not_finite(objective, "loss", {"loss": total, **parts}, rows, step)
    total.backward()  # type: ignore[no-untyped-call]
    norm = gradient_norm(objective.model)
    if not math.isfinite(norm.item()):
        raise _not_finite(objective, "gradient", {"loss": total, **parts}, rows, step)
    optimiser.step()
    losses = {"loss": total.detach(), **{f"loss_{name}": value.detach() for name, value in parts.items()}}
    return {**losses, "grad_norm": norm}


def _not_finite(objective: Objective, what: str, values: Mapping[str, Tensor], rows: Indices, step: int) -> FitError:
    """The error for a step whose loss or gradient is not finite."""
    shown = ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())
    keys = ", ".join(objective.keys(rows[:3]))
    bad = objective.bad_rows(rows)
    broken = [name for name, p in objective.model.named_parameters() if not bool(torch.isfinite(p).all())]
    if bad is not None:
        cause = f"the input is not sound: {bad}"
        todo = "run cmcr cache verify on the caches of the recipe, and encode those items again"
    elif broken:
        cause = f"the weights {broken[0]} are not finite any more: the steps before were too large"
        todo = "lower lr, or raise tau2 and tau3"
    else:
        cause = "the input and the weights are finite, so a product overflowed: a very small temperature does that"
        todo = "raise tau2 and tau3, lower lr, or fit with precision fp32"
    return FitError(
        f"the {what} is not finite at step {step + 1} ({shown}); likely cause: {cause}",
        where=f"a batch of {len(rows)} rows with the keys {keys}, ...",
        todo=todo,
    )
