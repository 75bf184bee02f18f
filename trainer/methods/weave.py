"""Method ``weave``, ours: three ways to connect two spaces, and the one that real items ask for.

A linear map, a walk over anchors and trained projectors each win on some data and lose on other. ``weave`` fits all
three without labels or pairs, lets real bank items of both spaces judge them (``trainer/weave/criterion.py``), corrects
hubness where the banks show it, and sets the source vector beside the shared one, so that search and zero-shot within
a space go on as before. ``docs/method.md`` 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from ..projector_spec import woven_width
from ..projectors import Projector, ProjectorSpec, Woven, build_projector, identity
from ..weave.criterion import choose, hold_out, score
from ..weave.data import WeaveData, weave_data
from ..weave.experts import Expert, anchors, linear, untrained
from ..weave.hubs import hub_rows
from ..weave.trained import TrainingPlan, trained
from .base import FitRun, Options, parse_options

if TYPE_CHECKING:
    from ..pairs import Pairs
    from ..settings import FitSettings


class WeaveOptions(Options):
    """Options of ``weave``. The grids are what the criterion chooses from; it sees no label and no test set.

    Parameters
    ----------
    rows, bank_rows : int
        Seeded samples of larger overlaps and banks.
    powers : tuple of float
        Shrinkage of the linear map.
    scales, whitens : tuple of float
        Inverse temperatures of the walk over anchors, and powers of whitening.
    anchors : int
        Anchors kept; each adds about 3 (D1 + D2) · 4 bytes to the connector.
    steps, batch_size : int
        Length of the training; 0 steps leave the trained candidate out.
    preserve : bool
        Set the source vectors beside the shared part (D1 + D2 dimensions more).
    """

    rows: int = Field(default=65536, ge=16)
    bank_rows: int = Field(default=16384, ge=16)
    powers: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5)
    scales: tuple[float, ...] = (12.0, 17.0, 25.0)
    whitens: tuple[float, ...] = (0.5, 1.0)
    anchors: int = Field(default=4096, ge=16)
    steps: int = Field(default=300, ge=0)
    batch_size: int = Field(default=1024, ge=2)
    preserve: bool = True


class Weave:
    """The best of three candidates by a label-free criterion, with both source spaces preserved."""

    name = "weave"

    def fit(self, pairs: Pairs, settings: FitSettings, run: FitRun) -> dict[str, Projector]:
        """Woven heads of both spaces; with ``keep``, one bare head into the kept space and its identity."""
        options = parse_options(WeaveOptions, settings, self.name)
        data = weave_data(pairs, options.rows, options.bank_rows, settings.seed)
        kept = None if settings.keep is None else pairs.names.index(settings.keep)
        held = hold_out(data, settings.seed)
        part = data.part(held.fitted)
        candidates = []
        if options.steps:
            plan = TrainingPlan(options.steps, options.batch_size)
            candidates.append(trained(part, pairs, settings, plan, run))
        grid = (options.powers, options.scales, options.whitens, options.anchors, settings.seed, kept)
        candidates += untrained(part, *grid)
        scores = [score(candidate, data, held, settings.seed) for candidate in candidates]
        winner = _whole(choose(candidates, scores), data, options, settings.seed, kept)
        hubs = None if kept is not None else hub_rows(winner, data)
        run.chose(
            expert=winner.name,
            **winner.settings,
            hubness_corrected=hubs is not None,
            criterion=[
                {"expert": c.name, **c.settings, "mrr": round(s.mrr, 4), "error": round(s.error, 4)}
                for c, s in zip(candidates, scores, strict=True)
            ],
        )
        if kept is not None:
            return {
                side.name: _bare(winner, data, i) if i != kept else identity(side.dim)
                for i, side in enumerate(data.sides)
            }
        return {side.name: _woven(winner, data, i, hubs, options.preserve) for i, side in enumerate(data.sides)}


def _whole(expert: Expert, data: WeaveData, options: WeaveOptions, seed: int, kept: int | None) -> Expert:
    """The chosen candidate, fitted on the held-out rows too where that costs no training."""
    if expert.name == "linear":
        return linear(data, **expert.settings, kept=kept)
    if expert.name == "anchors":
        return anchors(data, **expert.settings, count=options.anchors, seed=seed, kept=kept)
    return expert


def _woven(
    expert: Expert, data: WeaveData, index: int, hubs: tuple[torch.Tensor, torch.Tensor] | None, preserve: bool
) -> Projector:
    """The head of one side, from its core."""
    core, side = expert.cores[index], data.sides[index]
    other = data.sides[1 - index].dim if preserve else 0
    count = 0 if hubs is None else len(hubs[index])
    width = woven_width(core.spec.dim_out, count, side.dim, other)
    more: dict[str, Any] = {"core": core.spec, "means": 2, "hubs": count, "side": index, "other": other}
    head = build_projector(ProjectorSpec("woven", side.dim, width, **more))
    return _filled(head, core, side_means(data, index), None if hubs is None else hubs[index])


def _bare(expert: Expert, data: WeaveData, index: int) -> Projector:
    """The head that leads one side into a kept space: its core on centred input, nothing beside it."""
    core, side = expert.cores[index], data.sides[index]
    spec = ProjectorSpec("woven", side.dim, core.spec.dim_out, core=core.spec, means=2, bare=True)
    return _filled(build_projector(spec), core, side_means(data, index), None)


def side_means(data: WeaveData, index: int) -> torch.Tensor:
    """Means (2, D) of the overlapping modality and of the bank's, in that order."""
    side = data.sides[index]
    return torch.stack([side.overlap_mean, side.bank_mean])


def _filled(head: Projector, core: Projector, means: torch.Tensor, hubs: torch.Tensor | None) -> Projector:
    """The head with its core, means and hub rows in place."""
    assert isinstance(head, Woven)
    state = {f"core.{name}": value for name, value in core.state_dict().items()} | {"means": means}
    head.load_state_dict(state if hubs is None else {**state, "hubs": hubs})
    return head.eval()
