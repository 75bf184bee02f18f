"""The plan of a fit: true counts, nothing written, refusals of the fit itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache.errors import FitError, RecipeError
from cmcr.pipeline.terminal import plan_lines
from cmcr.trainer.connector import Connector
from cmcr.trainer.fit import fit
from cmcr.trainer.plan_fit import plan_fit


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_plan_counts_what_the_fit_then_does_and_writes_nothing(world: Path) -> None:
    before = content(world)
    plan = plan_fit(world / "recipe.toml")
    assert content(world) == before
    assert (plan.rows, plan.joined.matched, plan.batch_size, plan.steps) == (600, 600, 128, 16)
    assert [(s.name, s.dim, s.bank_rows, s.completion, s.to_complete) for s in plan.spaces] == [
        ("clap", 24, 150, "make", 600),
        ("clip", 20, 150, "make", 600),
    ]
    made = fit(world / "recipe.toml")
    heads = Connector.load(made.folder).heads.values()
    assert plan.parameters == sum(p.numel() for head in heads for p in head.parameters())
    assert plan.dim == made.connector.dim
    assert made.metrics["step"] == plan.steps
    again = plan_fit(world / "recipe.toml", output=world / "other", keep="clip")
    assert [(s.completion, s.to_complete, s.head) for s in again.spaces] == [
        ("reuse", 0, "mlp"),
        ("reuse", 0, "identity"),
    ]
    assert again.dim == 20
    assert not again.completion_seconds
    assert again.fit_seconds is not None
    assert again.fit_seconds > 0


def test_a_query_that_grew_is_planned_to_be_extended(world: Path, make_cache, unit) -> None:  # type: ignore[no-untyped-def]
    from cmcr.trainer.completed_cache import completion_place
    from cmcr.trainer.pairs import load_pairs
    from cmcr.trainer.plan_fit import missing_rows
    from cmcr.trainer.recipe import load_recipe

    pairs = load_pairs(load_recipe(world / "recipe.toml"))
    cache, bank = pairs.overlap["clap"].cache, pairs.bank["clap"]
    assert bank is not None
    place = completion_place(cache, bank, load_recipe(world / "recipe.toml").fit.completion())
    assert missing_rows(cache, place) == 0
    (place / "shards" / "00001.json").unlink()
    assert missing_rows(cache, place) == 256


def test_a_method_in_closed_form_has_no_steps(world: Path) -> None:
    plan = plan_fit(world / "recipe.toml", method="ridge")
    assert (plan.steps, plan.parameters, plan.fit_seconds) == (0, 0, None)
    assert [space.completion for space in plan.spaces] == [None, None]
    assert "closed form" in plan.basis


def test_what_the_fit_would_refuse_the_plan_refuses(world: Path, make_cache, unit) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError, match="did you mean"):
        plan_fit(world / "recipe.toml", method="c-mrc")
    (world / "full").mkdir()
    (world / "full" / "thesis.tex").write_text("x")
    with pytest.raises(FitError, match="holds something else"):
        plan_fit(world / "recipe.toml", output=world / "full")
    with pytest.raises(RecipeError, match="the head of 'clip' is the identity"):
        plan_fit(world / "recipe.toml", projector={"clip": "identity"})


def test_the_lines_say_it_all_and_the_record_is_json(world: Path) -> None:
    plan = plan_fit(world / "recipe.toml")
    text = "\n".join(plan_lines(plan))
    counts = ["c-mcr, 4 epochs in 16 steps of 128 rows", "joined 600 rows", "bank of 150 rows in 1 cache"]
    for part in [
        *counts,
        "600 rows to complete",
        "parameters",
        "disk about",
        "from 3 timed steps",
        "nothing was written",
    ]:
        assert part in text, part
    assert json.loads(json.dumps(plan.to_json()))["spaces"][1]["name"] == "clip"
    assert np.isfinite(plan.completion_seconds or 0.0)
