"""Which weights an ``open_clip:`` name means, and where they are: tags, files, hub repositories, local folders."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...cache.errors import EncoderError, MissingWeightsError
from .hub import cached_file, cached_url, endpoint, how_to_get, why_away

FILE_ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".npz")
CUSTOM = "custom"
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Choice:
    """What a name means before anything is read.

    Parameters
    ----------
    kind : {"tag", "file", "hub", "folder"}
        A pretrained tag of open_clip, a local file, a repository of the hub, a local folder with its own configuration.
    model : str
        Name as open_clip takes it, with ``hf-hub:`` or ``local-dir:`` where that is the kind.
    tag : str or None
        The published weights that these are, where the name says so.
    file : Path or None
        For ``file``: the checkpoint.
    like : str or None
        The tag whose preprocessing holds: ``tag``, or for a bare file any tag of a model whose tags all agree.
    """

    kind: Literal["tag", "file", "hub", "folder"]
    model: str
    tag: str | None = None
    file: Path | None = None
    like: str | None = None


def choose(model: str, weights: str | None) -> Choice:
    """Read ``MODEL/TAG``, ``MODEL/FILE``, ``MODEL/TAG@FILE``, ``hf-hub:ORG/REPO`` and ``local-dir:FOLDER``.

    Raises
    ------
    EncoderError
        For an unknown model or tag, a tag of the model with the other activation, or a bare file of a model whose
        published weights disagree on activation or preprocessing (name the tag: ``MODEL/TAG@FILE``).
    MissingWeightsError
        If the file or folder is not there.
    """
    if model.startswith(("hf-hub:", "local-dir:")):
        whole = model if weights is None else f"{model}/{weights}"
        return _choose_folder(whole) if whole.startswith("local-dir:") else Choice("hub", whole)
    _check_model(model)
    if not weights:
        raise EncoderError(f"open_clip:{model} does not say which weights", todo=_tags_of(model))
    tag, at, path = weights.partition("@")
    if at:
        if tag != CUSTOM:
            _check_tag(model, tag)
        claimed = None if tag == CUSTOM else tag
        return Choice("file", model, claimed, _existing(path), claimed or _tag_of_common_preprocessing(model))
    if "/" in weights or weights.endswith(FILE_ENDINGS):
        return Choice("file", model, None, _existing(weights), _tag_of_bare_file(model, weights))
    _check_tag(model, weights)
    return Choice("tag", model, weights, None, weights)


def _choose_folder(model: str) -> Choice:
    folder = Path(model.removeprefix("local-dir:")).expanduser()
    if not (folder / "open_clip_config.json").is_file():
        raise MissingWeightsError(
            f"there is no open_clip_config.json in {folder}",
            todo="give a folder as open_clip writes it: configuration and weights",
        )
    return Choice("folder", f"local-dir:{folder}")


def _existing(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingWeightsError(
            f"there is no weights file {file}", where=path, todo="check the path after the model's name"
        )
    return file


def _check_model(model: str) -> None:
    import open_clip

    models = open_clip.list_models()
    if model not in models:
        near = difflib.get_close_matches(model, models, n=3, cutoff=0.4)
        raise EncoderError(f"open_clip has no model {model!r}", todo=f"nearest: {', '.join(near)}" if near else None)


def _check_tag(model: str, tag: str) -> None:
    from open_clip.pretrained import is_pretrained_cfg, list_pretrained_tags_by_model

    if not is_pretrained_cfg(model, tag):
        near = difflib.get_close_matches(tag, list_pretrained_tags_by_model(model), n=1, cutoff=0.4)
        raise EncoderError(
            f"open_clip has no weights {tag!r} for {model}",
            where=f"open_clip:{model}/{tag}",
            todo=f"did you mean open_clip:{model}/{near[0]}? {_tags_of(model)}" if near else _tags_of(model),
        )
    twin = _twin_with_right_activation(model, tag)
    if twin is not None:
        built, trained = ("QuickGELU", "GELU") if _quick_gelu(model) else ("GELU", "QuickGELU")
        raise EncoderError(
            f"the weights {tag!r} were trained with {trained}, and {model} builds {built}: every vector would be wrong",
            where=f"open_clip:{model}/{tag}",
            todo=f"--encoder open_clip:{twin}/{tag}",
        )


def _twin_with_right_activation(model: str, tag: str) -> str | None:
    """The model that builds the activation that a tag was trained with, where ``model`` builds the other one."""
    from open_clip.pretrained import is_pretrained_cfg

    if bool(tag_settings(model, tag).get("quick_gelu", False)) == _quick_gelu(model):
        return None
    twin = model.removesuffix("-quickgelu") if model.endswith("-quickgelu") else f"{model}-quickgelu"
    return twin if is_pretrained_cfg(twin, tag) else None


def _tag_of_common_preprocessing(model: str) -> str | None:
    """A tag that stands for the preprocessing of a model where its tags agree on it; None: open_clip's default."""
    from open_clip.pretrained import list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(model)
    kinds = {tuple(tag_settings(model, tag)[name] for name in _PREPROCESSING) for tag in tags}
    return tags[0] if len(kinds) == 1 else None


