"""Captions of the sandbox: templates and synonyms in three flavours (image, audio, both), with dropped attributes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .world import Composition, Split

Flavour = Literal["image", "audio", "both"]
FLAVOURS: tuple[Flavour, ...] = ("image", "audio", "both")

HELDOUT_SYNONYM_CHANCE = 0.12
"""How often a held-out caption uses a synonym that no encoder has read."""


@dataclass(frozen=True)
class Words:
    """Synonyms of one attribute value: for pictures, for sounds, and those that only held-out captions use."""

    image: tuple[str, ...]
    audio: tuple[str, ...]
    heldout: tuple[str, ...] = ()


SIZE_WORDS = {
    "small": Words(("small", "little", "tiny"), ("small", "little", "high pitched"), ("miniature",)),
    "medium": Words(("medium sized", "mid sized", "medium"), ("medium", "medium sized", "mid pitched"), ("average",)),
    "large": Words(("large", "big", "huge"), ("large", "big", "low pitched"), ("giant",)),
}
COLOUR_WORDS = {
    "red": Words(("red", "crimson"), ("red",), ("ruby",)),
    "orange": Words(("orange", "tangerine"), ("orange",), ("apricot",)),
    "yellow": Words(("yellow", "golden"), ("yellow",), ("lemon",)),
    "green": Words(("green", "leafy green"), ("green",), ("emerald",)),
    "blue": Words(("blue", "azure"), ("blue",), ("sapphire",)),
    "purple": Words(("purple", "violet"), ("purple",), ("lilac",)),
    "white": Words(("white", "pale"), ("white",), ("snowy",)),
    "black": Words(("black", "dark"), ("black",), ("ebony",)),
}
MATERIAL_WORDS = {
    "metal": Words(("metal", "steel", "shiny metal"), ("metallic", "metal", "bright metallic"), ("iron",)),
    "wood": Words(("wooden", "wood grained", "timber"), ("wooden", "woody", "dry wooden"), ("oak",)),
    "glass": Words(("glass", "transparent glass", "see through"), ("glass", "glassy", "clinking glass"), ("crystal",)),
    "rubber": Words(("rubber", "matte rubber", "dotted rubber"), ("rubber", "dull rubber", "muffled"), ("soft",)),
}
KIND_WORDS = {
    "bell": Words(("bell", "hand bell"), ("bell",)),
    "drum": Words(("drum", "toy drum"), ("drum",)),
    "dog": Words(("dog", "puppy"), ("dog", "hound")),
    "bird": Words(("bird", "songbird"), ("bird",)),
    "engine": Words(("engine", "motor"), ("engine", "motor")),
    "clock": Words(("clock", "alarm clock"), ("clock",)),
    "whistle": Words(("whistle", "toy whistle"), ("whistle",)),
    "guitar": Words(("guitar", "toy guitar"), ("guitar",)),
    "trumpet": Words(("trumpet", "horn"), ("trumpet", "horn")),
    "cat": Words(("cat", "kitten"), ("cat",)),
    "frog": Words(("frog", "toad"), ("frog",)),
    "rattle": Words(("rattle", "baby rattle"), ("rattle", "shaker")),
    "bee": Words(("bee", "bumblebee"), ("bee",)),
    "kettle": Words(("kettle", "teapot"), ("kettle",)),
    "ball": Words(("ball", "toy ball"), ("ball", "bouncy ball")),
    "phone": Words(("phone", "telephone"), ("phone", "telephone")),
}
VERBS = {
    "bell": ("ringing", "chiming"),
    "drum": ("thumping", "beating"),
    "dog": ("barking", "woofing"),
    "bird": ("chirping", "tweeting"),
    "engine": ("rumbling", "chugging"),
    "clock": ("ticking", "tick tocking"),
    "whistle": ("whistling", "shrilling"),
    "guitar": ("strumming", "twanging"),
    "trumpet": ("blaring", "tooting"),
    "cat": ("meowing", "mewing"),
    "frog": ("croaking", "ribbiting"),
    "rattle": ("rattling", "shaking"),
    "bee": ("buzzing", "humming"),
    "kettle": ("hissing", "steaming"),
    "ball": ("bouncing", "boinging"),
    "phone": ("trilling", "ringing"),
}
NUMBERS = {
    1: ("a", "one", "a single"),
    2: ("two", "a pair of"),
    3: ("three", "a trio of"),
    4: ("four", "a group of four"),
}
TIMES = {1: "once", 2: "twice", 3: "three times", 4: "four times"}

TEMPLATES: dict[Split, dict[Flavour, tuple[str, ...]]] = {
    "train": {
        "image": (
            "{toys}",
            "a photo of {toys}",
            "a picture of {toys}",
            "{toys} on a table",
            "{toys} standing in a room",
            "there {is_are} {toys} here",
        ),
        "audio": (
            "{toys} {verb}",
            "{toys} {verb} {times}",
            "the sound of {toys}",
            "the sound of {toys} {verb}",
            "a recording of {toys} {verb} {times}",
            "{verb} from {toys}",
        ),
        "both": (
            "{toys} {verb}",
            "a video of {toys} {verb}",
            "{toys} on a table {verb}",
            "{toys} {verb} {times} in a room",
        ),
    },
    "heldout": {
        "image": (
            "an image of {toys}",
            "we can see {toys}",
            "{toys} placed on the floor",
            "a snapshot showing {toys}",
        ),
        "audio": (
            "we can hear {toys} {verb}",
            "audio of {toys} {verb} {times}",
            "{toys} can be heard {verb}",
            "the noise of {toys}",
        ),
        "both": (
            "in this clip {toys} {is_are} {verb}",
            "we see and hear {toys} {verb}",
            "{toys} {verb} {times} on the floor",
        ),
    },
}

_KEEP: dict[Flavour, dict[str, float]] = {
    "image": {"size": 0.75, "colour": 0.8, "material": 0.75, "count": 0.9},
    "audio": {"size": 0.75, "colour": 0.05, "material": 0.75, "count": 0.9},
    "both": {"size": 0.7, "colour": 0.6, "material": 0.7, "count": 0.9},
}


def caption(
    composition: Composition,
    rng: np.random.Generator,
    *,
    flavour: Flavour = "both",
    split: Split = "train",
    complete: bool = False,
) -> str:
    """Write one caption.

    Parameters
    ----------
    composition : Composition
        What it tells of.
    rng : numpy Generator
        Chooses template, synonyms, and what is left out.
    flavour : {"image", "audio", "both"}
        Which words and which attributes are usual: a picture's caption names colours, a sound's caption names verbs.
    split : {"train", "heldout"}
        Held-out captions use templates that no encoder has read, and now and then a synonym that none has read.
    complete : bool
        Leave out no attribute that the flavour knows (an audio-like caption knows no colour).
    """
    keep = {name: bool(rng.random() < chance) for name, chance in _KEEP[flavour].items()}
    if complete:
        keep = {name: name != "colour" or flavour != "audio" for name in keep}
    template = _pick(TEMPLATES[split][flavour], rng)
    # "twice" in the template already tells the count, but the noun must still agree with it
    text = template.format(
        toys=_noun_phrase(composition, rng, flavour, split, keep),
        verb=_pick(VERBS[composition.kind], rng),
        times=TIMES[composition.count] if keep["count"] else "again",
        is_are="is" if composition.count == 1 else "are",
    )
    return re.sub(r"\ba (?=[aeio])", "an ", text)


def mixed_flavour(rng: np.random.Generator, weights: tuple[float, float, float]) -> Flavour:
    """Draw a flavour with the weights of (image, audio, both)."""
    return FLAVOURS[int(rng.choice(3, p=np.asarray(weights) / sum(weights)))]


def _noun_phrase(
    composition: Composition, rng: np.random.Generator, flavour: Flavour, split: Split, keep: dict[str, bool]
) -> str:
    """Compose number, adjectives and noun."""
    adjectives = []
    for name, table in (("size", SIZE_WORDS), ("colour", COLOUR_WORDS), ("material", MATERIAL_WORDS)):
        if keep[name]:
            adjectives.append(_synonym(table[getattr(composition, name)], rng, flavour, split))
    if rng.random() < 0.15:
        adjectives = [adjectives[i] for i in rng.permutation(len(adjectives))]
    noun = _synonym(KIND_WORDS[composition.kind], rng, flavour, split)
    if composition.count > 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    number = _pick(NUMBERS[composition.count], rng) if keep["count"] else ("some" if composition.count > 1 else "a")
    return " ".join([number, *adjectives, noun])


def _synonym(words: Words, rng: np.random.Generator, flavour: Flavour, split: Split) -> str:
    """Choose a synonym of the flavour; held-out captions sometimes use one that no encoder has read."""
    if split == "heldout" and words.heldout and rng.random() < HELDOUT_SYNONYM_CHANCE:
        return _pick(words.heldout, rng)
    if flavour == "both":
        return _pick(words.image if rng.random() < 0.5 else words.audio, rng)
    return _pick(words.image if flavour == "image" else words.audio, rng)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
