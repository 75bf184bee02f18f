"""A head as an ONNX model: rows of a space in, unit rows of the shared space out. Needs the extra onnx."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cache.errors import ConnectorError, MissingExtraError
from ..cache.fsio import make_folder, naming_folder, write_atomic
from .connector import Connector
from .projectors import Bridge, Projector

INPUT, OUTPUT = "vectors", "shared"
OPSET = 18


class _Head(nn.Module):
    """What ``Connector.project`` computes: the head between two normalisations."""

    def __init__(self, head: Projector) -> None:
        super().__init__()
        self.head = head

    def forward(self, vectors: Tensor) -> Tensor:
        rows = F.normalize(vectors, dim=1)  # (N, D_in)
        rows = _dense(self.head, rows) if isinstance(self.head, Bridge) else self.head(rows)
        return F.normalize(rows, dim=1)  # (N, D)


def _dense(head: Bridge, rows: Tensor) -> Tensor:
    """A bridge without its blocks, whose number would be fixed at export."""
    if head.mean is not None:
        rows = F.normalize(rows - head.mean, dim=1)
    return torch.softmax(head.spec.scale * (rows @ head.keys.T), dim=1) @ head.values


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
