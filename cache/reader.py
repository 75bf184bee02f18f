"""Reading a cache: rows in shard order through memory maps, with bounded resident memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import ledger, places
from . import manifest as manifests
from . import marker as markers
from .errors import CacheError
from .ledger import Failure
from .mapped import Indices, MappedFile, OpenFiles
from .marker import DoneMarker
from .urls import as_url, local_path
from .vectors import Float32, Stored, normalize_rows, to_float32

if TYPE_CHECKING:
    from .keyindex import KeyIndex

_BLOCK_BYTES = 1 << 19


def open_cache(path: str | Path) -> Cache:
    """Open a cache for reading, as it is now: shards committed later need another call.

    Parameters
    ----------
    path : path
        The folder, or a URL (``s3://``, ``gs://``, ``https://``, ...) under which one was put; its shards are fetched
        when they are read.

    Raises
    ------
    CacheError
        No cache there, an unknown version, or a damaged manifest or marker.
    MissingExtraError
        The URL needs a library that is not installed.
    """
    path = local_path(path)
    if (url := as_url(path)) is not None:
        from .remote_cache import RemoteCache

        return RemoteCache(url)
    return Cache(Path(path))


class Cache:
    """The rows of a cache, in shard order, then row order. Only shards with a done marker count.

    Files are mapped when first needed. No HDF5 handle outlives a call, so a cache may be used after a fork.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = manifests.read_manifest(path)
        found = map(markers.read_marker, markers.list_markers(path / "shards").values())
        self.shards: tuple[DoneMarker, ...] = tuple(m for m in found if m.state == "done")
        for m in self.shards:
            if (m.dim, m.dtype) != (self.manifest.dim, self.manifest.dtype):
                raise CacheError(
                    f"Shard {m.shard} holds {m.dtype} of dim {m.dim}, the cache {self.dtype} of dim {self.dim}.",
                    where=str(path),
                    todo=markers.NEXT,
                )
        self.starts: Indices = np.cumsum([0, *(m.ok for m in self.shards)], dtype=np.int64)  # (S + 1,)
        self._key_width = max((m.key_length for m in self.shards), default=1)
        self._files = OpenFiles()
        self._index: KeyIndex | None = None

    def __reduce__(self) -> tuple[Callable[[Path], Cache], tuple[Path]]:
        return Cache, (self.path,)

    def __repr__(self) -> str:
        return f"Cache({str(self.path)!r}: {len(self)} x {self.dim}, {self.modality} in {self.manifest.space_name})"

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.manifest.dim

    @property
    def dtype(self) -> str:
        """Stored type, ``float16`` or ``float32``; reading gives float32."""
        return self.manifest.dtype

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Type of a stored element, little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def modality(self) -> str:
        """Modality of the rows."""
        return self.manifest.modality

    def content_id(self) -> str:
        """Identity of the content: a hash over the manifest and every shard's number, checksum and row count."""
        digest = hashlib.blake2b(self.manifest.to_bytes(), digest_size=16)
        for m in self.shards:
            digest.update(f"{m.shard} {m.crc32} {m.ok}\n".encode())
        return digest.hexdigest()

    def failures(self) -> Iterator[Failure]:
        """Lines of the error ledgers that the markers name, in shard order."""
        for m in self.shards:
            if m.ledger is not None:
                yield from ledger.read(self._ledger_path(m.ledger, m))

    def _data_path(self, m: DoneMarker) -> Path:
        return self.path / "shards" / m.file

    def _ledger_path(self, name: str, m: DoneMarker) -> Path:
        return self.path / "errors" / name

    def _file(self, shard: int) -> MappedFile:
        m = self.shards[shard]
        return self._files.get(shard, lambda: MappedFile(self._data_path(m), m.bytes))

    def _embedding(self, shard: int) -> tuple[MappedFile, Stored]:
        """File and (N, D) view of one shard that is not empty."""
        m, file = self.shards[shard], self._file(shard)
        return file, file.view(m.embedding_offset or 0, m.ok, m.dim, m.stored_dtype)

    def key_column(self, shard: int) -> tuple[MappedFile, npt.NDArray[np.bytes_]]:
        """File and (N,) view of the keys of one shard that is not empty."""
        m, file = self.shards[shard], self._file(shard)
        return file, file.view(m.key_offset or 0, m.ok, 1, np.dtype(f"S{m.key_length}"))[:, 0]

    def read_stored(self, start: int, stop: int, out: Stored) -> Stored:
        """Copy the global rows ``start`` to ``stop`` as they are stored into ``out`` (stop - start, D)."""
        return self._read(start, stop, out, np.copyto)

    def read(self, start: int, stop: int, *, normalize: bool = True) -> Float32:
        """The global rows ``start`` to ``stop``: (stop - start, D) float32, unit rows if ``normalize``."""
        out = np.empty((stop - start, self.dim), np.float32)
        self._read(start, stop, out, lambda target, stored: to_float32(stored, target))
        if normalize:
            normalize_rows(out)
        return out

    def _read(self, start: int, stop: int, out: Stored, copy: Callable[[Any, Stored], None]) -> Stored:
        at = 0
        for shard, first, last in places.runs(self.starts, start, stop):
            file, stored = self._embedding(shard)
            for low, high in file.spans(self.shards[shard].row_bytes, first, last):
                copy(out[at : at + high - low], stored[low:high])
                at += high - low
        return out

    def batches(self, size: int = 8192, *, normalize: bool = True) -> Iterator[tuple[list[str], Float32]]:
        """All rows in order: keys and vectors (B, D) float32, B = ``size`` except at the end, whatever the shards.

        Parameters
        ----------
        size : int
            Rows a batch.
        normalize : bool
            Unit rows.
        """
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield self.key_range(start, stop), self.read(start, stop, normalize=normalize)

    def rows(self, indices: npt.ArrayLike, *, normalize: bool = True) -> Float32:
        """Rows by global index, in the order asked for, repeats allowed: (B, D) float32.

        Raises
        ------
        IndexError
            An index outside 0 to ``len(self) - 1``.
        """
        wanted = self._checked(indices)
        out = np.empty((len(wanted), self.dim), np.float32)
        for spots, stored in self._gathered(wanted):
            wide = np.empty(stored.shape, np.float32)
            to_float32(stored, wide)
            out[spots] = wide
        if normalize:
            normalize_rows(out)
        return out

    def rows_stored(self, indices: npt.ArrayLike) -> Stored:
        """Rows by global index as they are stored: (B, D) of the stored type."""
        wanted = self._checked(indices)
        out = np.empty((len(wanted), self.dim), self.stored_dtype)
        if len(self.shards) == 1 and len(wanted) and self._file(0).is_resident():
            np.take(self._embedding(0)[1], wanted, axis=0, out=out, mode="clip")
            return out
        for spots, stored in self._gathered(wanted):
            out[spots] = stored
        return out

    def _gathered(self, wanted: Indices) -> Iterator[tuple[Indices, Stored]]:
        """(places in ``wanted``, stored rows (b, D)), in blocks that stay within the cache of the processor.

        A block is overwritten by the next.
        """
        block = np.empty((min(len(wanted), max(1, _BLOCK_BYTES // (4 * self.dim))), self.dim), self.stored_dtype)
        for shard, spots, rows in places.by_shard(self.starts, wanted):
            file, column = self._embedding(shard)
            for span in file.sorted_spans(self.shards[shard].row_bytes, rows):
                for low in range(span.start, span.stop, len(block)):
                    high = min(low + len(block), span.stop)
                    some = block[: high - low]
                    np.take(column, rows[low:high], axis=0, out=some, mode="clip")  # checked before; "raise" would copy
                    yield spots[low:high], some

    def gather(self, keys: Sequence[str], *, normalize: bool = True) -> Float32:
        """Rows by key, in the order asked for: (B, D) float32.

        Raises
        ------
        CacheError
            A key that the cache does not have; shows up to three.
        """
        found = self.index_of(keys)
        if (found < 0).any():
            missing = [keys[int(i)] for i in np.flatnonzero(found < 0)]
            raise CacheError(f"{len(missing)} of {len(keys)} keys are not here: {missing[:3]}.", where=str(self.path))
        return self.rows(found, normalize=normalize)

    def index_of(self, keys: Sequence[str]) -> Indices:
        """Global row of each key: (B,) int64, -1 where the cache does not have it.

        Raises
        ------
        DuplicateKeyError
            Two rows of the cache share a key.
        """
        if self._index is None:
            from .keyindex import open_index

            self._index = open_index(self)
        return self._index.find(keys)

    def _checked(self, indices: npt.ArrayLike) -> Indices:
        return places.checked(indices, len(self), str(self.path))

    def key_range(self, start: int, stop: int) -> list[str]:
        """Keys of the global rows ``start`` to ``stop``."""
        keys: list[str] = []
        for raw in self.raw_keys(start, stop):
            keys += self._decoded(raw)
        return keys

    def raw_keys(self, start: int, stop: int) -> Iterator[npt.NDArray[np.bytes_]]:
        """Keys of the global rows ``start`` to ``stop`` as NUL-padded UTF-8, one array for each stretch of a shard."""
        for shard, first, last in places.runs(self.starts, start, stop):
            file, column = self.key_column(shard)
            for low, high in file.spans(self.shards[shard].key_length, first, last):
                yield column[low:high].copy()

    def raw_keys_at(self, indices: Indices) -> npt.NDArray[np.bytes_]:
        """Keys by global index as NUL-padded UTF-8: (B,) of the longest key's length."""
        wanted = self._checked(indices)
        out = np.zeros(len(wanted), f"S{self._key_width}")
        for shard, spots, rows in places.by_shard(self.starts, wanted):
            file, column = self.key_column(shard)
            for span in file.sorted_spans(self.shards[shard].key_length, rows):
                out[spots[span]] = column[rows[span]]
        return out

    def keys(self, indices: npt.ArrayLike | None = None) -> list[str]:
        """Keys by global index, or all of them in order."""
        if indices is None:
            return self.key_range(0, len(self))
        return self._decoded(self.raw_keys_at(self._checked(indices)))

    def _decoded(self, raw: npt.NDArray[np.bytes_]) -> list[str]:
        try:
            return [key.decode("utf-8") for key in raw.tolist()]
        except UnicodeDecodeError as error:
            raise CacheError("A key is not UTF-8.", where=str(self.path), todo="run: cmcr cache verify") from error

    def has_column(self, name: str) -> bool:
        """Whether any shard has this text column: ``caption``, ``source`` or ``meta``."""
        return any(name in m.columns for m in self.shards)

    def _texts(self, name: str, indices: npt.ArrayLike) -> list[str | None]:
        from .shard import read_texts

        wanted = self._checked(indices)
        out: list[str | None] = [None] * len(wanted)
        for shard, spots, rows in places.by_shard(self.starts, wanted):
            m = self.shards[shard]
            if name in m.columns:
                self._file(shard)  # the size check
                values = read_texts(self._data_path(m), name, rows)
                for place, value in zip(spots.tolist(), values, strict=True):
                    out[place] = value
        return out

    def captions(self, indices: npt.ArrayLike) -> list[str | None]:
        """Captions by global index; None where there is none."""
        return self._texts("caption", indices)

    def sources(self, indices: npt.ArrayLike) -> list[str | None]:
        """Paths relative to the input by global index; None where there is none."""
        return self._texts("source", indices)

    def meta(self, indices: npt.ArrayLike) -> list[dict[str, Any] | None]:
        """Records by global index; None where there is none."""
        return [json.loads(text) if text else None for text in self._texts("meta", indices)]

    def source_path(self, index: int) -> Path | None:
        """The original file of a row, looked for under the input roots of the newest run first; None if not there."""
        from .runs import find_source

        source = self.sources([index])[0]
        return find_source(self.path, source) if source else None
