"""Small caches and their makers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache import fsio
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.shard import ShardData

DIM = 8


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A killed process loses nothing of the page cache, so only test_fsio needs a true fsync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsio.os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def manifest() -> CacheManifest:
    return CacheManifest("space-1", "clip", "text", "sandbox:clip", "fp-1", DIM)


def _shard(number: int, rows: int, dim: int = DIM, *, captions: bool = False) -> ShardData:
    rng = np.random.default_rng([number, rows])
    return ShardData(
        keys=[f"file{number}:{row + 1:09d}" for row in range(rows)],
        vectors=rng.standard_normal((rows, dim)).astype(np.float32),
        captions=[f"caption {number} {row} ü" if row % 3 else None for row in range(rows)] if captions else None,
        sources=[f"file{number}.txt" for _ in range(rows)] if captions else None,
        meta=[{"row": row} if row % 2 else None for row in range(rows)] if captions else None,
    )


@pytest.fixture
def shard() -> Callable[..., ShardData]:
    """``shard(number, rows, dim=8, captions=False)``: seeded rows."""
    return _shard


def _tree(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.relative_to(path).parts[0] not in ("runs", "index")
    }


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """``tree(path)``: every file that decides the content of a cache, hidden and temporary ones included."""
    return _tree


def _killed(job: Callable[[], None], at: int) -> int | None:
    """Run ``job`` in a fork that kills itself before call number ``at``; the number of calls if it came to its end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        calls = 0

        def hook(call: str, path: Path) -> None:
            nonlocal calls
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1

        try:
            fsio.HOOKS.append(hook)
            job()
            os.write(writer, str(calls).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    said = os.read(reader, 20)
    os.close(reader)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.WEXITSTATUS(status) == 0, "the job itself failed"
    return int(said)


@pytest.fixture
def killed() -> Callable[[Callable[[], None], int], int | None]:
    """``killed(job, at)``: see :func:`_killed`."""
    return _killed
