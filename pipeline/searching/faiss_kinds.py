"""The two FAISS indexes of a gallery: built, grown, opened from mapped files and asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.bank import sample_rows
from ...cache.errors import CacheError
from ...cache.faiss_index import load_faiss
from ...cache.vectors import Float32
from ..shared import SharedView
from .choice import NEIGHBOURS, Kind, lists_for_search

Rows = npt.NDArray[np.int64]
CONSTRUCTION = 80  # candidates while the graph is built
TRAIN_ROWS = 32  # rows a list that k-means sees
BLOCK = 16384
MOST_PARTS = 8
LEAST_EFFORT = 32  # in the small graph of appended rows, which needs less than the large one to find as much
SPARE = 16  # half floats propose twice as many rows as are asked for, and these


def build(kind: Kind, view: SharedView, seed: int) -> Any:
    """A new index of all rows, in memory."""
    faiss = load_faiss()
    index = _empty_graph(faiss, view.dim) if kind == "hnsw" else _trained_lists(faiss, view, seed)
    add(index, view, 0)
    return index


def _empty_graph(faiss: Any, dim: int) -> Any:
    index = faiss.IndexHNSWFlat(dim, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = CONSTRUCTION
    return index


def _trained_lists(faiss: Any, view: SharedView, seed: int) -> Any:
    count = lists_for_search(len(view))
    sample = view.rows(sample_rows(len(view), min(len(view), count * TRAIN_ROWS), seed))
    kmeans = faiss.Kmeans(
        view.dim, count, niter=10, seed=seed % 2**31, spherical=True, min_points_per_centroid=1,
        max_points_per_centroid=TRAIN_ROWS,
    )  # fmt: skip
    kmeans.train(np.ascontiguousarray(sample))
    quantizer = faiss.IndexFlatIP(view.dim)
    quantizer.add(np.asarray(kmeans.centroids, np.float32).reshape(count, view.dim))
    return _empty_lists(faiss, quantizer, count)


def _empty_lists(faiss: Any, quantizer: Any, count: int) -> Any:
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, quantizer.d, count, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.is_trained = True  # half floats need no training beyond the means
    return index


def add(index: Any, view: SharedView, start: int) -> None:
    """Add the rows from ``start`` on, in order; a row's id is its number in the gallery."""
    for first, block in view.blocks(BLOCK, start):
        if hasattr(index, "hnsw"):
            index.add(block)
        else:
            index.add_with_ids(block, np.arange(first, first + len(block), dtype=np.int64))


def graph_of(view: SharedView, start: int) -> Any:
    """A graph of the rows from ``start`` on alone; it numbers them from 0."""
    index = _empty_graph(load_faiss(), view.dim)
    add(index, view, start)
    return index


def rows_of(path: Path) -> int:
    """Rows of the graph at ``path``, which is mapped, not read."""
    faiss = load_faiss()
    return int(faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0)).ntotal)


def read_for_growth(path: Path) -> Any:
    """An index wholly in memory, which can be added to."""
    index = load_faiss().read_index(str(path))
    if hasattr(index, "hnsw"):
        index.hnsw.efConstruction = CONSTRUCTION
    return index


def part_of(path: Path, view: SharedView, start: int) -> Any:
    """Inverted lists of the rows from ``start`` on, around the means of the index at ``path``."""
    faiss = load_faiss()
    base = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    index = _empty_lists(faiss, faiss.clone_index(faiss.downcast_index(base.quantizer)), base.nlist)
    add(index, view, start)
    return index


def merged(paths: Sequence[Path]) -> Any:
    """All parts of inverted lists as one index in memory."""
    whole = read_for_growth(paths[0])
    for path in paths[1:]:
        whole.merge_from(read_for_growth(path), 0)
    return whole


