"""The flat picture of two sides: principal components at one scale, and figures that are those of the vectors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from cmcr.pipeline.reporting.gap import SIDE, panel, project_flat, sample_rows
from cmcr.pipeline.reporting.material import Material
from cmcr.trainer.ranking import Relevance


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def points(path: str) -> np.ndarray:
    """(N, 2) places of the dots of path data."""
    return np.array([[float(x), float(y)] for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", path)])


def test_distances_along_the_first_two_components_are_kept_up_to_one_scale() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(40, 7)) * np.array([9, 4, 0.1, 0.1, 0.1, 0.1, 0.1])
    flat, share = project_flat(rows)
    variances = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    assert share == pytest.approx(variances[:2].sum() / variances.sum())
    true = np.linalg.norm(rows[:, None, :2] - rows[None, :, :2], axis=2)
    drawn = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    far = true > 3
    assert np.ptp(drawn[far] / true[far]) < 0.03 * (drawn[far] / true[far]).mean()
    assert flat.min() >= 0
    assert flat.max() <= SIDE
    assert project_flat(np.ones((3, 5)))[1] == 1.0  # one place thrice


def test_facts_of_a_panel_are_those_of_its_vectors() -> None:
    random = np.random.default_rng(1)
    query, gallery = unit(random.normal(size=(11, 6)) + 1), unit(random.normal(size=(13, 6)))
    pairs = np.array([[n, n + 1] for n in range(11)])
    made = panel("x", query, gallery, pairs)
    gap = np.linalg.norm(query.mean(0) - gallery.mean(0))
    cosines = query @ gallery.T
    assert made.facts[0] == f"gap {gap:.2f}"
    expected = f"cosine of pairs {cosines[pairs[:, 0], pairs[:, 1]].mean():.2f}, of all {cosines.mean():.2f}"
    assert made.facts[1] == expected
    assert len(points(made.query)) == 11
    assert len(points(made.gallery)) == 13
    lines = re.findall(r"M([\d.]+ [\d.]+)L([\d.]+ [\d.]+)", made.lines)
    assert lines[0] == tuple(
        re.findall(r"M([\d.]+ [\d.]+)h0", side)[n] for side, n in ((made.query, 0), (made.gallery, 1))
    )


def test_a_sample_pairs_each_query_with_a_relevant_item(results: Any) -> None:
    labels = [f"c{n % 3}" for n in range(24)]
    relevance = Relevance.from_labels(labels, labels)
    rows = np.arange(24)
    sample = sample_rows(Material(results.query, results.gallery, relevance, rows, rows, (), ()))
    assert len(sample.query) == 24
    assert sorted(sample.gallery.tolist()) == list(range(24))
    for asking, item in sample.pairs:
        assert labels[sample.query[asking]] == labels[sample.gallery[item]]
    assert len({item for _, item in sample.pairs.tolist()}) > 3  # not the first of each class every time
    alone = sample_rows(Material(results.query, results.gallery, None, rows, rows[:5], (), ()))
    assert (len(alone.query), len(alone.gallery), len(alone.pairs)) == (24, 5, 0)
