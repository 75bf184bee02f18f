"""Progress: a run tells what happens as events; whoever runs it may show them. Silent by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """One thing that happened in a run.

    Parameters
    ----------
    kind : {"start", "advance", "shard", "note", "end"}
        ``start``: ``total`` rows (None where a tar has not been counted) in ``shards`` shards are to be done.
        ``advance``: ``rows`` more rows and ``failed`` more lost items. ``shard``: one shard is committed. ``note``:
        ``text`` is for the reader.
    """

    kind: Literal["start", "advance", "shard", "note", "end"]
    rows: int = 0
    failed: int = 0
    total: int | None = None
    shards: int = 0
    text: str = ""


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """Show nothing."""


class RichProgress:
    """A bar with rows, rate, time left and failures on stderr; a context manager that is called with events.

    Parameters
    ----------
    title : str
        What stands before the bar.
    """

    def __init__(self, title: str = "encode") -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            ProgressColumn,
            SpinnerColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:,.0f} rows/s" if speed else "", style="progress.data.speed")

        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[counts]}"),
            Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[failures]}", style="red"),
            console=Console(stderr=True),
        )
        self._title = title
        self._task: Any = None
        self._rows = self._failed = self._shards = 0
        self._start = Event("start")

    def __enter__(self) -> RichProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event.kind == "note":
            self._bar.console.print(event.text, markup=False, highlight=False)
            return
        if event.kind == "start" and event.shards:
            self._bar.start()  # not earlier: an error before the first row must not leave an empty bar behind
            self._start = event
            self._task = self._bar.add_task(self._title, total=event.total, counts="", failures="")
        if self._task is None:
            return
        self._rows += event.rows if event.kind == "advance" else 0
        self._failed += event.failed if event.kind == "advance" else 0
        self._shards += event.kind == "shard"
        total = "?" if self._start.total is None else f"{self._start.total:,}"
        self._bar.update(
            self._task,
            completed=self._rows + self._failed,
            counts=f"{self._rows + self._failed:,}/{total} rows, {self._shards}/{self._start.shards} shards",
            failures=f"{self._failed:,} failed" if self._failed else "",
        )


class CountBar:
    """A bar on stderr for work that counts; a context manager that is called with (done, in all, newest record)."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True)
        self._title = title
        self._task: Any = None

    def __enter__(self) -> CountBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, record: Mapping[str, Any] | None = None) -> None:
        """Show how far the work is; ``record`` may carry the newest loss."""
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=total)
        loss = f"  loss {record['loss']:.3f}" if record and "loss" in record else ""
        self._bar.update(self._task, completed=done, total=total, description=f"{self._title}{loss}")
