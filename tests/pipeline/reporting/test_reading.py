"""Which files are results, what is said of the others, and which runs stand in one table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cmcr
import numpy as np
import pytest
from cmcr.cache.errors import CmcrError
from cmcr.pipeline.evaluate import evaluate
from cmcr.pipeline.project import project
from cmcr.pipeline.reporting.reading import collect
from cmcr.pipeline.reporting.values import grouped
from cmcr.trainer.recipe import make_recipe


def tables(folder: Path) -> dict[tuple[str, str], list[str]]:
    """Runs by protocol and direction; no two tables may share both here."""
    found: dict[tuple[str, str], list[str]] = {}
    for group in grouped(collect([folder]).entries):
        for table in group.tables:
            assert (table.first.protocol, table.first.part) not in found
            found[table.first.protocol, table.first.part] = [entry.run.label for entry in table.entries]
    return found


def test_runs_over_one_set_share_a_table_for_each_direction(results: Any) -> None:
    found = tables(results.folder)
    assert found == {
        ("retrieval", "there"): ["one", "two"],
        ("retrieval", "back"): ["one", "two"],
        ("damage", ""): ["damage/one", "damage/two"],
    }


def test_figures_intervals_and_chance_are_those_of_the_file(results: Any) -> None:
    (entry,) = (e for e in collect([results.folder]).entries if e.run.label == "one" and e.part == "back")
    record = json.loads((results.folder / "one.json").read_text())["gallery_to_query"]
    for name in ("R@1", "true_R@5", "mAP", "median_rank", "nDCG@10"):
        assert entry.figures[name].value == record[name]
    assert [entry.figures["R@5"].low, entry.figures["R@5"].high] == record["interval"]["R@5"]
    assert entry.figures["median_rank"].low is None
    assert entry.chance["R@10"] == record["chance"]["R@10"]
    assert entry.counts["queries"] == record["queries"]


@pytest.mark.parametrize("change", ["gallery", "ties", "label", "pairs"])
def test_another_set_or_rule_is_another_table(results: Any, make_cache: Callable[..., Any], change: str) -> None:
    more: dict[str, Any] = {"query": results.query, "gallery": results.gallery}
    if change == "gallery":  # the same name, other content
        shutil.move(results.world / "pictures", results.world / "kept")
        more["gallery"] = make_cache("pictures", 25, keys=[f"item-{n}" for n in range(25)])
    elif change == "pairs":
        (results.world / "p.csv").write_text("item-1,item-2\n")
        more["pairs"] = results.world / "p.csv"
    else:
        more |= {"ties": "optimistic"} if change == "ties" else {"label": "label"}
    evaluate(**more, connector=results.connectors["one"], output=results.folder / "zz-other.json")
    found = [
        [entry.run.label for entry in group.tables[0].entries] for group in grouped(collect([results.folder]).entries)
    ]
    assert found == [["one", "two"], ["zz-other"], ["damage/one", "damage/two"]]


def test_a_projected_gallery_stands_beside_the_raw_one(results: Any) -> None:
    project(results.connectors["two"], results.gallery, results.world / "shared")
    evaluate(
        query=results.query, gallery=results.world / "shared", connector=results.connectors["two"],
        output=results.folder / "two-projected.json", ks=(1, 5),
    )  # fmt: skip
    assert sorted(tables(results.folder)["retrieval", "there"]) == ["one", "two", "two-projected"]


def test_recipes_and_comparisons_join_the_tables_of_the_same_sets(results: Any) -> None:
    from cmcr.pipeline.compare import compare
    from cmcr.pipeline.recipe_evals import evaluate_recipe

    tables_ = {
        "space": {"clap": {"overlap": "sounds"}, "clip": {"overlap": "pictures"}},
        "fit": {"method": "procrustes", "device": "cpu"},
        "eval": [{"name": "mine", "query": "sounds", "gallery": "pictures"}],
        "damage": [{"name": "kinds", "query": "sounds", "classes": "kinds", "label": "label"}],
    }
    recipe = make_recipe(tables_, base=results.world)
    evaluate_recipe(recipe, results.connectors["one"])
    compare(recipe, methods=["procrustes", "identity"], output=results.folder / "compare")
    shutil.copytree(results.connectors["one"], results.folder / "fitted")
    found = tables(results.folder)
    compared = ["compare/procrustes", "compare/identity"]
    assert found["retrieval", "there"] == ["one", "two", *compared, "fitted"]
    assert found["damage", ""] == [*compared, "damage/one", "damage/two", "fitted"]


def test_what_is_no_result_is_named_and_what_is_broken_counts(results: Any) -> None:
    whole = json.loads((results.folder / "one.json").read_text())
    for name, text in {
        "a-half": '{"format": "cmcr-eval',
        "b-foreign": '{"format": "someone-else"}',
        "c-list": "[1, 2]",
        "d-tomorrow": json.dumps({**whole, "version": 99}),
        "e-incomplete": json.dumps({k: v for k, v in whole.items() if k != "gallery_to_query"}),
        "f-odd": json.dumps({**whole, "query_to_gallery": {**whole["query_to_gallery"], "interval": {"R@1": 3}}}),
        "g-protocol": json.dumps({**whole, "protocol": "beauty"}),
    }.items():
        (results.folder / f"{name}.json").write_text(text)
    shutil.copytree(results.world / "pictures", results.folder / "a-cache")  # its many JSON files are its own
    found = collect([results.folder])
    said = {one.file.stem: (one.broken, one.what) for one in found.left_out}
    assert {name: broken for name, (broken, _) in said.items()} == {
        "a-half": True, "b-foreign": False, "c-list": False, "d-tomorrow": True, "e-incomplete": True, "f-odd": True,
        "g-protocol": True,
    }  # fmt: skip
    assert "someone-else" in said["b-foreign"][1]
    assert "99" in said["d-tomorrow"][1]
    assert "gallery_to_query" in said["e-incomplete"][1]
    assert found.files == 4
    assert {entry.run.label for entry in found.entries} == {"one", "two", "damage/one", "damage/two"}


def test_a_file_of_version_1_has_figures_without_intervals(results: Any) -> None:
    record = json.loads((results.folder / "two.json").read_text())
    del record["intervals"]
    for side in ("query_to_gallery", "gallery_to_query"):
        del record[side]["interval"]
    (results.folder / "two.json").write_text(json.dumps({**record, "version": 1}))
    entries = {e.run.label: e for e in collect([results.folder]).entries if e.part == "there"}
    assert entries["two"].figures["R@1"].value == record["query_to_gallery"]["R@1"]
    assert entries["two"].figures["R@1"].low is None
    assert entries["one"].group == entries["two"].group


def test_runs_of_one_name_in_two_folders_are_told_apart(results: Any, tmp_path: Path) -> None:
    shutil.copytree(results.folder, tmp_path / "again" / "results")
    found = collect([results.folder, tmp_path / "again" / "results"])
    assert found.files == 8
    labels = {entry.run.label for entry in found.entries}
    assert len(labels) == 8
    assert any(label.endswith("again/results/one") for label in labels)
    again = collect([results.folder / "one.json", results.folder])
    assert again.files == 4  # one file is read once
    with pytest.raises(CmcrError, match="does not exist"):
        collect([tmp_path / "gone"])


def test_classification_and_counterfactual_results_are_tables_of_their_own(results: Any) -> None:
    from cmcr.pipeline.evaluation.class_sources import ClassSettings
    from cmcr.pipeline.evaluation.classification import evaluate_classification
    from cmcr.pipeline.evaluation.intervals import counterfactual_intervals
    from cmcr.pipeline.evaluation.localization import LocalizationReport, counterfactual_figures
    from cmcr.pipeline.evaluation.localization_measures import Detection
    from cmcr.pipeline.evaluation.results import subject, write_result
    from cmcr.pipeline.reporting.figures import bars_of
    from cmcr.pipeline.shared import SharedView

    for name, connector in results.connectors.items():
        classes = ClassSettings(prompts=results.world / "kinds")
        place = results.folder / "zero" / f"{name}.json"
        evaluate_classification(results.query, classes, label="label", connector=connector, output=place)
    random = np.random.default_rng(0)
    found = Detection(random.random(50) < 0.5, random.random(50), random.random(50))
    views = {"sounds": SharedView(results.query), "regions": SharedView(results.gallery)}
    how = {"rule": "slavc", "threshold": 0.5, "list": "items.jsonl", "list_digest": "abc"}
    report = LocalizationReport(
        counterfactual_figures(found),
        subject("counterfactual", None, views, how),
        ("k",),
        counterfactual_intervals(found),
    )
    write_result(report.to_json(), results.folder / "silent.json")
    groups = {group.first.protocol: group for group in grouped(collect([results.folder]).entries)}
    zero, silent = groups["classification"], groups["counterfactual"]
    assert [entry.run.label for entry in zero.tables[0].entries] == ["zero/one", "zero/two"]
    record = json.loads((results.folder / "zero" / "two.json").read_text())
    two = zero.tables[0].entries[1]
    assert two.figures["top3"].value == record["figures"]["top3"]
    assert two.figures["macro_top1"].low == record["interval"]["macro_top1"][0]
    assert two.chance["top1"] == two.chance["macro_top1"] == 1 / 4
    assert (zero.tables[0].main, two.counts["classes"], two.counts["items"]) == ("top1", 4, 24)
    assert "items" not in two.figures
    (one,) = silent.tables[0].entries
    assert one.figures["AP"].value == found.average_precision()
    assert one.figures["AUC"].high == report.interval["AUC"][1]
    assert one.run.method is None
    assert one.counts == {"items": 50, "audible": int(found.audible.sum()), "inaudible": int((~found.audible).sum()),
                          "left out": 1}  # fmt: skip
    assert bars_of(silent, silent.tables[0]).sentence == f"silent: AP {100 * one.figures['AP'].value:.1f}%."
    page = cmcr.report(results.folder, output=results.world / "p.html", pictures=False).page.read_text(encoding="utf-8")
    assert f"top-1 {100 * max(e.figures['top1'].value for e in zero.tables[0].entries):.1f}%" in page
    assert "list items.jsonl, rule slavc 0.5" in page
    assert "Highest: silent" not in page  # one run is not the highest of anything
