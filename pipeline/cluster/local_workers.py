"""Several workers on this machine, one a device: processes that fill one cache by leases, shown as one run.

Each is a new process, never a fork: torch and HDF5 do not survive one. A worker that dies is named; the others take
over its shards.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ...cache import errors as errors_of
from ...cache.errors import CmcrError, RecipeError
from ..encoding.config import EncodeConfig, EncodeReport
from ..progress import Event, Progress
from ..stopping import StopSignal, signal_name
from .devices import thread_environment, threads_each

COMMAND = "from cmcr.pipeline.cluster.worker_process import main; main()"
WAITING = "waiting for "
SUMMED = ("shards_now", "rows", "failed", "remarks", "truncated")
LEAVE_SECONDS = 10.0  # between asking a worker to leave at once and ending it


class LocalWorker:
    """A worker process, and what it has told.

    Parameters
    ----------
    device : str
    order : mapping
        What it is to do: ``inputs``, ``output``, ``settings``.
    told : queue
        Where its messages go, as (worker, message); (worker, None) once it has ended.
    environment : mapping
        Variables beside those of this process.
    """

    def __init__(
        self, device: str, order: Mapping[str, Any], told: queue.Queue[Any], environment: Mapping[str, str]
    ) -> None:
        self.device = device
        self.report: dict[str, Any] | None = None
        self.error: CmcrError | None = None
        self.started = False
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 what libraries print: shown only if it dies
        reading, writing = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(writing)],
            stdin=subprocess.PIPE,
            stdout=self._said,
            stderr=self._said,
            pass_fds=[writing],
            env={**os.environ, **environment},
        )
        os.close(writing)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order).encode())
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once; its end is told like any other
        threading.Thread(target=self._listen, args=(reading, told), daemon=True).start()

    def _listen(self, reading: int, told: queue.Queue[Any]) -> None:
        with os.fdopen(reading, encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):  # else it died while it wrote
                    told.put((self, json.loads(line)))
        self.process.wait()
        told.put((self, None))

    def ask_to_stop(self) -> None:
        """Finish the shards that are begun; asked twice: leave at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Leave at once; killed where it does not."""
        self.ask_to_stop()
        try:
            self.process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def death(self) -> str | None:
        """How it died, in one line; None if it ended as it should."""
        code = self.process.returncode
        if self.report is not None or self.error is not None or code is None:
            return None
        how = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        last = f": {lines[-1].strip()[:200]}" if lines and code > 0 else ""
        return f"the worker on {self.device} {how}{last}"


class Crew:
    """All workers of a run: starts them, listens, merges what they tell into one run's progress and report."""

    def __init__(self, devices: Sequence[str], order: Mapping[str, Any], progress: Progress) -> None:
        self._devices = devices
        self._order = order
        self._progress = progress
        self._told: queue.Queue[Any] = queue.Queue()
        self._environment = thread_environment(len(devices))
        self._seen: set[str] = set()
        self._shown = False
        self._ended = 0
        self._asked = False
        self.workers: list[LocalWorker] = []
        self.notes: list[str] = []
        self.begin = time.perf_counter()

    def start(self) -> None:
        """Start every worker; with ``overwrite`` the first alone until it has taken the old shards back."""
        first, *others = self._devices
        self._start(first, self._order["settings"])
        if self._order["settings"].get("overwrite"):
            while not self.workers[0].started and not self._ended:
                self._handle(*self._told.get())
        if not self._ended:
            for device in others:
                self._start(device, {**self._order["settings"], "overwrite": False})

    def _start(self, device: str, settings: Mapping[str, Any]) -> None:
        """Start a worker, unless a stop was asked for; one that was on its way when that came is asked, too."""
        if self._asked:
            return
        order = {**self._order, "settings": {**settings, "device": device}}
        worker = LocalWorker(device, order, self._told, self._environment)
        self.workers.append(worker)
        if self._asked:
            worker.ask_to_stop()

    def listen(self) -> None:
        """Until every worker has ended."""
        while self._ended < len(self.workers):
            self._handle(*self._told.get())

    def _handle(self, worker: LocalWorker, message: dict[str, Any] | None) -> None:
        """Take one message, or the end of a worker."""
        if message is None:
            self._ended += 1
            death = None if self._asked else worker.death()
            if death is not None:
                goes_on = self._ended < len(self.workers)
                self.note(f"{death}; the others go on with its shards" if goes_on else death)
            return
        kind = message.pop("kind")
        if kind == "event":
            self._event(worker, Event(**{("kind" if k == "event" else k): v for k, v in message.items()}))
        elif kind == "report":
            worker.report = message["report"]
        else:
            known = getattr(errors_of, message["error"], CmcrError)
            worker.error = known(message["what"], where=message["where"], todo=message["todo"])

    def _event(self, worker: LocalWorker, event: Event) -> None:
        if event.kind == "start":
            worker.started = True
            if self._shown or not event.shards:
                return  # one bar for all, with what was to do when the first of them began
            self._shown, self.begin = True, time.perf_counter()
        if event.kind == "note":
            if not event.text.startswith(WAITING):  # workers of one run wait for each other
                self.note(event.text)
        elif event.kind != "end":
            self._progress(event)

    def note(self, text: str) -> None:
        """Say something once, however many workers say it."""
        if text not in self._seen:
            self._seen.add(text)
            self.notes.append(text)
            self._progress(Event("note", text=text))

    def ask_to_stop(self) -> None:
        """Pass a request to stop on; may be called from a signal handler."""
        self._asked = True
        for worker in self.workers:
            worker.ask_to_stop()

    def end(self) -> None:
        """Leave no process behind."""
        for worker in self.workers:
            worker.ask_to_stop()
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.end()

    def results(self) -> list[dict[str, Any]]:
        """The reports of the workers that came to an end.

        Raises
        ------
        CmcrError
            The first error that a worker ended with; or that none of them lived.
        """
        failed = [worker.error for worker in self.workers if worker.error is not None]
        if failed:
            raise failed[0]
        found = [worker.report for worker in self.workers if worker.report is not None]
        if not found and not self._asked:
            raise CmcrError(
                f"no worker lived: {'; '.join(filter(None, (worker.death() for worker in self.workers)))}",
                todo="run it with one --device to see all that it prints; what is written stays",
            )
        return found


