"""Kill -9 at uniform instants of an encode, and the memory that an encode needs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache.verify import verify
from cmcr.pipeline.encode import encode

FILE = Path(__file__).with_name("my_encoders.py")
SHARDS, ROWS, BATCH = 41, 16, 8
SETTINGS: dict[str, Any] = {"modality": "text", "encoder": f"{FILE}:SlowTable", "shard_size": ROWS, "batch_size": BATCH}

CHILD = """
import json, sys, time
from cmcr.pipeline.encode import encode
source, output, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
def show(event):
    if event.kind in ("start", "shard"):
        print(event.kind, time.monotonic(), flush=True)
encode(source, output, progress=show, **settings)
"""


def child(source: Path, output: Path, seen: Path) -> subprocess.Popen[str]:
    """An encode in a process of its own that prints when it begins and when each shard is committed."""
    command = [sys.executable, "-c", CHILD, str(source), str(output), json.dumps(SETTINGS)]
    environment = {**os.environ, "CMCR_TEST_SEEN": str(seen)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def content(cache: Path) -> dict[str, bytes]:
    files = [p for p in cache.rglob("*") if p.is_file() and p.relative_to(cache).parts[0] not in ("runs", "index")]
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in files}


def lines(pipe: Any) -> Iterator[tuple[str, float]]:
    for line in pipe:
        kind, when = line.split()
        yield kind, float(when)


def run_kills(folder: Path, kills: int, seed: int, say: Callable[[str], None]) -> None:
    """Kill, resume, compare; ``kills`` instants, one in each equal stretch between first shard and last marker."""
    source = folder / "t.txt"
    source.write_text("".join(f"!nan {i}\n" if i % 97 == 5 else f"caption {i}\n" for i in range(SHARDS * ROWS)))
    process = child(source, folder / "whole", folder / "seen-whole")
    times = list(lines(process.stdout))
    assert process.wait() == 0
    assert len(times) == SHARDS + 1
    first, last = times[0][1], times[-1][1]
    whole = content(folder / "whole")
    chance = random.Random(seed)
    say(f"seed {seed}: {SHARDS} shards in {last - first:.2f} s, {kills} kills")
    say("kill   after s   shards done   left in flight   encoded again   same bytes")
    partial = 0
    for number in range(kills):
        output, seen = folder / f"killed-{number}", folder / f"seen-{number}"
        delay = (number + chance.random()) / kills * (last - first)
        process = child(source, output, seen)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("start")
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = {p.stem for p in (output / "shards").glob("*.json")}
        leftover = len(list((output / "shards").iterdir())) - 2 * len(done)
        os.environ["CMCR_TEST_SEEN"] = str(folder / f"rest-{number}")
        report = encode(source, output, **SETTINGS)
        again = (folder / f"rest-{number}").read_text().splitlines() if len(done) < SHARDS else []
        repeated = sum(f"{int(text.split()[-1]) // ROWS:05d}" in done for text in again)
        same = content(output) == whole
        say(f"{number:4}   {delay:7.3f}   {len(done):11}   {leftover:14}   {repeated:13}   {same}")
        assert same
        assert repeated == 0
        assert (report.shards_before, report.shards_now) == (len(done), SHARDS - len(done))
        assert verify(output).ok
        partial += 0 < len(done) < SHARDS
    say(f"{partial} of {kills} kills fell with some shards done and some not")
    assert partial >= (kills // 2 if kills > 10 else 1)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print past pytest's capture, so that the table stands in the log."""

    def out(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}")
            sys.stdout.flush()

    return out


def test_kill_at_four_instants_costs_at_most_the_shard_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMCR_TEST_SEEN", "")
    run_kills(tmp_path, 4, seed=int(time.time()), say=lambda text: None)


@pytest.mark.slow
def test_kill_at_thirty_instants_costs_at_most_the_shard_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Callable[[str], None]
) -> None:
    monkeypatch.setenv("CMCR_TEST_SEEN", "")
    run_kills(tmp_path, 30, seed=20240501, say=say)


PEAK = """
import json, resource, sys
from cmcr.pipeline.encode import encode
report = encode(sys.argv[1], sys.argv[2], modality="text", encoder=sys.argv[3], batch_size=256)
print(report.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_rows_need_no_more_memory_than_131072(tmp_path: Path, say: Callable[[str], None]) -> None:
    peaks = {}
    for rows in (131_072, 1_048_576):
        source = tmp_path / f"{rows}.txt"
        with source.open("w") as out:
            out.writelines(f"a caption of some length, as they are, number {i}\n" for i in range(rows))
        command = [sys.executable, "-c", PEAK, str(source), str(tmp_path / str(rows)), f"{FILE}:PlainTable"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        count, peak = map(int, done.stdout.split())
        assert count == rows
        peaks[rows] = peak / 1024
        say(f"{rows:9} rows x 512: peak {peak / 1024:.0f} MB")
    assert peaks[1_048_576] - peaks[131_072] < 64
