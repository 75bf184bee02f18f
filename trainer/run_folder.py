"""The output folder of a fit while it runs: recipe, metrics, checkpoint, and whether they may be continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..cache.errors import FitError
from ..cache.fsio import is_temporary, sweep, write_atomic
from .checkpoint import Checkpoint, capture, load_checkpoint, save_checkpoint
from .ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .early_stop import EarlyStop, Validator

Progress = Callable[[int, int, Mapping[str, Any]], None]

CONFIG = "config.json"
RECIPE = "recipe.toml"
METRICS = "metrics.jsonl"
EVENTS = "tensorboard"
EVALS = "eval.json"
CHECKPOINT = "checkpoint.safetensors"
# Everything that a fit writes, the file that says "finished" first.
_OWN = (CONFIG, "connector.safetensors", RECIPE, METRICS, CHECKPOINT, "curve.png", "README.md", EVENTS, EVALS, "runs")


class RunFolder:
    """What a fit writes as it goes; the :class:`~cmcr.trainer.methods.base.FitRun` of ``cmcr fit``.

    A finished folder holds ``config.json``, which is written last. A folder with a recipe and without it was
    interrupted.
    """

    def __init__(self, folder: Path, identity: str, progress: Progress | None = None, ranks: Ranks = ALONE) -> None:
        self.folder = folder
        self.identity = identity
        self.ranks = ranks
        self.validator: Validator | None = None
        self.chosen: dict[str, Any] = {}
        self._progress = progress
        self._checkpoint = _checkpoint_of(folder, identity)
        self._metrics = _cut_metrics(folder / METRICS, 0 if self._checkpoint is None else self._checkpoint.step)

    @classmethod
    def open(
        cls,
        folder: Path,
        recipe: str,
        identity: str,
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
        ranks: Ranks = ALONE,
    ) -> RunFolder:
        """Begin a fit in ``folder``, or go on with the one that was interrupted there.

        Raises
        ------
        FitError
            The folder holds a finished connector, an interrupted fit of another recipe, or something else.
        """
        cls.check(folder, recipe, overwrite=overwrite)
        if overwrite:
            _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / EVENTS):
            sweep(place)  # what a killed process left half-written
        content = recipe.encode("utf-8")
        if not (folder / RECIPE).exists() or (folder / RECIPE).read_bytes() != content:
            write_atomic(folder / RECIPE, content)
        return cls(folder, identity, progress, ranks)

    @staticmethod
    def check(folder: Path, recipe: str, *, overwrite: bool = False) -> None:
        """Whether a fit of ``recipe`` may write to ``folder``; raises as :meth:`open` does, and changes nothing."""
        if folder.exists() and not folder.is_dir():
            raise FitError("the output is a file, not a folder", where=str(folder), todo="choose another output")
        finished, begun = _is_connector(folder), (folder / RECIPE).exists()
        if not finished and not begun:
            if folder.is_dir() and any(not is_temporary(entry.name) for entry in folder.iterdir()):
                raise FitError(
                    "the folder holds something else", where=str(folder), todo="choose an empty or a new folder"
                )
        elif overwrite:
            return
        elif finished:
            raise FitError(
                "there is a finished connector already", where=str(folder), todo="choose another output, or --overwrite"
            )
        elif (folder / CHECKPOINT).exists() and (folder / RECIPE).read_text(encoding="utf-8") != recipe:
            raise _other_fit("its recipe is another one", folder)

    @staticmethod
    def steps_done(folder: Path) -> int:
        """Steps that an interrupted fit in ``folder`` has done; 0 where there is none."""
        found = load_checkpoint(folder / CHECKPOINT)
        return 0 if found is None else found.step

    @property
    def resumed_at(self) -> int:
        """Steps that an earlier process did; 0 at the start."""
        return 0 if self._checkpoint is None else self._checkpoint.step

    @property
    def note(self) -> str | None:
        """What is to be said of the checkpoint that the fit goes on from; None where there is nothing."""
        before = self.ranks.size if self._checkpoint is None else self._checkpoint.processes
        if before == self.ranks.size:
            return None
        return (
            f"goes on in {self.ranks.size} process{'es' * (self.ranks.size > 1)} after step {self.resumed_at:,}, which "
            f"was reached in {before}: the same fit, but sums are rounded otherwise, so the last digits differ"
        )

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``: no times, so that equal fits give equal files."""
        self._metrics.write(json.dumps(record).encode() + b"\n")
        self._metrics.flush()

    def resume(self) -> Checkpoint | None:
        """The checkpoint to go on from; None at the start."""
        return self._checkpoint

    def save(
        self, step: int, model: nn.Module, optimiser: torch.optim.Optimizer, early: EarlyStop | None = None
    ) -> None:
        """Replace the checkpoint by the state after ``step`` steps."""
        state = capture(step, self.identity, model, optimiser, early, self.ranks.size)
        save_checkpoint(self.folder / CHECKPOINT, state)

    def advance(self, done: int, total: int, record: Mapping[str, Any]) -> None:
        """Pass progress on to the caller of the fit."""
        if self._progress is not None:
            self._progress(done, total, record)

    def chose(self, **values: Any) -> None:
        """Keep settings that the method chose by itself, for the connector's record."""
        self.chosen.update(values)

    def close(self) -> None:
        """Close the metrics; the folder can be opened again."""
        self._metrics.close()

    def finished(self) -> None:
        """Drop the checkpoint of a fit whose connector is written."""
        (self.folder / CHECKPOINT).unlink(missing_ok=True)


