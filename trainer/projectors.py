"""Projectors (heads): one network from one space into the shared one.

Every kind takes float32 rows (B, D_in) and gives rows (B, D_out) not normalised; the connector normalises them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cache.errors import ConnectorError

ProjectorKind = Literal["identity", "affine", "half", "mlp", "bridge"]
KINDS: tuple[ProjectorKind, ...] = get_args(ProjectorKind)

_LARGEST = 1 << 31
# Scores held at once by a bridge: 2^24 float32 are 64 MB.
_BRIDGE_SCORES = 1 << 24


@dataclass(frozen=True)
class ProjectorSpec:
    """What a projector is, without its weights; JSON-able.

    Parameters
    ----------
    kind : str
        ``identity``; ``affine`` (optional centring mean, optional matrix, optional bias); ``half`` ("Linear BN ReLU");
        ``mlp`` ("Linear BN ReLU Linear BN"); ``bridge`` (softmax over keys, weighted sum of values).
    dim_in, dim_out : int
        Dimensions of the space and of the shared space. Equal for ``identity`` and for ``affine`` without matrix.
    hidden : int, optional
        Width of the hidden layer of ``mlp``; ``2 * dim_in`` where None, which is the paper's 1024 for 512.
    bias : bool
        The linear layers have a bias. Ours have none where a batch norm follows; imported ones may.
    centred : bool
        ``affine`` and ``bridge``: a stored mean is subtracted from the input first. A bridge then normalises
        again, because its scale is meant for cosines.
    matrix : bool
        ``affine``: a stored matrix (dim_out, dim_in) is applied.
    rows : int
        ``bridge``: number of keys.
    scale : float
        ``bridge``: the softmax takes ``scale`` times the cosine; 30 is a temperature of 1/30.
    """

    kind: ProjectorKind
    dim_in: int
    dim_out: int
    hidden: int | None = None
    bias: bool = False
    centred: bool = False
    matrix: bool = True
    rows: int = 0
    scale: float = 30.0

    def __post_init__(self) -> None:
        if self.kind == "mlp" and self.hidden is None and _is_count(self.dim_in):
            object.__setattr__(self, "hidden", 2 * self.dim_in)
        problem = _problem(self)
        if problem:
            raise ConnectorError(
                f"the description of a projector is not valid: {problem}",
                where=f"kind {self.kind!r}",
                todo="take the connector from its source again, or fit it again",
            )

    def to_json(self) -> dict[str, Any]:
        """Fields that this kind uses, for ``config.json``."""
        record = asdict(self)
        return {name: record[name] for name in ("kind", "dim_in", "dim_out", *_USES[self.kind])}

    @classmethod
    def from_json(cls, record: Any) -> ProjectorSpec:
        """The inverse of :meth:`to_json`; raises :class:`ConnectorError` for anything that is not valid."""
        known = {field.name for field in fields(cls)}
        if not isinstance(record, dict) or not {"kind", "dim_in", "dim_out"} <= set(record) <= known:
            raise ConnectorError(
                "the description of a projector must have kind, dim_in and dim_out, and no field but "
                + ", ".join(sorted(known)),
                where=repr(record)[:200],
                todo="take the connector from its source again, or read it with a newer cmcr",
            )
        return cls(**record)


_USES: dict[str, tuple[str, ...]] = {
    "identity": (),
    "affine": ("bias", "centred", "matrix"),
    "half": ("bias",),
    "mlp": ("hidden", "bias"),
    "bridge": ("centred", "rows", "scale"),
}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LARGEST


def _problem(spec: ProjectorSpec) -> str | None:
    """The first thing wrong with a spec, in words, or None. Values come from files, so types are checked too."""
    if spec.kind not in KINDS:
        return f"unknown kind {spec.kind!r}; known are {', '.join(KINDS)}"
    for name in ("dim_in", "dim_out"):
        if not _is_count(getattr(spec, name)):
            return f"{name} is {getattr(spec, name)!r}, not a positive number"
    for name in ("bias", "centred", "matrix"):
        if not isinstance(getattr(spec, name), bool):
            return f"{name} is {getattr(spec, name)!r}, not true or false"
    if spec.hidden is not None and not _is_count(spec.hidden):
        return f"hidden is {spec.hidden!r}, not a positive number"
    keeps_dim = spec.kind == "identity" or (spec.kind == "affine" and not spec.matrix)
    if keeps_dim and spec.dim_in != spec.dim_out:
        return f"a head without a matrix cannot take {spec.dim_in} dimensions to {spec.dim_out}"
    if spec.kind == "bridge" and not _is_count(spec.rows):
        return f"rows is {spec.rows!r}, not a positive number"
    if isinstance(spec.scale, bool) or not isinstance(spec.scale, int | float) or not 0 < spec.scale < 1e6:
        return f"scale is {spec.scale!r}, not a positive number"
    return None


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


_CLASSES: dict[str, type[Projector]] = {
    "identity": Projector,
    "affine": Affine,
    "half": Half,
    "mlp": Mlp,
    "bridge": Bridge,
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
