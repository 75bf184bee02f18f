"""Fetching what encoders need, on a machine with network: sizes first, resumable, into the libraries' own caches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...cache.errors import CmcrError, EncoderError, MissingWeightsError
from .artefacts import Artefact, artefacts_of
from .hub import endpoint, reachable, url_target, why_away
from .hub_download import hub_file
from .url_download import download, remote_size

Say = Callable[[str], None]
Progress = Callable[[int, int], None]
# Other frameworks' copies of the same weights, and what no model needs to run.
_UNWANTED_ENDINGS = (".onnx", ".ot", ".h5", ".msgpack", ".tflite", ".gguf", ".xml", ".mlmodel", ".png", ".jpg")
_UNWANTED_FOLDERS = ("onnx", "openvino", "coreml", "gguf")


@dataclass(frozen=True)
class Planned:
    """One file that a pull will fetch, or has on this machine already.

    ``size`` is the server's answer in bytes, None where the file is here and nobody was asked.
    """

    encoder: str
    artefact: Artefact
    file: str
    size: int | None
    here: Path | None = None


@dataclass(frozen=True)
class Pulled:
    """One file of a finished pull."""

    encoder: str
    what: str
    file: str
    path: str
    size: int
    state: Literal["fetched", "here"]


@dataclass(frozen=True)
class PullReport:
    """What a pull did."""

    files: tuple[Pulled, ...]
    nothing: tuple[str, ...]
    """Names that need nothing from elsewhere."""

    @property
    def fetched(self) -> int:
        """Bytes of the files that were fetched now."""
        return sum(file.size for file in self.files if file.state == "fetched")


def pull(
    names: Sequence[str], *, cache_dir: str | None = None, say: Say | None = None, progress: Progress | None = None
) -> PullReport:
    """Fetch weights, tokenizers and configurations of encoders.

    A cut transfer goes on where it stopped, within the call and in the next one. Files of the hub go to its cache
    (``HF_HOME``), by way of ``HF_ENDPOINT``; files of plain addresses to the folder ``cmcr`` beside it.

    Parameters
    ----------
    names : sequence of str
        Encoder names, short or full.
    cache_dir : str, optional
        Instead of the hub's own cache.
    say : callable, optional
        Is told each file with its size before it is fetched.
    progress : callable, optional
        Is told bytes done and bytes in all of the file that is being fetched.

    Raises
    ------
    EncoderError
        For an unknown name, before anything is fetched.
    MissingWeightsError
        If the network is off or away, or a file is not where its publisher says; what was fetched stays.
    """
    wanted = [(name, artefacts_of(name)) for name in names]
    nothing = tuple(name for name, artefacts in wanted if not artefacts)
    tell = say or (lambda line: None)
    plan = [one for name, artefacts in wanted for artefact in artefacts for one in _plan(name, artefact, cache_dir)]
    for one in plan:
        if one.here is None:
            tell(_line(one))
    done: list[Pulled] = []
    for one in plan:
        path = one.here or _fetch(one, cache_dir, progress)
        done.append(
            Pulled(
                one.encoder,
                one.artefact.what,
                one.file,
                str(path),
                one.size if one.size is not None else _bytes_at(path),
                "here" if one.here else "fetched",
            )
        )
    return PullReport(tuple(done), nothing)


def pull_repository(repo: str, *, cache_dir: str | None = None) -> Path:
    """The folder of a whole model of the hub, fetched where it is not here."""
    artefact = Artefact("model", repo)
    for one in _plan(repo, artefact, cache_dir):
        if one.here is None:
            _fetch(one, cache_dir, None)
    folder = artefact.here(cache_dir)
    if folder is None:
        raise EncoderError(
            f"{repo} holds no model that sentence-transformers could read",
            where=repo,
            todo="name a repository with config.json or modules.json and weights",
        )
    return folder


def choose_files(listing: Iterable[tuple[str, int | None]]) -> list[tuple[str, int | None]]:
    """Files of a repository that its model needs: no other framework's weights, no second copy of the same weights."""
    kept = [
        (name, size)
        for name, size in listing
        if not name.endswith(_UNWANTED_ENDINGS)
        and not name.startswith(".")
        and not any(part in _UNWANTED_FOLDERS for part in name.split("/")[:-1])
    ]
    safe = {name.rpartition("/")[0] for name, _ in kept if name.endswith(".safetensors")}
    return [(name, size) for name, size in kept if not (name.endswith(".bin") and name.rpartition("/")[0] in safe)]


