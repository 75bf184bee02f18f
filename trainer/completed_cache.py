"""Completed caches: written shard by shard, resumable, incremental, and found again by what they were made from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..cache import housekeeping
from ..cache.bank import Bank
from ..cache.derived import DerivedPlan, ParentShard, follow, foresee, lineage
from ..cache.derived_sharing import Shared, Stop
from ..cache.errors import CacheError, RecipeError
from ..cache.leases import Leases
from ..cache.manifest import MANIFEST_NAME, CacheManifest, read_manifest
from ..cache.reader import Cache, open_cache
from ..cache.writer import CacheWriter, ShardData
from .complete_batch import BatchCompleter
from .completion import Completed, complete_rows
from .completion_report import CompletionReport, make_report
from .device import resolve_device
from .search_choice import CompletionPlan, plan_completion
from .settings import CompletionSettings
from .spaces import check_space

__all__ = ["Completed", "CompletionReport", "complete", "complete_rows", "completed_cache"]

_QUERY_ROWS = 8192  # queries that share one pass over the bank

Progress = Callable[[int, int], None]


def complete(
    query: Cache | str | Path,
    bank: Cache | str | Path | Sequence[Cache | str | Path],
    output: str | Path,
    tau: float | str = 0.01,
    *,
    search: str = "exact",
    tolerance: float = 1e-3,
    precision: str = "fp32",
    bank_rows: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> CompletionReport:
    """Complete a whole cache from one or several bank caches of its space.

    The output has the keys and captions of the query, shard for shard. Its vectors are the softmax-weighted sums
    themselves, float32 and not of unit length (readers normalise on reading). Run again, it goes on where it was
    interrupted, and completes only the shards that the query has gained or that were rewritten in it; join by key,
    because a shard that the query gained late stands at the end. Any number of processes may run the same call at once:
    they share the shards.

    Parameters
    ----------
    query, bank : Cache or path
        Caches of one space.
    output : path
        The completed cache.
    tau : float or "auto"
        Temperature τ1; ``auto`` takes the one at which the median query averages 16 bank rows.
    search, tolerance, precision
        See :class:`CompletionSettings`. What is chosen is recorded, and kept as long as the output stands.
    bank_rows : int, optional
        Use a seeded sample of the bank.
    seed : int
        Of that sample, of the probe and of an index.
    device : str
        Where to compute.
    overwrite : bool
        Make every shard again.
    progress : callable, optional
        Gets (rows done, rows to do).
    stop : Stop, optional
        Once it is requested, the shard that is begun is finished and no other is begun.

    Raises
    ------
    RecipeError
        A setting is not valid.
    FitError
        Query and bank are of different spaces.
    DeviceError
        The device is not there.
    MissingExtraError
        An approximate index is asked for by name, and FAISS is not installed.
    CacheError
        The bank is empty, or the output was made by another encoder, from another bank, or with other settings.
    """
    settings = _settings(
        {
            "tau": tau,
            "search": search,
            "tolerance": tolerance,
            "precision": precision,
            "bank_rows": bank_rows,
            "seed": seed,
        }
    )
    return _complete(_opened(query), _several(bank), Path(output), settings, device, overwrite, progress, stop)


def plan_complete(
    query: Cache | str | Path,
    bank: Cache | str | Path | Sequence[Cache | str | Path],
    output: str | Path,
    tau: float | str = 0.01,
    *,
    device: str = "cpu",
    **settings: Any,
) -> DerivedPlan:
    """What :func:`complete` would do with the same arguments. Writes nothing, and raises what it would raise."""
    checked, opened, path = _settings({"tau": tau, **settings}), _opened(query), Path(output)
    device, whole = _joined(opened, _several(bank), checked, device)
    plan = _recorded_plan(path, whole, checked) or plan_completion(opened, whole, checked, device)
    manifest = _manifest(opened, whole, checked, plan)
    return foresee(path, manifest, opened, manifest.fingerprint)


def _several(bank: Cache | str | Path | Sequence[Cache | str | Path]) -> list[Cache]:
    return [_opened(one) for one in ([bank] if isinstance(bank, Cache | str | Path) else bank)]


def _joined(query: Cache, caches: Sequence[Cache], settings: CompletionSettings, device: str) -> tuple[str, Bank]:
    """Where to compute, and the whole bank, of the query's space."""
    for cache in caches:
        check_space(query, cache)
    return str(resolve_device(device)), Bank(caches, rows=settings.bank_rows, seed=settings.seed)


