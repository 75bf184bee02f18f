"""The vectors behind a retrieval table, where its caches and connectors are at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.errors import CmcrError
from ...cache.reader import Cache
from ...trainer.connector import Connector
from ...trainer.ranking import Relevance
from ..eval_sets import without_classes
from ..relevance import relevance_of
from ..shared import SharedView
from .places import Places
from .values import Entry, Table

Ints = npt.NDArray[np.int64]
LARGEST = 500_000  # rows of a side whose relevance is read and whose gallery is searched for a page


@dataclass(frozen=True)
class Shown:
    """A run with what it takes to draw it: views of both sides, in the space in which it compares them."""

    entry: Entry
    connector: Connector | None
    query: SharedView
    gallery: SharedView


@dataclass(frozen=True)
class Material:
    """Both sides of a table before any projection, what is relevant, the runs that can be drawn, and what is missing.

    ``relevance`` is None where the sides are too large or the file of pairs is not there; ``query_rows`` and
    ``gallery_rows`` are those that take part.
    """

    query: Cache
    gallery: Cache
    relevance: Relevance | None
    query_rows: Ints
    gallery_rows: Ints
    runs: tuple[Shown, ...]
    notes: tuple[str, ...]

    def kept_queries(self, rows: Ints) -> Ints:
        """Those of some query rows that every run has: a projected cache may have lost some."""
        return _kept(self.query, [run.query for run in self.runs], rows)

    def kept_items(self, rows: Ints) -> Ints:
        """Those of some gallery rows that every run has."""
        return _kept(self.gallery, [run.gallery for run in self.runs], rows)


def material_of(table: Table, places: Places) -> Material | str:
    """What there is to draw of a retrieval table, or why there is nothing."""
    subject = table.first.subject
    sides: list[Cache] = []
    for side in ("query", "gallery"):
        cache = places.cache(_raw(subject[side]))
        if cache is None:
            return f"the cache {subject[side]['name']!r} is not below the folders given, or has changed since"
        sides.append(cache)
    query, gallery = sides
    notes = list[str]()
    relevance = None
    if max(len(query), len(gallery)) > LARGEST:
        notes.append(f"caches of more than {LARGEST:,} rows are not searched for a page")
    else:
        try:
            relevance = _relevance(query, gallery, subject, places)
        except CmcrError as error:
            notes.append(f"what is relevant is not known here: {error.what}")
    runs, gone = list[Shown](), list[str]()
    for entry in table.ranked:
        shown = _shown(entry, places)
        if shown is None:
            gone.append(entry.run.label)
        else:
            runs.append(shown)
    if gone:
        notes.append(f"connectors or caches that are not below the folders given: {', '.join(gone)}")
    lost = _lost(query, [run.query for run in runs]) + _lost(gallery, [run.gallery for run in runs])
    if lost:
        notes.append(f"{lost:,} row{'s' if lost != 1 else ''} that projected caches have lost")
    rows: list[Ints] = [np.arange(len(query)), np.arange(len(gallery))]
    if relevance is not None and not subject.get("distractors", True):
        rows = [np.flatnonzero(one.counts()) for one in (relevance, relevance.transposed())]
    return Material(query, gallery, relevance, rows[0], rows[1], tuple(runs), tuple(notes))


def rows_in(view: SharedView, raw: Cache, rows: Ints) -> Ints:
    """For each row of the raw cache that of a view, -1 where a projected cache has lost it; joined by key."""
    return rows if view.cache is raw else view.cache.index_of(raw.keys(rows))


def _kept(raw: Cache, views: Sequence[SharedView], rows: Ints) -> Ints:
    for view in views:
        rows = rows[rows_in(view, raw, rows) >= 0]
    return rows


def _lost(raw: Cache, views: Sequence[SharedView]) -> int:
    """Rows that projected caches lack: of the one that lacks most."""
    return max((len(raw) - len(view.cache) for view in views), default=0)


def _raw(side: Mapping[str, Any]) -> str:
    return str(side.get("projected_from") or side["content"])


def _relevance(query: Cache, gallery: Cache, subject: Mapping[str, Any], places: Places) -> Relevance:
    pairs = None
    if subject.get("pairs"):
        pairs = places.pairs(str(subject["pairs"]))
        if pairs is None:
            raise CmcrError("the file of pairs is not below the folders given")
    label = None if pairs is not None else subject.get("label")
    if pairs is None and label is None and subject["relevant"] != "equal key":
        raise CmcrError("the result file is of an older version")
    return without_classes(relevance_of(query, gallery, pairs=pairs, label=label), tuple(subject.get("no_class", ())))


def _shown(entry: Entry, places: Places) -> Shown | None:
    """A run to draw; the first of its seeds."""
    connector = None
    if entry.run.connectors:
        connector = places.connector(entry.run.connectors[0])
        if connector is None:
            return None
    views = []
    for side in ("query", "gallery"):
        record = entry.subject[side]
        cache = places.cache(str(record["content"]))
        if cache is None and connector is not None:  # which does on the fly what made the projected one
            cache = places.cache(_raw(record))
        if cache is None:
            return None
        try:
            views.append(SharedView(cache, connector))
        except CmcrError:
            return None
    return Shown(entry, connector, views[0], views[1])
