"""cache.json and plan-<generation>.json: what a cache is, and which stretch of the input becomes which shard."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from . import canonical
from .errors import CacheError, FingerprintError
from .plan import Piece, Plan, Unit

FORMAT = "cmcr-cache"
PLAN_FORMAT = "cmcr-plan"
VERSION = 1
MANIFEST_NAME = "cache.json"
_PLAN_NAME = re.compile(r"^plan-(\d{5,})\.json$")
_KINDS = ("encoded", "imported", "completed", "projected")


@dataclass(frozen=True)
class CacheManifest:
    """What the rows of a cache are: ``cache.json``.

    Parameters
    ----------
    space_id, space_name : str
        Hash of the weights that the towers of the space share; its short name.
    modality : str
        ``text``, ``image``, ``audio``, ``pointcloud``.
    encoder : str
        Name of the encoder, or of what else made the rows.
    fingerprint : str
        Hash of everything that decides a vector.
    dim : int
        Length of a vector.
    dtype : {"float16", "float32"}
        Stored type.
    kind : {"encoded", "imported", "completed", "projected"}
    made_from : mapping
        For derived caches the parents' content ids and the settings; JSON-able, without times, hosts and absolute
        paths.
    accepted : tuple of str
        Other fingerprints whose rows were accepted as equal (``--accept-fingerprint``).
    """

    space_id: str
    space_name: str
    modality: str
    encoder: str
    fingerprint: str
    dim: int
    dtype: Literal["float16", "float32"] = "float16"
    kind: Literal["encoded", "imported", "completed", "projected"] = "encoded"
    made_from: Mapping[str, Any] = field(default_factory=dict)
    accepted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise CacheError(f"dtype is {self.dtype!r}; a cache stores float16 or float32.")
        if self.kind not in _KINDS:
            raise CacheError(f"kind is {self.kind!r}; one of {', '.join(_KINDS)}.")
        if self.dim < 1:
            raise CacheError(f"dim is {self.dim}; a vector has at least one element.")

    @property
    def fingerprints(self) -> frozenset[str]:
        """Every fingerprint whose shards count as done."""
        return frozenset((self.fingerprint, *self.accepted))

    def to_bytes(self) -> bytes:
        """The file ``cache.json``."""
        record = {**asdict(self), "made_from": dict(self.made_from), "format": FORMAT, "version": VERSION}
        return canonical.to_pretty(record)

    def check_same(self, wanted: CacheManifest, where: str) -> None:
        """Refuse to continue this cache as ``wanted``.

        Raises
        ------
        CacheError
            Another space, modality, dim, dtype or kind: rows would not be comparable.
        FingerprintError
            Another fingerprint; names both.
        """
        for name in ("space_id", "modality", "dim", "dtype", "kind"):
            have, want = getattr(self, name), getattr(wanted, name)
            if have != want:
                raise CacheError(
                    f"The cache there has {name} {have!r}; this run makes {want!r}.",
                    where=where,
                    todo="choose another --output, or replace the cache with --overwrite",
                )
        if wanted.fingerprint not in self.fingerprints:
            raise FingerprintError(
                f"The cache there was made with fingerprint {self.fingerprint} ({self.encoder}), "
                f"this run has {wanted.fingerprint} ({wanted.encoder}).",
                where=where,
                todo="use the same encoder, weights and versions, or another --output; "
                "--accept-fingerprint if you know that the vectors are the same, --overwrite to make the cache anew",
            )

    def accepting(self, fingerprint: str) -> CacheManifest:
        """This manifest with one more fingerprint accepted as equal."""
        if fingerprint in self.fingerprints:
            return self
        return replace(self, accepted=(*self.accepted, fingerprint))


def read_manifest(path: Path) -> CacheManifest:
    """Read ``cache.json`` of the cache folder ``path``.

    Raises
    ------
    CacheError
        No cache there, a damaged manifest, or an unknown version.
    """
    file = path / MANIFEST_NAME
    if not file.is_file():
        what = (
            "There is no such folder" if not path.exists() else f"This folder is no cache: it holds no {MANIFEST_NAME}"
        )
        raise CacheError(
            f"{what}.", where=str(path), todo="make a cache with cmcr encode or cmcr cache import, or correct the path"
        )
    todo = "restore cache.json from a copy, or make the cache anew with --overwrite"
    record = canonical.read_object(file, FORMAT, VERSION, todo)
    names = ("space_id", "space_name", "modality", "encoder", "fingerprint", "dtype", "kind")
    texts = {name: canonical.field(record, name, str, file, todo) for name in names}
    accepted = canonical.field({"accepted": record.get("accepted", [])}, "accepted", list, file, todo)
    made_from = canonical.field({"made_from": record.get("made_from", {})}, "made_from", dict, file, todo)
    try:
        return CacheManifest(
            **texts,
            dim=canonical.field(record, "dim", int, file, todo),
            made_from=made_from,
            accepted=tuple(str(one) for one in accepted),
        )
    except CacheError as error:
        raise CacheError(error.what, where=str(file), todo=error.todo or todo) from error


def plan_name(generation: int) -> str:
    """File name of one generation of the plan."""
    return f"plan-{generation:05d}.json"


def is_plan(name: str) -> bool:
    """Whether a file name is that of a generation of the plan."""
    return _PLAN_NAME.match(name) is not None


def plan_bytes(plan: Plan) -> bytes:
    """The plan file: JSON with one unit a line."""
    head = (
        f'{{"format": "{PLAN_FORMAT}", "generation": {plan.generation}, "shard_size": {plan.shard_size}, "units": [\n'
    )
    units = [
        canonical.to_line({"shard": unit.shard, "pieces": [piece.to_json() for piece in unit.pieces]})
        for unit in plan.units
    ]
    return head.encode() + b",\n".join(units) + f'\n], "version": {VERSION}}}\n'.encode()


def read_plan(path: Path) -> Plan:
    """Read one generation of the plan."""
    todo = "run: cmcr cache verify"
    record = canonical.read_object(path, PLAN_FORMAT, VERSION, todo)
    try:
        units = tuple(
            Unit(int(unit["shard"]), tuple(Piece.from_json(piece) for piece in unit["pieces"]))
            for unit in record["units"]
        )
        plan = Plan(int(record["generation"]), int(record["shard_size"]), units)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheError(f"The plan cannot be read ({error!r}).", where=str(path), todo=todo) from error
    if path.name != plan_name(plan.generation):
        raise CacheError(f"The plan says generation {plan.generation}.", where=str(path), todo=todo)
    return plan


def list_plans(path: Path) -> list[Path]:
    """Plan files of a cache, by generation."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        found = {int(match[1]): path / match[0] for entry in entries if (match := _PLAN_NAME.match(entry.name))}
    return [found[generation] for generation in sorted(found)]


def read_plans(path: Path) -> list[Plan]:
    """All generations of the plan, which are numbered from 0 without gaps, as their shards are.

    Raises
    ------
    CacheError
        A generation or shard number is missing or doubled.
    """
    plans = [read_plan(file) for file in list_plans(path)]
    if [plan.generation for plan in plans] != list(range(len(plans))):
        raise CacheError(
            "A generation of the plan is missing.", where=str(path), todo="restore the plan file from a copy"
        )
    shards = [unit.shard for plan in plans for unit in plan.units]
    if shards != list(range(len(shards))):
        raise CacheError(
            "The plan does not number its shards 0, 1, 2, ...", where=str(path), todo="run: cmcr cache verify"
        )
    return plans


def rows_unit(shard: int, source: str, start: int, stop: int, identity: str) -> Unit:
    """A unit of rows ``start`` to ``stop`` of an array or parent."""
    return Unit(shard, (Piece("rows", source, stop - start, identity, start=start, stop=stop),))


def units_of(plans: Sequence[Plan]) -> list[Unit]:
    """Units of all generations, in order."""
    return [unit for plan in plans for unit in plan.units]
