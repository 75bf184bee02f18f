"""How well queries find what is relevant to them: protocols, each spelled out in ``docs/evaluation.md``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..cache import fsio
from ..cache._version import __version__
from ..cache.errors import CacheError, CmcrError
from ..cache.reader import Cache
from ..trainer.connector import Connector
from ..trainer.device import resolve_device
from ..trainer.metrics import RetrievalMetrics, chance, retrieval_metrics
from ..trainer.ranking import Relevance
from .relevance import relevance_of
from .shared import SharedView, Vectors, as_cache, as_connector, connector_fingerprint

if TYPE_CHECKING:
    from rich.table import Table

FORMAT, VERSION = "cmcr-evaluation", 1
PROTOCOLS = ("retrieval",)
READ_AT_ONCE = 16384


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


@dataclass(frozen=True)
class RetrievalReport:
    """The figures of one retrieval evaluation, both directions, with what a random order would score.

    ``there`` is queries to gallery, ``back`` gallery to queries; ``record`` says what was evaluated, without times and
    absolute paths.
    """

    there: RetrievalMetrics
    back: RetrievalMetrics
    chance_there: RetrievalMetrics
    chance_back: RetrievalMetrics
    record: Mapping[str, Any]

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
        return {
            "format": FORMAT,
            "version": VERSION,
            **self.record,
            "query_to_gallery": {**self.there.to_json(), "chance": self.chance_there.to_json()},
            "gallery_to_query": {**self.back.to_json(), "chance": self.chance_back.to_json()},
        }

    def table(self) -> Table:
        """The figures as a table for the terminal; shares in percent."""
        from rich.table import Table

        names = [f"R@{k}" for k in self.there.recall] + ["mAP", "macro_mAP", "MRR", "median_rank"]
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
    **settings: Any,
) -> RetrievalReport:
    """Evaluate how queries and gallery find each other, by cosine in the shared space.

    Parameters
    ----------
    protocol : str
        ``retrieval``.
    query, gallery : Cache or path
        Raw caches of the connector's spaces, or projected by it. Without a connector both must be in one space.
    connector : Connector or path, optional
    output : path, optional
        A JSON file, written atomically: figures, connector, content of the caches, protocol and versions.
    device : str, optional
        Where heads and scores are computed; where the connector is, if not said.
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
    loaded = None if connector is None else as_connector(connector, device)
    left, right = as_cache(query), as_cache(gallery)
    for name, cache in (("query", left), ("gallery", right)):
        if not len(cache):
            raise CacheError(f"The {name} cache has no rows.", where=str(cache.path), todo="encode a corpus into it")
    views = SharedView(left, loaded), SharedView(right, loaded)
    if loaded is None:
        _check_one_space(left, right)
    relevant = relevance_of(left, right, pairs=chosen.pairs, label=chosen.label)
    place = str(loaded.device if loaded is not None else resolve_device(device or "cpu"))
    record = _record(protocol, loaded, views, chosen)
    report = _measure(matrix(views[0]), matrix(views[1]), relevant, chosen, record, place)
    if output is not None:
        write_report(report, Path(output))
    return report


def _settings(given: dict[str, Any]) -> RetrievalSettings:
    known = [field.name for field in fields(RetrievalSettings)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise CmcrError(f"Retrieval has no setting {unknown[0]!r}.", todo=f"its settings: {', '.join(known)}")
    return RetrievalSettings(**given)


def _measure(
    queries: Vectors,
    gallery: Vectors,
    relevant: Relevance,
    chosen: RetrievalSettings,
    record: Mapping[str, Any],
    device: str,
) -> RetrievalReport:
    back = relevant.transposed()
    same: dict[str, Any] = {"ks": chosen.ks, "ties": chosen.ties, "block": chosen.block, "device": device}
    return RetrievalReport(
        there=retrieval_metrics(queries, gallery, relevant, **same),
        back=retrieval_metrics(gallery, queries, back, **same),
        chance_there=chance(relevant, ks=chosen.ks),
        chance_back=chance(back, ks=chosen.ks),
        record=record,
    )


def matrix(view: SharedView) -> Vectors:
    """All rows of a cache in the shared space: (N, D) float32, filled block by block."""
    out = np.empty((len(view), view.dim), np.float32)
    for start, block in view.blocks(READ_AT_ONCE):
        out[start : start + len(block)] = block
    return out


def _check_one_space(left: Cache, right: Cache) -> None:
    mine, theirs = left.manifest, right.manifest
    if mine.space_id != theirs.space_id:
        raise CacheError(
            f"The caches are in different spaces: {mine.space_name} ({mine.space_id}) and {theirs.space_name} "
            f"({theirs.space_id}).",
            where=f"{left.path}; {right.path}",
            todo="give the connector that joins them: --connector DIR",
        )


def _record(
    protocol: str,
    connector: Connector | None,
    views: tuple[SharedView, SharedView],
    chosen: RetrievalSettings,
) -> dict[str, Any]:
    """Everything that decides the figures, as values without times and absolute paths."""
    joined = None
    if connector is not None:
        joined = {
            "fingerprint": connector_fingerprint(connector),
            "method": connector.info.method,
            "spaces": {name: connector.info.spaces[name].id for name in connector.spaces},
        }
    sides = {name: _side(view) for name, view in zip(("query", "gallery"), views, strict=True)}
    return {
        "protocol": protocol,
        "relevant": chosen.rule,
        "ties": chosen.ties,
        "connector": joined,
        **sides,
        "versions": {"cmcr": __version__, "torch": version("torch"), "numpy": version("numpy")},
    }


def _side(view: SharedView) -> dict[str, Any]:
    cache, manifest = view.cache, view.cache.manifest
    return {
        "name": Path(cache.path).resolve().name,
        "content": cache.content_id(),
        "rows": len(cache),
        "space": manifest.space_name,
        "space_id": manifest.space_id,
        "head": view.head,
        "modality": manifest.modality,
        "encoder": manifest.encoder,
    }


def write_report(report: RetrievalReport, path: Path) -> None:
    """Write the JSON record of a report, atomically; its folder is made where it is missing."""
    if path.is_dir():
        raise CmcrError(
            "The output is a folder, not a file.", where=str(path), todo="name a file: --output figures.json"
        )
    with fsio.naming_folder(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_json(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    fsio.write_atomic(path, text.encode())
