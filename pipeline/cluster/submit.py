"""Submit a command as a job array: the very command that runs alone, as often as there are tasks."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...cache import fsio, housekeeping
from ...cache.errors import CmcrError, RecipeError
from . import record, scheduler
from .foresee import Foreseen, command_words, foresee, is_split_by_number
from .options import JobOptions
from .queue import queue_of
from .record import Submitted
from .task import Task

POLL = 1.0  # seconds between two looks at the tasks


@dataclass(frozen=True)
class Submission:
    """What was submitted, or would be.

    Parameters
    ----------
    words : tuple of str
        The command of every task.
    output : Path
        What it fills.
    options : JobOptions
        As many tasks as there is work for.
    plan : mapping
        What the command's own dry run says.
    shards : int
        Shards to do.
    script : str
        What sbatch gets; empty for local tasks.
    jobs : tuple of str
        Ids; empty where nothing was submitted.
    logs : str
        Folder of the tasks' logs.
    notes : tuple of str
        Remarks for the reader.
    interrupted : bool
        Ctrl-C came while the tasks were started, which it did not break off: waiting for them raises KeyboardInterrupt.
    """

    words: tuple[str, ...]
    output: Path
    options: JobOptions
    plan: dict[str, Any]
    shards: int
    script: str = ""
    jobs: tuple[str, ...] = ()
    logs: str = ""
    notes: tuple[str, ...] = ()
    submitted: Submitted | None = field(default=None, repr=False)
    interrupted: bool = False

    @property
    def command(self) -> str:
        """The command as one types it."""
        return shlex.join(["cmcr", *self.words])

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until no task runs or is queued; False when ``seconds`` passed before that."""
        if self.interrupted:
            raise KeyboardInterrupt
        end = None if seconds is None else time.monotonic() + seconds
        while self.submitted is not None:
            scheduler.collect()
            queue = queue_of([self.submitted])
            if queue is not None and queue.tasks == 0:
                break
            if end is not None and time.monotonic() > end:
                return False
            time.sleep(POLL)
        return True

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {
            "command": self.command,
            "output": str(self.output),
            "shards": self.shards,
            "options": self.options.record(),
            "plan": self.plan,
            "script": self.script,
            "jobs": list(self.jobs),
            "logs": self.logs,
            "notes": list(self.notes),
        }


def submit(command: str | Sequence[str], *, dry_run: bool = False, **options: Any) -> Submission:
    """Run a command of cmcr as a job array.

    Every task runs the same command; tasks share its shards by leases, so any of them may die, start late or run
    twice. The command's own dry run is made here first: flags, inputs, caches and weights are right before anything is
    queued.

    Parameters
    ----------
    command : str or sequence of str
        ``encode``, ``complete``, ``project`` or ``fit`` with its flags, as on the command line.
    dry_run : bool
        Say what would be submitted, and queue nothing.
    options
        The fields of :class:`JobOptions`: ``tasks``, ``gpus``, ``partition``, ``time``, ``cluster``, ...

    Raises
    ------
    RecipeError
        No such command, or options that do not fit it.
    MissingExtraError
        submitit is not installed.
    DeviceError
        ``cluster="local"`` and more GPUs than this machine has.
    CmcrError
        The command itself is not right, or the scheduler refuses it.
    """
    words = command_words(command)
    asked = JobOptions.asked(options)
    check(words, asked)
    if not dry_run:
        scheduler.check_installed(asked)
    return launch(words, asked, foresee(words, asked.tasks), dry_run=dry_run)


def launch(
    words: Sequence[str], asked: JobOptions, seen: Foreseen, *, dry_run: bool = False, notes: Sequence[str] = ()
) -> Submission:
    """Submit a command of which everything is known to be right; nothing where there is nothing to do."""
    options, notes = asked, list(notes)
    if seen.shards < asked.tasks:
        options = replace(asked, tasks=max(1, seen.shards))
        notes.append(f"{asked.tasks} tasks for {seen.shards} shards: {options.tasks} submitted" if seen.shards else "")
    if words[0] != "fit":
        housekeeping.refuse_foreign_folder(seen.output)
    if options.cluster == "local" and seen.shards:
        scheduler.gpus_of_tasks(options)
    folder = _folder(words, seen.output)
    script = ""
    if options.cluster == "slurm":
        script = scheduler.sbatch_script(options, folder, scheduler.job_name(words))
    made = Submission(
        tuple(words), seen.output, options, seen.record, seen.shards, script, notes=tuple(filter(None, notes))
    )
    if dry_run or seen.shards == 0:
        return made
    minutes = options.minutes if options.cluster == "slurm" or asked.time != JobOptions.time else 0
    with scheduler.held_interrupts() as heard:
        with _made_folder(folder):
            submitted = scheduler.start(Task(words, str(seen.output), minutes), options, folder)
        if words[0] != "fit":
            record.write(seen.output, submitted)
    return replace(made, jobs=submitted.jobs, logs=submitted.folder, submitted=submitted, interrupted=bool(heard))


def _folder(words: Sequence[str], output: Path) -> Path:
    """Where submitit keeps scripts and logs: under ``runs/`` of a cache, beside the folder of a fit."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    if words[0] == "fit":
        return output.with_name(f"{output.name}.jobs") / stamp
    return output / "runs" / "jobs" / stamp


@contextlib.contextmanager
def _made_folder(folder: Path) -> Iterator[None]:
    """The folder of the logs; where the submission comes to nothing, what was made for it is removed again."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        fsio.make_folder(folder)
    except OSError as error:
        raise CmcrError(f"cannot make the folder of the logs: {error.strerror}", where=str(folder)) from error
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for place in new[1:]:
            with contextlib.suppress(OSError):  # somebody put something there
                place.rmdir()
        raise


def check(words: Sequence[str], options: JobOptions) -> None:
    """Hold the options against the command and the cluster.

    Raises
    ------
    RecipeError
    """
    if words[0] == "fit" and (options.tasks > 1 or options.gpus > 1):
        what = f"{options.tasks} tasks" if options.tasks > 1 else f"{options.gpus} GPUs of one task"
        raise RecipeError(
            f"a fit is one process, and {what} would not share it",
            where="cmcr submit -- fit",
            todo="--tasks 1, with --gpus 1 at most; several processes train together under torchrun (docs/cluster.md)",
        )
    if options.cluster != "local":
        return
    if unused := options.slurm_only():
        raise RecipeError(
            f"processes of this machine have no use for {', '.join(f'--{name}' for name in unused)}",
            where="--cluster local",
            todo="leave it out; all tasks run at once, so --tasks says how many",
        )
    if is_split_by_number(words):
        raise RecipeError(
            "processes of this machine have no number for --worker auto",
            where="--cluster local",
            todo="leave --worker out: tasks share the shards by leases",
        )
