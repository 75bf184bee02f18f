"""Checkpoints of ULIP and SLIP to the state dicts of their towers: no pickled code, and nothing missing or left over.

An official file is ``{"epoch", "state_dict": {"module.…"}, "optimizer", "scaler", "best_acc1", "args"}`` (ULIP,
``main.py``), where ``args`` is an ``argparse.Namespace``. That of the xyz model holds all three towers
(``ULIP_WITH_IMAGE``; the authors load it strictly), that of the coloured one the point tower alone.
"""

from __future__ import annotations

import argparse
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...cache.errors import EncoderError

State = dict[str, Tensor]
POINTS = ("point_encoder.", "pc_projection")
IMAGE = ("visual.", "image_projection")
TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
OPEN_CLIP = ("open_clip_model.",)
# The temperature of the loss, and SLIP's head of its image-only loss: they decide no vector.
UNUSED = ("logit_scale", "image_mlp.")
_LOCK = threading.Lock()


def read_checkpoint(path: Path) -> State:
    """Tensors by the model's own names, without the ``module.`` of distributed training.

    Raises
    ------
    EncoderError
        If the file is no checkpoint, or holds anything but tensors, plain values, numpy numbers and a ``Namespace``.
    """
    try:
        held = _load(path)
    except Exception as error:  # unpickling, zip and I/O errors share no class; each is named here
        raise EncoderError(
            f"the checkpoint cannot be read: {_brief(error)}",
            where=str(path),
            todo="is it the whole file? Files that hold code (pickled modules) are refused",
        ) from error
    state = held.get("state_dict", held) if isinstance(held, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise EncoderError(
            "the checkpoint has no state dict of tensors", where=str(path), todo="is it a checkpoint of ULIP?"
        )
    return {
        str(name).removeprefix("module."): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def part(state: Mapping[str, Tensor], names: tuple[str, ...]) -> State:
    """The tensors of one tower."""
    return {name: tensor for name, tensor in state.items() if name.startswith(names)}


def check(state: Mapping[str, Tensor], towers: Mapping[str, nn.Module], path: Path, *, others: str = "") -> None:
    """Refuse a state dict that lacks a tensor of the towers, has one of another shape, or has others; in one line.

    Parameters
    ----------
    towers : mapping of str to Module
        What must be there, by the name that a message calls it; built without memory is enough.
    others : str
        Beginning of the names of the model that the file is of where many are wrong, for the message.

    Raises
    ------
    EncoderError
    """
    wanted = {name: tuple(t.shape) for tower in towers.values() for name, t in tower.state_dict().items()}
    lacking = [name for name in wanted if name not in state]
    extra = [name for name in state if name not in wanted and not name.startswith(UNUSED)]
    shapes = [
        f"{name} {tuple(state[name].shape)}, not {shape}"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    parts = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for names, what in ((lacking, "missing"), (extra, "unknown"), (shapes, "of another shape"))
        if names
    ]
    if parts:
        raise EncoderError(
            f"the weights do not fit {' and '.join(towers)}: {'; '.join(parts)}",
            where=str(path),
            todo=others or "is it the checkpoint of this model? PointBERT takes xyz, PointBERT-Colored xyz and rgb",
        )


def fill(tower: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A tower that was built without memory, with the tensors of a state dict that was checked; ready to encode."""
    # copies: the state dict's tensors lie in the mapped file, which others may change
    tower.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, strict=True, assign=True)
    mask = getattr(tower, "build_causal_mask", None)
    if mask is not None:  # open_clip computes it and stores it in no checkpoint
        tower.register_buffer("attn_mask", mask(), persistent=False)
    return tower.eval().requires_grad_(False)


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with _LOCK, _plain_values():  # mapped into memory, so that the optimizer's two thirds are never read
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


@contextmanager
def _plain_values() -> Iterator[None]:
    """Within the block torch reads an ``argparse.Namespace`` and numpy's numbers too; neither runs code."""
    scalar: Any = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [argparse.Namespace, np.dtype, scalar]
    allowed += [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6):  # the function's names in numpy 1 and 2
        allowed += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(allowed)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _brief(error: BaseException) -> str:
    """The beginning of a message, on one line."""
    kept = [line.strip() for line in str(error).splitlines() if line.strip()][:2]
    return f"{type(error).__name__}: {' '.join(kept)[:300]}"
