"""Method ``weave``, ours: three ways to connect two spaces, and the one that real items ask for.

A linear map, a walk over anchors and trained projectors each win on some data and lose on other. ``weave`` fits all
three without labels or pairs, lets real bank items of both spaces judge them (``trainer/weave/criterion.py``), corrects
hubness where the banks show it, and sets the source vector beside the shared one, so that search and zero-shot within
a space go on as before. ``docs/method.md`` 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ...cache.errors import RecipeError
from ..projectors import Projector, identity
from ..weave.criterion import choose, hold_out, score
from ..weave.data import WeaveData, weave_data
from ..weave.experts import Expert, anchors, linear, untrained
from ..weave.heads import bare, woven
from ..weave.hubs import hub_rows
from ..weave.trained import TrainingPlan, trained
from .base import FitRun, Options, parse_options, ranks_of

if TYPE_CHECKING:
    from ..pairs import Pairs
    from ..settings import FitSettings

Power = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=0, lt=1e6)]


class WeaveOptions(Options):
    """Options of ``weave``. The grids are what the criterion chooses from; it sees no label and no test set.

    Parameters
    ----------
    rows, bank_rows : int
        Seeded samples of larger overlaps and banks.
    powers : tuple of float
        Shrinkage of the linear map, 0 to 1; an empty one leaves the linear candidates out.
    scales, whitens : tuple of float
        Inverse temperatures of the walk over anchors, and powers of whitening, 0 to 1; an empty one leaves them out.
    anchors : int
        Anchors kept; each adds about 3 (D1 + D2) · 4 bytes to the connector.
    steps, batch_size : int
        Length of the training; 0 steps leave the trained candidate out.
    preserve : bool
        Set the source vectors beside the shared part (D1 + D2 dimensions more). Without meaning beside ``keep``.
    """

    rows: int = Field(default=65536, ge=16)
    bank_rows: int = Field(default=16384, ge=16)
    powers: tuple[Power, ...] = (0.0, 0.1, 0.25, 0.5)
    scales: tuple[Scale, ...] = (12.0, 17.0, 25.0)
    whitens: tuple[Power, ...] = (0.5, 1.0)
    anchors: int = Field(default=4096, ge=16)
    steps: int = Field(default=300, ge=0)
    batch_size: int = Field(default=1024, ge=2)
    preserve: bool = True


class Weave:
    """The best of three candidates by a label-free criterion, with both source spaces preserved."""

    name = "weave"
    distributed = True

    def fit(self, pairs: Pairs, settings: FitSettings, run: FitRun) -> dict[str, Projector]:
        """Woven heads of both spaces; with ``keep``, one bare head into the kept space and its identity.

        The trained candidate is trained on the device of the settings, everything else is computed on the CPU. In
        memory are the samples of ``rows`` and ``bank_rows``, a few copies of the first, and blocks.

        Raises
        ------
        RecipeError
            An option is out of range, or the options leave no candidate.
        FitError
            A space without a bank, too few joined rows, or vectors that are all the same.
        """
        options = _options(settings)
        data = weave_data(pairs, options.rows, options.bank_rows, settings.seed)
        kept = None if settings.keep is None else pairs.names.index(settings.keep)
        held = hold_out(data, settings.seed)
        part = data.part(held.fitted)
        candidates = []
        if options.steps:
            plan = TrainingPlan(options.steps, options.batch_size)
            candidates.append(trained(part, pairs, settings, plan, run))
        if not ranks_of(run).leads:
            return {}  # the rest is computed once
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
                side.name: bare(winner.cores[i], side) if i != kept else identity(side.dim)
                for i, side in enumerate(data.sides)
            }
        return {
            side.name: woven(winner.cores[i], data.sides, i, None if hubs is None else hubs[i], options.preserve)
            for i, side in enumerate(data.sides)
        }

    def untimed(self, settings: FitSettings) -> str:
        """What a dry run says of this method, which it neither counts nor times."""
        options = _options(settings)
        count = len(options.powers) + len(options.scales) * len(options.whitens)
        trained = f", and one is trained for about {options.steps:,} steps" if options.steps else ""
        return f"{count} candidates in closed form{trained}; their memory and time are not planned"


def _options(settings: FitSettings) -> WeaveOptions:
    """The options, which leave a candidate at least."""
    options = parse_options(WeaveOptions, settings, Weave.name)
    if not (options.steps or options.powers or (options.scales and options.whitens)):
        raise RecipeError(
            "the options of weave leave no candidate to choose",
            where="fit.options",
            todo="give steps, powers, or scales with whitens",
        )
    return options


def _whole(expert: Expert, data: WeaveData, options: WeaveOptions, seed: int, kept: int | None) -> Expert:
    """The chosen candidate, fitted on the held-out rows too where that costs no training."""
    if expert.name == "linear":
        return linear(data, **expert.settings, kept=kept)
    if expert.name == "anchors":
        return anchors(data, **expert.settings, count=options.anchors, seed=seed, kept=kept)
    return expert
