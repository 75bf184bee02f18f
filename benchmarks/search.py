"""A warm searcher against raw FAISS, opening and cold commands, and what an append costs. Prints one table.

    python benchmarks/search.py [--rows 1000000] [--dim 256] [--kinds hnsw ivf] [--threads N] [--keep DIR]

The gallery is made on the fly: unit vectors of float16, each a random mixture of three topics with noise, in the shared
space already; there is a topic for every 25 rows, so that a topic has some 75 rows at any size of the gallery. Queries
are other such mixtures, in no gallery; more of them choose the effort. Latencies are a call's, medians over
``--calls``, the sides in turn in one process, every call with queries that no side has asked before: asked again, a
query finds its part of the graph in the processor's cache. *raw* asks the very index that the searcher holds, and once
more the same file read whole into memory; a graph is also asked at the effort 64, where a call is short and what the
searcher adds weighs most. Recall@10 is measured on these queries by brute force. Opening and cold commands run in
processes of their own, imports apart. Building and appending count processor time of all threads; with ``--keep`` the
indexes and what they cost to build are kept for the next run, and the append is made beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
import torch
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.reader import Cache, open_cache
from cmcr.cache.writer import ShardData, write_cache
from cmcr.pipeline.searcher import Searcher
from cmcr.pipeline.searching.record import Place
from cmcr.trainer.connector import Connector
from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo
from cmcr.trainer.projectors import ProjectorSpec, build_projector

SHARD = 50_000
PER_TOPIC = 25  # rows for each topic; each row is in three
NOISE = 0.5  # norm of what is each row's own
SPACE = "declared:bench"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@cache
def topics_of(gallery: int, dim: int) -> np.ndarray:
    """Unit rows (T, dim) float32 that a gallery of so many rows is mixed from."""
    topics = np.random.default_rng(7).standard_normal((gallery // PER_TOPIC, dim), dtype=np.float32)
    return topics / np.linalg.norm(topics, axis=1, keepdims=True)


def mixtures(count: int, topics: np.ndarray, seed: int) -> np.ndarray:
    """Unit rows, each of three of the topics (T, dim) in exponential shares, and noise: (count, dim) float32."""
    dim = topics.shape[1]
    rng = np.random.default_rng(seed)
    shares = rng.exponential(size=(count, 3)).astype(np.float32)
    rows = np.zeros((count, dim), np.float32)
    for share in shares.T:
        rows += share[:, None] * topics[rng.integers(0, len(topics), count)]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows += NOISE / dim**0.5 * rng.standard_normal((count, dim), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def asking(count: int, options: argparse.Namespace, seed: int) -> np.ndarray:
    """Queries: (count, dim) float32."""
    return mixtures(count, topics_of(options.rows, options.dim), seed)


def shards(start: int, stop: int, topics: np.ndarray) -> Iterator[ShardData]:
    for low in range(start, stop, SHARD):
        rows = mixtures(min(SHARD, stop - low), topics, low + 1)
        yield ShardData([f"photos/{low + n:09d}" for n in range(len(rows))], rows)


def connector_of(folder: Path, dim: int) -> Connector:
    """A connector that leaves the rows as they are, saved for the commands."""
    spec = ProjectorSpec("identity", dim, dim)
    info = ConnectorInfo({"bench": SpaceInfo(SPACE, ("image",), {})}, "identity")
    connector = Connector({"bench": build_projector(spec)}, info)
    connector.save(folder / "connector")
    return connector


def gallery_of(path: Path, rows: int, more: int, dim: int) -> Cache:
    """The gallery with ``rows`` rows, and ``more`` in a shard of their own; the same bytes each time."""
    manifest = CacheManifest(SPACE, "bench", "image", "bench", "bench", dim)

    def data() -> Iterator[ShardData]:
        yield from shards(0, rows, topics_of(rows, dim))
        if more:
            yield from shards(rows, rows + more, topics_of(rows, dim))

    return write_cache(path, manifest, data())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def latencies(sides: list[Callable[[np.ndarray], Any]], queries: np.ndarray, batch: int, calls: int) -> list[float]:
    """Median seconds of a call of each side, in turn, each with queries of its own."""
    spent: list[list[float]] = [[] for _ in sides]
    assert len(queries) >= batch * calls * len(sides)
    at = 0
    for call in range(calls):
        for number in range(len(sides)):
            side = (number + call) % len(sides)
            asked = np.ascontiguousarray(queries[at : at + batch])
            at += batch
            spent[side].append(timed(lambda asked=asked, side=side: sides[side](asked))[0])
    return [median(one) for one in spent]


def recall(searcher: Searcher, queries: np.ndarray, exact: np.ndarray) -> float:
    scores, _ = searcher.topk(queries, 10)
    return float((scores >= exact[:, -1:] - 1e-6).mean())


OPENING = """
import sys, time
import torch, faiss, h5py, numpy
from cmcr.cache.reader import open_cache
from cmcr.pipeline.searcher import Searcher
from cmcr.pipeline.searching import gallery_index
from cmcr.trainer.connector import Connector
query = numpy.load(sys.argv[2])
start = time.perf_counter()
searcher = Searcher(Connector.load(sys.argv[4]), open_cache(sys.argv[1]), index=sys.argv[3])
opened = time.perf_counter()
searcher.find(query)
print(opened - start, time.perf_counter() - opened)
"""


def opening(kind: str, folder: Path, query: np.ndarray) -> tuple[float, float]:
    """Median seconds of opening and of the first answer, each in a new process after its imports."""
    np.save(folder / "query.npy", query)
    command = [sys.executable, "-c", OPENING, folder / "gallery", folder / "query.npy", kind, folder / "connector"]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(5)]
    return median(float(run[0]) for run in runs), median(float(run[1]) for run in runs)


def measure(kind: str, folder: Path, connector: Connector, options: argparse.Namespace) -> None:
    gallery = open_cache(folder / "gallery")
    batches = {1: options.calls, 64: max(30, options.calls // 16)}
    queries = asking(3 * max(batch * calls for batch, calls in batches.items()), options, 10**9 + 7)
    opened, first = opening(kind, folder, queries[:1])
    searcher = Searcher(connector, gallery, index=kind)
    assert searcher.index is not None
    assert searcher.index.record.given
    some = queries[:1024]
    exact, _ = Searcher(connector, gallery, index="exact", memory_budget=0).topk(some, 10)
    say(f"  {searcher.how}")
    say(f"  recall@10 on other queries  {recall(searcher, some, exact):.4f}  (budget 0.995)")
    say(f"  open {opened:.3f} s + first answer {first * 1e3:.1f} ms  (budget 1 s)")
    for effort in (64, searcher.index.record.effort) if kind == "hnsw" else (searcher.index.record.effort,):
        searcher.index.record = replace(searcher.index.record, effort=effort)
        measure_latency(searcher, queries, batches)


def measure_latency(searcher: Searcher, queries: np.ndarray, batches: dict[int, int]) -> None:
    """At the effort that the searcher's record says."""
    assert searcher.index is not None
    record = searcher.index.record
    sides: list[Callable[[np.ndarray], Any]] = [searcher.find]
    if record.kind == "hnsw":
        place = Place(searcher.view, "hnsw")
        read = faiss.read_index(str(place.folder / record.files[0][0]))
        effort = faiss.SearchParametersHNSW(efSearch=record.effort)
        parts = [searcher.index.index.parts[0], read]
        sides += [lambda asked, part=part: part.search(asked, 10, params=effort) for part in parts]
    for batch, calls in batches.items():
        latencies(sides, queries[::-1], batch, calls // 10)
        ours, *raw = latencies(sides, queries, batch, calls)
        line = f"  effort {record.effort}, batch {batch:<3} {ours * 1e6:9.0f} us with keys"
        for name, other in zip(("raw, same index", "raw, in memory"), raw, strict=False):
            line += f"; {name} {other * 1e6:.0f} us, ratio {ours / other:.3f}"
        say(line + ("  (budget 1.1)" if raw else ""))


def processor_time(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall time, processor time of all threads, result."""
    before = time.process_time()
    wall, result = timed(work)
    return wall, time.process_time() - before, result


def build(kind: str, folder: Path, connector: Connector, options: argparse.Namespace) -> None:
    """Make the index, unless it is there, and note what it cost."""
    if (folder / f"built-{kind}.json").exists():
        return
    gallery, like = open_cache(folder / "gallery"), asking(1024, options, 10**9)
    wall, spent, _ = processor_time(lambda: Searcher(connector, gallery, index=kind, held_out=like))
    (folder / f"built-{kind}.json").write_text(json.dumps([wall, spent]))


def measure_append(kinds: list[str], folder: Path, connector: Connector, options: argparse.Namespace) -> None:
    """Append one row in a hundred beside the gallery: its indexes are never written in place, so links do."""
    more = options.rows // 100
    grown = folder / "grown"
    shutil.rmtree(grown, ignore_errors=True)
    shutil.copytree(folder / "indexes", grown / "indexes", copy_function=os.link)
    gallery = gallery_of(grown / "gallery", options.rows, more, options.dim)
    for kind in kinds:
        wall, spent, searcher = processor_time(lambda kind=kind: Searcher(connector, gallery, index=kind))
        assert searcher.index is not None
        assert searcher.index.record.trained_rows == options.rows, "built anew"
        built_wall, built = json.loads((folder / f"built-{kind}.json").read_text())
        calls = options.calls // 5
        queries = asking(2 * calls, options, 10**9 + 11)
        whole = Searcher(connector, open_cache(folder / "gallery"), index=kind)
        now, before = latencies([searcher.find, whole.find], queries, 1, calls)
        say(
            f"{kind}: built in {built:.1f} s of processor time ({built_wall:.0f} s); "
            f"appending {more:,} rows takes {spent:.2f} s ({wall:.1f} s), {spent / built:.2%}  (budget about 1%)\n"
            f"  recall {searcher.index.record.recall:.4f}, a search then takes {now / before:.2f} of what it took"
        )
    shutil.rmtree(grown)


def cold(folder: Path, options: argparse.Namespace) -> None:
    """``cmcr search --query CACHE`` in a process of its own against one that only imports."""
    manifest = CacheManifest(SPACE, "bench", "image", "bench", "bench", options.dim)
    asked = asking(3, options, 5)
    shutil.rmtree(folder / "queries", ignore_errors=True)
    write_cache(folder / "queries", manifest, iter([ShardData(["a", "b", "c"], asked)]))
    modules = "torch, faiss, h5py, cmcr.cli, cmcr.pipeline.search, cmcr.pipeline.searching.gallery_index, rich.table"
    arguments = ["search", "--connector", folder / "connector", "--gallery", folder / "gallery"]
    command = [sys.executable, "-m", "cmcr", *map(str, arguments), "--query", str(folder / "queries")]
    empty, full = [], []
    for _ in range(5):
        empty.append(timed(lambda: subprocess.run([sys.executable, "-c", f"import {modules}"], check=True))[0])
        full.append(timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))[0])
    rest = median(full) - median(empty)
    say(
        f"cold cmcr search --query: {median(full):.2f} s, of which imports {median(empty):.2f} s; "
        f"beyond them {rest:.2f} s  (budget 1 s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--kinds", nargs="+", default=["ivf", "hnsw"], choices=["ivf", "hnsw"])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep", type=Path, help="Folder for gallery and indexes, kept for the next run.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if not (folder / "gallery").exists():
            gallery_of(folder / "gallery", options.rows, 0, options.dim)
        say(f"{options.rows:,} x {options.dim} float16, {options.threads} threads, FAISS {faiss.__version__}")
        connector = connector_of(folder, options.dim)
        for kind in options.kinds:
            build(kind, folder, connector, options)
            say(kind)
            measure(kind, folder, connector, options)
        cold(folder, options)
        measure_append(options.kinds, folder, connector, options)


if __name__ == "__main__":
    main()
