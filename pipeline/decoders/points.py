"""Point clouds: (N, 3) xyz or (N, 6) xyz and rgb, from arrays and meshes. No pickles unless they are asked for."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.errors import ItemError
from .meshes import KINDS, SURFACE_POINTS, decode_mesh

MAX_BYTES = 1 << 30
_ARRAY_NAMES = ("points", "xyz", "pos", "arr_0")
_NPY_MAGIC = b"\x93NUMPY"
_DAMAGE = (
    ValueError,
    ArithmeticError,
    EOFError,
    OSError,
    LookupError,
    SyntaxError,
    TypeError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def decode_points(
    data: bytes,
    name: str = "",
    *,
    allow_pickle: bool = False,
    key: str | None = None,
    surface_points: int = SURFACE_POINTS,
) -> npt.NDArray[np.float32]:
    """Decode a point cloud.

    Parameters
    ----------
    data : bytes
        A ``.npy`` file; or a ``.npz`` file, of which ``points``, ``xyz``, ``pos``, else the first array is taken; or
        a ``.ply``, ``.obj`` or ``.off`` file, see :func:`decode_mesh`.
    name : str
        For messages, and to recognise mesh files.
    allow_pickle : bool
        Open a pickled dict that holds ``xyz`` (and ``rgb``). Unpickling can run code: only for files that you made.
    key : str, optional
        Decides where on the surface of a mesh its points are; the name if not said.
    surface_points : int
        How many those are.

    Returns
    -------
    ndarray
        (N, 3) or (N, 6) float32, contiguous, finite, N at least 1. Not centred, not scaled.

    Raises
    ------
    ItemError
        If the data is empty, truncated, pickled, of another shape or type, or has non-finite values.
    """
    if not data:
        raise ItemError("the point cloud is empty (zero bytes)", where=name)
    kind = name.rpartition(".")[2].lower()
    if data.startswith(b"ply") or (kind in KINDS and not data.startswith(_NPY_MAGIC)):
        kind = kind if kind in KINDS else "ply"
        mesh = decode_mesh(data, kind, name, key=name if key is None else key, count=surface_points)
        return _checked(mesh, name)
    try:
        array = _load(data, name, allow_pickle)
    except _DAMAGE as error:
        raise ItemError(f"the point cloud cannot be decoded: {error}", where=name) from error
    except MemoryError as error:
        raise ItemError("the point cloud does not fit into memory", where=name) from error
    return _checked(array, name)


def _load(data: bytes, name: str, allow_pickle: bool) -> Any:
    """The array of a .npy or .npz."""
    if data.startswith(_NPY_MAGIC):
        return _load_npy(data, name, allow_pickle)
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            arrays = [info.filename for info in archive.infolist() if info.filename.endswith(".npy")]
            wanted = [f"{n}.npy" for n in _ARRAY_NAMES if f"{n}.npy" in arrays] or arrays
            if not wanted:
                raise ItemError("the .npz holds no array", where=name)
            if archive.getinfo(wanted[0]).file_size > MAX_BYTES:
                raise ItemError(f"the array {wanted[0]} unpacks to more than {MAX_BYTES} bytes", where=name)
            return _load_npy(archive.read(wanted[0]), name, allow_pickle)
    raise ItemError(f"the data is neither .npy nor .npz, and the name none of .{', .'.join(KINDS)}", where=name)


def _load_npy(data: bytes, name: str, allow_pickle: bool) -> Any:
    """Parse a .npy after comparing what its header promises with what is there."""
    stream = io.BytesIO(data)
    shape, dtype = _npy_header(stream)
    if dtype.hasobject:
        if not allow_pickle:
            raise ItemError(
                "the file holds pickled Python objects, which can run code when they are opened",
                where=name,
                todo="save the bare array with numpy.save; for files that you made: allow_pickle=True, "
                "or --encoder 'ulip2?allow_pickle=true'",
            )
        return _unpickled(data)
    promised = math.prod(shape) * dtype.itemsize
    there = len(data) - stream.tell()
    if min(shape, default=0) < 0 or promised > there:
        raise ItemError(f"the array is truncated: {promised} bytes are promised, {there} are there", where=name)
    return np.load(io.BytesIO(data), allow_pickle=False)


def _npy_header(stream: io.BytesIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type that a .npy promises; leaves the stream at the data."""
    formats: Any = np.lib.format
    version = formats.read_magic(stream)
    read = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _unpickled(data: bytes) -> Any:
    """xyz, with rgb if there is one, of the pickled dict that the official assets use."""
    try:
        content = np.load(io.BytesIO(data), allow_pickle=True)
    except Exception as error:  # a pickle may raise anything
        raise ValueError(f"the pickle does not open: {error}") from error
    record = content.item() if content.ndim == 0 else content
    if not isinstance(record, Mapping):
        return np.asarray(record, dtype=np.float64)
    found = next((record[n] for n in _ARRAY_NAMES if n in record), None)
    if found is None:
        raise ValueError(f"the pickled dict has none of {', '.join(_ARRAY_NAMES)}")
    xyz = np.asarray(found, dtype=np.float64)
    return np.concatenate([xyz, np.asarray(record["rgb"], dtype=np.float64)], axis=1) if "rgb" in record else xyz


def _checked(array: Any, name: str) -> npt.NDArray[np.float32]:
    """The array as (N, 3|6) float32, or the reason why it is no point cloud."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ItemError(f"the array holds {getattr(array, 'dtype', type(array).__name__)}, not numbers", where=name)
    if array.ndim != 2 or array.shape[1] not in (3, 6):
        raise ItemError(f"the array has shape {array.shape}; a point cloud is (N, 3) or (N, 6)", where=name)
    if not len(array):
        raise ItemError("the point cloud has no points", where=name)
    with np.errstate(over="ignore"):
        points: npt.NDArray[np.float32] = np.ascontiguousarray(array, dtype=np.float32)  # (N, 3 | 6)
    bad = int(points.size - np.count_nonzero(np.isfinite(points)))
    if bad:
        raise ItemError(f"{bad} of {points.size} values are not finite (NaN or infinite)", where=name)
    return points
