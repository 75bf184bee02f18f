"""Approximate indexes over a memory bank: built through FAISS once, and kept beside the bank by its content.

An index holds no truth of its own: it proposes rows, which are read from the bank and scored in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import fsio
from .bank import Bank, sample_rows
from .errors import CacheError, MissingExtraError
from .mapped import Indices
from .vectors import Float32

FOLDER = "indexes"  # beside the first cache of the bank
VERSION = 2
_TRAIN_ROWS = 16  # rows a list that k-means sees
_TRAIN_MOST = 1 << 17  # and at most in all
_NEIGHBOURS = 32  # edges of a node of the graph
_CONSTRUCTION = 80  # candidates while the graph is built
_BLOCK = 16384


@dataclass(frozen=True)
class InvertedLists:
    """A bank cut into lists of rows that lie close together.

    Parameters
    ----------
    centroids : array (L, D) float32
        Mean of each list's rows; not of unit length.
    spread : array (L,) float32
        Root mean squared distance of its rows from that mean.
    starts : array (L + 1,) int64
        List l is ``rows[starts[l]:starts[l + 1]]``.
    rows : array (M,) int64
        Row numbers of the bank, ascending within a list; mapped from the file.
    path : Path
        Where it is kept.
    """

    centroids: Float32
    spread: Float32
    starts: Indices
    rows: Indices
    path: Path

    @property
    def sizes(self) -> Indices:
        """Rows in each list: (L,)."""
        return np.diff(self.starts)


def lists_for(rows: int) -> int:
    """How many lists a bank is cut into: about 16 √M, a power of two. Means of short lists tell them apart sharply."""
    return int(2 ** max(0, round(np.log2(max(1.0, 16 * rows**0.5)))))


def load_faiss() -> Any:
    """The module ``faiss``, imported after torch: the other order hangs in forked workers that search.

    Raises
    ------
    MissingExtraError
    """
    import torch  # noqa: F401

    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            f"An approximate index needs FAISS, which is not installed ({error}).",
            todo="pip install faiss-cpu (or faiss-gpu where there is a GPU, never both); "
            "exact completion needs neither: --search exact",
        ) from error
    return faiss


def has_faiss() -> bool:
    """Whether an approximate index can be built here; nothing is imported."""
    from importlib.util import find_spec

    return find_spec("faiss") is not None


def index_path(bank: Bank, kind: str, seed: int, folder: Path | None = None) -> Path:
    """Where the index of exactly these rows is kept."""
    record = [kind, VERSION, bank.content_id(), seed]
    name = hashlib.blake2b(json.dumps(record).encode(), digest_size=16).hexdigest()
    place = bank.caches[0].path.parent / FOLDER if folder is None else folder
    return place / f"{bank.caches[0].path.name}-{name}.{kind}"


def inverted_lists(bank: Bank, *, seed: int = 0, folder: Path | None = None) -> InvertedLists:
    """The lists of a bank, read where they are kept or made there.

    Seeded two-level k-means on a sample of the bank; each row goes to the nearest mean. On one machine, with one
    number of threads, the same bank and seed give the same file. Building holds a sample of the bank, a block, and
    20 bytes a row.

    Parameters
    ----------
    bank : Bank
    seed : int
        Of the sample and of the first means.
    folder : Path, optional
        Instead of ``indexes`` beside the bank.

    Raises
    ------
    MissingExtraError
        FAISS is not installed, and the index is not there yet.
    CacheError
        The file cannot be read or written.
    """
    path = index_path(bank, "ivf", seed, folder)
    if not path.exists():
        _write(path, _lists_bytes(bank, seed))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            centroids, spread, starts = (file.get_tensor(name) for name in ("centroids", "spread", "starts"))
        rows = _mapped_rows(path, int(starts[-1]))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error
    if int(starts[-1]) != len(bank) or centroids.shape[1] != bank.dim:
        raise _unreadable(path, f"it is of {int(starts[-1])} rows, the bank has {len(bank)}")
    return InvertedLists(centroids, spread, starts, rows, path)


def _mapped_rows(path: Path, total: int) -> Indices:
    """The tensor ``rows`` as a memory map: (M,) int64."""
    with path.open("rb") as file:
        head = int.from_bytes(file.read(8), "little")
        begin = json.loads(file.read(head))["rows"]["data_offsets"][0]
    return np.memmap(path, np.dtype("<i8"), "r", 8 + head + begin, (total,))


def _lists_bytes(bank: Bank, seed: int) -> bytes:
    """Train, assign and sort: the file."""
    from safetensors.numpy import save

    faiss = load_faiss()
    from .two_level import TwoLevelMeans

    count = min(lists_for(len(bank)), len(bank))
    wanted = min(len(bank), max(count, min(count * _TRAIN_ROWS, _TRAIN_MOST)))
    means = TwoLevelMeans(faiss, bank.rows(sample_rows(len(bank), wanted, seed)), count, seed)
    owner = np.empty(len(bank), np.int32)  # (M,)
    sums = np.zeros((means.count, bank.dim))  # (L, D)
    start = 0
    for block in bank.blocks(_BLOCK):
        owner[start : start + len(block)] = own = means.assign(block)
        order = np.argsort(own, kind="stable")
        first = np.flatnonzero(np.diff(own[order], prepend=-1))
        sums[own[order[first]]] += np.add.reduceat(block[order], first, axis=0, dtype=np.float64)
        start += len(block)
    sizes = np.bincount(owner, minlength=means.count)
    centroids = sums / np.maximum(sizes, 1)[:, None]
    # rows are of unit length: their mean squared distance from their mean is 1 - |mean|^2
    spread = np.sqrt(np.maximum(0.0, 1 - np.square(centroids).sum(axis=1)))
    tensors = {
        "centroids": centroids.astype(np.float32),
        "spread": spread.astype(np.float32),
        "starts": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        "rows": np.argsort(owner, kind="stable").astype(np.int64),
    }
    about = {"kind": "ivf", "bank": bank.content_id(), "seed": seed, "version": VERSION}
    # one entry: safetensors writes several in an order that differs from call to call
    file: bytes = save(tensors, {"cmcr": json.dumps(about, sort_keys=True)})
    return file


def hnsw_graph(bank: Bank, *, seed: int = 0, folder: Path | None = None) -> Any:
    """The FAISS HNSW index of a bank, read where it is kept or made there.

    It is built by one thread, so that the same bank gives the same graph, and holds a copy of the bank in memory: for
    banks of up to some 10^5 rows.

    Raises
    ------
    MissingExtraError, CacheError
        As :func:`inverted_lists`.
    """
    faiss = load_faiss()
    path = index_path(bank, "hnsw", seed, folder)
    if not path.exists():
        index = faiss.IndexHNSWFlat(bank.dim, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _CONSTRUCTION
        with _threads(faiss, 1):
            for block in bank.blocks(_BLOCK):
                index.add(block)
        _write(path, faiss.serialize_index(index).tobytes())
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    if index.ntotal != len(bank) or index.d != bank.dim:
        raise _unreadable(path, f"it is of {index.ntotal} rows, the bank has {len(bank)}")
    return index


@contextmanager
def _threads(faiss: Any, count: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _write(path: Path, data: bytes) -> None:
    with fsio.naming_folder(path.parent):
        fsio.make_folder(path.parent)
    fsio.sweep(path.parent)
    fsio.write_atomic(path, data)


def _unreadable(path: Path, why: object) -> CacheError:
    return CacheError(
        f"The index of a memory bank cannot be read ({why}).",
        where=str(path),
        todo="delete that file; it is made again",
    )


def row_chunks(lists: InvertedLists, most: int = _BLOCK) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
    """(first list, last list + 1, their row numbers) of consecutive lists, about ``most`` rows at a time."""
    first = 0
    count = len(lists.starts) - 1
    while first < count:
        last = int(np.searchsorted(lists.starts, lists.starts[first] + most, side="right")) - 1
        last = min(max(last, first + 1), count)
        yield first, last, np.array(lists.rows[lists.starts[first] : lists.starts[last]])
        first = last
