"""The published checkpoints of C-MCR and Ex-MCR: keys, shapes, which head is whose, which encoders they belong to.

Source: the repositories MCR-PEFT/C-MCR and MCR-PEFT/Ex-MCR (head classes, ``load_state_dict`` and forward passes). All
heads take unit rows, apply no temperature and are normalised afterwards, as a connector does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from .projector_spec import ProjectorSpec
from .projectors import build_projector

OfficialKind = Literal["clap_clip", "ulip_clip", "ex_clap", "ex_ulip"]

CLIP, CLAP, ULIP = "clip", "clap", "ulip"
_DIM, _HIDDEN = 512, 1024

_MLP = {"linear1": "net1.0", "bn1": "net1.1", "linear2": "net2.0", "bn2": "net2.1"}
_HALF = {"linear1": "net.0", "bn1": "net.1"}
_DECOUPLED = {
    "linear": "Head1",
    **{f"{mlp}.{ours}": f"Head2.{mlp}.{theirs}" for mlp in ("mlp1", "mlp2") for ours, theirs in _MLP.items()},
}


@dataclass(frozen=True)
class SpaceFacts:
    """A space that a published head belongs to.

    Parameters
    ----------
    modalities : tuple of str
        What the official inference sends through the head: texts always take CLIP's.
    encoders : mapping of str to str
        Modality to encoder name; also of modalities that the head was trained on and inference does not use.
    """

    modalities: tuple[str, ...]
    encoders: Mapping[str, str]


_CLIP_ENCODER = "open_clip:ViT-B-32-quickgelu/openai"  # the weights of Hugging Face's openai/clip-vit-base-patch32
_CLAP_ENCODER = "laion_clap:HTSAT-tiny/630k-fusion-best"  # the authors' laion_clap_fullset_fusion.pt, fusion on
_ULIP_ENCODER = "ulip:PointBERT/pointbert_ULIP-2"

SPACES: dict[str, SpaceFacts] = {
    CLIP: SpaceFacts(("image", "text"), {"image": _CLIP_ENCODER, "text": _CLIP_ENCODER}),
    CLAP: SpaceFacts(("audio",), {"audio": _CLAP_ENCODER, "text": _CLAP_ENCODER}),
    ULIP: SpaceFacts(("pointcloud",), dict.fromkeys(("image", "pointcloud", "text"), _ULIP_ENCODER)),
}


@dataclass(frozen=True)
class OfficialHead:
    """One head of a checkpoint: its prefix there, its projector here, and how layers of the two are called."""

    prefix: str
    spec: ProjectorSpec
    layers: Mapping[str, str]

    def keys(self) -> dict[str, str]:
        """Names of the projector's tensors to keys of the checkpoint, in the order of the checkpoint."""
        with torch.device("meta"):
            names = list(build_projector(self.spec).state_dict())
        renamed = {}
        for name in names:
            layer, _, parameter = name.rpartition(".")
            renamed[name] = f"{self.prefix}{self.layers[layer]}.{parameter}"
        return renamed

    def shapes(self) -> dict[str, torch.Size]:
        """Keys of the checkpoint to the shapes of their tensors."""
        with torch.device("meta"):
            state = build_projector(self.spec).state_dict()
        return {key: state[name].shape for name, key in self.keys().items()}


@dataclass(frozen=True)
class Layout:
    """One published checkpoint.

    Parameters
    ----------
    kind : str
        Name of its file, without ending.
    heads : mapping of str to OfficialHead
        By space, in the order of the checkpoint.
    kept : str or None
        A space that stays untouched: its head is the identity and not in the file.
    method : str
    source : str
        Repository and file.
    trained_on : str
        What the authors trained the connection through.
    """

    kind: OfficialKind
    heads: Mapping[str, OfficialHead]
    method: str
    source: str
    trained_on: str
    kept: str | None = None
    licence: str = field(default="CC BY 4.0")

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the spaces, sorted."""
        return tuple(sorted([*self.heads, *([self.kept] if self.kept else [])]))

    def shapes(self) -> dict[str, torch.Size]:
        """Keys of the whole checkpoint to the shapes of their tensors, in its order."""
        return {key: shape for head in self.heads.values() for key, shape in head.shapes().items()}

    def spec(self, space: str) -> ProjectorSpec:
        """Description of the head of a space."""
        return ProjectorSpec("identity", _DIM, _DIM) if space == self.kept else self.heads[space].spec


def _mlp(prefix: str) -> OfficialHead:
    return OfficialHead(prefix, ProjectorSpec("mlp", _DIM, _DIM, hidden=_HIDDEN, bias=True), _MLP)


def _half(prefix: str) -> OfficialHead:
    return OfficialHead(prefix, ProjectorSpec("half", _DIM, _DIM, bias=True), _HALF)


def _decoupled() -> OfficialHead:
    return OfficialHead("", ProjectorSpec("decoupled", _DIM, _DIM, hidden=_HIDDEN, bias=True), _DECOUPLED)


# A and B stand for other spaces in the two classes: CLIP is Head_B of CLAPCLIP_Head and Head_A of ULIPCLIP_Head.
LAYOUTS: dict[OfficialKind, Layout] = {
    layout.kind: layout
    for layout in (
        Layout(
            "clap_clip",
            {CLAP: _mlp("Head_A."), CLIP: _mlp("Head_B.")},
            "c-mcr",
            "github.com/MCR-PEFT/C-MCR, checkpoints/clap_clip.pt",
            "text",
        ),
        Layout(
            "ulip_clip",
            {CLIP: _half("Head_A."), ULIP: _half("Head_B.")},
            "c-mcr",
            "github.com/MCR-PEFT/C-MCR, checkpoints/ulip_clip.pt",
            "image",
        ),
        Layout(
            "ex_clap",
            {CLAP: _decoupled()},
            "ex-mcr",
            "github.com/MCR-PEFT/Ex-MCR, checkpoints/ex_clap.pt",
            "text",
            kept=CLIP,
        ),
        Layout(
            "ex_ulip",
            {ULIP: _decoupled()},
            "ex-mcr",
            "github.com/MCR-PEFT/Ex-MCR, checkpoints/ex_ulip.pt",
            "image",
            kept=CLIP,
        ),
    )
}
