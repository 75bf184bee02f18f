"""What an encoder is: a frozen map from one modality into a space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Modality = Literal["text", "image", "audio", "pointcloud"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "audio", "pointcloud")
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Item:
    """One raw item of a corpus, before decoding.

    Parameters
    ----------
    key : str
        Depends on the corpus alone.
    data : str or bytes
        The caption itself for text, the encoded file (JPEG, WAV, NPY, ...) for the other modalities.
    name : str
        File or member name with its extension; decoders choose the format by content first, by this second.
    caption, source, meta : optional
        Stored beside the vector: caption text, path relative to the input, JSON-able record.
    """

    key: str
    data: str | bytes
    name: str = ""
    caption: str | None = None
    source: str | None = None
    meta: dict[str, Any] | None = None


@dataclass(frozen=True)
class Space:
    """The joint output of one contrastive model: ``id`` hashes the weights that its towers share, ``name`` is short."""

    id: str
    name: str


@runtime_checkable
class Encoder(Protocol):
    """One tower: a frozen map from one modality into a space. Any object with these members is an encoder."""

    @property
    def name(self) -> str:
        """Full name, as ``load_encoder`` takes it."""
        ...

    @property
    def modality(self) -> Modality:
        """What it encodes."""
        ...

    @property
    def space(self) -> Space:
        """The space that its vectors are in."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector, D."""
        ...

    def fingerprint(self) -> str:
        """Hash of all that decides a vector: weights, preprocessing, tokenizer, random policy, dtype, versions."""
        ...

    def decode(self, item: Item) -> Any:
        """Raw item to model input; runs in threads beside the forward. Raises :class:`ItemError` for a bad item."""
        ...

    def encode(self, batch: Sequence[Any]) -> Vectors:
        """Decoded inputs to vectors (B, D) float32, L2-normalised; B is at least one."""
        ...


@runtime_checkable
class Remarking(Protocol):
    """An encoder that remarks on inputs that it takes all the same; optional beside :class:`Encoder`."""

    def remark(self, decoded: Any) -> tuple[str, str] | None:
        """Kind and message (``("TruncatedText", "91 tokens, 77 kept")``) for the ledger, or None; the row stays."""
        ...


class Family(Protocol):
    """A family of encoders: what an entry point of the group ``cmcr.encoders`` names."""

    name: str

    def load(
        self, model: str, weights: str | None, *, modality: Modality, device: str, precision: str, **options: Any
    ) -> Encoder:
        """The tower of ``modality`` of ``family:model/weights``; raises :class:`EncoderError` where it has none."""
        ...


def digest(record: Mapping[str, Any]) -> str:
    """Hash of a JSON-able record, the same on every machine; fingerprints are made of it."""
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
