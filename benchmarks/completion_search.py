"""Certified top-k and inverted lists against exact completion, on a sharp and on a flat bank. Prints one table.

    python benchmarks/completion_search.py --kit KIT [--rows 1000000] [--queries 8192] [--threads N] [--no-topk]

Sharp: the kit's own heads (``image_text``, ``audio_text``), memory tiled to the rows asked for, each copy moved by
noise of norm 0.05. Flat: ``clip_minilm``, names on images, tiled with noise of the images' measured covariance, all of
it. What is timed is what ``search = "auto"`` chooses and calibrates, beside exact completion and certified top-k.
Exact completion and top-k are timed on fewer queries than inverted lists, which share a pass over the bank among all;
times are a query's, interleaved in one process, medians of ``--repeats``. Vector error is the distance between unit
vectors from exact completion, over the queries timed there; they are no part of the calibration's sample but by chance.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from cmcr.cache.bank import Bank
from cmcr.cache.faiss_index import inverted_lists
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.reader import Cache
from cmcr.cache.writer import ShardData, write_cache
from cmcr.trainer.approximate import bank_sample, complete_ivf
from cmcr.trainer.bf16 import measured_error
from cmcr.trainer.completion import complete_rows
from cmcr.trainer.probe import measure_sharpness
from cmcr.trainer.search_choice import choose_search, plan_completion
from cmcr.trainer.settings import CompletionSettings
from cmcr.trainer.topk import LARGEST_SHARE, complete_topk

TAU = 0.01
T = TypeVar("T")
SETS = {
    "image_text": ("image_text/texts.npy", "image_text/image_memory.npy"),
    "audio_text": ("audio_text/texts.npy", "audio_text/audio_memory.npy"),
    "clip_minilm": ("clip_minilm/names_clip_text.npy", "clip_minilm/image_memory_clip.npy"),
}


def unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float32)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def tiled(rows: np.ndarray, count: int, flat: bool) -> Iterator[ShardData]:
    """The rows again and again, each copy moved by noise."""
    rng = np.random.default_rng(0)
    dim = rows.shape[1]
    root = 0.05 / dim**0.5 * np.eye(dim)
    if flat:
        values, axes = np.linalg.eigh(np.cov(rows, rowvar=False))
        root = axes * np.sqrt(np.maximum(values, 0))
    for start in range(0, count, 50_000):
        numbers = np.arange(start, min(start + 50_000, count))
        noise = (rng.standard_normal((len(numbers), dim), dtype=np.float32) @ root.T).astype(np.float32)
        yield ShardData([str(n) for n in numbers], rows[numbers % len(rows)] + noise)


def cache_of(folder: Path, name: str, modality: str, dim: int, shards: Iterator[ShardData]) -> Cache:
    manifest = CacheManifest("declared:bench", "bench", modality, "bench", "bench", dim)
    return write_cache(folder / name, manifest, shards)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def measure(name: str, folder: Path, options: argparse.Namespace) -> None:
    texts, memory = (unit(np.load(options.kit / file)) for file in SETS[name])
    chosen = np.random.default_rng(1).choice(len(texts), min(options.queries, len(texts)), replace=False)
    bank = Bank([cache_of(folder, name, "image", texts.shape[1], tiled(memory, options.rows, name == "clip_minilm"))])
    query = cache_of(
        folder, f"{name}-queries", "text", texts.shape[1], iter([ShardData([str(c) for c in chosen], texts[chosen])])
    )
    queries = query.read(0, len(query))
    few = queries[: options.few]
    sharpness = measure_sharpness(queries[:128], bank)
    k = sharpness.certified(TAU, options.tolerance) / len(bank)
    mass = sharpness.massive(TAU, options.tolerance / 4) / len(bank)
    say(
        f"{name}: {len(bank):,} x {bank.dim}, {np.median(sharpness.neighbours(TAU)):,.0f} effective neighbours (median)"
    )
    say(f"  k/M of a certificate: median {np.median(k):.2%}, 90% {np.percentile(k, 90):.2%}")
    say(f"  k/M of the mass:      median {np.median(mass):.2%}, 90% {np.percentile(mass, 90):.2%}")
    _, sums = sharpness._weights(TAU)
    kept = np.cumsum(sharpness.counts, axis=1) <= len(bank) / LARGEST_SHARE
    beyond = 1 - np.where(kept, sums, 0).max(axis=1) / sums[:, -1]
    say(
        f"  mass outside the best 1/{LARGEST_SHARE} of the rows: "
        f"median {np.median(beyond):.1e}, largest {beyond.max():.1e}"
    )
    for count in (len(query), 36_000):
        say(f"  auto, {count:,} queries: {choose_search(sharpness, TAU, options.tolerance, count, faiss=True)[1]}")
    spent, plan = timed(
        lambda: plan_completion(query, bank, CompletionSettings(search="auto", tolerance=options.tolerance))
    )
    say(f"  {plan.mode} planned in {spent:.0f} s, lists included: " + "; ".join(plan.why))
    if plan.error is not None:
        say(f"  calibration: {plan.error}")
    sample, level = bank_sample(bank, 0), plan.least_share
    lists = inverted_lists(bank) if plan.mode == "ivf" else None
    times: dict[str, list[float]] = {"exact": [], "topk": [], "ivf": []}
    for _ in range(options.repeats):
        spent, exact = timed(lambda: complete_rows(few, bank, TAU))
        times["exact"].append(spent / len(few))
        if lists is not None and level is not None:
            spent, found = timed(lambda: complete_ivf(queries, bank, lists, sample, TAU, level))
            times["ivf"].append(spent / len(queries))
    if not options.no_topk:
        spent, sure = timed(lambda: complete_topk(few, bank, TAU, options.tolerance))
        times["topk"].append(spent / len(few))
    base = median(times["exact"])
    say(f"  exact {base * 1e3:8.2f} ms a query")
    if times["topk"]:
        off = measured_error(sure.vectors, exact.vectors, "exact")
        say(f"  topk  {median(times['topk']) * 1e3:8.2f} ms, {base / median(times['topk']):.2f} times as fast; {off}")
        whole = (sure.k == len(bank)).mean()
        bounds = np.nan_to_num(sure.error)  # a row completed exactly has none
        say(
            f"        k/M median {np.median(sure.k) / len(bank):.2%}, all of the bank for {whole:.0%}; "
            f"largest bounds: mass {sure.mass.max():.1e}, vector {bounds.max():.1e}"
        )
    if times["ivf"]:
        off = measured_error(found.vectors[: len(few)], exact.vectors, "exact")
        faster = base / median(times["ivf"])
        say(f"  auto  {median(times['ivf']) * 1e3:8.2f} ms, {faster:.1f} times as fast (budget 10); {off}")
        mass = float(np.median(found.mass.estimate))
        say(f"        visits {found.k.mean() / len(bank):.2%}; mass left out estimated at {mass:.1e} (median)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, default=Path(os.environ.get("CMCR_KIT", "../shared/kit")))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=8192)
    parser.add_argument("--few", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-topk", action="store_true", help="leave certified top-k out: it takes longest")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.sets:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, Path(folder), options)


if __name__ == "__main__":
    main()
