"""What the demo found: figures by method and connection. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluate import RetrievalReport
from ..sandbox.corpora import SandboxCorpora
from .tasks import TRAINED_WITHOUT_PAIRS, TRUE_PAIRS, Task

FORMAT, VERSION = "cmcr-demo", 2


@dataclass(frozen=True)
class MethodResult:
    """One row of the table of a task.

    Parameters
    ----------
    method : str
    connector : Path, optional
    report : RetrievalReport, optional
    figures : mapping
        Measures between 0 and 1, the median rank, and the number of queries.
    rows : int
        Joined rows that it was fitted on.
    chose : str
        The candidate that a method chose without labels, if it has several.
    """

    method: str
    connector: Path | None
    report: RetrievalReport | None
    figures: Mapping[str, float]
    rows: int = 0
    chose: str = ""


@dataclass(frozen=True)
class TaskResult:
    """One connection: what each method reached, chance first, the projectors on true pairs last."""

    task: Task
    rows: tuple[MethodResult, ...]

    def of(self, method: str) -> MethodResult:
        """The row of a method."""
        return next(row for row in self.rows if row.method == method)

    def share(self, method: str) -> float:
        """R@1 of a method over R@1 of C-MCR's projectors fitted on true pairs; above 1 where it beats them."""
        paired = self.of(TRUE_PAIRS).figures["R@1"]
        return self.of(method).figures["R@1"] / paired if paired > 0 else float("nan")

    def standard_error(self, method: str) -> float:
        """Binomial standard error of the R@1 of a method."""
        share, count = self.of(method).figures["R@1"], self.of(method).figures["queries"]
        return float((share * (1 - share) / count) ** 0.5)

    def to_json(self) -> dict[str, Any]:
        """Figures by method, shares between 0 and 1."""
        return {
            "query": self.task.query_modality,
            "gallery": self.task.gallery_modality,
            "methods": {row.method: dict(row.figures) for row in self.rows},
            "share_of_true_pairs": {method: self.share(method) for method in TRAINED_WITHOUT_PAIRS},
        }


@dataclass
class DemoResult:
    """What a demo left behind."""

    output: Path
    seed: int
    corpora: SandboxCorpora
    tasks: list[TaskResult] = field(default_factory=list)
    stages: list[tuple[str, str, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``: no times, no paths, equal for equal seeds."""
        tasks = {result.task.name: result.to_json() for result in self.tasks}
        return {"format": FORMAT, "version": VERSION, "seed": self.seed, "synthetic": True, "tasks": tasks}


def figures(record: Mapping[str, Any]) -> dict[str, float]:
    """The measures of the table."""
    return {name: float(record[name]) for name in ("R@1", "R@5", "R@10", "mAP", "median_rank", "queries")}
