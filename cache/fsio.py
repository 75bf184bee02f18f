"""Every file-system call that the writer makes: atomic replacement, temporary names, durability.

A file appears under its final name complete or not at all: temporary name in the same folder, write, close, check,
fsync, ``os.replace``, fsync of the folder. Each call is announced to :data:`HOOKS`, so that a test can end the
process at any of them.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CacheError

HOOKS: list[Callable[[str, Path], None]] = []
WRITE_BLOCK = 8 << 20
_TEMPORARY = re.compile(r"^\.(?P<final>.+)\.tmp-(?P<host>[A-Za-z0-9_.-]*)-(?P<pid>\d+)-(?P<start>\d+)$")
_in_flight: set[str] = set()


def step(call: str, path: Path) -> None:
    """Announce the file-system call that comes next."""
    for hook in HOOKS:
        hook(call, path)


def host_name() -> str:
    """This machine's name, reduced to characters that are safe in file names."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname())


def process_start(pid: int) -> int:
    """Start of a process in clock ticks since boot, which tells it from a later one of the same id; 0 if unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(stat.rpartition(b")")[2].split()[19])


def temporary_name(path: Path) -> Path:
    """Hidden name beside ``path`` that says which process on which machine is writing it."""
    pid = os.getpid()
    return path.with_name(f".{path.name}.tmp-{host_name()}-{pid}-{process_start(pid)}")


def is_temporary(name: str) -> bool:
    """Whether a file name is one of :func:`temporary_name`."""
    return _TEMPORARY.match(name) is not None


def is_abandoned(name: str) -> bool:
    """Whether a temporary file belongs to a process of this machine that is gone."""
    match = _TEMPORARY.match(name)
    if match is None or match["host"] != host_name() or name in _in_flight:
        return False
    pid, start = int(match["pid"]), int(match["start"])
    if pid == os.getpid():
        return (
            start != process_start(pid) or start == 0
        )  # an earlier process had our id (containers hand out the same ones)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return start != 0 and process_start(pid) not in (0, start)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """The temporary name for ``path``: no sweep of this process takes it during the block, and after it it is gone."""
    temporary = temporary_name(path)
    _in_flight.add(temporary.name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        _in_flight.discard(temporary.name)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, durably."""
    if not path.is_dir():
        step("mkdir", path)
        path.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. File systems that cannot are left to their own guarantees."""
    step("fsync-folder", path)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def remove(path: Path) -> bool:
    """Unlink a file that may be missing; True if it was there."""
    step("unlink", path)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _write_and_sync(temporary: Path, data: bytes, check: Callable[[Path], None] | None) -> None:
    """Write, close, read back and compare, run ``check``, then fsync."""
    step("open", temporary)
    with temporary.open("wb", buffering=0) as handle:
        view = memoryview(data)
        while view:
            step("write", temporary)
            view = view[handle.write(view[:WRITE_BLOCK]) :]
        step("close", temporary)
    step("reopen", temporary)
    if file_crc32(temporary) != (len(data), zlib.crc32(data)):
        raise CacheError(
            "What was read back differs from what was written.",
            where=str(temporary),
            todo="check the disk (dmesg, quota), then run the same command again",
        )
    if check is not None:
        check(temporary)
    with temporary.open("rb") as handle:
        step("fsync", temporary)
        os.fsync(handle.fileno())


def write_atomic(path: Path, data: bytes, check: Callable[[Path], None] | None = None, *, durable: bool = True) -> None:
    """Write ``data`` as ``path``: at any instant the old file or the new one is there, complete.

    Parameters
    ----------
    path : Path
        Final name; its folder exists.
    data : bytes
        The whole content.
    check : callable, optional
        Called with the temporary name after it was read back and before it is put in place; raises to stop.
    durable : bool
        Also fsync the folder; several files of one folder may share one :func:`sync_folder` instead.

    Raises
    ------
    CacheError
        The file cannot be written, or reads back differently.
    """
    try:
        with writing(path) as temporary:
            _write_and_sync(temporary, data, check)
            step("replace", path)
            temporary.replace(path)
            if durable:
                sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def create_atomic(
    path: Path, data: bytes, check: Callable[[Path], None] | None = None, *, durable: bool = True
) -> bool:
    """Create ``path`` with ``data``, complete from the first instant; a file that is there already is never replaced.

    Parameters are those of :func:`write_atomic`. Done by a hard link, which fails where the name exists; file systems
    without hard links get a look and a rename, between which another process may come.

    Returns
    -------
    bool
        Whether the file holds ``data`` now: created here, or there already with this very content.
    """
    try:
        with writing(path) as temporary:
            _write_and_sync(temporary, data, check)
            step("link", path)
            if not _link_new(temporary, path):
                return file_crc32(path) == (len(data), zlib.crc32(data))
            if durable:
                sync_folder(path.parent)
            return True
    except OSError as error:
        raise _cannot_write(path, error) from error


def _link_new(temporary: Path, path: Path) -> bool:
    """Give a complete file its final name unless that is taken; True if it was free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL):
            raise
        if path.exists():
            return False
        temporary.replace(path)
    return True


def move(source: Path, target: Path, *, durable: bool = True) -> bool:
    """Rename over ``target``; False where ``source`` is gone, since another process moved it."""
    step("replace", target)
    try:
        source.replace(target)
        if durable:
            sync_folder(target.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _cannot_write(target, error) from error
    return True


def _cannot_write(path: Path, error: OSError) -> CacheError:
    return CacheError(
        f"Cannot write: {error.strerror or error}.",
        where=str(path),
        todo="free space or permissions there, then run the same command again: finished shards are kept",
    )


@contextmanager
def naming_folder(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` in the block into a :class:`CacheError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise CacheError(f"Cannot use the folder: {error.strerror or error}.", where=str(path)) from error


def file_crc32(path: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32 of a file, read in blocks."""
    size, crc = 0, 0
    with path.open("rb", buffering=0) as handle:
        while block := handle.read(WRITE_BLOCK):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return size, crc


def sweep(folder: Path) -> list[str]:
    """Remove the temporary files that dead processes of this machine left in ``folder``; one listing."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if is_abandoned(entry.name))
    return [name for name in names if remove(folder / name)]
