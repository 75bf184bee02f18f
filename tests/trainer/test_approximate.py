from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cmcr.cache.bank import Bank
from cmcr.cache.faiss_index import hnsw_graph, inverted_lists
from cmcr.trainer import approximate
from cmcr.trainer.approximate import bank_sample, complete_hnsw, complete_ivf
from cmcr.trainer.bf16 import measured_error
from cmcr.trainer.completion import complete_rows

pytest.importorskip("faiss")
TAU = 0.02


@pytest.fixture
def sharp(make_cache: Callable[..., object], unit: Callable[..., np.ndarray]) -> tuple[Bank, np.ndarray]:
    """6,007 rows around 300 centres, and 53 queries near some of them."""
    rng = np.random.default_rng(0)
    centres = unit(300, 24, 1)
    rows = centres[rng.integers(300, size=6007)] + 0.02 * rng.standard_normal((6007, 24))
    queries = rows[rng.integers(6007, size=53)] + 0.2 * unit(53, 24, 2)
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    return Bank([make_cache("bank", rows.astype(np.float32), modality="image")]), queries  # type: ignore[list-item]


def test_lists_bring_the_mass_from_a_small_part_of_the_bank(sharp: tuple[Bank, np.ndarray]) -> None:
    bank, queries = sharp
    exact = complete_rows(queries, bank, TAU).vectors
    lists, sample = inverted_lists(bank), bank_sample(bank, 0)
    found = [complete_ivf(queries, bank, lists, sample, TAU, share) for share in (1e-2, 1e-6, 1e-12)]
    shares = [done.k.mean() / len(bank) for done in found]
    errors = [measured_error(done.vectors, exact, "exact").p99 for done in found]
    assert shares == sorted(shares)
    assert shares[1] < 0.2
    assert errors[0] > errors[1] >= errors[2]
    assert errors[2] < 3e-3


def test_visiting_every_list_is_exact_and_leaves_nothing_to_estimate(sharp: tuple[Bank, np.ndarray]) -> None:
    bank, queries = sharp
    exact = complete_rows(queries, bank, TAU)
    done = complete_ivf(queries, bank, inverted_lists(bank), bank_sample(bank, 0), TAU, -1.0)
    np.testing.assert_allclose(done.vectors, exact.vectors, atol=3e-6)
    np.testing.assert_allclose(done.neighbours, exact.neighbours, rtol=1e-3)
    assert (done.k == len(bank)).all()
    assert (done.mass.high == 0).all()


@pytest.mark.parametrize("search", ["ivf", "hnsw"])
def test_the_estimated_mass_is_near_the_true_one_and_its_interval_mostly_holds_it(
    sharp: tuple[Bank, np.ndarray], search: str
) -> None:
    bank, queries = sharp
    tau = 0.2  # much is left out
    sample = bank_sample(bank, 3)
    if search == "ivf":
        done = complete_ivf(queries, bank, inverted_lists(bank), sample, tau, 2e-3)
    else:
        done = complete_hnsw(queries, bank, hnsw_graph(bank), sample, tau, 500)
    scores = queries.astype(np.float64) @ bank.rows(np.arange(len(bank))).astype(np.float64).T / tau
    whole = np.exp(scores).sum(axis=1)
    order = -np.sort(-np.exp(scores), axis=1)
    best = np.take_along_axis(order.cumsum(axis=1), done.k[:, None] - 1, 1)[:, 0] / whole
    truth = 1 - best  # no set of k rows leaves out less
    assert (done.mass.high >= truth - 1e-3).mean() > 0.9
    if search == "hnsw":  # a graph that finds the true neighbours leaves out just that
        inside = (done.mass.low <= truth) & (truth <= done.mass.high)
        assert inside.mean() > 0.8
        np.testing.assert_allclose(done.mass.estimate, truth, atol=0.05)


def test_a_graph_brings_the_nearest_rows(sharp: tuple[Bank, np.ndarray]) -> None:
    bank, queries = sharp
    exact = complete_rows(queries, bank, TAU).vectors
    done = complete_hnsw(queries, bank, hnsw_graph(bank), bank_sample(bank, 0), TAU, 600)
    assert (done.k == 600).all()
    assert measured_error(done.vectors, exact, "exact").median < 1e-3


def test_scores_far_from_their_means_are_summed_with_running_peaks(
    make_cache: Callable[..., object], unit: Callable[..., np.ndarray]
) -> None:
    bank = Bank([make_cache("bank", unit(600, 8), modality="image")])  # type: ignore[list-item]
    queries = unit(9, 8, 3)
    exact = complete_rows(queries, bank, 5e-4)  # cosines differ by up to 4,000 temperatures
    done = complete_ivf(queries, bank, inverted_lists(bank), bank_sample(bank, 0), 5e-4, -1.0)
    np.testing.assert_allclose(done.vectors, exact.vectors, atol=2e-3)
    assert np.isfinite(done.neighbours).all()


def test_many_queries_are_cut_into_passes(sharp: tuple[Bank, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = sharp
    lists, sample = inverted_lists(bank), bank_sample(bank, 0)
    whole = complete_ivf(queries, bank, lists, sample, TAU, 1e-6)
    monkeypatch.setattr(approximate, "_VISITS", 1)
    monkeypatch.setattr(approximate, "_TILE", 20)
    parts = complete_ivf(queries, bank, lists, sample, TAU, 1e-6)
    np.testing.assert_array_equal(parts.k, whole.k)
    np.testing.assert_allclose(parts.vectors, whole.vectors, atol=1e-5)
    np.testing.assert_allclose(parts.mass.high, whole.mass.high, rtol=1e-3, atol=1e-9)
