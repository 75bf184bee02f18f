"""Ending a run from outside: finish what is begun, then leave; or leave at once, cleanly, when time is up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..cache.variables import seconds_of

GRACE_SECONDS = 20.0
GRACE_VARIABLE = "CMCR_GRACE_SECONDS"


class StopSignal:
    """A request to stop that arrives while a run goes on."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._calls: list[Callable[[], None]] = []

    def when(self, call: Callable[[], None]) -> None:
        """Call this when the request comes; at once if it came already."""
        self._calls.append(call)
        if self.signal is not None:
            call()

    def request(self, number: signal.Signals) -> None:
        """Ask for the stop."""
        self.signal = number
        for call in self._calls:
            call()

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that ended by the signal."""
        return 0 if self.signal is None else 128 + self.signal


def grace() -> float:
    """Seconds between the first signal and leaving at once: ``CMCR_GRACE_SECONDS``, else 20.

    Schedulers kill 30 seconds after SIGTERM as they come.

    Raises
    ------
    RecipeError
        The variable is no number of seconds.
    """
    return seconds_of(GRACE_VARIABLE, GRACE_SECONDS, zero=True)


def signal_name(number: int) -> str:
    """What a signal is called; those without a name of their own by their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def stopping() -> Iterator[StopSignal]:
    """Turn SIGTERM and SIGUSR2 into a :class:`StopSignal` for the length of the block.

    When the time of grace has passed, or a second signal comes, the block is left by ``SystemExit`` with the signal's
    exit code: files half-written are removed and leases given back on the way out. Without effect in other threads than
    the main one, which alone may handle signals.
    """
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    seconds = grace()

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(stop.exit_code or 128 + number)

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None or seconds == 0.0:
            stop.signal = stop.signal or signal.Signals(number)
            leave(number, frame)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        stop.request(signal.Signals(number))

    handlers = {signal.SIGTERM: ask, signal.SIGUSR2: ask, signal.SIGALRM: leave}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
