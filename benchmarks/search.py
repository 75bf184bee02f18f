"""A warm searcher against raw FAISS, opening and cold commands, and what an append costs. Prints one table.

    python benchmarks/search.py [--rows 1000000] [--dim 256] [--kinds hnsw ivf] [--threads N] [--keep DIR]

The gallery is made on the fly: unit vectors of float16 around random centres, in the shared space already. Queries
are drawn around the same centres and are in no gallery. Latencies are a call's, medians over ``--calls``, the two
sides in turn in one process; *raw* asks the very index that the searcher holds, and once more the same file read
whole into memory. Recall@10 is measured on these queries by brute force. Imports are not counted in cold commands:
an empty process that imports the same modules is timed beside them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from cmcr.pipeline.searching.choice import IndexSettings
from cmcr.pipeline.searching.record import Place
from cmcr.pipeline.shared import SharedView
from cmcr.trainer.connector import Connector
from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo
from cmcr.trainer.projectors import ProjectorSpec, build_projector

SHARD = 50_000
SPREAD = 0.8  # norm of a row's offset from its centre
SPACE = "declared:bench"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def clustered(count: int, dim: int, seed: int) -> np.ndarray:
    """Unit rows around 4,000 centres: (count, dim) float32."""
    centres = np.random.default_rng(7).standard_normal((4000, dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, len(centres), count)]
    rows += SPREAD / dim**0.5 * rng.standard_normal((count, dim), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def shards(start: int, stop: int, dim: int) -> Iterator[ShardData]:
    for low in range(start, stop, SHARD):
        rows = clustered(min(SHARD, stop - low), dim, low + 1)
        yield ShardData([f"photos/{low + n:09d}" for n in range(len(rows))], rows)


def gallery_of(path: Path, rows: int, more: int, dim: int) -> Cache:
    """The gallery with ``rows`` rows, and ``more`` in a shard of their own; the same bytes each time."""
    manifest = CacheManifest(SPACE, "bench", "image", "bench", "bench", dim)

    def data() -> Iterator[ShardData]:
        yield from shards(0, rows, dim)
        if more:
            yield from shards(rows, rows + more, dim)

    return write_cache(path, manifest, data())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def latencies(sides: list[Callable[[np.ndarray], Any]], queries: np.ndarray, batch: int, calls: int) -> list[float]:
    """Median seconds of a call of each side, in turn."""
    spent: list[list[float]] = [[] for _ in sides]
    for call in range(calls):
        at = call * batch % (len(queries) - batch + 1)
        for number in range(len(sides)):
            side = (number + call) % len(sides)
            asked = np.ascontiguousarray(queries[at : at + batch])
            spent[side].append(timed(lambda asked=asked, side=side: sides[side](asked))[0])
    return [median(one) for one in spent]


def recall(searcher: Searcher, queries: np.ndarray, exact: np.ndarray) -> float:
    scores, _ = searcher.topk(queries, 10)
    return float((scores >= exact[:, -1:] - 1e-6).mean())


def measure(kind: str, folder: Path, options: argparse.Namespace) -> None:
    gallery = open_cache(folder / "gallery")
    queries = clustered(1024, options.dim, 10**9 + 7)
    build, searcher = timed(lambda: Searcher(None, gallery, index=IndexSettings(kind)))
    assert searcher.index is not None
    opening, searcher = timed(lambda: Searcher(None, open_cache(folder / "gallery"), index=kind))
    first = timed(lambda: searcher.find(queries[:1]))[0]
    exact, _ = Searcher(None, gallery, index="exact", memory_budget=0).topk(queries, 10)
    say(f"{kind}: made in {build:.1f} s; {searcher.how}")
    say(f"  recall@10 on other queries  {recall(searcher, queries, exact):.4f}  (budget 0.995)")
    say(f"  open {opening:.3f} s + first answer {first * 1e3:.1f} ms  (budget 1 s)")
    record = searcher.index.record
    for batch in (1, 64):
        sides: list[Callable[[np.ndarray], Any]] = [searcher.find]
        if kind == "hnsw":
            place = Place(SharedView(gallery), "hnsw")
            read = faiss.read_index(str(place.folder / record.files[0][0]))
            effort = faiss.SearchParametersHNSW(efSearch=record.effort)
            parts = [searcher.index.index.parts[0], read]
            sides += [lambda asked, part=part, effort=effort: part.search(asked, 10, params=effort) for part in parts]
        ours, *raw = latencies(sides, queries, batch, options.calls if batch == 1 else max(30, options.calls // 10))
        line = f"  batch {batch:<3} {ours * 1e6:9.0f} us with keys"
        for name, other in zip(("raw, same index", "raw, in memory"), raw, strict=False):
            line += f"; {name} {other * 1e6:.0f} us, ratio {ours / other:.3f}"
        say(line + ("  (budget 1.1)" if raw else ""))


def measure_append(kinds: list[str], folder: Path, built: dict[str, float], options: argparse.Namespace) -> None:
    more = options.rows // 100
    gallery = gallery_of(folder / "gallery", options.rows, more, options.dim)
    for kind in kinds:
        spent, searcher = timed(lambda kind=kind: Searcher(None, gallery, index=kind))
        assert searcher.index is not None
        assert searcher.index.record.trained_rows == options.rows, "built anew"
        share = f", {spent / built[kind]:.2%} of building" if kind in built else ""
        say(f"{kind}: appending {more:,} rows takes {spent:.2f} s{share}")


def cold(folder: Path, options: argparse.Namespace) -> None:
    """``cmcr search --query CACHE`` in a process of its own against one that only imports."""
    spec = ProjectorSpec("identity", options.dim, options.dim)
    info = ConnectorInfo({"bench": SpaceInfo(SPACE, ("image",), {})}, "identity")
    Connector({"bench": build_projector(spec)}, info).save(folder / "connector")
    manifest = CacheManifest(SPACE, "bench", "image", "bench", "bench", options.dim)
    asked = clustered(3, options.dim, 5)
    write_cache(folder / "queries", manifest, iter([ShardData(["a", "b", "c"], asked)]))
    modules = "torch, faiss, h5py, cmcr.cli, cmcr.pipeline.search, cmcr.pipeline.searching.gallery_index, rich.table"
    arguments = ["search", "--connector", folder / "connector", "--gallery", folder / "gallery"]
    command = [sys.executable, "-m", "cmcr", *map(str, arguments), "--query", str(folder / "queries")]
    empty, full = [], []
    for _ in range(5):
        empty.append(timed(lambda: subprocess.run([sys.executable, "-c", f"import {modules}"], check=True))[0])
        full.append(timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))[0])
    rest = median(full) - median(empty)
    say(f"cold cmcr search --query: {median(full):.2f} s, {rest:.2f} s beyond imports  (budget 1 s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--kinds", nargs="+", default=["ivf", "hnsw"], choices=["ivf", "hnsw"])
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--keep", type=Path, help="Folder for gallery and indexes, kept; indexes there are not rebuilt."
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if not (folder / "gallery").exists():
            gallery_of(folder / "gallery", options.rows, 0, options.dim)
        say(f"{options.rows:,} x {options.dim} float16, {options.threads} threads, FAISS {faiss.__version__}")
        built: dict[str, float] = {}
        for kind in options.kinds:
            place = Place(SharedView(open_cache(folder / "gallery")), kind)
            if place.read() is None:
                built[kind] = timed(lambda kind=kind: Searcher(None, open_cache(folder / "gallery"), index=kind))[0]
            measure(kind, folder, options)
            if kind in built:
                say(f"  built in {built[kind]:.1f} s")
        cold(folder, options)
        import shutil

        shutil.rmtree(folder / "gallery")
        measure_append(options.kinds, folder, built, options)


if __name__ == "__main__":
    main()
