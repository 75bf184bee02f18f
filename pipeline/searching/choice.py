"""Which index a gallery is searched through, by its size and the memory that the index may take. Values only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ...cache.errors import CmcrError
from ...cache.sizes import parse_size

Kind = Literal["hnsw", "ivf"]
CHOICES = ("auto", "kept", "exact", "hnsw", "ivf")
EXACT_NUMBERS = 1 << 25  # rows x dim that one matrix product scores in some milliseconds
NEIGHBOURS = 32  # edges of a node of the graph; twice as many at its ground level
EFFORTS: dict[Kind, tuple[int, ...]] = {
    "hnsw": (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048),
    "ivf": (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192),
}


@dataclass(frozen=True)
class IndexSettings:
    """How a gallery is searched.

    Parameters
    ----------
    kind : str
        ``auto``: exact, HNSW or IVF by size and memory, made where it is not there yet; ``kept``: an index that lies
        beside the gallery and is of its present content, else exact; ``exact``; ``hnsw``; ``ivf``.
    memory_budget : int
        Bytes that an index may take when all of it is in memory; beyond, inverted lists are read from the disk.
    recall : float
        Recall@10 against exact search on held-out queries that the effort is chosen for.
    queries : int
        Held-out queries drawn from the gallery.
    seed : int
        Of the held-out queries and of the first means.
    """

    kind: str = "auto"
    memory_budget: int = 2 << 30
    recall: float = 0.995
    queries: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in CHOICES:
            raise CmcrError(f"There is no index {self.kind!r}.", todo=f"give one of {', '.join(CHOICES)}")
        if not 0 < self.recall <= 1:
            raise CmcrError(f"A recall lies between 0 and 1, not {self.recall}.", todo="for example 0.995")
        if self.queries < 1:
            raise CmcrError(f"At least one query is held out, not {self.queries}.", todo="give a positive number")


def settings_of(index: str | IndexSettings, memory_budget: int | str | None = None) -> IndexSettings:
    """Settings by the name of an index, with a budget as in ``"4GB"`` where one is said."""
    settings = index if isinstance(index, IndexSettings) else IndexSettings(kind=index)
    if memory_budget is None:
        return settings
    try:
        return replace(settings, memory_budget=parse_size(memory_budget))
    except ValueError as error:
        raise CmcrError(f"The memory budget cannot be read: {error}.", todo="for example 4GB") from error


def graph_bytes(rows: int, dim: int) -> int:
    """Memory of an HNSW graph with its float32 rows: 2M + M/31 edges of 4 bytes a row, a level and an offset."""
    edges = 2 * NEIGHBOURS + NEIGHBOURS / (NEIGHBOURS - 1)
    return int(rows * (4 * dim + 4 * edges + 12))


def lists_for_search(rows: int) -> int:
    """Inverted lists of a gallery: about 4 sqrt(M), a power of two, at least 16 rows a list."""
    wanted = 1 << max(0, int(4 * math.sqrt(max(1, rows))).bit_length() - 1)
    return max(1, min(wanted, rows // 16))


def choose_kind(rows: int, dim: int, settings: IndexSettings, faiss: bool) -> tuple[Kind | None, str]:
    """The index of a gallery, None for exact search, and why in a few words.

    Parameters
    ----------
    rows, dim : int
        Size of the gallery in the shared space.
    settings : IndexSettings
    faiss : bool
        Whether FAISS is installed.
    """
    if settings.kind == "exact":
        return None, "exact, as asked"
    if settings.kind == "hnsw" or settings.kind == "ivf":
        return ("hnsw" if settings.kind == "hnsw" else "ivf"), f"{settings.kind}, as asked"
    if rows * dim <= EXACT_NUMBERS:
        return None, f"exact: {rows:,} rows are scored at once"
    if not faiss:
        return None, "exact: FAISS is not installed, which large galleries are searched faster with"
    if graph_bytes(rows, dim) <= settings.memory_budget:
        return "hnsw", f"hnsw: {graph_bytes(rows, dim) / 2**20:,.0f} MiB fit the memory budget"
    return "ivf", f"ivf: a graph of {graph_bytes(rows, dim) / 2**20:,.0f} MiB is beyond the memory budget"


def scaled_effort(effort: int, k: int, measured_k: int) -> int:
    """Effort for k answers where it was measured for ``measured_k``: a search for more looks as much further."""
    return effort if k <= measured_k else -(-effort * k // measured_k)
