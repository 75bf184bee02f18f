"""What a projector is, without its weights: validated, JSON-able, free of torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ..cache.errors import ConnectorError

ProjectorKind = Literal["identity", "affine", "half", "mlp", "decoupled", "bridge", "woven"]
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
        arXiv 2310.08884); ``bridge`` (softmax over keys, weighted sum of values); ``woven`` (the head of ``weave``: a
        ``core`` on centred input, hubness, and the source vector beside it).
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
    core : ProjectorSpec, optional
        ``woven``: what maps the centred input.
    means : int
        ``woven``: how many means are stored, one a modality of the space; the nearest is subtracted.
    hubs : int
        ``woven``: stored rows of the other space, against which a vector's hubness is measured; 0 for no correction.
    side : int
        ``woven``: 0 for the first space, 1 for the second: where its private parts stand.
    other : int
        ``woven``: width of the other space, whose private part is zero here; 0 keeps no source vectors.
    bare : bool
        ``woven``: the shared part alone, for a head that leads into a kept space.
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
    core: ProjectorSpec | None = None
    means: int = 1
    hubs: int = 0
    side: int = 0
    other: int = 0
    bare: bool = False

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
        record = {**asdict(self), "core": None if self.core is None else self.core.to_json()}
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
        core = record.get("core")
        if core is not None and (record["kind"] != "woven" or not isinstance(core, dict) or core.get("core")):
            raise ConnectorError(  # before anything is built: how deep descriptions nest is the file's choice
                "only a woven projector has a core, and the core is the description of a simple one",
                where=f"kind {record['kind']!r}",
                todo="take the connector from its source again, or fit it again",
            )
        return cls(**{**record, "core": None if core is None else cls.from_json(core)})


_USES: dict[str, tuple[str, ...]] = {
    "identity": (),
    "affine": ("bias", "centred", "matrix"),
    "half": ("bias",),
    "mlp": ("hidden", "bias"),
    "decoupled": ("hidden", "bias"),
    "bridge": ("centred", "rows", "scale"),
    "woven": ("core", "means", "hubs", "side", "other", "bare"),
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
    for name in ("bias", "centred", "matrix", "bare"):
        if not isinstance(getattr(spec, name), bool):
            return f"{name} is {getattr(spec, name)!r}, not true or false"
    if spec.hidden is not None and not _is_count(spec.hidden):
        return f"hidden is {spec.hidden!r}, not a positive number"
    keeps_dim = spec.kind == "identity" or (spec.kind == "affine" and not spec.matrix)
    if keeps_dim and spec.dim_in != spec.dim_out:
        return f"a head without a matrix cannot take {spec.dim_in} dimensions to {spec.dim_out}"
    if spec.kind == "bridge" and not _is_count(spec.rows):
        return f"rows is {spec.rows!r}, not a positive number"
    if spec.kind == "woven":
        return _woven_problem(spec)
    if isinstance(spec.scale, bool) or not isinstance(spec.scale, int | float) or not 0 < spec.scale < 1e6:
        return f"scale is {spec.scale!r}, not a positive number"
    return None


def _woven_problem(spec: ProjectorSpec) -> str | None:
    """The first thing wrong with the description of a woven head, or None."""
    if not isinstance(spec.core, ProjectorSpec) or spec.core.dim_in != spec.dim_in:
        return "its core is missing, or takes rows of another width"
    if spec.core.kind == "woven":
        return "its core is a woven head itself"
    if not _is_count(spec.means):
        return f"means is {spec.means!r}, not a positive number"
    for name in ("hubs", "other"):
        value = getattr(spec, name)
        if value != 0 and not _is_count(value):
            return f"{name} is {value!r}, neither zero nor a positive number"
    if not isinstance(spec.side, int) or isinstance(spec.side, bool) or spec.side not in (0, 1):
        return f"side is {spec.side!r}, neither 0 nor 1"
    if spec.bare and (spec.hubs or spec.other or spec.side):
        return "a bare head has no hubs, no side and no private part"
    wanted = spec.core.dim_out if spec.bare else woven_width(spec.core.dim_out, spec.hubs, spec.dim_in, spec.other)
    return None if spec.dim_out == wanted else f"dim_out is {spec.dim_out!r}, its parts have {wanted} dimensions"


def woven_width(shared: int, hubs: int, own: int, other: int) -> int:
    """Dimensions of a woven head's rows: the shared part, two for hubness, and the private parts of both spaces."""
    return shared + (2 if hubs else 0) + (own + other if other else 2)
