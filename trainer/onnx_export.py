"""A head as an ONNX model: rows of a space in, unit rows of the shared space out. Needs the extra onnx."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cache.errors import ConnectorError, MissingExtraError
from ..cache.fsio import make_folder, naming_folder, write_atomic
from .connector import Connector
from .projectors import Bridge, Projector, Woven

INPUT, OUTPUT = "vectors", "shared"
OPSET = 18


class _Head(nn.Module):
    """What ``Connector.project`` computes: the head between two normalisations."""

    def __init__(self, head: Projector) -> None:
        super().__init__()
        self.head = _traceable(head)

    def forward(self, vectors: Tensor) -> Tensor:
        rows = F.normalize(vectors, dim=1)  # (N, D_in)
        return F.normalize(self.head(rows), dim=1)  # (N, D)


def _traceable(head: Projector) -> nn.Module:
    """The head, or one that computes the same without blocks of a bridge."""
    if isinstance(head, Bridge):
        return _Dense(head)
    if isinstance(head, Woven) and isinstance(head.core, Bridge):
        dense = _Dense(head.core)
        head = copy.deepcopy(head)
        head.core = dense  # type: ignore[assignment]
    return head


class _Dense(nn.Module):
    """A bridge without its blocks, whose number would be fixed at export."""

    def __init__(self, head: Bridge) -> None:
        super().__init__()
        self.bridge = head

    def forward(self, rows: Tensor) -> Tensor:
        head = self.bridge
        if head.mean is not None:
            rows = F.normalize(rows - head.mean, dim=1)
        return torch.softmax(head.spec.scale * (rows @ head.keys.T), dim=1) @ head.values  # (N, D)


def export_onnx(connector: Connector, path: str | Path, space: str | None = None) -> Path:
    """Write the head of one space as an ONNX model.

    The model has one input ``vectors`` (rows, D_in) float32, of any length, and one output ``shared`` (rows, D)
    float32 unit rows; the number of rows is free. It is replaced atomically.

    Parameters
    ----------
    connector : Connector
    path : path
    space : str, optional
        Needed where more than one head is not the identity.

    Raises
    ------
    ConnectorError
        No such space, or several heads and none named.
    MissingExtraError
        The extra ``onnx`` is not installed.
    """
    name = _one_space(connector, space)
    try:
        import onnxscript  # noqa: F401  what torch's exporter is written in
    except ImportError as error:
        raise MissingExtraError("writing ONNX needs the extra onnx", todo="pip install 'cmcr[onnx]'") from error
    head = connector.heads[name]
    example = torch.ones(2, head.spec.dim_in, device=connector.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own internals
        program = torch.onnx.export(
            _Head(head).eval(),
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ConnectorError("torch's exporter gave no model", where=name)
    program.model.metadata_props["cmcr.space"] = name
    file = Path(path)
    with naming_folder(file.parent):
        make_folder(file.parent)
    write_atomic(file, program.model_proto.SerializeToString())
    return file


def _one_space(connector: Connector, space: str | None) -> str:
    """The space asked for, or the only one whose head is not the identity."""
    if space is not None:
        connector.head(space)
        return space
    changed = [name for name in connector.spaces if name not in connector.kept]
    if len(changed) != 1:
        raise ConnectorError(
            f"an ONNX model holds one head; the connector has {len(changed)} that are not the identity: "
            + (", ".join(connector.describe(name) for name in changed) or "none"),
            todo=f"name one with --space {(changed or connector.spaces)[0]} (Python: space=...)",
        )
    return changed[0]
