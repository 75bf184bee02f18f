"""Evaluation sets: classes that are none, galleries without distractors, figures against a naive restatement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import CmcrError
from cmcr.pipeline.eval_sets import EvalSet, without_distractors
from cmcr.pipeline.evaluate import evaluate
from cmcr.trainer.ranking import Relevance
from cmcr.trainer.recipe import Recipe, make_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

Labels = st.lists(st.sampled_from("abcde"), min_size=1, max_size=9)


def dense(relevance: Relevance) -> np.ndarray:
    """Relevance as a matrix (Q, G)."""
    out = np.zeros((len(relevance), relevance.gallery), bool)
    out[relevance.rows(0, len(relevance))] = True
    return out


def recipe_of(place: Path, **one: Any) -> Recipe:
    tables = {
        "space": {"clap": {"overlap": "x"}, "clip": {"overlap": "y"}},
        "fit": {"method": "ridge", "device": "cpu"},
        "eval": [{"name": "set", "query": "sounds", "gallery": "pictures", **one}],
    }
    return make_recipe(tables, base=place)


@settings(max_examples=60, deadline=None)
@given(Labels, Labels, st.booleans())
def test_without_distractors_every_row_that_is_left_has_its_partners(
    mine: list[str], theirs: list[str], by_pairs: bool
) -> None:
    relevance = Relevance.from_labels(mine, theirs)
    whole = dense(relevance)
    if by_pairs:
        rows = np.argwhere(whole)
        relevance = Relevance.from_rows(rows[:, 0], rows[:, 1], len(mine), len(theirs))
    queries, gallery, inner = without_distractors(relevance)
    assert np.array_equal(queries, np.flatnonzero(whole.any(1)))
    assert np.array_equal(gallery, np.flatnonzero(whole.any(0)))
    assert np.array_equal(dense(inner), whole[np.ix_(queries, gallery)])
    assert np.array_equal(dense(inner.transposed()), dense(inner).T)
    if inner.classes is not None and len(queries):
        assert [inner.classes[n] for n in inner.query_groups] == [mine[n] for n in queries]


@pytest.fixture
def labelled(make_cache: Callable[..., Any]) -> dict[str, list[str]]:
    """Two caches with labels, some of them ``other`` on both sides and one class on one side only."""
    labels = {"sounds": ["dog", "cat", "other"] * 7, "pictures": ["dog", "cow", "other", "cat", "lion"] * 6}
    for name, space in (("sounds", "clap"), ("pictures", "clip")):
        make_cache(name, len(labels[name]), space=space, meta=[{"label": label} for label in labels[name]])
    return labels


def test_rows_of_no_class_are_distractors_or_left_out(
    labelled: dict[str, list[str]], make_connector: Callable[..., Any], tmp_path: Path
) -> None:
    connector = make_connector()
    asked: dict[str, Any] = {"label": "label", "no_class": ["other"], "ties": "optimistic"}
    full, core = (
        EvalSet.open(plan, plan.eval[0]).measure(connector)
        for plan in (recipe_of(tmp_path, **asked), recipe_of(tmp_path, **asked, distractors=False))
    )
    assert (full.there.metrics.queries, full.there.metrics.gallery) == (14, 30)
    assert (core.there.metrics.queries, core.there.metrics.gallery) == (14, 12)
    assert (core.there.metrics.skipped, core.back.metrics.gallery) == (0, 14)
    assert any("18 of 30 gallery items" in note for note in core.notes)
    for name, report in (("full", full), ("core", core)):
        sounds, pictures = (np.array(labelled[side]) for side in ("sounds", "pictures"))
        asks = np.flatnonzero(np.isin(sounds, ["dog", "cat"]))
        kept = np.arange(30) if name == "full" else np.flatnonzero(np.isin(pictures, ["dog", "cat"]))
        x = connector.project(report.set.query.rows(asks), "clap")
        y = connector.project(report.set.gallery.rows(kept), "clip")
        order = np.argsort(-(x @ y.T), axis=1)
        hits = np.take_along_axis(sounds[asks, None] == pictures[kept][None], order, 1)
        precision = np.cumsum(hits, 1) / np.arange(1, hits.shape[1] + 1)
        ap = (precision * hits).sum(1) / hits.sum(1)
        macro = np.mean([ap[sounds[asks] == label].mean() for label in ("dog", "cat")])
        assert report.there.metrics.macro["macro_mAP"] == pytest.approx(macro)
        assert report.there.per_query("macro_mAP") == pytest.approx(ap)
        assert report.there.measures == ("macro_mAP", "macro_P@10")


def test_a_plain_set_has_the_figures_of_evaluate(
    make_cache: Callable[..., Any], make_connector: Callable[..., Any], tmp_path: Path
) -> None:
    keys = [f"photo-{n}" for n in range(12)]
    make_cache("sounds", 36, space="clap", keys=[f"{key}#{n}" for key in keys for n in range(3)])
    make_cache("pictures", 12, space="clip", keys=keys)
    plan, connector = recipe_of(tmp_path, ks=[1, 3]), make_connector()
    report = EvalSet.open(plan, plan.eval[0]).measure(connector)
    same = evaluate(query=tmp_path / "sounds", gallery=tmp_path / "pictures", connector=connector, ks=(1, 3))
    assert report.there.metrics.to_json() == same.there.to_json()
    assert report.back.metrics.to_json() == same.back.to_json()
    assert report.there.measures == ("R@1", "R@3")
    assert report.there.per_query("R@3").mean() == pytest.approx(same.there.recall[3])
    assert report.there.metrics.queries == 36


def test_a_set_whose_classes_are_all_none_is_an_error(labelled: dict[str, list[str]], tmp_path: Path) -> None:
    plan = recipe_of(tmp_path, label="label", no_class=["dog", "cat", "other"])
    with pytest.raises(CmcrError, match="no_class"):
        EvalSet.open(plan, plan.eval[0])
