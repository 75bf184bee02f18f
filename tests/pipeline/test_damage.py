"""Source-space damage: before and after on arrays, from caches, and on the kit's own spaces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import CacheError, RecipeError
from cmcr.cli import app
from cmcr.pipeline.damage import damage, evaluate_damage, neighbours_kept
from cmcr.pipeline.evaluation.results import read_result
from cmcr.trainer.connector import Connector
from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo
from cmcr.trainer.projectors import affine, identity
from cmcr.trainer.ranking import Relevance
from cmcr.trainer.recipe import make_recipe
from typer.testing import CliRunner


def unit(count: int, dim: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def connector_of(matrix: np.ndarray, dim_clip: int = 12) -> Connector:
    """``clap`` through a matrix (D_out, 8), ``clip`` through zeros that only fit its width."""
    heads = {"clap": affine(torch.from_numpy(matrix), None, 8)}
    out = matrix.shape[0]
    heads["clip"] = identity(12) if out == 12 else affine(torch.eye(out, 12), None, 12)
    spaces = {name: SpaceInfo(f"id-{name}", ("audio", "text")) for name in heads}
    return Connector(heads, ConnectorInfo(spaces, "toy"))


def test_a_rotation_costs_nothing_and_a_collapse_costs_all_but_chance() -> None:
    classes, kinds = unit(5, 8, 0), np.arange(40) % 5
    items = classes[kinds] + 0.5 * unit(40, 8, 1)
    relevance = Relevance.from_labels([str(kind) for kind in kinds], [str(kind) for kind in range(5)])
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0].astype(np.float32)
    before, after = damage((items, classes), (items @ turn, classes @ turn), relevance)
    naive = (items @ classes.T).argmax(1) == kinds
    assert np.array_equal(before, naive.astype(float))
    assert np.array_equal(after, before)
    flat = np.ones((40, 3), np.float32), np.ones((5, 3), np.float32)
    assert damage((items, classes), flat, relevance)[1] == pytest.approx(np.full(40, 1 / 5))


@pytest.fixture
def classes(make_cache: Callable[..., Any], tmp_path: Path) -> Path:
    """Ten sounds of three classes, one of them without a name, and three class names."""
    labels = [None if n == 9 else ("dog", "cat", "cow")[n % 3] for n in range(10)]
    make_cache("sounds", 10, space="clap", meta=[{"label": label} if label else {} for label in labels])
    make_cache("names", 3, space="clap", keys=["dog", "cat", "lion"], meta=[{"said": n} for n in ("cow", "cat", "dog")])
    return tmp_path


def test_zero_shot_from_caches_leaves_out_items_without_a_class(classes: Path) -> None:
    matrix = np.random.default_rng(3).normal(size=(6, 8)).astype(np.float32)
    found = evaluate_damage(connector_of(matrix), classes / "sounds", classes=classes / "names", label="label")
    assert (len(found.before), found.answers, found.space) == (6, 3, "clap")  # no cow among the names, one unlabelled
    assert found.chance == pytest.approx(1 / 3)
    assert found.change == pytest.approx(found.after.mean() - found.before.mean())
    low, high = found.interval
    assert low <= found.change <= high
    renamed = evaluate_damage(
        connector_of(matrix), classes / "sounds", classes=classes / "names", label="label", class_label="said"
    )
    assert len(renamed.before) == 9


def test_a_kept_space_is_not_damaged(classes: Path, make_cache: Callable[..., Any]) -> None:
    names = [{"label": f"{n % 3}"} for n in range(12)]
    make_cache("pictures", 12, meta=names)
    make_cache("words", 3, keys=["0", "1", "2"])
    kept = connector_of(np.eye(12, 8, dtype=np.float32))
    found = evaluate_damage(kept, classes / "pictures", classes=classes / "words", label="label")
    assert np.array_equal(found.before, found.after)
    assert found.interval == (0.0, 0.0)


def test_retrieval_inside_a_space_is_measured_by_key(classes: Path, make_cache: Callable[..., Any]) -> None:
    make_cache("again", 10, space="clap", keys=[f"sounds/{n:05d}" for n in range(10)])
    matrix = np.random.default_rng(4).normal(size=(6, 8)).astype(np.float32)
    found = evaluate_damage(connector_of(matrix), classes / "sounds", gallery=classes / "again")
    assert (found.task, len(found.before), found.answers) == ("retrieval R@1", 10, 10)


def test_wrong_questions_are_named(classes: Path, make_cache: Callable[..., Any]) -> None:
    make_cache("pictures", 2, keys=["dog", "cat"])
    connector = connector_of(np.eye(12, 8, dtype=np.float32))
    sounds = classes / "sounds"
    with pytest.raises(RecipeError, match="one of the two"):
        evaluate_damage(connector, sounds)
    with pytest.raises(CacheError, match="inside one space"):
        evaluate_damage(connector, sounds, classes=classes / "pictures", label="label")
    with pytest.raises(CacheError, match="is the name of a class"):
        evaluate_damage(connector, sounds, classes=sounds, label="label")


def test_neighbours_are_kept_by_a_rotation_and_lost_by_a_collapse(
    make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    make_cache("overlap", 30, space="clap")
    make_cache("bank", 50, space="clap")
    tables = {"clap": {"overlap": "overlap", "bank": "bank"}, "clip": {"overlap": "none"}}
    plan = make_recipe({"space": tables, "fit": {"method": "ridge"}}, base=tmp_path)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(8, 8)))[0].astype(np.float32)
    kept = neighbours_kept(plan, "clap", connector_of(turn))
    assert kept is not None
    assert (kept.before.mean(), kept.after.mean(), kept.chance) == (1.0, 1.0, pytest.approx(10 / 50))
    line = np.zeros((1, 8), np.float32)
    line[0, 0] = 1.0  # one dimension: only the sign of a coordinate is left
    lost = neighbours_kept(plan, "clap", connector_of(line))
    assert lost is not None
    assert lost.after.mean() < 0.6
    assert neighbours_kept(plan, "clip", connector_of(turn)) is None


@pytest.mark.kit
def test_zero_shot_of_the_kits_spaces_is_the_published_one(kit: Path) -> None:
    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (kit / name).read_text(encoding="utf-8").splitlines()]

    sounds, names = np.load(kit / "audio_text" / "test_audio.npy"), np.load(kit / "audio_text" / "class_texts.npy")
    test, every = lines("audio_text/test_audio.jsonl"), lines("class_texts.jsonl")
    published = json.loads((kit / "audio_image" / "baselines.json").read_text())["_own_space"]["audio_text"]
    for source, flag, figure in (
        ("esc50", "esc50", "esc50_50_classes_top1"),
        ("animal-sound", "animal_sound", "animal_sound_10_classes_top1"),
    ):
        mine = [n for n, one in enumerate(test) if one["source"] == source]
        asked = [n for n, one in enumerate(every) if one[flag]]
        relevance = Relevance.from_labels([test[n]["label"] for n in mine], [every[n]["name"] for n in asked])
        pair = sounds[mine].astype(np.float32), names[asked].astype(np.float32)
        before, after = damage(pair, pair, relevance)
        assert before.mean() == after.mean() == pytest.approx(published[figure])


def test_a_look_at_damage_leaves_a_result_file_that_stays(classes: Path, make_connector: Callable[..., Any]) -> None:
    folder = make_connector().save(classes / "connector")
    words = ["evaluate", "damage", "--connector", str(folder), "--query", str(classes / "sounds")]
    words += ["--classes", str(classes / "names"), "--label", "label", "--output", str(classes / "made" / "d.json")]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    record = read_result(classes / "made" / "d.json")
    assert json.loads(result.stdout) == record
    same = evaluate_damage(folder, classes / "sounds", classes=classes / "names", label="label")
    assert record["figures"] == json.loads(json.dumps(same.to_json()))
    assert (record["protocol"], record["answers"]["name"], record["query"]["head"]) == ("damage", "names", "clap")
    assert record["figures"]["asked"]["query"] == record["query"]["content"]
    record["figures"]["after"] = 0.125  # a mark that only reading the file can give back
    (classes / "made" / "d.json").write_text(json.dumps(record))
    assert "12.5" in CliRunner().invoke(app, [*words, "--skip-existing"]).stdout
    assert "12.5" not in CliRunner().invoke(app, [*words, "--skip-existing", "--class-label", "said"]).stdout
