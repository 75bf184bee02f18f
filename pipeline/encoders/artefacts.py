"""What an encoder needs on disk: weights, tokenizers, configurations; where they come from, whether they are here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...cache.errors import EncoderError
from ...cache.plugins import is_file_name
from .hub import cached_file, cached_url
from .registry import expand, families, split_name, split_options
from .sentence_folder import cached_folder, carried, is_folder, repository, split_prompt

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
ULIP_REPO = "SFXX/ulip"
ULIP_FOLDER = "ULIP-2/pretrained_models"
# Names of ULIP-2's checkpoints on the hub; the first was published as pointbert_ULIP-2.pt before.
ULIP_FILES = {
    "pointbert_ULIP-2": f"{ULIP_FOLDER}/ULIP-2-PointBERT-8k-xyz-pc-slip_vit_b-objaverse-pretrained.pt",
    "pointbert_ULIP-2_colour": f"{ULIP_FOLDER}/ULIP-2-PointBERT-10k-xyzrgb-pc-vit_g-objaverse_shapenet-pretrained.pt",
}
ULIP_URL = (
    "https://storage.googleapis.com/sfr-ulip-code-release-research/pretrained_models/"
    "ckpt_zero-sho_classification/pointbert_ULIP-2.pt"
)
_AT_URL = ("pointbert_ULIP-2",)


@dataclass(frozen=True)
class Artefact:
    """One thing to fetch.

    Parameters
    ----------
    what : str
        ``weights``, ``tokenizer``, ``configuration`` or ``model`` (a whole repository).
    repo, repo_type : str
        The repository of the hub; empty for a plain address.
    names : tuple of str
        Files of it; none for the whole model.
    take : {"first", "every"}
        The first of ``names`` that the repository has (other forms of the same weights follow), or all that it has.
    url, sha256 : str
        The plain address where there is no repository or it does not answer, and the beginning of the file's hash where
        it is published.
    size : int, optional
        Bytes, about, as published; the true size is asked of the server.
    """

    what: str
    repo: str = ""
    names: tuple[str, ...] = ()
    take: Literal["first", "every"] = "first"
    repo_type: Literal["model", "dataset"] = "model"
    url: str = ""
    sha256: str = ""
    size: int | None = None

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return self.repo or self.url

    def here(self, cache_dir: str | None = None) -> Path | None:
        """The file or folder on this machine, or None; never asks the network."""
        at_url = cached_url(self.url) if self.url else None
        if at_url is not None or not self.repo:
            return at_url
        if not self.names:
            return carried(self.repo) or cached_folder(self.repo, cache_dir)
        wanted = list(self.names) if self.take == "first" else [n for n in self.names if n in VOCABULARIES]
        found = cached_file(self.repo, wanted or list(self.names), cache_dir, repo_type=self.repo_type)
        return Path(found) if found else None


def artefacts_of(name: str) -> tuple[Artefact, ...]:
    """What an encoder name needs from elsewhere; nothing for local files and for weights that ship with cmcr.

    Raises
    ------
    EncoderError
        If the name is unknown, or its family does not say what it needs.
    """
    full = expand(split_options(name)[0])
    if is_file_name(full):
        return ()
    if full in PUBLISHED:
        return PUBLISHED[full]
    family, model, weights = split_name(full)
    if family not in families():
        raise EncoderError(
            f"no encoder family is called {family!r}", where=name, todo="cmcr encoders lists those that there are"
        )
    if family not in _BY_FAMILY:
        raise EncoderError(
            f"the family {family} comes from another package and fetches its weights by itself",
            where=name,
            todo=f"cmcr encoders check {name}",
        )
    return _BY_FAMILY[family](model, weights)


def tokenizer(repo: str) -> Artefact:
    """The tokenizer (and model configuration) of a repository of the hub."""
    return Artefact("tokenizer", repo, TOKENIZER_FILES, "every")


def _open_clip(model: str, weights: str | None) -> tuple[Artefact, ...]:
    from .open_clip_weights import choose, published_file
    from .torchvision_shim import prepare_torchvision

    prepare_torchvision()
    choice = choose(model, weights)
    if choice.kind == "folder":
        return ()
    if choice.kind == "hub":
        repo = choice.model.removeprefix("hf-hub:")
        from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

        files = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
        return (
            Artefact("configuration", repo, ("open_clip_config.json",)),
            Artefact("weights", repo, files),
            tokenizer(repo),
        )
    text = _text_config(choice.model)
    texts = tuple(
        tokenizer(repo)
        for repo in dict.fromkeys(text.get(key) for key in ("hf_model_name", "hf_tokenizer_name"))
        if repo
    )
    if choice.kind == "file":
        return texts
    repo, names, url = published_file(choice)
    return (Artefact("weights", repo, names) if repo else Artefact("weights", url=url), *texts)


def _text_config(model: str) -> dict[str, str]:
    from open_clip.factory import get_model_config

    return dict((get_model_config(model) or {}).get("text_cfg", {}))


def _laion_clap(model: str, weights: str | None) -> tuple[Artefact, ...]:
    from .laion_clap_text import REPOSITORIES
    from .laion_clap_weights import REPOSITORY, choose

    choice = choose(model, weights)
    texts = tokenizer(REPOSITORIES[0])
    if choice.file is not None:
        return (texts,)
    size = 1_860_000_000 if str(choice.tag).startswith("630k") else None
    return (Artefact("weights", REPOSITORY, (f"{choice.tag}.pt",), size=size), texts)


def _ulip(model: str, weights: str | None) -> tuple[Artefact, ...]:
    if weights is not None and _is_local(weights):
        return ()
    stem = (weights or "pointbert_ULIP-2").removesuffix(".pt")
    file = ULIP_FILES.get(stem, f"{ULIP_FOLDER}/{stem}.pt")
    return (Artefact("weights", ULIP_REPO, (file,), repo_type="dataset", url=ULIP_URL if stem in _AT_URL else ""),)


def _sentence(model: str, weights: str | None) -> tuple[Artefact, ...]:
    name, _ = split_prompt(model if weights is None else f"{model}/{weights}", None)
    return () if is_folder(name) else (Artefact("model", repository(name)),)


def _is_local(weights: str) -> bool:
    """Whether weights are written as a file of this machine: a path, or a file that is there."""
    path = weights.rpartition("@")[2]
    return "/" in path or Path(path).is_file()


def _nothing(model: str, weights: str | None) -> tuple[Artefact, ...]:
    return ()


_BY_FAMILY: dict[str, Callable[[str, str | None], tuple[Artefact, ...]]] = {
    "open_clip": _open_clip,
    "laion_clap": _laion_clap,
    "ulip": _ulip,
    "sentence": _sentence,
    "sandbox": _nothing,
}
# What the libraries' own records say of the best known names, so that nothing heavy is imported to list them.
PUBLISHED: dict[str, tuple[Artefact, ...]] = {
    "open_clip:ViT-B-32-quickgelu/openai": (
        Artefact(
            "weights",
            "timm/vit_base_patch32_clip_224.openai",
            ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
            size=605_000_000,
        ),
    ),
    "sentence:all-MiniLM-L6-v2": (Artefact("model", repository("all-MiniLM-L6-v2"), size=91_000_000),),
}
