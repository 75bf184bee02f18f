"""``--devices``: one worker process a device, shown and ended as one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache.errors import CmcrError, DeviceError, EncoderError, RecipeError
from cmcr.cli import app
from cmcr.pipeline.cluster import devices, local_workers
from cmcr.pipeline.cluster.devices import parse_devices, thread_environment, threads_each
from cmcr.pipeline.encode import encode
from cmcr.pipeline.progress import Event
from cmcr.pipeline.stopping import StopSignal
from typer.testing import CliRunner

FILE = Path(__file__).with_name("my_encoders.py")
SHARDS, ROWS = 12, 16


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMCR_TEST_SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("CMCR_TEST_PACE", "0.1")
    monkeypatch.setenv("CMCR_TEST_GRAVE", str(tmp_path / "grave"))
    file = tmp_path / "t.txt"
    file.write_text("".join(f"!nan {i}\n" if i == 50 else f"caption {i}\n" for i in range(SHARDS * ROWS - 3)))
    return file


def settings(encoder: str) -> dict[str, Any]:
    return {"modality": "text", "encoder": f"{FILE}:{encoder}", "shard_size": ROWS, "batch_size": 4}


def content(cache: Path) -> dict[str, bytes]:
    files = [p for p in cache.rglob("*") if p.is_file() and p.relative_to(cache).parts[0] not in ("runs", "index")]
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in files}


def alone(source: Path, monkeypatch: pytest.MonkeyPatch, encoder: str = "PacedTable") -> dict[str, bytes]:
    monkeypatch.setenv("CMCR_TEST_PACE", "0")
    output = source.with_name("alone")
    encode(source, output, **settings(encoder))
    return content(output)


def test_a_list_of_devices_is_read_and_what_is_not_there_is_refused() -> None:
    assert parse_devices("auto", lambda: 0) == ["cpu"]
    assert parse_devices("auto", lambda: 3) == ["cuda:0", "cuda:1", "cuda:2"]
    assert parse_devices("cuda:0, cuda:2", lambda: 3) == ["cuda:0", "cuda:2"]
    assert parse_devices("cpu*3", lambda: pytest.fail("nobody asked for a GPU")) == ["cpu"] * 3
    assert parse_devices(["cuda:0*2", "cpu"], lambda: 1) == ["cuda:0", "cuda:0", "cpu"]
    with pytest.raises(DeviceError, match="no cuda:1 here: this machine has 1 GPUs"):
        parse_devices("cuda:0,cuda:1", lambda: 1)
    for wrong in ("", "gpu", "cuda:x", "cpu*0", "cpu*00", "cpu,,cpu", "auto,cpu"):
        with pytest.raises(RecipeError, match="is no device"):
            parse_devices(wrong, lambda: 1)
    with pytest.raises(RecipeError, match="no device is given"):
        parse_devices([], lambda: 1)


def test_a_dry_run_reads_the_list_of_devices_and_asks_for_none_of_them(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_gpus", lambda: pytest.fail("a login node has no GPU"))
    words = ["--modality", "text", "--encoder", f"{FILE}:TextTable", "--input", str(source), "--dry-run"]
    words = ["encode", *words, "--output", str(tmp_path / "cache"), "--devices"]
    asked = CliRunner().invoke(app, [*words, "cuda:0,cuda:7"])
    assert (asked.exit_code, "rows" in asked.output) == (0, True), asked.output
    for wrong, said in ((["nonsense"], "'nonsense' is no device"), (["cpu", "--device", "cuda:1"], "exclude each")):
        result = CliRunner().invoke(app, [*words, *wrong])
        assert result.exit_code == 1
        assert said in result.output


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("beside", [{"device": "cuda:1"}, {"worker": 0, "workers": 2}])
def test_device_and_worker_are_refused_beside_one_device_as_beside_two(
    count: int, beside: dict[str, Any], tmp_path: Path, source: Path
) -> None:
    with pytest.raises(RecipeError, match=f"{next(iter(beside))} and devices exclude each other"):
        encode(source, tmp_path / "cache", devices=f"cpu*{count}", **beside, **settings("TextTable"))
    assert not (tmp_path / "cache").exists()


def test_without_a_gpu_auto_says_so_in_one_line_and_works_on_the_cpu(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_gpus", lambda: 0)
    events: list[Event] = []
    report = encode(source, tmp_path / "cache", devices="auto", progress=events.append, **settings("TextTable"))
    assert report.shards_now == SHARDS
    said = [event.text for event in events if event.kind == "note"]
    assert said == ["no GPU that torch can use: one worker on the CPU"]


def test_computing_threads_are_shared_out_unless_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in thread_environment(2)
    assert thread_environment(1)["MKL_NUM_THREADS"] == str(threads_each(1))
    assert threads_each(10_000) == 1


def test_two_workers_end_in_the_bytes_of_one_and_look_like_one_run(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    report = encode(source, tmp_path / "cache", devices="cpu*2", progress=events.append, **settings("PacedTable"))
    assert (report.shards_now, report.rows, report.failed) == (SHARDS, SHARDS * ROWS - 4, 1)
    assert (report.errors, report.unfinished, report.notes) == ({"NonFiniteVector": 1}, 0, ())
    runs = [json.loads(p.read_text().splitlines()[-1]) for p in (tmp_path / "cache" / "runs").glob("*.jsonl")]
    assert sorted(run["shards_now"] > 0 for run in runs) == [True, True]
    assert {run["settings"]["device"] for run in runs} == {"cpu"}
    starts = [event for event in events if event.kind == "start"]
    assert [(event.total, event.shards) for event in starts] == [(SHARDS * ROWS - 3, SHARDS)]
    assert sum(event.rows + event.failed for event in events if event.kind == "advance") == SHARDS * ROWS - 3
    assert sum(event.kind == "shard" for event in events) == SHARDS
    assert content(tmp_path / "cache") == alone(source, monkeypatch)
    again = encode(source, tmp_path / "cache", devices="cpu*2", overwrite=True, **settings("TextTable"))
    assert (again.shards_now, again.shards_before) == (SHARDS, 0)


def test_a_worker_that_dies_is_named_and_the_other_finishes_its_shards(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = encode(source, tmp_path / "cache", devices=["cpu", "cpu"], **settings("MortalTable"))
    assert report.notes == ("the worker on cpu was ended by SIGKILL; the others go on with its shards",)
    assert report.unfinished == 0
    assert content(tmp_path / "cache") == alone(source, monkeypatch, "MortalTable")


def test_when_every_worker_dies_the_run_fails_and_says_how(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMCR_TEST_ALL_DIE", "1")
    with pytest.raises(CmcrError, match="no worker lived: the worker on cpu was ended by SIGKILL; the worker on cpu"):
        encode(source, tmp_path / "cache", devices="cpu*2", **settings("MortalTable"))


def test_an_error_of_the_workers_is_raised_once_as_it_was(tmp_path: Path, source: Path) -> None:
    with pytest.raises(EncoderError, match="NoSuchTable"):
        encode(source, tmp_path / "cache", devices="cpu*2", **settings("NoSuchTable"))
    with pytest.raises(RecipeError, match="did you mean batch_size"):
        encode(source, tmp_path / "cache", devices="cpu*2", batch_sise=4, **settings("TextTable"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stop_while_workers_are_started_reaches_each_of_them(
    overwrite: bool, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, begun = StopSignal(), list[str]()

    class Interrupted(local_workers.LocalWorker):
        """The stop comes when the second worker's process runs and nobody holds it yet."""

        def __init__(self, device: str, *others: Any) -> None:
            super().__init__(device, *others)
            begun.append(device)
            if len(begun) == 2:
                stop.request(signal.SIGTERM)

    monkeypatch.setattr(local_workers, "LocalWorker", Interrupted)
    asked = {"devices": "cpu*3", "stop": stop, "overwrite": overwrite}
    report = encode(source, tmp_path / "cache", **asked, **settings("PacedTable"))
    assert len(begun) == 2, "a worker was started after the stop"
    assert report.unfinished, "the second worker was not asked, and did everything"
    assert len(list((tmp_path / "cache" / "shards").glob("*.json"))) <= 2, "a worker went on"