def encode_by_workers(
    inputs: Sequence[str],
    output: str | Path,
    devices: Sequence[str],
    *,
    progress: Progress,
    stop: StopSignal | None = None,
    settings: Mapping[str, Any],
) -> EncodeReport:
    """Encode with one worker process on each of several devices; see :func:`cmcr.pipeline.encode.encode`.

    Parameters
    ----------
    inputs, output, progress, stop
        As there.
    devices : sequence of str
        One worker each; a device that stands twice has two.
    settings : mapping
        Fields of :class:`EncodeConfig`. Decoding threads, where they are not given, and computing threads, where the
        environment does not say, are shared out.

    Raises
    ------
    RecipeError
        An encoder that is no name.
    CmcrError
        What a worker ended with, after the others have ended; or that none lived.
    """
    config = EncodeConfig.of(settings)
    if not isinstance(config.encoder, str | None):
        raise RecipeError("an encoder object cannot be sent to other processes", where="encoder", todo="give its name")
    plain = {**settings, "workers": config.workers or min(8, threads_each(len(devices)))}
    crew = Crew(devices, {"inputs": list(inputs), "output": str(output), "settings": plain}, progress)
    if stop is not None:
        stop.when(crew.ask_to_stop)
    try:
        crew.start()
        try:
            crew.listen()
        except KeyboardInterrupt:
            crew.note("stopping: the shards that are begun are finished; Ctrl-C again leaves at once")
            crew.ask_to_stop()
            crew.listen()
            raise
    finally:
        crew.end()
    return _merged(crew, config, Path(output))


def _merged(crew: Crew, config: EncodeConfig, output: Path) -> EncodeReport:
    """The reports of all workers as that of one run."""
    found = crew.results()
    errors = Counter[str]()
    for report in found:
        errors.update(report["errors"])
    notes = [note for report in found for note in report["notes"] if not note.startswith(WAITING)]
    total = {name: sum(report[name] for report in found) for name in SUMMED}
    first: dict[str, Any] = found[0] if found else {"encoder": str(config.encoder), "fingerprint": "", "dim": 0}
    return EncodeReport(
        output=output,
        encoder=first["encoder"],
        fingerprint=first["fingerprint"],
        modality=config.modality,
        dim=first["dim"],
        shards_before=min((report["shards_before"] for report in found), default=0),
        errors=dict(errors.most_common()),
        known=max((report["known"] for report in found), default=0),
        changed=tuple(first.get("changed", ())),
        vanished=tuple(first.get("vanished", ())),
        notes=tuple(dict.fromkeys([*crew.notes, *notes])),
        seconds=time.perf_counter() - crew.begin,
        unfinished=min((report["unfinished"] for report in found), default=1),
        **total,
    )
