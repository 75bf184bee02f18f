"""URLs: which texts are some, the fsspec file system behind one, and what its errors mean."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .errors import CacheError, MissingExtraError

_URL = re.compile(r"^(?P<scheme>[a-z][a-z0-9+.-]+):/+(?P<rest>.+)$", re.IGNORECASE)


def as_url(given: str | Path) -> str | None:
    """The URL that a text or path stands for; None for a local path. ``file://`` URLs are local: :func:`local_path`.

    A URL that went through :class:`~pathlib.Path`, which makes one slash of two, is taken as what it was.
    """
    match = _URL.match(str(given))
    if match is None or (isinstance(given, Path) and given.exists()):
        return None
    return f"{match['scheme'].lower()}://{match['rest']}"


def local_path(given: str | Path) -> str | Path:
    """A ``file://`` URL as the path of this machine that it means; everything else as it is."""
    url = as_url(given)
    return f"/{unquote(url.removeprefix('file://'))}" if url is not None and url.startswith("file://") else given


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises
    ------
    MissingExtraError
        The library that reads the protocol is not installed.
    CacheError
        There is no such protocol, or the library refuses the URL or its credentials.
    """
    import fsspec

    scheme = url.partition("://")[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(
            f"{scheme}:// needs a library that is not installed: {' '.join(str(error).split())}",
            where=url,
            todo="pip install 'cmcr[remote]'",
        ) from error
    except ValueError as error:
        raise CacheError(
            f"{scheme}:// cannot be read: {error}", where=url, todo="use s3, gs, http, https, or a local path"
        ) from error
    return filesystem, str(path)


def plain_error(error: BaseException) -> OSError:
    """Any error of a backend as an OSError with one line."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    status = getattr(cause or error, "status", None)
    if isinstance(error, FileNotFoundError) and status in (None, 404) and (cause is None or status == 404):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if isinstance(error, PermissionError) or status in (401, 403):
        return PermissionError(errno.EACCES, "access is refused: are credentials for this service set?")
    if isinstance(error, OSError) and error.errno is not None and error.strerror and cause is None:
        return OSError(error.errno, " ".join(error.strerror.split()))
    said = cause or error
    if status is not None:
        return OSError(errno.EIO, f"the server answers {status} {getattr(said, 'message', '')}".strip())
    return OSError(errno.EIO, " ".join(f"{type(said).__name__}: {said}".split())[:300])
