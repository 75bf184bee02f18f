"""Hubness: whether some items are near to everything, and the rows against which it is corrected."""

from __future__ import annotations

import torch
from torch import Tensor

from .data import WeaveData
from .experts import Expert

_JUDGED = 3000
_NEIGHBOURS = 10
_GAIN = 0.9


def hub_rows(expert: Expert, data: WeaveData) -> tuple[Tensor, Tensor] | None:
    """For each side the rows (m, d) of the *other* side's bank to correct against; None where correction does not help.

    The correction is CSLS (Conneau et al. 2018, arXiv 1710.04087, eq. 3). It presumes that every item of one bank has
    a counterpart in the other; where one bank is broader, the items without counterpart would be lifted. Whether it
    helps is read off the banks, as space 1 looks into space 2: the skewness of the 10-occurrences (Radovanović et al.
    2010, JMLR 11, section 3) has to fall by a tenth at least.
    Kept are all rows of each bank's sample; judged are evenly spread ones of them.
    """
    shared = [expert.rows(side, data.sides[side].bank) for side in (0, 1)]  # (m1, d), (m2, d)
    judged = [rows[torch.linspace(0, len(rows) - 1, min(_JUDGED, len(rows))).long()] for rows in shared]
    scores = judged[0] @ judged[1].T  # (Q, G)
    k = min(_NEIGHBOURS, *scores.shape)
    first, second = (scores.topk(k, dim=dim).values.mean(dim=dim) for dim in (1, 0))
    before, after = skewness(scores), skewness(scores - 0.5 * first[:, None] - 0.5 * second[None, :])
    return (shared[1], shared[0]) if before > 0 and after < _GAIN * before else None


def skewness(scores: Tensor) -> float:
    """Skewness of how often each column of (Q, G) is among the ten nearest of a row; 0 where all are equally often."""
    near = scores.topk(min(_NEIGHBOURS, scores.shape[1]), dim=1).indices
    counts = torch.bincount(near.flatten(), minlength=scores.shape[1]).double()  # (G,)
    spread = counts - counts.mean()
    deviation = spread.square().mean().sqrt()
    return float(spread.pow(3).mean() / deviation**3) if deviation > 0 else 0.0
