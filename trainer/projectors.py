"""Projectors (heads): one network from one space into the shared one.

Every kind takes float32 rows (B, D_in) and gives rows (B, D_out) not normalised; the connector normalises them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .projector_spec import KINDS as KINDS
from .projector_spec import ProjectorKind as ProjectorKind
from .projector_spec import ProjectorSpec as ProjectorSpec

# Scores held at once by a bridge: 2^24 float32 are 64 MB.
_BRIDGE_SCORES = 1 << 24


class Projector(nn.Module):
    """One head: (B, D_in) -> (B, D_out), not normalised. ``spec`` says which kind it is."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """The identity head: rows go through as they are."""
        return x  # (B, D_in)


class Affine(Projector):
    """``(x - mean) @ matrix.T + bias``; each of the three is optional."""

    mean: Tensor | None

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__(spec)
        self.register_buffer("mean", torch.zeros(spec.dim_in) if spec.centred else None)
        self.weight = nn.Parameter(torch.empty(spec.dim_out, spec.dim_in)) if spec.matrix else None
        self.bias = nn.Parameter(torch.zeros(spec.dim_out)) if spec.bias else None
        if self.weight is not None and not self.weight.is_meta:
            nn.init.orthogonal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (B, D_in) to rows (B, D_out)."""
        if self.mean is not None:
            x = x - self.mean  # (B, D_in)
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)  # (B, D_out)
        return x if self.bias is None else x + self.bias


class Half(Projector):
    """``Linear BN ReLU``, the projector of the published ULIP-CLIP checkpoint (arXiv 2305.14381)."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__(spec)
        self.linear1 = nn.Linear(spec.dim_in, spec.dim_out, bias=spec.bias)
        self.bn1 = nn.BatchNorm1d(spec.dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (B, D_in) to rows (B, D_out)."""
        return F.relu(self.bn1(self.linear1(x)))


class Mlp(Projector):
    """``Linear BN ReLU Linear BN``, the projector of CLAP-CLIP (arXiv 2305.14381), with the paper's defaults."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__(spec)
        hidden = int(spec.hidden or 0)  # set by ProjectorSpec
        self.linear1 = nn.Linear(spec.dim_in, hidden, bias=spec.bias)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.linear2 = nn.Linear(hidden, spec.dim_out, bias=spec.bias)
        self.bn2 = nn.BatchNorm1d(spec.dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (B, D_in) to rows (B, D_out)."""
        x = F.relu(self.bn1(self.linear1(x)))  # (B, hidden)
        out: Tensor = self.bn2(self.linear2(x))
        return out  # (B, D_out)


