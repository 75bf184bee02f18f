"""What of a submission still runs or waits: asked of squeue, which needs no accounting, and of this machine."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .record import Submitted

# States in which a task still comes to an end by itself, or comes back.
_RUNS = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")
_WAITS = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SPECIAL_EXIT")


@dataclass(frozen=True)
class Queue:
    """Tasks of the submissions of one cache.

    Parameters
    ----------
    running, waiting : int
    reason : str
        Why most of those that wait do, in the scheduler's word: ``Resources``, ``BeginTime``.
    """

    running: int = 0
    waiting: int = 0
    reason: str = ""

    @property
    def tasks(self) -> int:
        """Running or waiting."""
        return self.running + self.waiting


def queue_of(submitted: Sequence[Submitted], timeout: float = 30.0) -> Queue | None:
    """What of these submissions runs or waits; None where the scheduler does not answer."""
    local = sum(one.living() for one in submitted if one.cluster == "local")
    jobs = sorted({job.partition("_")[0] for one in submitted if one.cluster == "slurm" for job in one.jobs})
    if not jobs:
        return Queue(running=local)
    if shutil.which("squeue") is None:
        return None
    words = ["squeue", "--noheader", "--array", "--states=all", "--format=%T|%r", f"--jobs={','.join(jobs)}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        return None
    return counted(done.stdout.splitlines(), local)


def counted(lines: Iterable[str], local: int = 0) -> Queue:
    """Lines ``STATE|reason`` of squeue as counts."""
    states = [line.strip().partition("|")[::2] for line in lines if line.strip()]
    waiting = [reason for state, reason in states if state in _WAITS]
    named = Counter(reason for reason in waiting if reason not in ("", "None"))
    running = sum(state in _RUNS for state, _ in states)
    return Queue(running + local, len(waiting), named.most_common(1)[0][0] if named else "")
