"""Job arrays on a real Slurm, private to these tests: tasks are killed, asked to leave, and their cache is the same."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache.errors import CmcrError
from cmcr.cache.lease_files import read_claims
from cmcr.cache.verify import verify
from cmcr.pipeline.cluster.retry import retry
from cmcr.pipeline.cluster.status import status
from cmcr.pipeline.cluster.submit import Submission, submit
from cmcr.pipeline.encode import encode

pytestmark = pytest.mark.slurm
ENCODERS = Path(__file__).parents[1] / "my_encoders.py"
ROWS = 16


def content(cache: Path) -> dict[str, bytes]:
    files = [p for p in cache.rglob("*") if p.is_file() and p.relative_to(cache).parts[0] not in ("runs", "index")]
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in files}


def corpus(folder: Path, shards: int) -> Path:
    source = folder / "captions.txt"
    source.write_text("".join(f"!nan {i}\n" if i % 97 == 5 else f"caption {i}\n" for i in range(shards * ROWS - 5)))
    return source


def wait_until(is_so: Callable[[], Any], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.1)


def logs(made: Submission) -> str:
    return "\n".join(f"--- {p.name}\n{p.read_text()}" for p in sorted(Path(made.logs).glob("*_log.*")))


def shards_of(cache: Path) -> int:
    return len(list(cache.glob("shards/*.json")))


def test_an_array_of_which_one_task_is_killed_and_one_is_asked_to_leave_fills_the_cache_of_one_process(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.config))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CMCR_TEST_SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("CMCR_TEST_PACE", "0")
    source, shards = corpus(tmp_path, 24), 24
    settings = {"modality": "text", "encoder": f"{ENCODERS}:PacedTable", "shard_size": ROWS, "batch_size": 4}
    encode(source, tmp_path / "one", **settings)
    monkeypatch.setenv("CMCR_TEST_PACE", "0.1")
    cache = tmp_path / "cache"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = ["encode", *words, "--input", str(source), "--output", str(cache)]

    with pytest.raises(CmcrError, match="refuses the job: invalid partition specified: nowhere"):
        submit(command, tasks=3, partition="nowhere")
    with pytest.raises(CmcrError, match="refuses the job: unrecognized option '--foo=1'"):
        submit(command, tasks=3, extra={"foo": "1"})
    assert not cache.exists(), "a refused submission left something behind"

    made = submit(command, tasks=3, partition="main", time="10")
    assert Path(made.logs).parent == cache / "runs" / "jobs"
    wait_until(
        lambda: shards_of(cache) >= 3 and len({c.holder for c in read_claims(cache).values()}) >= 3, 40, logs(made)
    )
    now = status(cache)
    assert now.state == "working"
    assert now.queue is not None
    assert now.queue.running == 3
    with pytest.raises(CmcrError, match="3 tasks of this cache run"):
        retry(cache)

    victim = next(claim.holder.pid for claim in read_claims(cache).values() if claim.holder)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: "FAILED" in [slurm.state(job) for job in made.jobs], 20, "the killed task fails")
    asked = next(job for job in made.jobs if slurm.state(job) == "RUNNING")
    slurm.ask("scancel", "--signal=USR2", asked)
    wait_until(lambda: slurm.state(asked) == "PENDING", 30, f"the task asked to leave is queued again\n{logs(made)}")
    now = status(cache)
    assert now.queue is not None
    assert (now.queue.waiting, now.queue.reason) == (1, "BeginTime")
    wait_until(lambda: shards_of(cache) == shards, 60, logs(made))
    slurm.ask("scancel", asked)
    assert made.wait(30)
    now = status(cache)
    assert (now.state, now.done + now.failed, now.exit_code(), now.exit_code(0.1)) == ("finished", shards, 1, 0)
    assert now.errors == {"NonFiniteVector": now.lost}
    assert content(cache) == content(tmp_path / "one")
    assert verify(cache).ok

    monkeypatch.setenv("CMCR_TEST_PACE", "0")
    monkeypatch.setenv("CMCR_TEST_SEEN", str(tmp_path / "seen-again"))
    script = (Path(made.logs) / f"{made.jobs[0].partition('_')[0]}_submission.sh").resolve().read_text()
    assert script == made.script, "what a dry run prints is not what sbatch gets"
    again = retry(cache, tasks=2)
    assert (again.shards, again.words[-1]) == (now.failed, "--retry-failed")
    assert again.wait(40)
    seen = {int(line.split()[-1]) // ROWS for line in (tmp_path / "seen-again").read_text().splitlines()}
    assert len(seen) == now.failed, "shards without failures were encoded again"
    assert content(cache) == content(tmp_path / "one"), "what fails again leaves the cache as it was"


class Scene:
    """A paced array on the private Slurm, what is done to it, and when."""

    def __init__(self, slurm: Any, made: Submission, cache: Path) -> None:
        self.slurm, self.made, self.cache = slurm, made, cache
        self.begin = time.monotonic()
        self.lines = ["| second | what | shards done |", "|---|---|---|"]

    def note(self, what: str) -> None:
        self.lines.append(f"| {time.monotonic() - self.begin:.0f} | {what} | {shards_of(self.cache)} |")

    def worker(self, task: int) -> int | None:
        """Process id of the worker that an array task is, once it holds a lease."""
        for claim in read_claims(self.cache).values():
            if claim.holder is not None and not claim.holder.is_dead():
                variables = Path(f"/proc/{claim.holder.pid}/environ").read_bytes().split(b"\0")
                if b"SLURM_ARRAY_TASK_ID=%d" % task in variables:
                    return claim.holder.pid
        return None

    def kill(self, task: int) -> None:
        wait_until(lambda: self.worker(task), 400, f"task {task} does not work\n{logs(self.made)}")
        victim = self.worker(task)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: self.slurm.state(self.job(task)) == "FAILED", 60, "a killed task fails")
        self.note(f"kill -9 of task {task}")

    def job(self, task: int) -> str:
        return self.made.jobs[task]


@pytest.mark.slow
@pytest.mark.kit
@pytest.mark.timeout(1500)
def test_twelve_tasks_killed_requeued_and_timed_out_under_a_restarted_controller_make_the_caches_of_one_process(
    slurm: Any, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.config))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    raw = {"text": kit / "raw" / "text" / "captions.txt", "image": kit / "raw" / "images"}
    shard_sizes, paces = {"text": 10, "image": 2}, {"text": "6", "image": "5"}
    made = {}
    for modality, source in raw.items():
        encoder = f"{ENCODERS}:Paced{modality.title()}"
        settings = {"modality": modality, "encoder": encoder, "shard_size": shard_sizes[modality], "batch_size": 5}
        monkeypatch.setenv("CMCR_TEST_PACE", "0")
        encode(source, tmp_path / f"one-{modality}", **settings)
        words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        made[modality] = ["encode", *words, "--input", str(source), "--output", str(tmp_path / modality)]

    monkeypatch.setenv("CMCR_TEST_PACE", paces["image"])
    images = Scene(slurm, submit(made["image"], tasks=12), tmp_path / "image")
    wait_until(lambda: any(images.worker(task) for task in range(12)), 100, logs(images.made))
    images.kill(next(task for task in range(12) if images.worker(task)))
    assert images.made.wait(240), logs(images.made)
    images.note("finished")
    assert content(tmp_path / "image") == content(tmp_path / "one-image")

    monkeypatch.setenv("CMCR_TEST_PACE", paces["text"])
    scene = Scene(slurm, submit(made["text"], tasks=12, time="10"), tmp_path / "text")
    scene.kill(3)
    assert slurm.ask("scontrol", "requeue", scene.job(3)) == ""
    wait_until(lambda: scene.worker(7), 100, "task 7 works")
    assert slurm.ask("scontrol", "requeue", scene.job(7)) == ""
    scene.note("scontrol requeue of task 7, at work")
    wait_until(lambda: scene.worker(9), 100, "task 9 works")
    assert slurm.ask("scontrol", "update", f"jobid={scene.job(9)}", "timelimit=1") == ""
    wait_until(lambda: slurm.state(scene.job(9)) == "PENDING", 120, f"task 9 runs out of time\n{logs(scene.made)}")
    scene.note("task 9 warned of its time limit, and queued again by itself")
    slurm.restart_controller()
    scene.note("controller restarted")
    scene.kill(3)
    wait_until(lambda: scene.worker(7), 200, f"task 7 comes back\n{logs(scene.made)}")
    scene.note("task 7 back at work")
    wait_until(lambda: status(scene.cache).done == 200, 500, logs(scene.made))
    scene.note("finished")
    slurm.ask("scancel", *{job.partition("_")[0] for job in scene.made.jobs})
    assert scene.made.wait(60)
    now = status(scene.cache)
    assert (now.state, now.exit_code(), now.rows, now.lost) == ("finished", 0, 2000, 0)
    assert content(scene.cache) == content(tmp_path / "one-text")
    assert verify(scene.cache).ok
    with capsys.disabled():
        sys.stdout.write("\n".join(["", "images:", *images.lines, "", "captions:", *scene.lines, ""]))
