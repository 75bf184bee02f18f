"""Zero-shot classification: items against class names in prompt templates; see ``docs/evaluation.md``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...cache.errors import CmcrError
from ...cache.reader import Cache
from ...trainer.connector import Connector
from ...trainer.device import resolve_device
from ...trainer.metrics import RetrievalMetrics, rank_metrics
from ...trainer.ranking import Relevance, Scores
from ...trainer.scoring import score_blocks
from ..relevance import read_labels
from ..shared import SharedView, as_cache, as_connector
from .class_sources import ClassSettings, ClassVectors, make_class_vectors
from .intervals import HOW, Intervals, from_json, of_columns, to_json
from .prompts import normal_name
from .results import check_place, existing_result, subject, write_result
from .rows import check_one_space, shared_rows

if TYPE_CHECKING:
    from rich.table import Table

Ints = npt.NDArray[np.int64]
TOP = (1, 3, 5)
_BLOCK = 1024
_CONFUSED = 20


@dataclass(frozen=True)
class ClassificationReport:
    """Figures of one run; shares between 0 and 1.

    Parameters
    ----------
    classes : tuple of str
        Names, in the order of the list.
    accuracy, macro : mapping of int to float
        Top-k accuracy over items; mean over items of a class, then over the classes that have items.
    per_class : mapping of str to (int, float)
        Items and top-1 accuracy of each class that has items.
    confusion : (C, C) int64
        Items by true class (row) and predicted class (column, the first of the best); empty for a report read back.
    skipped : int
        Items whose label is no class, or that have none.
    record : mapping
        What was evaluated, without times and absolute paths.
    interval : mapping of str to (float, float)
        95% bootstrap intervals over the items: ``top1``, ``macro_top1``, ...
    """

    classes: tuple[str, ...]
    accuracy: Mapping[int, float]
    macro: Mapping[int, float]
    per_class: Mapping[str, tuple[int, float]]
    confusion: Ints
    skipped: int
    record: Mapping[str, Any]
    interval: Intervals

    @property
    def items(self) -> int:
        """Items that were classified."""
        return sum(count for count, _ in self.per_class.values())

    @property
    def chance(self) -> dict[int, float]:
        """Top-k accuracy of a random order."""
        return {k: min(1.0, k / len(self.classes)) for k in self.accuracy}

    def most_confused(self, limit: int = _CONFUSED) -> list[tuple[str, str, int]]:
        """True class, predicted class and count of the most frequent mistakes."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        rows, columns = np.nonzero(wrong)
        order = np.lexsort((columns, rows, -wrong[rows, columns]))[:limit]
        found = zip(rows[order], columns[order], strict=True)
        return [(self.classes[row], self.classes[column], int(wrong[row, column])) for row, column in found]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able record; equal input gives equal content."""
        return {
            **self.record,
            "figures": {
                **{f"top{k}": value for k, value in self.accuracy.items()},
                **{f"macro_top{k}": value for k, value in self.macro.items()},
                **{f"chance_top{k}": value for k, value in self.chance.items()},
                "items": self.items,
                "skipped": self.skipped,
            },
            "intervals": HOW,
            "interval": to_json(self.interval),
            "classes": list(self.classes),
            "per_class": {name: {"items": count, "top1": share} for name, (count, share) in self.per_class.items()},
            "most_confused": [list(entry) for entry in self.most_confused()] if self.confusion.size else [],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ClassificationReport:
        """A report as it was written; without its confusion matrix."""
        own = ("figures", "classes", "per_class", "most_confused", "intervals", "interval")
        figures = record["figures"]

        def cuts(prefix: str) -> dict[int, float]:
            return {int(n.removeprefix(prefix)): v for n, v in figures.items() if n.startswith(prefix)}

        return cls(
            classes=tuple(record["classes"]),
            accuracy=dict(sorted(cuts("top").items())),
            macro=dict(sorted(cuts("macro_top").items())),
            per_class={name: (entry["items"], entry["top1"]) for name, entry in record["per_class"].items()},
            confusion=np.empty((0, 0), np.int64),
            skipped=figures["skipped"],
            record={name: value for name, value in record.items() if name not in own},
            interval=from_json(record["interval"]),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks: items that were left out."""
        total = self.items + self.skipped
        left_out = f"{self.skipped:,} of {total:,} items are left out: their label is none of the classes"
        return (left_out,) if self.skipped else ()

    def table(self) -> Table:
        """The figures as a table for the terminal, in percent."""
        from rich.table import Table

        title = f"Zero-shot classification, percent; {len(self.classes)} classes, {self.items:,} items"
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for k in self.accuracy:
            table.add_column(f"top-{k}", justify="right")
        for name, values in (("accuracy", self.accuracy), ("macro", self.macro), ("chance", self.chance)):
            table.add_row(name, *(f"{100 * value:.2f}" for value in values.values()))
        return table


