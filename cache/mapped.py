"""Memory-mapped reading with bounded resident memory.

Pages that were copied from are given back at once (``MADV_DONTNEED``), so reading a cache of any size leaves at most
:data:`SPAN` bytes of it resident. They stay in the system's page cache, and coming back to them costs a soft fault.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import CacheError

SPAN = 16 << 20
MOST_OPEN = 128
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
Indices = npt.NDArray[np.int64]


class MappedFile:
    """One file, mapped read-only.

    Parameters
    ----------
    path : Path
    size : int
        Bytes that the file is known to have.

    Raises
    ------
    CacheError
        Missing, or of another size.
    """

    def __init__(self, path: Path, size: int) -> None:
        try:
            with path.open("rb") as handle:
                found = os.fstat(handle.fileno()).st_size
                if found == size and size:
                    self._map = mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CacheError(
                f"The file cannot be read: {error.strerror}.",
                where=str(path),
                todo="open the cache again if it was being rewritten; else run: cmcr cache verify",
            ) from error
        if found != size or not size:
            raise CacheError(
                f"The file has {found} bytes, its marker says {size}.", where=str(path), todo="run: cmcr cache verify"
            )

    def view(self, offset: int, rows: int, width: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Rows of ``width`` elements from byte ``offset`` on: (rows, width), without copying."""
        flat = np.frombuffer(self._map, dtype, rows * width, offset)
        return flat.reshape(rows, width)

    def release(self) -> None:
        """Give back every resident page of this mapping."""
        if _DONTNEED is not None:
            self._map.madvise(_DONTNEED)

    def spans(self, row_bytes: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges of at most :data:`SPAN` bytes that cover ``start`` to ``stop``; pages are released after each."""
        step = max(1, SPAN // row_bytes)
        for low in range(start, stop, step):
            yield low, min(low + step, stop)
            self.release()

    def sorted_spans(self, row_bytes: int, rows: Indices) -> Iterator[slice]:
        """Slices of the ascending ``rows`` that each stretch over at most :data:`SPAN` bytes; pages are released."""
        at = 0
        while at < len(rows):
            end = int(np.searchsorted(rows, rows[at] + max(1, SPAN // row_bytes), side="left"))
            yield slice(at, end)
            self.release()
            at = end


class OpenFiles:
    """The files mapped last, at most :data:`MOST_OPEN` of them, since each holds a file descriptor."""

    def __init__(self) -> None:
        self._files: OrderedDict[Hashable, MappedFile] = OrderedDict()

    def get(self, name: Hashable, make: Callable[[], MappedFile]) -> MappedFile:
        """The mapping of this name, made if it is not open."""
        found = self._files.pop(name, None) or make()
        self._files[name] = found
        while len(self._files) > MOST_OPEN:
            self._files.popitem(last=False)
        return found
