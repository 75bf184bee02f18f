"""cmcr compare: what it fits, what it reuses, what a failure and an interruption cost, and what it writes."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import RecipeError
from cmcr.cli import app
from cmcr.pipeline.compare import compare, plan_runs
from cmcr.pipeline.compare_tables import latex, text
from cmcr.pipeline.evaluate import evaluate
from cmcr.trainer.bootstrap import bootstrap
from cmcr.trainer.recipe import load_recipe
from typer.testing import CliRunner

RECIPE = """
[space.clap]
overlap = "words-clap"
bank = "sounds"
[space.clip]
overlap = "words-clip"
bank = "pictures"
[fit]
method = "c-mcr"
epochs = 2
batch_size = 32
hidden = 12
out_dim = 8
tau1 = 0.1
device = "cpu"
[[eval]]
name = "my_pairs"
query = "test-sounds"
gallery = "test-pictures"
ks = [1, 5]
[[damage]]
name = "kinds"
query = "test-sounds"
classes = "kinds"
label = "label"
[compare.ridge-cv]
method = "ridge"
options = { penalty = "auto", folds = 3 }
"""

BROKEN = """
class Broken:
    name = "broken"

    def fit(self, pairs, settings, run):
        raise ValueError("no such luck")
"""


@pytest.fixture
def recipe(make_cache: Callable[..., Any], tmp_path: Path) -> Path:
    """Two toy spaces that see the same meaning, with banks, a paired test set and class names; and its recipe."""
    rng = np.random.default_rng(0)
    views = {"clap": rng.normal(size=(6, 8)), "clip": rng.normal(size=(6, 12))}

    def seen(name: str, meaning: np.ndarray, space: str, **columns: Any) -> None:
        vectors = meaning @ views[space] + 0.3 * rng.normal(size=(len(meaning), views[space].shape[1]))
        make_cache(name, vectors.astype(np.float32), space=space, **columns)

    words, test, kinds = rng.normal(size=(96, 6)), rng.normal(size=(40, 6)), rng.normal(size=(4, 6))
    test += 2 * kinds[np.arange(40) % 4]
    for space in views:
        seen(f"words-{space}", words, space, keys=[f"word-{n}" for n in range(96)])
    seen("sounds", rng.normal(size=(50, 6)), "clap")
    seen("pictures", rng.normal(size=(60, 6)), "clip")
    keys = [f"item-{n}" for n in range(40)]
    seen("test-sounds", test, "clap", keys=keys, meta=[{"label": f"kind {n % 4}"} for n in range(40)])
    seen("test-pictures", test, "clip", keys=keys)
    seen("kinds", kinds, "clap", keys=[f"kind {n}" for n in range(4)])
    (tmp_path / "connect.toml").write_text(RECIPE)
    (tmp_path / "broken.py").write_text(BROKEN)
    return tmp_path / "connect.toml"


def test_figures_are_means_over_seeds_with_intervals_over_queries(recipe: Path, tmp_path: Path) -> None:
    made = compare(recipe, methods=["c-mcr", "procrustes"], seeds=3, output=tmp_path / "out")
    assert made.seeds == {"c-mcr": [0, 1, 2], "procrustes": [0]}  # its seed decides nothing
    there, back = made.figures.parts
    folders = [tmp_path / "out" / f"c-mcr-{seed}" for seed in range(3)]
    asked = {"query": tmp_path / "test-sounds", "gallery": tmp_path / "test-pictures", "ks": (1, 5)}
    reports = [evaluate(connector=folder, **asked) for folder in folders]
    for part, sides in ((there, [r.there for r in reports]), (back, [r.back for r in reports])):
        figure = part.figures["c-mcr"]["R@5"]
        values = [side.recall[5] for side in sides]
        assert figure.values == pytest.approx(values)
        assert (figure.mean, figure.sd) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
        low, high = bootstrap(np.mean([side.per_query.recall[:, 1] for side in sides], axis=0))
        assert (figure.low, figure.high) == (pytest.approx(low[0]), pytest.approx(high[0]))
        assert part.chance["R@5"] == pytest.approx(5 / 40)
    assert there.figures["procrustes"]["R@1"].sd is None
    kinds = made.figures.damage[0]
    assert kinds.after["procrustes"].mean == pytest.approx(kinds.before + kinds.change["procrustes"].mean)
    assert [part.name for part in made.figures.damage] == ["kinds", "clap, overlap to bank", "clip, overlap to bank"]


def test_a_second_run_fits_nothing_and_writes_the_same_bytes(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "out", []
    compare(recipe, methods=["c-mcr", "ridge-cv"], seeds=2, output=out)
    written = {path.name: path.read_bytes() for path in out.glob("comparison.*")}
    assert set(written) == {"comparison.txt", "comparison.csv", "comparison.tex", "comparison.json"}
    assert not any(str(tmp_path).encode() in content for content in written.values())
    shutil.rmtree(out / "c-mcr-1")
    fitted = []
    real = compare.__globals__["fit"]
    monkeypatch.setitem(compare.__globals__, "fit", lambda *a, **k: fitted.append(k["output"]) or real(*a, **k))
    compare(recipe, methods=["c-mcr", "ridge-cv"], seeds=2, output=out, say=said.append)
    assert fitted == [out / "c-mcr-1"]
    assert [": reused" in line for line in said] == [True, False, True]
    assert {path.name: path.read_bytes() for path in out.glob("comparison.*")} == written


def test_an_evaluation_that_is_added_later_costs_no_fit(recipe: Path, tmp_path: Path) -> None:
    compare(recipe, methods=["c-mcr"], output=tmp_path / "out")
    more = '[[eval]]\nname = "second"\nquery = "test-sounds"\ngallery = "test-pictures"\n'
    recipe.write_text(RECIPE + more)
    said: list[str] = []
    made = compare(recipe, methods=["c-mcr"], output=tmp_path / "out", say=said.append)
    assert "reused" in said[0]
    assert [part.name for part in made.figures.parts] == ["my_pairs"] * 2 + ["second"] * 2


def test_other_settings_are_refused_as_a_line_and_replaced_when_told(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare(recipe, methods=["c-mcr", "ridge"], output=out)
    changed = load_recipe(recipe, ["compare.c-mcr.lr=0.01"])
    made = compare(changed, methods=["c-mcr", "ridge"], output=out)
    assert not made.ok
    assert "--overwrite" in str(made.failures[0])
    assert made.seeds == {"c-mcr": [], "ridge": [0]}
    said: list[str] = []
    assert compare(changed, methods=["c-mcr", "ridge"], output=out, overwrite=True, say=said.append).ok
    assert ["reused" in line for line in said] == [False, True]
    assert "lr = 0.01" in (out / "c-mcr-0" / "recipe.toml").read_text()


def test_one_method_failing_is_a_line_and_the_exit_code_is_true(recipe: Path, tmp_path: Path) -> None:
    words = ["compare", "--config", str(recipe), "--methods", "broken.py:Broken,procrustes", "--quiet"]
    result = CliRunner().invoke(app, words, prog_name="cmcr")
    assert result.exit_code == 1
    assert "broken.py:Broken, seed 0, failed" in result.output
    assert "no such luck" in result.output
    record = json.loads((tmp_path / "compare" / "comparison.json").read_text())
    assert list(record["parts"][0]["figures"]) == ["procrustes"]
    assert record["failures"][0]["name"] == "broken.py:Broken"
    good = CliRunner().invoke(app, [*words[:4], "procrustes,identity", "--json"], prog_name="cmcr")
    assert good.exit_code == 0
    assert set(json.loads(good.stdout)["parts"][0]["figures"]) == {"procrustes", "identity"}


def test_ctrl_c_keeps_what_is_done_and_the_fit_goes_on_where_it_stopped(recipe: Path, tmp_path: Path) -> None:
    whole = compare(recipe, methods=["procrustes", "c-mcr"], output=tmp_path / "whole")

    def stop(done: int, total: int, record: Any) -> None:
        if (tmp_path / "out" / "procrustes-0" / "config.json").exists() and done == 3:
            raise KeyboardInterrupt

    settings = load_recipe(recipe, ["compare.c-mcr.checkpoint_every=1", "compare.c-mcr.log_every=1"])
    with pytest.raises(KeyboardInterrupt):
        compare(settings, methods=["procrustes", "c-mcr"], output=tmp_path / "out", progress=stop)
    kept = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (kept["seeds"], kept["missing"]) == ({"procrustes": [0], "c-mcr": []}, 1)
    said: list[str] = []
    again = compare(settings, methods=["procrustes", "c-mcr"], output=tmp_path / "out", say=said.append)
    assert "reused" in said[0]
    assert again.figures.parts[0].figures["c-mcr"]["R@1"] == whole.figures.parts[0].figures["c-mcr"]["R@1"]
    runs = [json.loads(path.read_text()) for path in (tmp_path / "out" / "c-mcr-0" / "runs").iterdir()]
    assert [run["resumed_at"] for run in runs] == [2]  # the checkpoint before the step that was cut off


def test_rows_take_their_settings_from_their_table_and_options_from_their_method(recipe: Path, tmp_path: Path) -> None:
    overrides = ["fit.method=bridge", "fit.options.scale=20.0", "compare.short.method=c-mcr", "compare.short.epochs=1"]
    plan = load_recipe(recipe, overrides)
    runs = plan_runs(plan, tmp_path, ["bridge", "ridge-cv", "ridge", "short"], 2)
    fits = {(run.name, run.seed): run.recipe.fit for run in runs}
    assert list(fits) == [("bridge", 0), ("ridge-cv", 0), ("ridge", 0), ("short", 0), ("short", 1)]
    assert fits["bridge", 0].options == {"scale": 20.0}
    assert fits["ridge-cv", 0].options == {"penalty": "auto", "folds": 3}
    assert fits["ridge", 0].options == {}
    assert (fits["short", 1].method, fits["short", 1].epochs, fits["short", 1].seed) == ("c-mcr", 1, 1)
    assert fits["short", 1].batch_size == 32
    assert [run.name for run in plan_runs(plan, tmp_path, None, 1)] == ["ridge-cv", "short"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"methods": ["rigde"]}, "did you mean 'ridge'"),
        ({"methods": ["ridge", "ridge"]}, "once each"),
        ({"methods": ["ridge"], "seeds": 0}, "at least one"),
        ({"methods": ["a/b.py:C", "a_b.py:C"]}, "share a folder"),
    ],
)
def test_a_wrong_question_is_refused_before_anything_is_fitted(
    recipe: Path, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        compare(recipe, output=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_sets_is_refused(recipe: Path) -> None:
    recipe.write_text(RECIPE[: RECIPE.index("[[eval]]")])
    with pytest.raises(RecipeError, match="nothing to compare on"):
        compare(recipe, methods=["ridge"])


def test_text_csv_and_latex_say_the_same_figures(recipe: Path, tmp_path: Path) -> None:
    made = compare(recipe, methods=["c-mcr", "ridge-cv"], seeds=2, output=tmp_path / "out")
    figures = made.figures
    one = figures.parts[0].figures["c-mcr"]["R@5"]
    shown = f"{100 * one.mean:.1f} ± {100 * one.sd:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"
    lines = text(figures).splitlines()
    assert any(shown in line for line in lines)
    assert max(map(len, lines)) <= 100
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open(encoding="utf-8")))
    (row,) = (r for r in rows if (r["what"], r["method"], r["measure"]) == (figures.parts[0].title, "c-mcr", "R@5"))
    assert [float(row[name]) for name in ("mean", "sd", "low", "high")] == pytest.approx(
        [one.mean, one.sd, one.low, one.high], abs=1e-6
    )
    assert {r["kind"] for r in rows} == {"eval", "damage"}
    source = latex(figures)
    assert source.count("\\toprule") == source.count("\\bottomrule") == 1
    assert shown.replace("±", "$\\pm$") in source
    assert "my\\_pairs" in source
    assert re.search(r"[^\\][_%&#](?=\w)", source.split("\n", 1)[1].replace(" & ", "  ")) is None
    for line in source.splitlines():
        if line.endswith("\\\\") and "multicolumn" not in line:
            assert line.count(" & ") + line.count(" &\\") <= 2
