"""Looks at a validation pair: the best weights are kept, and a resumed fit stops where an undisturbed one does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cmcr.cache.errors import FitError, RecipeError
from cmcr.cache.reader import open_cache
from cmcr.trainer import loop
from cmcr.trainer.checkpoint import load_checkpoint
from cmcr.trainer.early_stop import EarlyStop
from cmcr.trainer.fit import fit
from cmcr.trainer.recipe import load_recipe
from cmcr.trainer.run_folder import RunFolder
from torch import nn

LOOKS = ['validation.query="dev-clap"', 'validation.gallery="dev-clip"', "fit.validate_every=3"]


@pytest.fixture
def dev(world: Path, make_cache) -> Path:  # type: ignore[no-untyped-def]
    """The world with a validation pair: other views of forty of its items."""
    for name in ("clap", "clip"):
        cache = open_cache(world / f"text-{name}")
        rows = cache.rows(np.arange(40)) + 0.1 * np.random.default_rng(0).standard_normal((40, cache.dim))
        make_cache(f"dev-{name}", rows.astype(np.float32), space=name, modality="text")
    return world


def scores(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["validation"] for line in lines if "validation" in line}


def test_of_equal_scores_the_first_weights_stay_and_looks_without_gain_count() -> None:
    model, early = nn.Linear(1, 1), EarlyStop()
    for step, score in enumerate((0.2, 0.5, 0.5, 0.4), 1):
        with torch.no_grad():
            model.weight.fill_(step)
        early.look(step, score, model)
    assert (early.score, early.step, early.stale) == (0.5, 2, 2)
    assert float(early.weights["weight"]) == 2
    assert early.over(2)
    assert not early.over(3)
    assert not early.over(None)


def test_the_connector_has_the_weights_that_scored_best(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    falling = iter([0.1, 0.7, 0.6, 0.5, 0.4, 0.3])
    kept: dict[int, dict[str, torch.Tensor]] = {}
    real = EarlyStop.look

    def look(self: EarlyStop, step: int, score: float, model: nn.Module) -> None:
        kept[step] = {name: value.clone() for name, value in model.state_dict().items()}
        real(self, step, next(falling), model)

    monkeypatch.setattr(EarlyStop, "look", look)
    result = fit(load_recipe(dev / "recipe.toml", [*LOOKS, "fit.patience=2"]))
    assert sorted(kept) == [3, 6, 9, 12]  # the second look was the best, and two more had no gain: 4 of 16 steps to go
    for name, value in nn.ModuleDict(dict(result.connector.heads)).state_dict().items():
        assert torch.equal(value, kept[6][name]), name
    assert result.connector.info.made_from["chosen"] == {"validation": 0.7, "step": 6}


def test_the_scores_are_those_of_the_ordinary_metrics(dev: Path) -> None:
    from cmcr.trainer.metrics import both_directions
    from cmcr.trainer.ranking import Relevance

    result = fit(load_recipe(dev / "recipe.toml", LOOKS))
    seen = scores(result.folder)
    assert sorted(seen) == [3, 6, 9, 12, 15, 16]
    best = max(seen, key=lambda step: (seen[step], -step))
    assert result.metrics["best_step"] == best
    shared = [
        result.connector.project(open_cache(dev / f"dev-{name}").rows(np.arange(40)), name) for name in ("clap", "clip")
    ]
    there, back = both_directions(*shared, Relevance.paired(40))
    assert seen[best] == pytest.approx(0.5 * (there.mean_average_precision + back.mean_average_precision), abs=1e-9)


class Killed(Exception):
    """Stands for kill -9: nothing is cleaned up after it."""


@pytest.mark.parametrize("at", [5, 8, 13])
def test_a_fit_with_every_setting_killed_at_a_step_ends_in_the_same_files(
    dev: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ["fit.keep=clip", "fit.warmup=0.2", "fit.schedule=linear", "fit.clip_grad=0.5", "fit.chunk=50"]
    recipe = load_recipe(dev / "recipe.toml", [*LOOKS, *every, "fit.patience=50", "fit.lr=0.02"])
    calm = fit(recipe, output=dev / "calm")
    real = loop.train_step

    def dies(*args, **kwargs):  # type: ignore[no-untyped-def]
        if args[3] == at:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", dies)
    with pytest.raises(Killed):
        fit(recipe, output=dev / "torn")
    checkpoint = load_checkpoint(dev / "torn" / "checkpoint.safetensors")
    assert checkpoint is not None
    assert checkpoint.best
    assert RunFolder.steps_done(dev / "torn") == 3 * (at // 3)
    monkeypatch.setattr(loop, "train_step", real)
    torn = fit(recipe, output=dev / "torn")
    for name in ("connector.safetensors", "metrics.jsonl", "config.json", "recipe.toml"):
        assert (torn.folder / name).read_bytes() == (calm.folder / name).read_bytes(), name


def test_another_validation_pair_is_another_fit(dev: Path, make_cache, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    real = loop.train_step

    def dies(*args, **kwargs):  # type: ignore[no-untyped-def]
        if args[3] == 7:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", dies)
    with pytest.raises(Killed):
        fit(load_recipe(dev / "recipe.toml", LOOKS))
    (dev / "dev.csv").write_text("item-000001,item-000002\n")
    with pytest.raises(FitError, match="recipe is another one"):
        fit(load_recipe(dev / "recipe.toml", [*LOOKS, 'validation.pairs="dev.csv"']))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('validation.query="none"', "query: There is no such folder"),
        ('validation.label="kind"', "has the field 'kind'|kind"),
        ('validation.pairs="none.csv"', "file of pairs does not exist"),
    ],
)
def test_a_validation_pair_that_is_not_there_is_named_before_the_fit(dev: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        fit(load_recipe(dev / "recipe.toml", [*LOOKS, change]))
    assert "validation" in str(caught.value.where)
    assert not (dev / "out").exists()
