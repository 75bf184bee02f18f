"""Bootstrap intervals of result files: around their figures, of the very same queries, and equal for equal input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache.reader import Cache
from cmcr.pipeline.evaluate import RetrievalReport, evaluate
from cmcr.pipeline.evaluation.intervals import counterfactual_intervals, localization_intervals, retrieval_intervals
from cmcr.pipeline.evaluation.localization_measures import Detection, success_auc
from cmcr.pipeline.evaluation.results import read_result
from cmcr.trainer.bootstrap import bootstrap
from cmcr.trainer.metrics import retrieval_metrics
from cmcr.trainer.ranking import Relevance

Save = Callable[..., Cache]


def test_each_interval_is_that_of_its_own_measure_over_its_own_queries() -> None:
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((count, 4)).astype(np.float32) for count in (31, 45))
    labels = [f"c{n % 5}" if n % 7 else "alone" for n in range(31)]
    relevance = Relevance.from_labels(labels, [f"c{n % 5}" for n in range(45)])
    found = retrieval_metrics(left, right, relevance)
    intervals = retrieval_intervals(found, relevance.query_groups)
    measures = {name for name, value in found.to_json().items() if isinstance(value, float)} - {"median_rank"}
    assert set(intervals) == measures
    each = found.per_query
    low, high = bootstrap(each.recall[:, 1])
    assert intervals["R@5"] == (pytest.approx(low[0]), pytest.approx(high[0]))
    classes = np.array([sorted(set(labels)).index(label) for label in labels])[each.query]
    low, high = bootstrap(each.ap, classes)
    assert intervals["macro_mAP"] == (pytest.approx(low[0]), pytest.approx(high[0]))
    for name, (lower, upper) in intervals.items():
        assert lower <= found.to_json()[name] <= upper, name


def test_a_result_file_carries_its_intervals_and_gives_them_back(save: Save, tmp_path: Path) -> None:
    random, keys = np.random.default_rng(1), [f"k{n}" for n in range(23)]
    left, right = (save(name, keys, random.standard_normal((23, 3))) for name in ("left", "right"))
    report = evaluate(query=left, gallery=right, output=tmp_path / "r.json")
    record = read_result(tmp_path / "r.json")
    assert record["intervals"]["level"] == 0.95
    assert record["query_to_gallery"]["interval"]["R@1"] == list(report.interval_there["R@1"])
    again = RetrievalReport.from_json(record)
    assert again.interval_back == report.interval_back
    assert again.to_json() == report.to_json() == record


def test_a_file_of_version_1_is_read_and_one_of_tomorrow_is_not(tmp_path: Path) -> None:
    for version in (1, 2):
        (tmp_path / "r.json").write_text(json.dumps({"format": "cmcr-evaluation", "version": version}))
        assert read_result(tmp_path / "r.json")["version"] == version
    (tmp_path / "r.json").write_text(json.dumps({"format": "cmcr-evaluation", "version": 3}))
    with pytest.raises(Exception, match="this package reads 1 to 2"):
        read_result(tmp_path / "r.json")


def test_figures_of_localization_lie_inside_their_intervals() -> None:
    random = np.random.default_rng(2)
    found = Detection(random.random(70) < 0.6, random.random(70), random.random(70))
    heard = found.ciou[found.audible]
    assert np.mean([success_auc(heard[n : n + 1]) for n in range(len(heard))]) == pytest.approx(success_auc(heard))
    figures = {"cIoU@0.5": (heard >= 0.5).mean(), "AUC": success_auc(heard), "mean cIoU": heard.mean()}
    for name, (low, high) in localization_intervals(found).items():
        assert low < figures[name] < high, name
    intervals = counterfactual_intervals(found)
    for name, value in (("AP", found.average_precision()), ("max-F1", found.max_f1())):
        low, high = intervals[name]
        assert low < value < high, name
    assert counterfactual_intervals(found) == intervals
    assert set(intervals) > set(localization_intervals(found))
