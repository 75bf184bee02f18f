"""Which local devices a run is to use, one worker each: from ``auto``, or from a list such as ``cuda:0,cuda:1``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from ...cache.errors import DeviceError, RecipeError
from ..progress import Event, Progress

_DEVICE = re.compile(r"^(?P<name>cpu|mps|cuda(?::\d+)?)(?:\*(?P<times>\d+))?$")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def parse_devices(devices: str | Sequence[str], gpus: Callable[[], int]) -> list[str]:
    """One device a worker.

    Parameters
    ----------
    devices : str or sequence of str
        ``auto`` (every GPU of this machine, else the CPU), or devices: ``cuda:0,cuda:1``; ``cpu*2`` is two workers on
        the CPU. A device may stand more than once: its workers share it.
    gpus : callable
        How many GPUs this machine has; asked only where that matters.

    Raises
    ------
    RecipeError, DeviceError
        It is no list of devices, or a device is not there.
    """
    parts = devices.split(",") if isinstance(devices, str) else list(devices)
    parts = [part.strip() for part in parts]
    if parts == ["auto"]:
        return [f"cuda:{number}" for number in range(gpus())] or ["cpu"]
    found: list[str] = []
    for part in parts:
        match = _DEVICE.match(part)
        if match is None or match["times"] == "0":
            raise RecipeError(
                f"{part!r} is no device", where="devices", todo="for example auto, or cuda:0,cuda:1, or cpu*2"
            )
        found += [match["name"]] * int(match["times"] or 1)
    beyond = sorted({name for name in found if name.startswith("cuda") and int(name[5:] or 0) >= gpus()})
    if beyond:
        raise DeviceError(
            f"no {beyond[0]} here: this machine has {gpus()} GPUs that torch can use",
            where="devices",
            todo="--devices auto takes those that are there",
        )
    return found


def local_devices(devices: str | Sequence[str], progress: Progress) -> list[str]:
    """:func:`parse_devices` for this machine; says so where there is no GPU to be found by ``auto``."""
    found = parse_devices(devices, _gpus)
    if devices == "auto" and found == ["cpu"]:
        progress(Event("note", text="no GPU that torch can use: one worker on the CPU"))
    return found


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def threads_each(workers: int) -> int:
    """Threads for each of several workers of this machine: the cores, shared out."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // workers)


def thread_environment(workers: int) -> dict[str, str]:
    """Variables that keep several workers from using every core each; those that are set already stay."""
    return {name: str(threads_each(workers)) for name in THREAD_VARIABLES if name not in os.environ}
