"""Caches from vectors that somebody else made: a .npy file, or a clip-retrieval folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .arrays import ArrayFile, open_array
from .errors import CacheError, CorpusError, DuplicateKeyError
from .keyindex import encode_keys, hash_keys
from .labels import Labels, LabelSource, parquet_labels
from .ledger import Failure
from .manifest import CacheManifest, rows_unit, units_of
from .plan import Unit
from .reader import Cache, open_cache
from .shard import ShardData
from .writer import CacheWriter

DEFAULT_SHARD_SIZE = 65536
_NUMBERED = re.compile(r"(\d+)\.(?:npy|parquet)$")


@dataclass(frozen=True)
class ImportSettings:
    """What an import declares about its vectors.

    ``encoder`` binds the rows to an encoder for later raw queries, ``space_id`` to its space; without the latter the
    space is ``declared:<space>``.
    """

    space: str
    modality: str
    encoder: str | None = None
    space_id: str | None = None
    dtype: Literal["float16", "float32"] = "float16"
    shard_size: int = DEFAULT_SHARD_SIZE
    overwrite: bool = False


@dataclass(frozen=True)
class Part:
    """One array, and its labels: ``labels(size)`` gives those of ``size`` rows at a time, in order."""

    array: ArrayFile
    labels: Callable[[int], Iterator[Labels]]


def import_npy(
    npy: str | Path,
    output: str | Path,
    *,
    keys: str | Path | None = None,
    key_field: str = "id",
    captions: str | Path | None = None,
    caption_field: str | None = None,
    **settings: Any,
) -> Cache:
    """A cache from a .npy file of vectors (N, D), streamed a shard at a time.

    Parameters
    ----------
    npy : path
        Any float type. A row that is zero or not finite becomes a line of the error ledger.
    output : path
        The cache folder. Run again with the same input, an import completes what is missing.
    keys : str or path, optional
        ``rows``: the row number, nine digits. ``lines``: ``<stem of captions>:<line>``, the keys that encoding that
        file of captions gives. A .txt file: one key a line. A .jsonl file: ``key_field`` of each object; the fields
        that are neither key nor caption go to /meta. Without it ``lines`` where ``captions`` is given, else ``rows``.
    captions : path, optional
        A .txt file with one caption a line, for /caption.
    caption_field : str, optional
        Field of the .jsonl file of ``keys`` with the caption.
    **settings
        Fields of :class:`ImportSettings`: space and modality, which are required; encoder, space_id, dtype, shard_size,
        overwrite.

    Raises
    ------
    CorpusError
        The array or the keys cannot be used; names the file and the line, or both counts where they differ.
    DuplicateKeyError
        Two rows have the same key.
    """
    array = open_array(Path(npy))
    source = LabelSource(
        keys=keys if keys is not None else ("lines" if captions is not None else "rows"),
        key_field=key_field,
        captions=Path(captions) if captions is not None else None,
        caption_field=caption_field,
    )
    return import_parts([Part(array, lambda size: source.read(array, size))], output, ImportSettings(**settings))


def import_clip_retrieval(
    folder: str | Path, output_dir: str | Path, *, key_column: str | None = None, **settings: Any
) -> list[Cache]:
    """Caches from a clip-retrieval folder: ``output_dir/image`` from img_emb/, ``output_dir/text`` from text_emb/.

    Parameters
    ----------
    folder : path
        Holds ``img_emb/img_emb_*.npy``, ``text_emb/text_emb_*.npy`` or both, and ``metadata/metadata_*.parquet``.
        Files are taken in the order of their numbers.
    output_dir : path
    key_column : str, optional
        Column of the metadata for the keys; else ``image_path``, ``url`` or ``key``, the first that is there; else,
        and for rows without a value, the row number. Both caches get the same keys, so that they join. ``caption``
        goes to /caption.
    **settings
        Fields of :class:`ImportSettings` other than modality.

    Raises
    ------
    CorpusError
        No embeddings there, or parts that do not fit together; names the files.
    MissingExtraError
        There is metadata and pyarrow is not installed.
    """
    folder = Path(folder)
    metadata = _numbered(folder / "metadata", ".parquet")
    caches = []
    for name, modality in (("img_emb", "image"), ("text_emb", "text")):
        arrays = {number: open_array(file) for number, file in _numbered(folder / name, ".npy").items()}
        if not arrays:
            continue
        if metadata and set(metadata) != set(arrays):
            odd = sorted(set(metadata) ^ set(arrays))
            raise CorpusError(
                f"{name}/ and metadata/ do not have the same parts: {odd[:5]} stand in one of them only.",
                where=str(folder),
            )
        parts, first = [], 0
        for number, array in arrays.items():
            parts.append(_part(array, metadata.get(number), first, key_column))
            first += array.rows
        made = ImportSettings(**{"modality": modality, **settings})
        caches.append(import_parts(parts, Path(output_dir) / modality, made))
    if not caches:
        raise CorpusError(
            "No embeddings there: looked for img_emb/img_emb_*.npy and text_emb/text_emb_*.npy.",
            where=str(folder),
            todo="give the folder that clip-retrieval inference wrote",
        )
    return caches


def _part(array: ArrayFile, metadata: Path | None, first: int, key_column: str | None) -> Part:
    return Part(array, lambda size: parquet_labels(array, metadata, first, size, key_column))


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Files of a folder by the number at the end of their names, in the order of the numbers."""
    found: dict[int, Path] = {}
    for file in sorted(folder.glob(f"*{suffix}")) if folder.is_dir() else ():
        match = _NUMBERED.search(file.name)
        if match is None:
            raise CorpusError("The name of this part does not end in a number.", where=str(file))
        if int(match[1]) in found:
            raise CorpusError(f"Two parts have the number {int(match[1])}.", where=f"{found[int(match[1])]} and {file}")
        found[int(match[1])] = file
    return {number: found[number] for number in sorted(found)}


