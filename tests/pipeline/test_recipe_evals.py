"""The evaluations and the damage of a recipe."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache.errors import CmcrError
from cmcr.pipeline.evaluate import evaluate
from cmcr.pipeline.recipe_evals import evaluate_recipe
from cmcr.trainer.recipe import Recipe, make_recipe
from rich.console import Console


@pytest.fixture
def recipe(make_cache: Callable[..., Any], tmp_path: Path) -> Recipe:
    """A recipe with evaluations by keys and by pairs and a look at damage, on random rows of the two toy spaces."""
    keys = [f"k{n}" for n in range(30)]
    make_cache("sounds", 30, space="clap", keys=keys, meta=[{"label": f"kind {n % 3}"} for n in range(30)])
    make_cache("pictures", 30, space="clip", keys=keys[::-1])
    make_cache("kinds", 3, space="clap", keys=[f"kind {n}" for n in range(3)])
    make_cache("words", 40, space="clap")
    (tmp_path / "pairs.csv").write_text("query,gallery\nk1,k2\nk3,k9\n")
    one = {"name": "by key", "query": "sounds", "gallery": "pictures"}
    tables = {
        "space": {"clap": {"overlap": "words", "bank": "sounds"}, "clip": {"overlap": "y"}},
        "fit": {"method": "ridge", "device": "cpu"},
        "eval": [one, {**one, "name": "by pairs", "pairs": "pairs.csv"}],
        "damage": [{"name": "kinds of sound", "query": "sounds", "classes": "kinds", "label": "label"}],
    }
    return make_recipe(tables, base=tmp_path)


def test_each_evaluation_is_the_one_that_evaluate_makes(
    recipe: Recipe, make_connector: Callable[..., Any], tmp_path: Path
) -> None:
    folder = make_connector().save(tmp_path / "connector")
    report = evaluate_recipe(recipe, folder)
    asked = {"query": tmp_path / "sounds", "gallery": tmp_path / "pictures", "connector": folder}
    for found, more in zip(report.sets, ({}, {"pairs": tmp_path / "pairs.csv"}), strict=True):
        same = evaluate(**asked, **more)
        assert found.there.metrics.to_json() == same.there.to_json()
        assert found.back.metrics.to_json() == same.back.to_json()
        assert found.there.chance.to_json() == same.chance_there.to_json()
    assert [one.name for one in report.damage] == ["kinds of sound", "clap, overlap to bank"]
    written = json.loads((folder / "eval.json").read_text())
    assert written == json.loads(json.dumps(report.to_json()))
    assert [one["name"] for one in written["evals"]] == ["by key", "by pairs"]
    first = (folder / "eval.json").read_bytes()
    assert str(tmp_path).encode() not in first
    evaluate_recipe(recipe, folder)
    assert (folder / "eval.json").read_bytes() == first


def test_gain_and_damage_are_shown_side_by_side_within_100_columns(
    recipe: Recipe, make_connector: Callable[..., Any], tmp_path: Path
) -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, color_system=None)
    for part in evaluate_recipe(recipe, make_connector().save(tmp_path / "connector")).tables():
        console.print(part)
    text = out.getvalue()
    assert "sounds → pictures" in text
    assert "kinds of sound" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100


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
    assert not evaluate_recipe(bare, folder)
    assert not (folder / "eval.json").exists()
