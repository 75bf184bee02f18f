"""Small caches for the tests of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.reader import Cache
from cmcr.cache.writer import ShardData, write_cache

MakeCache = Callable[..., Cache]


def _unit(count: int, dim: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def unit() -> Callable[..., np.ndarray]:
    """Random unit rows (count, dim) float32 of a seed."""
    return _unit


@pytest.fixture
def make_cache(tmp_path: Path) -> MakeCache:
    """A cache of some vectors under ``tmp_path``: name, vectors, space, modality, keys, captions, shard size."""

    def make(
        name: str,
        vectors: np.ndarray,
        *,
        space: str = "one",
        modality: str = "text",
        keys: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
        shard: int = 1000,
        dtype: str = "float32",
    ) -> Cache:
        names = [f"item-{i:06d}" for i in range(len(vectors))] if keys is None else list(keys)
        manifest = CacheManifest(
            f"id-{space}", space, modality, f"test:{modality}", f"fp-{space}-{modality}", vectors.shape[1], dtype
        )
        shards = [
            ShardData(
                names[at : at + shard],
                vectors[at : at + shard],
                None if captions is None else list(captions[at : at + shard]),
            )
            for at in range(0, len(vectors), shard)
        ]
        return write_cache(tmp_path / name, manifest, shards)

    return make


@pytest.fixture
def world(make_cache: MakeCache, tmp_path: Path) -> Path:
    """A folder with two spaces of unequal width over 600 shared items, each with a bank, and ``recipe.toml``."""
    rng = np.random.default_rng(7)
    meaning = rng.standard_normal((900, 8))

    def seen(rows: np.ndarray, width: int, seed: int) -> np.ndarray:
        view = np.random.default_rng(seed).standard_normal((8, width))
        vectors = rows @ view + 0.3 * rng.standard_normal((len(rows), width))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    make_cache("text-clap", seen(meaning[:600], 24, 1), space="clap", shard=256)
    make_cache("text-clip", seen(meaning[:600], 20, 2), space="clip", shard=256)
    audio, image = seen(meaning[600:750], 24, 1), seen(meaning[750:], 20, 2)
    make_cache("audio", audio, space="clap", modality="audio", keys=[f"sound-{i}" for i in range(150)])
    make_cache("images", image, space="clip", modality="image", keys=[f"image-{i}" for i in range(150)])
    (tmp_path / "recipe.toml").write_text(
        """
        [space.clap]
        overlap = "text-clap"
        bank = ["audio"]
        [space.clip]
        overlap = "text-clip"
        bank = "images"
        [fit]
        method = "c-mcr"
        epochs = 4
        batch_size = 128
        hidden = 32
        out_dim = 16
        tau1 = 0.05
        output = "out"
        log_every = 1
        checkpoint_every = 3
        """
    )
    return tmp_path