class Decoupled(Projector):
    """The head of Ex-MCR (arXiv 2310.08884, "decoupled projector"): f_m(f_l(x)).

    f_l is one linear layer: it brings the two modalities of the space together (intra-MCR) and starts as the identity.
    f_m, two MLPs ``Linear BN ReLU Linear BN`` one after the other, leads into the kept space (inter-MCR). Both serve
    every modality of the space, in this order, as in the official forward pass (``Head1``, then ``Head2``).
    """

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__(spec)
        self.linear = nn.Linear(spec.dim_in, spec.dim_in)
        self.mlp1 = Mlp(replace(spec, kind="mlp"))
        self.mlp2 = Mlp(replace(spec, kind="mlp", dim_in=spec.dim_out))
        if not self.linear.weight.is_meta:
            nn.init.eye_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def intra(self, x: Tensor) -> Tensor:
        """f_l: rows (B, D_in) to rows (B, D_in) where both modalities of the space meet."""
        rows: Tensor = self.linear(x)
        return rows

    def inter(self, rows: Tensor) -> Tensor:
        """f_m: what :meth:`intra` gives (B, D_in) to rows (B, D_out) of the kept space."""
        out: Tensor = self.mlp2(self.mlp1(rows))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Rows (B, D_in) to rows (B, D_out)."""
        return self.inter(self.intra(x))


class Bridge(Projector):
    """Softmax over the overlap in one space, weighted sum of the same items in the other; nothing is trained.

    ``keys`` (M, D_in) and ``values`` (M, D_out) are row-aligned. With a ``mean`` the input is ``normalize(x - mean)``.
    """

    keys: Tensor
    values: Tensor
    mean: Tensor | None

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__(spec)
        self.register_buffer("keys", torch.zeros(spec.rows, spec.dim_in))
        self.register_buffer("values", torch.zeros(spec.rows, spec.dim_out))
        self.register_buffer("mean", torch.zeros(spec.dim_in) if spec.centred else None)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (B, D_in) to rows (B, D_out), in blocks whose scores (B, M) take 64 MB or are one row."""
        if self.mean is not None:
            x = F.normalize(x - self.mean, dim=1)
        block = max(1, _BRIDGE_SCORES // self.spec.rows)
        parts = []
        for rows in torch.split(x, block):
            scores = self.spec.scale * (rows @ self.keys.T)  # (block, M)
            parts.append(torch.softmax(scores, dim=1) @ self.values)
        return torch.cat(parts) if parts else x.new_zeros(0, self.spec.dim_out)  # (B, D_out)


class Woven(Projector):
    """The head of ``weave``: [shared part, hubness, private parts], of unit length by construction.

    ``docs/method.md`` 10 has the equations. Of two heads with sides 0 and 1, cosines across the spaces are
    ``SHARE`` times the hubness-corrected similarity of the shared parts; cosines within a space are, for the larger
    part, those of the source vectors, which stand beside the shared part unchanged.
    """

    means: Tensor
    hubs: Tensor | None
    SHARE = 0.25
    NEIGHBOURS = 10

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__(spec)
        assert spec.core is not None  # held by ProjectorSpec
        self.core = build_projector(spec.core)
        self.register_buffer("means", torch.zeros(spec.means, spec.dim_in))
        self.register_buffer("hubs", torch.zeros(spec.hubs, spec.core.dim_out) if spec.hubs else None)

    def shared(self, x: Tensor) -> Tensor:
        """Unit rows (B, d) of the core, from unit rows (B, D_in) minus the nearest of the stored means."""
        # |x - m|^2 without |x|^2, which is the same for every mean
        nearest = (self.means.square().sum(dim=1) - 2 * (x @ self.means.T)).argmin(dim=1)  # (B,)
        return F.normalize(self.core(F.normalize(x - self.means[nearest], dim=1)), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Unit rows (B, D_in) to unit rows (B, D_out); a bare head sends a vector that equals its mean to zero."""
        parts = [self.shared(x)]
        if self.spec.bare:
            return parts[0]
        if self.hubs is not None:
            near = (parts[0] @ self.hubs.T).topk(min(self.NEIGHBOURS, len(self.hubs)), dim=1).values  # (B, k)
            penalty, one = -0.5 * near.mean(dim=1, keepdim=True), x.new_ones(x.shape[0], 1)
            parts += [one, penalty] if self.spec.side == 0 else [penalty, one]  # z1 . z2 = g1 . g2 - h1/2 - h2/2
        z = self.SHARE**0.5 * torch.cat(parts, dim=1)  # (B, d)
        rest = (1 - z.square().sum(dim=1, keepdim=True)).clamp_min(0).sqrt()  # |z|^2 is at most 2.25 SHARE
        own = rest * x if self.spec.other else rest
        blank = x.new_zeros(x.shape[0], self.spec.other or 1)
        return torch.cat([z, own, blank] if self.spec.side == 0 else [z, blank, own], dim=1)


_CLASSES: dict[str, type[Projector]] = {
    "identity": Projector,
    "affine": Affine,
    "half": Half,
    "mlp": Mlp,
    "decoupled": Decoupled,
    "bridge": Bridge,
    "woven": Woven,
}


def build_projector(spec: ProjectorSpec) -> Projector:
    """A projector of that description, with fresh weights from torch's global generator."""
    return _CLASSES[spec.kind](spec)


def identity(dim: int) -> Projector:
    """The head of a space that is kept as it is."""
    return build_projector(ProjectorSpec("identity", dim, dim))


def affine(matrix: Tensor | None, mean: Tensor | None, dim: int) -> Projector:
    """A fitted affine head from matrix (D_out, D_in) and centring mean (D_in,); identity without both."""
    if matrix is None and mean is None:
        return identity(dim)
    dim_out = dim if matrix is None else matrix.shape[0]
    head = build_projector(ProjectorSpec("affine", dim, dim_out, centred=mean is not None, matrix=matrix is not None))
    state = {"weight": matrix, "mean": mean}
    head.load_state_dict({name: value.float() for name, value in state.items() if value is not None})
    return head


def bridge(keys: Tensor, values: Tensor, mean: Tensor | None, scale: float) -> Projector:
    """A bridge head over keys (M, D_in), values (M, D_out) and an optional centring mean (D_in,)."""
    spec = ProjectorSpec(
        "bridge", keys.shape[1], values.shape[1], rows=keys.shape[0], scale=scale, centred=mean is not None
    )
    head = build_projector(spec)
    state = {"keys": keys, "values": values} | ({} if mean is None else {"mean": mean})
    head.load_state_dict({name: value.float() for name, value in state.items()})
    return head
