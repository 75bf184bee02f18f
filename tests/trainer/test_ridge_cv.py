"""Cross-validation of ridge's penalty: the kit's figures, a naive restatement, and what the connector records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import FitError, RecipeError
from cmcr.trainer.connector import Connector
from cmcr.trainer.fit import fit
from cmcr.trainer.methods import base
from cmcr.trainer.methods.ridge_cv import choose_penalty

KIT_GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def pairs_of(one: np.ndarray, two: np.ndarray) -> Any:
    """Row-aligned matrices in the shape of the overlap of two spaces."""

    def source(matrix: np.ndarray) -> Any:
        return SimpleNamespace(dim=matrix.shape[1], rows=lambda rows: matrix[np.asarray(rows)])

    return SimpleNamespace(names=("one", "two"), overlap={"one": source(one), "two": source(two)}, N=len(one))


def naive(x: np.ndarray, y: np.ndarray, penalty: float, folds: int, seed: int, centred: bool) -> float:
    """Share of held-out rows that find themselves first, fold by fold, by solving each ridge problem."""
    fold = np.random.default_rng(seed).permutation(len(x)) % folds
    hits = 0
    for number in range(folds):
        fitted, held = fold != number, fold == number
        mean_x, mean_y = (x[fitted].mean(0), y[fitted].mean(0)) if centred else (0.0, 0.0)
        a, b = x[fitted] - mean_x, y[fitted] - mean_y
        w = np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ b)
        mapped, gallery = (x[held] - mean_x) @ w, y[held] - mean_y
        cosines = (mapped / np.linalg.norm(mapped, axis=1)[:, None]) @ (
            gallery / np.linalg.norm(gallery, axis=1)[:, None]
        ).T
        hits += int((cosines.argmax(1) == np.arange(int(held.sum()))).sum())
    return hits / len(x)


@pytest.mark.parametrize("centred", [False, True])
def test_folds_of_streamed_sums_equal_the_naive_way(
    unit: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch, centred: bool
) -> None:
    x = unit(211, 9).astype(np.float64)
    y = x @ unit(9, 7, seed=1) + 0.4 * unit(211, 7, seed=2) + 0.3
    whole = base.blocks
    monkeypatch.setattr("cmcr.trainer.methods.ridge_cv.blocks", lambda pairs: whole(pairs, 37))
    found = choose_penalty(pairs_of(x, y), (10.0, 0.01, 1.0), 4, centred=centred, seed=5)
    assert found.grid == (0.01, 1.0, 10.0)
    assert found.top1 == pytest.approx([naive(x, y, one, 4, 5, centred) for one in found.grid])
    assert found.penalty == found.grid[int(np.argmax(found.top1))]


def test_only_the_first_rows_of_a_fold_are_scored_where_there_are_many(unit: Callable[..., np.ndarray]) -> None:
    x = unit(100, 5).astype(np.float64)
    found = choose_penalty(pairs_of(x, x @ unit(5, 6, seed=1)), (0.1,), 2, centred=False, seed=0, scored=1)
    assert found.top1 == (1.0,)  # one row among itself


@pytest.mark.kit
@pytest.mark.parametrize(("centred", "chosen"), [(False, 0.03), (True, 0.3)])
def test_the_kits_cross_validation_is_reproduced(kit: Path, centred: bool, chosen: float) -> None:
    names = [np.load(kit / "clip_minilm" / f"{name}.npy") for name in ("names_minilm", "names_clip_text")]
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in names)
    found = choose_penalty(pairs_of(x, y), KIT_GRID, 5, centred=centred, seed=2)
    published = json.loads((kit / "clip_minilm" / "baselines.json").read_text())["ridge_lambda_cv"]
    kind = "centred" if centred else "raw"
    assert found.penalty == published[kind] == chosen
    expected = [published["held_out_name_top1"][f"{kind}_{one:g}"] for one in KIT_GRID]
    assert found.top1 == pytest.approx(expected, abs=7e-4)  # one name is 6.2e-4


def test_the_chosen_penalty_stands_in_the_metrics_and_in_the_connector(world: Path) -> None:
    options = {"penalty": "auto", "grid": [0.1, 10.0, 1000.0]}
    made = fit(world / "recipe.toml", method="ridge", options=options)
    lines = [json.loads(line) for line in (made.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["penalty"] for line in lines] == [0.1, 10.0, 1000.0]
    best = max(lines, key=lambda line: line["held_out_top1"])
    chosen = Connector.load(made.folder).info.made_from["chosen"]
    assert (chosen["penalty"], chosen["held_out_top1"]) == (best["penalty"], best["held_out_top1"])
    fixed = fit(world / "recipe.toml", method="ridge", options={"penalty": best["penalty"]}, output=world / "fixed")
    rows = np.eye(24, dtype=np.float32)
    assert np.array_equal(made.connector.project(rows, "clap"), fixed.connector.project(rows, "clap"))


@pytest.mark.parametrize("options", [{"penalty": 0}, {"penalty": "best"}, {"penalty": "auto", "grid": [1, -1]}])
def test_penalties_that_are_none_are_refused(world: Path, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"penalty|grid"):
        fit(world / "recipe.toml", method="ridge", options=options)


def test_too_few_items_for_the_folds_are_an_error(unit: Callable[..., np.ndarray]) -> None:
    with pytest.raises(FitError, match="too few"):
        choose_penalty(pairs_of(unit(5, 3), unit(5, 3)), (1.0,), 3, centred=False, seed=0)