def _plan(encoder: str, artefact: Artefact, cache_dir: str | None) -> list[Planned]:
    """The files of one artefact with their sizes; asks the server only for what is not here."""
    here = artefact.here(cache_dir)
    if here is not None:
        return [Planned(encoder, artefact, here.name, None, here)]
    host = endpoint() if artefact.repo else artefact.url
    if artefact.repo and artefact.url and not reachable(host) and reachable(artefact.url):
        return _plan(encoder, replace(artefact, repo=""), cache_dir)
    why = why_away(host)
    if why is not None:
        raise MissingWeightsError(
            f"{artefact.what} of {encoder} cannot be fetched: {why}",
            where=artefact.source,
            todo="run this where there is network (a login node), HF_HUB_OFFLINE unset, and share or copy HF_HOME",
        )
    if not artefact.repo:
        return [Planned(encoder, artefact, url_target(artefact.url).name, remote_size(artefact.url))]
    try:
        files = _hub_files(artefact)
    except _hub_errors() as error:
        raise _refused(encoder, artefact, error) from error
    if not files:
        raise MissingWeightsError(
            f"{artefact.repo} has none of: {', '.join(artefact.names)}", where=artefact.repo, todo="check the name"
        )
    return [Planned(encoder, artefact, name, size) for name, size in files]


def _hub_files(artefact: Artefact) -> list[tuple[str, int | None]]:
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    if not artefact.names:
        info: Any = HfApi(endpoint=endpoint()).repo_info(
            artefact.repo, repo_type=artefact.repo_type, files_metadata=True, timeout=30
        )
        return choose_files((entry.rfilename, entry.size) for entry in info.siblings)
    found: list[tuple[str, int | None]] = []
    for name in artefact.names:
        address = hf_hub_url(artefact.repo, name, repo_type=artefact.repo_type, endpoint=endpoint())
        try:
            found.append((name, get_hf_file_metadata(address, timeout=30).size))
        except EntryNotFoundError:
            continue
        if artefact.take == "first":
            break
    return found


def _fetch(one: Planned, cache_dir: str | None, progress: Progress | None) -> Path:
    artefact = one.artefact
    if not artefact.repo:
        return download(artefact.url, url_target(artefact.url), sha256=artefact.sha256, progress=progress)
    try:
        return hub_file(artefact.repo, one.file, repo_type=artefact.repo_type, cache_dir=cache_dir, progress=progress)
    except _hub_errors() as error:
        raise _refused(one.encoder, artefact, error) from error


def _hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises: its own errors, those of its transport, which its version decides, and OSError."""
    from huggingface_hub import errors

    transports: list[type[Exception]] = []
    for module, name in (("httpx", "HTTPError"), ("httpx2", "HTTPError"), ("requests", "RequestException")):
        try:
            transports.append(getattr(__import__(module), name))
        except ImportError:
            continue
    return (OSError, ValueError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError, *transports)


def _refused(encoder: str, artefact: Artefact, error: Exception) -> CmcrError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return MissingWeightsError(
        f"{artefact.what} of {encoder} could not be fetched: {type(error).__name__}: {first}",
        where=artefact.source,
        todo="run the same command again: it goes on where it stopped; a gated repository needs hf auth login first",
    )


def _line(one: Planned) -> str:
    from ..terminal import size

    how_much = size(one.size) if one.size is not None else "size unknown"
    return f"{one.encoder}: {one.artefact.what} {one.file}, {how_much}, from {one.artefact.source}"


def _bytes_at(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
