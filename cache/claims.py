"""Which shard comes next: units are handed out one by one, shared with every other worker of the cache."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from . import marker as markers
from .lease_files import Claim
from .leases import Leases
from .plan import Unit

if TYPE_CHECKING:
    from .writer import CacheWriter

Part = tuple[int, int]


class Claims:
    """Units that this worker may write, in order; an iterator that claims each as it gives it out.

    A unit is given out when its lease is free or expired and its shard is not done. The iterator ends when every unit
    is done or put aside, so it waits for those that other workers hold, and takes over what they leave. It may run in
    another thread than the one that calls :meth:`done`.

    Parameters
    ----------
    writer : CacheWriter
    units : sequence of Unit
        What is pending, in order.
    retry : bool
        Failed items are tried again: a shard that is done counts as pending until this run or another wrote it.
    part : (int, int), optional
        ``(i, n)``: only the units whose shard is i modulo n, without leases: nobody else does them.
    waiting : callable, optional
        Told once how many shards are waited for.
    """

    def __init__(
        self,
        writer: CacheWriter,
        units: Sequence[Unit],
        *,
        retry: bool = False,
        part: Part | None = None,
        waiting: Callable[[int], None] | None = None,
    ) -> None:
        self.units = [unit for unit in units if part is None or unit.shard % part[1] == part[0]]
        self._writer = writer
        self._leases: Leases | None = writer.leases if part is None else None
        self._before = {u.shard: _state(writer, u) for u in self.units} if retry else {}
        self._retry = retry
        self._waiting = waiting
        self._stopped = threading.Event()
        self._busy: set[int] = set()  # seen in the hands of another worker
        self.unfinished = {unit.shard for unit in self.units}

    def __iter__(self) -> Iterator[Unit]:
        if self._leases is None:
            for unit in self.units:
                if self._stopped.is_set():
                    return
                yield unit
            return
        ahead = deque(self.units)
        while ahead and not self._stopped.is_set():
            later: deque[Unit] = deque()
            while ahead and not self._stopped.is_set():
                free = self._first_free(ahead, later, self._leases.claims())
                if free is not None:
                    yield free
            ahead = later
            if ahead and not self._stopped.is_set():
                self._wait(len(ahead))

    def _first_free(self, ahead: deque[Unit], later: deque[Unit], claims: dict[str, Claim]) -> Unit | None:
        """Take units from ``ahead`` until one is claimed; None if none is. Those of other workers go to ``later``."""
        assert self._leases is not None
        while ahead and not self._stopped.is_set():
            unit = ahead.popleft()
            name = markers.shard_name(unit.shard)
            if self._is_done(unit, name in claims):
                self.unfinished.discard(unit.shard)
            elif not self._leases.claim(name, claims):
                self._busy.add(unit.shard)
                later.append(unit)
            elif self._is_done(unit, False):  # its holder finished between the listing and the claim
                self._leases.release(name)
                self.unfinished.discard(unit.shard)
            else:
                return unit
        return None

    def _is_done(self, unit: Unit, claimed: bool) -> bool:
        if not self._retry:
            return self._writer.is_done(unit)
        if self._writer.is_done(unit) and _state(self._writer, unit) != self._before[unit.shard]:
            return True
        return unit.shard in self._busy and not claimed  # another worker tried it again, to no avail

    def _wait(self, count: int) -> None:
        assert self._leases is not None
        if self._waiting is not None:
            self._waiting(count)
            self._waiting = None
        self._stopped.wait(self._leases.poll)

    def done(self, unit: Unit) -> None:
        """The shard of ``unit`` is committed."""
        self.unfinished.discard(unit.shard)
        self._release(unit)

    def put_aside(self, unit: Unit) -> None:
        """The unit cannot be done here; another worker may try."""
        self._release(unit)

    def _release(self, unit: Unit) -> None:
        if self._leases is not None:
            self._leases.release(markers.shard_name(unit.shard))

    def stop(self) -> None:
        """Give out nothing more."""
        self._stopped.set()


def _state(writer: CacheWriter, unit: Unit) -> int | None:
    found = markers.find_marker(writer.path, unit.shard)
    return None if found is None else found.generation
