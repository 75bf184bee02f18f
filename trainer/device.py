"""Where a fit computes, and how cached rows come there."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache.errors import FitError

_LOAD_ROWS = 16384


class RowSource(Protocol):
    """Rows of one kind for the joined items, gathered on demand; at most a batch of them is in memory."""

    @property
    def dim(self) -> int: ...
    def __len__(self) -> int: ...
    def rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Rows (B, D) float32 of these joined items."""
        ...


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first GPU that is there, else the CPU.

    Raises
    ------
    FitError
        The device is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    missing = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise FitError(f"there is no {device.type} device on this machine", where="fit.device", todo="use device cpu")
    return device


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
