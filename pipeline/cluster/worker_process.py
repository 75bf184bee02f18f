"""One worker of several on this machine: encodes by leases and tells the process that started it what happens.

Started by :mod:`.local_workers` as a process of its own: what it is to do comes as JSON on stdin, what happens goes as
lines of JSON to a pipe whose number is the only argument.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from typing import Any

from ...cache.errors import CmcrError
from ..progress import Event
from ..stopping import stopping


class Pipe:
    """Where messages go. When nobody reads any more, the worker is asked to stop: its parent is gone."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._guard = threading.Lock()
        self._broken = False

    def send(self, kind: str, **content: Any) -> None:
        """One message, one line."""
        line = json.dumps({"kind": kind, **content}, default=str) + "\n"
        with self._guard:
            try:
                left = memoryview(line.encode())
                while left and not self._broken:
                    left = left[os.write(self._number, left) :]
            except OSError:
                self._broken = True
                os.kill(os.getpid(), signal.SIGTERM)

    def event(self, event: Event) -> None:
        """Progress of the run."""
        self.send("event", **{("event" if name == "kind" else name): value for name, value in asdict(event).items()})


def work(pipe: Pipe, inputs: list[str], output: str, settings: dict[str, Any]) -> int:
    """Encode until every shard is done or a stop is asked for; the exit code."""
    from ..encode import encode

    try:
        with stopping() as stop:
            report = encode(inputs, output, progress=pipe.event, stop=stop, **settings)
    except CmcrError as error:
        pipe.send("error", error=type(error).__name__, what=error.what, where=error.where, todo=error.todo)
        return 1
    pipe.send("report", report=report.to_json())
    return stop.exit_code if report.unfinished else 0


def main() -> None:
    """Do what stdin says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent asks for the stop
    order = json.load(sys.stdin)
    sys.exit(work(Pipe(int(sys.argv[1])), order["inputs"], order["output"], order["settings"]))


if __name__ == "__main__":
    main()
