"""Raw inputs (a sentence, a picture, a sound, a cloud of points) into the shared space."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..cache.errors import CmcrError, ConnectorError, EncoderError, ItemError
from ..cache.plugins import named_errors
from ..trainer.connector import DECLARED, Connector
from .encoders.base import MODALITIES, Encoder, Item, Modality
from .shared import as_connector

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    class RawInputs(TypedDict, total=False):
        """Exactly one of these; one input or a sequence of them."""

        text: str | Sequence[str]
        image: str | Path | Sequence[str | Path]
        audio: str | Path | Sequence[str | Path]
        points: str | Path | Sequence[str | Path]


Vectors = npt.NDArray[np.float32]
FLAGS: dict[str, Modality] = {"text": "text", "image": "image", "audio": "audio", "points": "pointcloud"}
BATCH = 32


def embed(
    connector: Connector | str | Path,
    *,
    space: str | None = None,
    encoder: str | Encoder | None = None,
    device: str | None = None,
    **inputs: Unpack[RawInputs],
) -> Vectors:
    """Raw inputs as unit rows of the shared space.

    Parameters
    ----------
    connector : Connector or path
        Its configuration says which encoder belongs to each space and modality.
    space : str, optional
        Needed where two spaces of the connector have the modality.
    encoder : str or Encoder, optional
        Used in place of the recorded one; its space decides the head unless ``space`` does.
    device : str, optional
        Where encoder and head run; where the connector is, if not said.
    **inputs
        Exactly one of ``text`` (captions), ``image``, ``audio`` and ``points`` (paths), one or several.

    Returns
    -------
    (N, D) float32
        Unit rows, in the order of the inputs.

    Raises
    ------
    CmcrError
        No input or several kinds; an empty text; a file that is missing or cannot be decoded; no encoder, or one of
        another space.
    """
    modality, values = one_input(inputs)
    loaded = as_connector(connector, device)
    name, tower = resolve(loaded, modality, space=space, encoder=encoder)
    place = str(loaded.device)
    vectors = encode_inputs(tower, modality, values, space_id=loaded.info.spaces[name].id, device=place)
    return loaded.project(vectors, space=name)


def one_input(inputs: Any) -> tuple[Modality, list[Any]]:
    """The one modality that was asked with, and its inputs as a list."""
    unknown = sorted(set(inputs) - set(FLAGS))
    if unknown:
        raise CmcrError(f"There is no input called {unknown[0]!r}.", todo=f"give one of {', '.join(FLAGS)}")
    given = {flag: value for flag, value in inputs.items() if value is not None}
    if len(given) != 1:
        said = f"these were given: {', '.join(given)}" if given else "none was given"
        raise CmcrError(f"A query is exactly one of {', '.join(FLAGS)}; {said}.", todo="give one of them")
    ((flag, value),) = given.items()
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise CmcrError(f"The list of {flag} queries is empty.", todo="give at least one")
    return FLAGS[flag], values


def resolve(
    connector: Connector, modality: Modality, *, space: str | None, encoder: str | Encoder | None
) -> tuple[str, str | Encoder]:
    """Name of the space that raw inputs enter, and the encoder that takes them there."""
    if encoder is not None:
        tower = load_tower(encoder, modality, str(connector.device)) if isinstance(encoder, str) else encoder
        return space or _space_of_encoder(connector, modality, tower), tower
    name = connector.space_for(modality, space)
    recorded = connector.info.spaces[name].encoders
    if modality not in recorded:
        known = ", ".join(f"{other}: {tower}" for other, tower in sorted(recorded.items())) or "none"
        raise ConnectorError(
            f"The connector records no {modality} encoder for the space {name!r} (recorded: {known}).",
            todo="name the encoder of that space with --encoder (Python: encoder=...), or search with a query cache",
        )
    return name, recorded[modality]


def _space_of_encoder(connector: Connector, modality: Modality, tower: Encoder) -> str:
    by_id = [name for name in connector.spaces if connector.info.spaces[name].id == tower.space.id]
    if len(by_id) == 1:
        return by_id[0]
    if tower.space.name in connector.spaces:
        return tower.space.name
    return connector.space_for(modality)


@lru_cache(maxsize=4)
def load_tower(name: str, modality: Modality, device: str) -> Encoder:
    """An encoder by name; the last few stay loaded, so that asking again costs no second load."""
    from .encoders.registry import load_encoder

    return load_encoder(name, modality=modality, device=device)


def encode_inputs(
    encoder: str | Encoder, modality: str, inputs: Sequence[Any], *, space_id: str = "", device: str = "cpu"
) -> Vectors:
    """Raw inputs to vectors of an encoder's own space.

    Parameters
    ----------
    encoder : str or Encoder
        Name or loaded tower.
    modality : str
        What the inputs are.
    inputs : sequence
        Texts for ``text``; else paths of files, or their bytes.
    space_id : str
        The space that the vectors must be in; not checked where it is empty or only declared.

    Returns
    -------
    (N, D) float32
        Unit rows.
    """
    if modality not in MODALITIES:
        raise EncoderError(f"There is no modality {modality!r}.", todo=f"give one of {', '.join(MODALITIES)}")
    items = [_item(value, modality, n) for n, value in enumerate(inputs)]
    tower = load_tower(encoder, modality, device) if isinstance(encoder, str) else encoder
    _check_tower(tower, modality, space_id)
    rows = [_encode(tower, items[at : at + BATCH]) for at in range(0, len(items), BATCH)]
    return np.concatenate([np.empty((0, tower.dim), np.float32), *rows])


def _check_tower(tower: Encoder, modality: Modality, space_id: str) -> None:
    if tower.modality != modality:
        raise EncoderError(
            f"The encoder {tower.name} takes {tower.modality}, not {modality}.", todo=f"name a {modality} encoder"
        )
    open_id = not space_id or DECLARED.rstrip(":") in (space_id.split(":")[0], tower.space.id.split(":")[0])
    if not open_id and tower.space.id != space_id:
        raise EncoderError(
            f"The encoder {tower.name} embeds into another space than the connector was fitted for.",
            where=f"encoder: {tower.space.id} ({tower.space.name}); connector: {space_id}",
            todo="use the encoder, with the weights, that `cmcr connector info` shows",
        )


def _item(value: Any, modality: Modality, number: int) -> Item:
    if modality == "text":
        if not isinstance(value, str) or not value.strip():
            raise CmcrError("A text query is empty.", where=f"query {number + 1}", todo="write at least one word")
        return Item(key=f"query:{number}", data=value, caption=value)
    if isinstance(value, bytes):
        return Item(key=f"query:{number}", data=value)
    path = Path(value)
    if path.is_dir():
        raise CmcrError(f"A query is one {modality} file, this is a folder.", where=str(path), todo="name a file in it")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CmcrError(f"The {modality} query does not exist.", where=str(path), todo="check the path") from error
    except OSError as error:
        raise CmcrError(f"The {modality} query cannot be read: {error.strerror}.", where=str(path)) from error
    return Item(key=path.stem, data=data, name=path.name, source=str(path))


def _encode(tower: Encoder, items: Sequence[Item]) -> Vectors:
    """Items to rows (B, D) float32."""
    decoded = [_decode(tower, item) for item in items]
    with named_errors(EncoderError, "encoding the query", tower.name):
        rows = np.asarray(tower.encode(decoded), np.float32)
    if rows.shape != (len(items), tower.dim):
        raise EncoderError(
            f"The encoder gave vectors of the shape {rows.shape} for {len(items)} inputs.",
            where=tower.name,
            todo=f"encode returns ({len(items)}, {tower.dim}) here",
        )
    return rows


def _decode(tower: Encoder, item: Item) -> Any:
    try:
        with named_errors(EncoderError, "decoding the query", tower.name):
            return tower.decode(item)
    except ItemError as error:
        raise ItemError(
            f"The {tower.modality} query cannot be decoded: {error.what}",
            where=item.source or item.key,
            todo=error.todo or f"give a {tower.modality} file",
        ) from error
