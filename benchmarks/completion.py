"""Exact completion against the best torch.matmul over the shapes that it uses. Prints one table.

    python benchmarks/completion.py [--rows 65536] [--queries 4096] [--threads N]

Operations: 4·B·M·D for B queries and M bank rows of D dimensions (scores and weighted sums 2·B·M·D each); the softmax
between them is not counted. Peak is the faster of the two products alone, on tiles of the same shapes. All is timed in
turn in one process, five times; medians are shown. A ratio above 1 is a failed measurement.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from cmcr.cache.bank import Bank
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.writer import ShardData, write_cache
from cmcr.trainer.completion import BANK_TILE, QUERY_TILE, complete_rows

BUDGET = 0.75
REPEATS = 5


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def products(dim: int) -> list[tuple[str, Callable[[], object], float]]:
    """The two products of a tile, with the operations of one call."""
    queries, bank = torch.randn(QUERY_TILE, dim), torch.randn(BANK_TILE, dim)
    scores, sums = torch.empty(QUERY_TILE, BANK_TILE), torch.zeros(QUERY_TILE, dim)
    operations = 2.0 * QUERY_TILE * BANK_TILE * dim
    return [
        ("scores", lambda: torch.matmul(queries, bank.T, out=scores), operations),
        ("sums", lambda: torch.matmul(scores, bank, out=sums), operations),
    ]


def measure(folder: Path, rows: int, queries: int, dim: int) -> tuple[float, float]:
    """Operations a second of completion from a cache on disk, and of the best product."""
    rng = np.random.default_rng(0)
    manifest = CacheManifest("declared:bench", "bench", "image", "bench", "bench", dim)
    shards = (
        ShardData([str(i) for i in range(at, at + 16384)], rng.standard_normal((16384, dim), dtype=np.float32))
        for at in range(0, rows, 16384)
    )
    bank = Bank([write_cache(folder / f"bank-{dim}", manifest, shards)])
    q = rng.standard_normal((queries, dim), dtype=np.float32)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    best = products(dim)
    calls = max(1, queries * len(bank) // (QUERY_TILE * BANK_TILE) // 8)
    complete_rows(q, bank, 0.01)
    times: dict[str, list[float]] = {"completion": [], "scores": [], "sums": []}
    for _ in range(REPEATS):
        times["completion"].append(timed(lambda: complete_rows(q, bank, 0.01)))
        for name, product, _ in best:
            times[name].append(timed(lambda product=product: [product() for _ in range(calls)]))
    ours = 4.0 * queries * len(bank) * dim / median(times["completion"])
    peak = max(calls * operations / median(times[name]) for name, _, operations in best)
    return ours, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"exact completion, {options.queries} queries x {options.rows} bank rows, fp32, {options.threads} threads")
    print(f"{'dim':>5} {'operations':>12} {'completion':>12} {'best product':>13} {'ratio':>6}  budget {BUDGET}")
    with tempfile.TemporaryDirectory() as folder:
        for dim in (256, 512):
            ours, peak = measure(Path(folder), options.rows, options.queries, dim)
            count = f"{4e-9 * options.queries * options.rows * dim:.0f} G"
            print(f"{dim:>5} {count:>12} {ours / 1e9:>8.1f} G/s {peak / 1e9:>9.1f} G/s {ours / peak:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
