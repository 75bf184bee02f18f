from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import FitError, RecipeError
from cmcr.cache.importer import import_npy
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
    assert result.recipe.fit.method == "my.py:Zero"
    assert 'method = "../my.py:Zero"' in (world / "out" / "recipe.toml").read_text()


def test_the_method_of_the_manual_runs_as_printed(world: Path) -> None:
    manual = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", manual, flags=re.MULTILINE | re.DOTALL)
    (world / "my.py").write_text(code)
    connector = fit(world / "recipe.toml", method="my.py:MyMethod").connector
    assert connector.kept == ("clip",)
    first, second = (open_cache(world / f"text-{name}") for name in ("clap", "clip"))
    rows = np.arange(600)
    cosines = connector.similarity(first.rows(rows), second.rows(rows), ("clap", "clip"))
    assert (cosines.argmax(1) == rows).mean() > 0.5  # chance is 1 / 600


SLOW_METHOD = """
from cmcr.trainer.checkpoint import Checkpoint
from cmcr.trainer.projectors import identity, affine
import torch

class Mine:
    name = "mine"

    def fit(self, pairs, settings, run):
        dims = {name: pairs.overlap[name].dim for name in pairs.names}
        heads = {name: affine(torch.ones(4, dim), None, dim) for name, dim in dims.items()}
        if run.resume() is None:
            model = torch.nn.ModuleDict(heads)
            run.save(3, model, torch.optim.AdamW(model.parameters()))
            raise KeyboardInterrupt
        return heads
"""


def test_an_edited_method_does_not_go_on_from_the_old_checkpoint(world: Path) -> None:
    (world / "my.py").write_text(SLOW_METHOD)
    for method in (f"{world}/my.py:Mine", "my.py:Mine"):
        with pytest.raises(KeyboardInterrupt):
            fit(world / "recipe.toml", method=method, overwrite=True)
    (world / "my.py").write_text(SLOW_METHOD + "# edited\n")
    with pytest.raises(FitError, match="the file of its method"):
        fit(world / "recipe.toml", method="my.py:Mine")
    (world / "my.py").write_text(SLOW_METHOD)
    assert fit(world / "recipe.toml", method="my.py:Mine").connector.dim == 4


def test_no_folder_of_a_method_is_recorded(world: Path) -> None:
    (world / "my.py").write_text(SLOW_METHOD.replace("run.resume() is None", "False"))
    results = [
        fit(world / "recipe.toml", method=method, output=world / name)
        for name, method in (("one", f"{world}/my.py:Mine"), ("two", "my.py:Mine"))
    ]
    assert files(results[0].folder) == files(results[1].folder)
    for content in files(results[0].folder).values():
        assert str(world).encode() not in content
    made_from = results[0].connector.info.made_from
    assert made_from["settings"]["method"] == results[0].connector.info.method == "my.py:Mine"
    assert len(made_from["settings"]["method_source"]) == 32


def test_imported_vectors_name_no_encoder(world: Path) -> None:
    for name in ("text-clap", "text-clip"):
        cache = open_cache(world / name)
        np.save(world / f"{name}.npy", cache.rows(np.arange(len(cache))))
        (world / f"{name}.txt").write_text("\n".join(cache.keys()) + "\n")
        named: dict[str, Any] = {"encoder": "sandbox:clip"} if name == "text-clip" else {}
        import_npy(
            world / f"{name}.npy",
            world / f"i-{name}",
            space=name[5:],
            modality="text",
            keys=world / f"{name}.txt",
            **named,
        )
    spaces = {name: {"overlap": world / f"i-text-{name}"} for name in ("clap", "clip")}
    info = fit(space=spaces, method="ridge", output=world / "imported").connector.info
    assert info.spaces["clap"].modalities == info.spaces["clip"].modalities == ("text",)
    assert (info.spaces["clap"].encoders, info.spaces["clip"].encoders) == ({}, {"text": "sandbox:clip"})
    assert "imported" not in info.licences


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"gallery": "gone"}, "gallery: There is no such folder"),
        ({"query": "out"}, "query: There is no such folder"),
        ({"gallery": "other"}, "gallery: the cache is in the space 'other', which this recipe does not connect"),
        ({"pairs": "gone.csv"}, "file of pairs does not exist"),
        ({"pairs": "recipe.toml", "label": "kind"}, "not both"),
    ],
)
def test_what_an_evaluation_names_is_checked_before_the_fit(
    world: Path, make_cache: Any, unit: Any, change: dict[str, str], message: str | None
) -> None:
    make_cache("other", unit(3, 4), space="other")
    one = {"name": "mine", "query": "audio", "gallery": "images", **change}
    text = (world / "recipe.toml").read_text() + "[[eval]]\n"
    (world / "recipe.toml").write_text(text + "".join(f'{name} = "{value}"\n' for name, value in one.items()))
    if message is None:
        assert fit(world / "recipe.toml", method="ridge").folder.exists()
        return
    with pytest.raises(RecipeError, match=message) as caught:
        fit(world / "recipe.toml")
    assert "eval 'mine'" in str(caught.value.where)
    assert not (world / "out").exists()
    assert not (world / "completions").exists()


def test_what_cannot_be_fitted_is_refused_before_anything_is_written(world: Path) -> None:
    with pytest.raises(RecipeError, match="nothing to fit"):
        fit()
    with pytest.raises(RecipeError, match="not both"):
        fit(world / "recipe.toml", space={"a": {"overlap": "x"}, "b": {"overlap": "y"}})
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


@pytest.mark.parametrize("method", ["procrustes", "ridge", "bridge", "c-mcr"])
@pytest.mark.parametrize("keep", ["clap", "clip"])
def test_a_kept_space_is_untouched_and_the_other_one_is_mapped_into_it(world: Path, method: str, keep: str) -> None:
    connector = fit(world / "recipe.toml", method=method, keep=keep, epochs=30).connector
    other = "clip" if keep == "clap" else "clap"
    kept, mapped = (open_cache(world / f"text-{name}").rows(np.arange(600)) for name in (keep, other))
    assert connector.kept == (keep,)
    assert connector.dim == kept.shape[1]
    np.testing.assert_allclose(connector.project(kept, keep), kept, atol=1e-6)
    found = connector.similarity(mapped, kept, (other, keep)).argmax(1)
    assert (found == np.arange(600)).mean() > 0.05  # chance is 1 / 600


def test_what_cannot_keep_a_space_says_so(world: Path) -> None:
    with pytest.raises(RecipeError, match="subtracts a mean from 'clip'"):
        fit(world / "recipe.toml", method="ridge", keep="clip", options={"centre": "banks"})
    with pytest.raises(FitError, match="does not keep 'clip' as it is"):  # the narrower space gets zeros
        fit(world / "recipe.toml", method="identity", keep="clip")
    assert not (world / "out" / "config.json").exists()
    with pytest.raises(RecipeError, match=r"the head of 'clip' is the identity; it has 20 dimensions"):
        fit(world / "recipe.toml", projector={"clip": "identity"}, overwrite=True)
