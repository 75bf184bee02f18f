"""Figures as a page and a CSV say them: percent, intervals, bars, one sentence for each table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

from .values import NO_SHARES, SMALL_IS_GOOD, Entry, Estimate, Group, Table

COLUMNS = (
    *("protocol", "set", "direction", "about", "run", "method", "file", "measure", "value", "low", "high", "sd"),
    *("seeds", "chance", "queries", "items", "query_content", "gallery_content", "connector"),
)
DIRECTION = {"there": "query to gallery", "back": "gallery to query", "": ""}
_SCALES = (1, 2, 4, 10, 20, 40, 60, 80, 100)  # their halves are round too


@dataclass(frozen=True)
class Bar:
    """One bar; places are percent of the width of its scale, empty strings what there is not."""

    label: str
    note: str
    start: float
    width: float
    value: str
    interval: str
    low: float | None
    high: float | None
    chance: float | None
    best: bool


@dataclass(frozen=True)
class Bars:
    """Bars over one scale: its ticks as (place in percent, text), the measure and what it says in one sentence."""

    measure: str
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    sentence: str
    zero: float = 0.0


def readable(measure: str) -> str:
    """A measure as a reader wants it headed."""
    known = {"top1": "top-1", "top3": "top-3", "top5": "top-5", "macro_top1": "macro top-1"}
    known |= {"macro_top3": "macro top-3", "macro_top5": "macro top-5"}
    return known.get(measure, measure.replace("_", " "))


def shown(measure: str, value: float) -> str:
    """A figure without its unit: percent with one decimal, ranks as they are; a change with its sign."""
    if measure in NO_SHARES:
        return f"{value:,.6g}"
    text = f"{100 * value:+.1f}" if measure == "change" else f"{100 * value:.1f}"
    return text[1:] if text in ("+0.0", "-0.0") else text


def interval_of(measure: str, one: Estimate) -> str:
    """The interval in brackets; empty where there is none."""
    if one.low is None or one.high is None:
        return ""
    return f"[{shown(measure, one.low)}, {shown(measure, one.high)}]"


def cell(measure: str, one: Estimate | None) -> tuple[str, str]:
    """A figure as a table's cell holds it: value with its deviation over seeds, and interval."""
    if one is None:
        return "–", ""
    sd = "" if one.sd is None else f" ± {100 * one.sd:.1f}"
    return shown(measure, one.value) + sd, interval_of(measure, one)


def bars_of(group: Group, table: Table) -> Bars:
    """Bars of the main measure of one of a group's tables, best first, with intervals and chance.

    The tables of a group have one scale.
    """
    main = table.main
    entries = [entry for entry in table.ranked if main in entry.figures]
    every = [e.figures[main] for one in group.tables for e in one.entries if main in e.figures]
    top = _scale(max(map(_top, every)))
    chance = table.first.chance.get(main)
    best = table.best(main)
    bars = []
    for entry in entries:
        one = entry.figures[main]
        value, interval = cell(main, one)
        low, high = (None if edge is None else 100 * edge / top * 100 for edge in (one.low, one.high))
        place = None if chance is None else 100 * chance / top * 100
        width = max(0.0, 100 * one.value / top * 100)
        bars.append(
            Bar(entry.run.label, note_of(entry), 0.0, width, value, interval, low, high, place, one.value == best)
        )
    ticks = ((0.0, "0"), (50.0, f"{top / 2:g}"), (100.0, f"{top:g}%"))
    return Bars(readable(main), tuple(bars), ticks, sentence(table))


