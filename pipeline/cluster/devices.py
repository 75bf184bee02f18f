"""Which local devices a run is to use, one worker each: from ``auto``, or from a list such as ``cuda:0,cuda:1``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...cache.errors import DeviceError, RecipeError
from ..progress import Event, Progress

_DEVICE = re.compile(r"^(?P<name>cpu|mps|cuda(?::\d+)?)(?:\*(?P<times>\d+))?$")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def spelled_devices(devices: str | Sequence[str]) -> list[str]:
    """One device a worker, as they are written, or ``auto`` alone; whether they are there is not looked at.

    Raises
    ------
    RecipeError
        It is no list of devices.
    """
    parts = devices.split(",") if isinstance(devices, str) else list(devices)
    parts = [part.strip() for part in parts]
    if parts == ["auto"]:
        return parts
    usage = "for example auto, or cuda:0,cuda:1, or cpu*2"
    if not parts:
        raise RecipeError("no device is given", where="devices", todo=usage)
    found: list[str] = []
    for part in parts:
        match = _DEVICE.match(part)
        times = int(match["times"] or 1) if match else 0
        if match is None or times == 0:
            raise RecipeError(f"{part!r} is no device", where="devices", todo=usage)
        found += [match["name"]] * times
    return found


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
    found = spelled_devices(devices)
    if found == ["auto"]:
        return [f"cuda:{number}" for number in range(gpus())] or ["cpu"]
    beyond = sorted({name for name in found if name.startswith("cuda") and int(name[5:] or 0) >= gpus()})
    if beyond:
        raise DeviceError(
            f"no {beyond[0]} here: this machine has {gpus()} GPUs that torch can use",
            where="devices",
            todo="--devices auto takes those that are there",
        )
    return found


def refuse_beside_devices(settings: Mapping[str, Any]) -> None:
    """Refuse settings that say in another way which worker does what, and where.

    Raises
    ------
    RecipeError
    """
    for name, unset in (("worker", None), ("device", "auto")):
        if settings.get(name, unset) != unset:
            raise RecipeError(f"{name} and devices exclude each other", where="devices", todo=f"leave --{name} out")


def local_devices(devices: str | Sequence[str], progress: Progress) -> list[str]:
    """:func:`parse_devices` for this machine; says so where there is no GPU to be found by ``auto``."""
    found = parse_devices(devices, _gpus)
    if devices == "auto" and found == ["cpu"]:
        progress(Event("note", text="no GPU that torch can use: one worker on the CPU"))
    return found


def visible_gpus() -> list[str]:
    """The GPUs that torch can use here, each as it stands in CUDA_VISIBLE_DEVICES: a number, or an id of CUDA's."""
    count = _gpus()
    inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if inherited is None else inherited.split(",")
    return [name.strip() for name in names][:count]


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
