"""The loop of an encode run: batches come decoded, go forward, are gathered by shard and committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.claims import Claims
from ...cache.errors import CmcrError, EncoderError
from ...cache.ledger import Failure
from ...cache.plan import Unit
from ...cache.writer import CacheWriter, ShardData
from ..corpora.base import Corpus
from ..encoders.base import Encoder, Item, Remarking
from ..progress import Event, Progress
from .config import TRUNCATED, EncodeConfig
from .forward import Encoded, Forward
from .prefetch import Batch, Prefetch, Slot


@dataclass
class Tally:
    """Counts of a run while it goes on."""

    shards: int = 0
    rows: int = 0
    failed: int = 0
    remarks: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    unreadable: dict[int, CmcrError] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def truncated(self) -> int:
        """Texts that were cut to the encoder's context."""
        return self.kinds[TRUNCATED]

    def add(self, rows: int, ledger: Sequence[Failure]) -> None:
        """Count one committed shard."""
        self.shards += 1
        self.rows += rows
        for failure in ledger:
            if failure.lost:
                self.failed += 1
                self.errors[failure.error] += 1
            else:
                self.remarks += 1
                self.kinds[failure.error] += 1


class Gatherer:
    """Rows and ledger of one unit, in the order of its positions."""

    def __init__(self, unit: Unit, dtype: str, dim: int) -> None:
        self.unit = unit
        self.ledger: list[Failure] = []
        self.expected = 0
        self._items: list[Item] = []
        self._empty = np.zeros((0, dim), dtype=dtype)
        self._blocks: list[npt.NDArray[Any]] = []

    def add(self, slots: Sequence[Slot], encoded: Encoded, remark: Callable[[Any], tuple[str, str] | None]) -> None:
        """Take one batch: rows of what has a vector, ledger lines of everything else."""
        kept, place = list[int](), -1
        for slot in slots:
            if slot.failure is not None:
                self.ledger.append(slot.failure)
                place += slot.holds_place
                continue
            place += 1
            assert slot.item is not None
            if place in encoded.errors:
                self.ledger.append(Failure(slot.item.key, "encode", *encoded.errors[place]))
                continue
            kept.append(place)
            self._items.append(slot.item)
            said = remark(slot.decoded)
            if said is not None:
                self.ledger.append(Failure(slot.item.key, "encode", *said, lost=False))
        self.expected += place + 1
        self._blocks.append(encoded.vectors[kept].astype(self._empty.dtype))  # (kept, D)

    def data(self) -> ShardData:
        """The rows; a column that no item fills is left out."""
        items = self._items
        return ShardData(
            keys=[item.key for item in items],
            vectors=np.concatenate([self._empty, *self._blocks]),
            captions=[item.caption for item in items] if any(item.caption is not None for item in items) else None,
            sources=[item.source for item in items] if any(item.source is not None for item in items) else None,
            meta=[item.meta for item in items] if any(item.meta is not None for item in items) else None,
        )


