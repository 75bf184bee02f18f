"""Method ``bridge``: a vector of space 1 becomes the average of the overlap items near it, read in space 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from ..projectors import Projector, affine, bridge
from .base import CentredOptions, FitRun, Floats, moments, parse_options, towards_kept, use_mean

if TYPE_CHECKING:
    from ..pairs import Pairs
    from ..settings import FitSettings


class BridgeOptions(CentredOptions):
    """Options of ``bridge``, beside the centring.

    Parameters
    ----------
    scale : float
        The softmax takes ``scale`` times the cosine.
    rows : int
        Overlap items kept, a seeded sample of a larger overlap; each adds (D1 + D2) · 4 bytes to the connector.
    """

    scale: float = Field(default=30.0, gt=0)
    rows: int = Field(default=65536, ge=1)


def sample_rows(count: int, most: int, seed: int) -> npt.NDArray[np.int64]:
    """Sorted row numbers: all, or a seeded sample without repetition where there are more than ``most``."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


class Bridge:
    """Space 1 goes through the overlap into space 2; the head of space 2 is the identity, or its centring."""

    name = "bridge"
    seeded = False

    def fit(self, pairs: Pairs, settings: FitSettings, run: FitRun) -> dict[str, Projector]:
        """Heads of the two spaces, both into space 2.

        Centred: keys and values are the overlap minus its means at unit length; queries and gallery lose theirs.
        """
        pairs, options = towards_kept(pairs, settings, parse_options(BridgeOptions, settings, self.name))
        first, second = pairs.names
        rows = sample_rows(pairs.N, options.rows, settings.seed)
        keys, values = pairs.overlap[first].rows(rows), pairs.overlap[second].rows(rows)  # (M, D1), (M, D2)
        if options.centre == "none":
            head = bridge(torch.from_numpy(keys), torch.from_numpy(values), None, options.scale)
            return {first: head, second: affine(None, None, pairs.overlap[second].dim)}
        sums = moments(pairs)
        outer = use_mean(pairs, first, sums.x, options.centre), use_mean(pairs, second, sums.y, options.centre)
        mean1, mean2 = (torch.from_numpy(mean) for mean in outer if mean is not None)
        head = bridge(_centred_units(keys, sums.x), _centred_units(values, sums.y), mean1, options.scale)
        return {first: head, second: affine(None, mean2, pairs.overlap[second].dim)}


def _centred_units(rows: npt.NDArray[np.float32], mean: Floats) -> torch.Tensor:
    """Rows minus a mean, at unit length."""
    return torch.nn.functional.normalize(torch.from_numpy(rows - mean), dim=1)  # (M, D) float64
