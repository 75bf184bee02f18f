"""A gallery in the shared space: one projected shard for each shard of the raw cache, made once and kept up to date."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ..cache import runs
from ..cache.derived import DerivedPlan, follow, foresee
from ..cache.derived_sharing import Shared, Stop
from ..cache.errors import CmcrError
from ..cache.ledger import Failure
from ..cache.manifest import CacheManifest
from ..cache.plan import Unit
from ..cache.reader import Cache
from ..cache.writer import CacheWriter, ShardData
from ..trainer.connector import Connector
from .shared import Vectors, as_cache, as_connector, connector_fingerprint

_T = TypeVar("_T")


@dataclass(frozen=True)
class ProjectReport:
    """What a projection did.

    Parameters
    ----------
    output : Path
        The projected cache.
    space : str
        The head that the rows went through.
    dim : int
        Dimension of the shared space.
    shards, rows : int
        Projected by this run.
    kept : int
        Shards that were there already and are still right.
    renewed : int
        Of ``shards``, those made again because their input had changed.
    vanished : int
        Shards taken back because their input is no longer in the raw cache.
    failed : int
        Rows that the head sent to zero: lines of the error ledger.
    seconds : float
        Wall time.
    notes : tuple of str
        Remarks for the reader.
    unfinished : int
        Shards left for another run because this one was asked to stop.
    """

    output: Path
    space: str
    dim: int
    shards: int
    rows: int
    kept: int
    renewed: int
    vanished: int
    failed: int
    seconds: float
    notes: tuple[str, ...] = ()
    unfinished: int = 0


def project(
    connector: Connector | str | Path,
    input: Cache | str | Path,
    output: str | Path,
    *,
    batch_size: int = 8192,
    device: str | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
) -> ProjectReport:
    """Write the rows of a cache, in the shared space, as a cache of the kind ``projected``.

    Run again, it projects what is new or changed and nothing else; killed, it goes on where it was. Keys, captions,
    sources and meta are those of the raw cache; join by key, because rows that were added late stand at the end. Any
    number of processes may run the same call at once: they share the shards.

    Parameters
    ----------
    connector : Connector or path
    input : Cache or path
        A raw cache of one of the connector's spaces.
    output : path
        The projected cache.
    batch_size : int
        Rows that pass the head at once; halved when the device runs out of memory.
    device : str, optional
        Where the head runs; where the connector is, if not said.
    dtype : {"float16", "float32"}
        Stored type.
    overwrite : bool
        Make an existing cache anew.
    progress : callable, optional
        Called with (rows done, rows to do) after each shard.
    stop : Stop, optional
        Once it is requested, the shard that is begun is finished and no other is begun.

    Raises
    ------
    CacheError
        The output belongs to another connector, or is no projected cache.
    ConnectorError
        The cache is in none of the connector's spaces.
    """
    started = perf_counter()
    loaded, parent, head, manifest = _checked(connector, input, output, batch_size, device, dtype)
    with CacheWriter.open(output, manifest, overwrite=overwrite) as writer:
        work = follow(writer, parent, connector_fingerprint(loaded))
        shared = Shared(writer, work, stop)
        run = _Run(loaded, head, work.parent, batch_size)
        done = 0
        for unit, shard in shared:
            run.shard(writer, unit, shard.rows)
            done += shard.marker.ok
            if progress is not None:
                progress(done, work.rows)
        seconds = perf_counter() - started
        writer.log_run({"command": "project", "roots": _roots(parent), "rows": run.rows, "seconds": seconds})
    return ProjectReport(
        Path(output),
        head,
        loaded.dim,
        shared.made,
        run.rows,
        work.kept + shared.by_others,
        work.renewed,
        work.vanished,
        run.failed,
        seconds,
        tuple(run.notes),
        shared.unfinished,
    )


def plan_project(
    connector: Connector | str | Path,
    input: Cache | str | Path,
    output: str | Path,
    *,
    batch_size: int = 8192,
    device: str | None = None,
    dtype: Literal["float16", "float32"] = "float16",
) -> DerivedPlan:
    """What :func:`project` would do with the same arguments. Writes nothing, and raises what it would raise."""
    loaded, parent, _, manifest = _checked(connector, input, output, batch_size, device, dtype)
    return foresee(Path(output), manifest, parent, connector_fingerprint(loaded))


def _checked(
    connector: Connector | str | Path,
    input: Cache | str | Path,
    output: str | Path,
    batch_size: int,
    device: str | None,
    dtype: Literal["float16", "float32"],
) -> tuple[Connector, Cache, str, CacheManifest]:
    """Connector, raw cache, the head for it, and the manifest of what is made; refuses what does not fit."""
    loaded, parent = as_connector(connector, device), as_cache(input)
    if batch_size < 1:
        raise CmcrError(f"A batch has at least one row, not {batch_size}.", todo="give --batch-size a positive number")
    if parent.manifest.kind == "projected":
        raise CmcrError(
            "This cache is in a shared space already.", where=str(parent.path), todo="project the raw cache"
        )
    if Path(output).resolve() == Path(parent.path).resolve():
        raise CmcrError("Input and output are the same cache.", where=str(output), todo="choose another --output")
    head = loaded.space_of(parent.manifest)
    return loaded, parent, head, _manifest(loaded, parent, head, connector_fingerprint(loaded), dtype)


def _manifest(
    connector: Connector, parent: Cache, head: str, fingerprint: str, dtype: Literal["float16", "float32"]
) -> CacheManifest:
    return CacheManifest(
        space_id=f"shared:{fingerprint}",
        space_name="+".join(connector.spaces),
        modality=parent.manifest.modality,
        encoder=parent.manifest.encoder,
        # One output holds one parent space: rows of another head or encoder must not be appended to it.
        fingerprint=f"{fingerprint}:{head}:{parent.manifest.fingerprint}",
        dim=connector.dim,
        dtype=dtype,
        kind="projected",
        made_from={"connector": fingerprint, "space": head, "cache": parent.content_id()},
    )


def _roots(parent: Cache) -> dict[str, str]:
    """Input roots of every run of the raw cache, the newest of each name: where the originals of the rows are."""
    roots: dict[str, str] = {}
    for record in runs.records(parent.path):
        found = record.get("roots")
        roots = {**(found if isinstance(found, dict) else {}), **roots}
    return roots


class _Run:
    """One pass over the pending shards."""

    def __init__(self, connector: Connector, head: str, parent: Cache, batch_size: int) -> None:
        self.connector, self.head, self.parent, self.batch_size = connector, head, parent, batch_size
        self.rows = self.failed = 0
        self.notes: list[str] = []

    def shard(self, writer: CacheWriter, unit: Unit, rows: npt.NDArray[np.int64]) -> None:
        """Project one shard of the parent and commit it."""
        keys = self.parent.keys(rows)
        vectors = self._project(self.parent.rows(rows))  # (N, D)
        alive = np.linalg.norm(vectors, axis=1) > 0  # a head that ends in a ReLU may give nothing at all
        failures = [
            Failure(key, "project", "ConnectorError", f"the head {self.head!r} sends this vector to zero")
            for key, lives in zip(keys, alive, strict=True)
            if not lives
        ]
        data = ShardData(
            keys=_pick(keys, alive),
            vectors=vectors[alive],
            captions=_pick(self.parent.captions(rows), alive),
            sources=_pick(self.parent.sources(rows), alive),
            meta=_pick(self.parent.meta(rows), alive),
        )
        writer.write_shard(unit, data, failures, expected=len(rows))
        self.rows += len(data.keys)
        self.failed += len(failures)

    def _project(self, vectors: Vectors) -> Vectors:
        while True:
            try:
                return self.connector.project(vectors, space=self.head, batch_size=self.batch_size)
            except torch.cuda.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                self.notes.append(f"out of memory: the batch size was halved to {self.batch_size}")


def _pick(values: Sequence[_T], keep: npt.NDArray[np.bool_]) -> list[_T]:
    return [value for value, kept in zip(values, keep, strict=True) if kept]
