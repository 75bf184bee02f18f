"""Ask a gallery with texts, pictures, sounds, points, vectors, mixes of them, or a cache of queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache.errors import CmcrError
from ..cache.reader import Cache
from ..trainer.connector import Connector
from .queries import Query
from .searcher import Hit, Searcher
from .searching.asking import Entrance, ask, sampled
from .searching.choice import IndexSettings, settings_of
from .searching.duplicates import distinct_topk
from .searching.filters import Filters
from .shared import Vectors, as_cache, as_connector

if TYPE_CHECKING:
    import numpy.typing as npt
    from rich.table import Table
    from typing_extensions import Unpack

    from .embed import RawInputs
    from .encoders.base import Encoder

    class Asked(RawInputs, total=False):
        """What is asked, and what of the gallery may answer."""

        query: Cache | str | Path
        key: str | Sequence[str]
        vectors: npt.ArrayLike | str | Path
        mix: str | Sequence[str]
        where: str | Sequence[str]
        key_pattern: str
        caption_contains: str
        no_duplicates: float


@dataclass(frozen=True)
class SearchResult:
    """Queries with their hits, best first; iterates and indexes as a list of hits for each query.

    ``modality``, ``gallery`` and ``gallery_rows`` describe what was searched; ``notes`` are remarks for the reader.
    """

    queries: tuple[Query, ...]
    hits: tuple[tuple[Hit, ...], ...]
    gallery: Path
    gallery_rows: int
    modality: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[tuple[Hit, ...]]:
        return iter(self.hits)

    def __getitem__(self, number: int) -> tuple[Hit, ...]:
        return self.hits[number]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able record; scores with six decimals."""
        return {
            "gallery": {"path": str(self.gallery), "modality": self.modality, "rows": self.gallery_rows},
            "notes": list(self.notes),
            "results": [
                {"query": _query_record(query), "hits": [_hit_record(hit) for hit in hits]}
                for query, hits in zip(self.queries, self.hits, strict=True)
            ],
        }

    def table(self) -> Table:
        """The hits as a table for the terminal; a rule separates the queries."""
        from rich.markup import escape
        from rich.table import Table

        shown = [hit for hits in self.hits for hit in hits]
        captions = any(hit.caption for hit in shown)
        table = Table()
        table.add_column("query", overflow="fold", max_width=40)
        table.add_column("#", justify="right")
        table.add_column("score", justify="right")
        table.add_column("key", overflow="fold")
        if captions:
            table.add_column("caption", overflow="fold")
        for query, hits in zip(self.queries, self.hits, strict=True):
            for hit in hits:
                cells = [
                    escape(query.label) if hit.rank == 1 else "",
                    str(hit.rank),
                    f"{hit.score:.4f}",
                    escape(hit.key),
                ]
                cells += [escape(hit.caption or "")] if captions else []
                table.add_row(*cells, end_section=hit.rank == len(hits))
        return table


def _query_record(query: Query) -> dict[str, Any]:
    path = str(query.path) if query.path is not None else None
    return {"label": query.label, "modality": query.modality, "key": query.key, "path": path}


def _hit_record(hit: Hit) -> dict[str, Any]:
    path = str(hit.path) if hit.path is not None else None
    score = round(hit.score, 6)
    return {
        "rank": hit.rank,
        "key": hit.key,
        "score": score,
        "caption": hit.caption,
        "source": hit.source,
        "path": path,
    }


