"""The heads that ``weave`` leaves: a core with the means of its space, hub rows and private parts around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..projector_spec import woven_width
from ..projectors import Projector, ProjectorSpec, build_projector

if TYPE_CHECKING:
    from .data import Side


def woven(core: Projector, sides: tuple[Side, Side], index: int, hubs: Tensor | None, preserve: bool) -> Projector:
    """The head of one of two spaces.

    Parameters
    ----------
    core : Projector
        Centred unit rows (B, D) to rows (B, d).
    sides : (Side, Side)
    index : int
        Which of the two: 0 or 1.
    hubs : Tensor (m, d), optional
        Shared rows of the *other* space's bank, against which a vector's hubness is measured.
    preserve : bool
        Keep the source vectors beside the shared part.
    """
    own, other = sides[index].dim, sides[1 - index].dim if preserve else 0
    count = 0 if hubs is None else len(hubs)
    width = woven_width(core.spec.dim_out, count, own, other)
    more: dict[str, Any] = {"core": core.spec, "means": 2, "hubs": count, "side": index, "other": other}
    return _filled(ProjectorSpec("woven", own, width, **more), core, sides[index], hubs)


def bare(core: Projector, side: Side) -> Projector:
    """The head that leads one space into a kept one: its core on centred input, nothing beside it."""
    spec = ProjectorSpec("woven", side.dim, core.spec.dim_out, core=core.spec, means=2, bare=True)
    return _filled(spec, core, side, None)


def _filled(spec: ProjectorSpec, core: Projector, side: Side, hubs: Tensor | None) -> Projector:
    """The head of that description. Its core shares the tensors of ``core``; torch's generator is not touched."""
    state = {f"core.{name}": value for name, value in core.state_dict().items()}
    state["means"] = torch.stack([side.overlap_mean, side.bank_mean])  # (2, D)
    if hubs is not None:
        state["hubs"] = hubs.clone()  # an ordinary tensor: those of inference mode cannot be changed any more
    with torch.device("meta"):  # no first weights are drawn
        head = build_projector(spec)
    head.load_state_dict(state, assign=True)
    return head.eval()
