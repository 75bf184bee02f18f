"""Memory-mapped reading with bounded resident memory.

Pages of a mapped file that were copied from count as memory of the process until they are given back with
``MADV_DONTNEED``. All mappings of a process share one limit, :data:`RESIDENT_LIMIT`; beyond it all their pages are
given back. They stay in the page cache of the system, and coming back to them costs a soft fault.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import CacheError

RESIDENT_LIMIT = 144 << 20
SPAN = 16 << 20
FAULT_BYTES = 2 << 20  # what one fault maps at most: a huge page of the page cache, where there is one
MOST_OPEN = 128
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
Indices = npt.NDArray[np.int64]


class _Residency:
    """Estimated resident bytes of all mappings, an upper bound."""

    def __init__(self) -> None:
        self._files: weakref.WeakSet[MappedFile] = weakref.WeakSet()
        self._total = 0
        self._lock = threading.Lock()

    def add(self, file: MappedFile, touched: int) -> None:
        """Count bytes of ``file`` that were read; beyond the limit give back every page of every file."""
        with self._lock:
            more = min(file.size, file.touched + touched) - file.touched
            if more == 0:
                return
            self._files.add(file)
            file.touched += more
            self._total += more
            if self._total > RESIDENT_LIMIT:
                for one in list(self._files):
                    one.release()
                self._files.clear()
                self._total = 0


_residency = _Residency()


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
        self.size = size
        self.touched = 0
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
        self.touched = 0
        if _DONTNEED is not None:
            self._map.madvise(_DONTNEED)

    def count(self, places: int) -> None:
        """Count single places of the file that were read."""
        _residency.add(self, places * FAULT_BYTES)

    def spans(self, row_bytes: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges of at most :data:`SPAN` bytes that cover ``start`` to ``stop``, counted as they are used."""
        step = max(1, SPAN // row_bytes)
        for low in range(start, stop, step):
            high = min(low + step, stop)
            yield low, high
            _residency.add(self, (high - low) * row_bytes)

    def is_resident(self) -> bool:
        """Whether so much was read that more reading maps nothing more."""
        return self.touched == self.size

    def sorted_spans(self, row_bytes: int, rows: Indices) -> Iterator[slice]:
        """Slices of the ascending ``rows`` whose pages take about :data:`SPAN` bytes at most, counted when used."""
        each = max(FAULT_BYTES, row_bytes)
        most = max(1, SPAN // each)
        at = 0
        while at < len(rows):
            near = int(np.searchsorted(rows, rows[at] + max(1, SPAN // row_bytes), side="left"))
            end = min(len(rows), max(near, at + most))
            yield slice(at, end)
            _residency.add(self, min((int(rows[end - 1]) - int(rows[at]) + 1) * row_bytes, (end - at) * each))
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
