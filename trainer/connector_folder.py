"""The connector folder on disk: ``connector.safetensors`` and ``config.json``; see ``docs/connector.md``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..cache.canonical import to_pretty
from ..cache.errors import ConnectorError
from ..cache.fsio import make_folder, naming_folder, write_atomic
from .connector_info import ConnectorInfo, SpaceInfo
from .projectors import Projector, ProjectorSpec, build_projector

FORMAT = "cmcr-connector"
VERSION = 1
WEIGHTS = "connector.safetensors"
CONFIG = "config.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_AGAIN = "fit the connector again, or take it from its source again"


def save(heads: Mapping[str, Projector], info: ConnectorInfo, folder: Path) -> Path:
    """Write both files; the weights first, so that a config never describes weights that are not there."""
    _check_names(heads, folder)
    tensors = {
        f"heads.{space}.{name}": value.detach().to("cpu").contiguous()
        for space, head in heads.items()
        for name, value in head.state_dict().items()
    }
    # One metadata entry only: safetensors writes several in the order of a hash map.
    weights = safetensors.torch.save(tensors, {"format": "pt"})
    config = {
        "format": FORMAT,
        "version": VERSION,
        "weights": {"file": WEIGHTS, "blake2b": _digest(weights)},
        "dim": next(iter(heads.values())).spec.dim_out,
        "method": info.method,
        "spaces": {
            name: {**asdict(info.spaces[name]), "projector": head.spec.to_json()} for name, head in heads.items()
        },
        "made_from": dict(info.made_from),
        "versions": dict(info.versions),
        "licences": dict(info.licences),
    }
    with naming_folder(folder):
        make_folder(folder)
    write_atomic(folder / WEIGHTS, weights)
    write_atomic(folder / CONFIG, to_pretty(config))
    return folder


def load(folder: Path) -> tuple[dict[str, Projector], ConnectorInfo]:
    """Heads and description of a connector folder; every way in which it can be wrong is a :class:`ConnectorError`."""
    config = _read_config(folder)
    specs, info = _parse_config(config, folder / CONFIG)
    tensors = _read_weights(folder, config)
    with torch.device("meta"):  # shapes without memory: a config cannot ask for more than the weights file holds
        heads = {name: build_projector(spec) for name, spec in specs.items()}
    _check_tensors(tensors, heads, folder / WEIGHTS)
    for space, head in heads.items():
        prefix = f"heads.{space}."
        state = {name: tensors[prefix + name] for name in head.state_dict()}
        head.load_state_dict(state, strict=True, assign=True)
    return heads, info


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConnectorError(
            f"there is no connector here: {path.name} is missing",
            where=str(path),
            todo="give the folder that `cmcr fit` wrote; it holds connector.safetensors and config.json",
        ) from None
    except OSError as error:
        raise ConnectorError(f"{path.name} cannot be read: {error.strerror or error}", where=str(path)) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(_read(path).decode())
    except (ValueError, RecursionError) as error:
        raise ConnectorError(f"{CONFIG} is not JSON: {error}", where=str(path), todo=_AGAIN) from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ConnectorError(f'{CONFIG} is not that of a connector: it lacks "format": "{FORMAT}"', where=str(path))
    if config.get("version") != VERSION:
        raise ConnectorError(
            f"the connector has format version {config.get('version')!r}, this cmcr reads version {VERSION}",
            where=str(path),
            todo="install a newer cmcr, or fit the connector again with this one",
        )
    return config


def _parse_config(config: Mapping[str, Any], path: Path) -> tuple[dict[str, ProjectorSpec], ConnectorInfo]:
    """Typed contents of a config whose format and version are known."""
    spaces = config.get("spaces")
    if not isinstance(spaces, dict) or not spaces or not all(isinstance(space, dict) for space in spaces.values()):
        raise ConnectorError(
            f'{CONFIG} describes no spaces: "spaces" must map names to descriptions', where=str(path), todo=_AGAIN
        )
    _check_names(spaces, path)
    specs = {name: ProjectorSpec.from_json(space.get("projector")) for name, space in spaces.items()}
    infos = {
        name: SpaceInfo(
            id=_text(space.get("id", ""), f"spaces.{name}.id", path),
            modalities=tuple(
                _text(m, f"spaces.{name}.modalities", path) for m in _items(space, name, "modalities", path)
            ),
            encoders=_texts(space.get("encoders", {}), f"spaces.{name}.encoders", path),
            fingerprints=_texts(space.get("fingerprints", {}), f"spaces.{name}.fingerprints", path),
        )
        for name, space in spaces.items()
    }
    made_from = config.get("made_from", {})
    if not isinstance(made_from, dict):
        raise _wrong("made_from", "an object", path)
    return specs, ConnectorInfo(
        spaces=infos,
        method=_text(config.get("method", ""), "method", path),
        made_from=made_from,
        versions=_texts(config.get("versions", {}), "versions", path),
        licences=_texts(config.get("licences", {}), "licences", path),
    )


def _wrong(field: str, wanted: str, path: Path) -> ConnectorError:
    return ConnectorError(f"{field} in {CONFIG} is not {wanted}", where=str(path), todo=_AGAIN)


def _items(space: Mapping[str, Any], name: str, field: str, path: Path) -> list[Any]:
    value = space.get(field, [])
    if not isinstance(value, list):
        raise _wrong(f"spaces.{name}.{field}", "a list", path)
    return value


def _text(value: Any, field: str, path: Path) -> str:
    if not isinstance(value, str):
        raise _wrong(field, "a text", path)
    return value


def _texts(value: Any, field: str, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise _wrong(field, "an object of texts", path)
    return value


def _check_names(names: Mapping[str, Any], where: Path) -> None:
    """Names of spaces are parts of tensor names, so dots and slashes are refused."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConnectorError(
                f"{name!r} cannot be the name of a space",
                where=str(where),
                todo="use letters, digits, - and _, at most 100",
            )


def _read_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    data = _read(path)
    recorded = config.get("weights")
    if not isinstance(recorded, dict) or recorded.get("blake2b") != _digest(data):
        raise ConnectorError(
            f"{WEIGHTS} is not the file that {CONFIG} describes: a save was interrupted, or one was replaced",
            where=str(path),
            todo=_AGAIN,
        )
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ConnectorError(f"{WEIGHTS} is damaged: {error}", where=str(path), todo=_AGAIN) from error
    return tensors


def _check_tensors(tensors: Mapping[str, Tensor], heads: Mapping[str, Projector], path: Path) -> None:
    """The file holds exactly the tensors that the heads need, in their shapes and types, all finite."""
    wanted = {
        f"heads.{space}.{name}": value for space, head in heads.items() for name, value in head.state_dict().items()
    }
    missing, surplus = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or surplus:
        parts = [
            f"{what}: {', '.join(names[:5])}" for what, names in (("missing", missing), ("not known", surplus)) if names
        ]
        raise ConnectorError(
            f"{WEIGHTS} does not fit {CONFIG}; tensors {'; '.join(parts)}", where=str(path), todo=_AGAIN
        )
    for name, value in tensors.items():
        want = wanted[name]
        if value.shape != want.shape or value.dtype != want.dtype:
            raise ConnectorError(
                f"tensor {name} is {value.dtype} {tuple(value.shape)}, {CONFIG} says {want.dtype} {tuple(want.shape)}",
                where=str(path),
                todo=_AGAIN,
            )
        if not bool(torch.isfinite(value).all()):
            raise ConnectorError(f"tensor {name} holds values that are not finite", where=str(path), todo=_AGAIN)
