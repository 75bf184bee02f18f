"""Published connectors from the command line: import, chain, project, search, evaluate and export over real caches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cmcr.cli import app
from cmcr.trainer.connector import Connector
from cmcr.trainer.official_layout import LAYOUTS
from typer.testing import CliRunner

Run = Callable[..., str]


@pytest.fixture
def run() -> Run:
    """Runs a command, which must succeed; its standard output."""

    def invoke(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words], prog_name="cmcr")
        assert result.exit_code == 0, f"{words}\n{result.output}\n{result.exception!r}"
        return result.stdout

    return invoke


def vectors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 512)).astype(np.float32)


def cache(run: Run, folder: Path, name: str, rows: np.ndarray, space: str, modality: str) -> Path:
    """A cache of somebody's vectors, made by ``cmcr cache import``: its space is only declared."""
    np.save(folder / f"{name}.npy", rows)
    out = folder / name
    run("cache", "import", folder / f"{name}.npy", "--output", out, "--space", space, "--modality", modality,
        "--dtype", "float32")  # fmt: skip
    return out


def seeded(kind: str, seed: int) -> dict[str, torch.Tensor]:
    """Sound weights of a published checkpoint's keys and shapes."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for key, shape in LAYOUTS[kind].shapes().items():  # type: ignore[index]
        noise = torch.randn(shape, generator=generator)
        scale = 4 / shape[1] ** 0.5 if len(shape) == 2 else 0.1
        state[key] = torch.tensor(1) if key.endswith("num_batches_tracked") else noise.abs() + 0.5
        if not key.endswith(("running_var", "num_batches_tracked")):
            state[key] = noise * scale
    return state


def best(cosines: np.ndarray) -> list[str]:
    """Keys of the nearest gallery rows, as ``--keys rows`` names them."""
    return [f"{place:09d}" for place in cosines.argmax(axis=1)]


@pytest.mark.kit
def test_search_with_the_published_connector_finds_what_its_heads_say(kit: Path, run: Run, tmp_path: Path) -> None:
    connector = tmp_path / "ulip-clip"
    shown = run("connector", "import", kit / "official" / "ulip_clip.pt", "--output", connector)
    assert "ulip (declared:ulip): " in shown
    shapes, images = vectors(50, 1), vectors(9, 2)
    gallery = cache(run, tmp_path, "shapes", shapes, "ulip", "pointcloud")
    query = cache(run, tmp_path, "images", images, "clip", "image")
    want = best(Connector.load(connector).similarity(images, shapes, ("clip", "ulip")))
    run("project", "--connector", connector, "--input", gallery, "--output", tmp_path / "shared")
    for place in (gallery, tmp_path / "shared"):
        found = json.loads(
            run("search", "--connector", connector, "--gallery", place, "--query", query, "--k", 3, "--json")
        )
        assert [answer["hits"][0]["key"] for answer in found["results"]] == want
    run("connector", "export", connector, "--output", tmp_path / "again.pt")
    official = torch.load(kit / "official" / "ulip_clip.pt", weights_only=True)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert list(again) == list(official)
    assert all(torch.equal(again[key], value) for key, value in official.items())


def test_sounds_find_shapes_through_a_chain_of_two_checkpoints(run: Run, tmp_path: Path) -> None:
    for seed, kind in enumerate(("ex_clap", "ex_ulip")):
        torch.save(seeded(kind, seed), tmp_path / f"{kind}.pt")
        run("connector", "import", tmp_path / f"{kind}.pt", "--kind", kind, "--output", tmp_path / kind)
    chain = tmp_path / "audio-3d"
    shown = run("connector", "chain", tmp_path / "ex_clap", tmp_path / "ex_ulip", "--output", chain)
    assert "chain: clap + clip + ulip into 512-d" in shown
    sounds, shapes = vectors(8, 3), vectors(30, 4)
    gallery = cache(run, tmp_path, "shapes", shapes, "ulip", "pointcloud")
    query = cache(run, tmp_path, "sounds", sounds, "clap", "audio")
    pictures = cache(run, tmp_path, "pictures", vectors(30, 5), "clip", "image")
    cosines = Connector.load(chain).similarity(sounds, shapes, ("clap", "ulip"))
    run("project", "--connector", chain, "--input", gallery, "--output", tmp_path / "shared")
    for place in (gallery, tmp_path / "shared"):
        found = json.loads(run("search", "--connector", chain, "--gallery", place, "--query", query, "--json"))
        assert [answer["hits"][0]["key"] for answer in found["results"]] == best(cosines)
    report = json.loads(
        run("evaluate", "retrieval", "--connector", chain, "--query", query, "--gallery", gallery, "--ks", 1, "--json")
    )
    own = cosines[np.arange(8), np.arange(8)]
    above = (cosines > own[:, None]).sum(axis=1)  # equal keys are relevant
    assert report["query_to_gallery"]["R@1"] == pytest.approx(float((above < 1).mean()))
    assert report["query_to_gallery"]["MRR"] == pytest.approx(float((1 / (1 + above)).mean()))
    run("evaluate", "retrieval", "--connector", chain, "--query", pictures, "--gallery", gallery)
    result = CliRunner().invoke(app, ["connector", "export", str(chain), "--output", str(tmp_path / "x.pt")])
    assert result.exit_code == 1
    run("connector", "export", chain, "--kind", "ex_ulip", "--output", tmp_path / "x.pt")
    again = torch.load(tmp_path / "x.pt", weights_only=True)
    assert all(torch.equal(again[key], value) for key, value in seeded("ex_ulip", 1).items())
