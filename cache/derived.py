"""Derived caches: one shard for each shard of a parent cache, made once and kept up to date as the parent changes.

What is to be done is planned from values alone (:func:`compare`), then written through the writer (:func:`follow`).
Any number of processes may do it together: they share the shards by leases (:mod:`.derived_sharing`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import commit, fsio, housekeeping
from .errors import CacheError
from .manifest import (
    MANIFEST_NAME,
    CacheManifest,
    list_plans,
    plan_bytes,
    plan_name,
    read_manifest,
    read_plan,
    units_of,
)
from .mapped import Indices
from .marker import DoneMarker, find_marker, shard_name
from .plan import Piece, Plan, Unit
from .reader import Cache
from .writer import CacheWriter


@dataclass(frozen=True)
class ParentShard:
    """A committed shard of the parent.

    Parameters
    ----------
    marker : DoneMarker
    start, stop : int
        Its rows in the parent: half-open.
    piece : Piece
        The input of the derived shard; its identity is the content of the parent shard and how it is derived from.
    """

    marker: DoneMarker
    start: int
    stop: int
    piece: Piece

    @property
    def rows(self) -> Indices:
        """Row numbers in the parent: (N,) int64."""
        return np.arange(self.start, self.stop, dtype=np.int64)


@dataclass(frozen=True)
class Changes:
    """A derived cache's plan beside its parent as it is now; units in the order of their shards.

    Parameters
    ----------
    kept : tuple of Unit
        Planned from what the parent shard still holds.
    renewed : tuple of Unit
        Planned from a parent shard that was rewritten since (retried, repaired), here with its new piece.
    vanished : tuple of Unit
        Planned from a parent shard that is no longer there.
    fresh : tuple of Unit
        Not planned yet, numbered from the end of the plan.
    """

    kept: tuple[Unit, ...]
    renewed: tuple[Unit, ...]
    vanished: tuple[Unit, ...]
    fresh: tuple[Unit, ...]


@dataclass(frozen=True)
class Work:
    """What a run has to make, and what it found.

    Parameters
    ----------
    todo : tuple of (Unit, ParentShard)
        Shards to make, in order.
    kept : int
        Shards that were there already and are still right.
    renewed : int
        Of ``todo``, those planned again because their parent was rewritten.
    vanished : int
        Shards taken back because their parent is gone.
    parent : Cache
        The parent as it was looked at last: rows are numbered in this one.
    """

    todo: tuple[tuple[Unit, ParentShard], ...]
    kept: int
    renewed: int
    vanished: int
    parent: Cache

    @property
    def rows(self) -> int:
        """Rows of the parent that are to be derived from."""
        return sum(shard.marker.ok for _, shard in self.todo)


def parent_shards(markers: Iterable[DoneMarker], fingerprint: str) -> dict[int, ParentShard]:
    """The parent's shards by number, in the order of its rows.

    Parameters
    ----------
    markers : iterable of DoneMarker
        ``Cache.shards``.
    fingerprint : str
        Of everything beside the parent that decides a derived row.
    """
    found = {}
    start = 0
    for marker in markers:
        piece = Piece("shard", shard_name(marker.shard), marker.ok, _identity(marker, fingerprint))
        found[marker.shard] = ParentShard(marker, start, start + marker.ok, piece)
        start += marker.ok
    return found


def _identity(marker: DoneMarker, fingerprint: str) -> str:
    text = f"{marker.crc32} {marker.bytes} {marker.identity} {fingerprint}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def parent_of(unit: Unit) -> int:
    """Number of the parent shard that a unit derives from.

    Raises
    ------
    CacheError
        The unit is not of a derived cache.
    """
    piece = unit.pieces[0]
    if len(unit.pieces) != 1 or piece.kind != "shard" or not piece.source.isdecimal():
        raise CacheError(
            f"Shard {shard_name(unit.shard)} is made of {piece.kind} of {piece.source!r}, not of a parent shard.",
            todo="choose another --output, or make the cache anew with --overwrite",
        )
    return int(piece.source)


def compare(planned: Sequence[Unit], parent: Mapping[int, ParentShard]) -> Changes:
    """Sort the planned units by what became of their parent shards, and add units for the parent's new shards."""
    kept, renewed, vanished = [], [], []
    for unit in planned:
        shard = parent.get(parent_of(unit))
        if shard is None:
            vanished.append(unit)
        elif unit.pieces == (shard.piece,):
            kept.append(unit)
        else:
            renewed.append(replace(unit, pieces=(shard.piece,)))
    known = {parent_of(unit) for unit in planned}
    new = [shard.piece for number, shard in parent.items() if number not in known]
    fresh = [Unit(number, (piece,)) for number, piece in enumerate(new, start=len(planned))]
    return Changes(tuple(kept), tuple(renewed), tuple(vanished), tuple(fresh))


def replanned(plans: Sequence[Plan], renewed: Iterable[Unit]) -> list[Plan]:
    """The plan generations with the renewed units in place of those of the same numbers."""
    now = {unit.shard: unit for unit in renewed}
    return [replace(plan, units=tuple(now.get(unit.shard, unit) for unit in plan.units)) for plan in plans]


