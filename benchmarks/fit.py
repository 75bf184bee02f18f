"""A step of c-mcr against the best torch.matmul of each of its parts, a fit against its steps, and what a loss holds.

    python benchmarks/fit.py [--rows 16384] [--batch 4096] [--dim 512] [--threads N] [--precision fp32 bf16]
                             [--loss-batch 16384]

Operations of a step, B rows, D -> H -> O, two spaces, overlap and completed rows as one batch of 2B:
  projectors  2 · 2·2B·(2·D·H + 3·H·O)   forward; weight gradients; input gradients of the second layer
  logits      2 · 6·B²·O                  two losses, each: logits and two gradients
Peak of a part is its fastest product alone at its precision and shapes; the best possible step is the sum over the
parts of operations / peak, and the ratio is that over the measured step. All is timed in turn in one process, five
times, steps alone in rows as long as an epoch of the fit; medians are shown, by the clock and by the CPU time of the
process, which other work on the machine disturbs less. A ratio above 1 is a failed measurement.

The memory of a loss is the growth of the peak of a process of its own, forward and backward, with all logits and with
logits in chunks; 0 as --loss-batch leaves it out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.writer import ShardData, write_cache
from cmcr.trainer.allocator import keep_freed_memory
from cmcr.trainer.batches import Batches
from cmcr.trainer.loop import train
from cmcr.trainer.methods.cmcr import CmcrObjective, make_heads
from cmcr.trainer.optim import make_optimiser
from cmcr.trainer.pairs import Pairs, load_pairs
from cmcr.trainer.recipe import make_recipe
from cmcr.trainer.settings import FitSettings

REPEATS = 5
HIDDEN = 1024
OUT = 512


Seconds = tuple[float, float]  # by the clock, and of the CPU


def timed(work: Callable[[], object]) -> Seconds:
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def make_pairs(folder: Path, rows: int, dim: int) -> Pairs:
    """Two spaces of random rows with small banks, completed."""
    rng = np.random.default_rng(0)

    def cache(name: str, space: str, modality: str, count: int) -> str:
        manifest = CacheManifest(f"declared:{space}", space, modality, "bench", f"bench {name}", dim)
        step = 16384
        shards = (
            ShardData(
                [str(i) for i in range(at, min(at + step, count))], rng.standard_normal((min(step, count - at), dim))
            )
            for at in range(0, count, step)
        )
        write_cache(folder / name, manifest, shards)
        return str(folder / name)

    space = {
        "one": {"overlap": cache("t1", "one", "text", rows), "bank": [cache("x1", "one", "audio", 2048)]},
        "two": {"overlap": cache("t2", "two", "text", rows), "bank": [cache("x2", "two", "image", 2048)]},
    }
    return load_pairs(make_recipe({"space": space, "fit": {"method": "c-mcr"}}))


def parts_of(batch: int, dim: int, precision: str) -> dict[str, tuple[float, list[Callable[[], object]], list[float]]]:
    """For each part: its operations in a step, its products, and the operations of each product."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    x, h = torch.randn(2 * batch, dim, dtype=kind), torch.randn(2 * batch, HIDDEN, dtype=kind)
    w1, w2 = torch.randn(HIDDEN, dim, dtype=kind), torch.randn(OUT, HIDDEN, dtype=kind)
    g = torch.randn(2 * batch, OUT, dtype=kind)
    projectors: list[Callable[[], object]] = [lambda: x @ w1.T, lambda: h @ w2.T, lambda: h.T @ x, lambda: g @ w2]
    first, second = 2.0 * 2 * batch * dim * HIDDEN, 2.0 * 2 * batch * HIDDEN * OUT
    a, s = torch.randn(batch, OUT), torch.randn(batch, batch)
    logits: list[Callable[[], object]] = [lambda: a @ a.T, lambda: s @ a, lambda: s.T @ a]
    return {
        "projectors": (2 * (2 * first + 3 * second), projectors, [first, second, first, second]),
        "logits": (2 * 6.0 * batch * batch * OUT, logits, [2.0 * batch * batch * OUT] * 3),
    }


