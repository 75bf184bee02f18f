"""Method ``ex-mcr``: "Extending Multi-modal Contrastive Representations", NeurIPS 2024 (arXiv 2310.08884).

One space (the base) is kept as it is; the other (the leaf) is led into it by a decoupled head. ``docs/method.md`` has
every equation, and says what is the paper's and what is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ...cache.errors import FitError, RecipeError
from ..batches import Batches, Indices
from ..device import DeviceRows, autocast, check_precision, resolve_device
from ..loop import train
from ..losses import info_nce, intra
from ..noise import perturb
from ..projectors import Decoupled, Projector, ProjectorSpec, build_projector, identity
from ..quadruples import CENTRES, Centre, Quadruples, centred_rows, overlap_rows, quadruples
from ..ranks import ALONE, Ranks
from .base import FitRun, Options, parse_options, ranks_of

if TYPE_CHECKING:
    from ..pairs import Pairs
    from ..settings import FitSettings

# One stream of noise for each vector of a quadruple.
_LEAF, _BASE, _LEAF_OTHER, _BASE_OTHER = range(4)


class ExMcrOptions(Options):
    """Options of ``ex-mcr``.

    Parameters
    ----------
    centres : list of str
        What the pseudo-quadruples start from: ``overlap``, ``leaf`` and ``base`` (the rows of that space's bank).
    """

    centres: tuple[Centre, ...] = Field(default=CENTRES, min_length=1)

    @field_validator("centres")
    @classmethod
    def _named_once(cls, value: tuple[Centre, ...]) -> tuple[Centre, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each centre once")
        return value


class ExMcr:
    """A decoupled head for one space, the identity for the other."""

    name = "ex-mcr"
    needs_completion = True
    distributed = True

    def fit(self, pairs: Pairs, settings: FitSettings, run: FitRun) -> dict[str, Projector]:
        """The trained head of the leaf and the identity of the base: ``keep``, or the second space of the recipe."""
        options = self._options(settings)
        leaf, base = leaf_and_base(pairs, settings)
        device = resolve_device(settings.device)
        check_precision(device, settings.precision)
        count = self.trained_rows(pairs, settings)
        batches = Batches(count, settings.batch_size, settings.seed)
        if batches.size < 2:
            raise FitError(f"{count} rows are too few to contrast", todo="give overlap caches that share more keys")
        ranks = ranks_of(run).sharing(batches.size)
        data = quadruples(pairs, leaf, base, settings, options.centres)
        objective = ExMcrObjective(pairs, settings, data, device, ranks)
        train(objective, batches, settings, run)
        return {name: head.cpu() for name, head in objective.heads.items()}

    def trained_rows(self, pairs: Pairs, settings: FitSettings) -> int:
        """Rows of an epoch."""
        counts = centred_rows(pairs, *leaf_and_base(pairs, settings), self._options(settings).centres)
        if not counts:
            raise RecipeError(
                "there is nothing to train on: every centre asked for is a bank that the recipe does not have",
                where="fit.options.centres",
                todo="add overlap to centres, or a bank to the recipe",
            )
        return sum(counts.values())

    def make_objective(self, pairs: Pairs, settings: FitSettings, device: torch.device) -> ExMcrObjective:
        """What is trained, at its beginning, on the rows centred on the overlap alone: steps cost the same."""
        self._options(settings)
        return ExMcrObjective(pairs, settings, overlap_rows(pairs, *leaf_and_base(pairs, settings)), device)

    def _options(self, settings: FitSettings) -> ExMcrOptions:
        if settings.projector != "mlp":
            raise RecipeError(
                f"ex-mcr has a head of its own and takes no projector {settings.projector!r}",
                where="fit.projector",
                todo="leave projector out; hidden sets the width of its MLPs",
            )
        return parse_options(ExMcrOptions, settings, self.name)


def leaf_and_base(pairs: Pairs, settings: FitSettings) -> tuple[str, str]:
    """Names of the space that is led and of the one that is kept."""
    first, second = pairs.names
    return (second, first) if settings.keep == first else (first, second)


def make_head(pairs: Pairs, settings: FitSettings) -> Decoupled:
    """The untrained head of the leaf; its weights come from the seed alone, torch's own state stays untouched."""
    leaf, base = leaf_and_base(pairs, settings)
    spec = ProjectorSpec("decoupled", pairs.overlap[leaf].dim, pairs.overlap[base].dim, hidden=settings.hidden)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = build_projector(spec)
        assert isinstance(head, Decoupled)
        for parameter in (*head.mlp1.parameters(), *head.mlp2.parameters()):
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)  # as the official class does
    return head


