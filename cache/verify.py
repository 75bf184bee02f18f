"""Checking a cache against its own records, and taking damaged shards back so that they are made again."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import commit, fsio
from . import manifest as manifests
from . import marker as markers
from .errors import CacheError, CmcrError
from .marker import DoneMarker
from .plan import Plan, Unit
from .reader import Cache


@dataclass
class VerifyReport:
    """What is wrong with a cache, and what is merely worth knowing.

    ``problems`` are damage: rows are missing, doubled or not what their marker says. ``pending`` are planned shards
    that are not there, which is no damage: run the same encode again. ``leftovers`` are files that no marker names,
    ``damaged`` the shards that :func:`repair` would take back.
    """

    path: Path
    shards: int = 0
    rows: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """No problem was found."""
        return not self.problems

    def blame(self, shard: int, what: str) -> None:
        """Record damage of one shard."""
        self.problems.append(f"shard {markers.shard_name(shard)}: {what}")
        self.damaged.setdefault(shard, what)


@dataclass(frozen=True)
class RepairReport:
    """What a repair changed: shards taken back, with the reason, and files removed."""

    dropped: dict[int, str]
    removed: tuple[str, ...]
    remaining: tuple[str, ...]


def verify(path: str | Path, *, deep: bool = True) -> VerifyReport:
    """Check a cache.

    Parameters
    ----------
    path : path
    deep : bool
        Also read every byte: checksums, HDF5 structure, vectors, that no key stands twice. Otherwise only records and
        sizes.

    Raises
    ------
    CacheError
        There is no cache, or its manifest cannot be read: then nothing can be said about the rest.
    """
    path = Path(path)
    report = VerifyReport(path)
    manifest = manifests.read_manifest(path)
    plans = _read_plans(path, report)
    planned = None if plans is None else {unit.shard: unit for unit in manifests.units_of(plans)}
    found = _read_markers(path, report)
    for m in found.values():
        if m.state == "done":
            report.shards, report.rows, report.failed = report.shards + 1, report.rows + m.ok, report.failed + m.failed
            _check_records(m, manifest, planned, report)
            _check_files(path, m, report, deep)
    if planned is not None:
        done = {m.shard for m in found.values() if m.state == "done"}
        report.pending = [shard for shard in planned if shard not in done and shard not in report.damaged]
    report.leftovers = _leftovers(path, found)
    if deep and not report.damaged:
        _check_keys(path, report)
    return report


def repair(path: str | Path, *, deep: bool = True) -> RepairReport:
    """Take back the damaged shards of a cache and remove leftovers; the next encode makes those shards anew.

    Damaged data files stay where they are until the new generation is committed.

    Returns
    -------
    RepairReport
        ``remaining`` are problems that making shards anew does not solve (a missing plan, a key that stands twice).
    """
    path = Path(path)
    report = verify(path, deep=deep)
    for shard in report.damaged:
        marker = markers.find_marker(path, shard)
        if marker is not None:
            commit.drop(path, marker)
        else:
            fsio.remove(path / "shards" / markers.marker_name(shard))
    if report.damaged:
        fsio.sync_folder(path / "shards")
    damaged = {markers.shard_name(shard) for shard in report.damaged}
    removable = [name for name in report.leftovers if Path(name).name.split(".")[0] not in damaged]
    removed = tuple(name for name in removable if fsio.remove(path / name))
    blamed = tuple(f"shard {name}:" for name in damaged)
    remaining = tuple(problem for problem in report.problems if not problem.startswith(blamed))
    return RepairReport(dict(report.damaged), removed, remaining)


def _read_plans(path: Path, report: VerifyReport) -> list[Plan] | None:
    try:
        return manifests.read_plans(path)
    except CacheError as error:
        report.problems.append(f"plan: {error.what} ({error.where})")
        return None


def _read_markers(path: Path, report: VerifyReport) -> dict[int, DoneMarker]:
    found = {}
    for shard, file in markers.list_markers(path / "shards").items():
        try:
            found[shard] = markers.read_marker(file)
        except CacheError as error:
            report.blame(shard, error.what)
    return found


def _check_records(
    m: DoneMarker, manifest: manifests.CacheManifest, planned: dict[int, Unit] | None, report: VerifyReport
) -> None:
    """Marker against manifest and plan."""
    if (m.dim, m.dtype) != (manifest.dim, manifest.dtype):
        report.blame(m.shard, f"{m.dtype} of dim {m.dim} in a cache of {manifest.dtype} of dim {manifest.dim}")
    if m.fingerprint not in manifest.fingerprints:
        report.blame(m.shard, f"fingerprint {m.fingerprint} is not that of the cache, {manifest.fingerprint}")
    if planned is None:
        return
    if m.shard not in planned:
        report.problems.append(f"shard {markers.shard_name(m.shard)} is not in the plan")
    elif planned[m.shard].identity != m.identity:
        report.blame(m.shard, "it was made from other input than its unit of the plan names")


def _check_files(path: Path, m: DoneMarker, report: VerifyReport, deep: bool) -> None:
    """Data file and ledger against the marker."""
    file = path / "shards" / m.file
    if not file.is_file():
        report.blame(m.shard, f"{m.file} is missing")
        return
    if not deep:
        if file.stat().st_size != m.bytes:
            report.blame(m.shard, f"{m.file} has {file.stat().st_size} bytes, its marker says {m.bytes}")
        return
    size, crc = fsio.file_crc32(file)
    if (size, f"{crc:08x}") != (m.bytes, m.crc32):
        report.blame(
            m.shard, f"{m.file} has {size} bytes and CRC-32 {crc:08x}, its marker says {m.bytes} and {m.crc32}"
        )
        return
    _check_ledger(path, m, report)
    _check_content(file, m, report)


def _check_ledger(path: Path, m: DoneMarker, report: VerifyReport) -> None:
    if m.ledger is None:
        if m.failed:
            report.blame(m.shard, f"{m.failed} items failed and no ledger says why")
        return
    file = path / "errors" / m.ledger
    content = file.read_bytes() if file.is_file() else None
    if content is None or f"{zlib.crc32(content):08x}" != m.ledger_crc32:
        report.blame(m.shard, f"the ledger {m.ledger} is missing or not what the marker says")


def _check_content(file: Path, m: DoneMarker, report: VerifyReport) -> None:
    """HDF5 structure, keys and vectors."""
    from .mapped import MappedFile
    from .shard import check_file

    try:
        check_file(file, m)
        if m.ok:
            mapped = MappedFile(file, m.bytes)
            stored = mapped.view(m.embedding_offset or 0, m.ok, m.dim, m.stored_dtype)
            for low, high in mapped.spans(m.row_bytes, 0, m.ok):
                bad = ~np.isfinite(stored[low:high]).all(axis=1) | ~stored[low:high].any(axis=1)
                if bad.any():
                    report.blame(
                        m.shard,
                        f"{int(bad.sum())} vectors are zero or not finite, the first in row {low + int(bad.argmax())}",
                    )
                    return
    except CacheError as error:
        report.blame(m.shard, error.what)


def _check_keys(path: Path, report: VerifyReport) -> None:
    """Build the key index, which refuses a key that stands twice, and look every key up in it."""
    cache = Cache(path)
    try:
        for start in range(0, len(cache), 1 << 16):
            stop = min(start + (1 << 16), len(cache))
            keys = cache.key_range(start, stop)
            if not all(keys):
                report.problems.append(f"an empty key stands between rows {start} and {stop}")
            elif not np.array_equal(cache.index_of(keys), np.arange(start, stop)):
                report.problems.append("the key index disagrees with the keys; delete the folder index/")
                return
    except (CmcrError, UnicodeDecodeError) as error:
        report.problems.append(f"keys: {error.what if isinstance(error, CmcrError) else error}")


def _leftovers(path: Path, found: dict[int, DoneMarker]) -> list[str]:
    """Files that no marker names, temporary files among them, relative to the cache."""
    named = {"shards": {m.file for m in found.values()}, "errors": {m.ledger for m in found.values() if m.ledger}}
    named["shards"] |= {path.name for path in markers.list_markers(path / "shards").values()}
    left = []
    for folder, names in named.items():
        if (path / folder).is_dir():
            with os.scandir(path / folder) as entries:
                left += [f"{folder}/{entry.name}" for entry in entries if entry.name not in names]
    with os.scandir(path) as entries:
        left += [entry.name for entry in entries if fsio.is_temporary(entry.name)]
    return sorted(left)
