"""``demo``: the whole job in the sandbox world through the public API, with a report to look at and to listen to."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...cache.errors import CmcrError
from ...cache.fsio import write_atomic
from ..encode import encode
from ..evaluate import evaluate
from ..sandbox.corpora import SandboxCorpora, SandboxSizes, write_corpora
from .page import write_report
from .results import DemoResult, MethodResult, TaskResult, figures
from .tasks import TASKS, TRUE_PAIRS, Task, corpora_to_encode

SIZES = {
    "full": SandboxSizes(captions=8_000, images=1_500, sounds=1_500, clouds=800, evaluation=200, pairs=1_200),
    "small": SandboxSizes(captions=1_000, images=200, sounds=200, clouds=150, evaluation=40, pairs=150),
}
TRAINED = {"full": 1.0, "small": 0.2}

Say = Callable[[str], None]


def demo(
    output: str | Path,
    *,
    seed: int = 0,
    size: str = "full",
    only_corpora: bool = False,
    overwrite: bool = False,
    say: Say | None = None,
) -> DemoResult:
    """Write corpora, encode them, fit every method, evaluate, search, and leave ``metrics.json`` and ``report.html``.

    Parameters
    ----------
    output : path
        Folder for everything. Run again, the demo goes on where it was.
    seed : int
        Of the world and of the fits. The encoders are the shipped ones whatever the seed.
    size : {"full", "small"}
        ``small`` shows the machinery in a fraction of the time; its figures mean little.
    only_corpora : bool
        Write the corpora and stop, for trying the commands by hand.
    overwrite : bool
        Begin again in a folder that a demo with other settings has used.
    say : callable, optional
        Gets one line a stage.

    Returns
    -------
    DemoResult
    """
    from ...trainer.rendezvous import refuse_several

    refuse_several("the demo")
    if size not in SIZES:
        raise CmcrError(f"There is no demo of the size {size!r}.", todo=f"one of: {', '.join(SIZES)}")
    run = _Run(Path(output), seed, size, say or (lambda line: None))
    run.claim(overwrite)
    with run.stage("corpora", "pictures, sounds, point clouds and captions of one synthetic world"):
        corpora = write_corpora(run.output / "corpora", seed, SIZES[size])
    result = DemoResult(run.output, seed, corpora, stages=run.stages)
    if only_corpora:
        return result
    with run.stage("encode", "every corpus through its frozen encoder into a cache"):
        run.encode(corpora)
    for task in TASKS:
        result.tasks.append(run.task(task))
    with run.stage("report", "examples, pictures and sounds"):
        write_report(result)
    write_atomic(run.output / "metrics.json", (json.dumps(result.to_json(), indent=2, sort_keys=True) + "\n").encode())
    return result


class _Run:
    """One demo while it runs."""

    def __init__(self, output: Path, seed: int, size: str, say: Say) -> None:
        self.output = output
        self.seed = seed
        self.size = size
        self.say = say
        self.stages: list[tuple[str, str, float]] = []

    def claim(self, overwrite: bool) -> None:
        """Make the folder this demo's; refuse one that holds a demo with other settings, or something else."""
        mark = self.output / "demo.json"
        mine = json.dumps({"seed": self.seed, "size": self.size}, sort_keys=True) + "\n"
        if self.output.exists() and any(self.output.iterdir()):
            if not mark.exists():
                raise CmcrError(
                    "The folder holds something else.", where=str(self.output), todo="choose another --output"
                )
            if overwrite:
                self.clear()
            elif mark.read_text(encoding="utf-8") != mine:
                raise CmcrError(
                    "The folder holds a demo with another seed or size.",
                    where=str(self.output),
                    todo="--overwrite, or another --output",
                )
        self.output.mkdir(parents=True, exist_ok=True)
        write_atomic(mark, mine.encode())

    def clear(self) -> None:
        """Remove what a demo writes, and nothing else."""
        for name in ("corpora", "caches", "connectors"):
            shutil.rmtree(self.output / name, ignore_errors=True)
        for name in ("report.html", "metrics.json"):
            (self.output / name).unlink(missing_ok=True)

    @contextmanager
    def stage(self, name: str, detail: str) -> Iterator[None]:
        """Time a stage and say that it begins."""
        self.say(f"{name}: {detail}")
        start = time.perf_counter()
        yield
        self.stages.append((name, detail, time.perf_counter() - start))

    def encode(self, corpora: SandboxCorpora) -> None:
        """Every corpus that a task needs."""
        for name, modality, encoder, place in corpora_to_encode(corpora):
            encode(place, self.cache(name), modality=modality, encoder=encoder, batch_size=256)

    def cache(self, name: str) -> Path:
        return self.output / "caches" / name

    def task(self, task: Task) -> TaskResult:
        """Fit every method, and C-MCR's projectors on true pairs, and evaluate them on the held-out objects."""
        from ...trainer.connector import Connector

        rows: list[MethodResult] = []
        with self.stage(task.title, f"fit and evaluate {', '.join(task.methods)}, and {TRUE_PAIRS}"):
            for method in (*task.methods, TRUE_PAIRS):
                connector = self.fit(task, method)
                report = evaluate(query=self.cache(task.query), gallery=self.cache(task.gallery), connector=connector)
                made = Connector.load(connector).info.made_from
                chose = str(made.get("chosen", {}).get("expert", ""))
                rows.append(
                    MethodResult(method, connector, report, figures(report.there.to_json()), made["rows"], chose)
                )
        chance = rows[0].report
        assert chance is not None
        rows.insert(0, MethodResult("chance", None, None, figures(chance.chance_there.to_json())))
        return TaskResult(task, tuple(rows))

    def fit(self, task: Task, method: str) -> Path:
        """One connector; a finished one is taken as it is."""
        from ...trainer.fit import fit

        folder = self.output / "connectors" / task.name / method
        if not (folder / "config.json").exists():
            spaces = task.spaces(self.cache, paired=method == TRUE_PAIRS)
            settings = task.settings(method, self.seed, TRAINED[self.size])
            fit(space=spaces, output=folder, completions=str(self.output / "caches" / "completions"), **settings)
        return folder
