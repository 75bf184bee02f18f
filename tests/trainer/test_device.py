from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cmcr.cache.errors import FitError
from cmcr.trainer.device import DeviceRows, autocast, pick_device


class Matrix:
    def __init__(self, rows: np.ndarray) -> None:
        self.matrix, self.dim, self.calls = rows, rows.shape[1], 0

    def __len__(self) -> int:
        return len(self.matrix)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        self.calls += 1
        return self.matrix[indices]


def test_resident_rows_equal_gathered_ones_and_are_read_once(unit: Callable[..., np.ndarray]) -> None:
    source, wanted = Matrix(unit(20000, 3)), np.array([19999, 0, 16384, 0])
    gathered = DeviceRows(source, torch.device("cpu"))
    held = DeviceRows(source, torch.device("cpu"), resident=True)
    calls = source.calls
    assert torch.equal(held(wanted), torch.from_numpy(source.matrix[wanted]))
    assert source.calls == calls
    assert torch.equal(gathered(wanted), held(wanted))
    assert DeviceRows.bytes_of([source, source]) == 2 * 4 * 20000 * 3


def test_a_device_that_is_not_there_is_an_error() -> None:
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(FitError, match="no cuda"):
            pick_device("cuda")


def test_bf16_is_autocast_for_products_only() -> None:
    rows = torch.randn(4, 4)
    with autocast(torch.device("cpu"), "bf16"):
        assert (rows @ rows).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "fp32"):
        assert (rows @ rows).dtype == torch.float32
