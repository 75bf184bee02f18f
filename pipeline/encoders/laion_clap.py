"""The family ``laion_clap``: CLAP of LAION, audio and text towers, official checkpoints, fused and unfused.

Names
-----
``laion_clap:MODEL/TAG``          published weights: the hub's cache, laion_clap's own download, or a download now
``laion_clap:MODEL/FILE``         a local .pt; its tensors say whether it is fused
``laion_clap:MODEL/TAG@FILE``     the same, said to be that tag's weights; a fused file for an unfused tag is refused
``laion_clap:MODEL/custom@FILE``  your own training run

MODEL is ``HTSAT-tiny``, or ``HTSAT-base`` for the music checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...cache.errors import ItemError
from ..decoders import decode_audio
from . import laion_clap_audio as policy
from .base import Encoder, Item, Modality, Space, Vectors, digest
from .laion_clap_audio import Clip
from .laion_clap_build import build, keep_spectra_exact
from .laion_clap_checkpoint import check_claim, read_checkpoint
from .laion_clap_text import CONTEXT, Tokenizer, Tokens, load_tokenizer, mask_of
from .laion_clap_weights import choose, locate, recorded_name
from .open_clip_build import tensors_digest

if TYPE_CHECKING:
    import torch


class LaionClapFamily:
    """Loads a tower of ``laion_clap:model/weights``."""

    name = "laion_clap"

    def load(
        self,
        model: str,
        weights: str | None,
        *,
        modality: Modality,
        device: str = "cpu",
        precision: str = "fp32",
        cache_dir: str | None = None,
        tokenizer: str | None = None,
    ) -> Encoder:
        """The audio or text tower; see the module for the names.

        Parameters
        ----------
        cache_dir : str, optional
            Of the hub, where it is not the usual one.
        tokenizer : str, optional
            Folder with the vocabulary of roberta-base. If not said: a folder ``roberta-base`` beside the checkpoint,
            the hub's cache, or a download.

        Raises
        ------
        EncoderError
            If the name or the file does not fit.
        MissingWeightsError
            If weights or tokenizer are not on this machine and cannot be downloaded.
        """
        choice = choose(model, weights)
        path = locate(choice, modality, cache_dir)
        words = load_tokenizer(tokenizer or _beside(path), cache_dir) if modality == "text" else None
        state = read_checkpoint(path)
        check_claim(state, choice, path)
        network = build(model, state, path, modality)
        identity = tensors_digest(state)
        space = Space(identity, choice.space_name or f"clap-{model.lower()}-{identity[:6]}")
        settings = _Settings(recorded_name(choice), space, device, precision)
        if words is not None:
            return LaionClapText(settings, network, words)
        return LaionClapAudio(settings, network)


class _Settings:
    """What towers are told beside their network."""

    def __init__(self, name: str, space: Space, device: str, precision: str) -> None:
        self.name, self.space, self.device, self.precision = name, space, device, precision


class _Tower:
    """What the two towers share: names, the setting of the forward pass, the fingerprint."""

    modality: Modality

    def __init__(self, settings: _Settings, network: Any) -> None:
        self.name = settings.name
        self.space = settings.space
        self.device = settings.device
        self.precision = settings.precision
        self.dim = int(network.joint_embed_shape)
        self._network = network.to(self.device)

    def _record(self) -> dict[str, Any]:
        """What decides a vector of this tower beside the input."""
        import torch

        return {
            "family": "laion_clap",
            "weights": self.space.id,
            "modality": self.modality,
            "precision": self.precision,
            "versions": {"laion_clap": _version("laion_clap"), "torch": ".".join(torch.__version__.split(".")[:2])},
        }

    def _forward(self) -> AbstractContextManager[Any]:
        """No gradients, the precision that was asked for, and on GPUs true float32 and the same bits every time."""
        import torch

        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        kind = torch.device(self.device).type
        if kind == "cuda":
            flags = torch.backends.cudnn.flags
            stack.enter_context(flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False))
        if self.precision != "fp32":
            dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
            stack.enter_context(torch.autocast(kind, dtype))
        return stack

    def _unit_rows(self, features: torch.Tensor) -> Vectors:
        """L2-normalised float32 rows (B, D); zero and non-finite rows stay so, for the caller to refuse."""
        import torch

        rows = torch.nn.functional.normalize(features.float(), dim=-1)  # (B, D)
        return np.ascontiguousarray(rows.cpu().numpy(), dtype=np.float32)


class LaionClapText(_Tower):
    """The text tower: RoBERTa with CLAP's projection."""

    modality: Modality = "text"
    context_length = CONTEXT

    def __init__(self, settings: _Settings, network: Any, tokenizer: Tokenizer) -> None:
        super().__init__(settings, network)
        self._tokenizer = tokenizer
        self._tokenizer_record = tokenizer.record()

    def fingerprint(self) -> str:
        """Hash of weights, tokenizer, precision and versions."""
        return digest({**self._record(), "tokenizer": self._tokenizer_record})

    def decode(self, item: Item) -> Tokens:
        """The caption's tokens, cut to the model's context; raises ItemError for what is not one text."""
        return self._tokenizer(_text(item))

    def encode(self, batch: Sequence[Tokens | str]) -> Vectors:
        """Tokens (or plain texts) to vectors (B, D)."""
        import torch

        tokens = [self._tokenizer(entry) if isinstance(entry, str) else entry for entry in batch]
        inputs = {
            "input_ids": torch.stack([entry.ids for entry in tokens]),  # (B, CONTEXT)
            "attention_mask": torch.stack([mask_of(entry) for entry in tokens]),
        }
        with self._forward():
            return self._unit_rows(self._network.get_text_embedding(inputs))

    def remark(self, decoded: Tokens) -> tuple[str, str] | None:
        """Says so where a text is longer than the model's context."""
        if decoded.length <= CONTEXT:
            return None
        return "TruncatedText", f"{decoded.length} tokens, the first {CONTEXT} kept"


