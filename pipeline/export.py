"""A cache for other software: vectors and keys as .npy, a parquet table, or a FAISS index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache import fsio
from ..cache.errors import CmcrError, MissingExtraError
from ..cache.faiss_index import load_faiss
from ..cache.manifest import read_plans
from ..cache.marker import list_markers, read_marker
from ..cache.plan import Plan
from ..cache.reader import Cache
from .shared import as_cache

FORMATS = ("npy", "parquet", "faiss")
BLOCK = 16384
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Export:
    """What was written.

    Parameters
    ----------
    files : tuple of Path
    format : str
    rows, dim : int
    since : int or None
        Generation after which rows were taken; None: all.
    generation : int or None
        What the next export gives as ``since``: the newest generation that is there whole, and all before it. None
        while the first is not: then everything is exported again.
    """

    files: tuple[Path, ...]
    format: str
    rows: int
    dim: int
    since: int | None
    generation: int | None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able record."""
        return {**vars(self), "files": [str(file) for file in self.files]}

    def lines(self) -> list[str]:
        """What to print."""
        which = "" if self.since is None else f" planned after generation {self.since}"
        return [
            f"{self.rows:,} rows of {self.dim}{which} as {self.format}",
            *(f"  {file}" for file in self.files),
            "the cache is not finished: next time export everything"
            if self.generation is None
            else f"finished generation: {self.generation} (next time: --since {self.generation})",
        ]


def export_cache(
    cache: Cache | str | Path, output: str | Path, *, format: str = "npy", since: int | None = None
) -> Export:
    """Write the rows of a cache as unit float32 vectors with their keys.

    ``npy``: ``output`` (N, D), and the keys beside it as ``<stem>.keys.txt``, one a line: ``cmcr cache import`` takes
    both. ``parquet``: one table with ``key``, ``vector`` (list of D float32), ``caption``, ``source`` and ``meta``
    (JSON). ``faiss``: an exact inner-product index, ids 0 to N - 1, with the keys beside it. Files appear complete or
    not at all; the vectors' last.

    Parameters
    ----------
    cache : Cache or path
    output : path
        The file to write; its folder exists.
    format : str
    since : int, optional
        Only rows that the plan got after this generation. Rows of an older generation that were made again (a retry,
        a changed parent) are not among them: after such a run export everything.

    Raises
    ------
    CmcrError
        An unknown format, a generation that the cache does not have, a file that cannot be written.
    MissingExtraError
        FAISS or pyarrow is not installed.
    """
    if format not in FORMATS:
        raise CmcrError(f"There is no export format {format!r}.", todo=f"give one of {', '.join(FORMATS)}")
    opened, path = as_cache(cache), Path(output)
    if not path.parent.is_dir():
        raise CmcrError("The folder of the export does not exist.", where=str(path.parent), todo="make it first")
    rows, newest = _rows_since(opened, since)
    files = [path]
    if format == "parquet":
        _write_parquet(opened, rows, path)
    else:
        keys = path.with_name(f"{path.stem}.keys.txt")
        fsio.write_atomic(keys, "".join(f"{key}\n" for key in opened.keys(rows)).encode("utf-8"))
        files.append(keys)
        (_write_npy if format == "npy" else _write_faiss)(opened, rows, path)
    return Export(tuple(files), format, len(rows), opened.dim, since, newest)


def _rows_since(cache: Cache, since: int | None) -> tuple[Rows, int | None]:
    """Rows of the shards planned after a generation, and the newest generation that is finished."""
    plans = read_plans(cache.path)
    newest, whole = (plans[-1].generation, _finished(cache, plans)) if plans else (0, 0)
    if since is None:
        return np.arange(len(cache), dtype=np.int64), whole
    if not 0 <= since <= newest:
        raise CmcrError(
            f"The cache has the generations 0 to {newest}, not {since}.",
            where=str(cache.path),
            todo="give the generation that the last export printed",
        )
    wanted = {unit.shard for plan in plans if plan.generation > since for unit in plan.units}
    parts = [
        np.arange(cache.starts[n], cache.starts[n + 1])
        for n, marker in enumerate(cache.shards)
        if marker.shard in wanted
    ]
    return np.concatenate([np.empty(0, np.int64), *parts]), whole


def _finished(cache: Cache, plans: list[Plan]) -> int | None:
    """The newest generation of which, and of all before it, no planned shard is still to come."""
    seen = {marker.shard for marker in cache.shards}  # as the cache was opened: what was written since is not exported
    seen |= {shard for shard, path in list_markers(cache.path / "shards").items() if read_marker(path).state != "done"}
    finished = None
    for plan in plans:
        if not seen.issuperset(unit.shard for unit in plan.units):
            break
        finished = plan.generation
    return finished


def _blocks(cache: Cache, rows: Rows) -> Iterator[tuple[Rows, npt.NDArray[np.float32]]]:
    for start in range(0, len(rows), BLOCK):
        some = rows[start : start + BLOCK]
        yield some, cache.rows(some)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes ``path`` when the block ends well."""
    temporary = fsio.temporary_name(path)
    try:
        with fsio.naming_folder(path):
            yield temporary
            temporary.replace(path)
            fsio.sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _write_npy(cache: Cache, rows: Rows, path: Path) -> None:
    with _replacing(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), cache.dim)}
        write_header: Any = np.lib.format.write_array_header_1_0
        write_header(file, header)
        for _, block in _blocks(cache, rows):
            file.write(block.tobytes())


def _write_faiss(cache: Cache, rows: Rows, path: Path) -> None:
    faiss = load_faiss()
    index = faiss.IndexFlatIP(cache.dim)
    for _, block in _blocks(cache, rows):
        index.add(block)
    with _replacing(path) as temporary:
        faiss.write_index(index, str(temporary))


def _write_parquet(cache: Cache, rows: Rows, path: Path) -> None:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        raise MissingExtraError(
            "A parquet table needs pyarrow, which is not installed.", todo="pip install 'cmcr[parquet]'"
        ) from error
    fields = [("key", pa.string()), ("vector", pa.list_(pa.float32(), cache.dim))]
    schema = pa.schema(fields + [(name, pa.string()) for name in ("caption", "source", "meta")])
    with _replacing(path) as temporary, ParquetWriter(temporary, schema) as writer:
        for some, block in _blocks(cache, rows):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), cache.dim)
            meta = [None if one is None else json.dumps(one, ensure_ascii=False) for one in cache.meta(some)]
            columns = [cache.keys(some), cache.captions(some), cache.sources(some), meta]
            arrays = [pa.array(column, pa.string()) for column in columns]
            writer.write_table(pa.Table.from_arrays([arrays[0], vectors, *arrays[1:]], schema=schema))
