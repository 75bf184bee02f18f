"""Checkpoints of laion_clap to state dicts: without unpickling code, whatever nesting, for any transformers version."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...cache.errors import EncoderError
from .laion_clap_weights import REPOSITORY, TAGS, Choice

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

# A buffer that counts 0..513. transformers saved it until 4.30 and does not since: official files have it, newer
# models refuse it, older ones ask for it.
POSITION_IDS = "text_branch.embeddings.position_ids"
_FUSED = ("audio_branch.patch_embed.mel_conv2d.", "audio_branch.patch_embed.fusion_model.")
_WIDTH = "audio_branch.patch_embed.proj.weight"
_WIDTHS = {"HTSAT-tiny": 96, "HTSAT-base": 128, "HTSAT-large": 256}
_LOCK = threading.Lock()


def read_checkpoint(path: Path) -> State:
    """Tensors by the model's own names.

    Official files hold ``{"epoch", "name", "state_dict": {"module.…"}, "optimizer"}``; a bare state dict is taken too.
    Reading maps the file into memory, so that the optimizer's two thirds of it are never read.

    Raises
    ------
    EncoderError
        If the file is no checkpoint, or holds anything but tensors, numbers and texts.
    """
    import torch

    try:
        with _LOCK, _numpy_scalars():
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling, zip and I/O errors share no class; each is named here
        raise EncoderError(
            f"the checkpoint cannot be read: {brief(error)}",
            where=str(path),
            todo="is it the whole file? Files that hold code (pickled modules) are refused",
        ) from error
    state = held.get("state_dict", held) if isinstance(held, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise EncoderError("the checkpoint has no state dict of tensors", where=str(path), todo=_official(path))
    return without_wrapping(state)


def without_wrapping(state: Mapping[str, torch.Tensor]) -> State:
    """Names without the ``module.`` of data-parallel training, and without the position ids."""
    wrapped = bool(state) and all(str(name).startswith("module.") for name in state)
    plain = {str(name).removeprefix("module.") if wrapped else str(name): value for name, value in state.items()}
    plain.pop(POSITION_IDS, None)
    return plain


def is_fused(state: Mapping[str, Any]) -> bool:
    """Whether weights are of a model with feature fusion: only it has a second convolution over mel patches."""
    return any(name.startswith(_FUSED) for name in state)


def check_claim(state: Mapping[str, torch.Tensor], choice: Choice, path: Path) -> None:
    """Refuse a file that is not of the model, or not of the kind, that its name says.

    Raises
    ------
    EncoderError
        For a fused file under an unfused tag, an unfused one under a fused tag, and weights of another audio tower.
    """
    width = state[_WIDTH].shape[0] if _WIDTH in state else None
    model = next((name for name, channels in _WIDTHS.items() if channels == width), None)
    if model is not None and model != choice.model:
        raise EncoderError(
            f"the file holds weights of {model}, not of {choice.model}",
            where=str(path),
            todo=f"--encoder laion_clap:{model}/{path}" if model != "HTSAT-large" else _official(path),
        )
    fused = is_fused(state)
    if choice.fused is not None and fused != choice.fused and model is not None:
        fitting = next((tag for tag, one in TAGS.items() if one.model == choice.model and one.fused == fused), "custom")
        raise EncoderError(
            f"the file holds fused weights, and {choice.tag} is an unfused model"
            if fused
            else f"the file holds unfused weights, and {choice.tag} is a fused model",
            where=str(path),
            todo=f"--encoder laion_clap:{choice.model}/{path}, or the tag that it is: "
            f"laion_clap:{choice.model}/{fitting}@{path}",
        )


def check_complete(state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse a state dict that lacks a tensor, has one too many, or one of another shape; in one line."""
    expected = {name: tensor for name, tensor in wanted.items() if name != POSITION_IDS}
    lacking = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    other = [
        f"{name} {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    parts = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for names, what in ((lacking, "missing"), (extra, "unknown"), (other, "of another shape"))
        if names
    ]
    if parts:
        raise EncoderError(
            f"the weights do not fit the model: {'; '.join(parts)}", where=str(path), todo=_official(path, state)
        )


def brief(error: BaseException, lines: int = 2) -> str:
    """The beginning of a message, on one line."""
    kept = [line.strip() for line in str(error).splitlines() if line.strip()][:lines]
    return f"{type(error).__name__}: {' '.join(kept)[:300]}"


def _numpy_scalars() -> AbstractContextManager[Any]:
    """Let the numbers through that training scripts keep beside the weights as numpy scalars; they run no code."""
    import torch

    if torch.__version__ < "2.6":  # knows no names beside objects, and most files need none
        return nullcontext()
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "?", "u1")}
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # of numpy 1 and of numpy 2
    allowed: AbstractContextManager[Any] = torch.serialization.safe_globals([*names, np.dtype, *kinds])
    return allowed


def _official(path: Path, state: Mapping[str, Any] | None = None) -> str:
    if state and any(name.startswith(("audio_model.", "text_model.")) for name in state):
        return f"these are weights of transformers' ClapModel; use a .pt of {REPOSITORY}"
    return f"is {path.name} a checkpoint of laion_clap? the official ones: hf download {REPOSITORY} 630k-best.pt"