def search(
    connector: Connector | str | Path,
    gallery: Cache | str | Path,
    *,
    k: int = 10,
    space: str | None = None,
    encoder: str | Encoder | None = None,
    device: str | None = None,
    block: int = 16384,
    index: str | IndexSettings = "kept",
    memory_budget: int | str | None = None,
    held_out: Cache | str | Path | None = None,
    **asked: Unpack[Asked],
) -> SearchResult:
    """The k nearest gallery rows of each query, by cosine in the shared space.

    Parameters
    ----------
    connector : Connector or path
    gallery : Cache or path
        A raw cache of one of the connector's spaces (projected on the fly, streamed), or one that it projected.
    k : int
        Hits for each query; all rows where the gallery has fewer.
    space : str, optional
        The space that the query enters; needed where two spaces have its modality.
    encoder : str or Encoder, optional
        For raw inputs, in place of the encoder that the connector records.
    device : str, optional
        Where encoder, heads and scores are computed; where the connector is, if not said.
    block : int
        Gallery rows scored at once; the result of an exact search does not depend on it.
    index : str or IndexSettings
        ``kept`` (an index that lies beside the gallery and is of its present content, else exact), ``exact``,
        ``auto``, ``hnsw`` or ``ivf``, which make or grow the index first.
    memory_budget : int or str, optional
        What ``auto`` lets an index take when all of it is in memory, as in ``"4GB"``; 2 GiB if not said.
    held_out : Cache or path, optional
        Queries like those that will be asked, on which the recall of an index that is made or grown is measured, in
        place of ones drawn from the gallery.
    **asked
        ``text``, ``image``, ``audio``, ``points`` (one or several, also of several kinds), or ``query`` (a cache;
        ``key=`` picks rows), ``vectors`` (an array or .npy, of ``space`` or of the shared space), ``mix``
        (:func:`.searching.mixes.read_mix`). What may answer: ``where``, ``key_pattern``, ``caption_contains``
        (:class:`.searching.filters.Filters`; always exact), ``no_duplicates`` (the cosine from which a hit is a
        near-duplicate of a better one and passed over).

    Returns
    -------
    SearchResult

    Raises
    ------
    CmcrError
        Nothing or too much was asked, an empty gallery or query cache, a cache of another connector or space, a bad
        input.
    """
    loaded = as_connector(connector, device)
    rest: dict[str, Any] = dict(asked)
    filters = _filters(rest)
    distinct = rest.pop("no_duplicates", None)
    opened = as_cache(gallery)
    settings = settings_of(index, memory_budget)
    _check_used(settings, memory_budget, held_out)
    settings = replace(settings, kind="exact") if filters else settings
    measured_on = None if held_out is None else sampled(loaded, as_cache(held_out), settings)
    # One search passes over the gallery once, so nothing is worth keeping.
    searcher = Searcher(loaded, opened, block=block, memory_budget=0, index=settings, held_out=measured_on)
    queries, vectors = ask(Entrance(loaded, opened, space, encoder), rest)
    return answer(searcher, queries, vectors, k, filters=filters, no_duplicates=distinct)


def _check_used(settings: IndexSettings, memory_budget: object, held_out: object) -> None:
    """Refuse what the index that was asked for would leave aside without a word."""
    if held_out is not None and settings.kind in ("kept", "exact"):
        raise CmcrError(
            "Held-out queries measure an index that is made or grown, and none is.",
            where=f"index {settings.kind}",
            todo="add --index auto, hnsw or ivf, or leave --held-out out",
        )
    if memory_budget is not None and settings.kind != "auto":
        raise CmcrError(
            "A memory budget is for the index that auto chooses.",
            where=f"index {settings.kind}",
            todo="add --index auto, or leave --memory-budget out",
        )


def _filters(asked: dict[str, Any]) -> Filters:
    """The filters among what was asked, which they are taken out of."""
    where = asked.pop("where", None) or ()
    return Filters(
        where=(where,) if isinstance(where, str) else tuple(where),
        key_pattern=asked.pop("key_pattern", None),
        caption_contains=asked.pop("caption_contains", None),
    )


def answer(
    searcher: Searcher,
    queries: tuple[Query, ...],
    vectors: Vectors,
    k: int,
    *,
    filters: Filters | None = None,
    no_duplicates: float | None = None,
) -> SearchResult:
    """Search with vectors (Q, D) of the shared space and say what was asked: for a searcher that is kept warm."""
    gallery = searcher.gallery
    among = filters.rows(gallery) if filters else None
    if no_duplicates is None:
        hits = searcher.hits(*searcher.topk(vectors, k, among))
    else:
        hits = searcher.hits(*distinct_topk(searcher, vectors, k, no_duplicates, among))
    notes = []
    if filters and among is not None:
        notes.append(f"{len(among):,} of {len(gallery):,} rows fulfil {filters.describe()}")
    if k > len(gallery):
        notes.append(f"the gallery has {len(gallery):,} rows, fewer than the {k:,} hits asked for")
    if searcher.worth_saying:
        notes.append(searcher.how)
    return SearchResult(
        queries=queries,
        hits=tuple(tuple(line) for line in hits),
        gallery=Path(gallery.path),
        gallery_rows=len(gallery),
        modality=gallery.manifest.modality,
        notes=tuple(notes),
    )
