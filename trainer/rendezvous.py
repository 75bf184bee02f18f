"""How the processes of a fit find each other: torchrun's variables, one store, and who speaks when something fails."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from ..cache.errors import CmcrError, FitError, PeerError
from ..cache.fsio import host_name
from ..cache.variables import seconds_of
from .ranks import ALONE, Ranks, SeveralRanks

COLLECTIVE_SECONDS = 600.0  # of silence in a collective; what may take longer waits at the store
COLLECTIVE_VARIABLE = "CMCR_COLLECTIVE_SECONDS"
_LONGEST_NAP = 0.2
_FAREWELL_SECONDS = 60.0
_current: list[Ranks] = []


@dataclass(frozen=True)
class Place:
    """Which process this is: its number among all and on its machine, and how many there are of each."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """As torchrun says it.

        Raises
        ------
        FitError
            RANK and WORLD_SIZE speak of several processes, and nothing says where they meet.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        found = {name: environment[name] for name in names if name in environment}
        if "RANK" not in found or "WORLD_SIZE" not in found:
            return cls()
        try:
            rank, size, local, here = (
                int(found.get(name, default)) for name, default in zip(names, "0101", strict=True)
            )
        except ValueError:
            raise FitError(
                f"these are to be whole numbers: {found}", where="environment", todo="use torchrun"
            ) from None
        if size < 2:
            return cls()
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise FitError(
                f"RANK and WORLD_SIZE say that this is one of {size} processes, and {' and '.join(missing)} not where "
                "they meet",
                where="environment",
                todo="start them with torchrun; for a fit in one process unset RANK and WORLD_SIZE",
            )
        return cls(rank, size, local, here)


class StoreBoard:
    """Words among processes through torch.distributed's key-value store.

    Parameters
    ----------
    store : torch.distributed.Store
        With a prefix of this fit's own.
    size : int
        How many processes there are.
    """

    def __init__(self, store: Any, size: int) -> None:
        self._store, self._size = store, size
        self._count = 0

    def first(self, leads: bool, work: Callable[[], Any]) -> Any:
        """What ``work`` returns on the leading process, on all of them."""
        name = self._next("first")
        if leads:
            value = work()
            with _loss_is_told():
                self._store.set(name, json.dumps(value))
            return value
        self._wait(name, float("inf"))
        with _loss_is_told():
            return json.loads(self._store.get(name))

    def meet(self, seconds: float = float("inf")) -> None:
        """Wait until every process has come here."""
        name = self._next("meet")
        with _loss_is_told():
            if self._store.add(name, 1) == self._size:
                self._store.set(f"{name}/all", "")
        self._wait(f"{name}/all", seconds)

    def claim_failure(self) -> bool:
        """Whether this process is the first to fail, which is to say why; also where the store is gone."""
        try:
            first: bool = self._store.add("failures", 1) == 1
            self._store.set("failed", "")
        except RuntimeError:
            return True
        return first

    def _next(self, kind: str) -> str:
        """Name of the next word; processes come by all of them in the same order."""
        self._count += 1
        return f"{kind}/{self._count}"

    def _wait(self, name: str, seconds: float) -> None:
        """Until ``name`` is there.

        Raises
        ------
        PeerError
            Another process failed meanwhile.
        FitError
            The store is gone, and so is the process or the launcher that held it; or time is up.
        """
        nap, end = 1e-3, time.monotonic() + seconds
        with _loss_is_told():
            while not self._store.check([name]):
                if self._store.check(["failed"]):
                    raise PeerError("another process of this fit failed")
                if time.monotonic() > end:
                    raise FitError(f"not every process of this fit came within {seconds:.0f} seconds")
                time.sleep(nap)
                nap = min(2 * nap, _LONGEST_NAP)


@contextmanager
def _loss_is_told() -> Iterator[None]:
    """Within the context a store that does not answer is a FitError: whatever holds it is gone."""
    try:
        yield
    except RuntimeError as error:
        raise FitError(
            "the process or launcher that joins this fit's processes is gone",
            where=str(error).splitlines()[0],
            todo="run the same command again: it goes on from the last checkpoint",
        ) from error


