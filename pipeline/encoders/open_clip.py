"""The family ``open_clip``: CLIP and its kin, text and image towers, every model that open_clip lists.

Names
-----
``open_clip:MODEL/TAG``          published weights, from open_clip's cache or by its own download
``open_clip:MODEL/FILE``         a local .pt, .bin or .safetensors: ``open_clip:RN50-quickgelu//data/clip.safetensors``
``open_clip:MODEL/TAG@FILE``     the same, where a model's published weights differ in activation or preprocessing
``open_clip:MODEL/custom@FILE``  your own training run, with the model's activation and preprocessing
``open_clip:hf-hub:ORG/REPO``    a repository of the hub that carries its own configuration
``open_clip:local-dir:FOLDER``   a folder that does
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Encoder, Item, Modality, Space, Vectors, digest
from .hub import endpoint, hub_offline_unless, reachable
from .open_clip_build import (
    Tokens,
    build,
    config_of,
    describe_tokenizer,
    needs_hub,
    space_name,
    state_digest,
    tokenizer_of,
    tokens_of,
)
from .open_clip_weights import Choice, choose
from .torchvision_shim import prepare_torchvision

if TYPE_CHECKING:
    import torch


class OpenClipFamily:
    """Loads a tower of ``open_clip:model/weights``."""

    name = "open_clip"

    def load(
        self,
        model: str,
        weights: str | None,
        *,
        modality: Modality,
        device: str = "cpu",
        precision: str = "fp32",
        cache_dir: str | None = None,
    ) -> Encoder:
        """The text or image tower; see the module for the names.

        Raises
        ------
        EncoderError
            If the name, the activation or the file does not fit.
        MissingWeightsError
            If weights or tokenizer are not on this machine and cannot be downloaded.
        """
        prepare_torchvision()
        choice = choose(model, weights)
        full = recorded_name(choice, model, weights)
        online = not needs_hub(choice) or reachable(endpoint())
        with hub_offline_unless(online):
            network = build(choice, modality, "fp32", "cpu", cache_dir)
            identity = state_digest(network)
            if precision != "fp32":
                network = build(choice, modality, precision, "cpu", cache_dir)
            tokenizer = tokenizer_of(choice, network, cache_dir) if modality == "text" else None
        space = Space(identity, space_name(choice, identity))
        network = network.to(device).eval().requires_grad_(False)
        if tokenizer is not None:
            return OpenClipText(full, space, network, tokenizer, device, precision, config_of(choice))
        return OpenClipImage(full, space, network, device, precision, config_of(choice))


def recorded_name(choice: Choice, model: str, weights: str | None) -> str:
    """The name as caches and connectors record it: files and folders without the place where they lie."""
    if choice.kind == "folder":
        return f"open_clip:local-dir:{Path(choice.model.removeprefix('local-dir:')).name}"
    if choice.file is not None and weights:
        tag, at, _ = weights.rpartition("@")
        return f"open_clip:{model}/{tag}{at}{choice.file.name}"
    return f"open_clip:{model}" + (f"/{weights}" if weights else "")


class _Tower:
    """What the two towers share: names, the forward pass, the fingerprint."""

    modality: Modality

    def __init__(
        self, name: str, space: Space, network: Any, device: str, precision: str, config: dict[str, Any]
    ) -> None:
        self.name = name
        self.space = space
        self.device = device
        self.precision = precision
        self._network = network
        self._quick_gelu = bool(config.get("quick_gelu", False))

    def _record(self) -> dict[str, Any]:
        """What decides a vector of this tower beside the input."""
        import open_clip
        import torch

        return {
            "family": "open_clip",
            "weights": self.space.id,
            "modality": self.modality,
            "precision": self.precision,
            "quick_gelu": self._quick_gelu,
            "versions": {"open_clip": open_clip.__version__, "torch": ".".join(torch.__version__.split(".")[:2])},
        }

    def _unit_rows(self, features: torch.Tensor) -> Vectors:
        """L2-normalised float32 rows (B, D); zero and non-finite rows stay so, for the caller to refuse."""
        import torch

        rows = torch.nn.functional.normalize(features.float(), dim=-1)  # (B, D)
        return np.ascontiguousarray(rows.cpu().numpy(), dtype=np.float32)


class OpenClipText(_Tower):
    """The text tower with the tokenizer that belongs to it."""

    modality: Modality = "text"

    def __init__(
        self, name: str, space: Space, network: Any, tokenizer: Any, device: str, precision: str, config: dict[str, Any]
    ) -> None:
        super().__init__(name, space, network, device, precision, config)
        network.visual = None  # half of the memory, and nothing of it is used here
        self._tokenizer = tokenizer
        self._tokenizer_record = describe_tokenizer(tokenizer)
        # Fast tokenizers set their truncation in a call and then refuse a second thread ("Already borrowed").
        self._lock = threading.Lock() if hasattr(tokenizer, "tokenizer") else None
        self.context_length = int(tokenizer.context_length)
        self.dim = int(self.encode([self._tokenise("a")]).shape[1])

    def fingerprint(self) -> str:
        """Hash of weights, tokenizer, activation, precision and versions."""
        return digest({**self._record(), "tokenizer": self._tokenizer_record})

    def decode(self, item: Item) -> Tokens:
        """The caption's tokens, cut to the model's context."""
        return self._tokenise(item.data if isinstance(item.data, str) else item.data.decode("utf-8"))

    def encode(self, batch: Sequence[Tokens | str]) -> Vectors:
        """Tokens (or plain texts) to vectors (B, D)."""
        import torch

        tokens = [self._tokenise(entry) if isinstance(entry, str) else entry for entry in batch]
        ids = torch.stack([entry.ids for entry in tokens]).to(self.device)  # (B, L)
        with torch.inference_mode():
            return self._unit_rows(self._network.encode_text(ids))

    def remark(self, decoded: Tokens) -> tuple[str, str] | None:
        """Says so where a text is longer than the model's context."""
        if decoded.length <= self.context_length:
            return None
        return "TruncatedText", f"{decoded.length} tokens, the first {self.context_length} kept"

    def _tokenise(self, text: str) -> Tokens:
        if self._lock is None:
            return tokens_of(self._tokenizer, text)
        with self._lock:
            return tokens_of(self._tokenizer, text)


