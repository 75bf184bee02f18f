"""Many processes make one derived cache: its shards are handed out one by one, each claimed by a lease."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from .claims import Claims
from .derived import ParentShard, Work
from .plan import Unit
from .writer import CacheWriter


class Stop(Protocol):
    """Tells when a run is to end early."""

    def when(self, call: Callable[[], None], /) -> None:
        """Call this when the request comes; at once if it came already."""


class Shared:
    """The shards to make, one by one, each claimed when it is given out; an iterator.

    The taker writes each before asking for the next. What other processes hold is waited for, and taken over when they
    are gone; the iterator ends when every shard is done, or after a request to stop.

    Parameters
    ----------
    writer : CacheWriter
    work : Work
    stop : Stop, optional
        The shard that is begun is finished, and no other is given out.
    """

    def __init__(self, writer: CacheWriter, work: Work, stop: Stop | None = None) -> None:
        self._shards = {unit.shard: shard for unit, shard in work.todo}
        self._claims = Claims(writer, [unit for unit, _ in work.todo])
        self.made = 0
        if stop is not None:
            stop.when(self._claims.stop)

    def __iter__(self) -> Iterator[tuple[Unit, ParentShard]]:
        for unit in self._claims:
            yield unit, self._shards[unit.shard]
            self.made += 1
            self._claims.done(unit)

    @property
    def unfinished(self) -> int:
        """Shards that nobody has done yet, as far as was seen."""
        return len(self._claims.unfinished)

    @property
    def by_others(self) -> int:
        """Shards that other processes did meanwhile."""
        return len(self._shards) - self.made - self.unfinished
