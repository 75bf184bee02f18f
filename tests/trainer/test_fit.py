from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cmcr.cache.errors import FitError, RecipeError
from cmcr.cache.reader import open_cache
from cmcr.trainer.connector import Connector
from cmcr.trainer.fit import fit
from cmcr.trainer.recipe import load_recipe

FILES = {
    "README.md",
    "config.json",
    "connector.safetensors",
    "curve.png",
    "metrics.jsonl",
    "recipe.toml",
    "tensorboard/events.out.tfevents.0.cmcr",
}


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a connector folder but its run records."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != "runs"
    }


def test_a_fit_writes_the_whole_folder_and_nothing_of_the_machine(world: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = fit(world / "recipe.toml", progress=lambda done, total, record: seen.append((done, total)))
    assert result.folder == world / "out"
    made = files(result.folder)
    assert set(made) == FILES
    texts = b"".join(content for name, content in made.items() if name != "curve.png")
    for private in (str(world), str(Path.home()), os.uname().nodename):
        if len(private) > 3:
            assert private.encode() not in texts, private
    assert list((result.folder / "runs").iterdir())
    assert seen[-1] == (16, 16)
    lines = [json.loads(line) for line in made["metrics.jsonl"].decode().splitlines()]
    assert lines[-1] == result.metrics
    assert set(lines[0]) == {
        "step", "epoch", "lr", "loss", "loss_overlap", "loss_completed", "loss_intra", "grad_norm",
    }  # fmt: skip


def test_the_connector_that_is_loaded_is_the_one_that_was_fitted(world: Path) -> None:
    result = fit(world / "recipe.toml")
    loaded = Connector.load(result.folder)
    audio = open_cache(world / "audio").rows(np.arange(20))
    assert np.array_equal(loaded.project(audio, "clap"), result.connector.project(audio, "clap"))
    info = loaded.info
    assert (info.method, info.made_from["rows"]) == ("c-mcr", 600)
    assert info.spaces["clap"].modalities == ("audio", "text")
    assert info.spaces["clip"].encoders == {"image": "test:image", "text": "test:text"}
    assert info.made_from["caches"]["clip"]["overlap"] == open_cache(world / "text-clip").content_id()


def test_two_fits_of_one_recipe_give_identical_files(world: Path) -> None:
    one, two = fit(world / "recipe.toml", output=world / "one"), fit(world / "recipe.toml", output=world / "two")
    assert files(one.folder) == files(two.folder)
    other = fit(world / "recipe.toml", output=world / "three", seed=1)
    assert files(other.folder)["connector.safetensors"] != files(one.folder)["connector.safetensors"]


def test_the_saved_recipe_fits_the_same_connector_again(world: Path) -> None:
    first = fit(world / "recipe.toml", output=world / "one", lr=2e-3)
    again = fit(world / "one" / "recipe.toml", output=world / "two")
    assert files(again.folder) == files(first.folder)


@pytest.mark.parametrize("method", ["identity", "procrustes", "ridge", "bridge"])
def test_every_method_goes_through_the_same_door(world: Path, method: str) -> None:
    result = fit(world / "recipe.toml", method=method)
    assert result.connector.info.method == method
    assert "curve.png" not in files(result.folder)
    assert {"config.json", "README.md", "recipe.toml"} <= set(files(result.folder))
    assert not (world / "completions").exists()


def test_a_method_of_ones_own_is_found_beside_the_recipe(world: Path) -> None:
    (world / "my.py").write_text(
        "from cmcr.trainer.projectors import ProjectorSpec, build_projector\n"
        "class Zero:\n"
        "    name = 'zero'\n"
        "    def fit(self, pairs, settings, run):\n"
        "        import torch\n"
        "        torch.manual_seed(settings.seed)\n"
        "        run.log({'step': 1, 'loss': 0.5})\n"
        "        return {n: build_projector(ProjectorSpec('affine', pairs.overlap[n].dim, 4)) for n in pairs.names}\n"
    )
    result = fit(load_recipe(world / "recipe.toml", ["fit.method=my.py:Zero"]))
    assert result.connector.dim == 4
    assert 'method = "../my.py:Zero"' in (world / "out" / "recipe.toml").read_text()


def test_what_cannot_be_fitted_is_refused_before_anything_is_written(world: Path) -> None:
    with pytest.raises(RecipeError, match="nothing to fit"):
        fit()
    with pytest.raises(RecipeError, match="did you mean 'c-mcr'"):
        fit(world / "recipe.toml", method="cmcr")
    with pytest.raises(RecipeError, match="no folder"):
        fit(space={"a": {"overlap": "x"}, "b": {"overlap": "y"}}, method="c-mcr")
    with pytest.raises(RecipeError, match="epochs"):
        fit(world / "recipe.toml", epochs=0)
    assert not (world / "out").exists()
    fit(world / "recipe.toml", epochs=1)
    with pytest.raises(FitError, match="finished connector"):
        fit(world / "recipe.toml", epochs=1)
    fit(world / "recipe.toml", epochs=1, overwrite=True)


SCRIPT = """
import os, signal, sys
from cmcr.cache import fsio
from cmcr.trainer.fit import fit
import torch
torch.set_num_threads(1)
kill = sys.argv[3]
def hook(call, path):
    name, _, count = kill.partition(":")
    if call == "replace" and path.name == name:
        hook.left -= 1
        if hook.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
hook.left = int(kill.partition(":")[2] or 0)
fsio.HOOKS.append(hook)
def progress(done, total, record):
    if kill == f"step:{done}":
        os.kill(os.getpid(), signal.SIGKILL)
fit(sys.argv[1], output=sys.argv[2], progress=progress)
"""


def killed_fit(world: Path, output: Path, kill: str) -> int:
    """Fit in a process that kills itself at a step, or at the n-th replacement of a file; its exit status."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(world / "recipe.toml"), str(output), kill])
    return done.returncode


def resumed_equals_undisturbed(world: Path, kills: list[str]) -> None:
    """Kill a fit at each of these places in turn, let it finish, and compare every file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calm = fit(world / "recipe.toml", output=world / "calm")
        for kill in kills:
            assert killed_fit(world, world / "torn", kill) == -signal.SIGKILL, kill
            assert not (world / "torn" / "config.json").exists()
        torn = fit(world / "recipe.toml", output=world / "torn")
        assert files(torn.folder) == files(calm.folder)
    finally:
        torch.set_num_threads(threads)


def test_a_fit_killed_between_checkpoints_ends_in_the_same_bytes(world: Path) -> None:
    resumed_equals_undisturbed(world, ["step:8"])


@pytest.mark.slow
def test_fits_killed_anywhere_end_in_the_same_bytes(world: Path) -> None:
    begun = ["recipe.toml:1", "step:1", "checkpoint.safetensors:1", "checkpoint.safetensors:2"]
    resumed_equals_undisturbed(world, [*begun, "step:14", "connector.safetensors:1", "config.json:1"])


@pytest.mark.slow
def test_a_fit_killed_from_outside_at_any_time_ends_in_the_same_bytes(world: Path) -> None:
    calm = fit(world / "recipe.toml", output=world / "calm", epochs=60)
    recipe = world / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("epochs = 4", "epochs = 60"))
    code = "import sys; from cmcr.trainer.fit import fit; fit(sys.argv[1], output=sys.argv[2])"
    for wait in np.random.default_rng(0).uniform(1.5, 5.0, 8):
        process = subprocess.Popen([sys.executable, "-c", code, str(recipe), str(world / "torn")])
        time.sleep(float(wait))
        process.kill()
        process.wait()
        if (world / "torn" / "config.json").exists():
            break
    if not (world / "torn" / "config.json").exists():
        fit(recipe, output=world / "torn")
    (world / "torn" / "checkpoint.safetensors").unlink(missing_ok=True)
    assert files(world / "torn") == files(calm.folder)
