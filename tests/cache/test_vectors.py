from __future__ import annotations

import numpy as np
from cmcr.cache.vectors import normalize_rows, to_float32


def test_every_finite_half_widens_to_the_same_bits_as_numpy_gives():
    halves = np.arange(65536, dtype=np.uint16).view("<f2").reshape(-1, 128)
    wide = np.empty(halves.shape, np.float32)
    to_float32(halves, wide)
    finite = np.isfinite(halves)
    assert np.array_equal(wide.view(np.uint32)[finite], halves.astype(np.float32).view(np.uint32)[finite])


def test_widening_reads_slices_and_single_precision():
    halves = np.random.default_rng(0).standard_normal((300, 700)).astype("<f2")
    wide = np.empty((100, 700), np.float32)
    to_float32(halves[50:250:2], wide)
    assert np.array_equal(wide, halves[50:250:2].astype(np.float32))
    to_float32(halves[:100].astype("<f4"), wide)
    assert np.array_equal(wide, halves[:100].astype(np.float32))


def test_rows_get_unit_length_even_where_their_squares_leave_the_range():
    rows = np.array([[3, 4], [1e-30, 0], [2e38, 2e38], [0, 0], [6e-8, 0]], np.float32)
    normalize_rows(rows)
    np.testing.assert_allclose(rows, [[0.6, 0.8], [1, 0], [0.5**0.5, 0.5**0.5], [0, 0], [1, 0]], rtol=1e-6)
