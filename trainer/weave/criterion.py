"""The label-free criterion of ``weave``: do real bank items find the overlap items that they resemble?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods.bridge import sample_rows
from .data import WeaveData
from .experts import Expert

_ITEMS = 800
_MOST_HELD_OUT = 1000


@dataclass(frozen=True)
class Split:
    """Overlap rows to fit on, overlap rows held out, and what is asked of them; row numbers of the data."""

    fitted: Tensor
    held_out: Tensor


def hold_out(data: WeaveData, seed: int) -> Split:
    """A fifth of the overlap, at most a thousand rows, chosen by the seed."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    count = min(_MOST_HELD_OUT, len(data) // 5)
    return Split(order[count:].sort().values, order[:count].sort().values)


@dataclass(frozen=True)
class Score:
    """Mean reciprocal rank of a candidate, and the standard error of that mean over the items asked."""

    mrr: float
    error: float


def score(expert: Expert, data: WeaveData, held: Split, seed: int) -> Score:
    """Mean reciprocal rank, over both spaces, of an item's best overlap item when it is looked for in the other space.

    A bank item of space 1 (a real picture, a real sound) resembles one held-out overlap item most, by space 1 alone.
    That same overlap item is then looked for by its vector of space 2 through the candidate's heads, among all that
    were held out. No label takes part, and no pair of the outer modalities; and unlike a criterion on completed
    vectors it asks for real items, which lie where no average of bank vectors does.
    """
    means, errors = [], []
    for side in (0, 1):
        own, other = data.sides[side], data.sides[1 - side]
        items = own.bank[torch.from_numpy(sample_rows(len(own.bank), _ITEMS, seed))]
        best = (items @ own.overlap[held.held_out].T).argmax(dim=1)  # (Q,) by space `side` alone
        there = expert.rows(1 - side, other.overlap[held.held_out])
        found = expert.rows(side, items) @ there.T  # (Q, H)
        ranks = _reciprocal_ranks(found, best).double()
        means.append(float(ranks.mean()))
        errors.append(float(ranks.std()) / len(ranks) ** 0.5)
    return Score(sum(means) / 2, (errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2)


def choose(candidates: Sequence[Expert], scores: Sequence[Score]) -> Expert:
    """The simplest candidate of the best one's kind within one standard error of the best.

    The one-standard-error rule of Breiman et al. 1984 ("Classification and Regression Trees", 3.4.3): differences
    below it are the sample's. Simplicity is :attr:`Expert.simplicity`: a stronger shrinkage, a broader softmax.
    """
    best = max(range(len(scores)), key=lambda i: scores[i].mrr)
    least = scores[best].mrr - scores[best].error
    near = [
        candidate
        for candidate, found in zip(candidates, scores, strict=True)
        if candidate.name == candidates[best].name and found.mrr >= least
    ]
    return max(near, key=lambda candidate: candidate.simplicity)


def _reciprocal_ranks(scores: Tensor, wanted: Tensor) -> Tensor:
    """1/rank of the wanted column of each row (Q,); ties count half."""
    own = scores.gather(1, wanted[:, None])  # (Q, 1)
    above, equal = (scores > own).sum(dim=1), (scores == own).sum(dim=1) - 1
    return 1 / (1 + above + equal / 2)
