"""c-mcr on completions made once, against dense enhancement and loss inside every step. Prints one table.

    python benchmarks/dense_training.py [--rows 200000] [--bank 100000] [--batch 4096] [--steps 5] [--threads N]

Both train the same projectors on the same vectors with the same batch. *Dense* is what public re-implementations of
C-MCR training do: each step scores its batch against both whole banks, takes the softmax and the weighted sums, and
holds all logits; it is restated here in a few lines. *Ours* is the package: completion of a sample of the rows is timed
and scaled to all of them, once a fit, and so are the steps of the loop, gathers from the caches included. Steps of both
are timed in turn in one process and medians are taken: by the clock, and by the CPU time of the process, which other
work on the machine disturbs less. Samples/s are those of a whole fit of 36 epochs:

  dense   rows · epochs / (epochs · steps · t_dense)
  ours    rows · epochs / (t_completion + epochs · steps · t_ours)
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from cmcr.cache.bank import Bank
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.writer import ShardData, write_cache
from cmcr.trainer.allocator import keep_freed_memory
from cmcr.trainer.batches import Batches
from cmcr.trainer.completion import complete_rows
from cmcr.trainer.loop import train_step
from cmcr.trainer.methods.cmcr import CmcrObjective, make_heads
from cmcr.trainer.optim import make_optimiser
from cmcr.trainer.pairs import Pairs, load_pairs
from cmcr.trainer.recipe import make_recipe
from cmcr.trainer.settings import FitSettings
from torch import Tensor, nn
from torch.nn import functional as F

EPOCHS = 36
SAMPLE = 4096
DIMS = {"one": 384, "two": 512}
TAU, NOISE, LAMBDA = 0.01, 0.004**0.5, 0.1


Seconds = tuple[float, float]  # by the clock, and of the CPU


def timed(work: Callable[[], object]) -> Seconds:
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def write_vectors(folder: Path, space: str, modality: str, rows: int, seed: int) -> str:
    """A cache of random unit-free rows, half precision as encoders leave them."""
    dim, shard = DIMS[space], 16384
    manifest = CacheManifest(f"declared:{space}", space, modality, "bench", f"bench {space} {modality}", dim)
    rng = np.random.default_rng(seed)
    shards = (
        ShardData(
            [f"{modality}-{i}" for i in range(at, min(at + shard, rows))],
            rng.standard_normal((min(shard, rows - at), dim), dtype=np.float32),
        )
        for at in range(0, rows, shard)
    )
    write_cache(folder / f"{space}-{modality}", manifest, shards)
    return str(folder / f"{space}-{modality}")


def make_pairs(folder: Path, rows: int, bank: int) -> Pairs:
    """Two spaces with banks; overlap rows stand in for the completed ones, which are read in the same way."""
    space = {
        name: {
            "overlap": write_vectors(folder, name, "text", rows, seed),
            "bank": [write_vectors(folder, name, modality, bank, seed + 2)],
        }
        for seed, (name, modality) in enumerate((("one", "audio"), ("two", "image")))
    }
    pairs = load_pairs(make_recipe({"space": space, "fit": {"method": "c-mcr"}}), complete=False)
    return Pairs(pairs.names, pairs.overlap, dict(pairs.overlap), pairs.bank, pairs.report)


class Dense:
    """The whole of C-MCR in every step, written plainly."""

    def __init__(self, pairs: Pairs, settings: FitSettings, batch: int) -> None:
        self.heads = nn.ModuleDict(make_heads(pairs, settings)).train()
        self.optimiser = torch.optim.AdamW(self.heads.parameters(), lr=settings.lr)
        rows = np.arange(batch)
        self.text = [torch.from_numpy(pairs.overlap[name].rows(rows)) for name in pairs.names]  # (B, D) each
        self.banks = [torch.cat([torch.from_numpy(b) for b in blocks_of(pairs.bank[n])]) for n in pairs.names]  # (M, D)

    def step(self) -> None:
        rows = []
        with torch.no_grad():
            for text, bank in zip(self.text, self.banks, strict=True):
                found = torch.softmax(text @ bank.T / TAU, dim=1) @ bank  # (B, M), (B, D)
                for z in (text, F.normalize(found, dim=1)):
                    rows.append(F.normalize(z + NOISE * torch.randn_like(z), dim=1))
        one, two = self.heads.values()
        t1, x1, t2, x2 = (F.normalize(f(z), dim=1) for f, z in zip((one, one, two, two), rows, strict=True))
        intra = 0.5 * ((t1 - x1).norm(dim=1) + (t2 - x2).norm(dim=1)).mean()
        loss = contrast(t1, t2) + contrast(x1, x2) + LAMBDA * intra
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()


def contrast(a: Tensor, b: Tensor) -> Tensor:
    labels = torch.arange(len(a))
    return 0.5 * (F.cross_entropy(a @ b.T / TAU, labels) + F.cross_entropy(b @ a.T / TAU, labels))


def blocks_of(bank: Bank | None) -> list[np.ndarray]:
    assert bank is not None
    return list(bank.blocks())


class Ours:
    """Steps of the package's loop on rows of the caches, and its completion of a sample."""

    def __init__(self, pairs: Pairs, settings: FitSettings) -> None:
        self.pairs, self.settings = pairs, settings
        self.objective = CmcrObjective(pairs, settings, make_heads(pairs, settings), torch.device("cpu"))
        self.objective.model.train()
        self.optimiser = make_optimiser(self.objective.model, settings.lr, settings.weight_decay)
        self.batches = Batches(pairs.N, settings.batch_size, 0)
        self.number, self.order = 0, self.batches.order(0)

    def step(self) -> None:
        _, part = self.batches.slice_of(self.number % self.batches.per_epoch)
        train_step(self.objective, self.optimiser, self.order[part], self.number, self.settings.lr)
        self.number += 1

    def complete_sample(self) -> Seconds:
        """Seconds to complete all rows of both spaces, from a sample of them."""
        rows = np.arange(min(SAMPLE, self.pairs.N))
        parts = []
        for name in self.pairs.names:
            queries, bank = self.pairs.overlap[name].rows(rows), self.pairs.bank[name]
            assert bank is not None
            parts.append(timed(lambda q=queries, b=bank: complete_rows(q, b, TAU)))  # type: ignore[misc]
        scale = self.pairs.N / len(rows)
        return scale * sum(clock for clock, _ in parts), scale * sum(cpu for _, cpu in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--bank", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the command line does
    settings = FitSettings(method="c-mcr", batch_size=options.batch, precision=options.precision)
    with tempfile.TemporaryDirectory() as folder:
        pairs = make_pairs(Path(folder), options.rows, options.bank)
        dense, ours = Dense(pairs, settings, options.batch), Ours(pairs, settings)
        times: dict[str, list[Seconds]] = {"dense": [], "ours": [], "completion": []}
        ours.step()
        dense.step()
        for turn in range(options.steps):
            times["dense"].append(timed(dense.step))
            times["ours"] += [timed(ours.step) for _ in range(3)]
            if turn < 2:
                times["completion"].append(ours.complete_sample())
        report(times, options)


def report(times: dict[str, list[Seconds]], options: argparse.Namespace) -> None:
    steps = EPOCHS * (options.rows // options.batch)
    samples = steps * options.batch
    print(
        f"{options.rows:,} rows, banks of {options.bank:,}, {DIMS['one']}-d and {DIMS['two']}-d, "
        f"batch {options.batch}, {EPOCHS} epochs, {options.threads} threads; ours {options.precision}, dense fp32"
    )
    print(f"{'':16}{'step':>10}{'completion':>14}{'whole fit':>12}{'samples/s':>12}")
    for kind, of in enumerate(("clock", "CPU time")):
        dense, ours, once = (median(t[kind] for t in times[name]) for name in ("dense", "ours", "completion"))
        whole = {"dense": steps * dense, "ours": once + steps * ours}
        for name, step, first in (("dense", dense, 0.0), ("ours", ours, once)):
            label = f"{name}, {of}"
            print(f"{label:16}{step:9.3f}s{first:13.1f}s{whole[name]:11.0f}s{samples / whole[name]:12,.0f}")
        print(f"ours / dense by {of}: {whole['dense'] / whole['ours']:.1f} (needed: 10)")


if __name__ == "__main__":
    main()
