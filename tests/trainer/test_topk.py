from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from cmcr.trainer import topk
from cmcr.trainer.completion import complete_rows
from cmcr.trainer.topk import certificate_record, complete_topk
from hypothesis import given, settings
from hypothesis import strategies as st


class Matrix:
    """A bank of plain rows."""

    def __init__(self, rows: np.ndarray) -> None:
        self.matrix, self.dim = rows, rows.shape[1]

    def __len__(self) -> int:
        return len(self.matrix)

    def blocks(self, size: int = 16384):  # type: ignore[no-untyped-def]
        for start in range(0, len(self.matrix), size):
            yield self.matrix[start : start + size]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return self.matrix[indices]


def truth(queries: np.ndarray, bank: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (B, M) and unit means (B, D), in float64 from the float32 rows."""
    scores = queries.astype(np.float64) @ bank.astype(np.float64).T / tau
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    vectors = weights @ bank.astype(np.float64)
    return weights, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(unit: Callable[..., np.ndarray], rows: int, queries: int, dim: int, spread: float, seed: int):  # type: ignore[no-untyped-def]
    """A bank around some centres and queries near some of its rows, all of unit length."""
    rng = np.random.default_rng(seed)
    bank = unit(12, dim, seed)[rng.integers(12, size=rows)] + spread * rng.standard_normal((rows, dim)) / math.sqrt(dim)
    bank = (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float32)
    near = bank[rng.integers(rows, size=queries)] + 0.3 * unit(queries, dim, seed + 1)
    return (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32), bank


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 3000),
    dim=st.sampled_from([5, 33, 256]),
    spread=st.sampled_from([0.05, 0.5, 1.0]),
    tau=st.sampled_from([0.002, 0.01, 0.05]),
    tolerance=st.sampled_from([1e-4, 1e-2, 0.3]),
)
def test_float64_truth_lies_within_every_certificate(
    unit: Callable[..., np.ndarray], seed: int, rows: int, dim: int, spread: float, tau: float, tolerance: float
) -> None:
    queries, bank = clustered(unit, rows, 9, dim, spread, seed)
    done = complete_topk(queries, Matrix(bank), tau, tolerance)
    weights, vectors = truth(queries, bank, tau)
    units = done.vectors / np.linalg.norm(done.vectors.astype(np.float64), axis=1, keepdims=True)
    for i, k in enumerate(done.k.tolist()):
        if k == rows and math.isnan(done.error[i]):
            continue  # completed exactly
        record = certificate_record(k, done.mass[i], done.error[i])
        missing = 1 - np.sort(weights[i])[::-1][:k].sum()
        assert missing <= record["mass_bound"] + 1e-12
        assert np.linalg.norm(units[i] - vectors[i]) <= record["vector_bound"] <= tolerance * 1.001 + 1e-6
        assert k <= max(1, rows // topk.LARGEST_SHARE)


def test_a_sharp_bank_needs_few_rows_and_agrees_with_exact_completion(unit: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    bank = unit(20_000, 64, 5)
    queries = bank[rng.integers(20_000, size=40)] + 0.5 * unit(40, 64, 6)
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    done = complete_topk(queries, Matrix(bank), 0.01, 1e-3)
    exact = complete_rows(queries, Matrix(bank), 0.01)
    assert np.median(done.k) < 200
    assert np.isfinite(done.error).all()
    assert done.error.max() <= 1e-3
    np.testing.assert_allclose(done.vectors, exact.vectors, atol=1e-3)
    np.testing.assert_allclose(done.neighbours, exact.neighbours, rtol=5e-3)


def test_a_query_that_needs_too_many_rows_is_completed_exactly(unit: Callable[..., np.ndarray]) -> None:
    queries, bank = unit(5, 16, 1), unit(900, 16, 2)
    done = complete_topk(queries, Matrix(bank), 1.0, 1e-3)
    np.testing.assert_array_equal(done.vectors, complete_rows(queries, Matrix(bank), 1.0).vectors)
    assert (done.k == 900).all()
    assert (done.mass == 0).all()
    assert certificate_record(900, 0.0, float("nan")) == {"k": 900, "mass_bound": 0.0}


def test_blocks_tiles_and_crowded_memory_do_not_change_a_certificate(
    unit: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = unit(5_003, 32, 3)
    queries = bank[::200] + 0.4 * unit(26, 32, 4)
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    whole = complete_topk(queries, Matrix(bank), 0.03)
    monkeypatch.setattr(topk, "TOPK_ROWS", 7)
    monkeypatch.setattr(topk, "BANK_TILE", 97)
    monkeypatch.setattr(topk, "QUERY_TILE", 3)
    parts = complete_topk(queries, Matrix(bank), 0.03)
    np.testing.assert_array_equal(parts.k, whole.k)
    np.testing.assert_allclose(parts.vectors, whole.vectors, atol=1e-6)
    monkeypatch.setattr(topk, "_CANDIDATES", 40)  # most queries are given up and completed exactly: right, if slower
    crowded = complete_topk(queries, Matrix(bank), 0.03)
    assert (crowded.k == 5_003).any()
    np.testing.assert_allclose(crowded.vectors, whole.vectors, atol=1e-3)
