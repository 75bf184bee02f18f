"""The approximate index of a gallery: opened, grown by what was appended, trained again when it has aged.

It is of the gallery's present content or it is not used: the record names every shard that it covers by checksum. A
gallery that was appended to has its index grown; any other change has it made anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ...cache.errors import CacheError
from ...cache.reader import Cache
from ...cache.vectors import Float32
from ..shared import SharedView
from . import faiss_kinds, held_out
from .choice import IndexSettings, Kind, scaled_effort
from .faiss_kinds import OpenIndex, Rows
from .held_out import HeldOut, Measured
from .record import IndexRecord, Place, shards_of

State = Literal["missing", "current", "grown", "ahead", "other"]
REDRAW = 1.1  # held-out queries are drawn again when the gallery has grown by a tenth since
AHEAD = "exact: the gallery has grown since it was opened, and its index with it; open it again to use the index"
FALL = 0.01  # of the recall of an index that is short of its target
DAMAGED = "is damaged; --index {} makes it again"
TAIL = 0.1  # of a graph's rows that may be in a graph beside it, which every query asks too
RETRAIN = 2.0  # and means or graph are made again when it has doubled, or needs twice the effort


class GalleryIndex:
    """An index that is open.

    Parameters
    ----------
    record : IndexRecord
    index : OpenIndex
    """

    def __init__(self, record: IndexRecord, index: OpenIndex) -> None:
        self.record = record
        self.index = index

    def search(self, vectors: Float32, k: int) -> tuple[Float32, Rows]:
        """Cosines and rows (Q, k), best first; -1 where less was found."""
        return self.index.search(vectors, k, scaled_effort(self.record.effort, k, held_out.K))

    def describe(self) -> str:
        """One line: kind, rows, effort and measured recall."""
        record = self.record
        line = (
            f"{record.kind} of {record.rows:,} rows, effort {record.effort}: recall@{held_out.K} {record.recall:.3f} "
            f"against exact search on held-out queries"
        )
        return line if record.recall >= record.target else f"{line}, short of the {record.target} aimed at"


def state_of(record: IndexRecord | None, view: SharedView) -> State:
    """How a record stands to the gallery as it is now."""
    if record is None:
        return "missing"
    now = shards_of(view.cache)
    if record.shards == now:
        return "current"
    if record.shards == now[: len(record.shards)]:
        return "grown"
    if record.shards[: len(now)] != now:
        return "other"
    there = shards_of(Cache(view.cache.path))  # appended to since it was opened, or taken back to what it is now
    return "ahead" if there[: len(record.shards)] == record.shards else "other"


def kept_index(view: SharedView) -> tuple[GalleryIndex | None, str]:
    """An index that lies beside the gallery and is of its present content, and what it is; makes nothing.

    Without one, the second says what lies there instead; empty where nothing does.
    """
    from ...cache.faiss_index import has_faiss

    kinds: tuple[Kind, ...] = ("hnsw", "ivf")
    places = [Place(view, kind) for kind in kinds]
    lying = [(place, record) for place in places if (record := place.read()) is not None]
    damaged = [kind for kind, place in zip(kinds, places, strict=True) if place.file.exists() and place.read() is None]
    instead = f"exact: the {damaged[0]} index beside the gallery {DAMAGED.format(damaged[0])}" if damaged else ""
    for place, record in sorted(lying, key=lambda one: one[1].recall < one[1].target):
        state = state_of(record, view)
        if state == "current" and has_faiss():
            found = _opened(place, record, view)
            if found is not None:
                return found, found.describe()
        instead = instead or _instead(record, state, view)
    return None, instead


def _instead(record: IndexRecord, state: State, view: SharedView) -> str:
    if state == "ahead":
        return AHEAD
    if state != "current":
        return (
            f"exact: the {record.kind} index beside the gallery is of {record.rows:,} rows as they were before; "
            f"--index {record.kind} makes it one of the present {len(view):,}"
        )
    from ...cache.faiss_index import has_faiss

    why = DAMAGED if has_faiss() else "needs FAISS: pip install faiss-cpu"
    return f"exact: the {record.kind} index beside the gallery {why.format(record.kind)}"


def made_index(
    view: SharedView, kind: Kind, settings: IndexSettings, queries: Float32 | None = None
) -> GalleryIndex | None:
    """The index of the gallery: as it lies there, grown, or built.

    Parameters
    ----------
    view : SharedView
    kind : str
    settings : IndexSettings
    queries : array (Q, D) float32, optional
        Unit rows on which recall is measured, in place of rows drawn from the gallery.

    Returns
    -------
    GalleryIndex or None
        None where the index that lies there covers rows that were appended after the gallery was opened: it is not
        taken back to fewer.

    Raises
    ------
    MissingExtraError
        FAISS is not installed.
    CacheError
        The folder beside the gallery cannot be written.
    """
    from ...cache.faiss_index import load_faiss

    load_faiss()
    place = Place(view, kind)
    for _ in range(2):  # another process may replace record and files between the reading and the opening
        record = place.read()
        state = state_of(record, view)
        if record is not None and state == "current" and record.target >= settings.recall and queries is None:
            found = _opened(place, record, view)
            if found is not None:
                return found
    if state == "ahead":
        return None
    place.prepare()
    if record is not None and state in ("grown", "current") and len(view) < RETRAIN * record.trained_rows:
        found = _grown(place, record, view, settings, queries)
        if found is not None:
            return found
    return _built(place, record, view, kind, settings, queries)


def _opened(place: Place, record: IndexRecord, view: SharedView) -> GalleryIndex | None:
    """The index of a record; None where its files are damaged, or were just replaced by another process."""
    try:
        index = OpenIndex(record.kind, [place.folder / name for name, _ in record.files], view)
    except RuntimeError:
        return None
    return GalleryIndex(record, index) if (index.rows, index.dim) == (record.rows, view.dim) else None


def _grown(
    place: Place, record: IndexRecord, view: SharedView, settings: IndexSettings, queries: Float32 | None
) -> GalleryIndex | None:
    """Add the appended rows; None where the index has aged and is to be made anew."""
    change = record.change + 1
    try:
        files = record.files if record.rows == len(view) else _appended(place, record, view, change)
        index = OpenIndex(record.kind, [place.folder / name for name, _ in files], view)
    except RuntimeError:  # FAISS cannot read a file
        return None
    truth, given = _truth(place, record, view, settings, queries)
    now = held_out.tune(index, truth, settings.recall, record.effort)
    # one that never reached the target would not by being made again: it has aged when it falls below itself
    least = settings.recall if record.recall >= settings.recall else record.recall - FALL
    aged = now.recall < least or now.effort > RETRAIN * record.trained_effort
    if aged and record.trained_rows < len(view):
        return None
    grown = replace(
        record,
        shards=shards_of(view.cache),
        files=files,
        held_out=_write_truth(place, truth, now, change),
        given=given,
        effort=now.effort,
        recall=now.recall,
        target=settings.recall,
        change=change,
    )
    place.commit(grown)
    return GalleryIndex(grown, index)


def _appended(place: Place, record: IndexRecord, view: SharedView, change: int) -> tuple[tuple[str, int], ...]:
    """Files of the index with the appended rows.

    What was appended to a graph is a smaller graph beside it, so that the large file is not written each time; when
    that one has grown to a share of the first its rows are linked into it. Inverted lists get a part of their own
    around the same means; when there are many parts they become one.
    """
    paths = [place.folder / name for name, _ in record.files]
    if record.kind == "hnsw":
        first = faiss_kinds.rows_of(paths[0])
        if len(view) - first > TAIL * first:
            whole = faiss_kinds.read_for_growth(paths[0])
            faiss_kinds.add(whole, view, first)
            return (_write_index(place, place.name(change, "faiss"), whole),)
        tail = faiss_kinds.graph_of(view, first) if len(paths) == 1 else faiss_kinds.read_for_growth(paths[1])
        faiss_kinds.add(tail, view, first + tail.ntotal)
        return (record.files[0], _write_index(place, place.name(change, "tail.faiss"), tail))
    part = _write_index(place, place.name(change, "faiss"), faiss_kinds.part_of(paths[0], view, record.rows))
    if len(paths) < faiss_kinds.MOST_PARTS:
        return (*record.files, part)
    whole = faiss_kinds.merged([*paths, place.folder / part[0]])
    return (_write_index(place, place.name(change, "merged.faiss"), whole),)


def _truth(
    place: Place, record: IndexRecord, view: SharedView, settings: IndexSettings, queries: Float32 | None
) -> tuple[HeldOut, bool]:
    """Held-out queries with answers over all rows, and whether the user gave them."""
    if queries is not None:
        return held_out.answered(view, queries), True
    try:
        before = held_out.read(place.folder / record.held_out)
    except CacheError:  # damaged; queries that were given cannot be made up
        if record.given:
            raise
        before = None
    if before is not None and (record.given or len(view) < REDRAW * before.drawn):
        # without new rows the newest lists are among those that were asked
        known = before if before.covered < len(view) else replace(before, found=None)
        return held_out.grown(known, view), record.given
    return held_out.draw(view, settings.queries, settings.seed), False


def _built(
    place: Place,
    before: IndexRecord | None,
    view: SharedView,
    kind: Kind,
    settings: IndexSettings,
    queries: Float32 | None,
) -> GalleryIndex:
    change = 0 if before is None else before.change + 1
    # a retrained index must not replace a file that another process has just opened under the same name
    files = (_write_index(place, place.name(change, "whole.faiss"), faiss_kinds.build(kind, view, settings.seed)),)
    index = OpenIndex(kind, [place.folder / name for name, _ in files], view)
    if queries is None and before is not None and before.given:
        queries = held_out.read(place.folder / before.held_out).queries
    given = queries is not None
    drawn = held_out.draw(view, settings.queries, settings.seed) if queries is None else None
    truth = drawn or held_out.answered(view, np.asarray(queries, np.float32))
    now = held_out.tune(index, truth, settings.recall)
    record = IndexRecord(
        kind=kind,
        shards=shards_of(view.cache),
        trained_rows=len(view),
        files=files,
        held_out=_write_truth(place, truth, now, change),
        given=given,
        effort=now.effort,
        trained_effort=now.effort,
        recall=now.recall,
        target=settings.recall,
        change=change,
    )
    place.commit(record)
    return GalleryIndex(record, index)


def _write_index(place: Place, name: str, index: Any) -> tuple[str, int]:
    from ...cache.faiss_index import load_faiss

    return place.write(name, lambda path: load_faiss().write_index(index, path))


def _write_truth(place: Place, truth: HeldOut, now: Measured, change: int) -> str:
    from ...cache import fsio

    truth = replace(truth, found=now.found, effort=now.effort)
    name = place.name(change, "held-out.safetensors")
    fsio.write_atomic(place.folder / name, held_out.to_bytes(truth))
    return name
