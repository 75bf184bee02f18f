"""Early stopping: a look at a validation pair now and then, and the best weights seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cache.errors import CmcrError, RecipeError
from ..cache.reader import Cache, open_cache
from .hooks import relevance_reader
from .metrics import retrieval_metrics
from .ranking import Relevance

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .pairs import Pairs
    from .recipe import Recipe

Vectors = npt.NDArray[np.float32]
_BLOCK = 8192


@dataclass
class EarlyStop:
    """What the looks have found so far; in the checkpoint, so that a resumed fit stops where an undisturbed one does.

    Parameters
    ----------
    score, step : float, int
        The best score, and the steps done when it was seen. Of equal scores the first counts.
    stale : int
        Looks since then.
    weights : mapping of name to tensor
        The model at that step, on the CPU.
    """

    score: float = float("-inf")
    step: int = 0
    stale: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def resumed(cls, checkpoint: Checkpoint | None) -> EarlyStop:
        """The state that a checkpoint holds, or a fresh one."""
        if checkpoint is None or not checkpoint.looks:
            return cls()
        looks = checkpoint.looks
        return cls(looks["score"], int(looks["step"]), int(looks["stale"]), dict(checkpoint.best))

    def numbers(self) -> dict[str, float]:
        """The state without its weights; empty before the first look."""
        return {"score": self.score, "step": self.step, "stale": self.stale} if self.weights else {}

    def look(self, step: int, score: float, model: nn.Module) -> None:
        """Take the score after ``step`` steps into account."""
        if score > self.score or not self.weights:
            self.score, self.step, self.stale = score, step, 0
            self.weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        else:
            self.stale += 1

    def over(self, patience: int | None) -> bool:
        """Whether ``patience`` looks in a row found nothing better."""
        return patience is not None and self.stale >= patience


@dataclass(frozen=True)
class Validator:
    """Scores heads on a validation pair: mean average precision, the mean of both directions.

    Parameters
    ----------
    query, gallery : (str, array (N, D) float32)
        Name of the head, and the vectors that it takes.
    relevance : Relevance
    """

    query: tuple[str, Vectors]
    gallery: tuple[str, Vectors]
    relevance: Relevance

    def __call__(self, heads: Mapping[str, nn.Module], device: torch.device) -> float:
        """The score of heads by space name, between 0 and 1; they are in training mode again afterwards as before."""
        queries, gallery = (_projected(heads[name], vectors, device) for name, vectors in (self.query, self.gallery))
        there = retrieval_metrics(queries, gallery, self.relevance, device=str(device))
        back = retrieval_metrics(gallery, queries, self.relevance.transposed(), device=str(device))
        return 0.5 * (there.mean_average_precision + back.mean_average_precision)


def make_validator(recipe: Recipe, pairs: Pairs) -> Validator | None:
    """The validator of a recipe; None where it has no ``[validation]``.

    Raises
    ------
    RecipeError
        A cache is empty or of no space of the recipe, or nothing in it is relevant.
    """
    plan = recipe.validation
    if plan is None:
        return None
    sides = {"query": open_cache(recipe.path(plan.query)), "gallery": open_cache(recipe.path(plan.gallery))}
    heads = {role: _head_for(role, cache, pairs) for role, cache in sides.items()}
    read = relevance_reader()
    if read is None:
        raise RecipeError("nothing that reads relevance is registered", where="validation", todo="import cmcr first")
    file = None if plan.pairs is None else recipe.path(plan.pairs)
    try:
        relevance = read(sides["query"], sides["gallery"], pairs=file, label=plan.label)
    except CmcrError as error:
        raise RecipeError(error.what, where=f"validation: {error.where}", todo=error.todo) from error
    query, gallery = ((heads[role], cache.read(0, len(cache))) for role, cache in sides.items())
    return Validator(query, gallery, relevance)


def _head_for(role: str, cache: Cache, pairs: Pairs) -> str:
    """Name of the space of a cache."""
    where = f"validation: {cache.path}"
    if not len(cache):
        raise RecipeError(f"{role}: the cache has no rows", where=where, todo="encode a corpus into it")
    for name in pairs.names:
        if pairs.overlap[name].cache.manifest.space_id == cache.manifest.space_id:
            return name
    raise RecipeError(
        f"{role}: the cache is in the space {cache.manifest.space_name!r}, which this recipe does not connect",
        where=where,
        todo=f"name a cache of one of: {', '.join(pairs.names)}",
    )


def _projected(head: nn.Module, vectors: Vectors, device: torch.device) -> Vectors:
    """Unit rows of the shared space (N, D), with the head as it is at inference."""
    training = head.training
    head.eval()
    try:
        with torch.inference_mode():
            blocks = [torch.from_numpy(vectors[at : at + _BLOCK]).to(device) for at in range(0, len(vectors), _BLOCK)]
            rows: Vectors = torch.cat([F.normalize(head(block).float(), dim=1) for block in blocks]).cpu().numpy()
            return rows
    finally:
        head.train(training)
