from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from cmcr.cache.errors import FitError
from cmcr.trainer import completion
from cmcr.trainer.completion import complete_rows, readable_neighbours
from hypothesis import given, settings
from hypothesis import strategies as st


class Matrix:
    """A bank of plain rows."""

    def __init__(self, rows: np.ndarray) -> None:
        self.matrix = rows
        self.dim = rows.shape[1]

    def __len__(self) -> int:
        return len(self.matrix)

    def blocks(self, size: int = 16384) -> Iterator[np.ndarray]:
        for start in range(0, len(self.matrix), size):
            yield self.matrix[start : start + size]


def naive(queries: np.ndarray, bank: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """The sum as the paper writes it, in float64; and exp of the entropy of its weights."""
    scores = queries.astype(np.float64) @ bank.astype(np.float64).T / tau
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
    return weights @ bank, np.exp(-(weights * logs).sum(axis=1))


@settings(max_examples=25, deadline=None)
@given(
    queries=st.integers(1, 40),
    bank=st.integers(1, 90),
    block=st.integers(1, 100),
    tiles=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    tau=st.sampled_from([0.01, 0.1, 3.0]),
    seed=st.integers(0, 50),
)
def test_the_stream_equals_the_dense_sum_at_any_block_and_tile(
    unit: Callable[..., np.ndarray], queries: int, bank: int, block: int, tiles: tuple[int, int], tau: float, seed: int
) -> None:
    q, x = unit(queries, 9, seed), unit(bank, 9, seed + 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completion, "QUERY_TILE", tiles[0])
        patch.setattr(completion, "BANK_TILE", tiles[1])
        done = complete_rows(q, Matrix(x), tau, block)
    vectors, neighbours = naive(q, x, tau)
    np.testing.assert_allclose(done.vectors, vectors, atol=5e-6)
    np.testing.assert_allclose(done.neighbours, neighbours, rtol=2e-4)


def test_completion_is_exact_to_float32_at_the_papers_temperature(unit: Callable[..., np.ndarray]) -> None:
    q, x = unit(300, 64, 1), unit(5003, 64, 2)
    done = complete_rows(q, Matrix(x), 0.01, block=777)
    vectors, neighbours = naive(q, x, 0.01)
    assert np.abs(done.vectors - vectors).max() < 2e-5
    np.testing.assert_allclose(done.neighbours, neighbours, rtol=1e-3)


def test_opposite_queries_neither_overflow_nor_vanish(unit: Callable[..., np.ndarray]) -> None:
    x = unit(200, 16)
    q = -x[:7]  # every score is low: all exponentials of t·X/tau alone would underflow
    done = complete_rows(q, Matrix(np.tile(x[:1], (50, 1))), 1e-4)
    np.testing.assert_allclose(done.vectors, np.tile(x[:1], (7, 1)), atol=1e-6)
    np.testing.assert_allclose(done.neighbours, 50, rtol=1e-2)


def test_neighbours_count_from_one_copy_to_the_whole_bank(unit: Callable[..., np.ndarray]) -> None:
    x = unit(64, 32)
    assert complete_rows(x[:1], Matrix(x), 1e-3).neighbours[0] == pytest.approx(1, abs=1e-3)
    assert complete_rows(x[:1], Matrix(x), 1e6).neighbours[0] == pytest.approx(64, rel=1e-3)


def test_reduced_precision_products_are_switched_off_and_on_again(unit: Callable[..., np.ndarray]) -> None:
    q, x = unit(20, 32), unit(50, 32, 1)
    before = torch.get_float32_matmul_precision()
    expected = complete_rows(q, Matrix(x))
    torch.set_float32_matmul_precision("medium")
    try:
        assert np.array_equal(complete_rows(q, Matrix(x)).vectors, expected.vectors)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_empty_bank_and_a_wrong_width_say_what_to_do(unit: Callable[..., np.ndarray]) -> None:
    with pytest.raises(FitError, match="empty"):
        complete_rows(unit(2, 4), Matrix(np.empty((0, 4), np.float32)))
    with pytest.raises(FitError, match="5 dimensions"):
        complete_rows(unit(2, 4), Matrix(unit(3, 5)))


def test_the_readable_line_names_what_is_averaged() -> None:
    assert readable_neighbours(14.2, "text", "image").startswith("each caption averages 14 images (median);")
    assert "1.3 sounds" in readable_neighbours(1.27, "text", "audio")
    assert "12,345 bank rows" in readable_neighbours(12345, "other", "other")
