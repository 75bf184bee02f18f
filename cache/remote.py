"""Files at URLs (s3, gs, http and whatever else fsspec knows), read through whole local copies.

A copy is made once, under a name that says which version of the file it is, by a temporary name and a rename; it is
compared with the size that the server gives. Every failure is an ``OSError`` with one line in ``strerror``, as for a
file of this machine, so that the code above treats both alike.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat as stat_module
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, unquote

from . import fsio
from .errors import CacheError
from .sizes import parse_size
from .urls import open_filesystem, plain_error

FOLDER_VARIABLE = "CMCR_REMOTE_CACHE"
BYTES_VARIABLE = "CMCR_REMOTE_CACHE_BYTES"
LIMIT = 64 * 10**9
TRIES = 3
_VERSION_FIELDS = (
    *("size", "etag", "md5", "digest", "sha", "blob_id"),
    *("modif", "mtime", "created", "updated", "generation"),
)
_HTTP = ("http", "https")
T = TypeVar("T")


def spool_folder() -> Path:
    """Where copies lie: ``CMCR_REMOTE_CACHE``, else ``cmcr/remote`` in the user's cache folder."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cmcr" / "remote"


@dataclass(frozen=True)
class RemoteStat:
    """What of a remote file corresponds to ``os.stat_result``."""

    st_size: int
    st_mode: int


@dataclass(frozen=True)
class RemotePath:
    """A file or folder at a URL, with those methods of :class:`pathlib.Path` that reading needs.

    Parameters
    ----------
    base : str
        The URL without its query; in http URLs special characters are escaped.
    query : str
        ``?...`` of an http URL, which what lies below inherits (signed addresses); not shown.
    """

    base: str
    query: str = ""

    @classmethod
    def parse(cls, url: str) -> RemotePath:
        """A URL as it was given."""
        base, mark, query = url.partition("?") if url.startswith(_HTTP) else (url, "", "")
        place = cls(base.rstrip("/") if base.count("/") > 2 else base, mark + query)
        place.filesystem  # noqa: B018 a missing library is said at once
        byte_limit()  # and a wrong limit
        return place

    def __str__(self) -> str:
        return self.base

    def __truediv__(self, path: str) -> RemotePath:
        return replace(self, base=f"{self.base}/{quote(path) if self.is_http else path}")

    @property
    def is_http(self) -> bool:
        """Whether a web server is asked, in whose addresses special characters are escaped."""
        return self.base.startswith(_HTTP)

    @property
    def name(self) -> str:
        """Last part, as text."""
        last = PurePosixPath(self.base.partition("://")[2]).name
        return unquote(last) if self.is_http else last

    @property
    def parent(self) -> RemotePath:
        """The folder."""
        return replace(self, base=self.base.rpartition("/")[0])

    @cached_property
    def filesystem(self) -> Any:
        """The fsspec file system."""
        return open_filesystem(self.base)[0]

    @cached_property
    def _path(self) -> str:
        return str(self.filesystem._strip_protocol(self.base)) + self.query

    def _ask(self, call: Callable[[], T]) -> T:
        """Do a request, again where it fails for a reason that may pass.

        Raises
        ------
        OSError
        """
        for left in reversed(range(TRIES)):
            try:
                return call()
            except Exception as error:  # each backend raises errors of its own
                plain = plain_error(error)
                if left == 0 or plain.errno in (errno.ENOENT, errno.EACCES):
                    raise plain from error
                time.sleep(0.5 * (TRIES - left))
        raise AssertionError

    @cached_property
    def info(self) -> dict[str, Any]:
        """What the server says of the file, asked once."""
        found: dict[str, Any] = self._ask(lambda: self.filesystem.info(self._path))
        return found

    def stat(self) -> RemoteStat:
        """Size and kind; a file whose size the server does not give is fetched to be measured."""
        if self.info.get("type") == "directory":
            return RemoteStat(0, stat_module.S_IFDIR)
        size = self.info.get("size")
        return RemoteStat(int(size) if size is not None else self.fetch().stat().st_size, stat_module.S_IFREG)

    def exists(self) -> bool:
        """Whether there is something, file or folder."""
        try:
            self.stat()
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def is_dir(self) -> bool:
        """Whether it is a folder; on a web server, whether it is a page that names files and is named like none."""
        if self.is_http:
            return "." not in self.name and bool(self._ask(lambda: self.filesystem.isdir(f"{self._path}/")))
        return bool(self._ask(lambda: self.filesystem.isdir(self._path)))

    def walk(self) -> list[str]:
        """Paths of all files below, relative, unsorted."""
        start = f"{self._path}/" if self.is_http else self._path
        return self._relative(self._ask(lambda: self.filesystem.find(start)))

    def glob(self, pattern: str) -> list[str]:
        """Paths of the files below that match, relative, unsorted."""
        return self._relative(self._ask(lambda: self.filesystem.glob(f"{self._path}/{pattern}")))

    def children(self) -> dict[str, str]:
        """Name and version of what lies directly below."""
        start = f"{self._path}/" if self.is_http else self._path
        entries = self._ask(lambda: self.filesystem.ls(start, detail=True, refresh=True))
        names = self._relative([str(entry["name"]) for entry in entries])
        return {name: version_of(entry) for name, entry in zip(names, entries, strict=True)}

    def _relative(self, paths: Sequence[str]) -> list[str]:
        start = f"{self._path.removesuffix(self.query) if self.query else self._path}/"
        found = [str(path).removeprefix(start).partition("?")[0] for path in paths]
        return [unquote(path) for path in found] if self.is_http else found

    def read_bytes(self) -> bytes:
        """The whole content, compared with the size that the server gives."""
        data = bytes(self._ask(lambda: self.filesystem.cat_file(self._path)))
        if (size := self.info.get("size")) is not None and len(data) != size:
            raise _not_whole(self, len(data), int(size))
        return data

    def read_ends(self, size: int, count: int) -> bytes:
        """The first and last ``count`` bytes, or all where that is no more; by ranges where the server knows them."""
        if size <= 2 * count:
            return self.read_bytes()
        spans = [(0, count), (size - count, size)]
        parts = [bytes(self._ask(lambda s=s: self.filesystem.cat_file(self._path, *s))) for s in spans]  # type: ignore[misc]
        if [len(part) for part in parts] == [count, count]:
            return b"".join(parts)
        with self.open() as handle:  # a server without ranges sends everything
            head = handle.read(count)
            handle.seek(size - count)
            return head + handle.read(count)

    def open(self, mode: str = "rb") -> BinaryIO:
        """The local copy, opened for reading."""
        assert mode == "rb"
        return self.fetch().open("rb")

    def fetch(self) -> Path:
        """The local copy, made now if it is not there.

        Raises
        ------
        OSError
            It cannot be had, or not whole.
        """
        named = hashlib.blake2b(f"{self.base}\n{version_of(self.info)}".encode(), digest_size=16).hexdigest()
        local = spool_folder() / f"{named}{PurePosixPath(self.name).suffix}"
        size = self.info.get("size")
        with suppress(FileNotFoundError):  # not there yet, or another process has just made room
            os.utime(local)
            return local
        local.parent.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # what another user left
            fsio.sweep(local.parent)
        self.download(local, None if size is None else int(size))
        make_room(local)
        return local

    def download(self, target: Path, size: int | None, check: Callable[[Path], bool] | None = None) -> None:
        """Fetch the file as ``target``: complete, of ``size`` bytes and passing ``check``, or not at all."""
        # Threads of one process may fetch the same file.
        with fsio.writing(target.with_name(f"{target.name}.{threading.get_ident()}")) as temporary:
            for left in reversed(range(TRIES)):
                self._ask(lambda: self.filesystem.get_file(self._path, str(temporary)))
                found = temporary.stat().st_size
                if (size is None or found == size) and (check is None or check(temporary)):
                    break
                if left == 0:
                    raise _not_whole(self, found, size)
            temporary.replace(target)


