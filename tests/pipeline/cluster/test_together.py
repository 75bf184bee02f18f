"""Processes that complete and project together: they share the shards, and the caches are those of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache.reader import Cache
from cmcr.cache.verify import verify

SHARDS = 40
CHILD = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
from cmcr.pipeline.project import project
from cmcr.trainer.completed_cache import complete
folder, place = Path(sys.argv[1]), Path(sys.argv[2])
Path(sys.argv[3]).touch()
while not (folder / "go").exists():
    time.sleep(0.001)
done = complete(folder / "query", folder / "bank", place / "completed", "auto")
made = project(folder / "connector", folder / "query", place / "projected")
print(json.dumps([[done.shards, done.skipped, done.unfinished], [made.shards, made.kept, made.unfinished]]))
"""


def content(cache: Path) -> dict[str, bytes]:
    files = [p for p in cache.rglob("*") if p.is_file() and p.relative_to(cache).parts[0] not in ("runs", "index")]
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in files}


def run(folder: Path, place: str, count: int) -> list[list[list[int]]]:
    """Start so many processes, let them begin together, and give what each says of its shards."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ready = [folder / f"ready-{place}-{number}" for number in range(count)]
    (folder / "go").unlink(missing_ok=True)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder), str(folder / place), str(mark)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for mark in ready
    ]
    while not all(mark.exists() for mark in ready):
        assert all(process.poll() is None for process in started)
        time.sleep(0.02)
    (folder / "go").touch()
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0] * count
    return [json.loads(line) for line in said]


@pytest.mark.timeout(200)
def test_processes_that_complete_and_project_together_make_each_shard_once_and_the_bytes_of_one(
    make_connector: Callable[..., Any], make_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    from cmcr.trainer.made_folder import write_made

    make_cache("query", SHARDS * 5, shards=(5,) * SHARDS)
    make_cache("bank", 300)
    write_made(make_connector(), tmp_path / "connector")
    ((alone, alone_projected),) = run(tmp_path, "one", 1)
    assert alone == alone_projected == [SHARDS, 0, 0]
    together = run(tmp_path, "all", 2)
    for what in range(2):
        counts = [said[what] for said in together]
        assert sum(made for made, _, _ in counts) == SHARDS, f"a shard was made twice, or by nobody: {counts}"
        assert all(made + others == SHARDS and not left for made, others, left in counts), counts
    assert any(0 < said[what][0] < SHARDS for what in range(2) for said in together), "one process did everything"
    for name in ("completed", "projected"):
        assert content(tmp_path / "all" / name) == content(tmp_path / "one" / name)
        assert not (tmp_path / "all" / name / "leases").exists()
        assert verify(tmp_path / "all" / name).ok
