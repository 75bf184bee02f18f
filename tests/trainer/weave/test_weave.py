"""Method weave as a whole: what it finds, what it leaves alone, and that the same seed gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import FitError, RecipeError
from cmcr.cache.reader import open_cache
from cmcr.pipeline.terminal import plan_lines
from cmcr.trainer.connector import Connector
from cmcr.trainer.fit import fit
from cmcr.trainer.plan_fit import plan_fit

View = Callable[[np.ndarray], np.ndarray]
Plant = Callable[..., dict[str, Any]]


def found(connector: Connector, first: View, second: View, fresh: np.ndarray) -> float:
    """Share of new items that find themselves across the spaces."""
    cosines = connector.similarity(first(fresh), second(fresh), ("clap", "clip"))
    return float((cosines.argmax(1) == np.arange(len(fresh))).mean())


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a fit but those under runs/."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "runs" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def test_it_finds_a_planted_linear_relation_and_preserves_both_spaces(
    linear_world: dict[str, Any], view: Callable[[int, int], View]
) -> None:
    first, second = view(16, 1), view(12, 2)
    result = fit(**linear_world)
    chosen = result.connector.info.made_from["chosen"]
    assert chosen["expert"] == "linear"
    assert [one["expert"] for one in chosen["criterion"]] == ["linear", "linear", "anchors"]
    fresh = np.random.default_rng(9).standard_normal((200, 8))
    assert found(result.connector, first, second, fresh) > 0.5  # chance 0.005
    assert result.connector.dim == 12 + (2 if chosen["hubness_corrected"] else 0) + 16 + 12
    sounds = first(fresh)
    woven = result.connector.similarity(sounds, sounds, ("clap", "clap"))
    assert np.corrcoef(woven.ravel(), (sounds @ sounds.T).ravel())[0, 1] > 0.95
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    assert "Preserved: `clap` and `clip`" in card
    again = Connector.load(result.folder)
    np.testing.assert_array_equal(again.project(sounds, "clap"), result.connector.project(sounds, "clap"))


def test_it_finds_a_relation_that_no_linear_map_holds(planted: Plant, view: Callable[[int, int], View]) -> None:
    rng = np.random.default_rng(2)
    centres = rng.standard_normal((30, 8))

    def islands(count: int, seed: int) -> np.ndarray:
        return centres[np.arange(count) % 30] + 0.05 * np.random.default_rng(seed).standard_normal((count, 8))

    scattered = rng.standard_normal((30, 24))

    def second(meanings: np.ndarray) -> np.ndarray:  # each island lies anywhere, whatever its neighbours were
        owner = ((meanings[:, None] - centres) ** 2).sum(2).argmin(1)
        vectors = scattered[owner] + 0.3 * (meanings - centres[owner]) @ np.ones((8, 24))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    first = view(10, 1)
    connector = fit(**planted(first, second, meanings=islands(900, 3), steps=0)).connector
    chosen = connector.info.made_from["chosen"]
    assert chosen["expert"] == "anchors"
    fresh = islands(120, 8)
    cosines = connector.similarity(first(fresh), second(fresh), ("clap", "clip"))
    assert (cosines.argmax(1) % 30 == np.arange(120) % 30).mean() > 0.9  # the island; chance 0.03


def test_the_same_seed_gives_the_same_bytes_interrupted_or_not(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"powers": [], "scales": [], "steps": 20, "batch_size": 64}
    given: dict[str, Any] = {"method": "weave", "options": small}
    one = fit(world / "recipe.toml", output=world / "one", **given)
    assert one.connector.info.made_from["chosen"]["criterion"][0]["expert"] == "trained"
    assert one.metrics["step"] == 21  # three epochs of seven batches

    def stop(done: int, total: int, record: Any) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(world / "recipe.toml", output=world / "two", progress=stop, **given)
    assert not (world / "two" / "config.json").exists()
    two = fit(world / "recipe.toml", output=world / "two", **given)
    assert files(one.folder) == files(two.folder)
    other = fit(world / "recipe.toml", output=world / "three", seed=1, **given)
    assert files(other.folder)["connector.safetensors"] != files(one.folder)["connector.safetensors"]


@pytest.mark.parametrize("keep", ["clap", "clip"])
@pytest.mark.parametrize("kind", ["linear", "anchors", "trained"])
def test_a_kept_space_stays_bit_for_bit_and_the_other_one_is_led_into_it(world: Path, keep: str, kind: str) -> None:
    only: dict[str, Any] = {"powers": [], "scales": [], "steps": 0}
    only |= {"linear": {"powers": [0.0]}, "anchors": {"scales": [17.0]}, "trained": {"steps": 40, "batch_size": 64}}[
        kind
    ]
    connector = fit(world / "recipe.toml", method="weave", keep=keep, options=only).connector
    other = "clip" if keep == "clap" else "clap"
    rows = np.arange(600)
    kept, led = (open_cache(world / f"text-{name}").rows(rows) for name in (keep, other))
    assert connector.info.made_from["chosen"]["expert"] == kind
    assert connector.kept == (keep,)
    assert connector.dim == kept.shape[1]
    unchanged = torch.from_numpy(kept)
    unchanged = torch.nn.functional.normalize(
        unchanged / torch.linalg.vector_norm(unchanged, dim=1, keepdim=True), dim=1
    )
    np.testing.assert_array_equal(connector.project(kept, keep), unchanged)
    hits = connector.similarity(led, kept, (other, keep)).argmax(1) == rows
    assert hits.mean() > 0.02  # chance is 1 / 600


def test_a_validation_pair_is_projected_as_the_connector_will_be(world: Path) -> None:
    recipe = world / "recipe.toml"
    pair = '[validation]\nquery = "text-clap"\ngallery = "text-clip"\n'
    recipe.write_text(recipe.read_text(encoding="utf-8") + pair, encoding="utf-8")
    only = {"powers": [], "scales": [], "steps": 30, "batch_size": 64}
    result = fit(recipe, method="weave", keep="clip", options=only)
    rows = [open_cache(world / f"text-{name}").rows(np.arange(600)) for name in ("clap", "clip")]
    cosines = result.connector.similarity(*rows, spaces=("clap", "clip"))
    own = cosines.diagonal()
    # One relevant item each: its average precision is its reciprocal rank.
    there, back = (1 + (cosines > own[:, None]).sum(1), 1 + (cosines > own[None]).sum(0))
    wanted = ((1 / there).mean() + (1 / back).mean()) / 2
    assert result.connector.info.made_from["chosen"]["validation"] == pytest.approx(wanted, abs=1e-4)


def test_what_is_missing_or_out_of_range_is_refused(planted: Plant, view: Callable[[int, int], View]) -> None:
    meanings = np.random.default_rng(0).standard_normal((120, 8))
    given = planted(view(6, 1), view(5, 2), meanings=meanings, banks=False)
    with pytest.raises(FitError, match="weave needs a memory bank in both spaces, 'clap' has none") as raised:
        fit(**given)
    assert "bank" in str(raised.value.todo)
    for options, message in (
        ({"power": [0.1]}, "option 'power'"),
        ({"powers": [2.0]}, "less than or equal to 1"),
        ({"scales": [0.0]}, "greater than 0"),
        ({"powers": [], "whitens": [], "steps": 0}, "leave no candidate"),
    ):
        with pytest.raises(RecipeError, match=message):
            fit(**{**given, "options": options}, overwrite=True)


def test_the_smallest_world_is_woven(planted: Plant, view: Callable[[int, int], View]) -> None:
    meanings = np.random.default_rng(0).standard_normal((48, 8))
    given = planted(view(2, 1), view(2, 2), meanings=meanings, anchors=16, steps=2)
    connector = fit(**given).connector
    rows = connector.project(view(2, 1)(meanings), "clap")
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    bare = fit(**{**given, "options": {**given["options"], "preserve": False}}, overwrite=True).connector
    assert bare.dim < connector.dim


def test_a_dry_run_says_what_it_does_not_know(world: Path) -> None:
    grid: dict[str, Any] = {"powers": [0.0, 0.25], "scales": [12.0], "whitens": [1.0]}
    plan = plan_fit(world / "recipe.toml", method="weave", options={**grid, "steps": 0})
    assert (plan.steps, plan.fit_seconds) == (0, None)
    assert "\n".join(plan_lines(plan)).count("3 candidates in closed form; their memory and time are not planned") == 1
    text = "\n".join(plan_lines(plan_fit(world / "recipe.toml", method="weave", options=grid)))
    assert "one is trained for about 300 steps" in text
    assert "time: not known (nothing was timed)" in text
