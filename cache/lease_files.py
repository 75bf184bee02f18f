"""The files of leases: who holds what, as it is on disk. Specified in docs/format.md."""

from __future__ import annotations

import json
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from . import fsio

FOLDER = "leases"
_CLAIM = re.compile(r"^(?P<name>plan|\d{5,})\.c(?P<turn>\d+)$")


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: the content of a claim.

    Parameters
    ----------
    worker : str
        Name of the worker, unique; its heartbeat is ``<worker>.beat``.
    machine : str
        Boot and process-id namespace; within one of them a process id and its start tell whether the worker lives.
    pid, start : int
        Process id, and its start in clock ticks since boot; start 0 where unknown.
    """

    worker: str
    machine: str
    pid: int
    start: int

    def is_dead(self) -> bool:
        """Whether the worker is known to be gone; False for every other machine."""
        if self.machine != machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        if self.start == 0:
            return False
        return fsio.process_start(self.pid) != self.start or _is_zombie(self.pid)


@dataclass(frozen=True)
class Claim:
    """A claim file: ``turn`` counts the takeovers; the highest one holds. ``holder`` is None while it is written."""

    name: str
    turn: int
    holder: Holder | None


def machine() -> str:
    """What two processes share that can see each other's process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{fsio.host_name()}/{uuid.getnode():x}"


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] in (b"Z", b"X")


def read_claims(path: Path) -> dict[str, Claim]:
    """The claim that holds for each name, of the cache ``path``; one listing, and one read a claim."""
    folder = path / FOLDER
    top: dict[str, int] = {}
    for name, turn in claim_files(folder):
        top[name] = max(turn, top.get(name, -1))
    return {name: Claim(name, turn, _read_holder(folder / f"{name}.c{turn}")) for name, turn in top.items()}


def claim_files(folder: Path) -> list[tuple[str, int]]:
    """(name, turn) of every claim in a folder of leases; one listing."""
    try:
        with os.scandir(folder) as entries:
            matches = [match for entry in entries if (match := _CLAIM.match(entry.name))]
    except FileNotFoundError:
        return []
    return [(match["name"], int(match["turn"])) for match in matches]


def _read_holder(file: Path) -> Holder | None:
    try:
        record = json.loads(file.read_bytes())
        return Holder(str(record["worker"]), str(record["machine"]), int(record["pid"]), int(record["start"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