class Run:
    """Encodes units into a cache.

    Parameters
    ----------
    corpus, encoder, writer
        Where items come from, what encodes them, where rows go.
    config : EncodeConfig
    progress : callable
        Told of every batch and shard.
    """

    def __init__(
        self, corpus: Corpus, encoder: Encoder, writer: CacheWriter, config: EncodeConfig, progress: Progress
    ) -> None:
        self._corpus = corpus
        self._encoder = encoder
        self._writer = writer
        self._config = config
        self._progress = progress
        self._forward = Forward(encoder, self._note)
        self._remark = encoder.remark if isinstance(encoder, Remarking) else lambda decoded: None
        self._decoded = False
        self._claims: Claims | None = None
        self._stopped = False
        self.tally = Tally()

    @property
    def unfinished(self) -> int:
        """Units that nobody has done yet, as far as this run has seen."""
        return 0 if self._claims is None else len(self._claims.unfinished)

    def stop(self) -> None:
        """Finish the shards that are begun, and begin no other; may be called from a signal handler."""
        self._stopped = True
        if self._claims is not None:
            self._claims.stop()

    def units(self, units: Sequence[Unit]) -> None:
        """Encode units in order; one whose source cannot be read is put aside and the others go on.

        Each is claimed first, so that several workers share the units among them.

        Raises
        ------
        CmcrError
            If more than ``max_failure_rate`` of the run's items failed; the shard is written by then.
        EncoderError
            If the encoder fails on everything.
        """
        config = self._config
        claims = Claims(self._writer, units, retry=config.retry_failed, part=config.part, waiting=self._wait)
        self._claims = claims
        if self._stopped:
            claims.stop()
        counts = [unit.rows for unit in claims.units]
        total = None if None in counts else sum(n for n in counts if n is not None)
        self._progress(Event("start", total=total, shards=len(counts)))
        settings = {"batch_size": config.batch_size, "workers": config.decoders}
        with Prefetch(self._corpus, self._encoder, claims, **settings) as batches:
            try:
                self._batches(batches, claims)
            finally:
                claims.stop()  # the reading thread may wait in it for another worker
        self._progress(Event("end"))

    def _batches(self, batches: Iterable[Batch], claims: Claims) -> None:
        gathered: Gatherer | None = None
        skipped: Unit | None = None
        for batch in batches:
            if gathered is None and batch.unit is not skipped and claims.is_overtaken(batch.unit):
                skipped = batch.unit  # this process was paused for longer than its lease
            if batch.unit is skipped:
                skipped = None if batch.last else skipped
                continue
            if gathered is None:
                gathered = Gatherer(batch.unit, self._config.dtype, self._encoder.dim)
            if batch.error is not None:
                self._put_aside(batch.unit, batch.error)
                claims.put_aside(batch.unit)
                gathered = None
                continue
            self._encode(batch, gathered)
            if batch.last:
                self._commit(gathered)
                gathered = None

    def _wait(self, count: int) -> None:
        self._note(f"waiting for {count} shard{'' if count == 1 else 's'} in the hands of other workers")

    def _encode(self, batch: Batch, gathered: Gatherer) -> None:
        places = [slot for slot in batch.slots if slot.holds_place]
        self._raise_if_nothing_decodes(places)
        encoded = self._forward([slot.decoded for slot in places], [slot.failure is None for slot in places])
        gathered.add(batch.slots, encoded, self._remark)
        lost = sum(slot.failure is not None for slot in places) + len(encoded.errors)
        self._progress(Event("advance", rows=len(places) - lost, failed=lost))

    def _raise_if_nothing_decodes(self, places: Sequence[Slot]) -> None:
        """A decode method that raises on everything from the first batch on is broken; the items are not."""
        self._decoded = self._decoded or any(slot.failure is None for slot in places)
        if self._decoded or not places or not all(slot.unexpected for slot in places):
            return
        first = places[0].failure
        assert first is not None
        raise EncoderError(
            f"the encoder decodes none of the first {len(places)} items: {first.error}: {first.message}",
            where=self._encoder.name,
            todo="decode raises ItemError for a bad item; another error in every item points at decode itself",
        )

    def _commit(self, gathered: Gatherer) -> None:
        data = gathered.data()
        self._writer.write_shard(gathered.unit, data, gathered.ledger, expected=gathered.expected)
        if self._claims is not None:
            self._claims.done(gathered.unit)
        self.tally.add(len(data.keys), gathered.ledger)
        self._progress(Event("shard", shards=1))
        items = self.tally.rows + self.tally.failed
        if self.tally.failed > self._config.max_failure_rate * items:
            worst = ", ".join(f"{kind} {count}" for kind, count in self.tally.errors.most_common(3))
            raise CmcrError(
                f"{self.tally.failed} of {items} items failed ({worst}), "
                f"more than --max-failure-rate {self._config.max_failure_rate}",
                where=str(self._writer.path / "errors"),
                todo="read the error ledger there; what was encoded is safe, and the same command goes on from here",
            )

    def _put_aside(self, unit: Unit, error: CmcrError) -> None:
        self.tally.unreadable[unit.shard] = error
        self._note(f"shard {unit.shard} is left out: {error.what}")

    def _note(self, text: str) -> None:
        self.tally.notes.append(text)
        self._progress(Event("note", text=text))
