"""Memory of completion and fit does not grow with the number of rows, but for a few bytes a row."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from cmcr.cache.manifest import CacheManifest, rows_unit
from cmcr.cache.writer import CacheWriter, ShardData

def make(path, space, modality, rows, dim, size=16384):
    rng = np.random.default_rng(0)
    manifest = CacheManifest("id-" + space, space, modality, "test", "fp-" + space + modality, dim)
    with CacheWriter.open(path, manifest) as writer:
        starts = range(0, rows, size)
        units = [rows_unit(n, "rows", at, min(at + size, rows), str(at)) for n, at in enumerate(starts)]
        writer.append_plan(units, size)
        for unit, at in zip(units, starts):
            stop = min(at + size, rows)
            vectors = rng.standard_normal((stop - at, dim), dtype=np.float32)
            writer.write_shard(unit, ShardData([f"{i:09d}" for i in range(at, stop)], vectors), expected=stop - at)

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024

task, folder, rows, dim = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if task in ("make", "small"):
    for space, modality in (("a", "audio"), ("b", "image")):
        make(folder / ("text-" + space), space, "text", rows, dim)
        make(folder / ("bank-" + space), space, modality, 64, dim)
if task == "complete":
    from cmcr.trainer.completed_cache import complete
    complete(folder / "text-a", folder / "bank-a", folder / "done")
    print(peak())
if task == "small":
    from cmcr.cache import mapped
    mapped.RESIDENT_LIMIT, mapped.SPAN = 4 << 20, 1 << 20  # of the memory maps: reached by few rows too
if task in ("fit", "small"):
    from cmcr.trainer.fit import fit
    space = {s: {"overlap": folder / ("text-" + s), "bank": folder / ("bank-" + s)} for s in "ab"}
    small = dict(method="c-mcr", epochs=1, batch_size=1024 if task == "small" else 4096, hidden=16, out_dim=8)
    fit(space=space, output=folder / "out", **small)  # makes the completions
    print(peak())
"""


def run(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def growth(folder: Path, task: str, few: int, many: int, dim: int) -> float:
    """Peak resident megabytes of a task on many rows beyond those on few."""
    peaks = []
    for rows in (few, many):
        place = folder / f"{task}-{rows}"
        if task != "small":
            run("make", place, rows, dim)
        peaks.append(float(run(task, place, rows, dim)))
    return peaks[1] - peaks[0]


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")


@needs_proc
def test_completion_and_fit_hold_a_few_bytes_a_row(tmp_path: Path) -> None:
    few, more = 65536, 49152  # a block of keys is in memory in both; a row is 256 bytes in float32
    assert growth(tmp_path, "small", few, few + more, 64) < more * 70e-6 + 5


@needs_proc
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("task", ["complete", "fit"])
def test_a_million_rows_take_less_than_64_mb_more_than_an_eighth_of_them(tmp_path: Path, task: str) -> None:
    extra = growth(tmp_path, task, 131072, 1048576, 512)
    sys.stdout.write(f"{task}: {extra:.1f} MB\n")
    assert extra < 64
