"""Reading a cache against numpy.memmap reading the same bytes.

    python benchmarks/cache_io.py [--rows 131072] [--dim 512] [--repeats 5]

Both read the same file, warm, into arrays that exist already, interleaved in one process and in turns; the table shows
the median of the repeats and of the ratios. Rows come out as they are stored. A cache beyond the limit of resident
memory is given back as it is read, which memmap never does: "given back" shows both under that rule.
"""

from __future__ import annotations

import argparse
import itertools
import mmap
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cmcr.cache import mapped
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.reader import Cache
from cmcr.cache.shard import ShardData
from cmcr.cache.writer import write_cache

BATCH = 8192
GATHER = 4096
Rows = npt.NDArray[np.float16]


def made(folder: Path, rows: int, dim: int, shards: int) -> Cache:
    """A cache of random halves."""
    manifest = CacheManifest("benchmark", "benchmark", "text", "none", "none", dim)
    rng = np.random.default_rng(0)
    bounds = np.linspace(0, rows, shards + 1).astype(int).tolist()

    def one(low: int, high: int) -> ShardData:
        vectors = rng.standard_normal((high - low, dim), dtype=np.float32).astype(np.float16)
        return ShardData([f"{row:09d}" for row in range(low, high)], vectors)

    return write_cache(folder / f"cache-{shards}", manifest, [one(a, b) for a, b in itertools.pairwise(bounds)])


def memmaps(cache: Cache) -> list[np.memmap[tuple[int, int], np.dtype[np.float16]]]:
    """The shards of the cache as plain memory maps."""
    return [
        np.memmap(cache.path / "shards" / m.file, "<f2", "r", m.embedding_offset or 0, (m.ok, m.dim))
        for m in cache.shards
    ]


def interleaved(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median of their ratios (theirs / ours: their time over ours, 1 is parity)."""
    pairs = []
    for turn in range(repeats + 1):
        times = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):  # the second finds the bytes in the cache of the processor
            start = time.perf_counter()
            (ours, theirs)[which]()
            times[which] = time.perf_counter() - start
        pairs.append(times)
    pairs = pairs[1:]  # the first round warms both up
    return (
        statistics.median(one for one, _ in pairs),
        statistics.median(other for _, other in pairs),
        statistics.median(other / one for one, other in pairs),
    )


def sequential(cache: Cache, repeats: int) -> tuple[float, float, float]:
    """All rows in batches into one buffer."""
    maps, buffer = memmaps(cache), np.empty((BATCH, cache.dim), "<f2")

    def ours() -> None:
        for start in range(0, len(cache), BATCH):
            stop = min(start + BATCH, len(cache))
            cache.read_stored(start, stop, buffer[: stop - start])

    def theirs() -> None:
        for start in range(0, len(cache), BATCH):
            stop, at = min(start + BATCH, len(cache)), 0
            for first, column in zip(cache.starts.tolist(), maps, strict=False):
                block = column[max(0, start - first) : max(0, stop - first)]
                buffer[at : at + len(block)] = block
                at += len(block)

    return interleaved(ours, theirs, repeats)


def gather(cache: Cache, repeats: int) -> tuple[float, float, float]:
    """Random rows, a new choice each time and for each."""
    maps, rng = memmaps(cache), np.random.default_rng(1)
    turns = {
        who: iter([rng.choice(len(cache), GATHER, replace=False) for _ in range(repeats + 1)])
        for who in ("ours", "theirs")
    }

    def ours() -> None:
        cache.rows_stored(next(turns["ours"]))

    def theirs() -> None:
        wanted = next(turns["theirs"])
        out = np.empty((len(wanted), cache.dim), "<f2")
        owners = np.searchsorted(cache.starts, wanted, side="right") - 1
        for number, column in enumerate(maps):
            places = np.flatnonzero(owners == number)
            out[places] = column[wanted[places] - cache.starts[number]]

    return interleaved(ours, theirs, repeats)


def given_back(cache: Cache, repeats: int) -> tuple[float, float, float]:
    """As :func:`gather`, where neither keeps what it read: a limit of zero, and a memmap that is advised as much."""
    maps, rng, kept = memmaps(cache), np.random.default_rng(2), mapped.RESIDENT_LIMIT

    def theirs() -> None:
        wanted = rng.choice(len(cache), GATHER, replace=False)
        owners = np.searchsorted(cache.starts, wanted, side="right") - 1
        out = np.empty((len(wanted), cache.dim), "<f2")
        for number, column in enumerate(maps):
            places = np.flatnonzero(owners == number)
            out[places] = column[wanted[places] - cache.starts[number]]
            column._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    try:
        mapped.RESIDENT_LIMIT = 0
        return interleaved(lambda: cache.rows_stored(rng.choice(len(cache), GATHER, replace=False)), theirs, repeats)
    finally:
        mapped.RESIDENT_LIMIT = kept


def widened(cache: Cache, repeats: int) -> tuple[float, float, float]:
    """All rows as float32 unit rows, against the same by NumPy's own conversion."""
    maps = memmaps(cache)

    def ours() -> None:
        for start in range(0, len(cache), BATCH):
            cache.read(start, min(start + BATCH, len(cache)))

    def theirs() -> None:
        for column in maps:
            for start in range(0, len(column), BATCH):
                rows = column[start : start + BATCH].astype(np.float32)
                rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    return interleaved(ours, theirs, repeats)


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("--rows", 131_072), ("--dim", 512), ("--repeats", 5)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    print(f"{options.rows} x {options.dim} float16, median of {options.repeats}, ratio = memmap's time / ours")
    print(f"{'what':34} {'shards':>6} {'ours':>10} {'memmap':>10} {'ratio':>6} {'budget':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for shards in (1, 25):
            cache = made(Path(folder), options.rows, options.dim, shards)
            for name, measure, budget in (
                ("sequential read", sequential, "0.9"),
                (f"gather of {GATHER} rows", gather, "0.8"),
                ("the same, given back", given_back, ""),
                ("float32 unit rows (numpy's way)", widened, ""),
            ):
                ours, theirs, ratio = measure(cache, options.repeats)
                print(f"{name:34} {shards:6} {ours * 1e3:8.2f}ms {theirs * 1e3:8.2f}ms {ratio:6.2f} {budget:>7}")


if __name__ == "__main__":
    main()
