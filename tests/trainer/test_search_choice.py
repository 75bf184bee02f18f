from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache import faiss_index
from cmcr.cache.bank import Bank
from cmcr.cache.errors import FitError, RecipeError
from cmcr.cache.reader import Cache, open_cache
from cmcr.trainer import search_choice
from cmcr.trainer.completed_cache import complete, completed_cache
from cmcr.trainer.completion import complete_rows
from cmcr.trainer.probe import Sharpness, measure_sharpness
from cmcr.trainer.search_choice import CompletionPlan, choose_search, plan_completion
from cmcr.trainer.settings import CompletionSettings
from cmcr.trainer.tau import choose_tau, target_neighbours


@pytest.fixture
def sharp(make_cache: Callable[..., Cache], unit: Callable[..., np.ndarray], tmp_path: Path) -> Path:
    """``texts`` near single rows of ``images``, a bank of 4,000 rows around 400 centres."""
    rng = np.random.default_rng(0)
    images = unit(400, 24, 1)[rng.integers(400, size=4000)] + 0.01 * rng.standard_normal((4000, 24))
    make_cache("images", images.astype(np.float32), modality="image")
    texts = images[:230] + 0.2 * unit(230, 24, 2)
    make_cache("texts", texts.astype(np.float32), shard=100)
    return tmp_path


def both(folder: Path) -> tuple[Cache, Bank]:
    return open_cache(folder / "texts"), Bank([open_cache(folder / "images")])


def probe(folder: Path) -> Sharpness:
    query, bank = both(folder)
    return measure_sharpness(query.read(0, len(query)), bank)


def test_histograms_answer_as_the_scores_do(sharp: Path) -> None:
    query, bank = both(sharp)
    found = probe(sharp)
    queries, rows = query.read(0, 230), bank.rows(np.arange(4000))
    weights = np.exp((queries.astype(np.float64) @ rows.T.astype(np.float64)) / 0.05)
    weights = -np.sort(-weights, axis=1) / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.neighbours(0.05), complete_rows(queries, bank, 0.05).neighbours, rtol=1e-2)
    needed = (weights.cumsum(axis=1) < 1 - 1e-3).sum(axis=1) + 1
    np.testing.assert_allclose(found.massive(0.05, 1e-3), needed, rtol=0.1, atol=3)


def test_an_automatic_temperature_averages_sixteen_rows(sharp: Path) -> None:
    tau = choose_tau(probe(sharp))
    query, bank = both(sharp)
    assert np.median(complete_rows(query.read(0, 230), bank, tau).neighbours) == pytest.approx(16, rel=0.05)
    assert target_neighbours(100) == 10.0
    assert target_neighbours(10**6) == 16.0


