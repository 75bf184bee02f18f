"""How far a cache is: from its plan, its done markers and its leases; the queue is asked, never trusted."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...cache import lease_files, ledger
from ...cache import manifest as manifests
from ...cache import marker as markers
from ...cache.errors import CacheError
from ...cache.leases import BEATS, Leases, expiry
from ...cache.marker import DoneMarker
from ...cache.plan import Unit
from ...cache.writer import CacheWriter
from .queue import Queue, queue_of
from .record import Submitted, read

WINDOW = 600.0  # seconds up to the newest shard, over which the rate is taken
# What cmcr, slurmstepd and srun write, without the name of the machine.
_ERROR = re.compile(r"^(?:slurmstepd: |srun: )?error: (?:\S+: task \d+: )?(?P<what>.+)$", re.IGNORECASE)
_TAIL = 20_000  # bytes of a log that are searched


@dataclass(frozen=True)
class Status:
    """How far a cache is.

    Parameters
    ----------
    path : Path
    state : {"finished", "working", "stopped"}
        ``finished``: every planned shard is done. ``working``: somebody holds a lease, or a submitted task runs or
        waits. ``stopped``: neither.
    shards, done, failed, running, unclaimed : int
        Planned, and each of them in one of four states: done, done with lost items, in the hands of a living worker,
        none of these.
    workers : int
        That hold leases.
    rows, lost : int
        Rows that are there, and items that are lost.
    rows_left : int or None
        Items of shards that are not done, counted or estimated from those that are; None where nothing is known.
    errors : mapping of str to int
        Lost items by kind, most frequent first.
    rate, eta : float or None
        Items a second over the last ten minutes of work, and seconds until the rest is done at that rate; None where
        nothing tells, or nobody works.
    queue : Queue or None
        Tasks of this cache's submissions; None where no scheduler answers.
    task_errors : mapping of str to int
        What the tasks of the newest submission said as they failed; empty once the cache is finished.
    logs : str
        Where they said it.
    command : str
        The command of the newest submission; empty where none is recorded.
    """

    path: Path
    state: Literal["finished", "working", "stopped"]
    shards: int = 0
    done: int = 0
    failed: int = 0
    running: int = 0
    unclaimed: int = 0
    workers: int = 0
    rows: int = 0
    lost: int = 0
    rows_left: int | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    rate: float | None = None
    eta: float | None = None
    queue: Queue | None = None
    task_errors: Mapping[str, int] = field(default_factory=dict)
    logs: str = ""
    command: str = ""

    def exit_code(self, max_failure_rate: float = 0.0) -> int:
        """0: finished, and no more than this share of the items is lost; 3: somebody works on it; 1: neither."""
        if self.state == "working":
            return 3
        return 0 if self.state == "finished" and self.lost <= max_failure_rate * (self.rows + self.lost) else 1

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {**asdict(self), "path": str(self.path)}


def status(path: str | Path) -> Status:
    """How far a cache is, and what is still at work on it.

    Costs one listing, one small file for each shard, and one for each lease. A worker of another machine that holds a
    lease is known to live only by its next heartbeat: where no submitted task runs, that is waited for (20 seconds).

    Raises
    ------
    CacheError
        There is no cache, and nothing was submitted to make one.
    """
    path = Path(path)
    submissions = list(read(path))
    queue = queue_of(submissions)
    if not (path / manifests.MANIFEST_NAME).exists():
        return _not_begun(path, submissions, queue)
    found, planned, open_units = _progress(path)
    claims = {} if not open_units and not lease_files.claim_files(path / lease_files.FOLDER) else _living(path, queue)
    numbers = {unit.shard for unit in planned}
    held = {int(name) for name in claims if name != "plan"} & numbers
    whole = [m for m in found.values() if m.shard not in held]
    failed = [m for m in whole if m.failed]
    working = bool(claims) or bool(queue and queue.tasks)
    rest = [unit for unit in planned if unit.shard not in found]
    rows, lost = sum(m.ok for m in found.values()), sum(m.failed for m in found.values())
    left = _rows_left(rest, len(found), rows + lost)
    rate = _rate(path, found.values()) if working else None
    newest = submissions[0] if submissions else None
    finished = not rest and bool(planned)
    return Status(
        path,
        "working" if working else "finished" if finished else "stopped",
        shards=len(planned),
        done=len(whole) - len(failed),
        failed=len(failed),
        running=len(held),
        unclaimed=len(numbers - held - set(found)),
        workers=len({claim.holder.worker for claim in claims.values() if claim.holder is not None}),
        rows=rows,
        lost=lost,
        rows_left=left,
        errors=_errors(path, found.values()),
        rate=rate,
        eta=left / rate if rate and left is not None else None,
        queue=queue,
        task_errors={} if finished or newest is None else _task_errors(Path(newest.folder)),
        logs=newest.folder if newest else "",
        command=command_of(newest),
    )


def command_of(submitted: Submitted | None) -> str:
    """The command of a submission as one types it."""
    return "" if submitted is None else shlex.join(["cmcr", *submitted.words])


def _not_begun(path: Path, submissions: Sequence[Submitted], queue: Queue | None) -> Status:
    if not submissions:
        raise CacheError("There is no cache here.", where=str(path), todo="give the folder that --output names")
    newest = submissions[0]
    working = queue is not None and queue.tasks > 0
    said = _task_errors(Path(newest.folder))
    return Status(
        path,
        "working" if working else "stopped",
        queue=queue,
        task_errors=said,
        logs=newest.folder,
        command=command_of(newest),
    )


def _progress(path: Path) -> tuple[dict[int, DoneMarker], list[Unit], list[Unit]]:
    """Committed shards that count, all planned units, and those that are not done."""
    manifest = manifests.read_manifest(path)
    writer = CacheWriter(path, manifest, manifest.fingerprint)
    planned = list(manifests.units_of(writer.plans))
    pending = writer.pending()
    open_shards = {unit.shard for unit in pending}
    found = {}
    for unit in planned:
        marker = None if unit.shard in open_shards else markers.find_marker(path, unit.shard)
        if marker is not None:
            found[unit.shard] = marker
    return found, planned, pending


def _living(path: Path, queue: Queue | None) -> dict[str, lease_files.Claim]:
    """Claims whose holders live, as far as can be told from here."""
    claims = lease_files.read_claims(path)
    alive = {name: c for name, c in claims.items() if c.holder is None or not c.holder.is_dead()}
    far = [c for c in alive.values() if c.holder is None or c.holder.machine != lease_files.machine()]
    if not far or (queue is not None and queue.running):
        return alive
    seconds = 2 * expiry() / BEATS
    observer = Leases(path, seconds)
    for claim in far:
        observer.is_expired(claim)  # the first look
    time.sleep(seconds)
    now = lease_files.read_claims(path)
    silent = {claim.name for claim in far if claim.name in now and observer.is_expired(now[claim.name])}
    return {name: claim for name, claim in now.items() if name in alive and name not in silent}


def _rows_left(rest: Sequence[Unit], done: int, items: int) -> int | None:
    counts = [unit.rows for unit in rest]
    known = sum(count for count in counts if count is not None)
    uncounted = sum(count is None for count in counts)
    if not uncounted:
        return known
    return None if done == 0 else known + round(uncounted * items / done)


def _rate(path: Path, found: Iterable[DoneMarker]) -> float | None:
    """Items a second: of the shards that were committed in the last minutes of work, the first of them only dates it.

    File times of one file system are compared with each other, never with a clock; only this figure depends on them.
    """
    times: list[tuple[float, int]] = []
    for marker in found:
        try:
            seconds = (path / "shards" / markers.marker_name(marker.shard)).stat().st_mtime
        except OSError:
            continue
        times.append((seconds, marker.expected))
    times.sort()
    recent = [(at, items) for at, items in times if at >= times[-1][0] - WINDOW] if times else []
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return None
    return sum(items for _, items in recent[1:]) / (recent[-1][0] - recent[0][0])


def _errors(path: Path, found: Iterable[DoneMarker]) -> dict[str, int]:
    """Lost items by kind."""
    kinds: Counter[str] = Counter()
    for marker in found:
        if marker.failed and marker.ledger is not None:
            kinds.update(f.error for f in ledger.read(path / "errors" / marker.ledger) if f.lost)
    return dict(kinds.most_common())


def _task_errors(folder: Path) -> dict[str, int]:
    """The last error line of each task's log."""
    said: Counter[str] = Counter()
    for log in sorted(folder.glob("*_log.err")):
        with log.open("rb") as lines:
            lines.seek(max(0, log.stat().st_size - _TAIL))
            found = [m for line in lines.read().decode(errors="replace").splitlines() if (m := _ERROR.match(line))]
        if found:
            said[found[-1]["what"].strip()] += 1
    return dict(said.most_common())
