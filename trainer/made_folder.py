"""Folders of connectors that no fit wrote: imported ones and chains."""

from __future__ import annotations

from pathlib import Path

from ..cache.errors import ConnectorError
from ..cache.fsio import write_atomic
from .card import model_card
from .connector import Connector
from .connector_folder import CONFIG, WEIGHTS

CARD = "README.md"
_FILES = {CONFIG, WEIGHTS, CARD}


def write_made(connector: Connector, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a connector with its model card.

    Parameters
    ----------
    connector : Connector
    folder : path
        New or empty.
    overwrite : bool
        Replace the imported or chained connector that is there; a folder with anything else in it is never touched.

    Raises
    ------
    ConnectorError
        The folder holds something.
    """
    place = Path(folder)
    check_made(place, overwrite=overwrite)
    connector.save(place)
    write_atomic(place / CARD, model_card(connector).encode("utf-8"))
    return place


def check_made(place: Path, *, overwrite: bool) -> None:
    """Refuse a folder that :func:`write_made` would damage."""
    if not place.exists():
        return
    if not place.is_dir():
        raise ConnectorError("the output is a file, not a folder", where=str(place), todo="name a new folder")
    held = {path.name for path in place.iterdir()}
    if held - _FILES:
        raise ConnectorError(
            f"the output folder holds other things: {', '.join(sorted(held - _FILES)[:3])}",
            where=str(place),
            todo="name a new folder",
        )
    if held and not overwrite:
        raise ConnectorError(
            "the output folder holds a connector already",
            where=str(place),
            todo="name a new folder, or add --overwrite",
        )
