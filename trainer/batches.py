"""The order of the rows: a permutation keyed by (seed, epoch), cut into whole batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batches:
    """Batches of an epoch-wise shuffled data set, addressed by step so that a resumed fit needs no history.

    Parameters
    ----------
    rows : int
        Rows of the data set, N.
    batch_size : int
        Wanted rows of a batch; a batch has ``min(batch_size, N)`` and the last partial one of an epoch is dropped.
    seed : int
        Seed of the fit.
    """

    rows: int
    batch_size: int
    seed: int

    @property
    def size(self) -> int:
        """Rows of every batch."""
        return min(self.batch_size, self.rows)

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.rows // self.size

    def order(self, epoch: int) -> Indices:
        """Permutation of the rows in this epoch, (N,)."""
        generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)))
        return generator.permutation(self.rows)

    def slice_of(self, step: int) -> tuple[int, slice]:
        """Epoch of a step, and the part of that epoch's order that the step reads."""
        epoch, index = divmod(step, self.per_epoch)
        return epoch, slice(index * self.size, (index + 1) * self.size)
