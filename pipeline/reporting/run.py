"""One page over many result files, and its figures as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache._version import __version__
from ...cache.errors import CmcrError
from ...cache.fsio import naming_folder, write_atomic
from .examples import QUERIES, RUNS, examples_of
from .figures import csv_text
from .gap import PANELS, panels_of
from .material import Material, material_of
from .page import Pictures, csv_name, render_page
from .places import Places
from .reading import LeftOut, collect
from .values import Group, grouped

Folder = str | Path
SUFFIXES = (".html", ".htm")  # of a page


@dataclass(frozen=True)
class Comparison:
    """What a report is of, and where it was written.

    ``left_out`` are files that are not on the page; ``notes`` say which pictures there are not.
    """

    page: Path
    csv: Path
    groups: tuple[Group, ...]
    files: int
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every result file is on the page: files of something else do not count."""
        return not any(one.broken for one in self.left_out)

    @property
    def runs(self) -> int:
        """Runs on the page."""
        entries = [entry for group in self.groups for table in group.tables for entry in table.entries]
        return len({entry.run.label for entry in entries})

    def lines(self) -> list[str]:
        """What the terminal shows."""
        tables = sum(len(group.tables) for group in self.groups)
        head = f"{self.files:,} result files, {self.runs:,} runs, {tables:,} tables"
        out = [f"{'broken' if one.broken else 'passed over'}: {one}" for one in self.left_out]
        return [head, *self.notes, *out, f"page: {self.page}", f"figures: {self.csv}"]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able record."""
        return {
            "page": str(self.page),
            "csv": str(self.csv),
            "files": self.files,
            "runs": self.runs,
            "tables": [
                {"protocol": t.first.protocol, "set": t.first.title, "runs": [entry.run.label for entry in t.ranked]}
                for group in self.groups
                for t in group.tables
            ],
            "left_out": [{"file": str(one.file), "what": one.what, "broken": one.broken} for one in self.left_out],
            "notes": list(self.notes),
        }


def report(
    results: Folder | Sequence[Folder],
    *,
    output: Folder | None = None,
    material: Folder | Sequence[Folder] = (),
    examples: int = QUERIES,
    pictures: bool = True,
) -> Comparison:
    """Compare many evaluations on one page: bars with intervals, the modality gap, neighbours, source-space damage.

    Runs stand in one table only where protocol and contents of their caches agree. Pictures need the caches and
    connectors of the runs; they are found by content below the folders given.

    Parameters
    ----------
    results : path or sequence of paths
        Folders with result files of ``cmcr evaluate``, ``cmcr evaluate recipe`` and ``cmcr compare`` below them, or
        such files. Caches and connectors among them are passed over, but for a connector's ``eval.json``.
    output : path, optional
        The page, ``.html`` or ``.htm``; ``report.html`` in the first folder, if not said. The CSV stands beside it.
    material : path or sequence of paths
        More folders in which caches, connectors and files of pairs are looked for.
    examples : int
        Queries whose nearest neighbours are shown for each set; 0 for none.
    pictures : bool
        Draw gap and neighbours where caches and connectors are at hand.

    Returns
    -------
    Comparison

    Raises
    ------
    CmcrError
        A folder does not exist, no result file could be read, ``output`` is not named like a page, or ``examples`` is
        negative.
    """
    folders, more = _paths(results), _paths(material)
    if not folders:
        raise CmcrError("No folder of results is named.", todo="cmcr report DIR")
    place = Path(output) if output is not None else _default(folders[0])
    _check_page(place)
    if examples < 0:
        raise CmcrError(f"A page does not show {examples} queries.", todo="--examples 0 for none")
    for folder in more:
        if not folder.is_dir():
            raise CmcrError("There is no such folder.", where=str(folder), todo="check --material")
    found = collect(folders)
    if not found.entries:
        raise CmcrError(
            "No result of an evaluation lies there.",
            where="; ".join([*map(str, folders), *map(str, found.left_out[:3])]),
            todo="evaluate with --output DIR/NAME.json first: cmcr evaluate retrieval --help",
        )
    groups = grouped(found.entries)
    drawn: dict[int, Pictures] = {}
    if pictures:
        places = Places([*(folder for folder in folders if folder.is_dir()), *more])
        drawn = {n: picture(g, places, examples) for n, g in enumerate(groups) if g.first.protocol == "retrieval"}
    notes = [f"{groups[n].first.title}: {line}" for n, seen in drawn.items() for line in seen.missing]
    about = {
        "subtitle": f"cmcr report {__version__}; {found.files} result file{'s' if found.files != 1 else ''}"
        f" below {', '.join(folder.resolve().name for folder in folders)}",
        "csv": csv_name(place),
    }
    with naming_folder(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place.with_suffix(".csv"), csv_text(groups).encode("utf-8"))
    write_atomic(place, render_page(groups, drawn, found.left_out, about).encode("utf-8"))
    return Comparison(place, place.with_suffix(".csv"), groups, found.files, tuple(found.left_out), tuple(notes))


def _paths(given: Folder | Sequence[Folder]) -> list[Path]:
    return [Path(given)] if isinstance(given, str | Path) else [Path(one) for one in given]


def _default(first: Path) -> Path:
    return (first if first.is_dir() else first.parent) / "report.html"


def _check_page(place: Path) -> None:
    if place.is_dir():
        raise CmcrError("The output is a folder, not a file.", where=str(place), todo="--output report.html")
    if place.suffix.lower() not in SUFFIXES:  # .csv is the name of its own figures, .json that of a result
        todo = f"--output {place.with_suffix('.html').name}; its figures are written beside it as CSV"
        raise CmcrError("The page is HTML and is named so.", where=str(place), todo=todo)


def picture(group: Group, places: Places, examples: int) -> Pictures:
    """Gap and neighbours of a group of retrieval tables, by its queries; and what cannot be drawn."""
    try:
        return _picture(group, places, examples)
    except CmcrError as error:  # a damaged shard, say: the figures need none
        said = f"No pictures: {error.what}"
        return Pictures(missing=(f"{said} ({error.where})" if error.where else said,))


def _picture(group: Group, places: Places, examples: int) -> Pictures:
    table = next((table for table in group.tables if table.first.part == "there"), group.tables[0])
    found = material_of(table, places)
    if not isinstance(found, Material):
        return Pictures(missing=(f"No pictures: {found}.",))
    missing = [f"Not drawn: {note}." for note in found.notes]
    with_connector = [run for run in found.runs if run.connector is not None]
    if len(with_connector) > PANELS:
        missing.append(f"Gap drawn for the first {PANELS} of {len(with_connector)} runs by {table.main}.")
    manifests = found.query.manifest, found.gallery.manifest
    subject = table.first.subject
    shown = ""
    if len(found.runs) > RUNS:
        shown = f"The first {RUNS} of {len(found.runs)} runs by {table.main.replace('_', ' ')}."
    return Pictures(
        panels=panels_of(found),
        examples=examples_of(found, examples),
        names=(
            f"{manifests[0].modality}, {subject['query']['name']}",
            f"{manifests[1].modality}, {subject['gallery']['name']}",
        ),
        runs_shown=shown,
        missing=tuple(missing),
    )
