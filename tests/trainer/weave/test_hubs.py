"""Hubness: measured as its definition says, corrected where the banks show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from cmcr.trainer.projectors import identity
from cmcr.trainer.weave import hubs as module
from cmcr.trainer.weave.data import Side, WeaveData
from cmcr.trainer.weave.experts import Expert, linear
from cmcr.trainer.weave.hubs import hub_rows, skewness

Data = Callable[..., WeaveData]


@pytest.mark.parametrize("columns", [41, 12, 3])
def test_skewness_is_its_formula(columns: int) -> None:
    scores = np.random.default_rng(0).standard_normal((29, columns)) + np.linspace(0, 2, columns)
    counts = np.zeros(columns)
    for row in scores:
        for place in np.argsort(-row)[:10]:
            counts[place] += 1
    wanted = 0.0
    if counts.std() > 0:
        wanted = ((counts - counts.mean()) ** 3).mean() / counts.std() ** 3
    assert skewness(torch.from_numpy(scores)) == pytest.approx(wanted, abs=1e-9)


def world(hub: float) -> tuple[Expert, WeaveData]:
    """Two banks in one space of ten dimensions, in which some rows of the second lie towards the mean of the first."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(n, 10, generator=generator) for n in (180, 150))
    first += 0.5
    second[:15] = second[:15] * (1 - hub) + hub * 1.5
    units = [torch.nn.functional.normalize(rows, dim=1) for rows in (first, second)]
    sides = [
        Side(name, rows[:20], rows, torch.zeros(10), torch.zeros(10)) for name, rows in zip("ab", units, strict=True)
    ]
    return Expert("linear", (identity(10), identity(10)), {"power": 0.0}), WeaveData(
        (sides[0], sides[1]), np.arange(20)
    )


def test_hubs_are_corrected_and_the_rows_of_the_other_bank_are_kept_for_it() -> None:
    expert, data = world(0.3)
    found = hub_rows(expert, data)
    assert found is not None, "rows near everything are there, and weave corrects for no hubs"
    torch.testing.assert_close(found[0], data.sides[1].bank)
    torch.testing.assert_close(found[1], data.sides[0].bank)


def test_nothing_is_corrected_where_nothing_is_a_hub() -> None:
    expert, data = world(0.0)
    one, two = data.sides
    corners = torch.eye(10).repeat(2, 1)  # each of the ten corners twice on either side: all are equally often near
    level = WeaveData((replace(one, bank=corners), replace(two, bank=corners)), data.rows)
    assert hub_rows(expert, level) is None


def test_the_whole_sample_is_stored_and_tiny_banks_do(make_data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_JUDGED", 7)
    expert, data = world(0.3)
    monkeypatch.setattr(module, "skewness", _falling())
    found = hub_rows(expert, data)
    assert found is not None
    torch.testing.assert_close(found[0], data.sides[1].bank)
    torch.testing.assert_close(found[1], data.sides[0].bank)
    tiny = make_data(rows=16, banks=(2, 3), dims=(2, 2))  # fewer than ten neighbours
    monkeypatch.setattr(module, "skewness", _falling())
    assert hub_rows(linear(tiny, 0.0), tiny) is not None


def _falling() -> Callable[[torch.Tensor], float]:
    """A skewness that the correction halves."""
    values = iter([2.0, 1.0])
    return lambda scores: next(values)
