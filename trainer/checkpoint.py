"""Checkpoints of a fit: model, optimiser, step and identity in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..cache.errors import FitError
from ..cache.fsio import write_atomic

FORMAT = "cmcr-checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """State of a fit between two steps.

    Noise and order are functions of (seed, step), so the step is all the random state that there is.

    Parameters
    ----------
    step : int
        Steps done.
    identity : str
        Digest of what decides the fit: the resolved recipe and the content of its caches.
    model, optimiser : mapping of name to tensor
        Flat states.
    """

    step: int
    identity: str
    model: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]


def capture(step: int, identity: str, model: nn.Module, optimiser: torch.optim.Optimizer) -> Checkpoint:
    """The state of a model and its optimiser after ``step`` steps."""
    moments = {
        f"{index}.{name}": value
        for index, entry in optimiser.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }
    return Checkpoint(step, identity, dict(model.state_dict()), moments)


def restore(checkpoint: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Put a checkpoint into a model and an optimiser of the same shape, in place."""
    model.load_state_dict(dict(checkpoint.model), strict=True)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in checkpoint.optimiser.items():
        index, _, field = name.partition(".")
        state.setdefault(int(index), {})[field] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint at ``path``; at any instant the old or the new one is there, whole."""
    tensors = {f"model.{name}": value for name, value in checkpoint.model.items()}
    tensors |= {f"optimiser.{name}": value for name, value in checkpoint.optimiser.items()}
    head = {"format": FORMAT, "version": VERSION, "step": checkpoint.step, "identity": checkpoint.identity}
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomic(path, safetensors.torch.save(ready, {"cmcr": json.dumps(head, sort_keys=True)}))


def load_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at ``path``, None where there is no file.

    Raises
    ------
    FitError
        The file is damaged or of another format version.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        tensors = safetensors.torch.load(data)
        head = json.loads(_metadata(data)["cmcr"])
        if head["format"] != FORMAT or head["version"] != VERSION:
            raise ValueError(f"it has format {head['format']!r}, version {head['version']!r}")
        step, identity = int(head["step"]), str(head["identity"])
    except (SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
        raise FitError(
            f"this checkpoint cannot be read: {error}", where=str(path), todo="delete it, or fit with --overwrite"
        ) from error
    model = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
    optimiser = {name[10:]: value for name, value in tensors.items() if name.startswith("optimiser.")}
    return Checkpoint(step, identity, model, optimiser)


def _metadata(data: bytes) -> dict[str, Any]:
    """The metadata of a safetensors file: its header is JSON after eight bytes of length."""
    (length,) = struct.unpack("<Q", data[:8])
    metadata: dict[str, Any] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