def evaluate_classification(
    query: Cache | str | Path,
    classes: ClassSettings,
    *,
    label: str = "label",
    connector: Connector | str | Path | None = None,
    output: str | Path | None = None,
    confusion: str | Path | None = None,
    device: str | None = None,
    skip_existing: bool = False,
) -> ClassificationReport:
    """Classify the rows of a cache by the class whose vector is nearest.

    Parameters
    ----------
    query : Cache or path
        Items, with their class in a field of /meta.
    classes : ClassSettings
        Names, templates, and what encodes them; or a cache of prompts.
    label : str
        The field of /meta; names are compared without case, ``_`` as a space.
    connector : Connector or path, optional
        None where items and prompts are in one space.
    output : path, optional
        A JSON file, written atomically.
    confusion : path, optional
        A PNG with the confusion of the classes.
    device : str, optional
        Where encoder, heads and scores are computed.
    skip_existing : bool
        Return what ``output`` holds where it is of this very subject.

    Raises
    ------
    CmcrError
        No row has the label; no label is a class; names, templates or encoder are missing; spaces do not fit.
    """
    place = check_place(output, skip_existing)
    loaded = None if connector is None else as_connector(connector, device)
    where = str(loaded.device if loaded is not None else resolve_device(device or "cpu"))
    view = SharedView(as_cache(query), loaded)
    views = {"query": view}
    check_one_space(views, loaded)
    if classes.prompts is not None:
        views["prompts"] = SharedView(as_cache(classes.prompts), loaded)
        check_one_space(views, loaded)
    record = subject("classification", loaded, views, {"label": label, **classes.record(view.cache.modality)})
    if place is not None and skip_existing and (found := existing_result(place, record)) is not None:
        return ClassificationReport.from_json(found)
    targets = make_class_vectors(classes, view, views.get("prompts"), loaded, where)
    report = _measure(view, targets, label, record, where)
    if confusion is not None:
        from .overlays import confusion_picture

        confusion_picture(report.confusion, report.classes, Path(confusion))
    if place is not None:
        write_result(report.to_json(), place)
    return report


def _measure(
    view: SharedView, targets: ClassVectors, label: str, record: Mapping[str, Any], device: str
) -> ClassificationReport:
    labels = read_labels(view.cache, label)
    truth = class_numbers(labels, targets.names)
    if (truth < 0).all():
        raise CmcrError(
            f"No label {label!r} of the items is one of the {len(targets.names)} classes.",
            where=f"labels such as {sorted({name for name in labels if name is not None})[:3]}; "
            f"classes such as {list(targets.names[:3])}",
            todo="use the same names, or another --label",
        )
    best = np.empty(len(view), np.int64)
    with shared_rows(view) as rows:
        scores = _watched(score_blocks(rows, targets.vectors, _BLOCK, device), best)
        metrics = classify(scores, truth, len(targets.names))
    return _summary(metrics, truth, best, targets.names, record)


def class_numbers(labels: Sequence[str | None], classes: Sequence[str]) -> Ints:
    """Class of each label (N,), -1 for none of them."""
    number = {normal_name(name): n for n, name in enumerate(classes)}
    return np.array([-1 if name is None else number.get(normal_name(name), -1) for name in labels], np.int64)


def classify(scores: Iterable[tuple[int, Scores]], truth: Ints, classes: int) -> RetrievalMetrics:
    """Top-k accuracy as recall of the true class: ties count their expectation, so a constant head scores chance."""
    asked = np.flatnonzero(truth >= 0)
    return rank_metrics(scores, Relevance.from_rows(asked, truth[asked], len(truth), classes), ks=TOP)


def _watched(scores: Iterable[tuple[int, Scores]], best: Ints) -> Iterator[tuple[int, Scores]]:
    """Scores as they pass, with the number of the best class of each item written to ``best`` (N,)."""
    for start, block in scores:
        best[start : start + len(block)] = block.argmax(axis=1)
        yield start, block


def _summary(
    metrics: RetrievalMetrics, truth: Ints, best: Ints, classes: tuple[str, ...], record: Mapping[str, Any]
) -> ClassificationReport:
    each = metrics.per_query
    mine = truth[each.query]  # (Q',)
    counts = np.bincount(mine, minlength=len(classes))  # (C,)
    present = np.flatnonzero(counts)
    shares = [np.bincount(mine, each.recall[:, i], minlength=len(classes))[present] / counts[present] for i in range(3)]
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (mine, best[each.query]), 1)
    return ClassificationReport(
        classes=classes,
        accuracy=dict(metrics.recall),
        macro={k: float(share.mean()) for k, share in zip(TOP, shares, strict=True)},
        per_class={classes[c]: (int(counts[c]), float(shares[0][i])) for i, c in enumerate(present)},
        confusion=confusion,
        skipped=metrics.skipped,
        record=record,
        interval={
            **of_columns({f"top{k}": each.recall[:, i] for i, k in enumerate(TOP)}),
            **of_columns({f"macro_top{k}": each.recall[:, i] for i, k in enumerate(TOP)}, mine),
        },
    )
