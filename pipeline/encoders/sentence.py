"""The family ``sentence``: text encoders of sentence-transformers, to join a multilingual or domain model to CLIP.

Names
-----
``sentence:all-MiniLM-L6-v2``          a model of the organisation sentence-transformers on the hub
``sentence:ORG/REPO``                  any other repository of the hub
``sentence:FOLDER``                    a local folder as sentence-transformers writes it: ``sentence:./my-model``
``sentence:intfloat/e5-base@query``    with a prompt: a name that the model's configuration lists, or the prompt itself
                                       where it ends in a colon or a space (``sentence:intfloat/e5-base@query: ``)

Pooling, normalisation, case and truncation are those of the model's own configuration: the library reads it. A model
that is on this machine, as a folder, in the hub's cache or carried by a package, is never asked for on the network.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...cache.errors import EncoderError
from .base import Encoder, Item, Modality, Space, Vectors, digest
from .open_clip_build import tensors_digest
from .sentence_folder import folder_of, split_prompt
from .torchvision_shim import prepare_torchvision


class SentenceText(NamedTuple):
    """A decoded text: the text itself, and how many tokens it has with its prompt (0 where nothing is ever cut)."""

    text: str
    length: int


class SentenceFamily:
    """Loads the one tower of ``sentence:MODEL``."""

    name = "sentence"

    def load(
        self,
        model: str,
        weights: str | None,
        *,
        modality: Modality,
        device: str = "cpu",
        precision: str = "fp32",
        prompt: str | None = None,
        cache_dir: str | None = None,
    ) -> Encoder:
        """The text encoder; see the module for the names.

        Parameters
        ----------
        prompt : str, optional
            The same as what may follow an ``@`` in the name.
        cache_dir : str, optional
            Instead of the hub's own cache.

        Raises
        ------
        EncoderError
            If the prompt is not known, or the folder does not load.
        MissingWeightsError
            If the model is not on this machine and cannot be downloaded.
        """
        repo, asked = split_prompt(model if weights is None else f"{model}/{weights}", prompt)
        folder = folder_of(repo, cache_dir)
        network = _network(folder)
        text = _prompt_text(network, asked, repo)
        named = Path(repo).expanduser().name if Path(repo).expanduser().is_dir() else repo
        name = f"sentence:{named}" + (f"@{asked}" if asked else "")
        # Some versions of transformers store the position numbers, others make them.
        stored = {key: value for key, value in network.state_dict().items() if not key.endswith("position_ids")}
        space = Space(tensors_digest(stored), Path(named).name.lower())
        dtype = {"fp32": "float", "bf16": "bfloat16", "fp16": "half"}[precision]
        network = getattr(network, dtype)().to(device).eval().requires_grad_(False)
        return SentenceEncoder(name, space, network, text, device, precision)


def _network(folder: Path) -> Any:
    """The model of a folder in float32 on the CPU, without network and without code of the folder's own."""
    prepare_torchvision()
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        network = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=False)
    except Exception as error:  # configuration, file and shape errors of two libraries share no class
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise EncoderError(
            f"the folder does not load as a sentence-transformers model: {type(error).__name__}: {first}",
            where=str(folder),
            todo="it needs modules.json (or a transformers config.json), weights and tokenizer of one model",
        ) from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    return network.to(torch.float32)


def _prompt_text(network: Any, asked: str | None, repo: str) -> str:
    """The words before every text: of a named prompt, literal ones, or those of the model's own default."""
    prompts: dict[str, str] = {name: text or "" for name, text in (network.prompts or {}).items()}
    if asked is None:
        return prompts.get(network.default_prompt_name or "", "")
    if asked in prompts:
        return prompts[asked]
    if asked.endswith((" ", ":")):
        return asked
    known = ", ".join(name for name, text in prompts.items() if text) or "none"
    raise EncoderError(
        f"{repo} has no prompt called {asked!r}",
        where=f"sentence:{repo}@{asked}",
        todo=f"prompts of its configuration: {known}; or give the words themselves, ending in a colon or a space",
    )


class SentenceEncoder:
    """A sentence-transformers model as the one tower of its space."""

    modality: Modality = "text"

    def __init__(self, name: str, space: Space, network: Any, prompt: str, device: str, precision: str) -> None:
        self.name = name
        self.space = space
        self.device = device
        self.precision = precision
        self.prompt = prompt
        self._network = network
        limit = getattr(network, "max_seq_length", None)
        self.max_tokens = int(limit) if limit is not None and np.isfinite(limit) else None
        # A copy, since the model's own tokenizer is busy in the forward pass; fast ones refuse a second thread.
        self._counter = copy.deepcopy(network.tokenizer)
        self._lock = threading.Lock()
        self.dim = int(self.encode(["a"]).shape[1])

    def fingerprint(self) -> str:
        """Hash of weights, modules (pooling, normalisation), tokenizer, prompt, precision and versions."""
        import sentence_transformers
        import torch
        import transformers

        return digest(
            {
                "family": "sentence",
                "weights": self.space.id,
                "modules": [_describe(module) for module in self._network],
                "tokenizer": _describe_tokenizer(self._counter),
                "max_tokens": self.max_tokens,
                "truncate_dim": getattr(self._network, "truncate_dim", None),
                "prompt": self.prompt,
                "precision": self.precision,
                "versions": {
                    "sentence_transformers": _minor(sentence_transformers.__version__),
                    "transformers": _minor(transformers.__version__),
                    "torch": _minor(torch.__version__),
                },
            }
        )

    def decode(self, item: Item) -> SentenceText:
        """The text, and its length where the model has one that it cuts to."""
        text = item.data if isinstance(item.data, str) else item.data.decode("utf-8")
        return SentenceText(text, self._count(text))

    def encode(self, batch: Sequence[SentenceText | str]) -> Vectors:
        """Texts to vectors (B, D): the model's own pooling, then unit length in float32."""
        import torch

        texts = [entry if isinstance(entry, str) else entry.text for entry in batch]
        with torch.inference_mode():
            pooled = self._network.encode(
                texts, prompt=self.prompt, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
            )
            rows = torch.nn.functional.normalize(pooled.float(), dim=-1)  # (B, D)
        return np.ascontiguousarray(rows.cpu().numpy(), dtype=np.float32)

    def remark(self, decoded: SentenceText) -> tuple[str, str] | None:
        """Says so where a text, prompt included, is longer than the model reads."""
        if self.max_tokens is None or decoded.length <= self.max_tokens:
            return None
        return "TruncatedText", f"{decoded.length} tokens, the first {self.max_tokens} kept"

    def _count(self, text: str) -> int:
        if self.max_tokens is None:
            return 0
        with self._lock:
            whole = f"{self.prompt}{text}".strip()  # as the library strips it
            return len(self._counter(whole, truncation=False, verbose=False)["input_ids"])


def _describe(module: Any) -> dict[str, Any]:
    """Class and settings of one module of the pipeline."""
    settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    plain = json.loads(json.dumps(settings, default=str, sort_keys=True))
    inner = getattr(getattr(module, "auto_model", None), "config", None)
    if inner is not None:
        plain["architecture"] = getattr(inner, "model_type", "")
        plain["activation"] = getattr(inner, "hidden_act", "")
    return {"class": type(module).__name__, **plain}


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """What of a tokenizer decides its tokens: its whole pipeline where it can be written down, else its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        whole = json.loads(backend.to_str())
        return {"pipeline": digest({k: v for k, v in whole.items() if k not in ("truncation", "padding", "version")})}
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    return {"class": type(tokenizer).__name__, "vocabulary": digest(vocabulary)}


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