def import_parts(parts: Sequence[Part], output: str | Path, settings: ImportSettings) -> Cache:
    """One cache from several arrays of one dim, one after the other.

    The first pass reads everything once, to plan shards by their content and to refuse doubled keys before anything
    is written.
    """
    dims = {part.array.dim for part in parts}
    if len(dims) != 1:
        raise CorpusError(f"The parts have different dims: {sorted(dims)}.", where=str(parts[0].array.path.parent))
    if settings.shard_size < 1:
        raise CorpusError(f"shard_size is {settings.shard_size}; a shard has at least one row.")
    units = _plan(parts, settings.shard_size)
    digest = hashlib.blake2b(b"".join(bytes.fromhex(unit.identity) for unit in units), digest_size=16)
    manifest = CacheManifest(
        space_id=settings.space_id or f"declared:{settings.space}",
        space_name=settings.space,
        modality=settings.modality,
        encoder=settings.encoder or "imported",
        fingerprint=f"import-{digest.hexdigest()}",
        dim=dims.pop(),
        dtype=settings.dtype,
        kind="imported",
    )
    with CacheWriter.open(output, manifest, overwrite=settings.overwrite) as writer:
        if not writer.plans:
            writer.append_plan(units, settings.shard_size)
        elif units_of(writer.plans) != units:
            raise CacheError(
                "The cache there was cut into shards of another size.", where=str(output), todo="--overwrite"
            )
        waiting = {unit.shard for unit in writer.pending()}
        for unit, (part, start, labels) in zip(units, _pieces(parts, settings.shard_size), strict=True):
            if unit.shard in waiting:
                data, failures = _rows(part.array, start, labels)
                writer.write_shard(unit, data, failures, expected=len(labels.keys))
    return open_cache(output)


def _pieces(parts: Sequence[Part], size: int) -> Iterator[tuple[Part, int, Labels]]:
    """(part, first row, labels) of every shard."""
    for part in parts:
        start = 0
        for labels in part.labels(size):
            yield part, start, labels
            start += len(labels.keys)


def _plan(parts: Sequence[Part], size: int) -> list[Unit]:
    """Units by content; refuses a key that stands twice anywhere."""
    units: list[Unit] = []
    hashes: list[npt.NDArray[np.uint64]] = []
    for part, start, labels in _pieces(parts, size):
        stop = start + len(labels.keys)
        digest = hashlib.blake2b(
            json.dumps([labels.keys, labels.captions, labels.sources, labels.meta]).encode(), digest_size=16
        )
        digest.update(np.ascontiguousarray(part.array.read(start, stop)).view(np.uint8).data)
        units.append(rows_unit(len(units), part.array.path.name, start, stop, digest.hexdigest()))
        hashes.append(hash_keys(encode_keys(labels.keys)))
    if hashes:
        values, counts = np.unique(np.concatenate(hashes), return_counts=True)
        if (counts > 1).any():
            _refuse_duplicates(parts, size, values[counts > 1])
    return units


def _refuse_duplicates(parts: Sequence[Part], size: int, suspects: npt.NDArray[np.uint64]) -> None:
    """Compare the keys behind equal hashes, and name both rows of the first that stands twice."""
    seen: dict[str, str] = {}
    for part, start, labels in _pieces(parts, size):
        for place in np.flatnonzero(np.isin(hash_keys(encode_keys(labels.keys)), suspects)).tolist():
            key, here = labels.keys[place], f"row {start + place} of {part.array.path.name}"
            if key in seen:
                raise DuplicateKeyError(
                    f"Two rows have the key {key!r}: {seen[key]} and {here}.",
                    where=str(part.array.path),
                    todo="choose another key field or column, or import with --keys rows",
                )
            seen[key] = here


def _rows(array: ArrayFile, start: int, labels: Labels) -> tuple[ShardData, list[Failure]]:
    """Rows that a cache can hold, and a failure for each of the others."""
    vectors = array.read(start, start + len(labels.keys))  # (N, D)
    finite = np.isfinite(vectors).all(axis=1)
    good = finite & vectors.any(axis=1)
    failures = [
        Failure(
            labels.keys[row],
            "read",
            "ItemError",
            "The vector is all zero." if finite[row] else "The vector holds NaN or infinity.",
        )
        for row in np.flatnonzero(~good).tolist()
    ]

    def kept(values: list[Any] | None) -> list[Any] | None:
        return None if values is None else list(itertools.compress(values, good.tolist()))

    keys = list(itertools.compress(labels.keys, good.tolist()))
    data = ShardData(
        keys, vectors[good], captions=kept(labels.captions), sources=kept(labels.sources), meta=kept(labels.meta)
    )
    return data, failures
