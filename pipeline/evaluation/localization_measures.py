"""Measures of sound source localization on single maps and over a test set; each from the code that published it.

LVS: Chen et al. 2021, "Localizing Visual Sounds the Hard Way", github.com/hche11/Localizing-Visual-Sounds-the-Hard-Way
(test.py, utils.py, commit 8fe8cbb). SLAVC: Mo and Morgado 2022, "A Closer Look at Weakly-Supervised Audio-Visual Source
Localization", github.com/stoneMo/SLAVC (test.py, utils.py, datasets.py, commit 05b429c). Both work on 224 × 224 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...cache.errors import CmcrError
from .lists.entries import Box

Map = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Rule = Literal["lvs", "slavc", "absolute"]
RULES: tuple[Rule, ...] = ("lvs", "slavc", "absolute")
SIDE = 224
IOU = 0.5
_AUC_STEPS = 21


def box_map(boxes: Sequence[Box], consensus: int = 1) -> Map:
    """Boxes as weights of pixels: (224, 224), between 0 and 1.

    A pixel counts min(1, boxes over it / consensus): with 1 the union of the boxes (VGG-SS), with 2 the agreement of
    annotators that Flickr-SoundNet is scored by (LVS, utils.py, ``testset_gt``; SLAVC, datasets.py, ``bbox2gtmap``).

    Parameters
    ----------
    boxes : sequence of Box
        Left, top, right, bottom as shares of width and height; outside 0 to 1 is cut off.
    consensus : int
        Boxes that make a pixel count fully.
    """
    total = np.zeros((SIDE, SIDE))
    for box in boxes:
        left, top, right, bottom = (int(SIDE * min(max(share, 0.0), 1.0)) for share in box)
        total[top:bottom, left:right] += 1
    return np.minimum(total / consensus, 1.0)


def predicted_mask(scores: Map, rule: Rule, threshold: float = 0.5) -> Mask:
    """Pixels that count as the source.

    ``lvs``: above the value in the middle of the sorted map, so at most half of the pixels (test.py: ``pred >
    threshold``). ``slavc``: at or above the value at the share ``threshold`` of the sorted map (test.py,
    ``--relative_prediction``, ``--pred_size``). ``absolute``: at or above ``threshold`` itself (SLAVC without that
    flag, ``--pred_thr``), for scores between 0 and 1.
    """
    if rule == "absolute":
        return np.asarray(scores >= threshold)
    ordered = np.sort(scores, axis=None)
    if rule == "lvs":
        return np.asarray(scores > ordered[scores.size // 2])
    if rule == "slavc":
        return np.asarray(scores >= ordered[int(scores.size * threshold)])
    raise CmcrError(f"There is no rule {rule!r} for the predicted region.", todo=f"one of: {', '.join(RULES)}")


def consensus_iou(mask: Mask, truth: Map) -> float:
    """cIoU = Σ mask · truth / (Σ truth + Σ mask where truth is 0) (LVS and SLAVC, utils.py, ``cal_CIOU``).

    0 where neither has a pixel.
    """
    union = truth.sum() + np.count_nonzero(mask & (truth == 0))
    return float(truth[mask].sum() / union) if union > 0 else 0.0


def success_rate(cious: Floats, threshold: float = IOU) -> float:
    """Share of the maps with a cIoU of at least ``threshold``; published as "cIoU" or "cIoU@0.5" (LVS, test.py)."""
    return float(np.mean(cious >= threshold))


def success_auc(cious: Floats) -> float:
    """Area under the success rate over the thresholds 0, 0.05, ... 1, by trapezoids (LVS, test.py: ``auc(x, ..)``)."""
    # 0.05 * i as there: 0.05 * 3 is not 0.15
    thresholds = np.array([0.05 * i for i in range(_AUC_STEPS)])
    rates = np.array([success_rate(cious, threshold) for threshold in thresholds])
    return float(np.sum((rates[1:] + rates[:-1]) / 2 * np.diff(thresholds)))


def confidence(scores: Map) -> float:
    """Mean of the highest quarter of the map (SLAVC, test.py: ``np.sort(scores_av.flatten())[-n//4:].mean()``)."""
    return float(np.sort(scores, axis=None)[-scores.size // 4 :].mean())


@dataclass(frozen=True)
class Detection:
    """What a test set of audible and inaudible sources is scored by; arrays over its N items.

    ``audible`` (N,) whether the frame shows a source of the sound, ``ciou`` (N,), ``confidence`` (N,).
    """

    audible: Mask
    ciou: Floats
    confidence: Floats

    def precision_recall(self, thresholds: Floats, iou: float = IOU) -> tuple[Floats, Floats]:
        """Precision and recall of calling a source at each threshold (T,) (SLAVC, ``calc_precision_recall``).

        An item is called where its confidence reaches the threshold. True: an audible one that is called and whose
        cIoU reaches ``iou``; false: any other that is called; missed: an audible one that is not called. An audible one
        in the wrong place is false and not missed. Nothing called: precision 1; nothing to find: recall 1.
        """
        right = self.audible & (self.ciou >= iou)
        order = np.argsort(self.confidence, kind="stable")
        ascending = self.confidence[order]
        first = np.searchsorted(ascending, thresholds, side="left")  # (T,) items from there on are called

        def called(flags: Mask) -> Floats:
            below = np.concatenate([[0], np.cumsum(flags[order])])
            return np.asarray(below[-1] - below[first], np.float64)

        true, every = called(right), called(np.ones_like(right))
        missed = self.audible.sum() - called(self.audible)
        precision = np.where(every > 0, true / np.maximum(every, 1), 1.0)
        recall = np.where(true + missed > 0, true / np.maximum(true + missed, 1), 1.0)
        return precision, recall

    def average_precision(self, iou: float = IOU) -> float:
        """AP (SLAVC, ``calc_ap``): Σ (best precision from this recall on) · (step of recall).

        As there, thresholds are every ⌊N/200⌋-th confidence (at least every one) from the last but one downwards, and
        the step up to the first of them does not count.
        """
        step = max(1, len(self.ciou) // 200)
        thresholds = np.sort(self.confidence)[:-1][::-step]
        if not len(thresholds):
            return 0.0
        precision, recall = self.precision_recall(thresholds, iou)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(best[:-1] * np.diff(recall)))

    def f1(self, thresholds: Floats, iou: float = IOU) -> Floats:
        """F1 at each threshold (T,); 0 where precision and recall are."""
        precision, recall = self.precision_recall(thresholds, iou)
        total = precision + recall
        return np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0.0)

    def max_f1(self, iou: float = IOU) -> float:
        """Best F1 over every confidence as threshold (the paper's max-F1, section 5.1)."""
        return float(self.f1(np.unique(self.confidence), iou).max())

    def max_f1_of_tenths(self, iou: float = IOU) -> float:
        """Best of the F1 figures that SLAVC's code prints: every ⌊N/10⌋-th confidence (``finalize_stats``)."""
        thresholds = np.sort(self.confidence)[:: max(1, len(self.ciou) // 10)]
        return float(self.f1(thresholds, iou).max())
