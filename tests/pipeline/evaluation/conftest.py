"""Two encoders without weights that share a space, and caches in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.reader import Cache
from cmcr.cache.writer import ShardData, write_cache
from cmcr.pipeline.encoders.base import Item, Space

Save = Callable[..., Cache]
DIM = 3


class ColourEncoder:
    """Pictures to the direction of their mean colour: red, green and blue are the three axes of the space."""

    name = "toy:colour/image"
    modality: Any = "image"
    space = Space("id-colours", "colours")
    dim = DIM

    def fingerprint(self) -> str:
        return "colour"

    def decode(self, item: Item) -> Any:
        from cmcr.pipeline.decoders import decode_image

        assert isinstance(item.data, bytes)
        return np.asarray(decode_image(item.data, item.name), np.float64)

    def encode(self, batch: Sequence[Any]) -> np.ndarray:
        means = np.array([picture.reshape(-1, 3).mean(0) + 1e-3 for picture in batch])
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


class WordEncoder(ColourEncoder):
    """Sentences to the axis of the colour that they name, a little off by the other words."""

    name = "toy:colour/text"
    modality: Any = "text"

    def decode(self, item: Item) -> Any:
        return item.data

    def encode(self, batch: Sequence[Any]) -> np.ndarray:
        rows = []
        for text in batch:
            seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
            row = np.random.default_rng(seed).normal(scale=0.2, size=DIM)
            rows.append(row + [2.0 * (colour in text) for colour in ("red", "green", "blue")])
        vectors = np.array(rows)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture
def colours() -> ColourEncoder:
    return ColourEncoder()


@pytest.fixture
def words() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write vectors as a cache of the colour space, or of another."""

    def write(
        name: str, keys: Sequence[str], vectors: Any, *, modality: str = "audio", space: str = "colours", **columns: Any
    ) -> Cache:
        rows = np.asarray(vectors, np.float32)
        manifest = CacheManifest(
            f"id-{space}", space, modality, "toy", f"print-{name}", rows.shape[1], "float32", kind="imported"
        )
        return write_cache(tmp_path / name, manifest, [ShardData(list(keys), rows, **columns)])

    return write
