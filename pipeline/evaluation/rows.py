"""Rows of a cache in the shared space, read in pieces: neither side of an evaluation is held in memory as a whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from ...cache.errors import CacheError, CmcrError
from ...cache.reader import Cache
from ...trainer.connector import Connector
from ...trainer.scoring import ArrayRows, Rows
from ..shared import SharedView, Vectors

READ_AT_ONCE = 16384
IN_MEMORY = 32 << 20  # bytes of projected rows that are kept in memory rather than in a file


@dataclass(frozen=True)
class CacheRows:
    """Rows of a cache that are in the shared space as they are, read from its shards each time.

    They are not normalised here: scoring does that in float64, the same way for a row and for a block of rows.
    """

    cache: Cache

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.cache.dim

    def __len__(self) -> int:
        return len(self.cache)

    def read(self, start: int, stop: int) -> Vectors:
        """Rows ``start:stop``."""
        return self.cache.read(start, stop, normalize=False)

    def take(self, indices: npt.NDArray[np.int64]) -> Vectors:
        """Rows by number."""
        return self.cache.rows(indices, normalize=False)


@dataclass(frozen=True)
class SpooledRows:
    """Projected rows in a temporary file, so that each row goes through its head once."""

    file: IO[bytes]
    count: int
    dim: int

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> Vectors:
        """Rows ``start:stop``."""
        self.file.seek(4 * self.dim * start)
        out = np.empty((stop - start, self.dim), np.float32)
        out.ravel()[:] = np.frombuffer(self.file.read(out.nbytes), np.float32)
        return out

    def take(self, indices: npt.NDArray[np.int64]) -> Vectors:
        """Rows by number; the map lives as long as the call, so that its pages do not add up."""
        mapped = np.memmap(self.file, np.float32, "r", shape=(self.count, self.dim))
        return np.asarray(mapped[indices])


@contextmanager
def shared_rows(view: SharedView) -> Iterator[Rows]:
    """Rows of a cache in the shared space for as long as the context lasts.

    Rows that go through a head are projected once: into memory up to 32 MB, else into a temporary file (float32, in
    the folder that ``TMPDIR`` names), which is gone when the context ends.

    Raises
    ------
    CmcrError
        The temporary file cannot be written, for example on a full disk.
    """
    if view.head is None:
        yield CacheRows(view.cache)
        return
    if 4 * len(view) * view.dim <= IN_MEMORY:
        yield ArrayRows(matrix(view))
        return
    with tempfile.TemporaryFile() as file:
        try:
            for _, block in view.blocks(READ_AT_ONCE):
                file.write(np.ascontiguousarray(block, np.float32).tobytes())
            file.flush()
        except OSError as error:
            raise CmcrError(
                f"The projected rows cannot be kept in a temporary file: {error.strerror}.",
                where=f"{tempfile.gettempdir()}, {4 * len(view) * view.dim:,} bytes",
                todo="set TMPDIR to a folder with room, or project the cache first: cmcr project",
            ) from error
        yield SpooledRows(file, len(view), view.dim)


def matrix(view: SharedView) -> Vectors:
    """All rows of a cache in the shared space: (N, D) float32, filled block by block."""
    out = np.empty((len(view), view.dim), np.float32)
    for start, block in view.blocks(READ_AT_ONCE):
        out[start : start + len(block)] = block
    return out


def check_one_space(views: Mapping[str, SharedView], connector: Connector | None) -> None:
    """Refuse an empty cache, and without a connector caches of different spaces."""
    for name, view in views.items():
        if not len(view):
            raise CacheError(
                f"The {name} cache has no rows.", where=str(view.cache.path), todo="encode a corpus into it"
            )
    spaces = {view.cache.manifest.space_id for view in views.values()}
    if connector is None and len(spaces) > 1:
        found = [(view.cache.manifest.space_name, view.cache.manifest.space_id) for view in views.values()]
        raise CacheError(
            f"The caches are in different spaces: {' and '.join(f'{name} ({id})' for name, id in found)}.",
            where="; ".join(str(view.cache.path) for view in views.values()),
            todo="give the connector that joins them: --connector DIR",
        )
