"""Bootstrap intervals: against the normal approximation, inside classes, seeded, and independent of chunks."""

from __future__ import annotations

import numpy as np
import pytest
from cmcr.cache.errors import CmcrError
from cmcr.trainer import bootstrap as room
from cmcr.trainer.bootstrap import bootstrap, grouped_mean


def test_the_interval_of_many_queries_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(0.4, 0.2, 2000)
    low, high = bootstrap(values, draws=4000)
    error = values.std() / len(values) ** 0.5
    assert low[0] == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high[0] == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_classes_are_given_and_queries_are_drawn_within_them() -> None:
    groups = np.array([0, 0, 0, 1, 3, 3])
    sure = np.array([0.2, 0.2, 0.2, 1.0, 0.6, 0.6])  # the mean differs between classes, not within them
    low, high = bootstrap(sure, groups)
    assert (low[0], high[0]) == (pytest.approx(0.6), pytest.approx(0.6))
    assert grouped_mean(sure, groups) == pytest.approx(0.6)
    plain_low, plain_high = bootstrap(sure)
    assert plain_low[0] < plain_high[0]
    assert grouped_mean(sure) == pytest.approx(sure.mean())


def test_equal_seeds_draw_the_same_queries_for_every_measure() -> None:
    values = np.random.default_rng(1).random((40, 3))
    low, high = bootstrap(values, seed=4)
    for column in range(3):
        one_low, one_high = bootstrap(values[:, column], seed=4)
        assert (one_low[0], one_high[0]) == (pytest.approx(low[column]), pytest.approx(high[column]))
    assert bootstrap(values, seed=5)[0].tolist() != low.tolist()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).random((17, 2))
    whole = bootstrap(values, draws=100)
    monkeypatch.setattr(room, "_DRAWN", 17 * 7)
    parts = bootstrap(values, draws=100)
    assert np.allclose(whole, parts, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"values": []}, {"values": [1.0], "draws": 0}, {"values": [1.0], "level": 1.0}])
def test_nothing_to_draw_from_is_an_error(wrong: dict[str, object]) -> None:
    with pytest.raises(CmcrError, match="no interval"):
        bootstrap(**wrong)  # type: ignore[arg-type]
