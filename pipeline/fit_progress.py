"""Live progress of a fit: its completions, then its steps with what the loss is made of."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from .terminal import duration

_REDRAWN = 8  # times a second
_LINE_SECONDS = 30.0
_BAR_WIDTH = 24
_SHOWN = {"grad_norm": "grad", "lr": "lr", "validation": "validation"}


def fit_detail(record: Mapping[str, Any]) -> str:
    """The newest losses, gradient norm and learning rate in a line; empty for a record without a loss."""
    if "loss" not in record:
        return ""
    parts = [f"{name.removeprefix('loss_')} {record[name]:.4g}" for name in record if name.startswith("loss_")]
    inside = f" = {' + '.join(parts)}" if len(parts) > 1 else ""
    rest = [f"{_SHOWN[name]} {record[name]:.3g}" for name in _SHOWN if name in record]
    return ", ".join([f"loss {record['loss']:.4g}{inside}", *rest])


def fit_pace(record: Mapping[str, Any]) -> str:
    """Samples a second and time left, where the record has them."""
    if "samples_per_second" not in record:
        return ""
    return f"{record['samples_per_second']:,.0f} samples/s, {duration(record['seconds_left'])} left"


class FitBar:
    """Progress on stderr; a context manager that is called with (done, in all, newest record), as ``cmcr.fit`` does.

    On a terminal a bar and a line of losses that replace themselves; elsewhere, in the log of a batch job, a line every
    half minute.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._live: Any = None
        self._told = float("-inf")
        self._rows: tuple[float, int] | None = None  # when a completion began, and the rows that were done then
        self._last = 0

    def __enter__(self) -> FitBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, done: int, total: int, record: Mapping[str, Any] | None = None) -> None:
        """Show how far the fit is."""
        record = record or {}
        completing = record.get("stage") == "completion"
        stage, unit = ("complete", "rows") if completing else ("fit", "steps")
        pace = self._rows_pace(done, total) if completing else fit_pace(record)
        counts = f"{done:,}/{total:,} {unit}"
        if self._console.is_terminal:
            self._draw(stage, done, total, [counts, pace], fit_detail(record))
        elif done == total or time.monotonic() - self._told >= _LINE_SECONDS:
            self._told = time.monotonic()
            parts = [part for part in (f"{stage} {counts}", pace, fit_detail(record)) if part]
            self._console.print("; ".join(parts), markup=False, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Print a line for people, above the bar where there is one."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _draw(self, stage: str, done: int, total: int, beside: list[str], detail: str) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 1))
        line.add_row(stage, ProgressBar(total, done, width=_BAR_WIDTH), *beside)
        shown = Group(line, Text(detail, style="dim")) if detail else line
        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=_REDRAWN)
            self._live.start()
        self._live.update(shown, refresh=done == total)

    def _rows_pace(self, done: int, total: int) -> str:
        """Rows a second and time left of a completion; each space counts from its own beginning."""
        now = time.monotonic()
        if self._rows is None or done < self._last:
            self._rows = (now, done)
        self._last = done
        seconds, rows = now - self._rows[0], done - self._rows[1]
        if not rows or not seconds:
            return ""
        return f"{rows / seconds:,.0f} rows/s, {duration((total - done) * seconds / rows)} left"
