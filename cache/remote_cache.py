"""A finished cache at a URL: its records are mirrored when it is opened, its shards when they are first read."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import fsio
from . import manifest as manifests
from . import marker as markers
from .errors import CacheError
from .ledger import Failure
from .mapped import MappedFile
from .marker import DoneMarker
from .reader import Cache
from .remote import RemotePath, spool_folder

REQUESTS = 16
VERSIONS = "versions.json"


class RemoteCache(Cache):
    """A :class:`Cache` whose folder is a local mirror of what lies at ``url``.

    Memory maps need local files, so a shard is fetched whole when a row of it is first asked for, and compared with the
    checksum of its marker. The mirror may be deleted at any time when it is not in use.
    """

    def __init__(self, url: str) -> None:
        self.origin = RemotePath.parse(url)
        try:
            mirror = refresh(self.origin)
        except OSError as error:
            raise CacheError(
                f"The cache cannot be read: {error.strerror}.", where=str(self.origin), todo="check the address"
            ) from error
        super().__init__(mirror)

    def __reduce__(self) -> tuple[Callable[[str], Cache], tuple[str]]:  # type: ignore[override]
        return RemoteCache, (self.origin.base + self.origin.query,)

    def _data_path(self, m: DoneMarker) -> Path:
        return self.path / "shards" / mirrored_name(m.file, m.crc32)

    def _ledger_path(self, name: str, m: DoneMarker) -> Path:
        return self.path / "errors" / mirrored_name(name, m.ledger_crc32)

    def _file(self, shard: int) -> MappedFile:
        m = self.shards[shard]
        local = self._data_path(m)
        if not local.exists():
            self._fetch(f"shards/{m.file}", local, m.bytes, m.crc32)
        return super()._file(shard)

    def failures(self) -> Iterator[Failure]:
        """Lines of the error ledgers that the markers name, in shard order."""
        for m in self.shards:
            if m.ledger is not None and not (local := self._ledger_path(m.ledger, m)).exists():
                self._fetch(f"errors/{m.ledger}", local, None, m.ledger_crc32)
        return super().failures()

    def _fetch(self, name: str, local: Path, size: int | None, crc32: str | None) -> None:
        place = self.origin / name
        try:
            place.download(local, size, lambda path: f"{fsio.file_crc32(path)[1]:08x}" == crc32)
        except OSError as error:
            raise CacheError(
                f"{name} cannot be fetched: {error.strerror}.",
                where=str(place),
                todo="open the cache again if it was being rewritten; else see whether it was copied whole",
            ) from error


def mirrored_name(name: str, crc32: str | None) -> str:
    """Name in the mirror of a data file or ledger.

    It says the content: a cache that was made anew at the same URL has files of the same names, often of equal sizes.
    """
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{crc32}.{suffix}"


def refresh(origin: RemotePath) -> Path:
    """Bring the mirror of a remote cache up to date: manifest, plan and markers; returns its folder.

    Where the server lists folders with versions, only records of other versions are fetched, else all of them; without
    listings it is asked for each record that the plan foresees.

    Raises
    ------
    OSError
    """
    named = hashlib.blake2b(origin.base.encode(), digest_size=12).hexdigest()
    mirror = spool_folder() / "caches" / f"{named}-{origin.name}"
    for folder in (mirror, mirror / "shards", mirror / "errors"):
        folder.mkdir(parents=True, exist_ok=True)
        fsio.sweep(folder)
    before = _read_versions(mirror)
    listed = _listed(origin)
    now = {manifests.MANIFEST_NAME: ""} if listed is None else listed
    _fetch_records(origin, mirror, now, before)
    if listed is None:
        now |= _foreseen(origin, mirror)
    _remove_others(mirror, now)
    fsio.write_atomic(mirror / VERSIONS, json.dumps(now, sort_keys=True).encode(), durable=False)
    return mirror


def _listed(origin: RemotePath) -> dict[str, str] | None:
    """Records and their versions by listing; None where the server lists nothing."""
    try:
        top, below = origin.children(), (origin / "shards").children()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES):
            return None
        raise
    if manifests.MANIFEST_NAME not in top:
        return None
    found = {name: version for name, version in top.items() if _is_record(name)}
    return found | {f"shards/{name}": version for name, version in below.items() if markers.is_marker(name)}


def _is_record(name: str) -> bool:
    return name == manifests.MANIFEST_NAME or manifests.is_plan(name)


def _tells(version: str) -> bool:
    """Whether a version changes with the record; a size alone does not, since another checksum is no longer."""
    return not all("size=" in part.lower() for part in version.split())


def _fetch_records(origin: RemotePath, mirror: Path, now: dict[str, str], before: dict[str, str]) -> None:
    fresh = {n for n, version in now.items() if _tells(version) and before.get(n) == version and (mirror / n).exists()}
    stale = [n for n in now if n not in fresh]
    with ThreadPoolExecutor(REQUESTS) as pool:
        for name, data in zip(stale, pool.map(lambda name: (origin / name).read_bytes(), stale), strict=True):
            fsio.write_atomic(mirror / name, data, durable=False)


def _foreseen(origin: RemotePath, mirror: Path) -> dict[str, str]:
    """Fetch plans, then the markers of their shards, by name; those that are not there are passed over."""
    found: dict[str, str] = {}
    generation = 0
    while _try(origin, mirror, manifests.plan_name(generation)):
        found[manifests.plan_name(generation)] = ""
        generation += 1
    units = [u for n in found for u in manifests.read_plan(mirror / n).units]
    names = [f"shards/{markers.marker_name(unit.shard)}" for unit in units]
    with ThreadPoolExecutor(REQUESTS) as pool:
        there = pool.map(lambda name: _try(origin, mirror, name), names)
        return found | {name: "" for name, is_there in zip(names, there, strict=True) if is_there}


def _try(origin: RemotePath, mirror: Path, name: str) -> bool:
    try:
        data = (origin / name).read_bytes()
    except FileNotFoundError:
        return False
    fsio.write_atomic(mirror / name, data, durable=False)
    return True


def _remove_others(mirror: Path, now: dict[str, str]) -> None:
    """Remove records that are no longer there, and data files and ledgers that no marker names."""
    for file in (*mirror.glob("plan-*.json"), *markers.list_markers(mirror / "shards").values()):
        if file.relative_to(mirror).as_posix() not in now:
            fsio.remove(file)
    kept: set[str] = set()
    for file in markers.list_markers(mirror / "shards").values():
        found = markers.read_marker(file)
        kept |= {mirrored_name(found.file, found.crc32), mirrored_name(found.ledger or "", found.ledger_crc32)}
    for file in (*(mirror / "shards").glob("*.h5"), *(mirror / "errors").glob("*.jsonl")):
        if file.name not in kept:
            fsio.remove(file)


def _read_versions(mirror: Path) -> dict[str, Any]:
    try:
        found = json.loads((mirror / VERSIONS).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
