"""Method ``ridge``: the linear map from space 1 to space 2 with the least squared error and an L2 penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from ..projectors import Projector
from .base import CentredOptions, FitRun, Floats, Moments, moments, parse_options
from .procrustes import mapped_heads

if TYPE_CHECKING:
    from ..pairs import Pairs
    from ..settings import FitSettings


class RidgeOptions(CentredOptions):
    """Options of ``ridge``: the penalty, on the scale of sums over rows (not means), beside the centring."""

    penalty: float = Field(default=1.0, gt=0)


def ridge_map(sums: Moments, penalty: float) -> Floats:
    """argmin ‖XW − Y‖² + λ‖W‖²: W = (XᵀX + λI)⁻¹ XᵀY (D1, D2). Hoerl and Kennard 1970, "Ridge regression", eq. 2.1."""
    w: Floats = np.linalg.solve(sums.xx + penalty * np.eye(len(sums.xx)), sums.xy)
    return w


class Ridge:
    """Space 1 is mapped onto space 2 by ridge regression; the head of space 2 is the identity, or its centring."""

    name = "ridge"

    def fit(self, pairs: Pairs, settings: FitSettings, run: FitRun) -> dict[str, Projector]:
        """Heads of the two spaces, both into space 2."""
        options = parse_options(RidgeOptions, settings, self.name)
        sums = moments(pairs)
        w = ridge_map(sums if options.centre == "none" else sums.centred(), options.penalty)
        return mapped_heads(pairs, sums, w, options)
