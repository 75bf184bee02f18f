"""Identities of sources: digests of byte ranges, and of names, sizes and both ends of files."""

from __future__ import annotations

import hashlib

from ...cache.remote import Place, RemotePath

END_BYTES = 4096
CHUNK = 1 << 22


def new_digest() -> hashlib.blake2b:
    """The digest that identities are made with."""
    return hashlib.blake2b(digest_size=16)


def digest_range(path: Place, start: int, stop: int, seed: bytes = b"") -> str:
    """Hex digest of the bytes ``[start, stop)`` of a file (fewer where it is shorter), after ``seed``."""
    digest = new_digest()
    digest.update(seed)
    with path.open("rb") as handle:
        handle.seek(start)
        left = stop - start
        while left > 0 and (chunk := handle.read(min(CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def read_ends(path: Place, size: int) -> bytes:
    """First and last 4 KiB of a file (the whole of a file that is not longer than both)."""
    if isinstance(path, RemotePath):
        return path.read_ends(size, END_BYTES)
    with path.open("rb", buffering=0) as handle:
        if size <= 2 * END_BYTES:
            return handle.read(2 * END_BYTES)
        head = handle.read(END_BYTES)
        handle.seek(size - END_BYTES)
        return head + handle.read(END_BYTES)


def ends_of(data: bytes) -> bytes:
    """What :func:`read_ends` gives for a file that is already in memory."""
    return data if len(data) <= 2 * END_BYTES else data[:END_BYTES] + data[-END_BYTES:]


class FilesDigest:
    """Identity of a run of files: each file's name, size and both ends, in order."""

    def __init__(self) -> None:
        self._digest = new_digest()

    def add(self, name: str, size: int, ends: bytes | None) -> None:
        """Take in one file; ``ends`` is None for a file that cannot be read."""
        self._digest.update(f"{name}\0{size}\0{'unreadable' if ends is None else 'read'}\0".encode())
        self._digest.update(ends or b"")

    def hexdigest(self) -> str:
        """The identity."""
        return self._digest.hexdigest()
