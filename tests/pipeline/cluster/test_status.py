"""How far a cache is: counts by state, claims of other machines, rate, what squeue and the logs say, exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cmcr.cache.ledger import Failure
from cmcr.cache.manifest import CacheManifest, rows_unit
from cmcr.cache.writer import CacheWriter, ShardData
from cmcr.pipeline.cluster.lines import status_lines
from cmcr.pipeline.cluster.options import JobOptions
from cmcr.pipeline.cluster.queue import Queue, counted, queue_of
from cmcr.pipeline.cluster.record import Submitted, read, write
from cmcr.pipeline.cluster.status import Status, _task_errors, status


def cache_of(folder: Path, planned: int, done: int, lost: int = 0) -> Path:
    """A cache of shards of ten items, of which so many are written, ten seconds apart; the first one lost some."""
    import numpy as np

    manifest = CacheManifest("id", "space", "text", "test", "print", 4, "float32")
    with CacheWriter.open(folder, manifest) as writer:
        units = [rows_unit(n, "rows", 10 * n, 10 * n + 10, f"input-{n}") for n in range(planned)]
        writer.append_plan(units, 10)
        for unit in units[:done]:
            failed = lost if unit.shard == 0 else 0
            keys = [f"{unit.shard}-{n}" for n in range(10 - failed)]
            failures = [Failure(f"bad-{n}", "decode", "ItemError", "it says so") for n in range(failed)]
            writer.write_shard(
                unit, ShardData(keys, np.eye(4, dtype=np.float32)[[0] * len(keys)]), failures, expected=10
            )
            file = folder / "shards" / f"{unit.shard:05d}.json"
            os.utime(file, (1e9 + 10 * unit.shard,) * 2)
    return folder


def claim(cache: Path, shard: int, machine: str, beat: int = 1) -> None:
    """A claim as another worker writes it."""
    (cache / "leases").mkdir(exist_ok=True)
    holder = {"format": "cmcr-lease", "version": 1, "worker": f"w{shard}", "machine": machine, "pid": 1, "start": 1}
    (cache / "leases" / f"{shard:05d}.c0").write_text(json.dumps(holder))
    (cache / "leases" / f"w{shard}.beat").write_text(f"{beat}\n")


def test_shards_are_counted_by_state_and_nobody_at_work_means_stopped(tmp_path: Path) -> None:
    now = status(cache_of(tmp_path / "c", planned=6, done=3, lost=4))
    assert (now.state, now.shards, now.done, now.failed, now.running, now.unclaimed) == ("stopped", 6, 2, 1, 0, 3)
    assert (now.rows, now.lost, now.rows_left, now.errors) == (26, 4, 30, {"ItemError": 4})
    assert (now.rate, now.eta, now.exit_code()) == (None, None, 1)
    assert "stopped, nobody is at work: run its command again" in status_lines(now)


def test_a_finished_cache_exits_zero_and_lost_items_count_against_the_allowed_rate(tmp_path: Path) -> None:
    assert status(cache_of(tmp_path / "good", 2, 2)).exit_code() == 0
    now = status(cache_of(tmp_path / "bad", 2, 2, lost=1))
    assert (now.state, now.exit_code(), now.exit_code(0.05), now.exit_code(0.04)) == ("finished", 1, 0, 1)


def test_a_claim_of_another_machine_counts_until_its_heartbeat_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMCR_LEASE_SECONDS", "1.5")
    cache = cache_of(tmp_path / "c", 6, 3)
    claim(cache, 4, "another/machine")
    assert status(cache).state == "stopped"

    def beats(seconds: float) -> None:
        claim(cache, 4, "another/machine", beat=2)

    monkeypatch.setattr("cmcr.pipeline.cluster.status.time.sleep", beats)
    now = status(cache)
    assert (now.state, now.running, now.unclaimed, now.workers, now.exit_code()) == ("working", 1, 2, 1, 3)
    assert now.rate == pytest.approx(1.0), "two shards of ten items in twenty seconds"
    assert now.eta == pytest.approx(30.0)


def test_squeue_is_read_line_by_line() -> None:
    lines = [
        "RUNNING|None",
        "PENDING|Resources",
        "PENDING|BeginTime",
        "PENDING|BeginTime",
        "FAILED|NonZeroExitCode",
        "",
    ]
    assert counted(lines, local=1) == Queue(2, 3, "BeginTime")
    assert counted([]) == Queue()


@pytest.mark.parametrize(("said", "expected"), [("exit 1", None), ("echo 'Invalid job id' >&2; exit 1", Queue())])
def test_a_controller_that_is_away_is_not_a_queue_that_is_empty(
    said: str, expected: Queue | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\n{said}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert queue_of([Submitted(("encode",), ".", JobOptions(), ("7_0", "7_1"), "logs")]) == expected


def test_submissions_are_recorded_and_read_back_newest_first(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "c", 1, 1)
    first = Submitted(("encode", "--x"), "/a", JobOptions(tasks=3, extra={"a": "b"}), ("7_0",), "logs")
    second = Submitted(("encode",), "/b", JobOptions(cluster="local"), ("12",), "logs", "machine", (99,))
    write(cache, first)
    write(cache, second)
    assert [one.to_json() for one in read(cache)] == [second.to_json(), first.to_json()]


def test_the_last_error_line_of_each_log_is_counted(tmp_path: Path) -> None:
    (tmp_path / "1_0_0_log.err").write_text(
        "error: the disk is full\n  where: /x\nslurmstepd: error: host: task 0: Killed\n"
    )
    (tmp_path / "1_1_0_log.err").write_text("encode text 3/4\nerror: the disk is full\n  where: /x\n")
    (tmp_path / "1_2_0_log.err").write_text("srun: error: node1: task 0: Killed\n")
    (tmp_path / "1_3_0_log.err").write_text("all well\n")
    assert _task_errors(tmp_path) == {"Killed": 2, "the disk is full": 1}


def test_lines_say_rate_queue_and_losses() -> None:
    now = Status(
        Path("c"), "working", shards=5, done=2, failed=1, running=1, unclaimed=1, workers=1, rows=28, lost=2,
        errors={"ItemError": 2}, rate=4.0, eta=61.0, queue=Queue(1, 2, "Resources"),
    )  # fmt: skip
    text = "\n".join(status_lines(now))
    assert "3 of 5 shards done, 28 rows" in text
    assert "rate: 4 items/s by 1 worker, about 1 min 1 s to go" in text
    assert "tasks: 1 running, 2 waiting (Resources)" in text
    assert "lost: 2 items (ItemError 2)" in text
