from __future__ import annotations

from typing import Any

import pytest
import torch
from cmcr.trainer.optim import cosine_lr, gradient_norm, learning_rate, make_optimiser, set_lr
from cmcr.trainer.settings import FitSettings
from torch import nn


def test_matrices_decay_and_vectors_do_not() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimiser = make_optimiser(model, 1e-3, 0.05)
    decays = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert {p.ndim: decays[id(p)] for p in model.parameters()} == {2: 0.05, 1: 0.0}
    set_lr(optimiser, 0.5)
    assert {group["lr"] for group in optimiser.param_groups} == {0.5}


def test_the_schedule_falls_from_the_peak_to_almost_nothing() -> None:
    rates = [cosine_lr(2.0, step, 10) for step in range(10)]
    assert rates[0] == 2.0
    assert rates[5] == pytest.approx(1.0)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.1


def rates(**settings: Any) -> list[float]:
    chosen = FitSettings(method="m", lr=2.0, **settings)
    return [learning_rate(chosen, step, 10) for step in range(10)]


def test_a_warm_up_rises_linearly_to_the_peak_and_the_schedule_takes_the_rest() -> None:
    assert rates() == [cosine_lr(2.0, step, 10) for step in range(10)]
    assert rates(schedule="constant", warmup=4) == [0.5, 1.0, 1.5, *[2.0] * 7]
    assert rates(schedule="linear", warmup=0.2) == pytest.approx([1.0, 2.0, *(2.0 * (1 - k / 8) for k in range(8))])
    assert rates(warmup=5)[5:] == [cosine_lr(2.0, step, 5) for step in range(5)]
    assert rates(warmup=99) == pytest.approx([0.2 * (k + 1) for k in range(10)])


def test_the_gradient_norm_is_over_all_parameters() -> None:
    model = nn.Linear(2, 1)
    assert float(gradient_norm(model)) == 0
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    assert float(gradient_norm(model)) == 5
