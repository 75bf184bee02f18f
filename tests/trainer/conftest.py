"""Small caches for the tests of the trainer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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


def _make_cache(
    folder: Path,
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
    return write_cache(folder / name, manifest, shards)


@pytest.fixture
def make_cache(tmp_path: Path) -> MakeCache:
    """A cache of some vectors under ``tmp_path``: name, vectors, space, modality, keys, captions, shard size."""
    return partial(_make_cache, tmp_path)


def _make_world(folder: Path) -> Path:
    make_cache = partial(_make_cache, folder)
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
    (folder / "recipe.toml").write_text(
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
    return folder


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with two spaces of unequal width over 600 shared items, each with a bank, and ``recipe.toml``."""
    return _make_world(tmp_path)


@pytest.fixture(scope="session")
def make_world() -> Callable[[Path], Path]:
    """Fills a folder as that of ``world``."""
    return _make_world


_MLP = ("net1.0", "net1.1", "net2.0", "net2.1")
_HALF = ("net.0", "net.1")


def _keys_of(prefix: str, layers: tuple[str, ...], width: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of one _MLP as ``nn.Sequential`` names them: linear layers and batch norms in turn."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place, layer in enumerate(layers):
        out, into = width[layer.partition(".")[0]]
        if place % 2 == 0:
            shapes |= {f"{prefix}.{layer}.weight": (out, into), f"{prefix}.{layer}.bias": (out,)}
        else:
            shapes |= {f"{prefix}.{layer}.{n}": (out,) for n in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{prefix}.{layer}.num_batches_tracked"] = ()
    return shapes


_FULL = {"net1": (1024, 512), "net2": (512, 1024)}
_HEAD = {"Head1.weight": (512, 512), "Head1.bias": (512,)}
_SHAPES = {
    "clap_clip": {**_keys_of("Head_A", _MLP, _FULL), **_keys_of("Head_B", _MLP, _FULL)},
    "ulip_clip": {**_keys_of("Head_A", _HALF, {"net": (512, 512)}), **_keys_of("Head_B", _HALF, {"net": (512, 512)})},
    "ex_clap": {**_HEAD, **_keys_of("Head2.mlp1", _MLP, _FULL), **_keys_of("Head2.mlp2", _MLP, _FULL)},
}
_SHAPES["ex_ulip"] = _SHAPES["ex_clap"]


def _seeded(kind: str) -> OrderedDict[str, torch.Tensor]:
    """A state dict of exactly the official keys, order and shapes, filled from a seed."""
    return OrderedDict((key, value.clone()) for key, value in _filled_once(kind).items())


@lru_cache(maxsize=4)
def _filled_once(kind: str) -> dict[str, torch.Tensor]:
    rng, filled = np.random.default_rng(2310), {}
    for key in sorted(_SHAPES[kind]):
        shape = _SHAPES[kind][key]
        z = rng.standard_normal(shape).astype(np.float32) if shape else np.float32(rng.standard_normal())
        if key.endswith("num_batches_tracked"):
            filled[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            filled[key] = torch.from_numpy(0.5 + np.abs(z))
        else:
            filled[key] = torch.from_numpy(z * np.float32(8 / np.sqrt(shape[1]) if len(shape) == 2 else 0.3))
    return {key: filled[key] for key in _SHAPES[kind]}


@pytest.fixture(scope="session")
def seeded() -> Callable[[str], OrderedDict[str, torch.Tensor]]:
    """State dicts of the published checkpoints by kind (clap_clip, ulip_clip, ex_clap, ex_ulip), filled from a seed."""
    return _seeded


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Saves anything with ``torch.save`` under the name of a checkpoint."""

    def save(value: Any, name: str = "some") -> Path:
        torch.save(value, tmp_path / f"{name}.pt")
        return tmp_path / f"{name}.pt"

    return save
