"""Building an open_clip model and its tokenizer from a choice of weights, and telling spaces apart by their tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...cache.errors import CmcrError, EncoderError, MissingWeightsError
from .base import Modality, digest
from .hub import cached_file, offline_by_choice
from .open_clip_weights import Choice, file_of_tag, missing, tag_settings

if TYPE_CHECKING:
    import torch

PAPER_MODEL = ("ViT-B-32-quickgelu", "openai")


class Tokens(NamedTuple):
    """One tokenised text: ids (L,) int64, and how many tokens the whole text has."""

    ids: torch.Tensor
    length: int


def build(choice: Choice, modality: Modality, precision: str, device: str, cache_dir: str | None) -> Any:
    """The model with its weights; every way that open_clip can fail here becomes one of our errors."""
    import open_clip

    settings: dict[str, Any] = {"precision": precision, "device": device, "weights_only": True, "cache_dir": cache_dir}
    if choice.kind in ("tag", "file"):
        file = choice.file or file_of_tag(choice, modality, cache_dir)
        preprocessing = tag_settings(choice.model, choice.like) if choice.like else None
        settings |= {"pretrained": str(file), "force_preprocess_cfg": dict(preprocessing) if preprocessing else None}
    where = str(settings.get("pretrained", choice.model))
    try:
        return open_clip.create_model(choice.model, require_pretrained=True, **settings)
    except CmcrError:
        raise
    except Exception as error:  # unpickling, key, shape, config and hub errors share no class; each is named here
        if choice.kind == "hub" and isinstance(error, (OSError, RuntimeError)):
            raise missing(choice, modality, f"its download failed: {_first_lines(error)}") from error
        if needs_hub(choice) and isinstance(error, OSError):
            raise _missing_text_parts(choice, error) from error
        raise EncoderError(
            f"the weights do not load into {choice.model}: {_first_lines(error)}",
            where=where,
            todo="is it the checkpoint of this model? TorchScript archives and pickled modules are refused; "
            "use the .safetensors of the same weights",
        ) from error


def needs_hub(choice: Choice) -> bool:
    """Whether building the model or its tokenizer asks the hub for anything that its cache lacks."""
    if choice.kind == "folder":
        return False
    if choice.kind == "hub":
        return cached_file(choice.model.removeprefix("hf-hub:"), ["open_clip_config.json"]) is None
    text = config_of(choice).get("text_cfg", {})
    return bool(text.get("hf_model_name") or text.get("hf_tokenizer_name"))


def config_of(choice: Choice) -> dict[str, Any]:
    """The model config of open_clip: towers, widths, context; empty for a model that a hub or a folder describes."""
    from open_clip.factory import get_model_config

    return dict(get_model_config(choice.model) or {})


def tokenizer_of(choice: Choice, network: Any, cache_dir: str | None) -> Any:
    """The model's own tokenizer; refuses one whose vocabulary is not the model's.

    transformers gives a tokenizer of five tokens, and no error, where the vocabulary file cannot be had.
    """
    import open_clip

    try:
        tokenizer = open_clip.get_tokenizer(choice.model, cache_dir=cache_dir)
    except Exception as error:  # hub, file and vocabulary errors share no class
        raise _missing_text_parts(choice, error) from error
    have = int(tokenizer.vocab_size) if hasattr(tokenizer, "vocab_size") else len(tokenizer.tokenizer)
    want = _vocabulary(network)
    if want and not 0.9 * want <= have <= want:
        raise MissingWeightsError(
            f"the tokenizer of {choice.model} has {have} tokens, its model {want}",
            where=choice.model,
            todo="its vocabulary is not on this machine: hf download "
            + str(config_of(choice).get("text_cfg", {}).get("hf_tokenizer_name", "")),
        )
    return tokenizer


def _vocabulary(network: Any) -> int | None:
    """Rows of the text tower's token embedding."""
    import torch

    text = getattr(network, "text", network)
    tables = [m.num_embeddings for m in text.modules() if isinstance(m, torch.nn.Embedding)]
    return max(tables, default=None)


def _missing_text_parts(choice: Choice, error: Exception) -> MissingWeightsError:
    text = config_of(choice).get("text_cfg", {})
    names = {str(text[key]) for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)} or {choice.model}
    why = "offline mode is set" if offline_by_choice() else _first_lines(error)
    return MissingWeightsError(
        f"the text configuration or tokenizer of {choice.model} is not on this machine: {why}",
        where=", ".join(sorted(names)),
        todo="; ".join(f"hf download {name}" for name in sorted(names)) + "; or try --encoder sandbox:clip",
    )


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """What of a tokenizer decides its tokens, for the fingerprint."""
    record: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "context_length": tokenizer.context_length,
        "clean": getattr(getattr(tokenizer, "clean_fn", None), "__name__", None),
    }
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        return {**record, "vocabulary": digest(tokenizer.encoder)}
    return {
        **record,
        "vocabulary": digest(inner.get_vocab()),
        "strip_sep_token": getattr(tokenizer, "strip_sep_token", False),
        "mode": getattr(tokenizer, "tokenizer_mode", ""),
    }


def tokens_of(tokenizer: Any, text: str) -> Tokens:
    """Tokens of one text; its whole length is counted only where the context is full."""
    ids = tokenizer([text])[0]  # (L,)
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        full = int(ids[-1]) != 0
        return Tokens(ids, len(tokenizer.encode(text)) + 2 if full else len(ids))
    if inner.pad_token_id is not None and int(ids[-1]) == inner.pad_token_id:
        return Tokens(ids, len(ids))
    cleaned = tokenizer.clean_fn(text) if hasattr(tokenizer, "clean_fn") else text
    return Tokens(ids, max(len(ids), len(inner(cleaned, truncation=False).input_ids)))


def state_digest(network: Any) -> str:
    """Hash of every tensor of a model, names included: the identity of the space that its towers share."""
    return tensors_digest(network.state_dict())


def tensors_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Hash of named tensors, whatever their order."""
    import torch

    running = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        running.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        running.update(flat.view(torch.uint8).numpy().data)  # no copy of the weights
    return running.hexdigest()


def space_name(choice: Choice, identity: str) -> str:
    """``clip`` for the paper's model; otherwise the model with what tells its weights apart."""
    if (choice.model, choice.tag) == PAPER_MODEL:
        return "clip"
    model = Path(choice.model.split(":", 1)[-1]).name.lower()
    return f"{model}-{choice.tag or identity[:6]}"


def _first_lines(error: BaseException, lines: int = 3) -> str:
    """The beginning of a message, on one line: state-dict errors run to hundreds."""
    kept = [line.strip() for line in str(error).splitlines() if line.strip()][:lines]
    return f"{type(error).__name__}: {' '.join(kept)[:400]}"
