"""What a projector is, without its weights: validated, JSON-able, free of torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ..cache.errors import ConnectorError

ProjectorKind = Literal["identity", "affine", "half", "mlp", "decoupled", "bridge"]
KINDS: tuple[ProjectorKind, ...] = get_args(ProjectorKind)

_LARGEST = 1 << 31


@dataclass(frozen=True)
class ProjectorSpec:
    """What a projector is, without its weights; JSON-able.

    Parameters
    ----------
    kind : str
        ``identity``; ``affine`` (optional centring mean, optional matrix, optional bias); ``half`` ("Linear BN ReLU");
        ``mlp`` ("Linear BN ReLU Linear BN"); ``decoupled`` (a linear layer, then two such MLPs: the head of Ex-MCR,
        arXiv 2310.08884); ``bridge`` (softmax over keys, weighted sum of values).
    dim_in, dim_out : int
        Dimensions of the space and of the shared space. Equal for ``identity`` and for ``affine`` without matrix.
    hidden : int, optional
        Width of the hidden layers of ``mlp`` and ``decoupled``; ``2 * dim_in`` where None, which is the papers' 1024
        for 512.
    bias : bool
        The linear layers have a bias. Ours have none where a batch norm follows; imported ones may. The first layer
        of ``decoupled`` always has one.
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
        if self.kind in ("mlp", "decoupled") and self.hidden is None and _is_count(self.dim_in):
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
    "decoupled": ("hidden", "bias"),
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