class LaionClapAudio(_Tower):
    """The audio tower: HTS-AT with CLAP's projection, fused or not as its weights are."""

    modality: Modality = "audio"

    def __init__(self, settings: _Settings, network: Any) -> None:
        self.fused = bool(network.enable_fusion)
        if settings.precision != "fp32":
            keep_spectra_exact(network)
        super().__init__(settings, network)

    def fingerprint(self) -> str:
        """Hash of weights, crop and spectrum policy, precision and versions."""
        import soundfile

        versions = {"soxr": _version("soxr"), "libsndfile": soundfile.__libsndfile_version__}
        audio = policy.FUSION_POLICY if self.fused else policy.POLICY
        return digest({**self._record(), "audio": audio, "audio_versions": versions})

    def decode(self, item: Item) -> Clip:
        """The model's input of one encoded sound; raises ItemError for a bad one.

        Sounds of more than ten seconds are cropped, or cut into chunks, at positions that the item's key decides.
        """
        if not isinstance(item.data, bytes):
            raise ItemError("audio data must be the bytes of one sound file", where=item.key)
        return self.prepare(policy.at_rate(decode_audio(item.data, item.name)), item.key)

    def prepare(self, samples: policy.Samples, key: str = "") -> Clip:
        """Mono samples (T,) at 48 kHz to the model's input."""
        return policy.fused_clip(samples, key) if self.fused else policy.unfused_clip(samples, key)

    def encode(self, batch: Sequence[Clip]) -> Vectors:
        """Decoded sounds to vectors (B, D)."""
        import torch

        if self.fused:
            inputs = [
                {"mel_fusion": clip.values.expand(4, -1, -1), "longer": torch.tensor([clip.longer])} for clip in batch
            ]
        else:
            inputs = [{"waveform": clip.values} for clip in batch]
        with self._forward():
            return self._unit_rows(self._network.get_audio_embedding(inputs))


def _beside(checkpoint: Path) -> str | None:
    """The folder ``roberta-base`` beside a checkpoint, for machines that get both by copying."""
    folder = checkpoint.parent / "roberta-base"
    return str(folder) if folder.is_dir() else None


def _text(item: Item) -> str:
    if isinstance(item.data, str):
        return item.data
    if not isinstance(item.data, bytes):
        raise ItemError(
            f"{len(item.data)} captions for one item: a row has one text", where=item.key, todo="key#0, key#1, ..."
        )
    try:
        return item.data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ItemError(f"the text is not UTF-8: {error.reason}", where=item.key) from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