class OpenClipImage(_Tower):
    """The image tower with the preprocessing that belongs to it."""

    modality: Modality = "image"

    def __init__(
        self, name: str, space: Space, network: Any, device: str, precision: str, config: dict[str, Any]
    ) -> None:
        from open_clip.model import get_input_dtype
        from open_clip.transform import PreprocessCfg, image_transform_v2

        super().__init__(name, space, network, device, precision, config)
        for unused in ("transformer", "token_embedding", "text", "text_decoder"):
            if hasattr(network, unused):
                setattr(network, unused, None)
        preprocessing = PreprocessCfg(**network.visual.preprocess_cfg)
        self._preprocessing = asdict(preprocessing)
        self._transform = image_transform_v2(preprocessing, is_train=False)
        self._dtype = get_input_dtype(precision)
        size = (
            preprocessing.size if isinstance(preprocessing.size, Sequence) else (preprocessing.size, preprocessing.size)
        )
        self.dim = int(self.encode([np.zeros((3, *size), dtype=np.float32)]).shape[1])

    def fingerprint(self) -> str:
        """Hash of weights, preprocessing, activation, precision and versions."""
        import PIL
        import torchvision

        versions = {"torchvision": torchvision.__version__.split("+")[0], "Pillow": PIL.__version__}
        return digest({**self._record(), "preprocessing": self._preprocessing, "image_versions": versions})

    def decode(self, item: Item) -> torch.Tensor:
        """The model's pixel tensor (3, H, W) of one encoded image; raises ItemError for a bad one."""
        from ..decoders import decode_image

        data = item.data.encode() if isinstance(item.data, str) else item.data
        return self.preprocess(decode_image(data, item.name))

    def preprocess(self, image: Any) -> torch.Tensor:
        """A PIL image to the model's pixel tensor (3, H, W)."""
        pixels: torch.Tensor = self._transform(image)
        return pixels

    def encode(self, batch: Sequence[Any]) -> Vectors:
        """Pixel tensors (3, H, W), or PIL images, to vectors (B, D)."""
        import torch

        ready = [self.preprocess(entry) if hasattr(entry, "convert") else torch.as_tensor(entry) for entry in batch]
        pixels = torch.stack(ready).to(self.device, dtype=self._dtype)  # (B, 3, H, W)
        with torch.inference_mode():
            return self._unit_rows(self._network.encode_image(pixels))
