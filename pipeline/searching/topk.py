"""The k best rows of each query over blocks of a gallery that pass by once: exact, whatever the blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ...cache.vectors import Float32 as Vectors

PAIRS_AT_ONCE = 1 << 21  # numbers of the float64 rescoring held together: 16 MiB a factor


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

    def resume(self, scores: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> None:
        """Take in what an earlier pass over other rows found, (Q, k) each; -1 marks places without a row."""
        owner, place = np.nonzero(rows >= 0)
        self._merge(owner, rows[owner, place], scores[owner, place])

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
