"""What ``weave`` looks at: seeded samples of overlap and banks, each modality of each space centred by its own mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ...cache.bank import sample_rows
from ...cache.errors import FitError

if TYPE_CHECKING:
    from ..pairs import Pairs

_BLOCK = 4096
_EQUAL = 1e-5  # of unit rows: what is left of equal ones after float32 centring is rounding


@dataclass(frozen=True)
class Side:
    """One space.

    Parameters
    ----------
    name : str
    overlap, bank : Tensor
        Centred unit rows (N, D) and (M, D) float32, on the CPU as all else here.
    overlap_mean, bank_mean : Tensor
        (D,) means of the unit rows before the centring.
    """

    name: str
    overlap: Tensor
    bank: Tensor
    overlap_mean: Tensor
    bank_mean: Tensor

    @property
    def dim(self) -> int:
        """Width of the space."""
        return int(self.overlap.shape[1])

    def part(self, rows: Tensor) -> Side:
        """The same space with these rows of the overlap."""
        return replace(self, overlap=self.overlap[rows])


@dataclass(frozen=True)
class WeaveData:
    """Both spaces; ``rows`` are the joined items that the overlap rows stand for."""

    sides: tuple[Side, Side]
    rows: npt.NDArray[np.int64]

    def part(self, rows: Tensor) -> WeaveData:
        """The same data with these rows of the overlap."""
        first, second = self.sides
        return WeaveData((first.part(rows), second.part(rows)), self.rows[rows.numpy()])

    def __len__(self) -> int:
        return len(self.rows)


def weave_data(pairs: Pairs, most_rows: int, most_bank: int, seed: int) -> WeaveData:
    """Sampled and centred rows of both spaces: at most ``most_rows`` of the overlap and ``most_bank`` of each bank.

    Raises
    ------
    FitError
        A space has no bank, the overlap is too small to hold any of it out, or the vectors of a modality are all equal.
    """
    for name in pairs.names:
        if pairs.bank[name] is None:
            raise FitError(
                f"weave needs a memory bank in both spaces, {name!r} has none",
                where=f"space {name!r}",
                todo="name a cache of its other modality as bank, or use a method that needs none (procrustes, ridge)",
            )
    if len(pairs) < 16:
        raise FitError(
            f"{len(pairs)} joined rows are too few to weave", todo="give overlap caches that share more keys"
        )
    chosen = sample_rows(len(pairs), min(most_rows, len(pairs)), seed)
    sides = []
    for name in pairs.names:
        source, bank = pairs.overlap[name], pairs.bank[name]
        assert bank is not None
        overlap = _gathered(source.rows, chosen)
        others = _gathered(bank.rows, sample_rows(len(bank), min(most_bank, len(bank)), seed))
        (t, t_mean), (x, x_mean) = _centred(overlap, name, "overlap"), _centred(others, name, "bank")
        sides.append(Side(name, t, x, t_mean, x_mean))
    return WeaveData((sides[0], sides[1]), chosen)


def _gathered(read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]], rows: npt.NDArray[np.int64]) -> Tensor:
    return torch.cat([torch.from_numpy(read(part)) for part in np.array_split(rows, -(-len(rows) // _BLOCK))])


def _centred(rows: Tensor, space: str, role: str) -> tuple[Tensor, Tensor]:
    """Unit rows (N, D) minus their mean, at unit length again, and the mean (D,)."""
    mean = rows.mean(dim=0)
    offsets = rows - mean
    if float(offsets.norm(dim=1).max()) < _EQUAL:
        raise FitError(
            f"the {role} of {space!r} has {len(rows)} vectors, and they are all the same",
            where=f"space {space!r}",
            todo="look at that cache with cmcr cache verify; an encoder that fails on every input gives equal vectors",
        )
    return F.normalize(offsets, dim=1), mean


def complete(queries: Tensor, bank: Tensor, scale: float) -> Tensor:
    """Completion of centred rows from a centred bank, unit rows (B, D): Σ_k softmax_k(scale · q·X_k) X_k."""
    parts = [torch.softmax(scale * (block @ bank.T), dim=1) @ bank for block in torch.split(queries, _BLOCK)]
    return F.normalize(torch.cat(parts), dim=1)
