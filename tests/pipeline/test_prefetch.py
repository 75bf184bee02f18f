"""Prefetch: order, bounds, crossing units, and a clean end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from cmcr.cache.errors import CorpusError, ItemError
from cmcr.cache.ledger import Failure
from cmcr.cache.plan import Piece, Unit
from cmcr.pipeline.encoders.base import Encoder, Item, Space
from cmcr.pipeline.encoding import prefetch
from cmcr.pipeline.encoding.prefetch import Batch, Prefetch


class Numbers:
    """A corpus of numbers: unit u has the items u*100 ... u*100+size-1; some are lost, some are remarks."""

    modality = "text"
    roots: Mapping[str, str] = {}

    def __init__(self, size: int, lost: tuple[int, ...] = (), breaks: int | None = None, payload: int = 1) -> None:
        self.size, self.lost, self.breaks, self.payload = size, lost, breaks, payload
        self.read_items = 0

    def plan(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("not planned here")

    def read(self, unit: Unit) -> Iterator[Item | Failure]:
        for i in range(self.size):
            if unit.shard == self.breaks and i == 3:
                raise CorpusError("the input has changed since it was planned")
            self.read_items += 1
            number = unit.shard * 100 + i
            if i in self.lost:
                yield Failure(str(number), "read", "Lost", "gone")
            else:
                yield Item(str(number), str(number).rjust(self.payload))
            if i == 1:
                yield Failure("source", "audit", "Remark", "said once", lost=False)


class Doubling:
    name, modality, space, dim = "doubling", "text", Space("d", "d"), 1

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.decoded: list[int] = []

    def fingerprint(self) -> str:
        return "d"

    def decode(self, item: Item) -> int:
        number = int(item.data)
        time.sleep(self.delay * (1 + number % 3))
        self.decoded.append(number)
        if number % 100 == 6:
            raise ItemError("sixes are refused")
        return 2 * number

    def encode(self, batch: Any) -> Any:
        raise AssertionError("not encoded here")


def units(count: int) -> list[Unit]:
    return [Unit(i, (Piece("lines", "s", None, "x"),)) for i in range(count)]


def run(corpus: Numbers, encoder: Doubling, count: int, batch_size: int, workers: int) -> list[Batch]:
    with Prefetch(corpus, encoder, units(count), batch_size=batch_size, workers=workers) as batches:  # type: ignore[arg-type]
        return list(batches)


@pytest.mark.parametrize(("size", "batch_size", "workers"), [(11, 4, 3), (12, 4, 1), (1, 5, 2), (9, 9, 16), (0, 3, 2)])
def test_batches_are_fixed_positions_in_order(size: int, batch_size: int, workers: int) -> None:
    batches = run(Numbers(size, lost=(2, 4)), Doubling(0.0005), 3, batch_size, workers)
    for shard in range(3):
        mine = [batch for batch in batches if batch.unit.shard == shard]
        assert [batch.last for batch in mine] == [False] * (len(mine) - 1) + [True]
        sizes = [sum(slot.holds_place for slot in batch.slots) for batch in mine]
        assert [n for n in sizes if n] == [min(batch_size, size - i) for i in range(0, size, batch_size)]
        places = [slot for batch in mine for slot in batch.slots if slot.holds_place]
        keys = [slot.item.key if slot.item else slot.failure.key for slot in places if slot.item or slot.failure]
        assert keys == [str(shard * 100 + i) for i in range(size)]
        decoded = [slot.decoded for slot in places if slot.failure is None]
        assert decoded == [2 * (shard * 100 + i) for i in range(size) if i not in (2, 4, 6)]
        remarks = [slot for batch in mine for slot in batch.slots if not slot.holds_place]
        assert len(remarks) == (size > 1)


def test_decoding_goes_on_across_the_end_of_a_unit() -> None:
    encoder = Doubling()
    with Prefetch(Numbers(4), encoder, units(5), batch_size=4, workers=2) as batches:  # type: ignore[arg-type]
        next(iter(batches))
        deadline = time.perf_counter() + 5
        while not any(number >= 100 for number in encoder.decoded) and time.perf_counter() < deadline:
            time.sleep(0.005)
        assert any(number >= 100 for number in encoder.decoded)


def test_a_slow_consumer_bounds_what_is_read_ahead() -> None:
    corpus = Numbers(90)
    with Prefetch(corpus, Doubling(), units(5), batch_size=10, workers=2) as batches:  # type: ignore[arg-type]
        next(iter(batches))
        time.sleep(0.4)
        assert corpus.read_items <= 10 * (prefetch.AHEAD + 3)


def test_raw_bytes_in_flight_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "RAW_BYTES", 5000)
    monkeypatch.setattr(prefetch, "CHUNK_BYTES", 1000)
    corpus = Numbers(50, payload=1000)
    gate = threading.Event()

    class Gated(Doubling):
        def decode(self, item: Item) -> int:
            gate.wait(5)
            return super().decode(item)

    with Prefetch(corpus, Gated(), units(1), batch_size=50, workers=2) as batches:  # type: ignore[arg-type]
        time.sleep(0.3)
        assert corpus.read_items <= 7
        gate.set()
        assert sum(len(batch.slots) for batch in batches) == 51


def test_a_unit_that_cannot_be_read_says_so_and_the_next_one_goes_on() -> None:
    batches = run(Numbers(8, breaks=1), Doubling(), 3, 2, 2)
    broken = [batch for batch in batches if batch.error is not None]
    assert [(batch.unit.shard, batch.last) for batch in broken] == [(1, True)]
    assert [batch.unit.shard for batch in batches if batch.last] == [0, 1, 2]


def test_leaving_early_stops_every_thread() -> None:
    before = threading.active_count()
    with Prefetch(Numbers(90), Doubling(0.001), units(50), batch_size=10, workers=4) as batches:  # type: ignore[arg-type]
        next(iter(batches))
    assert threading.active_count() == before


def test_an_error_of_the_reader_reaches_the_consumer() -> None:
    class Wrong(Numbers):
        def read(self, unit: Unit) -> Iterator[Item | Failure]:
            raise KeyError("a fault of the program")

    with (
        pytest.raises(KeyError),
        Prefetch(Wrong(3), Doubling(), units(2), batch_size=2, workers=1) as batches,  # type: ignore[arg-type]
    ):
        list(batches)


class Racing(Doubling):
    """Raises what CPython's parser raises when two threads parse at once, so many times an item."""

    def __init__(
        self, losses: int, message: str = "AST constructor recursion depth mismatch (before=54, after=51)"
    ) -> None:
        super().__init__()
        self.losses, self.message = losses, message
        self.tries: dict[str, int] = {}

    def decode(self, item: Item) -> int:
        self.tries[item.key] = self.tries.get(item.key, 0) + 1
        if self.tries[item.key] <= self.losses:
            raise SystemError(self.message)
        return super().decode(item)


def decoded(encoder: Encoder) -> tuple[int, int]:
    slots = [slot for batch in run(Numbers(5), encoder, 1, 5, 2) for slot in batch.slots if slot.holds_place]
    return sum(slot.failure is None for slot in slots), sum(slot.failure is not None for slot in slots)


def test_a_lost_race_of_the_python_parser_costs_no_item() -> None:
    assert decoded(Racing(3)) == (5, 0)


def test_other_system_errors_and_endless_races_are_failures() -> None:
    once = Racing(1, "something else")
    assert decoded(once) == (0, 5)
    assert set(once.tries.values()) == {1}
    assert decoded(Racing(10**6)) == (0, 5)
