"""Reading and decoding ahead of the forward pass: one thread reads, a pool decodes, results come back in order.

Prefetch runs across the ends of units, so that the pool never drains at a shard's end. It is bounded twice: by batches
ahead, and by the raw bytes that wait for a decoder.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from ...cache.errors import CmcrError, ItemError
from ...cache.ledger import Failure
from ...cache.plan import Unit
from ..corpora.base import Corpus
from ..encoders.base import Encoder, Item
from .messages import one_line

SWITCH_INTERVAL = 0.0005
"""Seconds after which a decoder in Python code lets the forward pass run; the usual 5 ms outlast many a layer."""
AHEAD = 2
RAW_BYTES = 128 * 2**20
CHUNK_BYTES = 8 * 2**20
_PARSER_RACE = "AST constructor recursion depth mismatch"
_PARSER_TRIES = 20
_parser_lock = threading.Lock()


@dataclass(frozen=True)
class Slot:
    """One position of a unit, or a remark between two positions.

    Parameters
    ----------
    item : Item or None
        The item without its data; None for what could not be read and for remarks.
    decoded : object
        The encoder's input; None where ``failure`` is set.
    failure : Failure or None
        What holds the place of a lost item, or (``lost`` False) a remark that holds none.
    unexpected : bool
        The failure is an exception that is no ItemError: perhaps the encoder's fault and not the item's.
    """

    item: Item | None = None
    decoded: Any = None
    failure: Failure | None = None
    unexpected: bool = False

    @property
    def holds_place(self) -> bool:
        """Whether the slot is a position of the unit."""
        return self.failure is None or self.failure.lost


@dataclass(frozen=True)
class Batch:
    """The slots of one fixed batch; ``last`` marks the end of its unit, ``error`` says why the unit cannot be read."""

    unit: Unit
    slots: tuple[Slot, ...] = ()
    last: bool = False
    error: CmcrError | None = None


@dataclass
class _Pending:
    unit: Unit
    chunks: list[Future[list[Slot]]] = field(default_factory=list)
    last: bool = False
    error: CmcrError | None = None


class Prefetch:
    """Ordered batches of decoded items of several units; a context manager and an iterator.

    Parameters
    ----------
    corpus, encoder
        Where items come from and what decodes them.
    units : iterable of Unit
        In order.
    batch_size : int
        Positions of a unit to a batch; batches never cross a unit.
    workers : int
        Threads that decode.
    """

    def __init__(
        self, corpus: Corpus, encoder: Encoder, units: Iterable[Unit], *, batch_size: int, workers: int
    ) -> None:
        self._corpus = corpus
        self._encoder = encoder
        self._units = units
        self._batch_size = batch_size
        self._chunk_size = -(-batch_size // workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="cmcr-decode")
        self._queue: queue.Queue[_Pending | BaseException | None] = queue.Queue(maxsize=AHEAD)
        self._stop = threading.Event()
        self._raw = 0
        self._raw_freed = threading.Condition()
        self._reader = threading.Thread(target=self._read_all, name="cmcr-read", daemon=True)

    def __enter__(self) -> Prefetch:
        self._switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(min(SWITCH_INTERVAL, self._switch_interval))
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._raw_freed:
            self._raw_freed.notify_all()
        while self._reader.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._pool.shutdown(wait=True, cancel_futures=True)
        sys.setswitchinterval(self._switch_interval)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            found = self._queue.get()
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            slots = tuple(slot for chunk in found.chunks for slot in chunk.result())
            yield Batch(found.unit, slots, found.last, found.error)

    def _read_all(self) -> None:
        try:
            for unit in self._units:
                self._read_unit(unit)
                if self._stop.is_set():
                    return
            self._put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            self._put(error)

    def _read_unit(self, unit: Unit) -> None:
        pending, chunk, places, size = _Pending(unit), list[Item | Failure](), 0, 0
        try:
            for entry in self._corpus.read(unit):
                if self._stop.is_set():
                    return
                chunk.append(entry)
                places += isinstance(entry, Item) or entry.lost
                size += len(entry.data) if isinstance(entry, Item) else 0
                full = places == self._batch_size
                if full or len(chunk) >= self._chunk_size or size >= CHUNK_BYTES:
                    pending.chunks.append(self._submit(chunk, size))
                    chunk, size = [], 0
                if full:
                    self._put(pending)
                    pending, places = _Pending(unit), 0
        except (CmcrError, OSError) as error:
            pending.error = (
                error if isinstance(error, CmcrError) else CmcrError(one_line(error), where=f"shard {unit.shard}")
            )
        if chunk:
            pending.chunks.append(self._submit(chunk, size))
        pending.last = True
        self._put(pending)

    def _put(self, found: _Pending | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(found, timeout=0.1)
                return
            except queue.Full:
                continue

    def _submit(self, chunk: Sequence[Item | Failure], size: int) -> Future[list[Slot]]:
        with self._raw_freed:
            self._raw_freed.wait_for(lambda: self._stop.is_set() or self._raw == 0 or self._raw + size <= RAW_BYTES)
            self._raw += size
        return self._pool.submit(self._decode_chunk, chunk, size)

    def _decode_chunk(self, chunk: Sequence[Item | Failure], size: int) -> list[Slot]:
        try:
            return [decode_slot(self._encoder, entry) for entry in chunk]
        finally:
            with self._raw_freed:
                self._raw -= size
                self._raw_freed.notify()


def decode_slot(encoder: Encoder, entry: Item | Failure) -> Slot:
    """Decode one entry of a corpus; whatever a decoder raises on an item becomes the failure that holds its place."""
    if isinstance(entry, Failure):
        return Slot(failure=entry)
    bare = replace(entry, data="")
    try:
        return Slot(bare, _decode(encoder, entry))
    except ItemError as error:
        return Slot(bare, failure=Failure(entry.key, "decode", type(error).__name__, one_line(error)))
    except Exception as error:  # any library below may raise anything on a bad file; the ledger has its name
        failure = Failure(entry.key, "decode", type(error).__name__, one_line(error))
        return Slot(bare, failure=failure, unexpected=True)


def _decode(encoder: Encoder, entry: Item) -> Any:
    """``encoder.decode``, again where CPython's own parser lost a race.

    ``ast.literal_eval``, which NumPy reads every .npy header with, counts its depth in one place for all threads
    (CPython issue 106905, seen in 3.11.7): two threads that parse at once can get a SystemError on sound input.
    """
    try:
        return encoder.decode(entry)
    except SystemError as error:
        if _PARSER_RACE not in str(error):
            raise
    with _parser_lock:  # one loser at a time: soon there is nobody left to race against
        for _ in range(_PARSER_TRIES - 1):
            try:
                return encoder.decode(entry)
            except SystemError as error:
                if _PARSER_RACE not in str(error):
                    raise
        return encoder.decode(entry)
