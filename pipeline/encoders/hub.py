"""Network manners: know in seconds whether a download can start, and never let a hub client wait for minutes."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ...cache.errors import CmcrError

TIMEOUT = 5.0


def reachable(url: str, timeout: float = TIMEOUT) -> bool:
    """Whether any answer comes from a URL's host, within ``timeout`` seconds and through the proxies that are set.

    The look-up runs in a thread of its own, because resolving a name can block for longer than any socket timeout.
    """
    if offline_by_choice():
        return False
    answer: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
            answer.append(True)
        except urllib.error.HTTPError:
            answer.append(True)  # the host is there, whatever it thinks of HEAD
        except (OSError, ValueError):
            answer.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout + 1.0)
    return bool(answer) and answer[0]


def offline_by_choice() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def why_away(url: str) -> str | None:
    """Why nothing can be had from a URL's host, in words; None where it answers."""
    if reachable(url):
        return None
    return f"{url} cannot be reached" + (" (offline mode is set)" if offline_by_choice() else "")


def fetch(
    repo: str,
    name: str,
    cache_dir: str | None = None,
    *,
    repo_type: str | None = None,
    missing: Callable[[str], CmcrError],
) -> Path:
    """A file of the hub by its client's own download; the network is asked once and briefly before.

    Raises
    ------
    CmcrError
        What ``missing`` makes of the reason, if the file cannot be had.
    """
    why = why_away(endpoint())
    if why is not None:
        raise missing(why)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, name, repo_type=repo_type, cache_dir=cache_dir))
    except Exception as error:  # hub, network and disk errors share no class in every version of the hub client
        raise missing(f"the download failed: {type(error).__name__}: {error}") from error


def how_to_get(name: str, download: str, use: str, sandbox: str) -> str:
    """What to do where weights are missing: by pull, by hand, or with a sandbox encoder for the time being."""
    return (
        f"on a machine with network: cmcr encoders pull {name}, then copy its HF_HOME here; "
        f"or {download}, then copy the file here and use --encoder {use}; "
        f"to try the job now without any download: --encoder {sandbox}"
    )


def endpoint() -> str:
    """The address of the model hub, HF_ENDPOINT respected."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextmanager
def hub_offline_unless(online: bool) -> Iterator[None]:
    """Within the block the hub client answers from its cache alone, unless ``online``: no retries, no waits."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not online
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def cached_file(
    repo: str, names: list[str], cache_dir: str | None = None, *, repo_type: str | None = None
) -> str | None:
    """Path of the first of ``names`` that the local cache has for a repository, or None; never asks the network."""
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        path = try_to_load_from_cache(repo, name, cache_dir=cache_dir, repo_type=repo_type)
        if isinstance(path, str):
            return path
    return None


def url_target(url: str) -> Path:
    """Where a weights file of a plain address is kept: beside the hub's cache, so that HF_HOME moves both."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "cmcr" / PurePosixPath(urlsplit(url).path).name


def cached_url(url: str) -> Path | None:
    """The file of a plain address where ``cmcr encoders pull`` has fetched it, or None."""
    target = url_target(url)
    return target if target.is_file() else None