@contextmanager
def joined(environment: Mapping[str, str] | None = None) -> Iterator[Ranks]:
    """The processes that torchrun started this one with, for as long as the context lasts; else this one alone.

    Contexts nest: the inner ones get the ranks of the outermost. When several fail, one leaves the context with its
    error and the others with :class:`PeerError`, so that one message is told. SIGTERM, which a launcher sends to the
    processes that are left, becomes such an error.

    Raises
    ------
    FitError
        The processes do not find each other.
    """
    if _current:
        yield _current[-1]
        return
    place = Place.of(os.environ if environment is None else environment)
    if place.size == 1:
        yield ALONE
        return
    board = _join(place)
    ranks = SeveralRanks(place.rank, place.size, board, host_name(), (place.local_rank, place.local_size))
    _current.append(ranks)
    try:
        with _sigterm_raises(place):
            yield ranks
            _farewell(board)
    except PeerError:
        board.claim_failure()
        raise
    except BaseException as error:
        if board.claim_failure():
            raise
        raise PeerError("another process of this fit failed") from error
    finally:
        _current.pop()
        _leave(failed=sys.exc_info()[0] is not None)


def current() -> Ranks:
    """The ranks of the context of :func:`joined` that one is in; one process alone outside of it."""
    return _current[-1] if _current else ALONE


def refuse_several(what: str) -> None:
    """Refuse to run ``what`` in one of several processes.

    Raises
    ------
    FitError
    """
    if Place.of(os.environ).size > 1:
        raise FitError(f"{what} does not share its work among processes", todo=f"run {what} without torchrun")


def _join(place: Place) -> StoreBoard:
    """Meet the others, and make torch's default process group: gloo, and NCCL for what lies on GPUs."""
    if not dist.is_available():
        raise FitError("this torch is built without torch.distributed", todo="fit in one process")
    from torch.distributed.distributed_c10d import PrefixStore

    if dist.is_initialized():
        raise FitError("torch.distributed is initialised already; cmcr makes the process group of a fit itself")
    limit = timedelta(seconds=seconds_of(COLLECTIVE_VARIABLE, COLLECTIVE_SECONDS))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and place.local_rank < gpus:
        torch.cuda.set_device(place.local_rank)
    try:
        store = _store(limit)
        prefix = PrefixStore(f"cmcr/{_name_of_this_fit(store, place, limit)}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=PrefixStore("group", prefix),
            rank=place.rank,
            world_size=place.size,
            timeout=limit,
        )
    except RuntimeError as error:
        raise FitError(
            f"the {place.size} processes of this fit do not find each other",
            where=f"rank {place.rank} on {host_name()}: {str(error).splitlines()[0]}",
            todo="check MASTER_ADDR and MASTER_PORT, and that every process was started",
        ) from error
    return StoreBoard(PrefixStore("board", prefix), place.size)


def _name_of_this_fit(store: Any, place: Place, limit: timedelta) -> str:
    """A name that the processes of this fit share, and no earlier fit or attempt had, whose words are in the store too.

    The first process draws a name, and answers each other process that greets it by that name. Whoever greets a name
    that an earlier process left gets no answer, and looks again.
    """
    mine, nap, end = secrets.token_hex(8), 1e-3, time.monotonic() + limit.total_seconds()
    if place.rank == 0:
        store.set("cmcr/leader", mine)
    unknown = set(range(1, place.size))
    while True:
        if place.rank == 0:
            for rank in [rank for rank in unknown if store.check([f"cmcr/{mine}/hello/{rank}"])]:
                store.set(f"cmcr/{mine}/welcome/{store.get(f'cmcr/{mine}/hello/{rank}').decode()}", "")
                unknown.remove(rank)
            if not unknown:
                return mine
        elif store.check(["cmcr/leader"]):
            leader: str = store.get("cmcr/leader").decode()
            store.set(f"cmcr/{leader}/hello/{place.rank}", mine)
            if store.check([f"cmcr/{leader}/welcome/{mine}"]):
                return leader
        if time.monotonic() > end:
            raise RuntimeError(f"not all of them came within {limit.total_seconds():.0f} seconds")
        time.sleep(nap)
        nap = min(2 * nap, _LONGEST_NAP)


@lru_cache(maxsize=1)
def _store(limit: timedelta) -> Any:
    """The store of torchrun's agent, or of rank 0; one a process, since its port can be bound once."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=limit))
    return store


@contextmanager
def _sigterm_raises(place: Place) -> Iterator[None]:
    """Within the context SIGTERM is a FitError; only the main thread of a process can have it so."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise FitError(
            "stopped by SIGTERM: another process of this fit ended, or the job is to end",
            where=f"rank {place.rank} of {place.size} on {host_name()}",
            todo="run the same command again: it goes on from the last checkpoint",
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _farewell(board: StoreBoard) -> None:
    """Leave together, as the store may live in one of the processes; who does not come is not waited for long."""
    with suppress(CmcrError):
        board.meet(_FAREWELL_SECONDS)


def _leave(*, failed: bool) -> None:
    """Give the process group up. After a failure NCCL may wait for kernels that never end: the exit ends them."""
    if dist.is_initialized() and not (failed and torch.cuda.is_available()):
        dist.destroy_process_group()
