from __future__ import annotations

import numpy as np
import pytest
from cmcr.trainer.missing_mass import estimate_mass, mass_bound, rounded_up, score_slack, smallest_k, vector_bound
from hypothesis import given, settings
from hypothesis import strategies as st


@given(value=st.floats(0, 1e6, allow_subnormal=False), digits=st.integers(2, 8))
def test_a_rounded_bound_is_never_below_the_bound(value: float, digits: int) -> None:
    assert value <= rounded_up(value, digits) <= value * (1 + 11 * 10.0**-digits) or value == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 300), tau=st.sampled_from([0.01, 0.05, 0.5]), data=st.data())
def test_the_mass_left_out_is_never_above_its_bound(seed: int, rows: int, tau: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, rows - 1))
    scaled = np.sort(np.random.default_rng(seed).uniform(-1, 1, rows) / tau)[::-1]
    weights = np.exp(scaled - scaled[0])
    missing = weights[k:].sum() / weights.sum()
    bound = float(mass_bound(weights[:k].sum(), scaled[k - 1] - scaled[0], rows - k))
    assert missing <= bound <= 1
    tied = np.concatenate([scaled[:k], np.full(rows - k, scaled[k - 1])])  # the worst case: the bound is reached
    weights = np.exp(tied - tied[0])
    assert float(mass_bound(weights[:k].sum(), tied[k - 1] - tied[0], rows - k)) == pytest.approx(
        weights[k:].sum() / weights.sum(), rel=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(kept=st.integers(1, 400), left=st.integers(1, 400), degrees=st.floats(1, 89), apart=st.floats(0, 20))
def test_no_unit_vector_is_further_off_than_its_bound(kept: int, left: int, degrees: float, apart: float) -> None:
    angle = np.radians(degrees)  # kept rows on one side of the query, those left out on the other, `apart` below
    one, other = np.array([np.cos(angle), np.sin(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    rest = left * np.exp(-apart)
    whole = kept * one + rest * other
    off = np.linalg.norm(whole / np.linalg.norm(whole) - one)
    bound = float(vector_bound(mass_bound(float(kept), -apart, left), 1.0))
    assert off <= bound, f"the vector is off by {off:.2e}, its certificate says {bound:.2e}"


def test_the_slack_covers_float32_products_in_any_order_of_summation() -> None:
    rng = np.random.default_rng(0)
    for dim in (3, 64, 512):
        one, other = (rng.standard_normal((400, dim)) for _ in range(2))
        one, other = (
            (part / np.linalg.norm(part, axis=1, keepdims=True)).astype(np.float32)
            for part in (one, one + 1e-3 * other)
        )
        true = (one.astype(np.float64) * other).sum(axis=1)
        forward = np.zeros(400, np.float32)
        for column in range(dim):  # one after the other: the worst order there is
            forward += one[:, column] * other[:, column]
        assert np.abs(forward - true).max() <= score_slack(dim)


def test_the_smallest_k_holds_and_one_less_does_not() -> None:
    cosines = np.sort(np.random.default_rng(3).uniform(0.2, 0.6, 500))[::-1]
    scaled, tolerance = cosines / 0.01, 1e-3

    def bound(k: int) -> float:
        weights = np.exp(scaled[:k] - scaled[0])
        mass = mass_bound(weights.sum(), scaled[k] - scaled[0], 10_000 - k)
        return float(vector_bound(mass, (weights @ cosines[:k]) / weights.sum()))

    k = smallest_k(scaled, 0.0, cosines, 10_000, 0.0, tolerance)
    assert 1 < k < 500
    assert bound(k) <= tolerance < bound(k - 1)
    assert (
        smallest_k(scaled, 0.0, -cosines[::-1], 10_000, 0.0, tolerance) == 0
    )  # no lower bound of the length: no certificate


def test_the_interval_holds_the_missing_mass_in_most_draws() -> None:
    rng = np.random.default_rng(1)
    weights = rng.exponential(size=20_000)
    held, total = 0, 5_000.0
    for _ in range(200):
        drawn = rng.choice(weights, 500, replace=False)
        found = estimate_mass(
            np.array([total]), np.array([drawn.sum()]), np.array([np.square(drawn).sum()]), np.array([500.0]),
            np.array([20_000.0]),
        )  # fmt: skip
        assert found.low[0] <= found.estimate[0] <= found.high[0]
        held += found.low[0] <= weights.sum() / (total + weights.sum()) <= found.high[0]
    assert 180 <= held <= 200


def test_an_estimate_of_everything_is_sure_and_one_of_nothing_knows_nothing() -> None:
    weights = np.array([1.0, 2.0, 3.0])
    whole = estimate_mass(
        np.array([4.0]), weights[None].sum(1), np.square(weights)[None].sum(1), np.array([3.0]), np.array([3.0])
    )
    assert whole.low[0] == whole.high[0] == pytest.approx(0.6)
    none = estimate_mass(np.array([4.0]), np.zeros(1), np.zeros(1), np.zeros(1), np.array([7.0]))
    assert (none.low[0], none.high[0]) == (0.0, 1.0)