def change_bars(table: Table) -> Bars:
    """Bars of a change, to both sides of zero."""
    entries = table.ranked
    edges = [0.0]
    for entry in entries:
        one = entry.figures["change"]
        edges += [one.value, one.value if one.low is None else one.low, one.value if one.high is None else one.high]
    low, high = -_scale(-min(edges)) if min(edges) < -1e-9 else 0.0, _scale(max(edges)) if max(edges) > 1e-9 else 0.0
    if low == high == 0:
        low = -1.0
    span = high - low

    def place(value: float) -> float:
        return (100 * value - low) / span * 100

    zero, bars = place(0.0), []
    for entry in entries:
        one = entry.figures["change"]
        value, interval = cell("change", one)
        start, stop = sorted((zero, place(one.value)))
        left, right = (None if edge is None else place(edge) for edge in (one.low, one.high))
        bars.append(
            Bar(entry.run.label, note_of(entry), start, stop - start, value, interval, left, right, None, False)
        )
    ticks = tuple(sorted({(place(edge / 100), f"{edge:+g}" if edge else "0") for edge in (low, 0.0, high)}))
    return Bars("change", tuple(bars), ticks, "", zero)


def _top(one: Estimate) -> float:
    return max(one.value, one.high or 0.0)


def _scale(share: float) -> float:
    """The end of a scale in percent: the next round number."""
    return float(next((end for end in _SCALES if 100 * share <= end), 100))


def note_of(entry: Entry) -> str:
    """The method where the label does not say it, and the seeds."""
    run = entry.run
    method = run.method if run.method is not None else "no connector"
    parts = [] if method in run.label.split("/") else [method]
    return ", ".join(parts + ([f"{run.seeds} seeds"] if run.seeds > 1 else []))


def sentence(table: Table) -> str:
    """Who is first, and whether that is more than the intervals allow for."""
    main, entries = table.main, [entry for entry in table.ranked if table.main in entry.figures]
    first = entries[0]
    one = first.figures[main]
    chance = table.first.chance.get(main)
    by_chance = "" if chance is None else f"; chance {shown(main, chance)}{_unit(main)}"
    what = f"{readable(main)} {shown(main, one.value)}{_unit(main)}"
    if len(entries) == 1:
        return f"{first.run.label}: {what}{by_chance}."
    word = "Lowest" if main in SMALL_IS_GOOD else "Highest"
    level = [entry.run.label for entry in entries[1:] if _overlap(one, entry.figures[main])]
    some = f"{', '.join(level[:3])}{f' and {len(level) - 3} more' if len(level) > 3 else ''}"
    overlap = f" Its interval overlaps {'that' if len(level) == 1 else 'those'} of {some}." if level else ""
    return f"{word}: {first.run.label}, {what}{by_chance}.{overlap}"


def _unit(measure: str) -> str:
    return "" if measure in NO_SHARES else "%"


def _overlap(one: Estimate, other: Estimate) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


def csv_text(groups: Iterable[Group]) -> str:
    """Every figure of the page, a line each (RFC 4180): shares between 0 and 1, unrounded; empty where not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for group in groups:
        for table in group.tables:
            for entry in table.entries:
                writer.writerows(_lines(entry))
    return text.getvalue()


def _lines(entry: Entry) -> list[dict[str, object]]:
    run, subject = entry.run, entry.subject
    sides = [subject.get(a, subject.get(b)) for a, b in (("query", "sounds"), ("gallery", "regions"))]
    contents = [side["content"] if isinstance(side, dict) and "content" in side else side for side in sides]
    contents = [one if isinstance(one, str) else None for one in contents]
    same = {
        "protocol": entry.protocol,
        "set": entry.title,
        "direction": DIRECTION[entry.part],
        "about": entry.about,
        "run": run.label,
        "method": run.method,
        "file": run.file.as_posix(),
        "seeds": run.seeds,
        "queries": entry.counts.get("queries", entry.counts.get("items")),
        "items": entry.counts.get("answers", entry.counts.get("classes", entry.counts.get("items"))),
        "query_content": contents[0],
        "gallery_content": contents[1],
        "connector": " ".join(run.connectors) or None,
    }
    return [
        {
            **same,
            "measure": name,
            "value": repr(one.value),
            "low": None if one.low is None else repr(one.low),
            "high": None if one.high is None else repr(one.high),
            "sd": None if one.sd is None else repr(one.sd),
            "chance": repr(entry.chance[name]) if name in entry.chance else None,
        }
        for name, one in entry.figures.items()
    ]
