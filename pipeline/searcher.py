"""Search over a gallery in the shared space, kept warm between questions: exact, or through an index beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..cache import runs
from ..cache.errors import CacheError, CmcrError, ConnectorError
from ..cache.faiss_index import has_faiss
from .searching.choice import IndexSettings, choose_kind
from .searching.gallery_index import AHEAD, GalleryIndex, kept_index, made_index
from .searching.row_keys import RowKeys
from .searching.topk import RunningTopK
from .shared import SharedView

if TYPE_CHECKING:
    from ..cache.reader import Cache
    from ..trainer.connector import Connector

Vectors = npt.NDArray[np.float32]
SCORES_AT_ONCE = 1 << 23  # query-row scores held together: 32 MiB of float32
INDEXED_SHARE = 16  # more answers than M/16 are searched exactly, whatever index there is
Scores = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Hit:
    """One answer: ``score`` is the cosine in the shared space, ``rank`` counts from 1, ``row`` is the gallery's row."""

    rank: int
    key: str
    score: float
    caption: str | None
    source: str | None
    path: Path | None
    row: int


class Searcher:
    """A gallery that is open and can be asked again and again.

    Parameters
    ----------
    connector : Connector or None
        None where queries and gallery are in one space already.
    gallery : Cache
        Raw in one of the connector's spaces, or projected by this connector.
    device : str, optional
        Where the scores are computed; where the connector is, if not said.
    block : int
        Gallery rows scored at once.
    memory_budget : int
        Bytes of shared vectors that may stay in memory after the first question; a larger gallery is streamed each
        time.
    index : str or IndexSettings
        ``auto``, ``kept``, ``exact``, ``hnsw`` or ``ivf``: :class:`.searching.choice.IndexSettings`.
    held_out : array (Q, D) float32, optional
        Unit rows on which an index's recall is measured, in place of rows drawn from the gallery.

    Raises
    ------
    CmcrError
        An empty gallery, one of another connector; an index that was asked for without FAISS.
    """

    def __init__(
        self,
        connector: Connector | None,
        gallery: Cache,
        *,
        device: str | None = None,
        block: int = 16384,
        memory_budget: int = 1 << 30,
        index: str | IndexSettings = "auto",
        held_out: Vectors | None = None,
    ) -> None:
        if block < 1:
            raise CmcrError(f"A block has at least one row, not {block}.", todo="give --block a positive number")
        self.view = SharedView(gallery, connector)
        if not len(gallery):
            raise CacheError(
                "The gallery has no rows, so nothing can be found in it.",
                where=str(gallery.path),
                todo="look at its error ledger with cmcr cache info, or encode a corpus into it",
            )
        self.gallery = gallery
        self.device = device or (str(connector.device) if connector is not None else "cpu")
        self.block = block
        self._warm: list[tuple[int, Vectors]] | None = None
        self._keep = len(gallery) * self.view.dim * 4 <= memory_budget
        settings = index if isinstance(index, IndexSettings) else IndexSettings(kind=index)
        self._keys = RowKeys(gallery)
        self.index, self.how, self.worth_saying = _indexed(self.view, settings, held_out)

    @property
    def dim(self) -> int:
        """Dimension of the vectors that :meth:`search` takes."""
        return self.view.dim

    def _blocks(self) -> Iterator[tuple[int, Vectors]]:
        if self._warm is not None:
            yield from self._warm
            return
        kept: list[tuple[int, Vectors]] = []
        for start, block in self.view.blocks(self.block):
            if self._keep:
                kept.append((start, block))
            yield start, block
        if self._keep:
            self._warm = kept

    def _some_blocks(self, among: Rows) -> Iterator[tuple[int, Vectors]]:
        for start in range(0, len(among), self.block):
            yield start, self.view.rows(among[start : start + self.block])

    def topk(self, vectors: Vectors, k: int, among: Rows | None = None) -> tuple[Scores, Rows]:
        """The k best rows for each query, without keys or captions.

        Parameters
        ----------
        vectors : (Q, D) float32
            Unit rows of the shared space.
        k : int
            At least 1.
        among : (A,) int64, optional
            Search these rows alone, ascending; always exact.

        Returns
        -------
        scores : (Q, min(k, M)) float64
            Cosines, falling; equal ones in the order of the gallery where the search is exact.
        rows : (Q, min(k, M)) int64
            Rows of the gallery.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._check(vectors, k)
        if among is not None:
            scores, rows = self._exact(vectors, min(k, len(among)), self._some_blocks(among))
            return scores, among[rows]
        k = min(k, len(self.gallery))
        if self.index is None or k > max(1, len(self.gallery) // INDEXED_SHARE) or not len(vectors):
            return self._exact(vectors, k, self._blocks())
        found, rows = self.index.search(vectors, k)
        scores = found.astype(np.float64)
        if rows.min() < 0:  # the lists visited held fewer than k rows: search those queries exactly
            short = np.flatnonzero(rows[:, -1] < 0)
            scores[short], rows[short] = self._exact(vectors[short], k, self._blocks())
        return scores, rows

    def _exact(self, vectors: Vectors, k: int, blocks: Iterator[tuple[int, Vectors]]) -> tuple[Scores, Rows]:
        step = max(1, SCORES_AT_ONCE // self.block)
        parts = [RunningTopK(vectors[at : at + step], k, self.device) for at in range(0, len(vectors), step)]
        for start, block in blocks:
            for part in parts:
                part.update(start, block)
        found = [part.result() for part in parts]
        empty = (np.empty((0, k)), np.empty((0, k), np.int64))
        return (
            np.concatenate([empty[0], *(scores for scores, _ in found)]),
            np.concatenate([empty[1], *(rows for _, rows in found)]),
        )

    def find(self, vectors: Vectors, k: int = 10) -> tuple[Scores, Rows, list[list[str]]]:
        """Scores, rows and keys of the k best for each of (Q, D) unit rows: the quick way to ask."""
        scores, rows = self.topk(vectors, k)
        return scores, rows, self._keys.lines(rows)

    def _check(self, vectors: Vectors, k: int) -> None:
        if k < 1:
            raise CmcrError(f"A search returns at least one hit, not {k}.", todo="give --k a positive number")
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ConnectorError(
                f"Queries are rows of {self.dim} numbers in the shared space; these have the shape {vectors.shape}.",
                where=str(self.gallery.path),
                todo="project them first: connector.project(vectors, space=NAME)",
            )
        # one dot product says for most that every entry is finite
        if not math.isfinite(np.vdot(vectors, vectors)) and not np.isfinite(vectors).all():
            raise CmcrError(
                "A query vector has NaN or infinite entries.", todo="check where the query vectors come from"
            )

    def search(self, vectors: Vectors, k: int = 10) -> list[list[Hit]]:
        """The k best hits for each of (Q, D) unit rows, with key, caption and source."""
        scores, rows = self.topk(vectors, k)
        return self.hits(scores, rows)

    def hits(self, scores: Sequence[Scores] | Scores, rows: Sequence[Rows] | Rows) -> list[list[Hit]]:
        """Dress the rows that :meth:`topk` found with what the gallery knows about them; lines may differ in length."""
        if not sum(map(len, rows)):
            return [[] for _ in rows]
        unique = np.unique(np.concatenate(list(rows)))  # every gallery row is looked up once
        known = dict(zip(unique.tolist(), self._look_up(unique), strict=True))
        return [
            [
                Hit(rank=n + 1, score=float(score), row=row, **known[row])
                for n, (score, row) in enumerate(zip(line, numbers.tolist(), strict=True))
            ]
            for line, numbers in zip(scores, rows, strict=True)
        ]

    def _look_up(self, rows: npt.NDArray[np.int64]) -> Sequence[dict[str, Any]]:
        cache = self.gallery
        known = list(runs.records(cache.path))
        columns = zip(cache.keys(rows), cache.captions(rows), cache.sources(rows), strict=True)
        return [
            {
                "key": key,
                "caption": caption,
                "source": source,
                "path": runs.find_source(cache.path, source, known) if source else None,
            }
            for key, caption, source in columns
        ]


def _indexed(
    view: SharedView, settings: IndexSettings, held_out: Vectors | None
) -> tuple[GalleryIndex | None, str, bool]:
    """The index that the settings ask for, None for exact search; what is used; whether a reader should know."""
    if settings.kind == "kept":
        found, what = kept_index(view)
        return found, what or "exact: no index lies beside the gallery", bool(what)
    kind, why = choose_kind(len(view), view.dim, settings, has_faiss())
    if kind is None:
        return None, why, False
    made = made_index(view, kind, settings, held_out)
    if settings.kind == "auto" and kind == "hnsw" and made is not None and made.record.recall < settings.recall:
        made = made_index(view, "ivf", settings, held_out)  # lists that all may be visited reach any recall
    return made, made.describe() if made is not None else AHEAD, True
