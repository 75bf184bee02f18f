"""Two processes under torchrun (gloo, CPU) against one: the same losses, gradients, statistics, vectors and files."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import FitError
from cmcr.cache.reader import open_cache
from cmcr.trainer.checkpoint import load_checkpoint
from cmcr.trainer.connector import Connector
from cmcr.trainer.fit import fit
from cmcr.trainer.ranks import ALONE
from cmcr.trainer.recipe import load_recipe
from cmcr.trainer.rendezvous import Place, joined

WORKER = Path(__file__).with_name("ranks_worker.py")
_spec = importlib.util.spec_from_file_location("ranks_worker", WORKER)
assert _spec is not None
assert _spec.loader is not None
worker: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)


def torchrun(world: Path, what: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Two processes of the worker."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*start, str(WORKER), what, str(world)], capture_output=True, text=True, env=environment, timeout=280
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, make_world: Callable[[Path], Path]) -> Path:
    """The folder in which two processes did everything that the tests look at."""
    world = make_world(tmp_path_factory.mktemp("two"))
    watched = '[validation]\nquery = "text-clap"\ngallery = "text-clip"\n'
    recipe = (world / "recipe.toml").read_text()
    (world / "watched.toml").write_text(recipe + "patience = 2\nvalidate_every = 3\n" + watched)
    done = torchrun(world, "everything")
    assert done.returncode == 0, done.stderr
    return world


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """As the processes of the worker have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ran(world: Path, name: str) -> list[dict[str, Any]]:
    """What a command did on rank 0 and on rank 1."""
    return [json.loads((world / f"ran {rank}.json").read_text())[name] for rank in (0, 1)]


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a connector but its run records."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != "runs"
    }


