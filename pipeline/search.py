"""Ask a gallery with a text, a picture, a sound, points or a cache of queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache.errors import CmcrError
from ..cache.reader import Cache
from ..trainer.connector import Connector
from .embed import FLAGS, embed, one_input
from .queries import Query, cache_queries, query_rows, raw_queries
from .searcher import Hit, Searcher
from .shared import SharedView, Vectors, as_cache, as_connector

if TYPE_CHECKING:
    from rich.table import Table
    from typing_extensions import Unpack

    from .embed import RawInputs
    from .encoders.base import Encoder

    class Asked(RawInputs, total=False):
        """One raw input, or a cache of queries with, if wanted, the keys of some of its rows."""

        query: Cache | str | Path
        key: str | Sequence[str]


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
    **asked: Unpack[Asked],
) -> SearchResult:
    """The exact k nearest gallery rows of each query, by cosine in the shared space.

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
        Gallery rows scored at once; the result does not depend on it.
    **asked
        Exactly one of ``text``, ``image``, ``audio``, ``points`` (one or several) and ``query`` (a cache;
        ``key=`` picks rows).

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
    # One search passes over the gallery once, so nothing is worth keeping.
    searcher = Searcher(loaded, as_cache(gallery), block=block, memory_budget=0)
    queries, vectors = _ask(loaded, space, encoder, dict(asked))
    return answer(searcher, queries, vectors, k)


def answer(searcher: Searcher, queries: tuple[Query, ...], vectors: Vectors, k: int) -> SearchResult:
    """Search with vectors (Q, D) of the shared space and say what was asked: for a searcher that is kept warm."""
    gallery = searcher.gallery
    hits = searcher.search(vectors, k)
    short = (f"the gallery has {len(gallery):,} rows, fewer than the {k:,} hits asked for",) if k > len(gallery) else ()
    return SearchResult(
        queries=queries,
        hits=tuple(tuple(line) for line in hits),
        gallery=Path(gallery.path),
        gallery_rows=len(gallery),
        modality=gallery.manifest.modality,
        notes=short,
    )


def _ask(
    connector: Connector, space: str | None, encoder: str | Encoder | None, asked: dict[str, Any]
) -> tuple[tuple[Query, ...], Vectors]:
    query, key = asked.pop("query", None), asked.pop("key", None)
    if query is None:
        if key is not None:
            raise CmcrError("A key picks rows of a query cache, and none was given.", todo="add --query CACHE")
        modality, values = one_input(asked)
        raw: Any = asked
        return raw_queries(modality, values), embed(connector, space=space, encoder=encoder, **raw)
    if any(asked.get(flag) is not None for flag in FLAGS):
        raise CmcrError("A search is asked with a query cache or with a raw input, not both.", todo="drop one of them")
    cache = as_cache(query)
    view = SharedView(cache, connector)
    if space is not None and view.head is not None and space != view.head:
        raise CmcrError(
            f"The query cache is in the space {view.head!r}, not in {space!r}.",
            where=str(cache.path),
            todo="leave --space out: a cache knows its space",
        )
    rows = query_rows(cache, key)
    return cache_queries(cache, rows), view.rows(np.asarray(rows))
