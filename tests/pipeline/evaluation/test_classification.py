"""Zero-shot classification: against a naive restatement, torch's top-k accuracy, and the data kit's own figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import CacheError, CmcrError
from cmcr.cache.reader import Cache
from cmcr.cli import app
from cmcr.pipeline.evaluation.class_sources import ClassSettings
from cmcr.pipeline.evaluation.classification import class_numbers, classify, evaluate_classification
from cmcr.pipeline.evaluation.prompts import class_vectors, prompt_lines, read_classes, read_templates
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

Save = Callable[..., Cache]
NAMES = ("red", "green", "blue_green")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 10**6))
def test_top_k_accuracy_is_that_of_torch_topk_without_ties(items: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = np.stack([random.permutation(classes) for _ in range(items)]).astype(np.float32)
    truth = random.integers(-1, classes, items)
    truth[0] = classes - 1
    got = classify([(0, scores)], truth, classes)
    kept = truth >= 0
    for k in (1, 3, 5):  # as ULIP, main.py, accuracy()
        best = torch.from_numpy(scores[kept]).topk(min(k, classes), dim=1).indices.numpy()
        assert got.recall[k] == pytest.approx((best == truth[kept][:, None]).any(1).mean())
    assert got.skipped == items - kept.sum()


def test_equal_scores_of_all_classes_are_chance() -> None:
    got = classify([(0, np.zeros((6, 8), np.float32))], np.arange(6), 8)
    assert [*got.recall.values()] == pytest.approx([1 / 8, 3 / 8, 5 / 8])


def test_the_two_ensembles_are_what_their_names_say() -> None:
    random = np.random.default_rng(0)
    prompts = random.standard_normal((7, 5)).astype(np.float32)
    groups, weights = np.array([0, 0, 1, 1, 1, 1, 0]), random.standard_normal((5, 4)).astype(np.float32)

    def unit(rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))

    def head(rows: np.ndarray) -> np.ndarray:
        return np.asarray(unit(np.tanh(rows @ weights)), np.float32)

    for number, group in enumerate((prompts[groups == 0], prompts[groups == 1])):
        first = head(unit(unit(group).mean(0))[None])[0]
        last = unit(head(unit(group)).mean(0))
        averaged = class_vectors(prompts, groups, 2, "average-then-project", head)
        projected = class_vectors(prompts, groups, 2, "project-then-average", head)
        assert averaged[number] == pytest.approx(first, abs=1e-6)
        assert projected[number] == pytest.approx(last, abs=1e-6)
        assert not np.allclose(first, last, atol=1e-3)


@pytest.fixture
def photos(save: Save) -> Cache:
    """Seven photographs; the fifth is red but labelled green, the last has a label of no class."""
    vectors = np.eye(3)[[0, 0, 1, 1, 0, 2, 2]] + 0.01
    labels = ["red", "red", "green", "green", "green", "Blue Green", "sky"]
    return save("photos", [f"p{n}" for n in range(7)], vectors, modality="image", meta=[{"is": x} for x in labels])


def test_accuracy_macro_confusion_and_record_of_a_small_test(photos: Cache, words: Any, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"label": "is", "output": tmp_path / "a.json", "confusion": tmp_path / "a.png"}
    report = evaluate_classification(photos, ClassSettings(NAMES, "image", encoder=words), **asked)
    assert report.accuracy[1] == pytest.approx(5 / 6)
    assert report.macro[1] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert report.confusion.tolist() == [[2, 0, 0], [1, 2, 0], [0, 0, 1]]
    assert report.most_confused() == [("green", "red", 1)]
    assert report.skipped == 1
    assert "1 of 7 items" in report.notes[0]
    assert report.chance == {1: pytest.approx(1 / 3), 3: 1, 5: 1}
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["query"]["fingerprint"] == "print-photos"
    assert record["per_class"]["green"] == {"items": 3, "top1": pytest.approx(2 / 3)}
    assert record["text_encoder"] == "toy:colour/text"
    assert "confusion" not in record


def test_a_result_that_stands_is_kept_until_something_changes(photos: Cache, words: Any, tmp_path: Path) -> None:
    place = tmp_path / "a.json"

    def run(names: tuple[str, ...], **more: Any) -> Any:
        chosen = ClassSettings(names, "image", encoder=words)
        return evaluate_classification(photos, chosen, label="is", output=place, **more)

    run(NAMES)
    record = json.loads(place.read_text())
    record["figures"]["top1"] = 0.125  # a mark that only reading the file can give back
    place.write_text(json.dumps(record))
    kept = run(NAMES, skip_existing=True)
    assert kept.accuracy[1] == 0.125
    assert kept.to_json()["figures"] == record["figures"]
    assert run(NAMES[:2], skip_existing=True).accuracy[1] != 0.125
    with pytest.raises(CmcrError, match="no file to skip"):
        evaluate_classification(photos, ClassSettings(NAMES), skip_existing=True)


def test_a_cache_of_prompts_gives_what_encoding_them_now_gives(
    photos: Cache, words: Any, save: Save, tmp_path: Path
) -> None:
    templates = ("a {}.", "one {} thing")
    lines = [json.loads(line) for line in prompt_lines(NAMES, templates).splitlines()]
    keys = [f"{line['key']}#{n}" for line in lines for n in range(2)]
    texts = [text for line in lines for text in line["caption"]]
    assert texts[-1] == "one blue green thing"
    cache = save("prompts", keys, words.encode(texts), modality="text")
    (tmp_path / "t.txt").write_text("\n".join(templates))
    now = evaluate_classification(photos, ClassSettings(NAMES, tmp_path / "t.txt", encoder=words), label="is")
    kept = evaluate_classification(photos, ClassSettings(prompts=cache), label="is")
    assert kept.accuracy == now.accuracy
    assert kept.classes == NAMES
    with pytest.raises(CmcrError, match="no row for 1 of 4 classes, such as 'gold'"):
        evaluate_classification(photos, ClassSettings((*NAMES, "gold"), prompts=cache), label="is")


def test_bad_questions_get_one_clear_line(photos: Cache, words: Any, save: Save, tmp_path: Path) -> None:
    (tmp_path / "two.json").write_text('{"a": ["x"], "b": ["y"]}')
    (tmp_path / "twice.txt").write_text("night_stand\nNight stand\n")
    (tmp_path / "bare.txt").write_text("a photo\n")
    elsewhere = save("elsewhere", ["x"], [[1, 0, 0]], modality="text", space="other")
    cases: list[tuple[type[CmcrError], str, Any]] = [
        (CmcrError, "No classes are named", lambda: ClassSettings()),
        (CmcrError, "no ensemble", lambda: ClassSettings(NAMES, ensemble="mean")),  # type: ignore[arg-type]
        (CmcrError, "holds 2 lists", lambda: read_classes(tmp_path / "two.json")),
        (CmcrError, "Two classes", lambda: read_classes(tmp_path / "twice.txt")),
        (CmcrError, "does not exist", lambda: read_classes(tmp_path / "gone.txt")),
        (CmcrError, "not exactly one place", lambda: read_templates(tmp_path / "bare.txt")),
        (CmcrError, "No text encoder", lambda: evaluate_classification(photos, ClassSettings(NAMES), label="is")),
        (CmcrError, "No row has the label 'label'", lambda: evaluate_classification(
            photos, ClassSettings(NAMES, encoder=words))),
        (CmcrError, "one of the 1 classes", lambda: evaluate_classification(
            photos, ClassSettings(("dog",), encoder=words), label="is")),
        (CacheError, "different spaces", lambda: evaluate_classification(
            photos, ClassSettings(prompts=elsewhere), label="is")),
    ]  # fmt: skip
    for kind, message, ask in cases:
        with pytest.raises(kind) as caught:
            ask()
        assert message in str(caught.value)
    assert read_classes(f"{tmp_path / 'two.json'}:b") == ("y",)
    assert class_numbers(["NIGHT stand", None, "x"], ["lamp", "night_stand"]).tolist() == [1, -1, -1]


@pytest.mark.kit
def test_the_templates_of_ulip_fill_the_names_of_modelnet40(kit: Path) -> None:
    folder = kit / "official" / "modelnet40"
    names = read_classes(f"{folder / 'labels.json'}:modelnet40")
    templates = read_templates(f"{folder / 'templates.json'}:modelnet40_64")
    assert (len(names), len(templates)) == (40, 64)
    lines = [json.loads(line) for line in prompt_lines(names, templates).splitlines()]
    assert lines[names.index("night stand")]["caption"][0] == "a point cloud model of night stand."
    assert {line["class"] for line in lines} == set(names)


@pytest.mark.kit
@pytest.mark.parametrize(("flag", "prefix", "name"), [
    ("esc50", "esc50", "esc50_50_classes"), ("animal_sound", "animal", "animal_sound_10_classes"),
])  # fmt: skip
def test_the_kits_zero_shot_figures_are_reproduced(kit: Path, save: Save, flag: str, prefix: str, name: str) -> None:
    def lines(path: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (kit / path).read_text(encoding="utf-8").splitlines()]

    classes, sounds = lines("class_texts.jsonl"), lines("audio_text/test_audio.jsonl")
    chosen = [n for n, record in enumerate(classes) if record[flag]]
    rows = [n for n, record in enumerate(sounds) if record["id"].startswith(prefix)]
    names = [classes[n]["name"] for n in chosen]
    prompts = save("prompts", names, np.load(kit / "audio_text/class_texts.npy")[chosen], modality="text")
    meta = [{"label": sounds[n]["label"]} for n in rows]
    query = save("sounds", [sounds[n]["id"] for n in rows], np.load(kit / "audio_text/test_audio.npy")[rows], meta=meta)
    report = evaluate_classification(query, ClassSettings(prompts=prompts))
    want = json.loads((kit / "audio_image" / "baselines.json").read_text())["_own_space"]["audio_text"]
    assert report.skipped == 0
    assert report.items == want[f"{name}_n"]
    assert report.accuracy[1] == pytest.approx(want[f"{name}_top1"], abs=1e-9)
    assert report.accuracy[5] == pytest.approx(want[f"{name}_top5"], abs=1e-9)


def test_the_commands_write_prompts_and_classify(photos: Cache, words: Any, save: Save, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    run = CliRunner().invoke
    made = run(app, ["evaluate", "prompts", "--classes", str(tmp_path / "classes.txt"), "--templates", "plain",
                     "--output", str(tmp_path / "prompts.jsonl")])  # fmt: skip
    assert made.exit_code == 0, made.output
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    texts = [text for line in lines for text in line["caption"]]
    cache = save("prompts", [line["key"] for line in lines], words.encode(texts), modality="text")
    result = run(app, ["evaluate", "classification", "--query", str(photos.path), "--prompts", str(cache.path),
                       "--label", "is", "--json"])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["figures"]["top1"] == pytest.approx(5 / 6)