@pytest.mark.parametrize("name", worker.FITS)
def test_the_steps_of_two_processes_are_those_of_one(two: Path, name: str) -> None:
    one = worker.trained(name, ALONE)
    first, second = (np.load(two / f"fit {name} {rank}.npz") for rank in (0, 1))
    assert set(first) == set(second) == set(one)
    assert len(one["loss"]) == worker.FITS[name].get("steps", worker.FEW)
    exact = "float32" not in name
    for key, value in one.items():
        np.testing.assert_array_equal(first[key], second[key], err_msg=f"{key} differs between the two processes")
        tolerance = (1e-9 if "loss" in key else 1e-8) if exact else 1e-4
        np.testing.assert_allclose(first[key], value, rtol=tolerance, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", worker.LOSSES)
def test_a_loss_has_the_gradient_of_one_process_for_every_row(two: Path, name: str) -> None:
    one = worker.loss_and_gradients(name, ALONE)
    parts = [np.load(two / f"loss {name} {rank}.npz") for rank in (0, 1)]
    for part in parts:
        np.testing.assert_allclose(part["loss"], one["loss"], rtol=1e-12)
    for key in ("a", "b"):
        together = np.concatenate([part[key] for part in parts])
        np.testing.assert_allclose(together, one[key], rtol=1e-10, atol=1e-12, err_msg=f"gradient of {key}")


@pytest.mark.parametrize("method", ["c-mcr", "weave", "procrustes"])
def test_a_command_on_two_processes_fits_what_one_fits(two: Path, tmp_path: Path, method: str) -> None:
    first, second = ran(two, method)
    assert (first["code"], second["code"]) == (0, 0), first["err"] + second["err"]
    assert "fitted clap + clip" in first["out"]
    assert second["out"] == second["err"] == ""
    folder = "calm" if method == "c-mcr" else method
    options = {"options": {"steps": 8}} if method == "weave" else {}
    one = fit(two / "recipe.toml", output=tmp_path / "one", method=method, **options)
    both = Connector.load(two / folder)
    for space, source in (("clap", "audio"), ("clip", "images")):
        rows = open_cache(two / source).rows(np.arange(150))
        np.testing.assert_allclose(both.project(rows, space), one.connector.project(rows, space), atol=2e-4)
    lines = [(path / "metrics.jsonl").read_text().splitlines() for path in (two / folder, one.folder)]
    assert len(lines[0]) == len(lines[1])
    for here, there in zip(*lines, strict=True):
        assert json.loads(here) == pytest.approx(json.loads(there), rel=1e-4)
    record = json.loads(next((two / folder / "runs").iterdir()).read_text())
    together = 1 if method == "procrustes" else 2
    assert record["processes"] == together
    assert both.info.made_from.get("processes", 1) == together
    assert "processes" not in one.connector.info.made_from


def test_looks_at_a_validation_pair_agree_with_those_of_one_process(two: Path, tmp_path: Path) -> None:
    assert [done["code"] for done in ran(two, "watched")] == [0, 0]
    one = fit(two / "watched.toml", output=tmp_path / "one")
    scores = [
        {line["step"]: line["validation"] for line in map(json.loads, text.splitlines()) if "validation" in line}
        for text in ((folder / "metrics.jsonl").read_text() for folder in (two / "watched", one.folder))
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    chosen = [Connector.load(folder).info.made_from["chosen"] for folder in (two / "watched", one.folder)]
    assert chosen[0]["step"] == chosen[1]["step"]


def test_a_dry_run_says_how_many_processes_there_are(two: Path) -> None:
    first, second = ran(two, "plan")
    assert "2 processes, 64 rows of a batch each; sizes and times below are those of one process" in first["out"]
    assert second == {"code": 0, "out": "", "err": "", "leak": ""}


def test_an_error_of_all_processes_is_told_once(two: Path) -> None:
    done = ran(two, "no recipe")
    assert [one["code"] for one in done] == [1, 1]
    texts = [one["err"] for one in done if one["err"]]
    assert len(texts) == 1, texts
    assert texts[0].count("error: ") == 1


@pytest.mark.parametrize(
    ("name", "rank", "message"), [("failing", 1, "has had enough"), ("the first fails", 0, "tired")]
)
def test_a_failing_process_stops_all_and_its_message_is_the_only_one(
    two: Path, name: str, rank: int, message: str
) -> None:
    done = ran(two, name)
    assert [one["code"] for one in done] == [1, 1]
    errors = ["error: " in one["err"] for one in done]
    assert errors == [rank == 0, rank == 1]
    assert message in done[rank]["err"]


def test_a_bug_on_one_process_leaves_one_traceback(two: Path) -> None:
    first, second = ran(two, "a bug")
    assert "ZeroDivisionError" in second["leak"]
    assert (first["code"], first["leak"]) == (1, "")
    assert "error: " not in first["err"]


def test_a_killed_process_is_told_once_and_the_restart_ends_in_the_same_bytes(two: Path) -> None:
    done = torchrun(two, "dying", "--max-restarts", "1")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, done.stderr
    assert "another process of this fit ended" in said[0] or "a process of this fit is gone" in said[0]
    assert content(two / "torn") == content(two / "calm")
    records = [json.loads(path.read_text()) for path in (two / "torn" / "runs").iterdir()]
    assert [record["resumed_at"] for record in records] == [6]


def test_another_number_of_processes_goes_on_and_says_so(two: Path) -> None:
    saved = load_checkpoint(two / "broken" / "checkpoint.safetensors")
    assert saved is not None
    assert (saved.step, saved.processes) == (3, 2)
    told: list[str] = []
    result = fit(load_recipe(two / "recipe.toml"), output=two / "broken", say=told.append)
    (note,) = [line for line in told if line.startswith("goes on")]
    assert "in 1 process after step 3, which was reached in 2" in note
    calm = Connector.load(two / "calm")
    rows = open_cache(two / "audio").rows(np.arange(150))
    np.testing.assert_allclose(result.connector.project(rows, "clap"), calm.project(rows, "clap"), atol=2e-4)


def test_a_place_is_read_from_the_environment_of_torchrun_alone() -> None:
    names = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert Place.of({**names, **meeting}) == Place(3, 4, 1, 2)
    assert Place.of({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}) == Place()
    assert Place.of({"RANK": "0", "WORLD_SIZE": "1"}) == Place()
    with pytest.raises(FitError, match="this is one of 4 processes, and MASTER_ADDR and MASTER_PORT not where"):
        Place.of(names)
    with pytest.raises(FitError, match="whole numbers"):
        Place.of({**names, **meeting, "RANK": "two"})
    with joined({}) as ranks:
        assert ranks is ALONE
