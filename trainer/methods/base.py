"""What a method is, and what the training-free ones share: options, centring, streamed moments of the overlap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from ...cache.errors import FitError, RecipeError
from ..projectors import Projector
from ..ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..checkpoint import Checkpoint
    from ..early_stop import EarlyStop
    from ..pairs import Pairs
    from ..settings import FitSettings

Centre = Literal["none", "overlap", "banks"]
Floats = npt.NDArray[np.float64]
_BLOCK = 8192


class FitRun(Protocol):
    """What a run offers to a method.

    Two members more are optional: ``validator``, which :func:`cmcr.trainer.loop.train` scores the heads with, and
    ``ranks``, the processes that train together (:func:`ranks_of`).
    """

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        ...

    def resume(self) -> Checkpoint | None:
        """The checkpoint to go on from; None at the start."""
        ...

    def save(
        self, step: int, model: nn.Module, optimiser: torch.optim.Optimizer, early: EarlyStop | None = None
    ) -> None:
        """Replace the checkpoint by the state after ``step`` steps."""
        ...

    def advance(self, done: int, total: int, record: Mapping[str, Any]) -> None:
        """Say how far the fit is, for a progress bar; ``record`` is the newest line of the metrics."""
        ...

    def chose(self, **values: Any) -> None:
        """Put what the method chose by itself, such as a cross-validated penalty, into the connector's record."""
        ...


@runtime_checkable
class Method(Protocol):
    """A way to make a connector from cached vectors. Any object with these members is a method.

    Four members more are optional. ``needs_completion = True`` asks for the completion of each overlap from its bank
    before ``fit``, which fills ``pairs.completed``; without it nothing is completed. ``seeded = False`` says that the
    seed decides nothing, or only which rows are sampled, so that ``cmcr compare`` fits the method once.
    ``untimed(settings)`` says in words what a dry run neither counts nor times. ``distributed = True`` says that under
    torchrun every process is to call ``fit``, whose objective shares its batches by ``run.ranks``; only what the first
    process returns is kept. Without it ``fit`` is called on the first process alone, and the others wait.
    """

    name: str

    def fit(self, pairs: Pairs, settings: FitSettings, run: FitRun) -> dict[str, Projector]:
        """One head for each of the two space names of ``pairs``, all into one shared space."""
        ...


def wants_completion(method: Method) -> bool:
    """Whether a method asks for completed rows."""
    return bool(getattr(method, "needs_completion", False))


def is_seeded(method: Method) -> bool:
    """Whether fits with different seeds are worth comparing."""
    return bool(getattr(method, "seeded", True))


def is_distributed(method: Method) -> bool:
    """Whether a method is called on every process of a fit."""
    return bool(getattr(method, "distributed", False))


def ranks_of(run: FitRun) -> Ranks:
    """The processes that train together in a run; one alone where it does not say."""
    ranks: Ranks = getattr(run, "ranks", ALONE)
    return ranks


class Options(BaseModel):
    """Base of a method's own options: the table ``[fit.options]`` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CentredOptions(Options):
    """Options of the baselines that can centre.

    Parameters
    ----------
    centre : str
        ``none``; ``overlap``: each space minus the mean of its overlap; ``banks``: fitted on the overlap minus its
        mean, applied to vectors minus the mean of the space's bank (of its overlap where it has no bank). With banks
        each *modality* is centred by a mean of its own, which takes out the gap between the modalities of a space.
    """

    centre: Centre = "banks"


AnyOptions = TypeVar("AnyOptions", bound=Options)


def parse_options(kind: type[AnyOptions], settings: FitSettings, method: str) -> AnyOptions:
    """The options of a method from ``settings.options``; or a RecipeError."""
    try:
        return kind.model_validate(dict(settings.options))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(sorted(kind.model_fields)) or "none"
        raise RecipeError(
            f"option {name!r} of the method {method!r}: {first['msg']}",
            where=f"fit.options.{name}",
            todo=f"options of {method}: {known}",
        ) from None


AnyCentred = TypeVar("AnyCentred", bound=CentredOptions)


def towards_kept(pairs: Pairs, settings: FitSettings, options: AnyCentred) -> tuple[Pairs, AnyCentred]:
    """The pairs with the space that is kept as the second one, which the first is mapped into.

    A kept space loses no mean either, so ``centre`` is ``none`` then unless the recipe says otherwise.

    Raises
    ------
    RecipeError
        The recipe asks for a centring beside ``keep``.
    """
    if settings.keep is None:
        return pairs, options
    if "centre" in settings.options and options.centre != "none":
        raise RecipeError(
            f"centre = {options.centre!r} subtracts a mean from {settings.keep!r}, which is to be kept as it is",
            where="fit.options.centre",
            todo='drop keep, or set centre = "none"',
        )
    first, second = pairs.names
    order = (second, first) if settings.keep == first else (first, second)
    return replace(pairs, names=order), options.model_copy(update={"centre": "none"})


def blocks(pairs: Pairs, size: int = _BLOCK) -> Iterator[tuple[Floats, Floats]]:
    """Row-aligned blocks of the overlap, (B, D1) and (B, D2) float64, in order."""
    first, second = (pairs.overlap[name] for name in pairs.names)
    for start in range(0, pairs.N, size):
        rows = np.arange(start, min(start + size, pairs.N))
        yield first.rows(rows).astype(np.float64), second.rows(rows).astype(np.float64)


@dataclass(frozen=True)
class Moments:
    """Sums over the overlap in float64: ``xx`` (D1, D1), ``xy`` (D1, D2); means ``x`` (D1,) and ``y`` (D2,); count."""

    xx: Floats
    xy: Floats
    x: Floats
    y: Floats
    count: int

    def centred(self) -> Moments:
        """The sums that rows minus their means would have given."""
        xx = self.xx - self.count * np.outer(self.x, self.x)
        xy = self.xy - self.count * np.outer(self.x, self.y)
        return Moments(xx, xy, np.zeros_like(self.x), np.zeros_like(self.y), self.count)


def moments(pairs: Pairs) -> Moments:
    """Sums of products over the overlap of the two spaces."""
    first, second = (pairs.overlap[name].dim for name in pairs.names)
    xx, xy = np.zeros((first, first)), np.zeros((first, second))
    x, y = np.zeros(first), np.zeros(second)
    for a, b in blocks(pairs):
        xx += a.T @ a
        xy += a.T @ b
        x += a.sum(0)
        y += b.sum(0)
    if pairs.N == 0:
        raise FitError("the overlap is empty", todo="give two caches of the same corpus as overlap")
    return Moments(xx, xy, x / pairs.N, y / pairs.N, pairs.N)


def use_mean(pairs: Pairs, name: str, overlap_mean: Floats, centre: Centre) -> Floats | None:
    """The mean that a head subtracts: (D,) of the bank, or of the overlap where asked for or where there is no bank."""
    if centre == "none":
        return None
    bank = pairs.bank[name] if centre == "banks" else None
    if bank is None:
        return overlap_mean
    total = np.zeros(bank.dim)
    for block in bank.blocks():
        total += block.sum(0, dtype=np.float64)
    return total / len(bank)
