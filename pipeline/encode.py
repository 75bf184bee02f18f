"""Encode a corpus: open it, open the encoder, plan, and fill the cache shard by shard. Resumes, appends, repeats."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.errors import CorpusError, EncoderError
from ..cache.manifest import MANIFEST_NAME, CacheManifest, read_manifest, read_plans
from ..cache.plan import Plan, Unit
from ..cache.writer import CacheWriter
from .cluster.devices import local_devices, refuse_beside_devices, spelled_devices
from .cluster.local_workers import encode_by_workers
from .corpora import Corpus, PlanUpdate, open_corpus
from .encoders.base import Encoder, Item
from .encoders.registry import load_encoder
from .encoding.config import DryRun, EncodeConfig, EncodeReport
from .encoding.forward import Forward
from .encoding.prefetch import decode_slot
from .encoding.run import Run
from .progress import Progress, silent
from .stopping import StopSignal

__all__ = ["DryRun", "EncodeConfig", "EncodeReport", "encode", "plan_encode"]

Inputs = str | Path | Sequence[str | Path]


def encode(
    inputs: Inputs,
    output: str | Path,
    *,
    devices: str | Sequence[str] | None = None,
    progress: Progress | None = None,
    stop: StopSignal | None = None,
    **settings: Any,
) -> EncodeReport:
    """Encode inputs into a cache, or go on with one.

    Shards that are done stay as they are, new inputs are appended, and an interrupted run, run again, ends in the bytes
    of an undisturbed one. Any number of processes may run the same call at once: they share the shards.

    Parameters
    ----------
    inputs : path or sequence of paths
        Files, folders, globs, tars.
    output : path
        The cache.
    devices : str or sequence of str, optional
        Several worker processes on this machine, one a device: ``auto`` for one on each GPU, or ``cuda:0,cuda:1``, or
        ``cpu*2``. Without it, this process does the work on ``device``; ``device`` and ``worker`` exclude it.
    progress : callable, optional
        Told of every batch and shard; see :mod:`cmcr.pipeline.progress`.
    stop : StopSignal, optional
        Once it is requested, the shards that are begun are finished and no other is begun.
    settings
        The fields of :class:`EncodeConfig`: ``modality`` (required), ``encoder``, ``device``, ``batch_size``, ...

    Raises
    ------
    EncoderError
        If there is no such encoder, it has no tower of the modality, or it fails on everything. Nothing is written
        before the encoder is loaded.
    FingerprintError
        If the cache was made by another encoder.
    CorpusError
        If the inputs are no corpus, or, after everything else was encoded, if planned sources could not be read.
    CmcrError
        If more than ``max_failure_rate`` of the items failed.
    """
    show = progress or silent
    if devices is not None:
        refuse_beside_devices(settings)
        chosen = local_devices(devices, show)
        if len(chosen) > 1:
            return encode_by_workers(_listed(inputs), output, chosen, progress=show, stop=stop, settings=settings)
        settings = {**settings, "device": chosen[0]}
    job = _Job(inputs, output, EncodeConfig.of(settings))
    update = job.plan()
    config = job.config
    with CacheWriter.open(
        job.output, job.manifest, overwrite=config.overwrite, accept_fingerprint=config.accept_fingerprint
    ) as writer:
        update = job.append(writer, update)
        pending = writer.pending(retry_failed=config.retry_failed)
        before = writer.next_shard() - len(pending)
        run = Run(job.corpus, job.encoder, writer, config, show)
        if stop is not None:
            stop.when(run.stop)
        record = {"command": "encode", "started": _now(), "roots": dict(job.corpus.roots), "settings": config.record()}
        start = time.perf_counter()
        state = "stopped"
        try:
            run.units(pending)
            state = "finished"
        finally:
            seconds = time.perf_counter() - start
            report = job.report(run, update, before, seconds)
            writer.log_run({**record, "state": state, "ended": _now(), **_counts(report)})
    _raise_for_unreadable(run, len(pending))
    return report


def _listed(inputs: Inputs) -> list[str]:
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    return [str(one) for one in given]


def plan_encode(
    inputs: Inputs, output: str | Path, *, devices: str | Sequence[str] | None = None, **settings: Any
) -> DryRun:
    """What :func:`encode` would do with the same arguments: shards, rows, disk, time. Writes nothing.

    Whether ``devices`` are on this machine is not looked at: the run may be meant for another one.
    """
    if devices is not None:
        refuse_beside_devices(settings)
        spelled_devices(devices)
    job = _Job(inputs, output, EncodeConfig.of(settings))
    config = job.config
    update = job.plan()
    planned = [unit for plan in job.plans for unit in plan.units]
    pending: list[Unit] = []
    if planned:
        pending = CacheWriter(job.output, read_manifest(job.output), job.manifest.fingerprint).pending(
            retry_failed=config.retry_failed
        )
    todo = [*pending, *update.units]
    rows = sum(unit.rows or 0 for unit in todo)
    seconds, text_bytes = _measure(job.corpus, job.encoder, todo, config)
    return DryRun(
        output=job.output,
        encoder=job.manifest.encoder,
        fingerprint=job.manifest.fingerprint,
        modality=config.modality,
        dim=job.encoder.dim,
        shards_before=len(planned) - len(pending),
        shards_now=len(todo),
        rows=rows,
        uncounted=sum(unit.rows is None for unit in todo),
        disk_bytes=int(rows * (job.encoder.dim * np.dtype(config.dtype).itemsize + text_bytes)),
        seconds=None if seconds is None else rows * seconds,
        known=update.known,
        changed=update.changed,
        vanished=update.vanished,
        notes=update.remarks,
    )


class _Job:
    """What encode and its dry run share: corpus, encoder, manifest and plan, before anything is written."""

    def __init__(self, inputs: Inputs, output: str | Path, config: EncodeConfig) -> None:
        self.config = config
        self.output = Path(output)
        self.corpus: Corpus = open_corpus(_listed(inputs), config.modality, config.corpus_settings)
        self.encoder = _open_encoder(config)
        self.manifest = CacheManifest(
            space_id=self.encoder.space.id,
            space_name=self.encoder.space.name,
            modality=config.modality,
            encoder=self.encoder.name,
            fingerprint=self.encoder.fingerprint(),
            dim=self.encoder.dim,
            dtype=config.dtype,
        )
        self.plans: list[Plan] = []
        if not config.overwrite and (self.output / MANIFEST_NAME).exists():
            have = read_manifest(self.output)
            wanted = have.accepting(self.manifest.fingerprint) if config.accept_fingerprint else have
            wanted.check_same(self.manifest, str(self.output))
            self.plans = read_plans(self.output)

    def plan(self) -> PlanUpdate:
        """New units for inputs that the cache does not have."""
        first = sum(len(plan.units) for plan in self.plans)
        return self.corpus.plan(
            self.plans, self.config.shard_size, first_shard=first, known_keys=self._known if self.plans else None
        )

    def append(self, writer: CacheWriter, update: PlanUpdate) -> PlanUpdate:
        """Append the new units to the plan, one worker at a time; the update as it is if another was faster."""
        if not update.units and not writer.leases.claims().get("plan") and writer.plans == self.plans:
            return update
        with writer.leases.held("plan"):
            if writer.refresh() != self.plans:
                self.plans = list(writer.plans)
                update = self.plan()
            writer.append_plan(update.units, self.config.shard_size)
        return update

    def _known(self, keys: Sequence[str]) -> Sequence[bool]:
        from ..cache.reader import open_cache

        return [bool(index >= 0) for index in open_cache(self.output).index_of(list(keys))]

    def report(self, run: Run, update: PlanUpdate, shards_before: int, seconds: float) -> EncodeReport:
        """The counts of a run."""
        tally = run.tally
        return EncodeReport(
            output=self.output,
            encoder=self.manifest.encoder,
            fingerprint=self.manifest.fingerprint,
            modality=self.config.modality,
            dim=self.encoder.dim,
            shards_before=shards_before,
            shards_now=tally.shards,
            rows=tally.rows,
            failed=tally.failed,
            remarks=tally.remarks,
            truncated=tally.truncated,
            errors=dict(tally.errors.most_common()),
            known=update.known,
            changed=update.changed,
            vanished=update.vanished,
            notes=(*update.remarks, *tally.notes),
            seconds=seconds,
            unfinished=run.unfinished - len(tally.unreadable),
        )


def _open_encoder(config: EncodeConfig) -> Encoder:
    """The encoder of the settings, refused where it encodes something else than the modality."""
    if isinstance(config.encoder, str | None):
        return load_encoder(config.encoder, modality=config.modality, device=config.device, precision=config.precision)
    if config.encoder.modality != config.modality:
        raise EncoderError(
            f"{config.encoder.name} encodes {config.encoder.modality}, not {config.modality}",
            todo=f"--modality {config.encoder.modality}, or another encoder",
        )
    return config.encoder


def _measure(
    corpus: Corpus, encoder: Encoder, units: Sequence[Unit], config: EncodeConfig
) -> tuple[float | None, float]:
    """Seconds an item and bytes of text a row, from the first batch of the first unit."""
    if not units:
        return None, 0.0
    items = [e for e in itertools.islice(corpus.read(units[0]), config.batch_size) if isinstance(e, Item)]
    start = time.perf_counter()
    slots = [decode_slot(encoder, item) for item in items]
    decoding = time.perf_counter() - start
    good = [slot.decoded for slot in slots if slot.failure is None]
    if not good:
        return None, 0.0
    forward = Forward(encoder)
    forward(good, [True] * len(good))  # the first pass warms caches and allocators up
    start = time.perf_counter()
    forward(good, [True] * len(good))
    forwarding = time.perf_counter() - start
    text = sum(len(f.encode()) for i in items for f in (i.key, i.caption or "", i.source or "")) / len(items)
    return decoding / len(items) / config.decoders + forwarding / len(good), text


def _raise_for_unreadable(run: Run, planned: int) -> None:
    left_out = run.tally.unreadable
    if not left_out:
        return
    shard, error = next(iter(left_out.items()))
    raise CorpusError(
        f"{len(left_out)} of {planned} shards could not be read; the other {planned - len(left_out)} are done. "
        f"Shard {shard}: {error.what}",
        where=error.where,
        todo=error.todo or "give the inputs that they were planned from and run the same command again",
    ) from error


def _counts(report: EncodeReport) -> dict[str, Any]:
    record = report.to_json()
    return {
        name: record[name] for name in ("rows", "failed", "remarks", "shards_before", "shards_now", "seconds", "errors")
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
