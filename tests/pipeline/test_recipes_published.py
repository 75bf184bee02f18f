"""The published recipes: each loads, names what it says, and runs on caches of its names."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer.main
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.writer import ShardData, write_cache
from cmcr.cli import app
from cmcr.pipeline.encoders.registry import SHORT_NAMES
from cmcr.trainer.connector import Connector
from cmcr.trainer.fit import fit
from cmcr.trainer.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
MODALITIES = {"texts": "text", "audioset": "audio", "imagenet": "image", "objaverse": "pointcloud"}


def test_each_method_has_its_recipes() -> None:
    methods = {path.stem: load_recipe(path).fit.method for path in RECIPES}
    assert methods == {
        "c-mcr-clap-clip": "c-mcr",
        "c-mcr-ulip-clip": "c-mcr",
        "ex-mcr-clap-clip": "ex-mcr",
        "ex-mcr-ulip-clip": "ex-mcr",
    }


def test_the_papers_settings_are_those_of_the_design() -> None:
    """τ = 0.01, σ² = 0.004, λ = 0.1, AdamW 1e-3, 36 epochs, batches of 4,096: arXiv 2305.14381, section 4.1."""
    for path in RECIPES:
        settings = load_recipe(path).fit
        assert (settings.tau1, settings.tau2, settings.tau3) == (0.01, 0.01, 0.01)
        assert (settings.noise_variance, settings.lambda_intra) == (0.004, 0.1)
        assert (settings.lr, settings.epochs, settings.batch_size) == (1e-3, 36, 4096)
        assert settings.keep == ("clip" if settings.method == "ex-mcr" else None)


def test_encoders_that_the_recipes_name_exist_by_these_names() -> None:
    for path in RECIPES:
        named = dict(re.findall(r"--encoder (\w+): (\S+)", path.read_text(encoding="utf-8")))
        assert len(named) == 2, path.name
        assert {short: SHORT_NAMES[short] for short in named} == named


def put_caches(recipe_file: Path, rows: int = 96) -> None:
    """Small caches of 512 dimensions at every place that a recipe names; overlaps share their keys."""
    recipe = load_recipe(recipe_file)
    random = np.random.default_rng(0)
    for name, space in recipe.space.items():
        for place in (space.overlap, *space.bank):
            corpus = Path(place).name.partition("-")[0]
            manifest = CacheManifest(
                space_id=f"id-{name}", space_name=name, modality=MODALITIES[corpus], encoder=f"toy:{name}",
                fingerprint=f"{name}-{corpus}", dim=512, dtype="float16",
            )  # fmt: skip
            vectors = random.normal(size=(rows, 512)).astype(np.float32)
            shard = ShardData(keys=[f"{corpus}/{row:04d}" for row in range(rows)], vectors=vectors)
            write_cache(recipe.path(place), manifest, [shard])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_runs_on_caches_of_its_names(path: Path, tmp_path: Path) -> None:
    file = shutil.copy(path, tmp_path / path.name)
    put_caches(Path(file))
    result = fit(file, epochs=1, batch_size=32, device="cpu")
    connector = Connector.load(result.folder)
    first = path.stem.split("-")[-2]
    assert set(connector.spaces) == {first, "clip"}
    rows = np.random.default_rng(1).normal(size=(3, 512)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kept = np.abs(connector.project(rows, space="clip") - rows).max() < 1e-5
    assert kept == path.stem.startswith("ex-mcr")
    shapes = {tuple(t.shape) for t in connector.heads[first].state_dict().values() if t.ndim == 2}
    assert (
        shapes
        == {
            "c-mcr-clap-clip": {(1024, 512), (512, 1024)},
            "c-mcr-ulip-clip": {(512, 512)},
            "ex-mcr-clap-clip": {(512, 512), (1024, 512), (512, 1024)},
            "ex-mcr-ulip-clip": {(512, 512), (1024, 512), (512, 1024)},
        }[path.stem]
    )


@pytest.mark.parametrize("page", [FOLDER / "README.md", ROOT / "README.md"], ids=["recipes", "README"])
def test_indented_commands_exist_with_their_options(page: Path) -> None:
    """They stand for files of the reader's, so they are held against the parser instead of run."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("    cmcr ")]
    assert len(lines) >= 5
    for line in lines:
        command = typer.main.get_command(app)
        rest = shlex.split(line, comments=True)[1:]
        while hasattr(command, "commands") and rest and rest[0] in command.commands:
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        assert not hasattr(command, "commands") or not rest, line
        assert {word for word in rest if word.startswith("--")} <= known, line


def test_links_of_the_recipes_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (FOLDER / "README.md").read_text(encoding="utf-8")):
        assert (FOLDER / link).exists(), link
