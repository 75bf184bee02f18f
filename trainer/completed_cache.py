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
from pydantic import ValidationError

from ..cache.bank import Bank
from ..cache.derived import ParentShard, follow, lineage
from ..cache.errors import RecipeError
from ..cache.manifest import CacheManifest
from ..cache.reader import Cache, open_cache
from ..cache.writer import CacheWriter, ShardData
from .completion import Completed, complete_rows, readable_neighbours
from .device import resolve_device
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
    renewed : int
        Of ``shards``, those made again because the query's shard was rewritten (retried, repaired).
    vanished : int
        Shards taken back because the query no longer has theirs.
    """

    folder: Path
    rows: int
    shards: int
    skipped: int
    neighbours: float
    query: str
    bank: str
    bank_rows: int
    renewed: int = 0
    vanished: int = 0

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
    interrupted, and completes only the shards that the query has gained or that were rewritten in it; join by key,
    because a shard that the query gained late stands at the end.

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
        Gets (rows done, rows to do).

    Raises
    ------
    RecipeError
        A setting is not valid.
    FitError
        Query and bank are of different spaces.
    DeviceError
        The device is not there.
    CacheError
        The bank is empty, or the output was made by another encoder, from another bank, or with other settings.
    """
    query = _opened(query)
    several = [bank] if isinstance(bank, Cache | str | Path) else list(bank)
    caches = [_opened(one) for one in several]
    for cache in caches:
        check_space(query, cache)
    settings = _settings(tau, bank_rows, seed)
    device = str(resolve_device(device))
    whole = Bank(caches, rows=bank_rows, seed=seed)
    manifest = _manifest(query, whole, settings)
    started = time.time()
    with CacheWriter.open(output, manifest, overwrite=overwrite) as writer:
        work = follow(writer, query, manifest.fingerprint)
        done = 0

        def tell(rows: int) -> None:
            nonlocal done
            done += rows
            if progress is not None:
                progress(done, work.rows)

        for unit, shard in work.todo:
            data = _complete_shard(query, shard, whole, settings, device, tell)
            writer.write_shard(unit, data, expected=shard.marker.ok)
        if work.todo:
            record = {"command": "complete", "shards": len(work.todo), "rows": done}
            writer.log_run({**record, "start": started, "end": time.time()})
    result = open_cache(output)
    return CompletionReport(
        Path(output),
        len(result),
        len(work.todo),
        work.kept,
        _median_neighbours(result),
        query.modality,
        caches[0].modality,
        len(whole),
        work.renewed,
        work.vanished,
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
    """The completion of a query from exactly this bank content: reused, and kept up to date as the query grows.

    It lives in ``folder`` (``completions`` beside the query cache when not given), under the name of the query cache
    and a digest of what does not change as the query grows: its lineage, the bank's content and the settings. Of
    ``progress`` see :func:`complete`.
    """
    place = completion_place(query, Bank(list(banks), rows=settings.bank_rows, seed=settings.seed), settings, folder)
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


def completion_place(query: Cache, bank: Bank, settings: CompletionSettings, folder: Path | None = None) -> Path:
    """Where :func:`completed_cache` keeps the completion of a query from a bank; it may not be there yet."""
    name = _digest(["completion", lineage(query), bank.content_id(), settings.fingerprint_fields()])
    return (query.path.parent / "completions" if folder is None else folder) / f"{query.path.name}-{name}"


def _settings(tau: float, bank_rows: int | None, seed: int) -> CompletionSettings:
    """The settings, checked.

    Raises
    ------
    RecipeError
    """
    try:
        return CompletionSettings(tau=tau, bank_rows=bank_rows, seed=seed)
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"])
        raise RecipeError(
            f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}",
            where=f"settings of the completion: {name}",
            todo=f"give --{name.replace('_', '-')} another value",
        ) from None


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


def _complete_shard(
    query: Cache,
    shard: ParentShard,
    bank: Bank,
    settings: CompletionSettings,
    device: str,
    tell: Callable[[int], None],
) -> ShardData:
    """The rows of one query shard, completed; no batch crosses a shard, so a resume makes the same bytes."""
    start, stop = shard.start, shard.stop
    vectors = np.empty((stop - start, query.dim), np.float32)
    neighbours: list[float] = []
    for low in range(start, stop, _QUERY_ROWS):
        high = min(low + _QUERY_ROWS, stop)
        done = complete_rows(query.read(low, high), bank, settings.tau, device=device)
        vectors[low - start : high - start] = done.vectors
        neighbours += [round(float(n), 3) for n in done.neighbours]
        tell(high - low)
    return ShardData(
        keys=query.key_range(start, stop),
        vectors=vectors,
        captions=query.captions(shard.rows) if "caption" in shard.marker.columns else None,
        meta=[{_NEIGHBOURS: n} for n in neighbours],
    )


def _median_neighbours(cache: Cache) -> float:
    """Median of the effective number of neighbours; over 4096 evenly spread rows of a large cache."""
    rows: npt.NDArray[np.int64] = np.unique(
        np.linspace(0, max(0, len(cache) - 1), min(len(cache), 4096)).astype(np.int64)
    )
    values = [record[_NEIGHBOURS] for record in cache.meta(rows) if record and _NEIGHBOURS in record]
    return float(np.median(values)) if values else float("nan")
