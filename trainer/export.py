"""A connector for other programs, by the name of a format."""

from __future__ import annotations

from pathlib import Path

from ..cache.errors import ConnectorError
from .connector import Connector
from .official import export_official

FORMATS = ("official", "onnx")


def export(
    connector: Connector | str | Path,
    output: str | Path,
    *,
    format: str = "official",
    kind: str | None = None,
    space: str | None = None,
) -> Path:
    """Write a connector's heads as another program reads them.

    Parameters
    ----------
    connector : Connector or path
    output : path
        The file.
    format : str
        ``official``: the state dict of a published checkpoint, with exactly its keys; ``onnx``: one head as a model.
    kind : str, optional
        ``official``: which checkpoint, where several fit.
    space : str, optional
        ``onnx``: whose head, where several are not the identity.

    Raises
    ------
    ConnectorError
        An unknown format, heads that the format cannot hold, or an option of the other format.
    MissingExtraError
        ``onnx`` without its extra.
    """
    if format not in FORMATS:
        raise ConnectorError(f"there is no format {format!r}", todo=f"one of {', '.join(FORMATS)}")
    foreign = {"official": ("space", space), "onnx": ("kind", kind)}[format]
    if foreign[1] is not None:
        raise ConnectorError(f"--{foreign[0]} has no meaning in the format {format}", todo="leave it out")
    loaded = connector if isinstance(connector, Connector) else Connector.load(connector)
    if format == "official":
        return export_official(loaded, output, kind)
    from .onnx_export import export_onnx

    return export_onnx(loaded, output, space)
