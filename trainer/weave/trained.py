"""The trained candidate of ``weave``: the paper's losses on vectors that are centred before they are completed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from ..batches import Batches
from ..device import check_precision, resolve_device
from ..loop import train
from ..methods.base import ranks_of
from ..methods.cmcr import CmcrObjective, make_heads
from ..quadruples import Held
from .data import WeaveData, complete
from .experts import Expert
from .heads import bare

if TYPE_CHECKING:
    from ..methods.base import FitRun
    from ..pairs import Pairs
    from ..settings import FitSettings


@dataclass(frozen=True)
class TrainingPlan:
    """How the trained candidate is trained.

    Parameters
    ----------
    steps, batch_size : int
        About as many steps of so many rows.
    tau : float
        Temperature of both contrastive losses; centred vectors are spread wider than raw ones, 0.01 would only sharpen.
    scale : float
        Of the completion of centred vectors, the inverse of its temperature.
    """

    steps: int = 300
    batch_size: int = 1024
    tau: float = 0.05
    scale: float = 12.0


class _CentredPairs:
    """What the objective of C-MCR reads of pairs, from memory."""

    def __init__(self, data: WeaveData, pairs: Pairs, scale: float) -> None:
        self._pairs, self._rows = pairs, data.rows
        self.names = pairs.names
        self.N = len(data)
        self.overlap = {side.name: Held(side.overlap.numpy()) for side in data.sides}
        self.completed = {side.name: Held(complete(side.overlap, side.bank, scale).numpy()) for side in data.sides}

    def keys(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> list[str]:
        """Keys of rows, for messages."""
        return self._pairs.keys(self._rows[np.asarray(rows)])


def trained(data: WeaveData, pairs: Pairs, settings: FitSettings, plan: TrainingPlan, run: FitRun) -> Expert:
    """Two MLPs under the losses of C-MCR (arXiv 2305.14381), resumable as every trained fit is.

    Widths, temperatures, rows of a batch and number of steps are those of ``plan``; rate, schedule, noise, weights of
    the losses, device and precision those of ``settings``. The cores come back on the CPU.
    """
    batches = Batches(len(data), plan.batch_size, settings.seed)
    width = max(side.dim for side in data.sides)
    own = settings.model_copy(
        update={
            "tau2": plan.tau,
            "tau3": plan.tau,
            "projector": "mlp",
            "out_dim": width,
            "hidden": 2 * width,
            "batch_size": plan.batch_size,
            "epochs": max(1, round(plan.steps / batches.per_epoch)),
        }
    )
    device = resolve_device(own.device)
    check_precision(device, own.precision)
    centred = cast("Pairs", _CentredPairs(data, pairs, plan.scale))
    ranks = ranks_of(run).sharing(batches.size)
    objective = CmcrObjective(centred, own, make_heads(centred, own), device, ranks)
    cores = objective.heads
    # A validation pair brings raw vectors. These heads centre first, and share the tensors that are trained.
    objective.heads = {
        side.name: cores[side.name] if side.name == own.keep else bare(cores[side.name], side).to(device)
        for side in data.sides
    }
    train(objective, batches, own, run)
    first, second = (cores[name].cpu().eval() for name in pairs.names)
    return Expert("trained", (first, second))
