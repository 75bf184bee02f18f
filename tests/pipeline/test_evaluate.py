"""Retrieval evaluation: against a naive restatement, by key, pairs and label, and what the record holds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import CacheError, CmcrError, DeviceError
from cmcr.cache.reader import Cache
from cmcr.pipeline.evaluate import evaluate
from cmcr.pipeline.project import project
from cmcr.trainer.connector import Connector
from rich.console import Console

MakeConnector = Callable[..., Connector]
MakeCache = Callable[..., Cache]


def first_right(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank of the best relevant item of each query that has one; scores without ties."""
    ranks = []
    for line, relevant in zip(scores, right, strict=True):
        if relevant.any():
            order = np.argsort(-line)
            ranks.append(1 + int(np.argmax(relevant[order])))
    return np.array(ranks)


def average_precision(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mean of the precision at every relevant item, for each query that has one."""
    found = []
    for line, relevant in zip(scores, right, strict=True):
        if relevant.any():
            hits = relevant[np.argsort(-line)]
            found.append(float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()))
    return np.array(found)


def scores_of(connector: Connector, query: Cache, gallery: Cache) -> np.ndarray:
    left = connector.project(query.rows(np.arange(len(query))), "clap")
    right = connector.project(gallery.rows(np.arange(len(gallery))), "clip")
    return np.asarray(left @ right.T)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_both_directions_equal_the_naive_way_by_key(
    make_connector: MakeConnector, make_cache: MakeCache, block: int
) -> None:
    rng = np.random.default_rng(0)
    connector = make_connector()
    sounds = make_cache("sounds", 23, space="clap", keys=[f"item/{n}" for n in range(23)])
    images = make_cache("images", 31, keys=[f"item/{n}" for n in rng.permutation(40)[:31]], shards=(10, 21))
    report = evaluate("retrieval", connector=connector, query=sounds, gallery=images, block=block, ks=(1, 3))
    heard, seen = sounds.keys(), images.keys()
    right = np.array([[a == b for b in seen] for a in heard])
    scores = scores_of(connector, sounds, images)
    for side, matrix, relevant in ((report.there, scores, right), (report.back, scores.T, right.T)):
        ranks = first_right(matrix, relevant)
        assert side.queries == len(ranks)
        assert side.queries + side.skipped == len(matrix)
        assert side.recall == pytest.approx({k: (ranks <= k).mean() for k in (1, 3)})
        assert side.median_rank == np.median(ranks)
        assert side.mean_reciprocal_rank == pytest.approx((1 / ranks).mean())
        assert side.mean_average_precision == pytest.approx(average_precision(matrix, relevant).mean())


def test_labels_make_classes_relevant_and_other_labels_are_distractors(
    make_connector: MakeConnector, make_cache: MakeCache
) -> None:
    names = ["dog", "cat", "cow"]
    heard = [{"label": names[n % 3]} if n != 5 else None for n in range(19)]
    seen = [{"label": (*names, "other")[n % 4]} for n in range(26)]
    sounds, images = make_cache("sounds", 19, space="clap", meta=heard), make_cache("images", 26, meta=seen)
    connector = make_connector()
    report = evaluate(connector=connector, query=sounds, gallery=images, label="label", ties="optimistic")
    left = [(record or {}).get("label") for record in heard]
    right = np.array([[a is not None and a == b["label"] for b in seen] for a in left])
    precision = average_precision(scores_of(connector, sounds, images), right)
    assert report.there.mean_average_precision == pytest.approx(precision.mean())
    classes = np.array([label for label in left if label is not None])
    macro = np.mean([precision[classes == name].mean() for name in names])
    assert report.there.macro["macro_mAP"] == pytest.approx(macro)
    assert (report.there.skipped, report.back.skipped) == (1, 6)  # one sound without label, six images of "other"
    assert len(report.notes) == 2
    assert "1 of 19 queries" in report.notes[0]


def test_pairs_from_a_file_decide_what_is_relevant(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector = make_connector()
    sounds, images = make_cache("sounds", 6, space="clap"), make_cache("images", 8)
    rows = [(0, 3), (0, 5), (1, 3), (4, 0), (4, 0)]
    lines = ["query,gallery", *(f"sounds/{a:05d},images/{b:05d}" for a, b in rows)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = evaluate(connector=connector, query=sounds, gallery=images, pairs=tmp_path / "pairs.csv", ks=(2, 8))
    right = np.zeros((6, 8), bool)
    for a, b in rows:
        right[a, b] = True
    scores = scores_of(connector, sounds, images)
    assert (report.there.queries, report.there.skipped) == (3, 3)
    assert report.there.recall[2] == pytest.approx((first_right(scores, right) <= 2).mean())
    assert report.there.mean_average_precision == pytest.approx(average_precision(scores, right).mean())
    assert report.there.precision[8] == pytest.approx(4 / 3 / 8)  # the pair that stands twice counts once
    assert report.back.mean_average_precision == pytest.approx(average_precision(scores.T, right.T).mean())


def test_constant_vectors_score_chance_unless_ties_are_optimistic(make_cache: MakeCache) -> None:
    same = np.ones((20, 12), np.float32)
    keys = [f"item/{n}" for n in range(20)]
    left, right = make_cache("left", same, keys=keys), make_cache("right", same, keys=keys)
    fair = evaluate(query=left, gallery=right)
    assert fair.there.recall == pytest.approx({1: 1 / 20, 5: 5 / 20, 10: 10 / 20})
    assert fair.there.recall == pytest.approx(fair.chance_there.recall)
    assert evaluate(query=left, gallery=right, ties="optimistic").there.recall[1] == 1


def test_projected_and_raw_caches_give_the_same_figures(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector = make_connector()
    keys = [f"item/{n}" for n in range(30)]
    sounds, images = make_cache("sounds", 30, space="clap", keys=keys), make_cache("images", 30, keys=keys)
    for name, cache in (("a", sounds), ("b", images)):
        project(connector, cache, tmp_path / name, dtype="float32")
    raw = evaluate(connector=connector, query=sounds, gallery=images)
    mixed = evaluate(connector=connector, query=tmp_path / "a", gallery=images)
    bare = evaluate(query=tmp_path / "a", gallery=tmp_path / "b")  # both in one space: no connector needed
    assert raw.there.to_json() == pytest.approx(mixed.there.to_json())
    assert raw.back.to_json() == pytest.approx(bare.back.to_json())


def test_the_record_is_one_json_without_times_and_paths(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector = make_connector()
    keys = [f"item/{n}" for n in range(9)]
    sounds, images = make_cache("sounds", 9, space="clap", keys=keys), make_cache("images", 9, keys=keys)
    output = tmp_path / "deep" / "figures.json"
    report = evaluate(connector=connector, query=sounds, gallery=images, output=output)
    text = output.read_text(encoding="utf-8")
    record = json.loads(text)
    assert record == json.loads(json.dumps(report.to_json()))
    assert str(tmp_path) not in text
    assert record["query"]["content"] == sounds.content_id()
    assert (record["query"]["head"], record["gallery"]["head"]) == ("clap", "clip")
    assert (record["protocol"], record["relevant"], record["ties"]) == ("retrieval", "equal key", "expected")
    assert set(record["versions"]) == {"cmcr", "torch", "numpy"}
    assert 0 <= record["query_to_gallery"]["R@1"] <= 1
    evaluate(connector=connector, query=sounds, gallery=images, output=output)
    assert output.read_text(encoding="utf-8") == text
    assert [file.name for file in output.parent.iterdir()] == ["figures.json"]


def test_the_table_shows_both_directions_beside_chance(make_connector: MakeConnector, make_cache: MakeCache) -> None:
    keys = [f"item/{n}" for n in range(9)]
    sounds, images = make_cache("sounds", 9, space="clap", keys=keys), make_cache("images", 9, keys=keys)
    report = evaluate(connector=make_connector(), query=sounds, gallery=images)
    screen = io.StringIO()
    Console(file=screen, width=140).print(report.table())
    shown = screen.getvalue()
    assert "sounds → images" in shown
    assert "images → sounds" in shown
    assert shown.count("chance") == 2
    assert all(name in shown for name in ("R@1", "R@5", "R@10", "mAP", "MRR", "median rank"))


def test_bad_questions_get_one_clear_line(make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path) -> None:
    connector = make_connector()
    keys = [f"item/{n}" for n in range(4)]
    sounds, images = make_cache("sounds", 4, space="clap", keys=keys), make_cache("images", 4, keys=keys)
    strangers = make_cache("strangers", 4)
    empty = make_cache("empty", np.empty((0, 12), np.float32))
    labelled = make_cache("labelled", 4, meta=[{"kind": n} for n in range(4)])
    others = make_cache("others", 4, space="clap", meta=[{"kind": n + 7} for n in range(4)])

    def file(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        return tmp_path / name

    cases: list[tuple[type[CmcrError], str, dict[str, Any]]] = [
        (CmcrError, "no protocol 'beauty'", {"protocol": "beauty"}),
        (CmcrError, "no setting 'kk'", {"kk": 3}),
        (CmcrError, "Cut-offs are whole numbers", {"ks": (0, 1)}),
        (CmcrError, "Cut-offs are whole numbers", {"ks": ()}),
        (CmcrError, "no rule for ties", {"ties": "lucky"}),
        (CmcrError, "at least one query", {"block": 0}),
        (CacheError, "gallery cache has no rows", {"gallery": empty}),
        (CacheError, "query cache has no rows", {"query": empty}),
        (CacheError, "different spaces", {"connector": None}),
        (CmcrError, "No key of the queries", {"gallery": strangers}),
        (CmcrError, "not both", {"pairs": "x.csv", "label": "kind"}),
        (CmcrError, "does not exist", {"pairs": tmp_path / "gone.csv"}),
        (CmcrError, "is empty", {"pairs": file("empty.csv", "query,gallery\n")}),
        (CmcrError, "two columns", {"pairs": file("wide.csv", "item/1,item/2,item/3\n")}),
        (CmcrError, "1 of 2 pairs name a gallery key", {"pairs": file("odd.csv", "item/1,item/2\nitem/1,x\n")}),
        (CmcrError, "line 2", {"pairs": file("odd.csv", "item/1,item/2\nitem/1,x\n")}),
        (CmcrError, "UTF-8", {"pairs": file("latin.csv", "item/\xe9,item/2\n")}),
        (CmcrError, "no meta at all", {"label": "kind"}),
        (CmcrError, "fields there: kind", {"query": labelled, "label": "colour"}),
        (CmcrError, "No label 'kind' of the queries", {"query": others, "gallery": labelled, "label": "kind"}),
        (CmcrError, "is a folder", {"output": tmp_path}),
    ]
    for kind, message, asked in cases:
        with pytest.raises(kind) as caught:
            evaluate(**{"connector": connector, "query": sounds, "gallery": images, **asked})
        assert message in str(caught.value), asked
        assert "\n" not in caught.value.what, asked


@pytest.mark.parametrize("joined", [False, True])
def test_a_device_has_one_meaning_with_and_without_a_connector(
    make_connector: MakeConnector, make_cache: MakeCache, joined: bool
) -> None:
    cache, connector = make_cache("one", 9), make_connector() if joined else None
    report = evaluate(query=cache, gallery=cache, connector=connector, device="auto")
    assert report.to_json() == evaluate(query=cache, gallery=cache, connector=connector, device="cpu").to_json()
    with pytest.raises(DeviceError, match="no device called 'gpu'"):
        evaluate(query=cache, gallery=cache, connector=connector, device="gpu")
