"""Job arrays on a real Slurm, private to these tests: tasks are killed, asked to leave, and their cache is the same."""

from __future__ import annotations

import os
import signal
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
    again = retry(cache, tasks=2)
    assert (again.shards, again.words[-1]) == (now.failed, "--retry-failed")
    assert again.wait(40)
    seen = {int(line.split()[-1]) // ROWS for line in (tmp_path / "seen-again").read_text().splitlines()}
    assert len(seen) == now.failed, "shards without failures were encoded again"
    assert content(cache) == content(tmp_path / "one"), "what fails again leaves the cache as it was"