def test_a_run_that_is_stopped_before_it_begins_starts_nobody(tmp_path: Path, source: Path) -> None:
    stop = StopSignal()
    stop.request(signal.SIGTERM)
    assert encode(source, tmp_path / "cache", devices="cpu*2", stop=stop, **settings("TextTable")).unfinished
    assert not (tmp_path / "cache").exists()


def test_ctrl_c_stops_all_workers_cleanly_and_a_second_run_goes_on(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "cache"
    words = ["--modality", "text", "--encoder", f"{FILE}:PacedTable", "--input", str(source), "--output", str(output)]
    command = [sys.executable, "-m", "cmcr", "encode", *words, "--shard-size", str(ROWS), "--batch-size", "4"]
    process = subprocess.Popen(
        [*command, "--devices", "cpu*2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background run without it
        env={**os.environ, "CMCR_TEST_PACE": "0.4"},
    )
    while len(list(output.glob("shards/*.json"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 130, text
    assert "the shards that are begun are finished" in text
    assert "Traceback" not in text
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    done = {int(p.stem) for p in output.glob("shards/*.json")}
    begun = {int(line.split()[-1]) // ROWS for line in (tmp_path / "seen").read_text().splitlines()}
    assert begun == done, "a shard was begun and not finished"
    assert not (output / "leases").exists()
    assert len(done) < SHARDS
    expected = alone(source, monkeypatch)
    encode(source, output, **settings("PacedTable"))
    assert content(output) == expected
