"""Submit again what failed: the recorded command, for the shards that are not done and those that lost items."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...cache.errors import CacheError, CmcrError
from .foresee import foresee
from .options import JobOptions
from .record import read
from .scheduler import check_installed
from .status import status
from .submit import Submission, check, launch


def retry(path: str | Path, *, dry_run: bool = False, **options: Any) -> Submission:
    """Submit the recorded command of a cache again, for what failed.

    What failed are the shards that are not done, and of an encode also those that lost items; shards that are done stay
    as they are. As many tasks are submitted as such shards, at most as many as before.

    Parameters
    ----------
    path : path
        The cache.
    dry_run : bool
        Say what would be submitted, and queue nothing.
    options
        Fields of :class:`JobOptions` that are to be others than before.

    Raises
    ------
    CacheError
        There is no cache, or no submission is recorded.
    RecipeError
        No such option, or one that does not fit the cluster.
    CmcrError
        Tasks of an earlier submission still run or wait, or the command is not right any more.
    """
    path = Path(path)
    now = status(path)
    newest = next(read(path), None)
    if newest is None:
        raise CacheError(
            "No submission is recorded for this cache.",
            where=str(path / "runs"),
            todo="run the command that made it again, or: cmcr submit --tasks N -- and that command",
        )
    if now.queue is not None and now.queue.tasks:
        raise CmcrError(
            f"{now.queue.running} tasks of this cache run and {now.queue.waiting} wait; they do what is left",
            where=str(path),
            todo=f"wait for them (cmcr status {path}), or end them: {end_command(newest.cluster, newest.jobs)}",
        )
    before, notes = newest.options, []
    if options.get("cluster", before.cluster) == "local" and (unused := before.slurm_only()):
        notes.append(f"left out, as processes of this machine have no use for it: {', '.join(unused)}")
        before = before.for_local()
    asked = JobOptions.asked(options, before)
    words = list(newest.words)
    if words[0] == "encode" and now.lost and "--retry-failed" not in words:
        words.append("--retry-failed")
    check(words, asked)
    if not dry_run:
        check_installed(asked)
    with _within(Path(newest.cwd)):
        return launch(words, asked, foresee(words, asked.tasks), dry_run=dry_run, notes=notes)


def end_command(cluster: str, jobs: tuple[str, ...]) -> str:
    """What ends these tasks."""
    if cluster == "local":
        return f"kill {' '.join(jobs)}"
    return f"scancel {' '.join(dict.fromkeys(job.partition('_')[0] for job in jobs))}"


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[None]:
    """Relative paths of the command mean what they meant."""
    before = Path.cwd()
    try:
        os.chdir(folder)
    except OSError as error:
        raise CmcrError(
            f"the folder that the command was submitted in cannot be entered: {error.strerror}", where=str(folder)
        ) from error
    try:
        yield
    finally:
        os.chdir(before)
