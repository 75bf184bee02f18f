"""The allocator setting: it holds where glibc is, and harms nowhere."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest
from cmcr.trainer import allocator

SCRIPT = """
import resource, sys
import torch
from cmcr.trainer.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.set_num_threads(1)
for _ in range(16):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_tensors_are_not_faulted_in_again() -> None:
    assert faults("kept") < 100
    assert faults("as it comes") > 100


@pytest.mark.parametrize(
    ("most", "asked"),
    [
        (1 << 30, [(-3, 1 << 30), (-1, 1 << 30)]),
        (1 << 25, [(-3, 1 << 30), (-3, 1 << 25), (-1, 1 << 30)]),  # glibc of before 2.35 or so
        (0, [(-3, 1 << 30), (-3, 1 << 25)]),  # nothing is left half set
    ],
)
def test_a_threshold_that_is_refused_leaves_trimming_alone(
    monkeypatch: pytest.MonkeyPatch, most: int, asked: list[tuple[int, int]]
) -> None:
    calls = []

    class Library:
        @staticmethod
        def mallopt(option: int, value: int) -> int:
            calls.append((option, value))
            return int(option != -3 or value <= most)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    assert allocator.keep_freed_memory() == (most > 0)
    assert calls == asked


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