class OpenIndex:
    """The files of an index, mapped, as one thing to ask.

    Parameters
    ----------
    kind : str
    paths : sequence of Path
        One file or several parts: inverted lists around the same means, or a graph and one of the rows after its own.
    view : SharedView
        The gallery: what half floats propose is scored again from its rows.

    Raises
    ------
    RuntimeError
        A file is not what FAISS wrote.
    """

    def __init__(self, kind: Kind, paths: Sequence[Path], view: SharedView) -> None:
        faiss = load_faiss()
        self.kind = kind
        # Without the flag (FAISS before 1.11) a graph is read into memory.
        flag = getattr(faiss, "IO_FLAG_MMAP_IFC", 0) if kind == "hnsw" else faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        self.parts = [faiss.read_index(str(path), flag) for path in paths]
        self._faiss = faiss
        self._view = view
        self._where = str(paths[0])
        self._effort: tuple[int, Any] = (0, None)

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.ntotal for part in self.parts)

    @property
    def dim(self) -> int:
        """Length of a row."""
        return int(self.parts[0].d)

    @property
    def most_effort(self) -> int:
        """Effort beyond which nothing is gained."""
        return self.rows if self.kind == "hnsw" else int(self.parts[0].nlist)

    def search(self, vectors: Float32, k: int, effort: int, *, newest: bool = False) -> tuple[Float32, Rows]:
        """Float32 cosines and rows, (Q, k) each, best first; -1 where less was found.

        Parameters
        ----------
        vectors : (Q, D) float32
        k, effort : int
        newest : bool
            Ask the newest of several inverted lists alone.
        """
        if self.kind == "hnsw":
            scores, rows = self.parts[0].search(vectors, k, params=self._parameters(effort))
            return (scores, rows) if len(self.parts) == 1 else self._with_tail(vectors, scores, rows, effort)
        parts = self.parts[-1:] if newest else self.parts
        return self._rescored(vectors, self._proposed(vectors, min(2 * k + SPARE, self.rows), effort, parts), k)

    def _parameters(self, effort: int) -> Any:
        known, said = self._effort
        if known != effort:
            said = self._faiss.SearchParametersHNSW(efSearch=effort)
            self._effort = (effort, said)
        return said

    def _with_tail(self, vectors: Float32, scores: Float32, rows: Rows, effort: int) -> tuple[Float32, Rows]:
        """What the first graph found, (Q, k) each, and what the other, which is small, knows better."""
        k, (tail,) = rows.shape[1], self.parts[1:]
        less = self._faiss.SearchParametersHNSW(efSearch=max(k, LEAST_EFFORT, effort // 3))
        more, places = tail.search(vectors, k, params=less)
        both = np.concatenate([scores, more], axis=1)  # (Q, 2k)
        numbers = np.concatenate([rows, np.where(places < 0, -1, places + self.parts[0].ntotal)], axis=1)
        best = np.argsort(-both, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(both, best, axis=1), np.take_along_axis(numbers, best, axis=1)

    def _proposed(self, vectors: Float32, k: int, effort: int, parts: Sequence[Any]) -> Rows:
        """Rows (Q, parts k) by the scores of half floats; -1 where less was found."""
        from faiss.contrib.ivf_tools import search_preassigned

        near, lists = self.parts[0].quantizer.search(vectors, min(effort, self.most_effort))  # (Q, P) each
        found = [search_preassigned(part, vectors, k, lists, near) for part in _probing(parts, lists.shape[1])]
        scores, rows = (np.concatenate(side, axis=1) for side in zip(*found, strict=True))
        if len(found) > 1:
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            rows = np.take_along_axis(rows, best, axis=1)
        return np.asarray(rows, np.int64)

    def _rescored(self, vectors: Float32, proposed: Rows, k: int) -> tuple[Float32, Rows]:
        unique, back = np.unique(proposed, return_inverse=True)
        if unique[0] < -1 or unique[-1] >= len(self._view):
            raise CacheError(
                "The index of a gallery names rows that are not there.",
                where=self._where,
                todo="delete that file; the index is made again",
            )
        known = self._view.rows(np.maximum(unique, 0))  # (U, D)
        scores = np.einsum("qd,qkd->qk", vectors, known[back.reshape(proposed.shape)])
        scores[proposed < 0] = -np.inf
        best = np.lexsort((proposed, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(proposed, best, axis=1)


def _probing(parts: Sequence[Any], probes: int) -> Iterator[Any]:
    for part in parts:
        part.nprobe = probes
        yield part
