"""The sandbox world: toys with five attributes, drawn by seed, and the split that hides some from the encoders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

import numpy as np

Split = Literal["train", "heldout"]

KINDS = (
    "bell",
    "drum",
    "dog",
    "bird",
    "engine",
    "clock",
    "whistle",
    "guitar",
    "trumpet",
    "cat",
    "frog",
    "rattle",
    "bee",
    "kettle",
    "ball",
    "phone",
)
SIZES = ("small", "medium", "large")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
MATERIALS = ("metal", "wood", "glass", "rubber")
COUNTS = (1, 2, 3, 4)

HELDOUT_SHARE = 0.4
"""Share of the audible compositions that no encoder was trained on."""

Audible = tuple[str, str, str, int]


@dataclass(frozen=True)
class Composition:
    """What stands on the table: ``count`` equal toys of one kind, size, colour and material."""

    kind: str
    size: str
    colour: str
    material: str
    count: int

    @property
    def audible(self) -> Audible:
        """The attributes that a sound or a point cloud tells: all but the colour."""
        return (self.kind, self.size, self.material, self.count)

    def record(self) -> dict[str, str | int]:
        """The attributes as a JSON-able record."""
        return {
            "kind": self.kind,
            "size": self.size,
            "colour": self.colour,
            "material": self.material,
            "count": self.count,
        }


ALL_COMPOSITIONS: tuple[Composition, ...] = tuple(
    Composition(*attributes) for attributes in product(KINDS, SIZES, COLOURS, MATERIALS, COUNTS)
)


def keyed_seed(*key: str | int) -> int:
    """Hash a key of strings and numbers to a 128-bit seed, the same on every machine."""
    text = "|".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


@cache
def is_heldout(composition: Composition) -> bool:
    """Whether encoders never saw this composition, in any colour.

    The split is a hash of the audible attributes, so it is one and the same for every world seed and every space.
    """
    share = keyed_seed("cmcr-sandbox-heldout-1", *composition.audible) / 2**128
    return share < HELDOUT_SHARE


def compositions(split: Split | None = None) -> list[Composition]:
    """All compositions of one split (both for None), in a fixed order."""
    if split is None:
        return list(ALL_COMPOSITIONS)
    return [c for c in ALL_COMPOSITIONS if is_heldout(c) == (split == "heldout")]


class World:
    """One seeded draw of everything: which toys appear, and the nuisance of each picture, sound, cloud and caption.

    Parameters
    ----------
    seed : int
        Worlds of different seeds draw different toys and different nuisance from the same attributes.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def rng(self, *stream: str | int) -> np.random.Generator:
        """Give the generator of one named stream; streams are independent of each other and of the order of use."""
        return np.random.default_rng(keyed_seed("cmcr-sandbox-world-1", self.seed, *stream))

    def draw(self, number: int, split: Split, stream: str = "objects") -> list[Composition]:
        """Draw ``number`` compositions of a split, with repetition, all equally likely."""
        return self.draw_from(compositions(split), number, stream)

    def draw_from(self, pool: Iterable[Composition], number: int, stream: str) -> list[Composition]:
        """Draw ``number`` compositions from a pool: every one of it once, then every one again, in seeded order."""
        choices = list(pool)
        rng = self.rng("draw", stream)
        picks: list[int] = []
        while len(picks) < number:
            picks.extend(rng.permutation(len(choices)).tolist())
        return [choices[pick] for pick in picks[:number]]

    def draw_distinct(self, number: int, split: Split = "heldout", stream: str = "distinct") -> list[Composition]:
        """Draw compositions of which no two sound alike: each audible composition at most once, in one seeded colour.

        Raises
        ------
        ValueError
            If the split has fewer than ``number`` audible compositions.
        """
        rng = self.rng("distinct", stream)
        by_audible: dict[Audible, list[Composition]] = {}
        for composition in compositions(split):
            by_audible.setdefault(composition.audible, []).append(composition)
        groups = list(by_audible.values())
        if number > len(groups):
            raise ValueError(f"the {split} split has {len(groups)} audible compositions, {number} were asked for")
        order = rng.permutation(len(groups))[:number]
        return [groups[i][int(rng.integers(len(groups[i])))] for i in order.tolist()]
