"""Settings of an encode run, what a run reports, and what a dry run foresees."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ...cache.errors import RecipeError
from ..corpora.base import CorpusSettings
from ..encoders.base import MODALITIES, Encoder, Modality
from ..encoders.registry import PRECISIONS

TRUNCATED = "TruncatedText"


@dataclass(frozen=True)
class EncodeConfig:
    """Settings of one encode run; flags, TOML and the Python API share these names.

    Parameters
    ----------
    modality : {"text", "image", "audio", "pointcloud"}
        What the inputs are.
    encoder : str or Encoder, optional
        Name (``family:model/weights``, ``clip``, ``my.py:MyEncoder``) or a ready encoder; by default the modality's.
    device, precision : str
        ``auto`` takes a GPU where there is one; ``fp32``, ``bf16`` or ``fp16``.
    batch_size : int
        Positions of a shard to a batch. The same batch size gives the same bits.
    workers : int
        Threads that decode; 0 for one a core, at most 8. With ``worker`` set, how many workers there are.
    worker : int, optional
        Number of this worker, from 0: it does the shards with this number modulo ``workers``, and no other worker does
        them. Without it, workers share the shards by leases.
    shard_size : int
        Rows to a shard: what a killed run loses at most.
    dtype : {"float16", "float32"}
        Stored type.
    overwrite, accept_fingerprint, retry_failed : bool
        Begin again; go on with a cache made by another fingerprint; encode shards that have failures once more.
    max_failure_rate : float
        The run ends with an error, after the shard is written, when a larger share of its items has failed.
    key_column, caption_column, path_column, tar_key, pattern, max_item_bytes
        How inputs are read; see :class:`CorpusSettings`.
    """

    modality: Modality
    encoder: str | Encoder | None = None
    device: str = "auto"
    precision: str = "fp32"
    batch_size: int = 64
    workers: int = 0
    worker: int | None = None
    shard_size: int = 8192
    dtype: Literal["float16", "float32"] = "float16"
    overwrite: bool = False
    accept_fingerprint: bool = False
    retry_failed: bool = False
    max_failure_rate: float = 1.0
    key_column: str | None = None
    caption_column: str | None = None
    path_column: str | None = None
    tar_key: Literal["first-dot", "last-dot"] = "first-dot"
    pattern: str | None = None
    max_item_bytes: int = CorpusSettings.max_item_bytes

    def __post_init__(self) -> None:
        _one_of("modality", self.modality, MODALITIES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("dtype", self.dtype, ("float16", "float32"))
        _one_of("tar_key", self.tar_key, ("first-dot", "last-dot"))
        for name, least in (("batch_size", 1), ("workers", 0), ("shard_size", 1), ("max_item_bytes", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name} is {getattr(self, name)}; it is at least {least}", where=name)
        if self.worker is not None and not 0 <= self.worker < self.workers:
            raise RecipeError(
                f"worker is {self.worker} of {self.workers} workers; they are numbered from 0 to workers - 1",
                where="worker",
                todo="give each its own --worker I with the same --workers N",
            )
        if self.worker is not None and self.overwrite:
            raise RecipeError(
                "one worker of several cannot overwrite: it would take back what the others do",
                where="overwrite",
                todo="remove the cache first, or let one process without --worker overwrite it",
            )
        if not 0.0 <= self.max_failure_rate <= 1.0:
            raise RecipeError(
                f"max_failure_rate is {self.max_failure_rate}; it is a share from 0 to 1", where="max_failure_rate"
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> EncodeConfig:
        """Settings by name; an unknown one is refused with a suggestion."""
        names = [f.name for f in fields(cls)]
        for name in settings:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                raise RecipeError(
                    f"encode has no setting {name!r}",
                    todo=f"did you mean {near[0]}?" if near else f"it has: {', '.join(names)}",
                )
        return cls(**settings)

    @property
    def corpus_settings(self) -> CorpusSettings:
        """The settings of reading."""
        return CorpusSettings(**{f.name: getattr(self, f.name) for f in fields(CorpusSettings)})

    @property
    def decoders(self) -> int:
        """Threads that decode, resolved."""
        return (self.workers if self.worker is None else 0) or min(8, os.cpu_count() or 1)

    @property
    def part(self) -> tuple[int, int] | None:
        """(number of this worker, number of workers) where the shards are split by number."""
        return None if self.worker is None else (self.worker, self.workers)

    def record(self) -> dict[str, Any]:
        """The settings as plain values, for the run record."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**plain, "encoder": self.encoder if isinstance(self.encoder, str | None) else self.encoder.name}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        raise RecipeError(
            f"{name} is {value!r}",
            where=name,
            todo=f"did you mean {near[0]}?" if near else f"one of: {', '.join(allowed)}",
        )


@dataclass(frozen=True)
class EncodeReport:
    """What an encode run did.

    Parameters
    ----------
    output, encoder, fingerprint, modality, dim
        The cache and what made it.
    shards_before, shards_now : int
        Shards that were done before the run, and those that it wrote.
    rows, failed, remarks, truncated : int
        Of this run: rows written, lost items, remarks on items that have their row, texts cut to the encoder's context.
    errors : mapping of str to int
        Lost items of this run by kind, most frequent first.
    known : int
        Items of the inputs that the cache already had.
    changed, vanished : tuple of str
        Sources that are not as they were planned, or no longer there; their rows stay as they are.
    notes : tuple of str
        Sentences for the reader: halved batches, inputs left out.
    seconds : float
        Wall time of encoding, without loading the encoder.
    unfinished : int
        Shards that were left for another run because this one was asked to stop.
    """

    output: Path
    encoder: str
    fingerprint: str
    modality: str
    dim: int
    shards_before: int = 0
    shards_now: int = 0
    rows: int = 0
    failed: int = 0
    remarks: int = 0
    truncated: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    known: int = 0
    changed: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    unfinished: int = 0

    @property
    def rate(self) -> float:
        """Items a second of this run."""
        return (self.rows + self.failed) / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {**asdict(self), "output": str(self.output), "rate": self.rate}


@dataclass(frozen=True)
class DryRun:
    """What an encode run would do; nothing was written.

    Parameters
    ----------
    shards_before, shards_now : int
        Shards that are done, and those that a run would write.
    rows : int
        Items in them that can be counted without reading; tars count when they are read.
    uncounted : int
        Shards whose items are not counted yet.
    disk_bytes : int
        Estimate for ``rows``: vectors, keys and captions.
    seconds : float or None
        Estimate for ``rows`` from one measured batch, decoding and forward pass one after the other; None without rows.
    """

    output: Path
    encoder: str
    fingerprint: str
    modality: str
    dim: int
    shards_before: int
    shards_now: int
    rows: int
    uncounted: int
    disk_bytes: int
    seconds: float | None
    known: int = 0
    changed: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {**asdict(self), "output": str(self.output)}
