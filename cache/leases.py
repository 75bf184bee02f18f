"""Leases: how workers share the shards of a cache without locks and without comparing clocks.

The files and the rules are specified in docs/format.md. A lease saves work and protects nothing: what keeps two
writers of one shard from harm is in :mod:`cmcr.cache.commit`.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from . import fsio
from .errors import CacheError
from .lease_files import FOLDER, Claim, Holder, claim_files, machine, read_claims
from .variables import seconds_of

SECONDS = 60.0
SECONDS_VARIABLE = "CMCR_LEASE_SECONDS"
IMPATIENT = 0.05  # seconds before the first look at what others hold; each next one comes after twice as long
BEATS = 6  # heartbeats within the time after which a lease expires


def expiry() -> float:
    """Seconds without a heartbeat after which a lease expires: ``CMCR_LEASE_SECONDS``, else 60.

    Raises
    ------
    RecipeError
        The variable is no positive number.
    """
    return seconds_of(SECONDS_VARIABLE, SECONDS)


class Leases:
    """The leases of one worker on one cache.

    Parameters
    ----------
    path : Path
        The cache.
    seconds : float, optional
        Time after which a lease without a heartbeat expires; :func:`expiry` when not given.
    clock : callable
        The observer's own clock, monotonic; never compared with anybody else's.
    """

    def __init__(self, path: Path, seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = path / FOLDER
        self.seconds = expiry() if seconds is None else seconds
        pid = os.getpid()
        start = fsio.process_start(pid)
        name = f"{fsio.host_name()}-{pid}-{start}-{uuid.uuid4().hex[:8]}"
        self.holder = Holder(name, machine(), pid, start)
        self._path = path
        self._clock = clock
        self._held: dict[str, int] = {}
        self._guard = threading.Lock()
        self._beats = 0
        self._seen: dict[tuple[str, int], tuple[bytes, float]] = {}
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Leases:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def poll(self) -> float:
        """Seconds to wait before looking again at what others hold."""
        return min(1.0, self.seconds / 20)

    def claims(self) -> dict[str, Claim]:
        """What everybody holds now, by name."""
        return read_claims(self._path)

    def claim(self, name: str, claims: dict[str, Claim] | None = None) -> bool:
        """Try to take the lease ``name``: ``plan``, or a shard's number with five digits or more.

        Parameters
        ----------
        name : str
        claims : mapping, optional
            A listing that was just made; else one is made here.

        Returns
        -------
        bool
            False where another worker holds it and is not known to be gone. With True, look whether the work is done
            already before doing it: the lease may have been free because its last holder finished.
        """
        held = (self.claims() if claims is None else claims).get(name)
        if held is not None and not self.is_expired(held):
            return False
        turn = 0 if held is None else held.turn + 1
        with self._guard:
            if not self._held:
                self._beat()
            if not self._create(f"{name}.c{turn}"):
                return False
            self._held[name] = turn
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_beating, name="cmcr-lease", daemon=True)
            self._thread.start()
        return True

    def holds(self, name: str) -> bool:
        """Whether this worker still holds the lease: nobody took it over."""
        turn, found = self._held.get(name), [t for other, t in claim_files(self.folder) if other == name]
        return turn is not None and turn == max(found, default=None)

    def is_expired(self, claim: Claim) -> bool:
        """Whether its holder is gone: a dead process of this machine, or no new heartbeat for ``seconds``.

        The time runs from this worker's own first look at the heartbeat that is still there, by its own clock.
        """
        if claim.holder is not None and claim.holder.is_dead():
            return True
        beat = b""
        if claim.holder is not None:
            with contextlib.suppress(OSError):
                beat = (self.folder / f"{claim.holder.worker}.beat").read_bytes()
            beat = claim.holder.worker.encode() + b" " + beat
        now = self._clock()
        seen = self._seen.get((claim.name, claim.turn))
        if seen is None or seen[0] != beat:
            self._seen[(claim.name, claim.turn)] = (beat, now)
            return False
        return now - seen[1] >= self.seconds

    def release(self, name: str) -> None:
        """Give a lease back, and remove those that were taken over on the way to it."""
        with self._guard:
            turn = self._held.pop(name, None)
        if turn is not None:
            self._remove(name, turn)

    def _remove(self, name: str, turn: int) -> None:
        if turn > 0:
            for other, lower in claim_files(self.folder):
                if other == name and lower < turn:
                    fsio.remove(self.folder / f"{name}.c{lower}")
        fsio.remove(self.folder / f"{name}.c{turn}")

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold a lease for the length of the block; waits until it is free."""
        patience = IMPATIENT
        while not self.claim(name):
            time.sleep(patience)
            patience = min(2 * patience, self.poll)
        try:
            yield
        finally:
            self.release(name)

    def clear(self, is_done: Callable[[str], bool]) -> None:
        """Remove what dead workers left: claims of finished shards, and heartbeats of workers that hold nothing."""
        for name, claim in self.claims().items():
            here = claim.holder is not None and claim.holder.machine == self.holder.machine
            gone = claim.holder.is_dead() if here and claim.holder else name != "plan" and is_done(name)
            if gone and name not in self._held:
                self._remove(name, claim.turn)
        left = {claim.holder.worker for claim in self.claims().values() if claim.holder is not None}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in list(entries):
                worker, dot, kind = entry.name.rpartition(".")
                if dot and kind == "beat" and worker not in left and worker != self.holder.worker:
                    fsio.remove(self.folder / entry.name)

    def close(self) -> None:
        """Give everything back and stop the heartbeat."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for name in list(self._held):
            self.release(name)
        if self._beats:
            fsio.remove(self.folder / f"{self.holder.worker}.beat")
            self._beats = 0
        with contextlib.suppress(OSError):  # others are at work, or it is not there
            self.folder.rmdir()

    def _create(self, name: str) -> bool:
        """Create a claim of this worker; False if it is there already. The creation is atomic, its content is not."""
        file = self.folder / name
        fsio.step("create", file)
        content = json.dumps({"format": "cmcr-lease", "version": 1, **asdict(self.holder)}, sort_keys=True).encode()
        try:
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        except FileNotFoundError:  # whoever finished last took the folder away
            self._beat()
            return False
        except OSError as error:
            raise CacheError(f"Cannot write a lease: {error.strerror}.", where=str(file)) from error
        try:
            os.write(handle, content + b"\n")
        finally:
            os.close(handle)
        return True

    def _beat(self) -> None:
        """Replace this worker's heartbeat by the next count."""
        self._beats += 1
        file = self.folder / f"{self.holder.worker}.beat"
        temporary = fsio.temporary_name(file)
        fsio.step("beat", file)
        with fsio.naming_folder(self.folder):
            for _ in range(8):
                self.folder.mkdir(exist_ok=True)
                try:
                    temporary.write_bytes(b"%d\n" % self._beats)
                    temporary.replace(file)
                    return
                except FileNotFoundError:  # a worker that finished removed the folder in between
                    continue
            raise FileNotFoundError(2, "the folder goes away again and again", str(self.folder))

    def _keep_beating(self) -> None:
        while not self._stopped.wait(self.seconds / BEATS):
            with self._guard:
                if self._held:
                    with contextlib.suppress(CacheError):  # a lease that lapses costs double work and nothing else
                        self._beat()