class FollowedRun:
    """What a process beside the first has in place of a :class:`RunFolder`: it reads the checkpoint, writes nothing."""

    def __init__(self, folder: Path, identity: str, ranks: Ranks) -> None:
        self.ranks = ranks
        self.validator: Validator | None = None
        self._checkpoint = _checkpoint_of(folder, identity)

    def log(self, record: Mapping[str, Any]) -> None:
        """The first process writes the metrics."""

    def resume(self) -> Checkpoint | None:
        """The checkpoint to go on from; None at the start."""
        return self._checkpoint

    def save(
        self, step: int, model: nn.Module, optimiser: torch.optim.Optimizer, early: EarlyStop | None = None
    ) -> None:
        """The first process saves."""

    def advance(self, done: int, total: int, record: Mapping[str, Any]) -> None:
        """The first process tells."""

    def chose(self, **values: Any) -> None:
        """The first process keeps what was chosen."""


def _checkpoint_of(folder: Path, identity: str) -> Checkpoint | None:
    """The checkpoint in a folder, which is to be of this fit."""
    checkpoint = load_checkpoint(folder / CHECKPOINT)
    if checkpoint is not None and checkpoint.identity != identity:
        raise _other_fit("its caches, the file of its method or the version of cmcr are others now", folder)
    return checkpoint


def _cut_metrics(path: Path, step: int) -> IO[bytes]:
    """Open the metrics for appending, without the lines beyond ``step`` and a torn last one: they come again."""
    kept = b""
    if path.exists() and step > 0:
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n") or json.loads(line).get("step", 0) > step:
                break
            kept += line
    write_atomic(path, kept)
    return path.open("ab", buffering=0)


def _is_connector(folder: Path) -> bool:
    """Whether a fit was finished in this folder; a ``config.json`` of something else does not count."""
    try:
        record = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("format") == "cmcr-connector"


def _other_fit(why: str, folder: Path) -> FitError:
    return FitError(
        f"an interrupted fit is in this folder and cannot be continued: {why}",
        where=str(folder),
        todo="choose another output, or --overwrite to begin anew",
    )


def _clear(folder: Path) -> None:
    """Remove what a fit wrote, and nothing else; the file that says "finished" goes first."""
    for name in _OWN:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
