"""Which weights a ``laion_clap:`` name means, and where they are: published tags and local files."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ...cache.errors import EncoderError, MissingWeightsError
from .base import Modality
from .hub import cached_file, fetch, how_to_get

REPOSITORY = "lukewys/laion_clap"
FILE_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
CUSTOM = "custom"
PAPER_MODEL = ("HTSAT-tiny", "630k-fusion-best")


@dataclass(frozen=True)
class Published:
    """One checkpoint that the authors of CLAP publish: the audio tower that it belongs to, and whether it is fused."""

    model: str
    fused: bool


# github.com/LAION-AI/CLAP, README, "Pretrained Models"; the music checkpoints are of the larger tower.
TAGS = {
    "630k-best": Published("HTSAT-tiny", False),
    "630k-audioset-best": Published("HTSAT-tiny", False),
    "630k-fusion-best": Published("HTSAT-tiny", True),
    "630k-audioset-fusion-best": Published("HTSAT-tiny", True),
    "music_audioset_epoch_15_esc_90.14": Published("HTSAT-base", False),
    "music_speech_epoch_15_esc_89.25": Published("HTSAT-base", False),
    "music_speech_audioset_epoch_15_esc_89.98": Published("HTSAT-base", False),
}
MODELS = tuple(sorted({one.model for one in TAGS.values()}, reverse=True))


@dataclass(frozen=True)
class Choice:
    """What a name means before anything is read.

    Parameters
    ----------
    model : {"HTSAT-tiny", "HTSAT-base"}
    tag : str or None
        The published weights that these are, where the name says so.
    file : Path or None
        The local file, where the name has one.
    """

    model: str
    tag: str | None = None
    file: Path | None = None

    @property
    def fused(self) -> bool | None:
        """Whether the name claims fused weights; None where it claims nothing."""
        return TAGS[self.tag].fused if self.tag else None

    @property
    def space_name(self) -> str | None:
        """``clap`` for the paper's weights, model and tag for other published ones."""
        if (self.model, self.tag) == PAPER_MODEL:
            return "clap"
        return f"clap-{self.model.lower()}-{self.tag}" if self.tag else None


def choose(model: str, weights: str | None) -> Choice:
    """Read ``MODEL/TAG``, ``MODEL/FILE``, ``MODEL/TAG@FILE`` and ``MODEL/custom@FILE``.

    Raises
    ------
    EncoderError
        For an unknown model or tag, or a tag of the other model.
    MissingWeightsError
        If the file is not there.
    """
    if model not in MODELS:
        near = difflib.get_close_matches(model, MODELS, n=1, cutoff=0.3)
        raise EncoderError(
            f"laion_clap has no model {model!r} with published weights",
            where=f"laion_clap:{model}",
            todo=f"did you mean {near[0]}? models: {', '.join(MODELS)}" if near else f"models: {', '.join(MODELS)}",
        )
    if not weights:
        raise EncoderError(f"laion_clap:{model} does not say which weights", todo=_tags_of(model))
    tag, at, path = weights.partition("@")
    if at and (tag == CUSTOM or "/" not in tag):
        if tag != CUSTOM:
            _check_tag(model, tag)
        return Choice(model, None if tag == CUSTOM else tag, _existing(path))
    if tag.removesuffix(".pt") in TAGS and not Path(weights).is_file():
        tag = tag.removesuffix(".pt")
    elif "/" in weights or weights.endswith(FILE_ENDINGS):
        return Choice(model, None, _existing(weights))
    _check_tag(model, tag)
    return Choice(model, tag)


def recorded_name(choice: Choice) -> str:
    """The name as caches and connectors record it: a file without the place where it lies."""
    if choice.file is None:
        return f"laion_clap:{choice.model}/{choice.tag}"
    return f"laion_clap:{choice.model}/" + (f"{choice.tag}@" if choice.tag else "") + choice.file.name


def locate(choice: Choice, modality: Modality, cache_dir: str | None = None) -> Path:
    """The checkpoint: the local file, the hub's cache, the folder that laion_clap downloads to, or a download.

    The network is asked once and briefly before a download starts.

    Raises
    ------
    MissingWeightsError
        If it is not on this machine and cannot be downloaded.
    """
    if choice.file is not None:
        return choice.file
    name = f"{choice.tag}.pt"
    found = cached_file(REPOSITORY, [name], cache_dir) or _beside_the_package(name)
    if found is not None:
        return Path(found)
    return fetch(REPOSITORY, name, cache_dir, missing=lambda why: missing(choice, modality, why))


def missing(choice: Choice, modality: Modality, why: str) -> MissingWeightsError:
    """The error of weights that are not here: the file, how to get it, and the sandbox encoder to try instead."""
    name = f"{choice.tag}.pt"
    return MissingWeightsError(
        f"the weights of {recorded_name(choice)} are not on this machine, and {why}",
        where=f"{name} of {REPOSITORY}",
        todo=how_to_get(
            recorded_name(choice),
            f"hf download {REPOSITORY} {name}",
            f"laion_clap:{choice.model}/{choice.tag}@FILE",
            f"sandbox:clap --modality {modality}",
        ),
    )


def _beside_the_package(name: str) -> str | None:
    """Where ``CLAP_Module.load_ckpt`` puts its downloads: the package's own folder."""
    spec = find_spec("laion_clap")
    folders = (Path(folder) / name for folder in (spec.submodule_search_locations or ()) if spec) if spec else ()
    return next((str(file) for file in folders if file.is_file()), None)


def _existing(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingWeightsError(
            f"there is no weights file {file}", where=path, todo="check the path after the model's name"
        )
    return file


def _check_tag(model: str, tag: str) -> None:
    if tag not in TAGS:
        near = difflib.get_close_matches(tag, TAGS, n=1, cutoff=0.4)
        guess = f"did you mean laion_clap:{TAGS[near[0]].model}/{near[0]}? " if near else ""
        raise EncoderError(
            f"laion_clap has no weights {tag!r}", where=f"laion_clap:{model}/{tag}", todo=guess + _tags_of(model)
        )
    if TAGS[tag].model != model:
        raise EncoderError(
            f"the weights {tag!r} are of {TAGS[tag].model}, not of {model}",
            where=f"laion_clap:{model}/{tag}",
            todo=f"--encoder laion_clap:{TAGS[tag].model}/{tag}",
        )


def _tags_of(model: str) -> str:
    tags = ", ".join(tag for tag, one in TAGS.items() if one.model == model)
    return f"weights of {model}: {tags}; or a file: laion_clap:{model}/path/to/weights.pt"
