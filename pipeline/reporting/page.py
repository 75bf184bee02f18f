"""From tables, pictures and examples to the comparison page: values in, one string out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..report import page
from .examples import Example
from .figures import Bars, bars_of, cell, change_bars, note_of, readable, shown
from .gap import Panel
from .reading import LeftOut
from .values import Entry, Group, Table, key_of


@dataclass(frozen=True)
class Pictures:
    """What there is to see of a group beside its figures; ``missing`` says what there is not, and why."""

    panels: tuple[Panel, ...] = ()
    examples: tuple[Example, ...] = ()
    names: tuple[str, str] = ("", "")
    runs_shown: str = ""
    missing: tuple[str, ...] = ()


def render_page(
    groups: Sequence[Group], pictures: Mapping[int, Pictures], left_out: Sequence[LeftOut], about: Mapping[str, str]
) -> str:
    """The page as one string without references to other files; every text is escaped.

    Parameters
    ----------
    groups : sequence of Group
    pictures : mapping of int to Pictures
        By the number of a group.
    left_out : sequence of LeftOut
    about : mapping
        ``subtitle`` and ``csv``: the name of the file of figures.
    """
    tests = [(n, group) for n, group in enumerate(groups) if group.first.protocol != "damage"]
    looks = [group.tables[0] for group in groups if group.first.protocol == "damage"]
    sections = [_section(n, group, groups, pictures.get(n, Pictures())) for n, group in tests]
    runs = _runs(groups)
    values = {
        "title": headline(groups),
        "subtitle": about["subtitle"],
        "warnings": warnings(groups, left_out),
        "sections": sections,
        "damage": [_look(table) for table in looks],
        "damage_lines": [_damage_line(table) for table in looks],
        "seeds": any(entry.run.seeds > 1 for group in groups for table in group.tables for entry in table.entries),
        "runs": runs,
        "left_out": [{"file": one.file.as_posix(), "what": one.what} for one in left_out],
        "csv": about["csv"],
    }
    return page("comparison.html", page=values)


def headline(groups: Sequence[Group]) -> str:
    """What was compared, in a few words."""
    labels = list(dict.fromkeys(e.run.label for group in groups for table in group.tables for e in table.entries))
    runs = labels[0] if len(labels) == 1 else f"{len(labels)} runs compared"
    tests = [group.first.title for group in groups if group.first.protocol != "damage"]
    looks = len(groups) - len(tests)
    parts = [tests[0] if len(tests) == 1 else f"{len(tests)} test sets"] if tests else []
    parts += [f"{looks} look{'s' if looks != 1 else ''} at damage"] if looks else []
    return f"{runs} on {' and '.join(parts)}"


def warnings(groups: Sequence[Group], left_out: Sequence[LeftOut]) -> list[str]:
    """What a reader has to know before the figures."""
    broken = [one for one in left_out if one.broken]
    lines = [
        f"{len(broken)} file{'s' if len(broken) > 1 else ''} could not be read and "
        f"{'are' if len(broken) > 1 else 'is'} not on this page: {', '.join(one.file.as_posix() for one in broken[:5])}"
    ] if broken else []  # fmt: skip
    entries = [entry for group in groups for table in group.tables for entry in table.entries]
    versions = {entry.run.versions.get("cmcr", "?") for entry in entries}
    if len(versions) > 1:
        lines.append(f"The runs were evaluated by different versions of cmcr: {', '.join(sorted(versions))}.")
    return lines


def differences(group: Group, groups: Sequence[Group]) -> list[str]:
    """How a group differs from others that bear the same names: they are no rows of one table."""
    first, lines = group.first, []
    for other in groups:
        if other is group or (other.first.protocol, other.first.title) != (first.protocol, first.title):
            continue
        mine, theirs = first.subject, other.first.subject
        names = [
            name
            for name in sorted({*mine, *theirs})
            if key_of("", {name: mine.get(name)}) != key_of("", {name: theirs.get(name)})
        ]
        what = ", ".join(f"content of {n}" if isinstance(mine.get(n), Mapping) else n for n in names) or "settings"
        labels = [entry.run.label for entry in other.tables[0].entries]
        lines.append(
            f"Not the set of the other section of this name ({', '.join(labels[:4])}); they differ in: {what}."
        )
    return lines


def _section(number: int, group: Group, groups: Sequence[Group], seen: Pictures) -> dict[str, Any]:
    first = group.first
    parts = [_part(group, table) for table in group.tables]
    return {
        "anchor": f"set-{number}",
        "title": first.title,
        "kind": first.protocol,
        "about": f"{first.protocol}; {first.about}",
        "lines": [part["bars"].sentence for part in parts[:1]],
        "notes": differences(group, groups),
        "parts": parts,
        "panels": seen.panels,
        "examples": seen.examples,
        "names": seen.names,
        "examples_note": seen.runs_shown,
        "missing": seen.missing,
    }


def _part(group: Group, table: Table) -> dict[str, Any]:
    measures = table.measures
    chance = table.first.chance
    return {
        "title": table.first.title,
        "counts": counts_of(table.first),
        "bars": bars_of(group, table),
        "columns": [readable(name) for name in measures],
        "rows": [_row(entry, measures, table) for entry in table.ranked],
        "chance": [shown(name, chance[name]) if name in chance else "" for name in measures] if chance else [],
    }


def _row(entry: Entry, measures: Sequence[str], table: Table | None = None) -> dict[str, Any]:
    cells = []
    for name in measures:
        value, interval = cell(name, entry.figures.get(name))
        best = table.best(name) if table is not None else None
        is_best = best is not None and name in entry.figures and entry.figures[name].value == best
        cells.append({"value": value, "interval": interval, "best": is_best})
    return {"label": entry.run.label, "note": note_of(entry), "cells": cells}


def counts_of(entry: Entry) -> str:
    """Sizes in words; what is zero is not said."""
    return ", ".join(f"{count:,} {name}" for name, count in entry.counts.items() if count)


def _look(table: Table) -> dict[str, Any]:
    first = table.first
    bars: Bars = change_bars(table)
    return {
        "title": first.title,
        "about": first.about,
        "counts": counts_of(first),
        "before": shown("before", first.figures["before"].value),
        "chance": shown("after", first.chance["after"]),
        "bars": bars,
        "rows": [_row(entry, ("before", "after", "change")) for entry in table.ranked],
    }


def _damage_line(table: Table) -> str:
    least, most = table.ranked[0], table.ranked[-1]
    edge = f"{most.run.label} {shown('change', most.figures['change'].value)}"
    if least is not most:
        edge = f"{least.run.label} {shown('change', least.figures['change'].value)} to {edge}"
    return f"{table.first.title}: {edge} points"


def _runs(groups: Sequence[Group]) -> list[dict[str, str | None]]:
    """Each run once, with its file and what it was made by."""
    found = {entry.run.label: entry.run for group in groups for table in group.tables for entry in table.entries}
    return [
        {
            "label": run.label,
            "file": run.file.as_posix(),
            "method": run.method,
            "connector": ", ".join(one[:12] for one in run.connectors) or "none",
            "versions": ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items())),
        }
        for run in found.values()
    ]


def csv_name(output: Path) -> str:
    """The file of figures beside a page."""
    return output.with_suffix(".csv").name
