"""The two connections of the demo, as values: which corpus goes through which encoder, and what is connected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..sandbox.corpora import SandboxCorpora

# No bound: few pairs, raw vectors. It says what C-MCR's projectors and overlap loss reach where pairs are at hand.
TRUE_PAIRS = "true pairs"
TRAINED_WITHOUT_PAIRS = ("c-mcr", "weave")
BASELINES = ("identity", "procrustes", "ridge", "bridge")

# The paper's settings, with narrower projectors for the sandbox's narrow spaces.
PROJECTOR = {"hidden": 256, "out_dim": 128}
WEAVE_STEPS = 300  # its default; nothing of it is set for the sandbox but the length of a small demo


@dataclass(frozen=True)
class Length:
    """How long C-MCR trains: rows a step, and passes over the overlap; about 250 steps each."""

    batch_size: int
    epochs: int

    def settings(self, share: float) -> dict[str, int]:
        """The fields of a recipe; ``share`` shortens the training of a small demo."""
        return {"batch_size": self.batch_size, "epochs": max(1, round(self.epochs * share)), **PROJECTOR}


@dataclass(frozen=True)
class Side:
    """One space of a connection: caches of its overlap, of its bank, and of the true pairs."""

    space: str
    overlap: str
    bank: str
    pairs: str


@dataclass(frozen=True)
class Task:
    """One connection and its test."""

    name: str
    title: str
    lead: str
    sides: tuple[Side, Side]
    query: str
    gallery: str
    query_modality: str
    gallery_modality: str
    length: Length
    pairs_length: Length = Length(batch_size=512, epochs=120)
    methods: tuple[str, ...] = (*BASELINES, *TRAINED_WITHOUT_PAIRS)

    def spaces(self, cache: Callable[[str], Path], *, paired: bool) -> dict[str, dict[str, str]]:
        """The ``space`` tables of a recipe; with ``paired`` the overlap is true pairs and there is no bank."""
        if paired:
            return {side.space: {"overlap": str(cache(side.pairs))} for side in self.sides}
        return {side.space: {"overlap": str(cache(side.overlap)), "bank": str(cache(side.bank))} for side in self.sides}

    def settings(self, method: str, seed: int, share: float) -> Mapping[str, Any]:
        """The ``fit`` table; ``true pairs`` is the projectors and the overlap loss of C-MCR on true pairs."""
        if method == TRUE_PAIRS:
            return {"method": "c-mcr", "seed": seed, **self.pairs_length.settings(share)}
        if method == "c-mcr":
            return {"method": method, "seed": seed, **self.length.settings(share)}
        if method == "weave" and share < 1:
            return {"method": method, "seed": seed, "options": {"steps": round(WEAVE_STEPS * share)}}
        return {"method": method, "seed": seed}


CLAP, CLIP, ULIP = "sandbox-clap", "sandbox-clip", "sandbox-ulip"

TASKS = (
    Task(
        name="audio-image",
        title="audio → image",
        lead=(
            "One space knows sounds and captions, another knows pictures and captions. No sound was ever paired with a"
            " picture; the captions alone connect them. Each query is the sound of a held-out object, the gallery holds"
            " the pictures of all of them."
        ),
        sides=(
            Side(CLAP, "captions-clap", "sounds-clap", "pair-sounds-clap"),
            Side(CLIP, "captions-clip", "images-clip", "pair-images-clip"),
        ),
        query="eval-sounds-clap",
        gallery="eval-images-clip",
        query_modality="audio",
        gallery_modality="image",
        length=Length(batch_size=1024, epochs=36),
    ),
    Task(
        name="points-text",
        title="3D → text",
        lead=(
            "One space knows point clouds and pictures, another knows pictures and captions. Here the pictures connect"
            " them, and a point cloud finds its caption."
        ),
        sides=(
            Side(ULIP, "images-ulip", "clouds-ulip", "pair-clouds-ulip"),
            Side(CLIP, "images-clip", "captions-clip", "pair-captions-clip"),
        ),
        query="eval-clouds-ulip",
        gallery="eval-captions-clip",
        query_modality="pointcloud",
        gallery_modality="text",
        length=Length(batch_size=256, epochs=50),
    ),
)


def corpora_to_encode(corpora: SandboxCorpora) -> Iterator[tuple[str, str, str, Path]]:
    """(cache name, modality, encoder, corpus) of everything that the tasks need."""
    yield "captions-clap", "text", "sandbox:clap", corpora.captions
    yield "captions-clip", "text", "sandbox:clip", corpora.captions
    yield "sounds-clap", "audio", "sandbox:clap", corpora.sounds
    yield "images-clip", "image", "sandbox:clip", corpora.images
    yield "images-ulip", "image", "sandbox:ulip", corpora.images
    yield "clouds-ulip", "pointcloud", "sandbox:ulip", corpora.clouds
    for prefix, sounds, images, clouds, captions in (
        ("eval", corpora.eval_sounds, corpora.eval_images, corpora.eval_clouds, corpora.eval_captions),
        ("pair", corpora.pair_sounds, corpora.pair_images, corpora.pair_clouds, corpora.pair_captions),
    ):
        yield f"{prefix}-sounds-clap", "audio", "sandbox:clap", sounds
        yield f"{prefix}-images-clip", "image", "sandbox:clip", images
        yield f"{prefix}-clouds-ulip", "pointcloud", "sandbox:ulip", clouds
        yield f"{prefix}-captions-clip", "text", "sandbox:clip", captions
