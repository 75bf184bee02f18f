"""Which checkpoint a ``ulip:`` name means, where it is, and what model it is of."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from ...cache.errors import EncoderError, MissingWeightsError
from .artefacts import ULIP_FILES, ULIP_REPO, ULIP_URL
from .base import Modality
from .hub import cached_file, cached_url, fetch, how_to_get

FILE_ENDINGS = (".pt", ".pth", ".bin", ".safetensors")
PAPER_TAG = "pointbert_ULIP-2"
SLIP_URL = "https://dl.fbaipublicfiles.com/slip/slip_base_100ep.pt"


@dataclass(frozen=True)
class Choice:
    """What a name means before anything is read: the model, its published tag, or a local file."""

    model: str
    tag: str | None = None
    file: Path | None = None

    @property
    def name(self) -> str:
        """As caches and connectors record it: a file without the place where it lies."""
        return f"ulip:{self.model}/{self.file.name if self.file else self.tag}"

    @property
    def stem(self) -> str:
        """The tag that this is, or is named as."""
        return self.tag or (self.file.stem if self.file else "")


def tags(models: tuple[str, ...]) -> dict[str, str]:
    """Published checkpoints by tag, each with its model; the file's own name is a tag too."""
    xyz, colored = models
    short = {tag: colored if "colour" in tag else xyz for tag in ULIP_FILES}
    return short | {Path(file).stem: short[tag] for tag, file in ULIP_FILES.items()}


def choose(model: str, weights: str | None, models: tuple[str, ...]) -> Choice:
    """Read ``MODEL/TAG`` and ``MODEL/FILE``.

    Raises
    ------
    EncoderError
        For an unknown model or tag, or a tag of the other model.
    MissingWeightsError
        If the file is not there.
    """
    if model not in models:
        near = difflib.get_close_matches(model, models, n=1, cutoff=0.3)
        guess = f"did you mean ulip:{near[0]}? " if near else ""
        raise EncoderError(
            f"ulip has no model {model!r}", where=f"ulip:{model}", todo=f"{guess}models: {', '.join(models)}"
        )
    known = tags(models)
    if not weights:
        raise EncoderError(f"ulip:{model} does not say which weights", todo=_tags_of(model, known))
    path = Path(weights).expanduser()
    if path.is_file():
        return Choice(model, file=path)
    tag = weights.removesuffix(".pt")
    if tag not in known and ("/" in weights or weights.endswith(FILE_ENDINGS)):
        raise MissingWeightsError(
            f"there is no weights file {path}", where=weights, todo="check the path after the model's name"
        )
    if tag not in known:
        raise EncoderError(
            f"ulip has no weights {weights!r}", where=f"ulip:{model}/{weights}", todo=_tags_of(model, known)
        )
    if known[tag] != model:
        raise EncoderError(
            f"the weights {tag!r} are of {known[tag]}, not of {model}",
            where=f"ulip:{model}/{tag}",
            todo=f"--encoder ulip:{known[tag]}/{tag}",
        )
    return Choice(model, tag)


def locate(choice: Choice, modality: Modality, cache_dir: str | None = None) -> Path:
    """The checkpoint: the local file, the hub's cache, what ``cmcr encoders pull`` fetched, or a download.

    The network is asked once and briefly before a download starts.

    Raises
    ------
    MissingWeightsError
        If it is not on this machine and cannot be downloaded.
    """
    if choice.file is not None:
        return choice.file
    file = _published_file(choice)
    found = cached_file(ULIP_REPO, [file], cache_dir, repo_type="dataset")
    older = cached_url(ULIP_URL) if choice.tag == PAPER_TAG else None
    if found is not None or older is not None:
        return Path(found or str(older))
    return fetch(ULIP_REPO, file, cache_dir, repo_type="dataset", missing=lambda why: missing(choice, modality, why))


def missing(choice: Choice, modality: Modality, why: str) -> MissingWeightsError:
    """The error of weights that are not here: the file, where it is published, and the sandbox encoder."""
    file = _published_file(choice)
    old = f" (C-MCR names {PAPER_TAG}.pt: {ULIP_URL})" if choice.tag == PAPER_TAG else ""
    sandbox = "sandbox:clip" if modality == "text" else "sandbox:ulip"
    return MissingWeightsError(
        f"the weights of {choice.name} are not on this machine, and {why}",
        where=f"{file} of the data set {ULIP_REPO}{old}; see github.com/salesforce/ULIP",
        todo=how_to_get(
            choice.name,
            f"hf download {ULIP_REPO} {file} --repo-type dataset",
            f"ulip:{choice.model}/FILE",
            f"{sandbox} --modality {modality}",
        ),
    )


def missing_towers(choice: Choice, modality: Modality, path: Path) -> MissingWeightsError:
    """The error of a checkpoint that carries the point tower alone, where another one is asked for."""
    return MissingWeightsError(
        f"the checkpoint carries no {modality} tower; ULIP's is that of SLIP (ViT-B/16, 100 epochs), kept frozen",
        where=str(path),
        todo=f"fetch {SLIP_URL} and say where it is: --encoder 'ulip:{choice.model}/FILE?towers=slip_base_100ep.pt' "
        "(Python: load_encoder(..., towers=PATH))",
    )


def _published_file(choice: Choice) -> str:
    """Path of a tag's file in its repository."""
    tag = str(choice.tag)
    return ULIP_FILES.get(tag) or next(file for file in ULIP_FILES.values() if Path(file).stem == tag)


def _tags_of(model: str, known: dict[str, str]) -> str:
    fitting = ", ".join(tag for tag, one in known.items() if one == model)
    return f"weights of {model}: {fitting}; or a file: ulip:{model}/path/to/checkpoint.pt"
