"""Checkpoints of a fit: model, optimiser, step and identity in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..cache.errors import FitError
from ..cache.fsio import write_atomic

if TYPE_CHECKING:
    from .early_stop import EarlyStop

FORMAT = "cmcr-checkpoint"
VERSION = 2


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
    best : mapping of name to tensor
        The model as it scored best on the validation pair; empty without one.
    looks : mapping
        What the looks at the validation pair have found so far: numbers by name.
    processes : int
        How many trained together. Any number may go on: the sums are then rounded otherwise.
    """

    step: int
    identity: str
    model: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    best: Mapping[str, Tensor] = field(default_factory=dict)
    looks: Mapping[str, float] = field(default_factory=dict)
    processes: int = 1


def capture(
    step: int,
    identity: str,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    early: EarlyStop | None = None,
    processes: int = 1,
) -> Checkpoint:
    """The state of a model, its optimiser and its early stopping after ``step`` steps."""
    moments = {
        f"{index}.{name}": value
        for index, entry in optimiser.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }
    best, looks = ({}, {}) if early is None else (early.weights, early.numbers())
    return Checkpoint(step, identity, dict(model.state_dict()), moments, best, looks, processes)


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
    tensors |= {f"best.{name}": value for name, value in checkpoint.best.items()}
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "step": checkpoint.step,
        "identity": checkpoint.identity,
        "looks": dict(checkpoint.looks),
    }
    if checkpoint.processes > 1:
        head["processes"] = checkpoint.processes
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
        looks = {str(name): float(value) for name, value in head["looks"].items()}
        processes = int(head.get("processes", 1))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise FitError(
            f"this checkpoint cannot be read: {error}", where=str(path), todo="delete it, or fit with --overwrite"
        ) from error
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimiser": {}, "best": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    return Checkpoint(step, identity, parts["model"], parts["optimiser"], parts["best"], looks, processes)


def _metadata(data: bytes) -> dict[str, Any]:
    """The metadata of a safetensors file: its header is JSON after eight bytes of length."""
    (length,) = struct.unpack("<Q", data[:8])
    metadata: dict[str, Any] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