class Steps:
    """Single steps of the objective, on the rows of one batch held in memory or gathered from the caches."""

    def __init__(self, pairs: Pairs, settings: FitSettings) -> None:
        self.objective = CmcrObjective(pairs, settings, make_heads(pairs, settings), torch.device("cpu"))
        self.optimiser = make_optimiser(self.objective.model, settings.lr, settings.weight_decay)
        self.rows = np.random.default_rng(0).permutation(pairs.N)[: settings.batch_size]
        self.step = 0
        held = {id(s): torch.from_numpy(s.rows(self.rows)) for s in self._sources(pairs)}
        self.objective._overlap = [lambda _, s=pairs.overlap[n]: held[id(s)] for n in pairs.names]  # type: ignore[misc]
        self.objective._completed = [lambda _, s=pairs.completed[n]: held[id(s)] for n in pairs.names]  # type: ignore[misc]

    @staticmethod
    def _sources(pairs: Pairs) -> list[Any]:
        return [*pairs.overlap.values(), *pairs.completed.values()]

    def run(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        total, _ = self.objective.loss(self.rows, self.step)
        total.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.step += 1


class Silent:
    """A run that keeps nothing."""

    def log(self, record: Mapping[str, Any]) -> None: ...
    def resume(self) -> None: ...
    def save(self, step: int, model: object, optimiser: object) -> None: ...
    def advance(self, done: int, total: int, record: Mapping[str, Any]) -> None: ...


def measure(pairs: Pairs, batch: int, dim: int, precision: str) -> None:
    """One line of the table."""
    settings = FitSettings(method="c-mcr", batch_size=batch, hidden=HIDDEN, out_dim=OUT, precision=precision, epochs=1)
    steps, parts = Steps(pairs, settings), parts_of(batch, dim, precision)
    loop = CmcrObjective(pairs, settings, make_heads(pairs, settings), torch.device("cpu"))
    batches = Batches(pairs.N, batch, 0)
    products = {(name, i): product for name, (_, several, _) in parts.items() for i, product in enumerate(several)}
    times: dict[Any, list[Seconds]] = {key: [] for key in ("step", "epoch", *products)}
    steps.run()
    for _ in range(REPEATS):
        clock, cpu = timed(lambda: [steps.run() for _ in range(batches.per_epoch)])
        times["step"].append((clock / batches.per_epoch, cpu / batches.per_epoch))
        for key, product in products.items():
            times[key].append(timed(product))
        clock, cpu = timed(lambda: train(loop, batches, settings, Silent()))
        times["epoch"].append((clock / batches.per_epoch, cpu / batches.per_epoch))
    for kind, of in enumerate(("clock", "CPU time")):
        step, ideal, shown = middle(times["step"], kind), 0.0, []
        for name, (operations, several, counts) in parts.items():
            peak = max(counts[i] / middle(times[name, i], kind) for i in range(len(several)))
            ideal += operations / peak
            shown.append(f"{name} {operations / 1e9:.0f} G at {peak / 1e9:.0f} G/s")
        whole = middle(times["epoch"], kind)
        print(
            f"{precision:>5} by {of}: {'; '.join(shown)}\n"
            f"      step {step:.3f} s, best possible {ideal:.3f} s: ratio {ideal / step:.2f} (budget 0.7)\n"
            f"      step within a fit {whole:.3f} s: {whole / step:.3f} of it alone (budget 1.05); "
            f"{batch / whole:,.0f} items/s",
            flush=True,
        )


def middle(times: list[Seconds], kind: int) -> float:
    return median(one[kind] for one in times)


LOSS = """
import sys, torch
from torch.nn import functional as F
from cmcr.trainer.losses import info_nce
kind, size = sys.argv[1], int(sys.argv[2])

def contrast(a, b):
    logits, labels = a @ b.T / 0.05, torch.arange(len(a))
    return 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

rows = F.normalize(torch.randn(2, size, 512), dim=2).requires_grad_()
info_nce(rows[0, :64], rows[1, :64], 0.05).backward()
before = peak()
(contrast if kind == "plain" else lambda a, b: info_nce(a, b, 0.05))(rows[0], rows[1]).backward()
print(peak() - before)
"""


def measure_loss(size: int) -> None:
    """Memory of one loss of a large batch."""
    if not size or not Path("/proc/self/status").exists():
        return
    held = {}
    for kind in ("plain", "chunked"):
        done = subprocess.run([sys.executable, "-c", LOSS, kind, str(size)], capture_output=True, text=True, check=True)
        held[kind] = float(done.stdout)
    print(f"loss of {size:,} rows: all logits {held['plain']:,.0f} MB, in chunks {held['chunked']:,.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--loss-batch", type=int, default=16384)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the command line does
    print(f"c-mcr, batch {options.batch}, {options.dim}-{HIDDEN}-{OUT}, {options.threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        pairs = make_pairs(Path(folder), options.rows, options.dim)
        for precision in options.precision:
            measure(pairs, options.batch, options.dim, precision)
    measure_loss(options.loss_batch)


if __name__ == "__main__":
    main()
