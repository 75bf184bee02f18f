"""The family ``sandbox``: tiny encoders of the made-up world, shipped with the package, for first steps and for tests.

Names
-----
``sandbox:clip``        text and image
``sandbox:clap``        text and audio
``sandbox:ulip``        pointcloud and image
``sandbox:clip/FILE``   the same from a .safetensors that ``scripts/train_sandbox.py`` wrote
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...cache.errors import EncoderError, ItemError, MissingWeightsError
from ..sandbox import inputs
from .base import Encoder, Item, Modality, Space, Vectors, digest

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = Path(__file__).parents[1] / "sandbox" / "weights"
MODELS = ("clip", "clap", "ulip")
CODE_VERSION = 1
"""Raise it whenever this module or the towers change a vector."""


class SandboxFamily:
    """Loads a tower of ``sandbox:model``."""

    name = "sandbox"

    def load(
        self,
        model: str,
        weights: str | None = None,
        *,
        modality: Modality,
        device: str = "cpu",
        precision: str = "fp32",
    ) -> Encoder:
        """Load the tower of ``modality``.

        Raises
        ------
        EncoderError
            If there is no such model, it has no such tower, or the file is not one of the sandbox's.
        MissingWeightsError
            If the weights are not where they should be.
        """
        if model not in MODELS:
            choices = ", ".join(f"sandbox:{name}" for name in MODELS)
            raise EncoderError(f"the sandbox has no model {model!r}", todo=f"one of: {choices}")
        path = Path(weights) if weights else WEIGHTS / f"sandbox-{model}.safetensors"
        data = _read(path)
        header = _header(data, path)
        spec = next((s for s in header["towers"] if s["modality"] == modality), None)
        if spec is None:
            has = " and ".join(s["modality"] for s in header["towers"])
            raise EncoderError(f"sandbox:{model} has no {modality} tower; it encodes {has}", todo=_hint(modality))
        name = f"sandbox:{model}" + (f"/{path.name}" if weights else "")  # without its folder: caches record the name
        space = Space(hashlib.blake2b(data, digest_size=16).hexdigest(), str(header["space"]))
        network = _network(data, spec, path)
        return SandboxEncoder(name, space, spec, header["vocabulary"], network.to(device), device, precision)


class SandboxEncoder:
    """One tower of the sandbox.

    Raw items are ordinary ones: pictures of any size, sounds of any rate and length, clouds of any number of points.
    They are brought to the towers' fixed sizes by :mod:`cmcr.pipeline.sandbox.inputs`, without any chance.
    """

    def __init__(
        self,
        name: str,
        space: Space,
        spec: Mapping[str, Any],
        vocabulary: Sequence[str],
        network: nn.Module,
        device: str,
        precision: str,
    ) -> None:
        self.name = name
        self.modality: Modality = spec["modality"]
        self.space = space
        self.dim = int(spec["dim"])
        self.device = device
        self.precision = precision
        self._vocabulary = inputs.number_words(vocabulary)
        self._network = network

    def fingerprint(self) -> str:
        """Hash of weights (the vocabulary is among them), preprocessing, precision and versions."""
        import torch

        return digest(
            {
                "family": "sandbox",
                "code": CODE_VERSION,
                "weights": self.space.id,
                "modality": self.modality,
                "inputs": inputs.CONSTANTS,
                "precision": self.precision,
                "versions": {"torch": ".".join(torch.__version__.split(".")[:2])},
            }
        )

    def decode(self, item: Item) -> npt.NDArray[Any]:
        """Raw item to the tower's input: words (L,), pixels (3, S, S), spectrum (1, M, T) or points (9, N)."""
        if self.modality == "text":
            return inputs.text_input(_text(item), self._vocabulary)
        if not isinstance(item.data, bytes):
            raise ItemError(f"{self.modality} data must be the bytes of a file", where=item.key)
        from .. import decoders

        name = item.name or item.key
        if self.modality == "image":
            return inputs.image_input(decoders.decode_image(item.data, name))
        if self.modality == "audio":
            return inputs.audio_input(decoders.to_mono(decoders.decode_audio(item.data, name), inputs.AUDIO_RATE))
        return inputs.cloud_input(decoders.decode_points(item.data, name))

    def encode(self, batch: Sequence[npt.NDArray[Any]]) -> Vectors:
        """Decoded inputs to unit rows (B, dim) float32; a row does not depend on its neighbours in the batch."""
        import torch

        stacked = torch.from_numpy(np.stack(batch)).to(self.device)
        with torch.inference_mode():
            if self.precision == "fp32":
                rows = self._network(stacked)
            else:
                dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
                with torch.autocast(torch.device(self.device).type, dtype):
                    rows = self._network(stacked)
            rows = torch.nn.functional.normalize(rows.float(), dim=1)  # (B, dim)
        return np.ascontiguousarray(rows.cpu().numpy(), dtype=np.float32)


def _text(item: Item) -> str:
    if isinstance(item.data, str):
        return item.data
    try:
        return item.data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ItemError(f"the text is not UTF-8: {error.reason}", where=item.key) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingWeightsError(
            f"the sandbox weights cannot be read: {error.strerror}",
            where=str(path),
            todo="install cmcr again, or: python scripts/train_sandbox.py",
        ) from error


def _header(data: bytes, path: Path) -> dict[str, Any]:
    """Read what the training script wrote beside the tensors: space, towers, vocabulary."""
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["config"])
        if not isinstance(header, dict) or {"space", "towers", "vocabulary"} - header.keys():
            raise KeyError("config")
    except (ValueError, KeyError, TypeError) as error:
        raise EncoderError("this is not a weights file of the sandbox", where=str(path)) from error
    return header


def _network(data: bytes, spec: Mapping[str, Any], path: Path) -> nn.Module:
    """Rebuild one tower, in evaluation mode: batch norms use their stored statistics."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from .towers import build_tower

    prefix = f"{spec['modality']}."
    try:
        state = {k.removeprefix(prefix): v for k, v in load(data).items() if k.startswith(prefix)}
        tower = build_tower(spec)
        tower.load_state_dict(state)
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise EncoderError(f"the weights do not fit the {spec['modality']} tower: {error}", where=str(path)) from error
    return tower.eval().requires_grad_(False)


def _hint(modality: Modality) -> str:
    """Which model of the sandbox has the tower."""
    fits = {"text": "sandbox:clip or sandbox:clap", "image": "sandbox:clip or sandbox:ulip"}
    return f"--encoder {fits.get(modality, 'sandbox:clap' if modality == 'audio' else 'sandbox:ulip')}"