Place = Path | RemotePath


def local_copy(place: Place) -> Path:
    """The file itself, or its local copy."""
    return place.fetch() if isinstance(place, RemotePath) else place


def version_of(info: dict[str, Any]) -> str:
    """Text that changes when a remote file does, of what its server says."""
    told = {
        name: str(value)
        for name, value in info.items()
        if value is not None and any(field in name.lower() for field in _VERSION_FIELDS)
    }
    return " ".join(f"{name}={told[name]}" for name in sorted(told))


def byte_limit() -> int:
    """Bytes that all copies together may have: ``CMCR_REMOTE_CACHE_BYTES``, else 64 GB.

    Raises
    ------
    CacheError
        The variable is no size.
    """
    text = os.environ.get(BYTES_VARIABLE, "")
    try:
        return parse_size(text) if text else LIMIT
    except ValueError as error:
        raise CacheError(f"{BYTES_VARIABLE} is {text!r}, no size.", todo="unset it, or give 64GB") from error


def make_room(keep: Path) -> None:
    """Remove the copies that were not used for longest where all together are more than :func:`byte_limit`.

    What is still being fetched is neither counted nor removed.
    """
    limit = byte_limit()
    files = []
    with os.scandir(keep.parent) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process has just made room
                if entry.is_file() and not entry.name.startswith("."):
                    files.append((entry.stat(), Path(entry.path)))
    total = sum(info.st_size for info, _ in files)
    for info, path in sorted(files, key=lambda file: file[0].st_mtime):
        if total <= limit:
            return
        if path != keep:
            path.unlink(missing_ok=True)  # who has it open keeps reading it
            total -= info.st_size


def _not_whole(place: RemotePath, found: int, size: int | None) -> OSError:
    what = "what came fails its check" if size in (None, found) else f"{found} bytes came of {size}"
    return OSError(errno.EIO, f"the download is not whole: {what}", str(place))
