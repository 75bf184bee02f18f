"""Exact search over a gallery in the shared space, streamed in blocks and kept warm between questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ..cache.errors import CacheError, CmcrError, ConnectorError
from ..cache.runs import find_source
from .shared import SharedView

if TYPE_CHECKING:
    from ..cache.reader import Cache
    from ..trainer.connector import Connector

Vectors = npt.NDArray[np.float32]
SCORES_AT_ONCE = 1 << 23  # query-row scores held together: 32 MiB of float32
PAIRS_AT_ONCE = 1 << 21  # numbers of the float64 rescoring held together: 16 MiB a factor


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


class RunningTopK:
    """The k best rows of each query over blocks that pass by once.

    Float32 scores choose the candidates, with a margin of the worst rounding error of a dot product of unit vectors;
    the candidates are scored again in float64 and ordered by (score, row). The result therefore depends neither on the
    size of the blocks nor on the number of queries, and equal rows stand in the order of the gallery.

    Parameters
    ----------
    queries : (Q, D) float32
        Unit rows.
    k : int
        Answers to keep for each query.
    device : str
        Where the scores are computed.
    """

    def __init__(self, queries: Vectors, k: int, device: str = "cpu") -> None:
        self.k = k
        self.device = device
        self.queries = torch.as_tensor(np.ascontiguousarray(queries, dtype=np.float32), device=device)  # (Q, D)
        self.owner: npt.NDArray[np.int64] = np.empty(0, np.int64)  # (P,) query of each kept pair
        self.row: npt.NDArray[np.int64] = np.empty(0, np.int64)  # (P,)
        self.score: npt.NDArray[np.float64] = np.empty(0, np.float64)  # (P,)
        self.floor = torch.full((len(queries),), -torch.inf, device=device)  # (Q,) k-th best score so far
        # Higham, Accuracy and Stability of Numerical Algorithms, eq. 3.5: |fl(x.y) - x.y| <= D u |x||y|, for both sides
        self.margin = 2 * self.queries.shape[1] * 2.0**-24 + 2.0**-22

    @torch.inference_mode()
    def update(self, start: int, block: Vectors) -> None:
        """Take in the rows ``start`` to ``start + B`` of the gallery, (B, D) float32 unit rows."""
        if not len(block) or not len(self.queries):
            return
        rows = torch.as_tensor(block, device=self.device)
        owner, column = self._candidates(rows)
        score = self._rescore(owner, column, rows)
        self._merge(owner.cpu().numpy(), column.cpu().numpy() + start, score)

    def _candidates(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sims = self.queries @ rows.T  # (Q, B)
        live = torch.nonzero(sims.amax(1) >= self.floor - self.margin)[:, 0]  # (L,) queries that this block may improve
        sims = sims[live] if len(live) < len(sims) else sims  # (L, B)
        if not len(live):
            return live, live
        best = torch.topk(sims, min(self.k, sims.shape[1]), sorted=False).values.amin(1)  # (L,)
        threshold = torch.maximum(best, self.floor[live]) - self.margin
        owner, column = torch.nonzero(sims >= threshold[:, None], as_tuple=True)  # (P,), (P,)
        return live[owner], column

    def _rescore(self, owner: torch.Tensor, column: torch.Tensor, rows: torch.Tensor) -> npt.NDArray[np.float64]:
        step = max(1, PAIRS_AT_ONCE // rows.shape[1])
        scores = [np.empty(0, np.float64)]
        for at in range(0, len(owner), step):
            left = self.queries[owner[at : at + step]].double()  # (S, D)
            right = rows[column[at : at + step]].double()  # (S, D)
            scores.append((left * right).sum(1).cpu().numpy())
        return np.concatenate(scores)

    def _merge(self, owner: npt.NDArray[np.int64], row: npt.NDArray[np.int64], score: npt.NDArray[np.float64]) -> None:
        owner, row = np.concatenate([self.owner, owner]), np.concatenate([self.row, row])
        score = np.concatenate([self.score, score])
        order = np.lexsort((row, -score, owner))
        owner, row, score = owner[order], row[order], score[order]
        count = np.bincount(owner, minlength=len(self.queries))  # (Q,)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)  # rank within its query, from 0
        keep = place < self.k
        self.owner, self.row, self.score = owner[keep], row[keep], score[keep]
        last = place[keep] == self.k - 1
        floor = np.full(len(self.queries), -np.inf, np.float32)
        floor[self.owner[last]] = self.score[last]
        self.floor = torch.as_tensor(floor, device=self.device)

    def result(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Scores and rows, (Q, k) each, best first; where the gallery has fewer than k rows: NaN and -1."""
        scores = np.full((len(self.queries), self.k), np.nan)
        rows = np.full((len(self.queries), self.k), -1, np.int64)
        count = np.bincount(self.owner, minlength=len(self.queries))
        place = np.arange(len(self.owner)) - np.repeat(np.cumsum(count) - count, count)
        scores[self.owner, place], rows[self.owner, place] = self.score, self.row
        return scores, rows


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
    """

    def __init__(
        self,
        connector: Connector | None,
        gallery: Cache,
        *,
        device: str | None = None,
        block: int = 16384,
        memory_budget: int = 1 << 30,
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

    def topk(self, vectors: Vectors, k: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """The k best rows for each query, without keys or captions.

        Parameters
        ----------
        vectors : (Q, D) float32
            Unit rows of the shared space.
        k : int
            At least 1.

        Returns
        -------
        scores : (Q, min(k, M)) float64
            Cosines, falling; equal ones in the order of the gallery.
        rows : (Q, min(k, M)) int64
            Rows of the gallery.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        self._check(vectors, k)
        k = min(k, len(self.gallery))
        step = max(1, SCORES_AT_ONCE // self.block)
        parts = [RunningTopK(vectors[at : at + step], k, self.device) for at in range(0, len(vectors), step)]
        for start, block in self._blocks():
            for part in parts:
                part.update(start, block)
        found = [part.result() for part in parts]
        empty = (np.empty((0, k)), np.empty((0, k), np.int64))
        return (
            np.concatenate([empty[0], *(scores for scores, _ in found)]),
            np.concatenate([empty[1], *(rows for _, rows in found)]),
        )

    def _check(self, vectors: Vectors, k: int) -> None:
        if k < 1:
            raise CmcrError(f"A search returns at least one hit, not {k}.", todo="give --k a positive number")
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ConnectorError(
                f"Queries are rows of {self.dim} numbers in the shared space; these have the shape {vectors.shape}.",
                where=str(self.gallery.path),
                todo="project them first: connector.project(vectors, space=NAME)",
            )
        if not np.isfinite(vectors).all():
            raise CmcrError(
                "A query vector has NaN or infinite entries.", todo="check where the query vectors come from"
            )

    def search(self, vectors: Vectors, k: int = 10) -> list[list[Hit]]:
        """The k best hits for each of (Q, D) unit rows, with key, caption and source."""
        scores, rows = self.topk(vectors, k)
        return self.hits(scores, rows)

    def hits(self, scores: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> list[list[Hit]]:
        """Dress the rows that :meth:`topk` found with what the gallery knows about them."""
        unique, back = np.unique(rows, return_inverse=True)  # every gallery row is looked up once
        if not len(unique):
            return [[] for _ in rows]
        known = self._look_up(unique)
        back = back.reshape(rows.shape)
        return [
            [
                Hit(rank=n + 1, score=float(score), row=int(unique[at]), **known[at])
                for n, (score, at) in enumerate(zip(line, places, strict=True))
            ]
            for line, places in zip(scores, back, strict=True)
        ]

    def _look_up(self, rows: npt.NDArray[np.int64]) -> Sequence[dict[str, Any]]:
        cache = self.gallery
        columns = zip(cache.keys(rows), cache.captions(rows), cache.sources(rows), strict=True)
        return [
            {
                "key": key,
                "caption": caption,
                "source": source,
                "path": find_source(cache.path, source) if source else None,
            }
            for key, caption, source in columns
        ]
