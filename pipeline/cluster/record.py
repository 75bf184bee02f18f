"""What was submitted for a cache: a line under ``runs/``. It repeats a command; progress it does not know."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache import fsio, runs
from ...cache.lease_files import Holder, machine
from .options import JobOptions


@dataclass(frozen=True)
class Submitted:
    """One submission.

    Parameters
    ----------
    words : tuple of str
        The command, without ``cmcr``.
    cwd : str
        Where it was submitted, and where its tasks run.
    options : JobOptions
    jobs : tuple of str
        Ids of the array's tasks (``42_0``); of local tasks, process ids.
    folder : str
        Their logs.
    machine : str
        Of local tasks: where the process ids mean something.
    starts : tuple of int
        Of local tasks: starts of the processes, which tell them from later ones of the same id.
    """

    words: tuple[str, ...]
    cwd: str
    options: JobOptions
    jobs: tuple[str, ...]
    folder: str
    machine: str = ""
    starts: tuple[int, ...] = ()

    @property
    def cluster(self) -> str:
        """``slurm`` or ``local``."""
        return self.options.cluster

    def living(self) -> int:
        """Local tasks that are known to live; 0 seen from another machine."""
        if self.machine != machine():
            return 0
        return sum(
            not Holder("", self.machine, int(job), start).is_dead()
            for job, start in zip(self.jobs, self.starts, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "words": list(self.words),
            "cwd": self.cwd,
            "options": self.options.record(),
            "jobs": list(self.jobs),
            "folder": self.folder,
            "machine": self.machine,
            "starts": list(self.starts),
        }

    @classmethod
    def of(cls, record: dict[str, Any]) -> Submitted:
        """The inverse of :meth:`to_json`."""
        return cls(
            tuple(record["words"]),
            record["cwd"],
            JobOptions.of(record["options"]),
            tuple(record["jobs"]),
            record["folder"],
            record.get("machine", ""),
            tuple(record.get("starts", ())),
        )


def write(cache: Path, submitted: Submitted) -> None:
    """Record a submission in the cache that it fills."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    line = json.dumps({"command": "submit", "host": fsio.host_name(), "submitted": stamp, **submitted.to_json()})
    file = cache / "runs" / f"{stamp}-{fsio.host_name()}-{os.getpid()}.jsonl"
    with file.open("a", encoding="utf-8") as lines:
        lines.write(line + "\n")


def read(cache: Path) -> Iterator[Submitted]:
    """The submissions of a cache, newest first."""
    for record in runs.records(cache):
        if record.get("command") == "submit":
            try:
                yield Submitted.of(record)
            except (KeyError, TypeError, ValueError):
                continue  # of another release
