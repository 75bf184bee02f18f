"""Completed caches: written shard by shard, resumable, incremental, and found again by what they were made from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache.bank import Bank
from ..cache.errors import CacheError
from ..cache.manifest import CacheManifest, units_of
from ..cache.marker import DoneMarker
from ..cache.plan import Piece, Unit
from ..cache.reader import Cache, open_cache
from ..cache.writer import CacheWriter, ShardData
from .completion import Completed, complete_rows, readable_neighbours
from .settings import CompletionSettings
from .spaces import check_space

__all__ = ["Completed", "CompletionReport", "complete", "complete_rows", "completed_cache"]

_QUERY_ROWS = 8192  # queries that share one pass over the bank
_NEIGHBOURS = "neighbours"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CompletionReport:
    """What a completion did.

    Parameters
    ----------
    folder : Path
        The completed cache.
    rows, shards, skipped : int
        Rows of the whole cache; shards that this run made, and that were done before.
    neighbours : float
        Median over all rows of the effective number of bank rows averaged: exp of the entropy of the softmax weights.
    query, bank : str
        Modalities.
    bank_rows : int
        Rows of the bank.
    """

    folder: Path
    rows: int
    shards: int
    skipped: int
    neighbours: float
    query: str
    bank: str
    bank_rows: int

    def line(self) -> str:
        """The readable line."""
        return readable_neighbours(self.neighbours, self.query, self.bank)


def complete(
    query: Cache | str | Path,
    bank: Cache | str | Path | Sequence[Cache | str | Path],
    output: str | Path,
    tau: float = 0.01,
    *,
    bank_rows: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CompletionReport:
    """Complete a whole cache from one or several bank caches of its space.

    The output has the keys and captions of the query, shard for shard. Its vectors are the softmax-weighted sums
    themselves, float32 and not of unit length (readers normalise on reading). Run again, it goes on where it was
    interrupted, and completes only the shards that the query has gained.

    Parameters
    ----------
    query, bank : Cache or path
        Caches of one space.
    output : path
        The completed cache.
    tau : float
        Temperature τ1.
    bank_rows, seed : int
        Use a seeded sample of the bank.
    device : str
        Where to compute.
    overwrite : bool
        Make every shard again.
    progress : callable, optional
        Gets (rows done, rows in all).

    Raises
    ------
    FitError
        Query and bank are of different spaces, or the bank is empty.
    CacheError
        The output was made from another query, or with other settings.
    """
    query = _opened(query)
    several = [bank] if isinstance(bank, Cache | str | Path) else list(bank)
    caches = [_opened(one) for one in several]
    for cache in caches:
        check_space(query, cache)
    settings = CompletionSettings(tau=tau, bank_rows=bank_rows, seed=seed)
    whole = Bank(caches, rows=bank_rows, seed=seed)
    manifest = _manifest(query, whole, settings)
    started = time.time()
    with CacheWriter.open(output, manifest, overwrite=overwrite) as writer:
        _plan(writer, query, manifest.fingerprint)
        pending = writer.pending()
        markers = {marker.shard: (index, marker) for index, marker in enumerate(query.shards)}
        total = sum(unit.rows or 0 for unit in pending)
        done = 0
        for unit in pending:
            index, marker = markers[_parent(unit)]
            data = _complete_shard(query, index, marker, whole, settings, device)
            writer.write_shard(unit, data, expected=marker.ok)
            done += marker.ok
            if progress is not None:
                progress(done, total)
        if pending:
            writer.log_run(
                {"command": "complete", "shards": len(pending), "rows": done, "start": started, "end": time.time()}
            )
        skipped = writer.next_shard() - len(pending)
    result = open_cache(output)
    return CompletionReport(
        Path(output),
        len(result),
        len(pending),
        skipped,
        _median_neighbours(result),
        query.modality,
        caches[0].modality,
        len(whole),
    )


def completed_cache(
    query: Cache,
    banks: Sequence[Cache],
    settings: CompletionSettings,
    folder: Path | None = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[Cache, CompletionReport]:
    """The completion of exactly this query content from exactly this bank content: reused where it was made before.

    It lives in ``folder`` (``completions`` beside the query cache when not given), under the fingerprint of query, bank
    and settings.
    """
    bank = Bank(list(banks), rows=settings.bank_rows, seed=settings.seed)
    name = _digest(["completion", query.content_id(), bank.content_id(), settings.fingerprint_fields()])
    place = (query.path.parent / "completions" if folder is None else folder) / f"{query.path.name}-{name}"
    report = complete(
        query,
        list(banks),
        place,
        settings.tau,
        bank_rows=settings.bank_rows,
        seed=settings.seed,
        device=device,
        progress=progress,
    )
    return open_cache(place), report


def _opened(cache: Cache | str | Path) -> Cache:
    return cache if isinstance(cache, Cache) else open_cache(cache)


def _digest(record: Any) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def _manifest(query: Cache, bank: Bank, settings: CompletionSettings) -> CacheManifest:
    """What a completed cache says of itself: vectors of the bank's modality in the query's space."""
    source = bank.caches[0].manifest
    fields = settings.fingerprint_fields()
    return CacheManifest(
        space_id=query.manifest.space_id,
        space_name=query.manifest.space_name,
        modality=source.modality,
        encoder=source.encoder,
        fingerprint=_digest([query.manifest.fingerprint, bank.content_id(), fields]),
        dim=query.dim,
        dtype="float32",
        kind="completed",
        made_from={
            "query": {"encoder": query.manifest.encoder, "modality": query.modality, "content": query.content_id()},
            "bank": {
                "content": bank.content_id(),
                "caches": [cache.content_id() for cache in bank.caches],
                "rows": len(bank),
            },
            "settings": fields,
        },
    )


def _identity(marker: DoneMarker, fingerprint: str) -> str:
    """Identity of the input of one completed shard: the content of its parent, and how it is completed."""
    return _digest([marker.crc32, marker.ok, fingerprint])


def _parent(unit: Unit) -> int:
    """Number of the query shard that a unit completes."""
    return int(unit.pieces[0].source)


def _plan(writer: CacheWriter, query: Cache, fingerprint: str) -> None:
    """Plan the query shards that are not planned yet.

    Raises
    ------
    CacheError
        A planned shard has other content now, or is gone: the cache cannot stand for both.
    """
    now = {marker.shard: _identity(marker, fingerprint) for marker in query.shards}
    planned = {_parent(unit): unit.pieces[0].identity for unit in units_of(writer.plans)}
    changed = [shard for shard, identity in planned.items() if now.get(shard) != identity]
    if changed:
        raise CacheError(
            f"{len(changed)} completed shards of the query have other content now, the first is {changed[0]}",
            where=f"{query.path} and {writer.path}",
            todo="choose another --output, or delete this completed cache",
        )
    new = [marker for marker in query.shards if marker.shard not in planned]
    first = writer.next_shard()
    units = [
        Unit(first + i, (Piece("shard", str(marker.shard), marker.ok, now[marker.shard]),))
        for i, marker in enumerate(new)
    ]
    writer.append_plan(units, max((marker.ok for marker in new), default=1))


def _complete_shard(
    query: Cache, index: int, marker: DoneMarker, bank: Bank, settings: CompletionSettings, device: str
) -> ShardData:
    """The rows of one query shard, completed; no batch crosses a shard, so a resume makes the same bytes."""
    start, stop = int(query.starts[index]), int(query.starts[index + 1])
    vectors = np.empty((stop - start, query.dim), np.float32)
    neighbours: list[float] = []
    for low in range(start, stop, _QUERY_ROWS):
        high = min(low + _QUERY_ROWS, stop)
        done = complete_rows(query.read(low, high), bank, settings.tau, device=device)
        vectors[low - start : high - start] = done.vectors
        neighbours += [round(float(n), 3) for n in done.neighbours]
    rows = np.arange(start, stop)
    return ShardData(
        keys=query.key_range(start, stop),
        vectors=vectors,
        captions=query.captions(rows) if "caption" in marker.columns else None,
        meta=[{_NEIGHBOURS: n} for n in neighbours],
    )


def _median_neighbours(cache: Cache) -> float:
    """Median of the effective number of neighbours; over 4096 evenly spread rows of a large cache."""
    rows: npt.NDArray[np.int64] = np.unique(
        np.linspace(0, max(0, len(cache) - 1), min(len(cache), 4096)).astype(np.int64)
    )
    values = [record[_NEIGHBOURS] for record in cache.meta(rows) if record and _NEIGHBOURS in record]
    return float(np.median(values)) if values else float("nan")
