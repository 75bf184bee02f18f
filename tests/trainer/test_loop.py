from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import FitError
from cmcr.trainer.batches import Batches
from cmcr.trainer.checkpoint import Checkpoint, capture
from cmcr.trainer.loop import train
from cmcr.trainer.settings import FitSettings
from torch import nn


class Memory:
    """A run that keeps its lines and checkpoints in memory."""

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self.saved: list[Checkpoint] = []
        self.seen: list[tuple[int, int]] = []
        self._checkpoint = checkpoint

    def log(self, record: Mapping[str, Any]) -> None:
        self.lines.append(json.loads(json.dumps(record)))

    def resume(self) -> Checkpoint | None:
        return self._checkpoint

    def save(self, step: int, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        state = capture(step, "id", model, optimiser)
        clone = [{k: v.clone() for k, v in part.items()} for part in (state.model, state.optimiser)]
        self.saved.append(Checkpoint(step, "id", clone[0], clone[1]))

    def advance(self, done: int, total: int, record: Mapping[str, Any]) -> None:
        self.seen.append((done, total))


class Regression:
    """A small objective whose loss a test can spoil at one step."""

    def __init__(self, *, spoil: dict[int, float] | None = None, bad: str | None = None) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
        self.spoil, self.bad = spoil or {}, bad

    def loss(self, rows: np.ndarray, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x = self.x[torch.from_numpy(rows)]
        error = (self.model(x)[:, 0] - x.sum(1)).square().mean()
        return error * self.spoil.get(step, 1.0), {"part": error}

    def bad_rows(self, rows: np.ndarray) -> str | None:
        return self.bad

    def keys(self, rows: np.ndarray) -> list[str]:
        return [f"key-{row}" for row in rows]


def settings_of(**changes: Any) -> FitSettings:
    return FitSettings(method="m", epochs=6, batch_size=12, lr=0.05, seed=2, **changes)


def test_training_lowers_the_loss_and_logs_it(recwarn: pytest.WarningsRecorder) -> None:
    run, objective = Memory(), Regression()
    train(objective, Batches(50, 12, 2), settings_of(log_every=5), run)
    assert [line["step"] for line in run.lines] == [5, 10, 15, 20, 24]
    assert run.seen[-1] == (24, 24)
    assert set(run.lines[0]) == {"step", "epoch", "lr", "loss", "loss_part", "grad_norm"}
    assert run.lines[-1]["epoch"] == 6
    assert run.lines[-1]["loss"] < 0.3 * run.lines[0]["loss"]
    assert not objective.model.training


@pytest.mark.parametrize("at", [0, 3])
def test_a_resumed_run_ends_in_the_same_bits_with_the_same_lines(at: int) -> None:
    whole, straight = Memory(), Regression()
    train(straight, Batches(50, 12, 2), settings_of(log_every=1, checkpoint_every=5), whole)
    assert [one.step for one in whole.saved] == [5, 10, 15, 20]
    rest, resumed = Memory(whole.saved[at]), Regression()
    with torch.no_grad():
        next(resumed.model.parameters()).fill_(9.0)  # whatever it was, the checkpoint decides
    train(resumed, Batches(50, 12, 2), settings_of(log_every=1, checkpoint_every=5), rest)
    assert rest.lines == whole.lines[whole.saved[at].step :]
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_checkpoint_of_the_last_step_trains_no_more() -> None:
    whole = Memory()
    train(Regression(), Batches(50, 12, 2), settings_of(checkpoint_every=1), whole)
    last = whole.saved[-1]
    run = Memory(Checkpoint(24, "id", last.model, last.optimiser))
    train(Regression(), Batches(50, 12, 2), settings_of(), run)
    assert run.lines == []


@pytest.mark.parametrize(
    ("bad", "cause"),
    [("the overlap of clip has 2 such rows", "the overlap of clip has 2"), (None, "product overflowed")],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_step_keys_and_cause(value: float, bad: str | None, cause: str) -> None:
    run, objective = Memory(), Regression(spoil={7: value}, bad=bad)
    with pytest.raises(FitError, match="at step 8") as error:
        train(objective, Batches(50, 12, 2), settings_of(log_every=1), run)
    first = Batches(50, 12, 2).order(1)[36:]
    text = str(error.value)
    assert f"key-{first[0]}" in text
    assert cause in text
    assert "12 rows" in text
    assert [line["step"] for line in run.lines] == [1, 2, 3, 4, 5, 6, 7]
    assert all(bool(torch.isfinite(p).all()) for p in objective.model.parameters())


def test_weights_that_broke_before_are_named() -> None:
    objective = Regression()
    with torch.no_grad():
        next(objective.model.parameters())[0, 0] = math.inf
    with pytest.raises(FitError, match="not finite any more"):
        train(objective, Batches(50, 12, 2), settings_of(), Memory())


def test_a_clipped_gradient_moves_less_and_the_norm_before_is_logged() -> None:
    lines, weights = {}, {}
    for clip in (None, 1e-9):
        run, objective = Memory(), Regression()
        train(objective, Batches(50, 12, 2), settings_of(log_every=1, clip_grad=clip, weight_decay=0.0), run)
        lines[clip], weights[clip] = run.lines, next(objective.model.parameters()).detach()
    assert lines[1e-9][0]["grad_norm"] == lines[None][0]["grad_norm"] > 0.1
    first = next(Regression().model.parameters()).detach()
    moved = {clip: float((value - first).norm()) for clip, value in weights.items()}
    assert moved[1e-9] < 0.2 * moved[None]  # below Adam's epsilon, so that even its normalised steps are small
