"""The training loop: what every trained method shares, whatever it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..cache.errors import FitError
from .batches import Batches, Indices
from .checkpoint import restore
from .early_stop import EarlyStop
from .optim import gradient_norm, learning_rate, make_optimiser, set_lr
from .ranks import ALONE, Ranks
from .shared_norm import shared_norms

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .early_stop import Validator
    from .methods.base import FitRun
    from .settings import FitSettings

_LINES = 50
_CHECKPOINTS = 20
_TELL_SECONDS = 0.25


class Objective(Protocol):
    """What a loop trains: a model, and its loss on some rows.

    Two members more are optional. ``heads``: the heads by space name, where ``model`` is not just that mapping. A
    validation pair is projected through them. ``ranks``: the processes that each batch is shared among. ``loss`` then
    gets the rows of this process, and gives the total of the whole batch, the same number on every process, whose
    gradient here is the part through these rows.
    """

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
    """Train in place by AdamW under the settings' schedule, from the run's checkpoint where it has one.

    Killed and resumed ends in the same bits (CPU, same number of threads and of processes): order and noise are
    functions of the step. With a validation pair in the run the weights end as they scored best on it. Several
    processes (``objective.ranks``) end with the same weights, those of one process but for rounding.

    Raises
    ------
    FitError
        The loss or a gradient is not finite: names the step, keys of the batch and the likely cause. Or a process of
        several is gone.
    """
    ranks = _ranks(objective)
    if getattr(run, "ranks", ALONE).size != ranks.size:
        raise FitError(
            f"this objective does not share its batches among {run.ranks.size} processes",  # type: ignore[attr-defined]
            where=type(objective).__qualname__,
            todo="give it the ranks of the run, or leave distributed out of its method",
        )
    ranks.meet()
    with shared_norms(objective.model, ranks):
        _train(objective, batches, settings, run)
    objective.model.eval()


def _ranks(objective: Objective) -> Ranks:
    """The processes that share the batches of an objective."""
    ranks: Ranks = getattr(objective, "ranks", ALONE)
    return ranks


def _train(objective: Objective, batches: Batches, settings: FitSettings, run: FitRun) -> None:
    """:func:`train`, its batch norms in place."""
    model = objective.model
    optimiser = make_optimiser(model, settings.lr, settings.weight_decay)
    steps = settings.epochs * batches.per_epoch
    log_every = settings.log_every or max(1, steps // _LINES)
    save_every = settings.checkpoint_every or max(1, steps // _CHECKPOINTS)
    checkpoint = run.resume()
    if checkpoint is not None:
        restore(checkpoint, model, optimiser)
    done = 0 if checkpoint is None else checkpoint.step
    _ranks(objective).agree("steps done", done, "put the output on a file system that all processes share")
    watch = Watch.of(run, objective, settings.validate_every or batches.per_epoch, checkpoint)
    pace = Pace(done, steps, batches.size)
    model.train()
    order_epoch, order = -1, None
    for step in range(done, steps):
        if watch is not None and watch.early.over(settings.patience):
            break
        epoch, part = batches.slice_of(step)
        if order is None or epoch != order_epoch:
            order_epoch, order = epoch, batches.order(epoch)
        rate = learning_rate(settings, step, steps)
        record = train_step(objective, optimiser, order[part], step, rate, settings.clip_grad)
        last = step + 1 == steps
        looked = {} if watch is None else watch.look(step + 1, last=last)
        logged = (step + 1) % log_every == 0 or last or bool(looked)
        if logged or pace.due():
            line = {"step": step + 1, "epoch": epoch + 1, "lr": rate, **{k: float(v) for k, v in record.items()}}
            line |= looked
            if logged:
                run.log(line)
            run.advance(step + 1, steps, {**line, **pace.after(step + 1)})
        if (step + 1) % save_every == 0 and not last:
            if watch is None:
                run.save(step + 1, model, optimiser)
            else:
                run.save(step + 1, model, optimiser, watch.early)
    if watch is not None:
        watch.keep_best(run)


class Pace:
    """How fast the steps of this process go; for people, never for a file that a fit leaves."""

    def __init__(self, done: int, steps: int, batch: int) -> None:
        self._first, self._steps, self._batch = done, steps, batch
        self._start = self._told = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to tell."""
        return time.monotonic() - self._told > _TELL_SECONDS

    def after(self, step: int) -> dict[str, float]:
        """``samples_per_second`` and ``seconds_left`` after so many steps."""
        self._told = time.monotonic()
        seconds = max(self._told - self._start, 1e-9) / max(step - self._first, 1)
        return {"samples_per_second": self._batch / seconds, "seconds_left": seconds * (self._steps - step)}


class Watch:
    """Early stopping within a loop: the validator, its rhythm and what it has seen."""

    def __init__(self, validator: Validator, objective: Objective, every: int, early: EarlyStop) -> None:
        self.early = early
        self._validator, self._every = validator, every
        self._model = objective.model
        self._ranks = _ranks(objective)
        self._heads: Any = getattr(objective, "heads", objective.model)
        parameter = next(self._model.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device

    @classmethod
    def of(cls, run: FitRun, objective: Objective, every: int, checkpoint: Checkpoint | None) -> Watch | None:
        """None where the run has no validation pair."""
        validator = getattr(run, "validator", None)
        return None if validator is None else cls(validator, objective, every, EarlyStop.resumed(checkpoint))

    def look(self, step: int, *, last: bool) -> dict[str, float]:
        """Score the model where it is time, or at the last step; what to add to the metrics."""
        if step % self._every != 0 and not last:
            return {}
        score: float = self._ranks.first(lambda: self._validator(self._heads, self._device))
        self.early.look(step, score, self._model)
        return {"validation": score, "best_step": self.early.step}

    def keep_best(self, run: FitRun) -> None:
        """Give the model the weights that scored best, and the connector's record where they come from."""
        self._model.load_state_dict(self.early.weights)
        run.chose(validation=round(self.early.score, 6), step=self.early.step)


def train_step(
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    rows: Indices,
    step: int,
    rate: float,
    clip: float | None = None,
) -> dict[str, Tensor]:
    """One step of the optimiser; its losses and its gradient norm before clipping. ``rows`` are the whole batch."""
    ranks = _ranks(objective)
    set_lr(optimiser, rate)
    optimiser.zero_grad(set_to_none=True)
    total, parts = objective.loss(rows[ranks.own], step)
    if not math.isfinite(total.item()):
        raise _not_finite(objective, "loss", {"loss": total, **parts}, rows, step)
    total.backward()  # type: ignore[no-untyped-call]
    ranks.sum_gradients(objective.model)
    norm = gradient_norm(objective.model)
    if not math.isfinite(norm.item()):
        raise _not_finite(objective, "gradient", {"loss": total, **parts}, rows, step)
    if clip is not None:
        nn.utils.clip_grad_norm_(objective.model.parameters(), clip)
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
