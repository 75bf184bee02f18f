"""Sandbox corpora on disk: ordinary text, image, sound and point files for one world seed."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .grammar import caption, mixed_flavour
from .render import image_bytes, render
from .shapes import sample_cloud
from .synth import RATE, synthesise
from .world import ALL_COMPOSITIONS, Composition, World, keyed_seed

Kept = Literal["image", "sound", "cloud"]

CAPTION_FLAVOURS = (0.4, 0.4, 0.2)
"""Shares of image-like, audio-like and mixed captions among the overlapping captions."""


@dataclass(frozen=True)
class SandboxSizes:
    """How much of everything is written.

    Parameters
    ----------
    captions, images, sounds, clouds : int
        The unpaired corpora: each draws its own objects.
    evaluation : int
        Objects that each have a picture, a sound, a cloud and a caption; no two of them sound alike.
    pairs : int
        Objects with all four, used for the demo's row ``true pairs`` alone.
    """

    captions: int = 8_000
    images: int = 1_500
    sounds: int = 1_500
    clouds: int = 800
    evaluation: int = 200
    pairs: int = 400

    def scaled(self, share: float) -> SandboxSizes:
        """Give the same sizes times ``share``, at least one each."""
        return SandboxSizes(**{name: max(1, round(value * share)) for name, value in vars(self).items()})


@dataclass(frozen=True)
class SandboxCorpora:
    """Where the files of a world lie; keys are file stems, and the same stem is the same object.

    ``captions`` is a text file, one caption a line; ``eval_captions`` and ``pair_captions`` are JSONL with ``key`` and
    ``caption``; ``truth`` is JSONL with the corpus, key and attributes of every object, which no method may read. The
    rest are folders.
    """

    root: Path
    seed: int
    captions: Path
    images: Path
    sounds: Path
    clouds: Path
    eval_captions: Path
    eval_images: Path
    eval_sounds: Path
    eval_clouds: Path
    pair_captions: Path
    pair_images: Path
    pair_sounds: Path
    pair_clouds: Path
    truth: Path


@dataclass(frozen=True)
class Draw:
    """Which object each corpus of a world shows, in the order of its keys."""

    evaluation: tuple[Composition, ...]
    pairs: tuple[Composition, ...]
    captions: tuple[Composition, ...]
    images: tuple[Composition, ...]
    sounds: tuple[Composition, ...]
    clouds: tuple[Composition, ...]


def draw_objects(seed: int, sizes: SandboxSizes = SandboxSizes()) -> Draw:
    """Draw the objects of every corpus.

    Evaluation objects are held-out compositions; whatever sounds like one of them is in no other corpus. All further
    objects are dealt into three disjoint sets, for pictures, for sounds and for clouds, so that no two of these corpora
    share an object. Pairs and captions are drawn from all of them.

    Raises
    ------
    ValueError
        If more evaluation objects are asked for than the held-out split has.
    """
    world = World(seed)
    evaluation = world.draw_distinct(sizes.evaluation, "heldout", "evaluation")
    tested = {c.audible for c in evaluation}
    free = [c for c in ALL_COMPOSITIONS if c.audible not in tested]
    dealt: dict[Kept, list[Composition]] = {"image": [], "sound": [], "cloud": []}
    for composition in free:
        dealt[_deal(seed, composition)].append(composition)
    return Draw(
        evaluation=tuple(evaluation),
        pairs=tuple(world.draw_from(free, sizes.pairs, "pairs")),
        captions=tuple(world.draw_from(free, sizes.captions, "captions")),
        images=tuple(world.draw_from(dealt["image"], sizes.images, "images")),
        sounds=tuple(world.draw_from(dealt["sound"], sizes.sounds, "sounds")),
        clouds=tuple(world.draw_from(dealt["cloud"], sizes.clouds, "clouds")),
    )


def write_corpora(folder: Path | str, seed: int, sizes: SandboxSizes = SandboxSizes()) -> SandboxCorpora:
    """Write all corpora of a world below ``folder``.

    Captions use held-out templates, renderings are of this seed alone: no encoder has seen any of them. The same seed
    and sizes give the same bytes. Existing files of the same names are replaced.

    Parameters
    ----------
    folder : path
        Made if needed.
    seed : int
        Of the world.
    sizes : SandboxSizes

    Returns
    -------
    SandboxCorpora
        The paths.
    """
    corpora = locate_corpora(folder, seed)
    draw = draw_objects(seed, sizes)
    world = World(seed)
    corpora.root.mkdir(parents=True, exist_ok=True)
    _write_lines(corpora.captions, _captions(world, draw.captions))
    _write_images(corpora.images, world, draw.images, "img", jpeg=True)
    _write_sounds(corpora.sounds, world, draw.sounds, "snd", "flac")
    _write_clouds(corpora.clouds, world, draw.clouds, "cld")
    _write_objects(corpora, world, draw)
    truth = [
        {"corpus": name, "key": key, **composition.record()}
        for name, prefix in _PREFIXES.items()
        for key, composition in zip(_keys(prefix, getattr(draw, name)), getattr(draw, name), strict=True)
    ]
    _write_lines(corpora.truth, [json.dumps(record) for record in truth])
    return corpora


def locate_corpora(folder: Path | str, seed: int) -> SandboxCorpora:
    """Name the paths that :func:`write_corpora` writes, without writing."""
    root = Path(folder)
    return SandboxCorpora(
        root=root,
        seed=seed,
        captions=root / "captions.txt",
        images=root / "images",
        sounds=root / "sounds",
        clouds=root / "clouds",
        eval_captions=root / "eval-captions.jsonl",
        eval_images=root / "eval-images",
        eval_sounds=root / "eval-sounds",
        eval_clouds=root / "eval-clouds",
        pair_captions=root / "pair-captions.jsonl",
        pair_images=root / "pair-images",
        pair_sounds=root / "pair-sounds",
        pair_clouds=root / "pair-clouds",
        truth=root / "truth.jsonl",
    )


_PREFIXES = {
    "evaluation": "obj",
    "pairs": "pair",
    "images": "img",
    "sounds": "snd",
    "clouds": "cld",
    "captions": "captions:",
}


def _deal(seed: int, composition: Composition) -> Kept:
    """Which of the three unpaired corpora an object belongs to in this world."""
    lot = keyed_seed("cmcr-sandbox-deal-1", seed, *composition.audible, composition.colour) / 2**128
    return "image" if lot < 0.4 else "sound" if lot < 0.8 else "cloud"


def _keys(prefix: str, objects: Sequence[Composition]) -> list[str]:
    if prefix.endswith(":"):
        return [f"{prefix}{i:09d}" for i in range(1, len(objects) + 1)]
    return [f"{prefix}-{i:04d}" for i in range(len(objects))]


def _captions(world: World, objects: Sequence[Composition]) -> list[str]:
    rng = world.rng("overlap captions")
    return [caption(c, rng, flavour=mixed_flavour(rng, CAPTION_FLAVOURS), split="heldout") for c in objects]


def _write_objects(corpora: SandboxCorpora, world: World, draw: Draw) -> None:
    """Write evaluation objects and pairs: the same key in all four modalities."""
    for objects, prefix, texts, images, sounds, clouds in (
        (draw.evaluation, "obj", corpora.eval_captions, corpora.eval_images, corpora.eval_sounds, corpora.eval_clouds),
        (draw.pairs, "pair", corpora.pair_captions, corpora.pair_images, corpora.pair_sounds, corpora.pair_clouds),
    ):
        _write_images(images, world, objects, prefix)
        _write_sounds(sounds, world, objects, prefix, "wav")
        _write_clouds(clouds, world, objects, prefix)
        rng = world.rng("captions", prefix)
        sentences = [caption(c, rng, flavour="both", split="heldout", complete=True) for c in objects]
        records = zip(_keys(prefix, objects), sentences, strict=True)
        _write_lines(texts, [json.dumps({"key": key, "caption": text}) for key, text in records])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_images(folder: Path, world: World, objects: Sequence[Composition], prefix: str, jpeg: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    for i, (key, composition) in enumerate(zip(_keys(prefix, objects), objects, strict=True)):
        image = render(composition, world.rng("image", prefix, i))
        path = folder / f"{key}.{'jpg' if jpeg else 'png'}"
        path.write_bytes(image_bytes(image, "JPEG" if jpeg else "PNG"))


def _write_sounds(folder: Path, world: World, objects: Sequence[Composition], prefix: str, suffix: str) -> None:
    import soundfile

    folder.mkdir(exist_ok=True)
    for i, (key, composition) in enumerate(zip(_keys(prefix, objects), objects, strict=True)):
        samples = synthesise(composition, world.rng("sound", prefix, i))
        # through a buffer: soundfile syncs every file to the disk, which takes longer than all the rest
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE, format=suffix.upper(), subtype="PCM_16")
        (folder / f"{key}.{suffix}").write_bytes(buffer.getvalue())


def _write_clouds(folder: Path, world: World, objects: Sequence[Composition], prefix: str) -> None:
    folder.mkdir(exist_ok=True)
    for i, (key, composition) in enumerate(zip(_keys(prefix, objects), objects, strict=True)):
        np.save(folder / f"{key}.npy", sample_cloud(composition, world.rng("cloud", prefix, i)), allow_pickle=False)