def _complete(
    query: Cache,
    caches: Sequence[Cache],
    output: Path,
    settings: CompletionSettings,
    device: str,
    overwrite: bool,
    progress: Progress | None,
    stop: Stop | None = None,
) -> CompletionReport:
    """:func:`complete`, its arguments checked."""
    device, whole = _joined(query, caches, settings, device)
    started = time.time()
    with contextlib.ExitStack() as opened:
        with _choosing(output, settings, overwrite):
            plan = None if overwrite else _recorded_plan(output, whole, settings)
            if plan is None:
                plan = plan_completion(query, whole, settings, device)
            manifest = _manifest(query, whole, settings, plan)
            writer = opened.enter_context(CacheWriter.open(output, manifest, overwrite=overwrite))
        completer = BatchCompleter(whole, plan, settings.seed, device)
        work = follow(writer, query, manifest.fingerprint)
        done = 0

        def tell(rows: int) -> None:
            nonlocal done
            done += rows
            if progress is not None:
                progress(done, work.rows)

        shared = Shared(writer, work, stop)
        for unit, shard in shared:
            writer.write_shard(unit, _complete_shard(work.parent, shard, completer, tell), expected=shard.marker.ok)
        if shared.made:
            record = {"command": "complete", "shards": shared.made, "rows": done}
            writer.log_run({**record, "start": started, "end": time.time()})
    counts = {
        "shards": shared.made, "skipped": work.kept + shared.by_others, "renewed": work.renewed,
        "vanished": work.vanished, "unfinished": shared.unfinished,
    }  # fmt: skip
    return make_report(open_cache(output), work.parent, whole, plan, settings.seed, counts)


@contextlib.contextmanager
def _choosing(output: Path, settings: CompletionSettings, overwrite: bool) -> Iterator[None]:
    """One process at a time chooses what the settings leave open, and records it; the others find it recorded."""
    if settings.is_plain or overwrite:
        yield
        return
    housekeeping.refuse_foreign_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    try:
        with Leases(output) as leases, leases.held("plan"):
            yield
    except BaseException:
        with contextlib.suppress(OSError):  # nothing was chosen: leave no empty folder; one with anything in it stays
            output.rmdir()
        raise


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
    report = _complete(query, list(banks), place, settings, device, False, progress)
    return open_cache(place), report


def completion_place(query: Cache, bank: Bank, settings: CompletionSettings, folder: Path | None = None) -> Path:
    """Where :func:`completed_cache` keeps the completion of a query from a bank; it may not be there yet."""
    name = _digest(["completion", lineage(query), bank.content_id(), settings.fingerprint_fields()])
    return (query.path.parent / "completions" if folder is None else folder) / f"{query.path.name}-{name}"


def _settings(given: dict[str, Any]) -> CompletionSettings:
    """The settings, checked.

    Raises
    ------
    RecipeError
    """
    try:
        return CompletionSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "precision"
        raise RecipeError(
            f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}, not {given[name]!r}",
            where=f"settings of the completion: {name}",
            todo=f"give --{name.replace('_', '-')} another value",
        ) from None


def _recorded_plan(output: Path, bank: Bank, settings: CompletionSettings) -> CompletionPlan | None:
    """What an earlier run chose for the same settings and bank; None where there is nothing to go on with.

    Raises
    ------
    CacheError
        The record there cannot be read.
    """
    if settings.is_plain or not (output / MANIFEST_NAME).exists():
        return None
    made_from = read_manifest(output).made_from
    try:
        chosen = made_from.get("chosen")
        if chosen is None or chosen["asked"] != settings.fingerprint_fields():
            return None
        return CompletionPlan.from_record(chosen["plan"]) if made_from["bank"]["content"] == bank.content_id() else None
    except (KeyError, TypeError, AttributeError) as error:
        raise CacheError(
            f"What an earlier run chose cannot be read ({error!r}).",
            where=str(output / MANIFEST_NAME),
            todo="choose another --output, or make the completion anew with --overwrite",
        ) from error


def _opened(cache: Cache | str | Path) -> Cache:
    return cache if isinstance(cache, Cache) else open_cache(cache)


def _digest(record: Any) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def _manifest(query: Cache, bank: Bank, settings: CompletionSettings, plan: CompletionPlan) -> CacheManifest:
    """What a completed cache says of itself: vectors of the bank's modality in the query's space."""
    source = bank.caches[0].manifest
    fields = plan.fields(settings)
    chosen = {} if settings.is_plain else {"chosen": {"asked": settings.fingerprint_fields(), "plan": plan.record()}}
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
            **chosen,
        },
    )


def _complete_shard(
    query: Cache, shard: ParentShard, completer: BatchCompleter, tell: Callable[[int], None]
) -> ShardData:
    """The rows of one query shard, completed; no batch crosses a shard, so a resume makes the same bytes."""
    start, stop = shard.start, shard.stop
    vectors = np.empty((stop - start, query.dim), np.float32)
    records: list[dict[str, Any]] = []
    for low in range(start, stop, _QUERY_ROWS):
        high = min(low + _QUERY_ROWS, stop)
        vectors[low - start : high - start], some = completer(query.read(low, high))
        records += some
        tell(high - low)
    return ShardData(
        keys=query.key_range(start, stop),
        vectors=vectors,
        captions=query.captions(shard.rows) if "caption" in shard.marker.columns else None,
        meta=[*records],
    )
