"""Fixtures of the pipeline's tests: a toy connector with two spaces, caches in them, and encoders of raw inputs."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.reader import Cache
from cmcr.cache.writer import ShardData, write_cache
from cmcr.pipeline.encoders.base import Item, Space
from cmcr.trainer.connector import Connector
from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo
from cmcr.trainer.projectors import ProjectorSpec, build_projector

DIMS = {"clap": 8, "clip": 12}
MakeCache = Callable[..., Cache]
MakeConnector = Callable[..., Connector]


@pytest.fixture
def make_connector() -> MakeConnector:
    """Toy connectors: random affine heads from clap (8) and clip (12) into 6 dimensions, or other specs."""

    def make(seed: int = 0, *, encoders: dict[str, dict[str, str]] | None = None, **specs: ProjectorSpec) -> Connector:
        heads = {}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for name, dim in DIMS.items():
                heads[name] = build_projector(specs.get(name, ProjectorSpec("affine", dim, 6)))
        recorded = encoders or {}
        spaces = {
            "clap": SpaceInfo("id-clap", ("audio", "text"), recorded.get("clap", {})),
            "clip": SpaceInfo("id-clip", ("image", "text"), recorded.get("clip", {})),
        }
        return Connector(heads, ConnectorInfo(spaces, "toy"))

    return make


@pytest.fixture
def make_cache(tmp_path: Path) -> MakeCache:
    """Caches of given or random vectors in one of the toy spaces, in shards of the sizes given."""

    def make(
        name: str,
        vectors: np.ndarray | int,
        *,
        space: str = "clip",
        shards: Sequence[int] = (),
        keys: Sequence[str] | None = None,
        manifest: dict[str, Any] | None = None,
        **columns: Any,
    ) -> Cache:
        if isinstance(vectors, int):
            seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
            vectors = np.random.default_rng(seed).normal(size=(vectors, DIMS[space])).astype(np.float32)
        names = list(keys) if keys is not None else [f"{name}/{n:05d}" for n in range(len(vectors))]
        modality = {"clap": "audio", "clip": "image"}[space]
        settings: dict[str, Any] = {
            "space_id": f"id-{space}",
            "space_name": space,
            "modality": modality,
            "encoder": f"toy:{space}",
            "fingerprint": f"print-{space}",
            "dim": vectors.shape[1],
            "dtype": "float32",
            **(manifest or {}),
        }
        edges = np.cumsum([0, *(shards or [len(vectors)])])
        assert edges[-1] == len(vectors)
        parts = [
            ShardData(
                keys=names[low:high],
                vectors=vectors[low:high],
                **{column: list(values[low:high]) for column, values in columns.items()},
            )
            for low, high in pairwise(edges)
        ]
        return write_cache(tmp_path / name, CacheManifest(**settings), parts)

    return make


class ToyEncoder:
    """Bytes or text to a vector drawn from their hash; counts what it decodes."""

    def __init__(self, modality: str, space: str) -> None:
        self.name = f"toy:{space}/{modality}"
        self.modality: Any = modality
        self.space = Space(f"id-{space}", space)
        self.dim = DIMS[space]
        self.decoded = 0

    def fingerprint(self) -> str:
        return self.name

    def decode(self, item: Item) -> Any:
        self.decoded += 1
        if self.modality == "image":
            from cmcr.pipeline.decoders import decode_image

            assert isinstance(item.data, bytes)
            decode_image(item.data, item.name)
        return item.data if isinstance(item.data, bytes) else item.data.encode()

    def encode(self, batch: Sequence[Any]) -> np.ndarray:
        rows = []
        for data in batch:
            seed = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
            rows.append(np.random.default_rng(seed).normal(size=self.dim))
        vectors = np.array(rows, dtype=np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


@pytest.fixture
def toy_encoder() -> type[ToyEncoder]:
    """The class of encoders whose vectors depend on the bytes alone."""
    return ToyEncoder


@pytest.fixture(scope="session")
def roberta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of roberta-base's size and special tokens, with a few dozen merges of its own."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("roberta") / "roberta-base"
    folder.mkdir()
    tokenizer = ByteLevelBPETokenizer()
    lines = ["a dog barks while rain falls", "thunder rolls over the hills", "a crowd of people sings and claps"] * 3
    tokenizer.train_from_iterator(
        lines,
        vocab_size=340,
        min_frequency=2,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False,
    )
    tokenizer.save_model(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary |= {f"<unused{i}>": i for i in range(len(vocabulary), 50_264)} | {"<mask>": 50_264}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """An empty hub cache, no offline mode, and a list of every address that anything tried to reach."""
    from huggingface_hub import constants

    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> Any:
        asked.append(address)
        raise OSError("no network in this test")

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


@pytest.fixture(scope="session")
def ulip_maker() -> Any:
    """``golden/make_ulip.py``: the seeded weights and inputs that the original gave ULIP's golden values for."""
    path = Path(__file__).parent / "golden" / "make_ulip.py"
    spec = importlib.util.spec_from_file_location("make_ulip", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def ulip_shapes() -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the official state dicts, at full size and as small as the golden values."""
    shapes: dict[str, dict[str, list[int]]] = json.loads(
        (Path(__file__).parent / "golden" / "ulip_keys.json").read_text(encoding="utf-8")
    )
    return shapes


@pytest.fixture(scope="session")
def ulip_files(ulip_maker: Any, ulip_shapes: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints as ULIP's main.py writes them, with the seeded weights: ``xyz`` and ``colored``."""
    folder = tmp_path_factory.mktemp("ulip")
    files = {}
    for kind, name in (("xyz", "pointbert_ULIP-2.pt"), ("colored", "ULIP-2-colored.pt")):
        files[kind] = folder / name
        torch.save(
            {
                "epoch": 250,
                "state_dict": ulip_maker.weights(ulip_shapes[f"{kind}_small"]),
                "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(3e-3), "betas": (0.9, 0.98)}]},
                "scaler": {"scale": 65536.0},
                "best_acc1": np.float64(74.0),
                "args": argparse.Namespace(model="ULIP_PointBERT", npoints=8192, output_dir="./outputs"),
            },
            files[kind],
        )
    return files


@pytest.fixture
def small_ulip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The family's models as shallow as the golden values; everything else of them is official."""
    from cmcr.pipeline.encoders import ulip

    for name, variant in ulip.MODELS.items():
        points = replace(variant.points, depth=2, groups=128, group_size=32)
        slip = replace(variant.slip, image_depth=2, text_depth=2)
        monkeypatch.setitem(ulip.MODELS, name, replace(variant, points=points, slip=slip))