def test_what_was_chosen_is_recorded_and_kept_as_the_query_grows(
    sharp: Path, make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = complete(sharp / "texts", sharp / "images", sharp / "done", "auto", seed=3)
    chosen = open_cache(sharp / "done").manifest.made_from["chosen"]
    assert chosen["asked"]["tau"] == "auto"
    assert chosen["plan"]["tau"] == report.tau
    assert "16 bank rows" in report.why[0]
    choose = "cmcr.trainer.completed_cache.plan_completion"
    with monkeypatch.context() as patch:
        patch.setattr(choose, lambda *_: pytest.fail("chosen anew"))
        again = complete(sharp / "texts", sharp / "images", sharp / "done", "auto", seed=3)
    assert (again.shards, again.skipped, again.tau) == (0, 3, report.tau)
    plain = complete(sharp / "texts", sharp / "images", sharp / "plain", report.tau)
    one, other = open_cache(sharp / "done"), open_cache(sharp / "plain")
    assert one.manifest.fingerprint == other.manifest.fingerprint
    assert plain.neighbours == report.neighbours
    np.testing.assert_array_equal(one.read(0, 230), other.read(0, 230))


def test_a_plain_completion_records_no_choice(sharp: Path) -> None:
    complete(sharp / "texts", sharp / "images", sharp / "done")
    made_from = open_cache(sharp / "done").manifest.made_from
    assert set(made_from) == {"query", "bank", "settings"}
    assert made_from["settings"] == {"tau": 0.01, "bank_rows": None, "precision": "fp32", "version": 1}
    assert all(set(record or {}) == {"neighbours"} for record in open_cache(sharp / "done").meta(range(230)))


def test_certified_rows_carry_their_bounds(sharp: Path) -> None:
    report = complete(sharp / "texts", sharp / "images", sharp / "done", 0.02, search="topk", tolerance=0.01)
    assert report.mode == "topk"
    records = open_cache(sharp / "done").meta(range(230))
    assert all(record and record["mass_bound"] >= 0 and record["k"] >= 1 for record in records)
    assert report.certificate["vector_bound"] <= 0.01
    assert "at most" in "\n".join(report.details())


def test_top_k_of_a_flat_softmax_becomes_exact_and_says_so(sharp: Path) -> None:
    report = complete(sharp / "texts", sharp / "images", sharp / "done", 1.0, search="topk")
    assert report.mode == "exact"
    assert "exact completion is cheaper" in report.why[0]
    plain = complete(sharp / "texts", sharp / "images", sharp / "plain", 1.0)
    assert plain.neighbours == report.neighbours


@pytest.mark.parametrize("search", ["ivf", "hnsw"])
def test_approximate_rows_carry_estimates_and_the_measured_error(sharp: Path, search: str) -> None:
    pytest.importorskip("faiss")
    settings = CompletionSettings(search=search, tolerance=0.05, tau=0.01)
    query = open_cache(sharp / "texts")
    done, report = completed_cache(query, [open_cache(sharp / "images")], settings)
    assert report.mode == search
    assert report.error is not None
    assert report.error.p99 <= 0.05
    (record,) = done.meta([7])
    assert record is not None
    assert set(record) == {"neighbours", "k", "mass_estimate", "mass_low", "mass_high"}
    assert record["mass_low"] <= record["mass_estimate"] <= record["mass_high"]
    assert "bound" not in "\n".join(report.details()).replace("no bound", "")
    again, second = completed_cache(query, [open_cache(sharp / "images")], settings)
    assert (again.path, second.shards) == (done.path, 0)
    fresh, _ = completed_cache(query, [open_cache(sharp / "images")], settings, sharp / "elsewhere")
    np.testing.assert_array_equal(fresh.read(0, 230), done.read(0, 230))


def test_bf16_is_measured_against_float64_and_never_called_exact(sharp: Path) -> None:
    report = complete(sharp / "texts", sharp / "images", sharp / "done", 0.05, precision="bf16")
    made_from = open_cache(sharp / "done").manifest.made_from
    assert made_from["settings"]["precision"] == "bf16"
    error = made_from["chosen"]["plan"]["error"]
    assert error["against"] == "float64"
    assert 1e-5 < error["largest"] < 0.5
    assert report.mode == "bf16"
    assert "exact" not in "\n".join(report.details())
    exact = complete_rows(open_cache(sharp / "texts").read(0, 64), both(sharp)[1], 0.05).vectors
    made = open_cache(sharp / "done").read(0, 64, normalize=False)
    assert 0 < np.abs(made - exact).max() < 0.1


def sharpness(cosines: np.ndarray, rows: int, dim: int = 512) -> Sharpness:
    """The histogram of one query whose bank has these cosines, repeated to so many rows."""
    edges = np.linspace(1, -1, 2049)
    counts = np.histogram(-cosines, -edges)[0] * (rows // len(cosines))
    return Sharpness(counts[None].astype(np.int64), (edges[:-1] + edges[1:]) / 2, dim)


def test_auto_takes_lists_for_many_queries_on_a_sharp_bank_and_exact_otherwise() -> None:
    rng = np.random.default_rng(0)
    sharp = sharpness(np.append(rng.normal(0, 0.05, 9990), rng.normal(0.6, 0.05, 10)), 1_000_000)
    flat = sharpness(rng.normal(0, 0.02, 10_000), 1_000_000)
    assert choose_search(sharp, 0.01, 1e-3, 10**6, faiss=True)[0] == "ivf"
    assert choose_search(sharp, 0.01, 1e-3, 100, faiss=True)[0] != "ivf"
    chosen, why = choose_search(sharp, 0.01, 1e-3, 10**6, faiss=False)
    assert chosen != "ivf"
    assert "FAISS is not installed" in why
    chosen, why = choose_search(flat, 0.01, 1e-3, 10**6, faiss=True)
    assert chosen == "exact"
    assert "1,000,000 bank rows" in why


def test_lists_that_cannot_hold_the_tolerance_give_way_to_exact(sharp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    query, bank = both(sharp)
    plan = plan_completion(query, bank, CompletionSettings(search="ivf", tau=0.5))
    assert plan.mode == "exact"
    assert plan.why[0].startswith("exact:")
    assert CompletionPlan.from_record(plan.record()) == plan


def test_an_approximate_index_without_faiss_fails_before_anything_is_written(
    sharp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise faiss_index.MissingExtraError("no FAISS", todo="pip install faiss-cpu")

    monkeypatch.setattr(faiss_index, "load_faiss", missing)
    with pytest.raises(faiss_index.MissingExtraError):
        complete(sharp / "texts", sharp / "images", sharp / "done", search="ivf")
    assert not (sharp / "done").exists()
    monkeypatch.setattr(search_choice, "has_faiss", lambda: False)
    assert complete(sharp / "texts", sharp / "images", sharp / "done", search="auto").mode in ("exact", "topk")


def test_settings_that_do_not_go_together_are_refused(
    sharp: Path, make_cache: Callable[..., Cache], unit: Callable[..., np.ndarray]
) -> None:
    with pytest.raises(RecipeError, match="bf16 goes with every bank row"):
        complete(sharp / "texts", sharp / "images", sharp / "done", search="topk", precision="bf16")
    with pytest.raises(RecipeError, match="tau"):
        complete(sharp / "texts", sharp / "images", sharp / "done", "warm")
    make_cache("none", unit(0, 24))
    with pytest.raises(FitError, match="no query row"):
        complete(sharp / "none", sharp / "images", sharp / "done", "auto")


def test_the_gap_is_that_of_the_means(sharp: Path) -> None:
    query, bank = both(sharp)
    report = complete(sharp / "texts", sharp / "images", sharp / "done")
    one, other = query.read(0, 230).mean(axis=0), bank.rows(np.arange(4000)).mean(axis=0)
    assert report.gap == pytest.approx(np.linalg.norm(one - other), rel=1e-4)
    assert report.gap_cosine == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), rel=1e-3)
    assert report.neighbours_p10 <= report.neighbours <= report.neighbours_p90
