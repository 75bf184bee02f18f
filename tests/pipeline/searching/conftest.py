"""Galleries that grow, for the tests of their indexes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.reader import Cache
from cmcr.cache.writer import ShardData, write_cache

DIM = 24
Grow = Callable[..., Cache]
Clustered = Callable[[int, int], np.ndarray]


@pytest.fixture
def clustered() -> Clustered:
    """Unit rows around 60 centres, by number and seed: (rows, 24) float32."""

    def make(rows: int, seed: int) -> np.ndarray:
        centres = np.random.default_rng(7).normal(size=(60, DIM))
        rng = np.random.default_rng(seed)
        found = centres[rng.integers(0, 60, rows)] + 0.7 * rng.normal(size=(rows, DIM))
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)

    return make


@pytest.fixture
def grow(tmp_path: Path) -> Grow:
    """Write the gallery of given shards (float32, in the shared space already) anew; equal shards are equal bytes."""

    def make(*shards: np.ndarray) -> Cache:
        shutil.rmtree(tmp_path / "gallery", ignore_errors=True)
        manifest = CacheManifest("id-x", "x", "image", "toy", "print", DIM, dtype="float32")
        starts = np.cumsum([0, *map(len, shards)])
        data = (
            ShardData([f"item/{start + n:05d}" for n in range(len(rows))], rows)
            for start, rows in zip(starts, shards, strict=False)
        )
        return write_cache(tmp_path / "gallery", manifest, data)

    return make
