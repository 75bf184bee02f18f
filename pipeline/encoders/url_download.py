"""A file of a plain address: resumed by ranges, checked by size and hash, named only when it is whole."""

from __future__ import annotations

import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from ...cache.errors import MissingWeightsError

CHUNK = 1 << 20
TIMEOUT = 30.0


def remote_size(url: str) -> int | None:
    """Bytes of the file at an address as its server says, None where it does not.

    Raises
    ------
    MissingWeightsError
        If the server has no such file.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT) as answer:
            return _number(answer.headers.get("Content-Length"))
    except urllib.error.HTTPError as error:
        raise MissingWeightsError(
            f"the server answers {error.code} {error.reason}", where=url, todo="has the file moved? give it by its path"
        ) from error
    except OSError as error:
        raise _broken(url, error) from error


def download(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    attempts: int = 5,
    headers: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Fetch a file; bytes that are here from before are not fetched again.

    They stand in ``TARGET.part``. A server that does not know ranges sends the whole file anew. A transfer that is cut
    is taken up again at once, ``attempts`` times without progress; then the part stays for the next call. Several
    processes that fetch the same file write the same bytes to the same places.

    Raises
    ------
    MissingWeightsError
        If the file cannot be had or its hash is not ``sha256`` (a beginning suffices); a part with the wrong hash goes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    failures = 0
    while not target.is_file():
        before = part.stat().st_size if part.exists() else 0
        try:
            if _continue(url, part, headers or {}, progress):
                return _named(part, target, url, sha256)
            error: Exception = OSError(f"the transfer ended after {part.stat().st_size:,} bytes")
        except urllib.error.HTTPError as refused:
            if refused.code < 500:
                raise _broken(url, refused) from refused
            error = refused
        except OSError as cut:  # socket and URL errors are OSErrors
            error = cut
        gained = part.exists() and part.stat().st_size > before
        failures = 0 if gained else failures + 1
        if failures >= attempts:
            raise _broken(url, error)
        time.sleep(min(0.1 * 2**failures, 5.0))
    return target


def _named(part: Path, target: Path, url: str, sha256: str) -> Path:
    """The whole file under its name; another process may have been faster."""
    try:
        _check(part, url, sha256)
        part.replace(target)
    except FileNotFoundError:
        if not target.is_file():
            raise
    return target


def _continue(url: str, part: Path, headers: Mapping[str, str], progress: Callable[[int, int], None] | None) -> bool:
    """One request for what is missing; whether the file is whole now."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={**headers, **({"Range": f"bytes={have}-"} if have else {})})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and _number((error.headers.get("Content-Range") or "").rpartition("/")[2]) == have:
            return True  # nothing is missing
        if error.code == 416:  # the part is longer than the file: it is of another one
            part.unlink()
            return False
        raise
    with answer:
        if have and answer.status != 206:
            have = 0  # the server sends everything
        length = _number(answer.headers.get("Content-Length"))
        total = None if length is None else have + length
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress is not None and total:
                    progress(have, total)
            file.flush()
            os.fsync(file.fileno())
    return total is None or have == total


def _check(part: Path, url: str, sha256: str) -> None:
    if not sha256:
        return
    running = hashlib.sha256()
    with part.open("rb") as file:
        while chunk := file.read(CHUNK):
            running.update(chunk)
    if not running.hexdigest().startswith(sha256):
        part.unlink()
        raise MissingWeightsError(
            f"the file has the hash {running.hexdigest()[:12]}, not {sha256[:12]}: it is damaged or another one",
            where=url,
            todo="run the same command again",
        )


def _broken(url: str, error: Exception) -> MissingWeightsError:
    return MissingWeightsError(
        f"the download failed: {type(error).__name__}: {error}",
        where=url,
        todo="run the same command again: it goes on where it stopped",
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
