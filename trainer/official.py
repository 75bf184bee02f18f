"""Connectors from the published checkpoints of C-MCR and Ex-MCR, and back (``docs/connector.md``)."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cache._version import __version__
from ..cache.errors import ConnectorError
from ..cache.fsio import make_folder, naming_folder, write_atomic
from .connector import DECLARED, Connector
from .connector_info import ConnectorInfo, SpaceInfo
from .official_layout import LAYOUTS, SPACES, Layout, OfficialHead, OfficialKind
from .projectors import Projector, build_projector

NOT_STATED = "not stated"
_MOST_BYTES = 64 << 20  # the largest checkpoint, clap_clip.pt, has 8 MB
_WRAPPER = "module."  # what DataParallel puts before every key
_FILES = "clap_clip.pt, ulip_clip.pt, ex_clap.pt or ex_ulip.pt"
_SOURCE = f"give {_FILES} from the folder checkpoints of github.com/MCR-PEFT/C-MCR or github.com/MCR-PEFT/Ex-MCR"


def import_official(path: str | Path, kind: OfficialKind | str | None = None) -> Connector:
    """A connector from a published checkpoint.

    Parameters
    ----------
    path : path
        ``clap_clip.pt``, ``ulip_clip.pt``, ``ex_clap.pt`` or ``ex_ulip.pt``.
    kind : str, optional
        Which of the four it is; recognised from the keys but for the two of Ex-MCR, whose keys and shapes are equal.

    Raises
    ------
    ConnectorError
        The file is missing, is no state dict that loads without running code, or has other keys, shapes, types than
        the published ones.
    """
    file = Path(path)
    data = _read(file)
    state = _unwrapped(_load(data, file))
    layout = _layout(state, kind, file)
    _check_tensors(state, layout, file)
    heads = {space: _head(layout.heads[space], state) for space in layout.heads}
    if layout.kept is not None:
        heads[layout.kept] = build_projector(layout.spec(layout.kept))
    return Connector(heads, _info(layout, file.name, data))


def official_state(connector: Connector, kind: OfficialKind | str | None = None) -> dict[str, Tensor]:
    """The heads of a connector as a published checkpoint holds them: exactly its keys, shapes and order.

    Linear layers without bias, as a fit makes them before a batch norm, get one of zeros: the same function.

    Parameters
    ----------
    connector : Connector
        Spaces named as in the checkpoint (clap, clip, ulip), heads of its architecture.
    kind : str, optional
        Which checkpoint; needed where several fit, as in a chain of both heads of Ex-MCR.

    Raises
    ------
    ConnectorError
        The heads are not of that architecture.
    """
    layouts = list(LAYOUTS.values()) if kind is None else [_named(kind)]
    problems = {layout.kind: _misfit(connector, layout) for layout in layouts}
    fitting = [layout for layout in layouts if problems[layout.kind] is None]
    if len(fitting) > 1:
        names = [layout.kind for layout in fitting]
        raise ConnectorError(
            f"the connector holds the heads of {len(names)} published checkpoints: {', '.join(names)}",
            todo=f"say which: --kind {names[0]} (Python: kind={names[0]!r})",
        )
    if not fitting:
        raise ConnectorError(
            "the connector has not the architecture of a published checkpoint",
            where="; ".join(f"{name}: {problem}" for name, problem in problems.items()),
            todo="cmcr connector export --format onnx writes any head",
        )
    layout = fitting[0]
    return {key: value for space, head in layout.heads.items() for key, value in _state(connector, space, head).items()}


def export_official(connector: Connector, path: str | Path, kind: OfficialKind | str | None = None) -> Path:
    """Write :func:`official_state` as the authors' code loads it; the file is replaced atomically."""
    file = Path(path)
    data = io.BytesIO()
    torch.save(official_state(connector, kind), data)
    with naming_folder(file.parent):
        make_folder(file.parent)
    write_atomic(file, data.getvalue())
    return file


def _read(file: Path) -> bytes:
    """The bytes of a file no larger than a published one could be, unpacked or not."""
    try:
        size = file.stat().st_size
        data = file.read_bytes() if size <= _MOST_BYTES else b""
    except FileNotFoundError:
        raise ConnectorError("there is no such checkpoint", where=str(file), todo=_SOURCE) from None
    except OSError as error:
        raise ConnectorError(
            f"the checkpoint cannot be read: {error.strerror or error}", where=str(file), todo=_SOURCE
        ) from error
    if size <= _MOST_BYTES and zipfile.is_zipfile(io.BytesIO(data)):
        size = _unpacked(data)
    if size > _MOST_BYTES:
        raise ConnectorError(
            f"the file holds {size:,} bytes, the largest published checkpoint 8 million", where=str(file), todo=_SOURCE
        )
    return data


