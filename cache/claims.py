"""Which shard comes next: units are handed out one by one, shared with every other worker of the cache."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from . import marker as markers
from .leases import IMPATIENT, Leases
from .plan import Unit

if TYPE_CHECKING:
    from .writer import CacheWriter

Part = tuple[int, int]
PAUSE = 0.1  # seconds between two looks at whether to stop


class Claims:
    """Units that this worker may write, in order; an iterator that claims each as it gives it out.

    A unit is given out when its lease is free or expired and its shard is not done. The iterator ends when every unit
    is done or put aside: it waits for those that other workers hold, and takes over what they leave. The taker of units
    says of each :meth:`done` or :meth:`put_aside`, before asking for the next or from another thread.

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
        self._stopped = False  # a plain flag: a signal handler may set it while this very thread holds a lock
        self._wake = threading.Event()
        self._patience = IMPATIENT
        self._given: dict[int, Unit] = {}
        self._back: deque[Unit] = deque()
        self._busy: set[int] = set()  # seen in the hands of another worker
        self.unfinished = {unit.shard for unit in self.units}

    def __iter__(self) -> Iterator[Unit]:
        ahead, later = deque(self.units), deque[Unit]()
        while not self._stopped:
            while self._back:
                later.append(self._back.popleft())
            free = self._first_free(ahead, later) if self._leases is not None else ahead.popleft() if ahead else None
            if free is not None:
                self._patience = IMPATIENT
                self._given[free.shard] = free
                yield free
            elif ahead:
                continue
            elif later:
                self._wait_for_others(len(later))
                ahead, later = later, deque()
            elif (
                self._given and self._leases is not None
            ):  # what was given out may come back, when this worker is overtaken
                self._wake.wait(PAUSE)
                self._wake.clear()
            elif not self._back:
                return

    def _first_free(self, ahead: deque[Unit], later: deque[Unit]) -> Unit | None:
        """Take units from ``ahead`` until one is claimed; None if none is. Those of other workers go to ``later``."""
        assert self._leases is not None
        claims = self._leases.claims() if ahead else {}
        while ahead and not self._stopped:
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

    def _wait_for_others(self, count: int) -> None:
        assert self._leases is not None
        if self._waiting is not None:
            self._waiting(count)
            self._waiting = None
        end = time.monotonic() + self._patience
        while not self._stopped and not self._back and (left := end - time.monotonic()) > 0:
            time.sleep(min(PAUSE, left))
        self._patience = min(2 * self._patience, self._leases.poll)

    def is_overtaken(self, unit: Unit) -> bool:
        """Whether another worker took the unit over before it was begun here; then it is left to that one."""
        if self._leases is None or self._leases.holds(markers.shard_name(unit.shard)):
            return False
        self._back.append(unit)
        self._release(unit)
        return True

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
        self._given.pop(unit.shard, None)
        self._wake.set()

    def stop(self) -> None:
        """Give out nothing more; may be called from a signal handler."""
        self._stopped = True


def _state(writer: CacheWriter, unit: Unit) -> int | None:
    found = markers.find_marker(writer.path, unit.shard)
    return None if found is None else found.generation