class ExMcrObjective:
    """The loss of Ex-MCR as a function of (rows, step, weights).

    Parameters
    ----------
    pairs : Pairs
    settings : FitSettings
    data : Quadruples
        The rows that numbers stand for.
    device : torch.device
    ranks : Ranks
        Among whom each batch is shared.
    """

    def __init__(
        self, pairs: Pairs, settings: FitSettings, data: Quadruples, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        self.ranks = ranks
        self.pairs, self.settings, self.data, self.device = pairs, settings, data, device
        self.leaf, self.base = leaf_and_base(pairs, settings)
        head = make_head(pairs, settings)
        self.heads: dict[str, Projector] = {self.leaf: head, self.base: identity(pairs.overlap[self.base].dim)}
        self.model: nn.Module = nn.ModuleDict({self.leaf: head}).to(device)
        self._head = head
        streams = {_LEAF: data.leaf, _BASE: data.base, _LEAF_OTHER: data.leaf_other, _BASE_OTHER: data.base_other}
        self._sources = {stream: source for stream, source in streams.items() if source is not None}
        resident = device.type != "cpu" and DeviceRows.bytes_of(self._sources.values()) <= settings.memory_bytes()
        self._rows = {s: DeviceRows(source, device, resident=resident) for s, source in self._sources.items()}

    def loss(self, rows: Indices, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Equation 13 of docs/method.md on one batch, and its parts; ``rows`` are those of this process."""
        numbers = torch.from_numpy(rows).to(self.device)
        seen = {stream: self._perturbed(rows, numbers, step, stream) for stream in self._rows}  # (B, D) each
        leaf, near = self._project([seen[stream] for stream in (_LEAF, _LEAF_OTHER) if stream in seen])
        # equation 12: every vector of the leaf meets every vector of the base
        named = {"overlap": (leaf[0], _BASE, self.settings.tau2)}
        if _BASE_OTHER in seen:
            named["overlap_other"] = (leaf[0], _BASE_OTHER, self.settings.tau3)
        if len(leaf) > 1:
            named["other_overlap"] = (leaf[1], _BASE, self.settings.tau3)
        if len(leaf) > 1 and _BASE_OTHER in seen:
            named["completed"] = (leaf[1], _BASE_OTHER, self.settings.tau3)
        parts = {
            name: info_nce(projected, seen[stream], tau, chunk=self.settings.chunk, ranks=self.ranks)
            for name, (projected, stream, tau) in named.items()
        }
        total = torch.stack(list(parts.values())).mean()
        if len(near) > 1:
            parts["intra"] = intra(near[0], near[1], self.settings.intra, self.ranks)  # equation 11
            total = total + self.settings.lambda_intra * parts["intra"]  # equation 13
        return total, parts

    def _perturbed(self, rows: Indices, numbers: Tensor, step: int, stream: int) -> Tensor:
        vectors = self._rows[stream](rows)  # (B, D)
        if self.settings.renormalise_completed:
            vectors = F.normalize(vectors, dim=1)
        std = self.settings.noise_std(vectors.shape[1])
        return perturb(numbers, vectors, std, seed=self.settings.seed, step=step, stream=stream)

    def _project(self, vectors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Unit rows in the base space and after f_l, of both modalities of the leaf, as one batch or as two."""
        with autocast(self.device, self.settings.precision):
            if self.settings.bn_pass == "separate":
                near = [self._head.intra(rows) for rows in vectors]
                far = [self._head.inter(rows) for rows in near]
            else:
                together = self._head.intra(torch.cat(vectors))  # (2B, D_in)
                near = list(together.chunk(len(vectors)))
                far = list(self._head.inter(together).chunk(len(vectors)))  # (B, D) each
        return [_unit(rows) for rows in far], [_unit(rows) for rows in near]

    def bad_rows(self, rows: Indices) -> str | None:
        """The first row whose stored vectors are zero or not finite."""
        names = {_LEAF: self.leaf, _LEAF_OTHER: self.leaf, _BASE: self.base, _BASE_OTHER: self.base}
        for stream, source in self._sources.items():
            vectors = torch.from_numpy(source.rows(rows))
            bad = torch.nonzero(~(torch.isfinite(vectors).all(dim=1) & (vectors.abs().sum(dim=1) > 0)))[:, 0]
            if len(bad):
                first = self.keys(rows[bad[:1].numpy()])[0]
                return f"the vectors of {names[stream]} have {len(bad)} such rows, the first is {first!r}"
        return None

    def keys(self, rows: Indices) -> list[str]:
        """Keys of rows of the overlap; rows centred on a bank by its name and their number there."""
        names, start = [], 0
        spaces = {"leaf": self.leaf, "base": self.base}
        for centre, count in self.data.parts:
            mine = [int(row) - start for row in rows if start <= row < start + count]
            if centre == "overlap":
                names += self.pairs.keys(mine) if mine else []
            else:
                names += [f"row {row} of the bank of {spaces[centre]}" for row in mine]
            start += count
        return names


def _unit(rows: Tensor) -> Tensor:
    """Unit rows, at least float32."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
