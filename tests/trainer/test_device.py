from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cmcr.cache.errors import DeviceError
from cmcr.pipeline.encoders.devices import resolve_device as resolve_for_encoders
from cmcr.trainer import device
from cmcr.trainer.device import DeviceRows, autocast, resolve_device


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


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], None]:
    """Makes torch believe in that many GPUs, and in Metal or not."""

    def pretend(gpus: int, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(("gpus", "mps", "best"), [(0, False, "cpu"), (0, True, "mps"), (2, True, "cuda")])
def test_auto_is_cuda_then_mps_then_the_cpu(
    machine: Callable[[int, bool], None], gpus: int, mps: bool, best: str
) -> None:
    machine(gpus, mps)
    assert resolve_device("auto") == torch.device(best)
    assert resolve_for_encoders("auto") == best
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_an_error_that_says_what_is(
    machine: Callable[[int, bool], None], name: str
) -> None:
    machine(0, False)
    for resolve in (resolve_device, resolve_for_encoders):
        with pytest.raises(DeviceError, match=f"no device '{name}'") as caught:
            resolve(name)
        assert caught.value.todo == "devices of this machine: auto, cpu"


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "xpu"])
def test_a_name_that_is_no_device_is_an_error(machine: Callable[[int, bool], None], name: str) -> None:
    machine(1, False)
    with pytest.raises(DeviceError, match="no device called") as caught:
        resolve_device(name)
    assert caught.value.todo == "devices of this machine: auto, cuda, cpu"


def test_gpus_are_counted(machine: Callable[[int, bool], None]) -> None:
    machine(2, False)
    assert [str(resolve_device(name)) for name in ("cuda", "cuda:0", "cuda:1")] == ["cuda", "cuda:0", "cuda:1"]
    with pytest.raises(DeviceError, match="auto, cuda, cuda:1, cpu"):
        resolve_device("cuda:2")


def test_bf16_is_autocast_for_products_only() -> None:
    rows = torch.randn(4, 4)
    with autocast(torch.device("cpu"), "bf16"):
        assert (rows @ rows).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "fp32"):
        assert (rows @ rows).dtype == torch.float32


def test_bf16_is_refused_where_the_cpu_has_none_and_fp32_never_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"sse4_2", "avx2", "avx512f"})
    device.check_precision(cpu, "fp32")
    with pytest.raises(DeviceError, match="this CPU has no bf16 arithmetic") as error:
        device.check_precision(cpu, "bf16")
    assert "--precision fp32" in str(error.value)
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"avx512f", "avx512_bf16"})
    device.check_precision(cpu, "bf16")