def _unpacked(data: bytes) -> int:
    """Bytes that a zip file says it unpacks to; 0 where its directory is damaged, which the loader then says."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, EOFError):
        return 0


def _load(data: bytes, file: Path) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make a loader raise anything; it is named and chained
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConnectorError(
            f"the file is no state dict that loads without running code from it: {reason}",
            where=str(file),
            todo=_SOURCE,
        ) from error


def _unwrapped(loaded: Any) -> Any:
    """A state dict without the prefix that DataParallel adds; anything else as it is."""
    if isinstance(loaded, dict) and loaded and all(isinstance(k, str) and k.startswith(_WRAPPER) for k in loaded):
        return {key.removeprefix(_WRAPPER): value for key, value in loaded.items()}
    return loaded


def _named(kind: str) -> Layout:
    for layout in LAYOUTS.values():
        if layout.kind == kind:
            return layout
    raise ConnectorError(f"there is no published checkpoint {kind!r}", todo=f"one of {', '.join(LAYOUTS)}")


def _layout(state: Any, kind: str | None, file: Path) -> Layout:
    """The checkpoint that a state dict is, by its keys."""
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ConnectorError(
            f"the file holds {type(state).__name__}, not a state dict of named tensors", where=str(file), todo=_SOURCE
        )
    keys = set(state)
    layouts = list(LAYOUTS.values()) if kind is None else [_named(kind)]
    fitting = [layout for layout in layouts if set(layout.shapes()) == keys]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = [layout.kind for layout in fitting]
        raise ConnectorError(
            f"{' and '.join(names)} have the same keys and shapes: the file alone does not say which it is",
            where=str(file),
            todo=" or ".join(f"--kind {name}" for name in names),
        )
    nearest = max(layouts, key=lambda layout: len(set(layout.shapes()) & keys))
    parts = [
        f"{what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in (
            ("missing", sorted(set(nearest.shapes()) - keys)),
            ("not known", sorted(key[:80] for key in keys - set(nearest.shapes()))),
        )
        if names
    ]
    raise ConnectorError(
        f"the keys are not those of {nearest.kind if kind else 'a published checkpoint'}; beside {nearest.kind}, "
        + "; ".join(parts),
        where=str(file),
        todo=_SOURCE,
    )


def _check_tensors(state: Mapping[str, Any], layout: Layout, file: Path) -> None:
    """Every value is a plain tensor of the published shape and type, all numbers finite, no negative variance."""
    for key, shape in layout.shapes().items():
        value = state[key]
        want = torch.int64 if key.endswith("num_batches_tracked") else torch.float32
        problem = None
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            problem = f"is {type(value).__name__}, not a plain tensor"
        elif value.shape != shape or value.dtype != want:
            problem = f"is {value.dtype} {tuple(value.shape)}, not {want} {tuple(shape)}"
        elif not bool(torch.isfinite(value).all()):
            problem = "holds values that are not finite"
        elif key.endswith("running_var") and bool((value < 0).any()):
            problem = "holds negative variances"
        if problem:
            raise ConnectorError(f"{key} of {layout.kind} {problem}", where=str(file), todo=_SOURCE)


def _head(official: OfficialHead, state: Mapping[str, Tensor]) -> Projector:
    with torch.device("meta"):  # no first weights that would be replaced at once
        head = build_projector(official.spec)
    own = {name: state[key].detach().clone().contiguous() for name, key in official.keys().items()}
    head.load_state_dict(own, strict=True, assign=True)
    return head


def _info(layout: Layout, name: str, data: bytes) -> ConnectorInfo:
    """What the connector says of itself: source, licence, and the encoders that the heads were trained on."""
    spaces = {
        space: SpaceInfo(f"{DECLARED}{space}", SPACES[space].modalities, dict(SPACES[space].encoders))
        for space in layout.spaces
    }
    encoders = {encoder for space in spaces.values() for encoder in space.encoders.values()}
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return ConnectorInfo(
        spaces=spaces,
        method=layout.method,
        made_from={
            "imported": {"kind": layout.kind, "file": name, "blake2b": digest, "source": layout.source},
            "overlap": layout.trained_on,
        },
        versions={"cmcr": __version__, "numpy": np.__version__, "torch": torch.__version__},
        licences={**dict.fromkeys(sorted(encoders), NOT_STATED), layout.source: layout.licence},
    )


def _misfit(connector: Connector, layout: Layout) -> str | None:
    """Why a connector's heads are not those of a checkpoint, in words, or None. A missing bias is none."""
    absent = [space for space in layout.spaces if space not in connector.spaces]
    if absent:
        return f"no space {absent[0]!r}"
    for space in layout.spaces:
        have, want = connector.heads[space].spec, layout.spec(space)
        if (have.kind, have.dim_in, have.dim_out, have.hidden) != (want.kind, want.dim_in, want.dim_out, want.hidden):
            return f"the head of {space!r} is {_words(have)}, not {_words(want)}"
    return None


def _words(spec: Any) -> str:
    hidden = "" if spec.hidden is None else f"{spec.hidden}-"
    return f"{spec.kind} {spec.dim_in}-{hidden}{spec.dim_out}"


def _state(connector: Connector, space: str, official: OfficialHead) -> dict[str, Tensor]:
    """The tensors of one head by keys of the checkpoint; a bias that the head lacks is zeros."""
    own = connector.heads[space].state_dict()
    shapes = official.shapes()
    return {
        key: own[name].detach().cpu().clone() if name in own else torch.zeros(shapes[key])
        for name, key in official.keys().items()
    }
