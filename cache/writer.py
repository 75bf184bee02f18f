"""The writer: atomic shards, done markers, resume, appending. A shard exists once its marker is in place."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import fsio, housekeeping, ledger
from . import manifest as manifests
from . import marker as markers
from .commit import commit, with_generation
from .errors import CacheError
from .leases import Leases
from .ledger import Failure
from .manifest import CacheManifest
from .marker import DoneMarker
from .plan import Plan, Unit
from .shard import ShardData, build_image

if TYPE_CHECKING:
    from .reader import Cache

__all__ = ["CacheWriter", "ShardData", "write_cache"]


class CacheWriter:
    """Writes one cache. Several processes may each hold a writer of the same cache, writing different shards.

    Use :meth:`open`; the writer is a context manager whose exit sweeps temporary files of dead processes.
    """

    def __init__(self, path: Path, manifest: CacheManifest, fingerprint: str) -> None:
        self.path = path
        self.manifest = manifest
        self.plans: list[Plan] = manifests.read_plans(path)
        self._fingerprint = fingerprint
        self._run_id: str | None = None
        self._leases: Leases | None = None

    @property
    def leases(self) -> Leases:
        """The leases of this writer, by which it shares the cache with others; made when first asked for."""
        if self._leases is None:
            self._leases = Leases(self.path)
        return self._leases

    @classmethod
    def open(
        cls,
        path: str | Path,
        manifest: CacheManifest,
        *,
        overwrite: bool = False,
        accept_fingerprint: bool = False,
    ) -> CacheWriter:
        """Create the cache, or open it to resume or append.

        Parameters
        ----------
        path : path
            The cache folder; created with its parents.
        manifest : CacheManifest
            What this run makes. An existing cache keeps its own manifest, of which ``made_from`` is brought up to date.
        overwrite : bool
            Take back every shard of an existing cache and begin again; shard files become new generations.
        accept_fingerprint : bool
            Continue a cache made with another fingerprint; it is recorded in ``accepted``.

        Raises
        ------
        FingerprintError
            The cache was made with another fingerprint.
        CacheError
            The folder holds something else, another space, dim or dtype, or a format that is not known.
        """
        path = Path(path)
        housekeeping.refuse_foreign_folder(path)
        try:
            for folder in (path, path / "shards", path / "errors", path / "runs"):
                fsio.make_folder(folder)
        except OSError as error:
            raise CacheError(f"Cannot make the cache folder: {error.strerror}.", where=str(path)) from error
        housekeeping.sweep(path)
        if overwrite:
            housekeeping.refuse_while_others_write(path)
            housekeeping.take_back_everything(path)
        if overwrite or not (path / manifests.MANIFEST_NAME).exists():
            kept = manifest
        else:
            kept = _continued(manifests.read_manifest(path), manifest, accept_fingerprint, str(path))
        writer = cls(path, kept, manifest.fingerprint)
        content = kept.to_bytes()
        if not (path / manifests.MANIFEST_NAME).exists() or (path / manifests.MANIFEST_NAME).read_bytes() != content:
            fsio.write_atomic(path / manifests.MANIFEST_NAME, content)
        housekeeping.remove_superseded(path)
        return writer

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give leases back, and sweep what processes that died in the meantime left."""
        if self._leases is not None:
            units = {markers.shard_name(unit.shard): unit for unit in manifests.units_of(self.plans)}
            self._leases.clear(lambda name: name in units and self.is_done(units[name]))
            self._leases.close()
            self._leases = None
        housekeeping.sweep(self.path)

    def refresh(self) -> list[Plan]:
        """Read the plan again: another worker may have appended to it."""
        self.plans = manifests.read_plans(self.path)
        return self.plans

    def next_shard(self) -> int:
        """Number of the first unit that a new generation of the plan would have."""
        return sum(len(plan.units) for plan in self.plans)

    def append_plan(self, units: Sequence[Unit], shard_size: int) -> Plan:
        """Write the next generation of the plan, atomically. Without units nothing is written.

        Raises
        ------
        CacheError
            The units do not follow on from :meth:`next_shard`, or another process appended a different plan.
        """
        plan = Plan(len(self.plans), shard_size, tuple(units))
        first = self.next_shard()
        if [unit.shard for unit in units] != list(range(first, first + len(units))):
            raise CacheError(f"New units are to be numbered from {first} without gaps.", where=str(self.path))
        if not units:
            return plan
        file = self.path / manifests.plan_name(plan.generation)
        content = manifests.plan_bytes(plan)
        if not file.exists():
            fsio.write_atomic(file, content)
        elif file.read_bytes() != content:
            raise CacheError(
                "Another process appended a different plan to this cache.",
                where=str(file),
                todo="run the same command again",
            )
        self.plans.append(plan)
        return plan

    def _marker(self, shard: int) -> DoneMarker | None:
        return markers.find_marker(self.path, shard)

    def is_done(self, unit: Unit) -> bool:
        """Whether the shard of ``unit`` is committed, by an accepted fingerprint, from this very input."""
        found = self._marker(unit.shard)
        return found is not None and self._counts(found, unit)

    def _counts(self, found: DoneMarker, unit: Unit) -> bool:
        return (
            found.state == "done"
            and found.identity == unit.identity
            and found.fingerprint in self.manifest.fingerprints
        )

    def pending(self, *, retry_failed: bool = False) -> list[Unit]:
        """Units that are planned and not done, in order; with ``retry_failed`` also those with failures."""
        present = markers.list_markers(self.path / "shards")
        units = []
        for unit in manifests.units_of(self.plans):
            found = self._marker(unit.shard) if unit.shard in present else None
            if found is None or not self._counts(found, unit) or (retry_failed and found.failed):
                units.append(unit)
        return units

    def write_shard(
        self, unit: Unit, data: ShardData, failures: Sequence[Failure] = (), *, expected: int
    ) -> DoneMarker:
        """Write and commit the shard of ``unit``: ledger, shard file, then the marker.

        Parameters
        ----------
        unit : Unit
            A unit of :attr:`plans`.
        data : ShardData
            Its rows in the order of the input; may be empty.
        failures : sequence of Failure
            Its ledger; those with ``lost`` count as failed.
        expected : int
            Items that the unit holds: rows and lost items together.

        Raises
        ------
        CacheError
            Rows and lost items are not ``expected``, invalid vectors, or the disk refuses; nothing that was done
            before is lost.
        DuplicateKeyError
            Two rows have the same key; names both sources.
        """
        name = markers.shard_name(unit.shard)
        lost = sum(failure.lost for failure in failures)
        if len(data.keys) + lost != expected:
            raise CacheError(
                f"Shard {name} has {len(data.keys)} rows and {lost} lost items of {expected} expected: "
                "every item is a row or a line of the ledger.",
                where=str(self.path),
            )
        before = self._marker(unit.shard)
        generation = 0 if before is None else before.generation + 1
        if before is None and (self.path / "shards" / markers.marker_name(unit.shard)).exists():
            generation = housekeeping.free_generation(self.path, unit.shard)
        image, layout = build_image(data, self.manifest.dtype, self.manifest.dim, f"{self.path}, shard {name}")
        notes = ledger.to_bytes(failures)
        done = DoneMarker(
            shard=unit.shard,
            generation=generation,
            plan_generation=self._plan_of(unit),
            file=markers.data_name(unit.shard, generation),
            bytes=len(image),
            crc32=f"{zlib.crc32(image):08x}",
            expected=expected,
            ok=len(data.keys),
            failed=lost,
            dtype=self.manifest.dtype,
            dim=self.manifest.dim,
            embedding_offset=layout.embedding_offset,
            key_offset=layout.key_offset,
            key_length=layout.key_length,
            columns=layout.columns,
            ledger=markers.ledger_name(unit.shard, generation) if notes else None,
            ledger_crc32=f"{zlib.crc32(notes):08x}" if notes else None,
            identity=unit.identity,
            fingerprint=self._fingerprint,
        )
        if before is not None and before == with_generation(done, before.generation):
            return before  # another worker was faster, or a retry changed nothing
        return commit(self.path, before, done, image, notes)

    def _plan_of(self, unit: Unit) -> int:
        for plan in reversed(self.plans):
            if plan.units and plan.units[0].shard <= unit.shard <= plan.units[-1].shard:
                return plan.generation
        raise CacheError(f"Shard {markers.shard_name(unit.shard)} is not planned.", where=str(self.path))

    def log_run(self, record: Mapping[str, Any]) -> None:
        """Append a line to this run's file under ``runs/``: times, hosts, job ids and input roots stand there alone."""
        if self._run_id is None:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            self._run_id = f"{stamp}-{fsio.host_name()}-{os.getpid()}"
        line = json.dumps({"host": fsio.host_name(), **record}, sort_keys=True, default=str)
        with (self.path / "runs" / f"{self._run_id}.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")


