"""The shard file: HDF5 bytes built whole in memory, and the reading of its text columns."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from .errors import CacheError, DuplicateKeyError, ItemError
from .keys import check_key
from .marker import DoneMarker

LIBVER = ("earliest", "v110")
ALIGNMENT = 4096
TEXT_COLUMNS = ("caption", "source", "meta")
_TEXT = h5py.string_dtype("utf-8")


@dataclass
class ShardData:
    """The rows of one shard, in order.

    Parameters
    ----------
    keys : list of str
        One a row, all different.
    vectors : ndarray (N, D)
        Any float type; finite, no zero row. Stored in the dtype of the manifest, as they are (not normalised).
    captions, sources : list of (str or None), optional
        Caption text; path relative to the input. None and the empty text are the same.
    meta : list of (dict or None), optional
        JSON-able records.
    """

    keys: list[str]
    vectors: npt.NDArray[Any]
    captions: list[str | None] | None = None
    sources: list[str | None] | None = None
    meta: list[dict[str, Any] | None] | None = None


@dataclass(frozen=True)
class Layout:
    """Where the mapped columns stand in the file: byte offsets, None for an empty shard; bytes a key."""

    embedding_offset: int | None
    key_offset: int | None
    key_length: int
    columns: tuple[str, ...]


def _storable(text: str | None) -> str:
    """HDF5 texts hold neither NUL nor unpaired surrogates: both become U+FFFD."""
    if not text:
        return ""
    return text.replace("\0", "\ufffd").encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _texts(data: ShardData) -> dict[str, list[str]]:
    """The optional columns that hold at least one text, as they are stored."""
    found: dict[str, list[str]] = {}
    if data.captions is not None:
        found["caption"] = [_storable(text) for text in data.captions]
    if data.sources is not None:
        found["source"] = [_storable(text) for text in data.sources]
    if data.meta is not None:
        found["meta"] = [json.dumps(m, sort_keys=True, allow_nan=False) if m else "" for m in data.meta]
    for name, texts in found.items():
        if len(texts) != len(data.keys):
            raise CacheError(f"{len(texts)} values of {name!r} for {len(data.keys)} keys.")
    return {name: texts for name, texts in found.items() if any(texts)}


def _checked_keys(data: ShardData, where: str) -> list[bytes]:
    """Keys as UTF-8, valid and all different."""
    seen: dict[str, int] = {}
    for row, key in enumerate(data.keys):
        try:
            check_key(key)
        except ItemError as error:
            raise CacheError(f"Row {row}: {error.what}", where=f"{where}, key {error.where}") from error
        if key in seen:
            first, second = (_source_of(data, r) for r in (seen[key], row))
            raise DuplicateKeyError(
                f"Two items have the key {key!r}: {first} and {second}.",
                where=where,
                todo="rename one of the files, or choose another key column",
            )
        seen[key] = row
    return [key.encode("utf-8") for key in data.keys]


def _source_of(data: ShardData, row: int) -> str:
    source = data.sources[row] if data.sources is not None else None
    return f"{source} (row {row})" if source else f"row {row}"


def checked_vectors(data: ShardData, dtype: str, dim: int, where: str) -> npt.NDArray[Any]:
    """The vectors in their stored type, (N, D) contiguous little-endian.

    Raises
    ------
    CacheError
        Wrong shape or type, or rows that are not finite or all zero as stored; names the first key.
    """
    vectors = np.asarray(data.vectors)
    if vectors.dtype.kind != "f" or vectors.shape != (len(data.keys), dim):
        raise CacheError(
            f"Vectors are {vectors.dtype} {vectors.shape}; the cache takes floats of shape {(len(data.keys), dim)}.",
            where=where,
        )
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.ascontiguousarray(vectors, dtype=np.dtype(dtype).newbyteorder("<"))
    bad = ~np.isfinite(stored).all(axis=1) | ~stored.any(axis=1)  # (N,)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise CacheError(
            f"{int(bad.sum())} vectors are zero or not finite as {dtype}, the first of key {data.keys[row]!r}.",
            where=where,
            todo="record such items as failures; for values beyond 65504 make the cache with dtype float32",
        )
    return stored


def build_image(data: ShardData, dtype: str, dim: int, where: str = "") -> tuple[bytes, Layout]:
    """The bytes of a shard file. Equal data gives equal bytes.

    Parameters
    ----------
    data : ShardData
    dtype : {"float16", "float32"}
    dim : int
    where : str
        Names the shard in errors.

    Raises
    ------
    CacheError, DuplicateKeyError
    """
    keys = _checked_keys(data, where)
    stored = checked_vectors(data, dtype, dim, where)
    texts = _texts(data)
    length = max(map(len, keys), default=1)
    key_type = h5py.string_dtype("utf-8", length)
    with h5py.File(
        f"shard-{threading.get_ident()}",  # HDF5 refuses two files of one name in a process, in memory too
        "w",
        driver="core",
        backing_store=False,
        block_size=1 << 20,
        libver=LIBVER,
        alignment_threshold=ALIGNMENT,
        alignment_interval=ALIGNMENT,
    ) as file:
        file.attrs["format"], file.attrs["version"] = "cmcr-shard", np.int64(1)
        file.create_dataset("embedding", data=stored)
        file.create_dataset("key", data=np.array(keys, dtype=key_type), dtype=key_type)
        for name, column in texts.items():
            file.create_dataset(name, data=np.array(column, dtype=object), dtype=_TEXT)
        file.flush()
        offsets = [file[name].id.get_offset() for name in ("embedding", "key")]
        return file.id.get_file_image(), Layout(offsets[0], offsets[1], length, tuple(texts))


def check_file(path: Path, marker: DoneMarker) -> None:
    """Open the file with HDF5 and compare what it holds with its marker.

    Raises
    ------
    CacheError
        It does not open, or shapes, types or offsets differ.
    """
    todo = f"run: cmcr cache verify {path.parent.parent}"
    try:
        with h5py.File(path, "r", locking=False) as file:
            embedding, key = file["embedding"], file["key"]
            found: Mapping[str, Any] = {
                "embedding": (embedding.shape, embedding.dtype, embedding.id.get_offset()),
                "key": (key.shape, key.dtype.itemsize, key.id.get_offset()),
                "columns": tuple(name for name in TEXT_COLUMNS if name in file and file[name].shape == (marker.ok,)),
            }
    except (OSError, KeyError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise CacheError(f"The shard does not open as HDF5: {error}.", where=str(path), todo=todo) from error
    expected: Mapping[str, Any] = {
        "embedding": ((marker.ok, marker.dim), marker.stored_dtype, marker.embedding_offset),
        "key": ((marker.ok,), marker.key_length, marker.key_offset),
        "columns": marker.columns,
    }
    for name, value in expected.items():
        if found[name] != value:
            raise CacheError(
                f"{name} of the shard is {found[name]}, its marker says {value}.", where=str(path), todo=todo
            )


def read_texts(path: Path, column: str, rows: npt.NDArray[np.int64]) -> list[str | None]:
    """Values of a text column at ``rows`` of one shard, in the order asked for; None where empty.

    The file is opened and closed within the call, so that no HDF5 handle lives across a fork.

    Raises
    ------
    CacheError
        The file does not open as HDF5, or the column is damaged.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _texts_at(file[column], rows)
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise CacheError(
            f"The column {column!r} cannot be read: {error}.",
            where=str(path),
            todo=f"run: cmcr cache verify {path.parent.parent}",
        ) from error


def _texts_at(texts: Any, rows: npt.NDArray[np.int64]) -> list[str | None]:
    """Dense stretches of rows are read whole, scattered ones singly."""
    out: list[str | None] = [None] * len(rows)
    order = np.argsort(rows, kind="stable")
    for places in np.array_split(order, max(1, len(order) // 4096)):
        low, high = int(rows[places[0]]), int(rows[places[-1]]) + 1
        if high - low <= 64 * len(places):
            block = texts[low:high]
            values: Sequence[bytes] = [block[int(rows[p]) - low] for p in places]
        else:
            values = [texts[int(rows[p])] for p in places]
        for place, value in zip(places, values, strict=True):
            out[int(place)] = value.decode("utf-8") or None
    return out
