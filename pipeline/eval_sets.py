"""One ``[[eval]]`` set of a recipe: what is relevant in it, read once, and its figures under any connector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..cache.errors import CacheError, CmcrError
from ..cache.reader import Cache, open_cache
from ..trainer.connector import Connector
from ..trainer.metrics import RetrievalMetrics, chance, retrieval_metrics
from ..trainer.ranking import Relevance
from ..trainer.recipe import Recipe
from ..trainer.recipe_tables import EvalRecipe
from .evaluation.intervals import retrieval_intervals, to_json
from .evaluation.results import digest_of_file, projected_from
from .relevance import relevance_of
from .shared import SharedView, Vectors

if TYPE_CHECKING:
    from rich.table import Table

Ints = npt.NDArray[np.int64]
_READ_AT_ONCE = 16384


@dataclass(frozen=True)
class EvalSet:
    """An evaluation set before any connector.

    Parameters
    ----------
    recipe : EvalRecipe
    query, gallery : Cache
    query_rows, gallery_rows : (Q,) and (G,) int64, optional
        Rows that take part; all of them when None.
    relevance : Relevance
        Of the rows that take part.
    pairs_digest : str, optional
        Hash of the file of pairs.
    """

    recipe: EvalRecipe
    query: Cache
    gallery: Cache
    query_rows: Ints | None
    gallery_rows: Ints | None
    relevance: Relevance
    pairs_digest: str | None = None

    @classmethod
    def open(cls, plan: Recipe, one: EvalRecipe) -> EvalSet:
        """Read which rows are relevant to which.

        Raises
        ------
        CmcrError
            A cache is missing or empty, or nothing is relevant.
        """
        query, gallery = open_cache(plan.path(one.query)), open_cache(plan.path(one.gallery))
        for role, cache in (("query", query), ("gallery", gallery)):
            if not len(cache):
                raise CacheError(
                    f"The {role} cache has no rows.", where=str(cache.path), todo="encode a corpus into it"
                )
        pairs = None if one.pairs is None else plan.path(one.pairs)
        relevance = without_classes(relevance_of(query, gallery, pairs=pairs, label=one.label), one.no_class)
        if not relevance.counts().any():
            raise CmcrError(
                "Every label that both sides have is named in no_class, so no item would be relevant.",
                where=f"eval {one.name!r}",
            )
        digest = None if pairs is None else digest_of_file(pairs)
        if one.distractors:
            return cls(one, query, gallery, None, None, relevance, digest)
        query_rows, gallery_rows, inner = without_distractors(relevance)
        return cls(one, query, gallery, query_rows, gallery_rows, inner, digest)

    def subject(self) -> dict[str, Any]:
        """What is evaluated, JSON-able; results that agree in it, names apart, may be compared."""
        one = self.recipe
        return {
            "relevant": rule(one),
            "label": one.label,
            "ties": one.ties,
            "distractors": one.distractors,
            "no_class": list(one.no_class),
            **({} if self.pairs_digest is None else {"pairs": self.pairs_digest}),
            "query": _side(self.query, self.query_rows),
            "gallery": _side(self.gallery, self.gallery_rows),
        }

    @property
    def title(self) -> str:
        """Both directions by what they look for: ``sounds → photographs``."""
        return f"{_folder(self.query)} → {_folder(self.gallery)}"

    def measure(self, connector: Connector | None, device: str = "cpu") -> SetReport:
        """Figures of both directions in the shared space of a connector; None: both caches are in one space."""
        queries = rows_of(SharedView(self.query, connector), self.query_rows)
        gallery = rows_of(SharedView(self.gallery, connector), self.gallery_rows)
        back = self.relevance.transposed()
        one = self.recipe
        same: dict[str, Any] = {"ks": one.ks, "ties": one.ties, "device": device}
        return SetReport(
            self,
            Direction(
                self.title,
                retrieval_metrics(queries, gallery, self.relevance, **same),
                chance(self.relevance, ks=one.ks),
                self.relevance.query_groups if one.by_class else None,
            ),
            Direction(
                f"{_folder(self.gallery)} → {_folder(self.query)}",
                retrieval_metrics(gallery, queries, back, **same),
                chance(back, ks=one.ks),
                back.query_groups if one.by_class else None,
            ),
        )


@dataclass(frozen=True)
class Direction:
    """One direction of a set: figures, those of a random order, and the class of each query where there are classes."""

    title: str
    metrics: RetrievalMetrics
    chance: RetrievalMetrics
    classes: Ints | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """What to look at: macro mAP and macro P@k where there are classes, else R@k."""
        if self.classes is None:
            return tuple(f"R@{k}" for k in self.metrics.recall)
        return "macro_mAP", f"macro_P@{max(self.metrics.precision)}"

    @property
    def groups(self) -> Ints | None:
        """Class of each query that was measured (Q',)."""
        return None if self.classes is None else self.classes[self.metrics.per_query.query]

    def per_query(self, measure: str) -> npt.NDArray[np.float64]:
        """A measure of each query, whose mean (over classes for the macro ones) is the figure: (Q',)."""
        every, bare = self.metrics.per_query, measure.removeprefix("macro_")
        if bare == "mAP":
            return every.ap
        kind, _, k = bare.partition("@")
        table = {"R": (every.recall, self.metrics.recall), "P": (every.precision, self.metrics.precision)}
        values, ks = table[kind]
        out: npt.NDArray[np.float64] = values[:, list(ks).index(int(k))]
        return out


@dataclass(frozen=True)
class SetReport:
    """The figures of one set under one connector: ``there`` is queries to gallery, ``back`` gallery to queries."""

    set: EvalSet
    there: Direction
    back: Direction

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks: queries and gallery rows that were left out."""
        lines = []
        for side, rows, cache in (
            ("queries", self.set.query_rows, self.set.query),
            ("gallery items", self.set.gallery_rows, self.set.gallery),
        ):
            if rows is not None and len(rows) < len(cache):
                lines.append(
                    f"{len(cache) - len(rows):,} of {len(cache):,} {side} are not in this set (distractors = false)"
                )
        for direction in (self.there, self.back):
            skipped, asked = direction.metrics.skipped, direction.metrics.skipped + direction.metrics.queries
            if skipped:
                lines.append(f"{direction.title}: {skipped:,} of {asked:,} have nothing relevant and are left out")
        return tuple(lines)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able record without times and absolute paths; equal input gives equal content."""
        one = self.set.recipe
        return {
            "name": one.name,
            **self.set.subject(),
            "query_to_gallery": _figures(self.there),
            "gallery_to_query": _figures(self.back),
        }

    def table(self) -> Table:
        """The figures as a table for the terminal; shares in percent."""
        from rich.table import Table

        one = self.set.recipe
        more = ("median_rank",) if not one.by_class else ()
        names = (*self.there.measures, *(() if one.by_class else ("mAP",)), *more)
        table = Table(title=f"{one.name}: percent; relevant = {rule(one)}", title_justify="left")
        table.add_column("direction")
        for name in ("queries", "items", *names):
            table.add_column(readable(name), justify="right")
        for direction in (self.there, self.back):
            m = direction.metrics
            table.add_row(direction.title, f"{m.queries:,}", f"{m.gallery:,}", *_cells(m.to_json(), names))
            table.add_row("  chance", "", "", *_cells(direction.chance.to_json(), names), style="dim", end_section=True)
        return table


def rule(one: EvalRecipe) -> str:
    """What is relevant, in words."""
    if one.pairs is not None:
        return f"pairs listed in {Path(one.pairs).name}"
    return "equal key" if one.label is None else f"equal label {one.label!r}"


def readable(measure: str) -> str:
    """A measure as a column is headed: ``macro_mAP`` as ``macro mAP``."""
    return measure.replace("_", " ")


def rows_of(view: SharedView, rows: Ints | None = None) -> Vectors:
    """Rows of a cache in the shared space, all or some: (N, D) float32, filled block by block."""
    if rows is None:
        rows = np.arange(len(view))
    out = np.empty((len(rows), view.dim), np.float32)
    for start in range(0, len(rows), _READ_AT_ONCE):
        part = rows[start : start + _READ_AT_ONCE]
        out[start : start + len(part)] = view.rows(part)
    return out


def without_classes(relevance: Relevance, names: tuple[str, ...]) -> Relevance:
    """The same relevance, with rows of some classes relevant to nothing."""
    if not names or relevance.classes is None or relevance.gallery_groups is None:
        return relevance
    dropped = [number for number, name in enumerate(relevance.classes) if name in names]
    query = np.where(np.isin(relevance.query_groups, dropped), -1, relevance.query_groups)
    gallery = np.where(np.isin(relevance.gallery_groups, dropped), -1, relevance.gallery_groups)
    return replace(relevance, query_groups=query, gallery_groups=gallery)


def without_distractors(relevance: Relevance) -> tuple[Ints, Ints, Relevance]:
    """Query rows and gallery rows that have something relevant on the other side, and the relevance of those alone."""
    query_rows = np.flatnonzero(relevance.counts())
    gallery_rows = np.flatnonzero(relevance.transposed().counts())
    if relevance.gallery_groups is not None:
        # Groups stand for themselves as labels: fixed width keeps their order, and with it that of the classes.
        mine, theirs = relevance.query_groups[query_rows], relevance.gallery_groups[gallery_rows]
        kept = Relevance.from_labels([f"{n:020d}" for n in mine], [f"{n:020d}" for n in theirs])
        classes = relevance.classes and tuple(relevance.classes[n] for n in np.unique(mine))
        return query_rows, gallery_rows, replace(kept, classes=classes)
    query, gallery = relevance.rows(0, len(relevance))
    place = np.zeros(relevance.gallery, np.int64)
    place[gallery_rows] = np.arange(len(gallery_rows))
    inner = Relevance.from_rows(np.searchsorted(query_rows, query), place[gallery], len(query_rows), len(gallery_rows))
    return query_rows, gallery_rows, inner


def _figures(direction: Direction) -> dict[str, Any]:
    figures = {**direction.metrics.to_json(), "chance": direction.chance.to_json()}
    return {**figures, "interval": to_json(retrieval_intervals(direction.metrics, direction.classes))}


def _cells(figures: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    return [f"{figures[name]:g}" if name == "median_rank" else f"{100 * figures[name]:.1f}" for name in names]


def _folder(cache: Cache) -> str:
    return Path(cache.path).resolve().name


def _side(cache: Cache, rows: Ints | None) -> dict[str, Any]:
    manifest = cache.manifest
    return {
        "name": _folder(cache),
        "content": cache.content_id(),
        "projected_from": projected_from(manifest),
        "rows": len(cache) if rows is None else len(rows),
        "space": manifest.space_name,
        "space_id": manifest.space_id,
        "modality": manifest.modality,
        "encoder": manifest.encoder,
    }
