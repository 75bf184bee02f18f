from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cmcr.cache.errors import FitError
from cmcr.cache.fsio import host_name, temporary_name
from cmcr.trainer.checkpoint import Checkpoint, save_checkpoint
from cmcr.trainer.run_folder import CHECKPOINT, CONFIG, EVENTS, METRICS, RunFolder


def finish(folder: Path) -> None:
    (folder / CONFIG).write_text('{"format": "cmcr-connector", "version": 1}')


def test_a_finished_connector_is_not_written_over_unasked(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    RunFolder.open(folder, "recipe", "id").close()
    finish(folder)
    with pytest.raises(FitError, match="finished connector"):
        RunFolder.open(folder, "recipe", "id")
    RunFolder.open(folder, "other recipe", "id2", overwrite=True).close()
    assert not (folder / CONFIG).exists()
    assert (folder / "recipe.toml").read_text() == "other recipe"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / CONFIG).write_text('{"model_type": "clip"}')
    with pytest.raises(FitError, match="something else"):
        RunFolder.open(tmp_path, "recipe", "id", overwrite=overwrite)
    assert (tmp_path / "README.md").read_text() == "mine"
    with pytest.raises(FitError, match="is a file"):
        RunFolder.open(tmp_path / "README.md", "recipe", "id", overwrite=overwrite)


def test_overwriting_leaves_files_that_no_fit_wrote(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "out", "recipe", "id").close()
    finish(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    RunFolder.open(tmp_path / "out", "recipe", "id", overwrite=True).close()
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_an_interrupted_fit_of_another_recipe_or_other_caches_is_refused(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "out", "first", "id").close()
    RunFolder.open(tmp_path / "out", "recipe", "id").close()  # nothing was trained yet: nothing is lost
    save_checkpoint(tmp_path / "out" / CHECKPOINT, Checkpoint(3, "id", {"w": torch.ones(1)}, {}))
    with pytest.raises(FitError, match="recipe is another"):
        RunFolder.open(tmp_path / "out", "changed", "id")
    assert (tmp_path / "out" / "recipe.toml").read_text() == "recipe"
    with pytest.raises(FitError, match="the file of its method or the version of cmcr are others now"):
        RunFolder.open(tmp_path / "out", "recipe", "other")
    assert RunFolder.open(tmp_path / "out", "recipe", "id").resumed_at == 3


def test_a_resumed_run_drops_the_lines_that_it_will_write_again(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "out", "recipe", "id")
    for step in range(1, 6):
        run.log({"step": step})
    run.close()
    metrics = tmp_path / "out" / METRICS
    metrics.write_bytes(metrics.read_bytes()[:-3])  # the kill tore the last line
    save_checkpoint(tmp_path / "out" / CHECKPOINT, Checkpoint(3, "id", {"w": torch.ones(1)}, {}))
    again = RunFolder.open(tmp_path / "out", "recipe", "id")
    again.log({"step": 4})
    again.close()
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4]


def test_without_a_checkpoint_the_metrics_begin_anew(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "out", "recipe", "id")
    run.log({"step": 1})
    run.close()
    RunFolder.open(tmp_path / "out", "recipe", "id").close()
    assert (tmp_path / "out" / METRICS).read_bytes() == b""


def test_what_a_killed_fit_left_half_written_is_swept(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    gone = f"tmp-{host_name()}-{process.pid}-1"
    (tmp_path / EVENTS).mkdir()
    left = [tmp_path / f".{CHECKPOINT}.{gone}", tmp_path / EVENTS / f".events.{gone}"]
    others = [temporary_name(tmp_path / "config.json"), tmp_path / f".{METRICS}.tmp-elsewhere-7-1"]
    for path in (*left, *others):
        path.write_bytes(b"half")
    (tmp_path / "recipe.toml").write_text("recipe")
    RunFolder.open(tmp_path, "recipe", "id").close()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
