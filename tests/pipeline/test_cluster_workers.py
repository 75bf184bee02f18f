"""Several processes, one cache: kill -9, pauses past the lease, wall clocks set apart."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache.verify import verify
from cmcr.pipeline.encode import encode

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("my_encoders.py")
ROWS, BATCH, LEASE = 16, 4, 2.0

CHILD = """
import json, os, sys, time
ahead, true_time = float(sys.argv[4]), time.time
time.time = lambda: true_time() + ahead  # wall clocks set apart
from cmcr.pipeline.encode import encode
report = encode(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
print(report.shards_now)
"""


def settings(encoder: str = "PacedTable") -> dict[str, Any]:
    return {"modality": "text", "encoder": f"{FILE}:{encoder}", "shard_size": ROWS, "batch_size": BATCH}


def content(cache: Path) -> dict[str, bytes]:
    files = [p for p in cache.rglob("*") if p.is_file() and p.relative_to(cache).parts[0] not in ("runs", "index")]
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in files}


@dataclass
class Crew:
    """Workers on one cache, and what was done to them."""

    source: Path
    output: Path
    chance: random.Random
    alive: list[subprocess.Popen[str]] = field(default_factory=list)
    names: dict[int, int] = field(default_factory=dict)  # process id to number of the worker
    hit: set[int] = field(default_factory=set)  # workers that were killed or paused
    started: int = 0
    kills: int = 0
    pauses: int = 0
    seconds: float = 0.0

    def start(self, pace: float) -> None:
        """One more worker, with a wall clock of its own."""
        ahead = self.chance.choice([-1, 1]) * self.chance.uniform(1e3, 1e6)
        words = [str(self.source), str(self.output), json.dumps(settings()), str(ahead)]
        environment = {
            **os.environ,
            "CMCR_TEST_SEEN": str(self.output.with_name(f"seen-{self.started}")),
            "CMCR_TEST_PACE": str(pace),
            "CMCR_LEASE_SECONDS": str(LEASE),
            "OMP_NUM_THREADS": "1",
        }
        log = self.output.with_name(f"log-{self.started}").open("w")
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *words], stdout=log, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.alive.append(process)
        self.names[process.pid] = self.started
        self.started += 1

    def _victim(self) -> subprocess.Popen[str]:
        victim = self.chance.choice([p for p in self.alive if p.poll() is None])
        self.hit.add(self.names[victim.pid])
        return victim

    def kill(self, pace: float) -> None:
        """Kill -9 one, and start another in its place."""
        victim = self._victim()
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        self.alive.remove(victim)
        self.kills += 1
        self.start(pace)

    def pause(self, seconds: float) -> None:
        """Stop one for longer than its lease, then let it go on."""
        victim = self._victim()
        victim.send_signal(signal.SIGSTOP)
        self.pauses += 1
        threading.Timer(seconds, victim.send_signal, [signal.SIGCONT]).start()

    def working(self) -> bool:
        return any(p.poll() is None for p in self.alive)

    def done(self) -> int:
        return len(list((self.output / "shards").glob("*.json"))) if self.output.exists() else 0

    def wait_for(self, shards: int) -> None:
        while self.done() < shards and self.working():
            time.sleep(0.02)

    def finish(self) -> None:
        for process in self.alive:
            assert process.wait(timeout=240) == 0, self.logs()

    def logs(self) -> str:
        return "\n".join(p.read_text() for p in sorted(self.output.parent.glob("log-*")))

    def encoded(self) -> dict[int, list[int]]:
        """The workers that began each shard, once for each time that they began it."""
        begun: dict[int, list[int]] = {}
        for seen in self.output.parent.glob("seen-*"):
            worker = int(seen.name.rpartition("-")[2])
            lines = [int(line.split()[-1]) for line in seen.read_text().splitlines()]
            for row in lines:
                if row % ROWS == 0:
                    begun.setdefault(row // ROWS, []).append(worker)
        return begun


def corpus(folder: Path, shards: int) -> Path:
    source = folder / "t.txt"
    count = shards * ROWS - 5
    source.write_text("".join(f"!nan {i}\n" if i % 97 == 5 else f"caption {i}\n" for i in range(count)))
    return source


def whole(folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    (folder / "one").mkdir()
    monkeypatch.setenv("CMCR_TEST_SEEN", str(folder / "one" / "seen"))
    monkeypatch.setenv("CMCR_TEST_PACE", "0")
    encode(source, folder / "one" / "cache", **settings())
    return content(folder / "one" / "cache")


def check(crew: Crew, expected: dict[str, bytes], shards: int) -> int:
    """Nothing lost, nothing doubled, nothing left; how many shards were begun more than once.

    Of the workers that began a shard all but one were killed or paused: only that explains another beginning. And no
    death or pause explains two, as a worker has one shard at a time in hand.
    """
    assert content(crew.output) == expected
    assert not (crew.output / "leases").exists()
    report = verify(crew.output)
    assert (report.ok, report.leftovers, report.pending) == (True, [], [])
    begun = crew.encoded()
    assert set(begun) == set(range(shards))
    for shard, workers in begun.items():
        unharmed = [worker for worker in workers if worker not in crew.hit]
        assert len(unharmed) <= 1, f"shard {shard} was begun by {workers}, of which {unharmed} met with nothing"
    again = sum(len(workers) - 1 for workers in begun.values())
    assert again <= crew.kills + crew.pauses, begun
    return again


def test_three_workers_killed_and_paused_end_in_the_bytes_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, shards = corpus(tmp_path, 20), 20
    expected = whole(tmp_path, source, monkeypatch)
    crew = Crew(source, tmp_path / "cache", random.Random(time.time_ns()))
    for _ in range(3):
        crew.start(pace=0.06)
    crew.wait_for(3)
    crew.kill(pace=0.06)
    crew.wait_for(6)
    crew.pause(LEASE + 1.0)
    crew.finish()
    assert (crew.kills, crew.pauses) == (1, 1)
    check(crew, expected, shards)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_eight_workers_on_two_hundred_shards_killed_for_two_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, seed, span = 200, 20240611, 120.0
    source = corpus(tmp_path, shards)
    expected = whole(tmp_path, source, monkeypatch)
    crew = Crew(source, tmp_path / "cache", random.Random(seed))
    for _ in range(8):
        crew.start(pace=1.5)
    begin = time.monotonic()
    lines = ["second   what                   shards done"]
    while time.monotonic() - begin < span and crew.done() < shards:
        time.sleep(crew.chance.uniform(1.5, 5.0))
        what = crew.chance.choice(["kill -9", "kill -9", "pause past the lease"])
        crew.kill(pace=1.5) if what == "kill -9" else crew.pause(LEASE * 2)
        lines.append(f"{time.monotonic() - begin:6.0f}   {what:22} {crew.done():4}")
    crew.finish()
    crew.seconds = time.monotonic() - begin
    again = check(crew, expected, shards)
    assert crew.seconds >= span, "all was done before the time was over"
    assert crew.kills >= 8
    assert crew.pauses >= 3
    section = report(crew, shards, again, seed, lines)
    replace_section(ROOT / "docs" / "results" / "torture.md", section)
    with capsys.disabled():
        sys.stdout.write(f"\n{section}")


def replace_section(page: Path, section: str) -> None:
    """Put a section in place of the one with the same heading, or at the end."""
    text, heading = page.read_text(encoding="utf-8"), section.partition("\n")[0]
    before, found, rest = text.partition(f"{heading}\n")
    after = rest[rest.index("\n## ") + 1 :] if found and "\n## " in rest else ""
    page.write_text(f"{before.rstrip()}\n\n{section}{after and chr(10)}{after}", encoding="utf-8")


def report(crew: Crew, shards: int, again: int, seed: int, lines: list[str]) -> str:
    head = [
        "## Eight workers, one cache",
        "",
        "Written by `tests/pipeline/test_cluster_workers.py`: eight processes encode one corpus by leases that expire "
        f"after {LEASE:.0f} s,",
        "each with a wall clock up to eleven days off. For two minutes one after the other is killed with kill -9 (and "
        "another started",
        "in its place) or stopped for twice its lease. Of the workers that began a shard all but one were killed or "
        "paused.",
        "",
        "| | |",
        "|---|---|",
        f"| seed | {seed} |",
        f"| shards | {shards} |",
        f"| workers started | {crew.started} |",
        f"| kill -9 | {crew.kills} |",
        f"| pauses past the lease | {crew.pauses} |",
        f"| shards begun more than once | {again} (deaths and pauses explain up to {crew.kills + crew.pauses}) |",
        "| cache equals that of one process | yes, byte for byte |",
        "| lease files left | 0 |",
        f"| seconds | {crew.seconds:.0f} |",
        "",
    ]
    return "\n".join([*head, "```text", *lines, "```", ""])


def test_a_worker_asked_to_stop_finishes_its_shard_and_gives_its_leases_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = corpus(tmp_path, 12)
    expected = whole(tmp_path, source, monkeypatch)
    output = tmp_path / "cache"
    words = ["--modality", "text", "--encoder", f"{FILE}:PacedTable", "--input", str(source), "--output", str(output)]
    command = [sys.executable, "-m", "cmcr", "encode", *words, "--shard-size", str(ROWS), "--batch-size", str(BATCH)]
    environment = {**os.environ, "CMCR_TEST_SEEN": str(tmp_path / "seen"), "CMCR_TEST_PACE": "0.15"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    while not list(output.glob("shards/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=200)[0]
    assert process.returncode == 128 + signal.SIGTERM, text
    assert "run the same command again" in text
    done = {int(p.stem) for p in output.glob("shards/*.json")}
    assert 0 < len(done) < 12
    assert not (output / "leases").exists()
    begun = {int(line.split()[-1]) // ROWS for line in (tmp_path / "seen").read_text().splitlines()}
    assert begun == done, "a shard was begun and not finished"
    monkeypatch.setenv("CMCR_TEST_SEEN", str(tmp_path / "rest"))
    encode(source, output, **settings())
    assert content(output) == expected


def test_workers_by_number_fill_the_cache_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = corpus(tmp_path, 7)
    expected = whole(tmp_path, source, monkeypatch)
    reports = [encode(source, tmp_path / "cache", **settings(), worker=i, workers=3) for i in range(3)]
    assert [report.shards_now for report in reports] == [3, 2, 2]
    assert content(tmp_path / "cache") == expected
