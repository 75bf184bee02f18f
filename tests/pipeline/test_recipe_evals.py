"""The evaluations of a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache.errors import CmcrError
from cmcr.pipeline.evaluate import evaluate
from cmcr.pipeline.recipe_evals import evaluate_recipe
from cmcr.trainer.recipe import Recipe, make_recipe


@pytest.fixture
def recipe(make_cache: Callable[..., Any], tmp_path: Path) -> Recipe:
    """A recipe with an evaluation by keys and one by pairs, on random rows of the two toy spaces."""
    keys = [f"k{n}" for n in range(30)]
    make_cache("sounds", 30, space="clap", keys=keys)
    make_cache("pictures", 30, space="clip", keys=keys[::-1])
    (tmp_path / "pairs.csv").write_text("query,gallery\nk1,k2\nk3,k9\n")
    one = {"name": "by key", "query": "sounds", "gallery": "pictures"}
    tables = {
        "space": {"clap": {"overlap": "x"}, "clip": {"overlap": "y"}},
        "fit": {"method": "ridge", "device": "cpu"},
        "eval": [one, {**one, "name": "by pairs", "pairs": "pairs.csv"}],
    }
    return make_recipe(tables, base=tmp_path)


def test_each_evaluation_is_the_one_that_evaluate_makes(
    recipe: Recipe, make_connector: Callable[..., Any], tmp_path: Path
) -> None:
    folder = make_connector().save(tmp_path / "connector")
    reports = evaluate_recipe(recipe, folder)
    assert [name for name, _ in reports] == ["by key", "by pairs"]
    asked = {"query": tmp_path / "sounds", "gallery": tmp_path / "pictures", "connector": folder}
    assert reports[0][1].to_json() == evaluate(**asked).to_json()
    assert reports[1][1].to_json() == evaluate(**asked, pairs=tmp_path / "pairs.csv").to_json()
    written = json.loads((folder / "eval.json").read_text())
    assert written["evals"] == [{"name": name, **report.to_json()} for name, report in reports]
    first = (folder / "eval.json").read_bytes()
    assert str(tmp_path).encode() not in first
    evaluate_recipe(recipe, folder)
    assert (folder / "eval.json").read_bytes() == first


def test_a_loaded_connector_is_told_where_to_write(
    recipe: Recipe, make_connector: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(CmcrError, match="No folder"):
        evaluate_recipe(recipe, make_connector())
    evaluate_recipe(recipe, make_connector(), output=tmp_path)
    assert (tmp_path / "eval.json").exists()


def test_a_recipe_without_evaluations_writes_nothing(make_connector: Callable[..., Any], tmp_path: Path) -> None:
    bare = make_recipe({"space": {"a": {"overlap": "x"}, "b": {"overlap": "y"}}, "fit": {"method": "ridge"}})
    folder = make_connector().save(tmp_path / "connector")
    assert evaluate_recipe(bare, folder) == []
    assert not (folder / "eval.json").exists()
