"""Method ``identity``: the two spaces as they are. The floor that every other method has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...cache.errors import FitError
from ..projectors import Projector, identity
from .base import FitRun, Options, parse_options

if TYPE_CHECKING:
    from ..pairs import Pairs
    from ..settings import FitSettings


class Identity:
    """Both heads are the identity; needs spaces of one dimension."""

    name = "identity"

    def fit(self, pairs: Pairs, settings: FitSettings, run: FitRun) -> dict[str, Projector]:
        """Two identity heads."""
        parse_options(Options, settings, self.name)
        dims = {name: pairs.overlap[name].dim for name in pairs.names}
        if len(set(dims.values())) > 1:
            raise FitError(
                "identity needs two spaces of one dimension; "
                + ", ".join(f"{name} has {dim}" for name, dim in dims.items()),
                todo="use procrustes: it takes any two dimensions",
            )
        return {name: identity(dim) for name, dim in dims.items()}
