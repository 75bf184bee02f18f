"""Vectors in .npy files: header checks and reading by rows, without pickles and without loading the whole file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import CorpusError

_npy: Any = np.lib.format  # without annotations in NumPy 1


@dataclass(frozen=True)
class ArrayFile:
    """The header of a .npy file of vectors: (rows, dim) floats from byte ``offset`` on."""

    path: Path
    rows: int
    dim: int
    dtype: np.dtype[Any]
    offset: int
    fortran: bool

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows ``start`` to ``stop``: (stop - start, D), a copy; nothing else is read where the file is in C order."""
        if self.fortran:
            whole = np.memmap(self.path, self.dtype, "r", self.offset, (self.rows, self.dim), order="F")
            return np.array(whole[start:stop])
        with self.path.open("rb") as file:
            file.seek(self.offset + start * self.dim * self.dtype.itemsize)
            flat = np.fromfile(file, self.dtype, (stop - start) * self.dim)
        return flat.reshape(stop - start, self.dim)


def open_array(path: Path) -> ArrayFile:
    """Read and check the header of a .npy file; nothing is unpickled.

    Raises
    ------
    CorpusError
        Missing, not a .npy file, cut short, pickled objects, not of floats, or not two-dimensional.
    """
    try:
        with path.open("rb") as file:
            version = _npy.read_magic(file)
            read = _npy.read_array_header_1_0 if version == (1, 0) else _npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
            offset = file.tell()
            size = path.stat().st_size
    except OSError as error:
        raise CorpusError(f"The file cannot be read: {error.strerror}.", where=str(path)) from error
    except ValueError as error:
        todo = "give one array: np.save(path, array)"
        raise CorpusError(f"The file is not a .npy array ({error}).", where=str(path), todo=todo) from error
    if dtype.hasobject:
        raise CorpusError(
            "The array holds pickled objects, which are never loaded.", where=str(path), todo="save it as floats"
        )
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise CorpusError(f"The array is of {dtype}; vectors are float16, float32 or float64.", where=str(path))
    if len(shape) != 2 or shape[1] < 1:
        raise CorpusError(
            f"The array has shape {shape}; vectors come as (rows, dim).", where=str(path), todo="reshape it"
        )
    if size < offset + shape[0] * shape[1] * dtype.itemsize:
        raise CorpusError(f"The file is cut short: {size} bytes for shape {shape} of {dtype}.", where=str(path))
    return ArrayFile(path, int(shape[0]), int(shape[1]), dtype, offset, bool(fortran))
