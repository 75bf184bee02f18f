"""Which device computes, and how cached rows come there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache.errors import DeviceError

_LOAD_ROWS = 16384


class RowSource(Protocol):
    """Rows of one kind for the joined items, gathered on demand; at most a batch of them is in memory."""

    @property
    def dim(self) -> int: ...
    def __len__(self) -> int: ...
    def rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Rows (B, D) float32 of these joined items."""
        ...


def resolve_device(name: str) -> torch.device:
    """The device of that name: the one place where a ``--device`` gets its meaning.

    Parameters
    ----------
    name : str
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto``: cuda where there is one, else mps, else the CPU.

    Raises
    ------
    DeviceError
        The device is not known or not on this machine; says what is there.
    """
    here = _devices_here()
    if name == "auto":
        return torch.device(here[0])
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    todo = f"devices of this machine: auto, {', '.join(here)}"
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"there is no device called {name!r}", where="device", todo=todo)
    if str(device) not in here and not (device.type in here and device.index in (None, 0)):
        raise DeviceError(f"this machine has no device {name!r} that torch can use", where="device", todo=todo)
    return device


def _devices_here() -> list[str]:
    """Names of the devices, the best first; a second GPU is ``cuda:1``."""
    gpus = ["cuda", *(f"cuda:{n}" for n in range(1, torch.cuda.device_count()))] if torch.cuda.is_available() else []
    return [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def check_precision(device: torch.device, precision: str) -> None:
    """Refuse bf16 where the device has no such arithmetic: it would be emulated, slower than float32 and less precise.

    Raises
    ------
    DeviceError
    """
    if precision == "bf16" and not _has_bf16(device):
        name = "this CPU" if device.type == "cpu" else f"the device {device}"
        raise DeviceError(
            f"{name} has no bf16 arithmetic; emulated it would be slower than fp32",
            where="precision",
            todo="fit with --precision fp32, or on a device that has it",
        )


def _has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "hw.optional.arm.FEAT_BF16"})
    return True  # mps: torch itself says so where it has none


def _cpu_flags() -> set[str]:
    """Instruction sets of the CPU, by the names of /proc/cpuinfo or of macOS's sysctl."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if line.lower().startswith(("flags", "features"))]
        return set(lines[0].partition(":")[2].split()) if lines else set()
    except OSError:
        name = "hw.optional.arm.FEAT_BF16"
    try:
        told = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return set()
    return {name} if told.strip() == "1" else set()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Autocast to bf16 where asked for; nothing otherwise."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


class DeviceRows:
    """A row source on a device.

    Parameters
    ----------
    source : RowSource
    device : torch.device
    resident : bool
        Hold all rows on the device in float32; else each call gathers from the cache. On the CPU nothing is held: the
        page cache keeps what the machine has room for.
    """

    def __init__(self, source: RowSource, device: torch.device, *, resident: bool = False) -> None:
        self._source = source
        self._device = device
        self._held: Tensor | None = None
        if resident:
            self._held = torch.empty((len(source), source.dim), device=device)  # (N, D)
            for start in range(0, len(source), _LOAD_ROWS):
                part = np.arange(start, min(start + _LOAD_ROWS, len(source)))
                self._held[start : start + len(part)] = torch.from_numpy(source.rows(part)).to(device)

    @staticmethod
    def bytes_of(sources: Iterable[RowSource]) -> int:
        """What holding these sources takes."""
        return sum(4 * len(source) * source.dim for source in sources)

    def __call__(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Rows (B, D) float32 on the device."""
        if self._held is not None:
            return self._held[torch.from_numpy(rows).to(self._device)]
        return torch.from_numpy(self._source.rows(rows)).to(self._device)
