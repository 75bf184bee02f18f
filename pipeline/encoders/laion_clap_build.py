"""The original's network, built without its package's hub calls.

``import laion_clap`` asks the hub five times, and waits minutes for it on a machine without network. The networks
themselves are in its sub-package ``clap_module``, which asks nothing until a RoBERTa is made. So that sub-package alone
is imported, under a name of ours: whoever imports laion_clap in the same process finds it untouched.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import types
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache.errors import EncoderError
from .base import Modality
from .laion_clap_checkpoint import brief, check_complete, is_fused
from .torchvision_shim import prepare_torchvision

if TYPE_CHECKING:
    import torch

# config.json of roberta-base
ROBERTA_BASE: dict[str, Any] = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
FUSION = "aff_2d"  # what every official fused checkpoint was trained with (laion_clap/hook.py)
_ALIAS = "_cmcr_clap_module"
_LOCK = threading.Lock()


class _RobertaOfConfig:
    """Stands where the original fetches roberta-base from the hub: the checkpoint brings those weights."""

    device = "cpu"

    @classmethod
    def from_pretrained(cls, name: str) -> Any:
        import torch
        from transformers import RobertaConfig, RobertaModel

        with torch.device(cls.device):
            return RobertaModel(RobertaConfig(**ROBERTA_BASE))


def package_folder() -> Path:
    """Where laion_clap is installed; found without importing it."""
    spec = find_spec("laion_clap")
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if folder is None:
        raise EncoderError("the family laion_clap needs the package laion_clap", todo="pip install laion_clap")
    return Path(folder)


def model_config(model: str) -> dict[str, Any]:
    """The original's description of a model: audio tower, spectrogram, widths."""
    path = package_folder() / "clap_module" / "model_configs" / f"{model}.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def original_model() -> Any:
    """The module ``clap_module.model`` of the installed package, imported once and in no contact with the hub.

    Raises
    ------
    EncoderError
        If laion_clap, or something that it needs, is not installed.
    """
    prepare_torchvision()
    with _LOCK:
        loaded = sys.modules.get(f"{_ALIAS}.model")
        if loaded is not None:
            return loaded
        package = types.ModuleType(_ALIAS)
        # without its __init__, which imports losses, tokenizers and factories
        package.__path__ = [str(package_folder() / "clap_module")]
        sys.modules[_ALIAS] = package
        before = os.environ.get("NUMBA_CACHE_DIR")
        try:
            module: Any = import_module(f"{_ALIAS}.model")
        except ImportError as error:
            for name in [name for name in sys.modules if name.split(".")[0] == _ALIAS]:
                del sys.modules[name]
            raise EncoderError(
                f"laion_clap cannot be imported: {brief(error)}", todo="pip install --upgrade laion_clap transformers"
            ) from error
        finally:
            _restore("NUMBA_CACHE_DIR", before)  # the original points it at /tmp for the whole process
        module.RobertaModel = _RobertaOfConfig
        return module


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def build(model: str, state: Mapping[str, torch.Tensor], path: Path, modality: Modality) -> Any:
    """One tower of the original's ``CLAP`` with the weights of a state dict, loaded strictly, in evaluation mode.

    The state dict has to be that of the whole model; the branch of the other tower is then left out.

    Parameters
    ----------
    model : str
        ``HTSAT-tiny`` or ``HTSAT-base``.
    state : mapping of str to Tensor
        By the model's names; whether it is fused decides whether the model is.
    path : Path
        For messages.
    modality : {"audio", "text"}
        The tower to keep.

    Raises
    ------
    EncoderError
        If a tensor is missing, unknown, or of another shape.
    """
    network = empty_network(model, fused=is_fused(state), text=modality == "text")
    check_complete(state, network.state_dict(), path)
    other = "audio_branch" if modality == "text" else "text_branch"
    setattr(network, other, None)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(f"{other}.")}
    network.load_state_dict(kept, strict=False)  # counted above; position ids of an old transformers may lack
    return network.eval().requires_grad_(False)


def empty_network(model: str, *, fused: bool, text: bool = True) -> Any:
    """The original's ``CLAP`` before any weights; without ``text`` its RoBERTa has shapes and no memory.

    The caller's random state stays as it is.
    """
    import torch

    module = original_model()
    config = model_config(model)
    config["text_cfg"]["model_type"] = "roberta"
    with _LOCK, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.meshgrid's announcement, once a block
        _RobertaOfConfig.device = "cpu" if text else "meta"
        return module.CLAP(**config, enable_fusion=fused, fusion_type=FUSION if fused else "None")


def keep_spectra_exact(network: Any) -> None:
    """Run the spectrogram and the patch embedding in float32 under autocast.

    Spectra of half precision are off by decibels, and the fusion writes its float32 result into rows of the patch
    embedding, which autocast makes half.
    """
    audio = network.audio_branch
    for part in (audio.spectrogram_extractor, audio.logmel_extractor, audio.patch_embed):
        part.forward = _in_float32(part.forward)


def _in_float32(forward: Any) -> Any:
    def run(x: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        import torch

        with torch.autocast(x.device.type, enabled=False):
            result: torch.Tensor = forward(x.float(), *args, **settings)
            return result

    return run