def follow(writer: CacheWriter, parent: Cache, fingerprint: str) -> Work:
    """Bring the plan of a derived cache up to its parent, and say which shards are to be made.

    New parent shards are planned as a new generation. A plan that holds renewed shards is replaced whole; until they
    are written the old rows stand. Shards whose parent is gone are taken back. Killed anywhere, it is run again. One
    process at a time changes the plan, and looks at the parent anew before it does: an older view of a parent that
    grows must not take back what a newer one planned.

    Parameters
    ----------
    writer : CacheWriter
        Of the derived cache.
    parent : Cache
    fingerprint : str
        Of everything beside the parent that decides a derived row.
    """
    shards, changes = _compared(writer, parent, fingerprint)
    vanished = 0
    if changes.renewed or changes.fresh or _still_there(writer, changes) or "plan" in writer.leases.claims():
        with writer.leases.held("plan"):
            writer.refresh()
            parent = _as_it_is(parent)
            shards, changes = _compared(writer, parent, fingerprint)
            for number, plan in enumerate(replanned(writer.plans, changes.renewed)):
                if plan != writer.plans[number]:
                    fsio.write_atomic(writer.path / plan_name(plan.generation), plan_bytes(plan))
                    writer.plans[number] = plan
            vanished = sum(_take_back(writer, unit) for unit in changes.vanished)
            writer.append_plan(changes.fresh, max((unit.rows or 0 for unit in changes.fresh), default=1) or 1)
    numbers = ((unit, parent_of(unit)) for unit in writer.pending())
    todo = tuple((unit, shards[number]) for unit, number in numbers if number in shards)
    return Work(todo, len(shards) - len(todo), len(changes.renewed), vanished, parent)


@dataclass(frozen=True)
class DerivedPlan:
    """What a run would make; nothing was written.

    Parameters
    ----------
    output : Path
    shards_before, shards_now : int
        Shards that are there and still right, and those that a run would make.
    rows : int
        Of the parent, in the shards to make.
    """

    output: Path
    shards_before: int
    shards_now: int
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {**asdict(self), "output": str(self.output)}


def foresee(output: Path, manifest: CacheManifest, parent: Cache, fingerprint: str) -> DerivedPlan:
    """What :func:`follow` would give to be made in ``output``, whose writer would be opened with ``manifest``.

    Raises
    ------
    CacheError
        The output is another cache, or none.
    """
    housekeeping.refuse_foreign_folder(output)
    kept = manifest
    if (output / MANIFEST_NAME).exists():
        kept = read_manifest(output)
        kept.check_same(manifest, str(output))
    writer = CacheWriter(output, kept, manifest.fingerprint)
    changes = _compared(writer, parent, fingerprint)[1]
    right = {unit.shard for unit in changes.kept} - {unit.shard for unit in writer.pending()}
    left = [unit for unit in (*changes.kept, *changes.renewed, *changes.fresh) if unit.shard not in right]
    return DerivedPlan(output, len(right), len(left), sum(unit.rows or 0 for unit in left))


def _compared(writer: CacheWriter, parent: Cache, fingerprint: str) -> tuple[dict[int, ParentShard], Changes]:
    shards = parent_shards(parent.shards, fingerprint)
    try:
        return shards, compare(units_of(writer.plans), shards)
    except CacheError as error:
        raise CacheError(error.what, where=str(writer.path), todo=error.todo) from error


def _as_it_is(parent: Cache) -> Cache:
    """The parent as it is on disk now; the very same where nothing changed, and where it is a copy from elsewhere."""
    if type(parent) is not Cache:
        return parent
    now = Cache(parent.path)
    return parent if now.shards == parent.shards else now


def _still_there(writer: CacheWriter, changes: Changes) -> bool:
    """Whether a shard whose parent is gone has not been taken back yet."""
    found = (find_marker(writer.path, unit.shard) for unit in changes.vanished)
    return any(marker is not None and marker.state == "done" for marker in found)


def _take_back(writer: CacheWriter, unit: Unit) -> bool:
    """Drop a shard whose parent is gone, so that nobody reads rows that the parent no longer has."""
    found = find_marker(writer.path, unit.shard)
    if found is None or found.state != "done":
        return False
    if commit.drop(writer.path, found):
        commit.remove_generation(writer.path, found)
    return True


def lineage(parent: Cache) -> list[str]:
    """What of a parent stays the same while it grows, is retried or repaired: the place of what is derived from it.

    Its space, its encoder, and the input that it began with: the identities of the first generation of its plan.
    """
    manifest = parent.manifest
    first = [read_plan(file) for file in list_plans(parent.path)[:1]]
    began = hashlib.blake2b("\n".join(unit.identity for unit in units_of(first)).encode(), digest_size=16).hexdigest()
    return [manifest.space_id, manifest.modality, manifest.encoder, manifest.fingerprint, manifest.dtype, began]
