"""Method ``identity``: the two spaces as they are. The floor that every other method has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..projectors import Projector, affine, identity
from .base import FitRun, Options, parse_options

if TYPE_CHECKING:
    from ..pairs import Pairs
    from ..settings import FitSettings


class Identity:
    """Both heads are the identity; the narrower of two spaces gets zeros for the coordinates that it lacks."""

    name = "identity"
    seeded = False

    def fit(self, pairs: Pairs, settings: FitSettings, run: FitRun) -> dict[str, Projector]:
        """Two heads that change no cosine within their space."""
        parse_options(Options, settings, self.name)
        dims = {name: pairs.overlap[name].dim for name in pairs.names}
        widest = max(dims.values())
        return {name: identity(dim) if dim == widest else _padding(dim, widest) for name, dim in dims.items()}


def _padding(dim: int, widest: int) -> Projector:
    """The head that appends zeros."""
    return affine(torch.eye(widest, dim), None, dim)  # (widest, dim)
