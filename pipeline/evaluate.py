"""How well queries find what is relevant to them: protocols, each spelled out in ``docs/evaluation.md``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..cache.errors import CmcrError
from ..cache.reader import Cache
from ..trainer.connector import Connector
from ..trainer.device import resolve_device
from ..trainer.metrics import RetrievalMetrics, both_directions, chance
from ..trainer.ranking import Relevance
from .evaluation.intervals import HOW, Intervals, from_json, retrieval_intervals, to_json
from .evaluation.results import check_place, digest_of_file, existing_result, subject, write_result
from .evaluation.rows import check_one_space, shared_rows
from .relevance import relevance_of
from .shared import SharedView, as_cache, as_connector

if TYPE_CHECKING:
    from rich.table import Table

PROTOCOLS = ("retrieval",)


@dataclass(frozen=True)
class RetrievalSettings:
    """What decides the figures of a retrieval evaluation, beside connector and caches.

    Parameters
    ----------
    pairs : path, optional
        CSV with two columns, query key and gallery key: what is relevant.
    label : str, optional
        Field of /meta: rows with an equal value are relevant, and measures are also averaged over classes. Without
        pairs and label, rows with an equal key are relevant.
    ks : tuple of int
        Cut-offs of recall and precision.
    ties : {"expected", "optimistic"}
        How equal scores count: their expectation under random order, or in the query's favour.
    block : int
        Queries at once; decides memory, no figure.
    """

    pairs: str | Path | None = None
    label: str | None = None
    ks: tuple[int, ...] = (1, 5, 10)
    ties: Literal["expected", "optimistic"] = "expected"
    block: int = 1024

    def __post_init__(self) -> None:
        object.__setattr__(self, "ks", tuple(sorted(set(self.ks))))
        if not self.ks or any(not isinstance(k, int) or k < 1 for k in self.ks):
            raise CmcrError(f"Cut-offs are whole numbers from 1, not {list(self.ks)}.", todo="for example --ks 1,5,10")
        if self.ties not in ("expected", "optimistic"):
            raise CmcrError(f"There is no rule for ties called {self.ties!r}.", todo="--ties expected or optimistic")
        if self.block < 1:
            raise CmcrError(f"A block has at least one query, not {self.block}.", todo="give --block a positive number")

    @property
    def rule(self) -> str:
        """What is relevant, in words."""
        if self.pairs is not None:
            return f"pairs listed in {Path(self.pairs).name}"
        return "equal key" if self.label is None else f"equal label {self.label!r}"

    def record(self) -> dict[str, Any]:
        """What of this decides figures, JSON-able."""
        pairs = {} if self.pairs is None or self.label is not None else {"pairs": digest_of_file(self.pairs)}
        return {"relevant": self.rule, "label": self.label, "ties": self.ties, "cut_offs": list(self.ks), **pairs}


@dataclass(frozen=True)
class RetrievalReport:
    """The figures of one retrieval evaluation, both directions, with what a random order would score.

    ``there`` is queries to gallery, ``back`` gallery to queries, each with the 95% bootstrap intervals of its measures
    over its queries; ``record`` says what was evaluated, without times and absolute paths.
    """

    there: RetrievalMetrics
    back: RetrievalMetrics
    chance_there: RetrievalMetrics
    chance_back: RetrievalMetrics
    record: Mapping[str, Any]
    interval_there: Intervals
    interval_back: Intervals

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks: queries that were left out."""
        sides = ((self.there, "queries", "gallery"), (self.back, "gallery items", "queries"))
        return tuple(
            f"{side.skipped:,} of {side.skipped + side.queries:,} {asking} are left out: "
            f"nothing among the {asked} is relevant to them"
            for side, asking, asked in sides
            if side.skipped
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able record; equal input gives equal content."""
        sides = (
            ("query_to_gallery", self.there, self.chance_there, self.interval_there),
            ("gallery_to_query", self.back, self.chance_back, self.interval_back),
        )
        figures = {
            name: {**side.to_json(), "chance": by_chance.to_json(), "interval": to_json(interval)}
            for name, side, by_chance, interval in sides
        }
        return {**self.record, "intervals": HOW, **figures}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RetrievalReport:
        """A report as it was written; without the measures of single queries."""
        sides = [record["query_to_gallery"], record["gallery_to_query"]]
        there, back = (RetrievalMetrics.from_json(side) for side in sides)
        random_there, random_back = (RetrievalMetrics.from_json(side["chance"]) for side in sides)
        own = ("query_to_gallery", "gallery_to_query", "intervals")
        rest = {name: value for name, value in record.items() if name not in own}
        interval_there, interval_back = (from_json(side["interval"]) for side in sides)
        return cls(there, back, random_there, random_back, rest, interval_there, interval_back)

    def table(self) -> Table:
        """The figures as a table for the terminal; shares in percent."""
        from rich.table import Table

        names = [f"R@{k}" for k in self.there.recall] + [f"true_R@{k}" for k in self.there.true_recall]
        names += ["mAP", "macro_mAP", "MRR", "nDCG@10", "median_rank"]
        rows = [
            (f"{self.record['query']['name']} → {self.record['gallery']['name']}", self.there.to_json()),
            ("  chance", self.chance_there.to_json()),
            (f"{self.record['gallery']['name']} → {self.record['query']['name']}", self.back.to_json()),
            ("  chance", self.chance_back.to_json()),
        ]
        names = [name for name in names if name in rows[0][1]]
        table = Table(title=f"Retrieval, percent; relevant = {self.record['relevant']}", title_justify="left")
        table.add_column("direction")
        for name in ("queries", *names):
            table.add_column(name.replace("macro_", "macro ").replace("median_rank", "median rank"), justify="right")
        for label, figures in rows:
            shown = [f"{figures[name]:g}" if name == "median_rank" else f"{100 * figures[name]:.1f}" for name in names]
            of_chance = label == "  chance"
            queries = "" if of_chance else f"{figures['queries']:,}"
            table.add_row(label, queries, *shown, style="dim" if of_chance else None, end_section=of_chance)
        return table


def evaluate(
    protocol: str = "retrieval",
    *,
    query: Cache | str | Path,
    gallery: Cache | str | Path,
    connector: Connector | str | Path | None = None,
    output: str | Path | None = None,
    device: str | None = None,
    skip_existing: bool = False,
    **settings: Any,
) -> RetrievalReport:
    """Evaluate how queries and gallery find each other, by cosine in the shared space.

    Memory is a tile of scores and a few numbers for each relevant pair; rows are read in pieces.

    Parameters
    ----------
    protocol : str
        ``retrieval``; the other protocols have functions of their own in ``cmcr.pipeline.evaluation``.
    query, gallery : Cache or path
        Raw caches of the connector's spaces, or projected by it. Without a connector both must be in one space.
    connector : Connector or path, optional
    output : path, optional
        A JSON file, written atomically: figures, connector, content of the caches, protocol and versions.
    device : str, optional
        Where heads and scores are computed; where the connector is, if not said.
    skip_existing : bool
        Return what ``output`` holds where it is of this very connector, these caches, settings and versions.
    **settings
        Fields of :class:`RetrievalSettings`: ``pairs``, ``label``, ``ks``, ``ties``, ``block``.

    Raises
    ------
    CmcrError
        An unknown protocol or setting, an empty cache, caches of different spaces, nothing relevant.
    """
    if protocol not in PROTOCOLS:
        raise CmcrError(f"There is no protocol {protocol!r}.", todo=f"one of: {', '.join(PROTOCOLS)}")
    chosen = _settings(settings)
    place = check_place(output, skip_existing)
    loaded = None if connector is None else as_connector(connector, device)
    views = {name: SharedView(as_cache(cache), loaded) for name, cache in (("query", query), ("gallery", gallery))}
    check_one_space(views, loaded)
    record = subject("retrieval", loaded, views, chosen.record())
    if place is not None and skip_existing and (found := existing_result(place, record)) is not None:
        return RetrievalReport.from_json(found)
    left, right = views.values()
    relevant = relevance_of(left.cache, right.cache, pairs=chosen.pairs, label=chosen.label)
    where = str(loaded.device if loaded is not None else resolve_device(device or "cpu"))
    report = _measure(left, right, relevant, chosen, record, where)
    if place is not None:
        write_result(report.to_json(), place)
    return report


def _settings(given: dict[str, Any]) -> RetrievalSettings:
    known = [field.name for field in fields(RetrievalSettings)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise CmcrError(f"Retrieval has no setting {unknown[0]!r}.", todo=f"its settings: {', '.join(known)}")
    return RetrievalSettings(**given)


def _measure(
    query: SharedView,
    gallery: SharedView,
    relevant: Relevance,
    chosen: RetrievalSettings,
    record: Mapping[str, Any],
    device: str,
) -> RetrievalReport:
    same: dict[str, Any] = {"ks": chosen.ks, "ties": chosen.ties, "block": chosen.block, "device": device}
    with shared_rows(query) as asking, shared_rows(gallery) as asked:
        there, back = both_directions(asking, asked, relevant, **same)
    return RetrievalReport(
        there=there,
        back=back,
        chance_there=chance(relevant, ks=chosen.ks),
        chance_back=chance(relevant.transposed(), ks=chosen.ks),
        record=record,
        interval_there=retrieval_intervals(there, relevant.query_groups),
        interval_back=retrieval_intervals(back, relevant.transposed().query_groups),
    )


def write_report(report: RetrievalReport, path: Path) -> None:
    """Write the JSON record of a report, atomically; its folder is made where it is missing."""
    write_result(report.to_json(), path)
