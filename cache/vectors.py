"""Stored vectors to float32 unit rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Stored = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
_CHUNK_ELEMENTS = 1 << 16  # the passes below then stay within the second-level cache
_SMALL = 1e-15


def to_float32(stored: Stored, out: Float32) -> None:
    """Widen ``stored`` (B, D) into ``out`` (B, D), exactly.

    Halves are widened by moving their bits: exponent and mantissa 13 places up, then one multiplication by 2^112 for
    the difference of the exponents' biases (subnormals included). That is several times faster than NumPy's
    conversion. Infinities and NaN, which a cache never holds, would not survive.
    """
    if stored.dtype != np.dtype("<f2"):
        out[...] = stored
        return
    rows = max(1, _CHUNK_ELEMENTS // max(1, stored.shape[1]))
    scale = np.float32(2.0**112)
    for start in range(0, len(stored), rows):
        piece = out[start : start + rows]
        bits = stored[start : start + rows].view(np.int16).astype(np.int32)
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, np.int32(-0x70000001), out=bits)  # 0x8FFFFFFF: drop the copies of the sign
        np.multiply(bits.view(np.float32), scale, out=piece)


def normalize_rows(vectors: Float32) -> None:
    """Divide each row of ``vectors`` (B, D) by its Euclidean norm, in place; rows that are all zero stay zero."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))  # (B,)
    odd = ~((norms > _SMALL) & np.isfinite(norms))
    if odd.any():  # squares that leave the range of float32
        wide = vectors[odd].astype(np.float64)
        exact = np.linalg.norm(wide, axis=1, keepdims=True)
        vectors[odd] = wide / np.where(exact > 0, exact, 1.0)
        norms[odd] = 1.0
    vectors /= norms[:, None]