def _continued(have: CacheManifest, wanted: CacheManifest, accept_fingerprint: bool, where: str) -> CacheManifest:
    """The manifest under which an existing cache goes on."""
    kept = have.accepting(wanted.fingerprint) if accept_fingerprint else have
    kept.check_same(wanted, where)
    return replace(kept, made_from=wanted.made_from)


def write_cache(
    path: str | Path, manifest: CacheManifest, shards: Iterable[ShardData], *, overwrite: bool = False
) -> Cache:
    """Write a whole small cache at once: one shard for each element, planned by the content itself.

    Run again with the same content it completes what is missing; other content needs ``overwrite``.
    """
    from .reader import open_cache

    pieces = list(shards)
    with CacheWriter.open(path, manifest, overwrite=overwrite) as writer:
        units, start = [], 0
        for number, data in enumerate(pieces):
            stop = start + len(data.keys)
            units.append(manifests.rows_unit(number, "rows", start, stop, _content_identity(data)))
            start = stop
        if not writer.plans:
            writer.append_plan(units, max((len(data.keys) for data in pieces), default=1))
        elif manifests.units_of(writer.plans) != units:
            raise CacheError(
                "The cache there holds other rows.", where=str(path), todo="choose another path, or overwrite=True"
            )
        for unit in writer.pending():
            data = pieces[unit.shard]
            writer.write_shard(unit, data, expected=len(data.keys))
    return open_cache(path)


def _content_identity(data: ShardData) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([data.keys, data.captions, data.sources, data.meta], sort_keys=True).encode())
    digest.update(str(data.vectors.dtype).encode() + data.vectors.tobytes())
    return digest.hexdigest()
