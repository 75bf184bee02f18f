"""cIoU, AUC, AP and F1 against the functions of the repositories that published them.

``golden/slavc.json`` holds what those functions returned for the maps of :func:`cases` and the sets of
:func:`detection` (NumPy's legacy generator, whose stream is fixed). It was made once, outside this repository, by a
script that imports ``utils.py`` of stoneMo/SLAVC (commit 05b429c) and of hche11/Localizing-Visual-Sounds-the-Hard-Way
(commit 8fe8cbb) with empty modules in place of cv2, torchvision and timm, takes ``bbox2gtmap`` from SLAVC's
datasets.py, and repeats the loops of the two test.py: ``EvaluatorFull.update`` with the map scaled by
``normalize_img`` and the threshold of ``--relative_prediction --pred_size 0.5`` (relative), or the map as it is and 0.5
(absolute); for LVS the strict threshold of its test.py and ``Evaluator.cal_CIOU`` over the frames with boxes. None of
their code is kept here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import CmcrError
from cmcr.pipeline.evaluation.localization_measures import (
    Detection,
    box_map,
    confidence,
    consensus_iou,
    predicted_mask,
    success_auc,
    success_rate,
)
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = json.loads((Path(__file__).parent / "golden" / "slavc.json").read_text(encoding="utf-8"))
SEEDS = {"vggss": (11, 1), "flickr": (12, 2)}  # seed, boxes that make a pixel count fully


def cases(seed: int, count: int = 57) -> list[tuple[list[Any], np.ndarray]]:
    """Boxes and maps (224, 224) of the golden file; no boxes: nothing sounds."""
    random = np.random.RandomState(seed)
    out = []
    for number in range(count):
        boxes = random.randint(0, 4)
        edges = np.sort(random.randint(0, 257, size=(boxes, 2, 2)), axis=2) / 256.0  # (boxes, axis, low or high)
        shares = [(x[0], y[0], x[1], y[1]) for x, y in edges]
        coarse = random.randint(0, 64, size=(14, 14)) / 126.0
        centre = (np.arange(14) + 0.5) / 14
        for left, top, right, bottom in shares:
            if number % 3:
                coarse[np.ix_((centre > top) & (centre < bottom), (centre > left) & (centre < right))] += 0.5
        out.append((shares, np.kron(np.minimum(coarse, 1), np.ones((16, 16)))))
    return out


def detection(seed: int, count: int) -> Detection:
    """A set of the golden file, full of equal confidences."""
    random = np.random.RandomState(seed)
    audible, ciou = random.randint(0, 3, count) > 0, random.randint(0, 101, count) / 100.0
    return Detection(audible, ciou, random.randint(0, max(3, count // 2), count) / count)


@pytest.mark.parametrize("benchmark", ["vggss", "flickr"])
def test_every_map_and_set_measure_is_that_of_lvs_and_slavc(benchmark: str) -> None:
    seed, consensus = SEEDS[benchmark]
    items, want = cases(seed), GOLDEN[benchmark]
    truths = [box_map(boxes, consensus) for boxes, _ in items]
    audible = np.array([bool(boxes) for boxes, _ in items])
    sure = np.array([confidence(scores) for _, scores in items])
    assert sure == pytest.approx(np.array(want["confidence"]), abs=1e-12)
    for rule, name in (("lvs", "lvs"), ("slavc", "relative"), ("absolute", "absolute")):
        masks = [predicted_mask(scores, rule) for _, scores in items]  # type: ignore[arg-type]
        ciou = np.array([consensus_iou(mask, truth) for mask, truth in zip(masks, truths, strict=True)])
        heard = ciou[audible]
        # null: theirs divides 0 by 0 where nothing is predicted and nothing sounds; no measure tells it from 0
        theirs = np.array([value or 0.0 for value in want[name]["ciou"]])
        assert (heard if rule == "lvs" else ciou) == pytest.approx(theirs, abs=1e-12)
        assert success_auc(heard) == pytest.approx(want[name]["auc"], abs=1e-12)
        if rule == "lvs":
            assert success_rate(heard) == pytest.approx(want[name]["at50"], abs=1e-12)
            continue
        found = Detection(audible, ciou, sure)
        assert found.average_precision() == pytest.approx(want[name]["ap"], abs=1e-12)
        assert found.average_precision(0.75) == pytest.approx(want[name]["ap75"], abs=1e-12)
        assert found.max_f1_of_tenths() == pytest.approx(want[name]["f1"], abs=1e-12)
        assert found.max_f1() == pytest.approx(want[name]["all_f1"], abs=1e-12)


@pytest.mark.parametrize("golden", GOLDEN["sets"], ids=lambda golden: str(golden["n"]))
def test_ap_f1_and_auc_of_sets_with_equal_confidences_are_those_of_slavc(golden: dict[str, Any]) -> None:
    found = detection(golden["seed"], golden["n"])
    assert found.average_precision() == pytest.approx(golden["ap"], abs=1e-12)
    assert found.max_f1_of_tenths() == pytest.approx(golden["f1"], abs=1e-12)
    assert success_auc(found.ciou[found.audible]) == pytest.approx(golden["auc"], abs=1e-12)


def naive_precision_recall(found: Detection, threshold: float) -> tuple[float, float]:
    """By the definition, item by item."""
    true = false = missed = 0
    for audible, ciou, sure in zip(found.audible, found.ciou, found.confidence, strict=True):
        if sure >= threshold:
            true, false = true + (audible and ciou >= 0.5), false + (not audible or ciou < 0.5)
        else:
            missed += audible
    return (true / (true + false) if true + false else 1.0), (true / (true + missed) if true + missed else 1.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=12))
def test_precision_and_recall_follow_their_definition_at_any_threshold(rows: list[tuple[bool, int, int]]) -> None:
    audible, ciou, sure = (np.array(column) for column in zip(*rows, strict=True))
    found = Detection(audible, ciou / 4, sure / 5)
    thresholds = np.arange(-1, 8) / 5
    precision, recall = found.precision_recall(thresholds)
    want = [naive_precision_recall(found, threshold) for threshold in thresholds]
    assert np.stack([precision, recall], 1) == pytest.approx(np.array(want))
    best = max((2 * p * r / (p + r) if p + r else 0.0) for p, r in (naive_precision_recall(found, t) for t in sure / 5))
    assert found.max_f1() == pytest.approx(best)


def test_a_constant_map_covers_nothing_or_everything_as_the_rules_have_it() -> None:
    flat = np.full((224, 224), 0.25)
    assert predicted_mask(flat, "lvs").sum() == 0
    assert predicted_mask(flat, "slavc").all()
    assert not predicted_mask(flat, "absolute").any()
    assert consensus_iou(predicted_mask(flat, "lvs"), box_map([])) == 0
    assert consensus_iou(predicted_mask(flat, "slavc"), box_map([(0, 0, 1, 1)])) == 1
    with pytest.raises(CmcrError, match="no rule 'best'"):
        predicted_mask(flat, "best")  # type: ignore[arg-type]


def test_two_annotators_have_to_agree_for_a_pixel_to_count_fully() -> None:
    left, all_of_it = (0.0, 0.0, 0.5, 1.0), (-0.2, 0.0, 1.3, 1.0)
    agreed = box_map([left, all_of_it], consensus=2)
    assert agreed[0, 0] == 1
    assert agreed[0, 200] == 0.5
    assert box_map([left, all_of_it]).min() == 1
