"""What weave looks at: centred, sampled, and refused where it cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import FitError
from cmcr.trainer.weave import data as module
from cmcr.trainer.weave.data import complete, weave_data

Unit = Callable[..., np.ndarray]


class Rows:
    """Rows by number, and how many were asked for."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.dim, self.asked = vectors, vectors.shape[1], 0

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        self.asked += len(indices)
        return self.vectors[indices]


class Several(SimpleNamespace):
    """What weave reads of pairs."""

    def __len__(self) -> int:
        return len(self.overlap["a"])


def pairs(unit: Unit, rows: int = 60, banks: tuple[int, int] = (10, 33), dims: tuple[int, int] = (9, 2)) -> Any:
    return Several(
        names=("a", "b"),
        overlap={n: Rows(unit(rows, d, k)) for k, (n, d) in enumerate(zip("ab", dims, strict=True))},
        bank={n: Rows(unit(m, d, 5)) for n, m, d in zip("ab", banks, dims, strict=True)},
    )


def test_each_modality_of_each_space_is_centred_by_its_own_mean(unit: Unit) -> None:
    given = pairs(unit)
    data = weave_data(given, 1000, 1000, 0)
    for side in data.sides:
        for rows, mean, source in (
            (side.overlap, side.overlap_mean, given.overlap[side.name].vectors),
            (side.bank, side.bank_mean, given.bank[side.name].vectors),
        ):
            wanted = source - source.mean(0)
            np.testing.assert_allclose(mean, source.mean(0), atol=1e-6)
            np.testing.assert_allclose(rows, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)
    assert [side.dim for side in data.sides] == [9, 2]


def test_no_more_than_the_samples_is_read_and_rows_of_both_spaces_stay_one_item(unit: Unit) -> None:
    given = pairs(unit, rows=50, banks=(40, 40), dims=(6, 6))
    given.overlap["b"] = Rows(given.overlap["a"].vectors)
    data = weave_data(given, 20, 16, 3)
    assert [source.asked for source in (*given.overlap.values(), *given.bank.values())] == [20, 20, 16, 16]
    assert torch.equal(data.sides[0].overlap, data.sides[1].overlap)
    part = data.part(torch.tensor([4, 1]))
    assert part.rows.tolist() == data.rows[[4, 1]].tolist()
    assert torch.equal(part.sides[1].overlap, data.sides[1].overlap[[4, 1]])
    assert weave_data(given, 20, 16, 4).rows.tolist() != data.rows.tolist()


def test_what_cannot_be_woven_says_why_and_what_to_do(unit: Unit) -> None:
    given = pairs(unit)
    given.bank["b"] = None
    with pytest.raises(FitError, match="needs a memory bank in both spaces, 'b' has none") as raised:
        weave_data(given, 100, 100, 0)
    assert "bank" in str(raised.value.todo)
    with pytest.raises(FitError, match="15 joined rows are too few"):
        weave_data(pairs(unit, rows=15), 100, 100, 0)
    for role in ("overlap", "bank"):
        for count in (40, 1) if role == "bank" else (40,):
            given = pairs(unit, rows=40)
            getattr(given, role)["a"] = Rows(np.repeat(unit(1, 9, 8), count, axis=0))
            with pytest.raises(FitError, match=f"the {role} of 'a' has {count} vectors, and they are all the same"):
                weave_data(given, 100, 100, 0)


def test_completion_in_blocks_is_the_softmax(monkeypatch: pytest.MonkeyPatch, unit: Unit) -> None:
    monkeypatch.setattr(module, "_BLOCK", 4)
    queries, bank = unit(11, 5), unit(7, 5, 1)
    weights = np.exp(12 * queries.astype(np.float64) @ bank.T)
    wanted = (weights / weights.sum(1, keepdims=True)) @ bank
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(complete(torch.from_numpy(queries), torch.from_numpy(bank), 12.0), wanted, atol=1e-5)