def _tag_of_bare_file(model: str, path: str) -> str | None:
    """A tag that stands for all tags of a model where they agree, None where it has none; refuses a disagreement."""
    from open_clip.pretrained import list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(model)
    kinds = {
        (bool(s.get("quick_gelu", False)), *(s[name] for name in _PREPROCESSING))
        for s in (tag_settings(model, t) for t in tags)
    }
    if len(kinds) <= 1 and not any(_twin_with_right_activation(model, tag) for tag in tags):
        return tags[0] if tags else None
    fitting = [tag for tag in tags if _twin_with_right_activation(model, tag) is None]
    examples = [f"open_clip:{model}/{tag}@{path}" for tag in fitting[:2]]
    if f"{model}-quickgelu" in _all_models():
        examples.append(f"open_clip:{model}-quickgelu/openai@{path}")
    raise EncoderError(
        f"a bare file does not say how it was trained: weights of {model} differ in activation or preprocessing",
        where=path,
        todo=f"name the weights before an @: {', '.join(examples)}; "
        f"for your own training run: open_clip:{model}/{CUSTOM}@{path}",
    )


def _all_models() -> list[str]:
    import open_clip

    return list(open_clip.list_models())


def _quick_gelu(model: str) -> bool:
    from open_clip.factory import get_model_config

    return bool((get_model_config(model) or {}).get("quick_gelu", False))


def tag_settings(model: str, tag: str) -> Mapping[str, Any]:
    """open_clip's record of a tag: where the file is, preprocessing, quick_gelu."""
    from open_clip.pretrained import get_pretrained_cfg

    settings: Mapping[str, Any] = get_pretrained_cfg(model, tag)
    return settings


def _tags_of(model: str) -> str:
    from open_clip.pretrained import list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(model)
    if not tags:
        return f"{model} has no published weights; give a file: open_clip:{model}/path/to/weights.safetensors"
    shown = ", ".join(tags[:8]) + (f" and {len(tags) - 8} more" if len(tags) > 8 else "")
    return f"weights of {model}: {shown}; or a file: open_clip:{model}/path/to/weights.safetensors"


def file_of_tag(choice: Choice, modality: str, cache_dir: str | None = None) -> Path:
    """The checkpoint of a pretrained tag: from the library's own cache, else by the library's own download.

    The network is asked once and briefly before a download starts: a machine without one has its answer in seconds.

    Raises
    ------
    MissingWeightsError
        If the file is not in the cache and cannot be downloaded.
    """
    from open_clip.pretrained import download_pretrained

    settings = tag_settings(choice.model, choice.tag or "")
    repo, names, url = published_file(choice)
    if repo:
        found = cached_file(repo, list(names), cache_dir)
        host = endpoint()
    else:
        local = Path(cache_dir or "~/.cache/clip").expanduser() / Path(url).name
        pulled = cached_url(url)
        found = str(local) if local.is_file() else str(pulled) if pulled else None
        host = url
    if found is not None:
        return Path(found)
    why = why_away(host)
    if why is not None:
        raise missing(choice, modality, why)
    try:
        return Path(download_pretrained(dict(settings), cache_dir=cache_dir))
    except (OSError, RuntimeError, ValueError) as error:
        raise missing(choice, modality, f"the download failed: {error}") from error


def published_file(choice: Choice) -> tuple[str, tuple[str, ...], str]:
    """Repository, file names from the best form down, and plain address of a tag; repository or address is empty."""
    from open_clip.constants import HF_WEIGHTS_NAME
    from open_clip.pretrained import _get_safe_alternatives

    settings = tag_settings(choice.model, choice.tag or "")
    repo, name = _repo_and_file(settings, HF_WEIGHTS_NAME)
    return repo, (*_get_safe_alternatives(name), name) if repo else (), "" if repo else str(settings["url"])


def _repo_and_file(settings: Mapping[str, Any], default: str) -> tuple[str, str]:
    repo, _, name = str(settings.get("hf_hub", "")).rpartition("/")
    return repo, name or default


def name_of(choice: Choice) -> str:
    """The choice as the user would write it."""
    return f"open_clip:{choice.model}" + (f"/{choice.tag}" if choice.tag else "")


def missing(choice: Choice, modality: str, why: str) -> MissingWeightsError:
    """The error of weights that are not here: the file, how to get it, and the sandbox encoder to try instead."""
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    if choice.kind == "hub":
        repo, name = choice.model.removeprefix("hf-hub:"), HF_WEIGHTS_NAME
        bound = "open_clip:local-dir:FOLDER"
    else:
        repo, name = _repo_and_file(tag_settings(choice.model, choice.tag or ""), HF_WEIGHTS_NAME)
        bound = f"open_clip:{choice.model}/{choice.tag}@FILE"
    file = HF_SAFE_WEIGHTS_NAME if name == HF_WEIGHTS_NAME else name
    if choice.kind == "hub":
        get = f"hf download {repo}"  # a folder needs all of it
    else:
        get = f"hf download {repo} {file}" if repo else str(tag_settings(choice.model, choice.tag or "").get("url"))
    return MissingWeightsError(
        f"the weights of {name_of(choice)} are not on this machine, and {why}",
        where=f"{file} of {repo}" if repo else file,
        todo=how_to_get(name_of(choice), get, bound, f"sandbox:clip --modality {modality}"),
    )
