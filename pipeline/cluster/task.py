"""What one task of a job array does: the command itself, and what happens to it when the scheduler wants it to end."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ...cache import marker as markers

WARNING = signal.SIGUSR2  # sent before the time limit, and by schedulers that preempt politely


class Task:
    """Runs ``cmcr WORDS`` in this very process; pickled by submitit and unpickled where it runs.

    SIGUSR2 ends the command as it ends one at a terminal: the shards in flight are finished. Then the signal goes on to
    submitit, which asks :meth:`checkpoint` whether to queue the task again. After SIGTERM nothing is queued by the
    task: where the scheduler preempts, it queues it again itself.

    Parameters
    ----------
    words : sequence of str
        The command without ``cmcr``.
    output : str
        Absolute path of what it writes.
    minutes : int
        The time limit; 0 for none.
    """

    def __init__(self, words: Sequence[str], output: str, minutes: int) -> None:
        self.words = tuple(words)
        self.output = output
        self.minutes = minutes
        self._started = 0.0
        self._before: object = None

    def __call__(self) -> None:
        """Run the command; ends the process with its exit code, unless that is 0.

        Raises
        ------
        SystemExit
        """
        self._started, self._before = time.monotonic(), self._progress()
        signal.signal(signal.SIGTERM, _leave)
        code = _run(self.words)
        if code == 128 + WARNING:
            os.kill(os.getpid(), WARNING)  # submitit's handler: it queues the task again and ends the process
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> Any:
        """The task as it is to be queued again; None where that would go on for ever."""
        from submitit.helpers import DelayedSubmission

        spent = time.monotonic() - self._started
        if self.minutes and spent > 0.5 * 60 * self.minutes and self._progress() == self._before:
            sys.stderr.write(
                f"error: nothing was finished in {spent / 60:.0f} minutes, so another turn would not help\n"
                "  next:  give --time more, or a new cache a smaller --shard-size\n"
            )
            return None
        return DelayedSubmission(Task(self.words, self.output, self.minutes))

    def _progress(self) -> object:
        """Something that changes when any task gets on: done markers, new and replaced, or the checkpoint of a fit."""
        checkpoint = Path(self.output) / "checkpoint.safetensors"
        if checkpoint.exists():
            return checkpoint.stat().st_mtime_ns
        found = markers.list_markers(Path(self.output) / "shards")
        return {shard: path.stat().st_mtime_ns for shard, path in found.items()}


def _run(words: Sequence[str]) -> int:
    """Run ``python -m cmcr WORDS`` here, and give its exit code."""
    before, sys.argv = sys.argv, ["cmcr", *words]
    try:
        runpy.run_module("cmcr", run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    finally:
        sys.argv = before
    return 0


def _leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM before or after the command's own handling of it: there is nothing to finish."""
    raise SystemExit(128 + number)
