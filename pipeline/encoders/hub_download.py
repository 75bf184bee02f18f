"""A file of the hub into the hub's own cache, so that a transfer that was ended goes on where it stopped.

The hub's client removes its temporary file when it is interrupted (huggingface_hub 2.4.0; its pull request 4228): of a
checkpoint of two gigabytes nothing would be left. Here the bytes are fetched beside their place in the cache, checked
by their hash and named as the client names them; the client then finds them and does the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from .hub import endpoint
from .url_download import download

_SHA256 = re.compile(r"[0-9a-f]{64}")


def hub_file(
    repo: str,
    name: str,
    *,
    repo_type: str | None = None,
    cache_dir: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Path of a file in the hub's cache, fetched where it is not there.

    Parameters
    ----------
    repo, name, repo_type
        As the hub's client takes them.
    cache_dir : str, optional
        Instead of the hub's own cache.
    progress : callable, optional
        Is told bytes done and bytes in all.

    Raises
    ------
    MissingWeightsError
        If the transfer of a large file ends for good; what has come stays for the next call.
    Exception
        What the hub's client raises.
    """
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_download, hf_hub_url

    address = hf_hub_url(repo, name, repo_type=repo_type, endpoint=endpoint())
    about = get_hf_file_metadata(address, timeout=30)
    # Large files carry their SHA-256 as ETag, small ones git's hash: those the client fetches in one go.
    if about.etag is not None and _SHA256.fullmatch(about.etag):
        blob = _blob(repo, repo_type, about.etag, cache_dir)
        if not blob.exists():
            ours = urlsplit(about.location).netloc == urlsplit(endpoint()).netloc
            token = get_token() if ours else None  # a signed address elsewhere is to see no token
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            download(about.location, blob, sha256=about.etag, headers=headers, progress=progress)
    return Path(hf_hub_download(repo, name, repo_type=repo_type, cache_dir=cache_dir, endpoint=endpoint()))


def _blob(repo: str, repo_type: str | None, etag: str, cache_dir: str | None) -> Path:
    """Where the client's cache keeps the bytes of a file, by their hash."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repo, repo_type=repo_type or "model")
    return Path(cache_dir or constants.HF_HUB_CACHE) / folder / "blobs" / etag
