"""Method ``ridge``: the linear map from space 1 to space 2 with the least squared error and an L2 penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from ..projectors import Projector
from .base import CentredOptions, FitRun, Floats, Moments, moments, parse_options, towards_kept
from .procrustes import mapped_heads
from .ridge_cv import GRID, CrossValidation, choose_penalty

if TYPE_CHECKING:
    from ..pairs import Pairs
    from ..settings import FitSettings


class RidgeOptions(CentredOptions):
    """Options of ``ridge``, beside the centring.

    Parameters
    ----------
    penalty : float or "auto"
        λ, on the scale of sums over rows (not means). ``auto``: the one of ``grid`` under which most overlap items that
        were held out are found by their own image under the map; see :func:`~.ridge_cv.choose_penalty`.
    grid : tuple of float
        What ``auto`` tries.
    folds : int
        Parts of the overlap that are held out in turn.
    """

    penalty: float | Literal["auto"] = 1.0
    grid: tuple[float, ...] = Field(default=GRID, min_length=1)
    folds: int = Field(default=5, ge=2)

    @field_validator("penalty", "grid", mode="before")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        """Without a penalty the map of a narrow overlap is not determined."""
        for one in value if isinstance(value, list | tuple) else (value,):
            if one != "auto" and not (isinstance(one, int | float) and one > 0):
                raise ValueError(f'a penalty is a positive number, or "auto" to choose one of the grid, not {one!r}')
        return value


def ridge_map(sums: Moments, penalty: float) -> Floats:
    """argmin ‖XW − Y‖² + λ‖W‖²: W = (XᵀX + λI)⁻¹ XᵀY (D1, D2). Hoerl and Kennard 1970, "Ridge regression", eq. 2.1."""
    w: Floats = np.linalg.solve(sums.xx + penalty * np.eye(len(sums.xx)), sums.xy)
    return w


class Ridge:
    """Space 1 is mapped onto space 2 by ridge regression; the head of space 2 is the identity, or its centring."""

    name = "ridge"
    seeded = False

    def fit(self, pairs: Pairs, settings: FitSettings, run: FitRun) -> dict[str, Projector]:
        """Heads of the two spaces, both into space 2."""
        pairs, options = towards_kept(pairs, settings, parse_options(RidgeOptions, settings, self.name))
        centred = options.centre != "none"
        if options.penalty == "auto":
            found = choose_penalty(pairs, options.grid, options.folds, centred=centred, seed=settings.seed)
            _record(found, run)
            penalty = found.penalty
        else:
            penalty = float(options.penalty)
        sums = moments(pairs)
        w = ridge_map(sums.centred() if centred else sums, penalty)
        return mapped_heads(pairs, sums, w, options)


def _record(found: CrossValidation, run: FitRun) -> None:
    """A line of the metrics for each penalty, and the chosen one into the connector's record."""
    for step, (penalty, share) in enumerate(zip(found.grid, found.top1, strict=True), 1):
        run.log({"step": step, "penalty": penalty, "held_out_top1": round(share, 6)})
    run.chose(penalty=found.penalty, held_out_top1=round(max(found.top1), 6), at_edge_of_grid=found.at_edge)
