"""Completion: what a query would look like in the modality of a memory bank of its own space.

    x_i = Σ_k softmax_k(t_i·X_k / τ1) X_k        (Wang et al., arXiv 2305.14381; docs/method.md 1)

Exact: every bank row takes part, scores are float32, and the bank streams through in blocks, so memory is O(block).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache.errors import FitError
from .device import resolve_device

Vectors = npt.NDArray[np.float32]

# Rows of a tile of scores. 1024 x 2048 float32 are 8 MB: large enough for the matrix products to run at their best,
# small enough that the passes over the scores between them stay in the last-level cache.
QUERY_TILE = 1024
BANK_TILE = 2048
_NOUNS = {"text": "caption", "image": "image", "audio": "sound", "pointcloud": "shape"}
_DEVICE_TILE = 16384  # on an accelerator, where launching is what costs


class BlockSource(Protocol):
    """What completion needs of a bank; :class:`cmcr.cache.bank.Bank` has it."""

    @property
    def dim(self) -> int: ...
    def __len__(self) -> int: ...
    def blocks(self, size: int = 16384) -> Iterator[Vectors]:
        """Unit rows (<= size, D) float32, in order."""
        ...


@dataclass(frozen=True)
class Completed:
    """Completed rows.

    Parameters
    ----------
    vectors : array (B, D) float32
        x_i as the sum gives it: not of unit length.
    neighbours : array (B,) float32
        Effective number of bank rows averaged: exp(H) of the softmax weights, H their entropy in nats. 1 is a copy of
        one row, M (the bank's length) the mean of all.
    """

    vectors: Vectors
    neighbours: npt.NDArray[np.float32]


def complete_rows(
    queries: Vectors, bank: BlockSource, tau: float = 0.01, block: int = 16384, *, device: str = "cpu"
) -> Completed:
    """Complete some rows from a bank, exactly.

    Parameters
    ----------
    queries : array (B, D) float32
        Unit rows.
    bank : Bank
        Unit rows (M, D) of the same space.
    tau : float
        Temperature τ1.
    block : int
        Bank rows held at a time; decides memory, and the result only in its rounding.
    device : str
        Where to compute.

    Raises
    ------
    FitError
        The bank is empty or of another width.
    """
    check_shapes(queries, bank)
    place = resolve_device(device)
    with true_fp32():
        state = RunningSoftmax(torch.from_numpy(np.ascontiguousarray(queries)).to(place) / tau)
        for rows in bank.blocks(block):
            state.add(torch.from_numpy(rows).to(place))
        return state.result()


class RunningSoftmax:
    """Softmax-weighted sums with running maxima (Milakov and Gimelshein 2018, arXiv 1805.02867, algorithm 3)."""

    def __init__(self, scaled: Tensor) -> None:
        self.scaled = scaled  # t/τ (B, D)
        self.peak = scaled.new_full((len(scaled), 1), float("-inf"))
        self.mass = scaled.new_zeros((len(scaled), 1))
        self.total = torch.zeros_like(scaled)
        on_cpu = scaled.device.type == "cpu"
        self.tiles = (QUERY_TILE, BANK_TILE) if on_cpu else (_DEVICE_TILE, _DEVICE_TILE)
        self.scores = scaled.new_empty(min(self.tiles[0], len(scaled)) * self.tiles[1])

    def add(self, block: Tensor) -> None:
        """Take a block of the bank (b, D) into the sums of all queries."""
        for start in range(0, len(block), self.tiles[1]):
            tile = block[start : start + self.tiles[1]]
            for first in range(0, len(self.scaled), self.tiles[0]):
                self._add_tile(slice(first, first + self.tiles[0]), tile)

    def _add_tile(self, rows: slice, tile: Tensor) -> None:
        queries = self.scaled[rows]
        scores = self.scores[: len(queries) * len(tile)].view(len(queries), len(tile))
        torch.matmul(queries, tile.T, out=scores)  # t·X/τ (q, b)
        old = self.peak[rows]
        peak = torch.maximum(old, scores.amax(dim=1, keepdim=True))  # (q, 1)
        scores.sub_(peak).exp_()
        shrink = torch.exp(old - peak)
        self.mass[rows] = self.mass[rows] * shrink + scores.sum(dim=1, keepdim=True)
        self.total[rows].mul_(shrink).addmm_(scores, tile)
        self.peak[rows] = peak

    def result(self) -> Completed:
        """The weighted means, and how many rows they average."""
        vectors = self.total / self.mass  # (B, D)
        # H = log Σ exp(s) − Σ p s, and Σ_k p_k t·X_k/τ = t·x/τ: the entropy costs no pass over the scores
        entropy = self.mass.log() + self.peak - (self.scaled * vectors).sum(dim=1, keepdim=True)
        neighbours = entropy.exp().clamp_min(1.0)[:, 0]  # (B,)
        return Completed(vectors.cpu().numpy(), neighbours.cpu().numpy())


def readable_neighbours(median: float, query: str, bank: str) -> str:
    """One line for people about the effective number of neighbours, from the modalities of query and bank."""
    count = f"{median:.1f}" if median < 9.95 else f"{median:,.0f}"
    one, many = _NOUNS.get(query, "query"), _NOUNS.get(bank, "bank row") + "s"
    return f"each {one} averages {count} {many} (median); 1 = copying, over 1000 = mush"


def check_shapes(queries: Vectors, bank: BlockSource) -> None:
    """Refuse an empty bank, and one of another width than the queries."""
    if len(bank) == 0:
        raise FitError("the memory bank is empty", todo="give a bank cache that has rows")
    if queries.ndim != 2 or queries.shape[1] != bank.dim:
        raise FitError(
            f"the queries have the shape {queries.shape}, the bank has {bank.dim} dimensions",
            todo="give a query and a bank of the same space",
        )


@contextmanager
def true_fp32() -> Iterator[None]:
    """Float32 products as such: TF32 keeps ten bits, which at τ = 0.01 is an error of the scores of 0.05."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
