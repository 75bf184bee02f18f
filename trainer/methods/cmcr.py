"""Method ``c-mcr``: Wang et al., "Connecting Multi-modal Contrastive Representations", NeurIPS 2023 (arXiv 2305.14381).

Two projectors are trained on the overlapping modality and on its completions from the memory banks.
``docs/method.md`` states every equation and every switch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...cache.errors import FitError, RecipeError
from ..batches import Batches, Indices
from ..device import DeviceRows, autocast, check_precision, resolve_device
from ..loop import train
from ..losses import LossWeights, cmcr_loss
from ..noise import perturb
from ..projectors import Projector, ProjectorSpec, build_projector
from ..ranks import ALONE, Ranks
from .base import FitRun, Options, parse_options, ranks_of

if TYPE_CHECKING:
    from ..pairs import Pairs
    from ..settings import FitSettings, HeadKind

Rows = Callable[[Indices], Tensor]

# One stream of noise for each of t1, t2, x1, x2: the four perturbations are independent.
_OVERLAP_STREAM, _COMPLETED_STREAM = 0, 2


class Cmcr:
    """Contrastive projectors on overlap and completed rows."""

    name = "c-mcr"
    needs_completion = True
    distributed = True

    def fit(self, pairs: Pairs, settings: FitSettings, run: FitRun) -> dict[str, Projector]:
        """One trained projector for each space, into a space of ``out_dim``."""
        parse_options(Options, settings, self.name)  # it has none: whatever is there is a mistake
        batches = Batches(pairs.N, settings.batch_size, settings.seed)
        if batches.size < 2:
            raise FitError(
                f"{pairs.N} joined rows are too few to contrast", todo="give overlap caches that share more keys"
            )
        device = resolve_device(settings.device)
        check_precision(device, settings.precision)
        ranks = ranks_of(run).sharing(batches.size)
        objective = self.make_objective(pairs, settings, device, ranks)
        train(objective, batches, settings, run)
        return {name: head.cpu() for name, head in objective.heads.items()}

    def make_objective(
        self, pairs: Pairs, settings: FitSettings, device: torch.device, ranks: Ranks = ALONE
    ) -> CmcrObjective:
        """What is trained, at its beginning."""
        return CmcrObjective(pairs, settings, make_heads(pairs, settings), device, ranks)


def make_heads(pairs: Pairs, settings: FitSettings) -> dict[str, Projector]:
    """Untrained projectors; their weights come from the seed alone, torch's own state stays untouched.

    Raises
    ------
    RecipeError
        An identity head is asked for in a space that is not as wide as the shared one.
    """
    kinds: dict[HeadKind, dict[str, Any]] = {
        "mlp": {"kind": "mlp", "hidden": settings.hidden},
        "half": {"kind": "half"},
        "linear": {"kind": "affine", "bias": True},
        "identity": {"kind": "identity"},
    }
    dims = {name: pairs.overlap[name].dim for name in pairs.names}
    shared = settings.shared_dim(dims)
    for name, dim in dims.items():
        if settings.head_kind(name) == "identity" and dim != shared:
            raise RecipeError(
                f"the head of {name!r} is the identity; it has {dim} dimensions and the shared space has {shared}",
                where="fit.projector",
                todo=f'set out_dim = {dim}, or keep = "{name}" alone',
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return {
            name: build_projector(ProjectorSpec(dim_in=dim, dim_out=shared, **kinds[settings.head_kind(name)]))
            for name, dim in dims.items()
        }


class CmcrObjective:
    """The loss of C-MCR as a function of (rows, step, weights).

    Parameters
    ----------
    pairs : Pairs
        Overlap and completed rows of two spaces.
    settings : FitSettings
    heads : mapping of space name to projector
        Trained in place; moved to ``device``.
    device : torch.device
    ranks : Ranks
        Among whom each batch is shared.
    """

    def __init__(
        self,
        pairs: Pairs,
        settings: FitSettings,
        heads: Mapping[str, Projector],
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.pairs = pairs
        self.ranks = ranks
        self.settings = settings
        self.heads = dict(heads)
        self.device = device
        self.model: nn.Module = nn.ModuleDict({name: heads[name] for name in pairs.names}).to(device)
        sources = [*pairs.overlap.values(), *(source for source in pairs.completed.values() if source is not None)]
        resident = device.type != "cpu" and DeviceRows.bytes_of(sources) <= settings.memory_bytes()
        self._overlap = [DeviceRows(pairs.overlap[name], device, resident=resident) for name in pairs.names]
        self._completed = [
            None if source is None else DeviceRows(source, device, resident=resident)
            for source in (pairs.completed[name] for name in pairs.names)
        ]
        self._weights = LossWeights(settings.tau2, settings.tau3, settings.lambda_intra, settings.intra, settings.chunk)

    def loss(self, rows: Indices, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Equation 7 of docs/method.md on one batch, and its parts; ``rows`` are those of this process."""
        numbers = torch.from_numpy(rows).to(self.device)
        overlap: list[Tensor] = []
        completed: list[Tensor | None] = []
        for index, name in enumerate(self.pairs.names):
            t = self._perturbed(self._overlap[index](rows), numbers, step, _OVERLAP_STREAM + index)  # (B, D)
            source = self._completed[index]
            x = None if source is None else source(rows)  # (B, D)
            if x is not None:
                x = F.normalize(x, dim=1) if self.settings.renormalise_completed else x
                x = self._perturbed(x, numbers, step, _COMPLETED_STREAM + index)
            t_hat, x_hat = self._project(name, t, x)
            overlap.append(t_hat)
            completed.append(x_hat)
        return cmcr_loss((overlap[0], overlap[1]), (completed[0], completed[1]), self._weights, self.ranks)

    def _perturbed(self, vectors: Tensor, numbers: Tensor, step: int, stream: int) -> Tensor:
        std = self.settings.noise_std(vectors.shape[1])
        return perturb(numbers, vectors, std, seed=self.settings.seed, step=step, stream=stream)  # (B, D)

    def _project(self, name: str, t: Tensor, x: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """f_s of the overlap and the completed rows, as one batch or as two: batch norm sees the difference."""
        head = self.model[name]  # type: ignore[index]
        with autocast(self.device, self.settings.precision):
            if x is None:
                return head(t), None
            if self.settings.bn_pass == "separate":
                return head(t), head(x)
            both = head(torch.cat([t, x]))  # (2B, out_dim)
        return both[: len(t)], both[len(t) :]

    def bad_rows(self, rows: Indices) -> str | None:
        """Keys of rows whose stored vectors are zero or not finite."""
        named = [(f"the overlap of {n}", s) for n, s in self.pairs.overlap.items()]
        named += [(f"the completed rows of {n}", s) for n, s in self.pairs.completed.items() if s is not None]
        for what, source in named:
            vectors = torch.from_numpy(source.rows(rows))
            bad = torch.nonzero(~(torch.isfinite(vectors).all(dim=1) & (vectors.abs().sum(dim=1) > 0)))[:, 0]
            if len(bad):
                return (
                    f"{what} has {len(bad)} such rows, the first with the key {self.keys(rows[bad[:1].numpy()])[0]!r}"
                )
        return None

    def keys(self, rows: Indices) -> list[str]:
        """Keys of joined rows."""
        return self.pairs.keys(rows)
