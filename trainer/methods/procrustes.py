"""Method ``procrustes``: the orthogonal map that brings the overlap of space 1 closest to that of space 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..projectors import Projector, affine
from .base import CentredOptions, FitRun, Floats, Moments, moments, parse_options, towards_kept, use_mean

if TYPE_CHECKING:
    from ..pairs import Pairs
    from ..settings import FitSettings


def orthogonal_map(sums: Moments) -> Floats:
    """argmin ‖XW − Y‖_F over (semi-)orthogonal W (D1, D2): W = UVᵀ where XᵀY = USVᵀ.

    Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31. For D1 < D2 the
    rows of W are orthonormal and lengths are kept; for D1 > D2 its columns are, and what lies outside their span is
    dropped: there UVᵀ maximises tr(WᵀXᵀY), which is the same problem only where lengths are kept.
    """
    u, _, vt = np.linalg.svd(sums.xy, full_matrices=False)  # (D1, r), (r,), (r, D2) with r = min(D1, D2)
    w: Floats = u @ vt  # (D1, D2)
    return w


class Procrustes:
    """Space 1 is rotated onto space 2; the head of space 2 is the identity, or its centring."""

    name = "procrustes"
    seeded = False

    def fit(self, pairs: Pairs, settings: FitSettings, run: FitRun) -> dict[str, Projector]:
        """Heads of the two spaces, both into space 2."""
        pairs, options = towards_kept(pairs, settings, parse_options(CentredOptions, settings, self.name))
        sums = moments(pairs)
        w = orthogonal_map(sums if options.centre == "none" else sums.centred())
        return mapped_heads(pairs, sums, w, options)


def mapped_heads(pairs: Pairs, sums: Moments, w: Floats, options: CentredOptions) -> dict[str, Projector]:
    """Heads of a linear map W (D1, D2) from space 1 into space 2, with the centring that ``options`` ask for."""
    first, second = pairs.names
    matrices = {first: torch.from_numpy(w.T.copy()), second: None}
    heads = {}
    for name, overlap_mean in ((first, sums.x), (second, sums.y)):
        mean = use_mean(pairs, name, overlap_mean, options.centre)
        heads[name] = affine(matrices[name], None if mean is None else torch.from_numpy(mean), pairs.overlap[name].dim)
    return heads
