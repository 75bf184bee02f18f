"""Views of a table's runs joined by key: rows that a projected cache has lost shift nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cmcr
import numpy as np
import pytest
import torch
from cmcr.pipeline.evaluate import evaluate
from cmcr.pipeline.project import project
from cmcr.pipeline.reporting.examples import examples_of
from cmcr.pipeline.reporting.gap import panels_of, sample_rows
from cmcr.pipeline.reporting.material import Material, material_of
from cmcr.pipeline.reporting.places import Places
from cmcr.pipeline.reporting.reading import collect
from cmcr.pipeline.reporting.values import grouped
from cmcr.trainer.projectors import ProjectorSpec

ITEMS = 20
LOST = {"sounds": (3, 7), "pictures": (5, 11, 19)}


def rectified(make_connector: Callable[..., Any]) -> Any:
    """A connector that keeps the first six positive entries: a vector without any is lost in projection."""
    specs = {name: ProjectorSpec("half", dim, 6, bias=True) for name, dim in (("clap", 8), ("clip", 12))}
    connector = make_connector(**specs)
    with torch.no_grad():
        for name, spec in specs.items():
            state = connector.heads[name].state_dict()
            state["linear1.weight"].copy_(torch.eye(6, spec.dim_in))
            state["linear1.bias"].zero_()
    return connector


@pytest.fixture
def lossy(make_cache: Callable[..., Any], make_connector: Callable[..., Any], tmp_path: Path) -> Path:
    """Results of a run over projected caches of both sides that lack rows; returns their folder."""
    random = np.random.default_rng(5)
    connector = rectified(make_connector)
    connector.save(tmp_path / "connector")
    keys = [f"item-{n}" for n in range(ITEMS)]
    for name, space, dim in (("sounds", "clap", 8), ("pictures", "clip", 12)):
        vectors = np.abs(random.normal(size=(ITEMS, dim))).astype(np.float32)
        vectors[list(LOST[name])] *= -1
        raw = make_cache(name, vectors, space=space, keys=keys)
        assert project(connector, raw, tmp_path / f"{name}-shared").failed == len(LOST[name])
    evaluate(
        query=tmp_path / "sounds-shared", gallery=tmp_path / "pictures-shared", connector=connector,
        output=tmp_path / "results" / "lossy.json",
    )  # fmt: skip
    return tmp_path


def material(folder: Path) -> Material:
    (group,) = grouped(collect([folder / "results"]).entries)
    table = next(table for table in group.tables if table.first.part == "there")
    found = material_of(table, Places([folder]))
    assert isinstance(found, Material)
    return found


def shared(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Unit vectors by key of a projected cache."""
    cache = cmcr.open_cache(folder / f"{name}-shared")
    return dict(zip(cache.keys(), cache.read(0, len(cache)).astype(np.float64), strict=True))


def test_pairs_of_a_panel_are_those_of_the_keys_where_projection_lost_rows(lossy: Path) -> None:
    found = material(lossy)
    sample = sample_rows(found)
    gone = {f"item-{n}" for lost in LOST.values() for n in lost}
    assert set(found.query.keys(sample.query)) == {f"item-{n}" for n in range(ITEMS)} - gone
    sounds, pictures = shared(lossy, "sounds"), shared(lossy, "pictures")
    paired = np.mean([sounds[key] @ pictures[key] for key in sounds if key not in gone])
    assert f"cosine of pairs {paired:.2f}," in panels_of(found)[-1].facts[1]
    assert any("5 rows" in note for note in found.notes)


def test_neighbours_are_those_of_the_query_above_them_where_projection_lost_rows(lossy: Path) -> None:
    sounds, pictures = shared(lossy, "sounds"), shared(lossy, "pictures")
    shown = examples_of(material(lossy), ITEMS)
    assert len(shown) == ITEMS - 5
    for example in shown:
        ((_, answers),) = example.answers
        cosines = {key: float(sounds[example.query.key] @ row) for key, row in pictures.items()}
        best = sorted(cosines, key=lambda key: -cosines[key])[:5]
        assert [answer.item.key for answer in answers] == best
        assert [answer.right for answer in answers] == [key == example.query.key for key in best]


def test_a_report_over_caches_that_lost_rows_is_written(lossy: Path) -> None:
    made = cmcr.report(lossy / "results", output=lossy / "p.html", material=lossy)
    assert "5 rows" in "".join(made.notes)
    assert made.page.read_text(encoding="utf-8").count("after: lossy<") == 1


def test_a_cache_that_cannot_be_read_costs_the_pictures_alone(lossy: Path) -> None:
    next((lossy / "pictures-shared" / "shards").glob("*.h5")).unlink()
    made = cmcr.report(lossy / "results", output=lossy / "p.html", material=lossy)
    assert made.ok
    assert any("No pictures: The file cannot be read" in note for note in made.notes)
    assert "lossy" in made.csv.read_text(encoding="utf-8")


def test_raw_caches_do_not_stand_for_projected_ones_without_a_connector(lossy: Path) -> None:
    evaluate(
        query=lossy / "sounds-shared", gallery=lossy / "pictures-shared", output=lossy / "results" / "lossy.json"
    )  # fmt: skip
    for name in LOST:
        shutil.rmtree(lossy / f"{name}-shared")
    made = cmcr.report(lossy / "results", output=lossy / "p.html", material=lossy)
    assert any("caches that are not below the folders given: lossy" in note for note in made.notes)
