"""From a name to an encoder: ``family:model/weights``, short names, entry points and ``my.py:MyEncoder``."""

from __future__ import annotations

import difflib
import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ...cache.errors import EncoderError
from ...cache.plugins import is_file_name, named_errors
from .base import MODALITIES, Encoder, Family, Modality
from .devices import resolve_device
from .plugins import installed_families, load_family, load_from_file

# The encoders of the paper (C-MCR, arXiv 2305.14381), with the checkpoints that its authors' repository names.
SHORT_NAMES = {
    "clip": "open_clip:ViT-B-32-quickgelu/openai",
    "clap": "laion_clap:HTSAT-tiny/630k-fusion-best",
    "ulip2": "ulip:PointBERT/pointbert_ULIP-2",
    "ulip2-colored": "ulip:PointBERT-Colored/ULIP-2-PointBERT-10k-xyzrgb-pc-vit_g-objaverse_shapenet-pretrained",
}
DEFAULTS: dict[Modality, str] = {"text": "clip", "image": "clip", "audio": "clap", "pointcloud": "ulip2"}
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class FamilyInfo:
    """One line about a family.

    Parameters
    ----------
    name, what : str
        As in ``family:model/weights``, and what it is for.
    home : str
        Module and attribute of the family.
    needs, extra : str, optional
        The package that it imports, and the extra of cmcr that installs it; without extra the core does.
    modalities : tuple of str
        What its towers encode; empty where only the model says.
    """

    name: str
    what: str
    home: str
    needs: str | None = None
    extra: str | None = None
    modalities: tuple[Modality, ...] = ()

    @property
    def install(self) -> str:
        """The one command that adds the family."""
        return f"pip install 'cmcr[{self.extra}]'" if self.extra else "pip install cmcr"

    @property
    def installed(self) -> bool:
        """Whether the package that the family needs is here."""
        return self.needs is None or find_spec(self.needs) is not None


_BUILT_IN = {
    "open_clip": FamilyInfo(
        "open_clip", "CLIP and its kin", ".open_clip:OpenClipFamily", "open_clip", modalities=("text", "image")
    ),
    "laion_clap": FamilyInfo(
        "laion_clap", "CLAP of LAION", ".laion_clap:LaionClapFamily", "laion_clap", modalities=("audio", "text")
    ),
    "ulip": FamilyInfo(
        "ulip", "ULIP-2 with PointBERT", ".ulip:UlipFamily", "timm", modalities=("pointcloud", "image", "text")
    ),
    "sentence": FamilyInfo(
        "sentence",
        "text models of sentence-transformers",
        ".sentence:SentenceFamily",
        "sentence_transformers",
        "sentence",
        ("text",),
    ),
    "sandbox": FamilyInfo(
        "sandbox", "tiny encoders of the made-up world: all four modalities", ".sandbox:SandboxFamily"
    ),
}


def families() -> dict[str, FamilyInfo]:
    """Every family by name: the built-in ones, then those of installed packages."""
    others = {
        name: FamilyInfo(name, "from an installed package", point.value)
        for name, point in sorted(installed_families().items())
        if name not in _BUILT_IN
    }
    return {**_BUILT_IN, **others}


def default_encoder(modality: Modality) -> str:
    """The full name of the encoder that a modality has when none is named."""
    return SHORT_NAMES[DEFAULTS[_known_modality(modality)]]


def load_encoder(
    name: str | None = None,
    *,
    modality: Modality | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    **options: Any,
) -> Encoder:
    """Load one tower of a frozen model.

    Parameters
    ----------
    name : str, optional
        ``family:model/weights``, a short name (``clip``, ``clap``, ``ulip2``) or ``my.py:MyEncoder``; without one, the
        modality's default.
    modality : {"text", "image", "audio", "pointcloud"}, optional
        The tower. When not said: text for families, the class's own for ``my.py:MyEncoder``.
    device : str
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for the best that is there.
    precision : {"fp32", "bf16", "fp16"}
        Of the forward pass; vectors are float32 in any case.
    options
        Settings of the family, such as ``cache_dir`` for open_clip; a name may carry them too, as texts:
        ``ulip2?points=4096``.

    Raises
    ------
    EncoderError
        If the name is unknown, the family is not installed, or the encoder has no such tower.
    MissingWeightsError
        If the weights are not on this machine and cannot be had.
    DeviceError
        If the device is not known or not on this machine.
    """
    if precision not in PRECISIONS:
        raise EncoderError(f"no precision is called {precision!r}", todo=f"one of: {', '.join(PRECISIONS)}")
    if modality is not None:
        _known_modality(modality)
    if name is not None and is_file_name(name):
        encoder = load_from_file(name, modality=modality, device=device, precision=precision, **options)
    else:
        modality = modality or "text"
        bare, named = split_options(name or DEFAULTS[modality])
        full = expand(bare)
        family, model, weights = split_name(full)
        load = _family(family, full).load
        options = {**named, **options}
        _refuse_unknown(options, load, full)
        device = resolve_device(device)
        if family in _BUILT_IN:
            _refuse_request(_BUILT_IN[family], modality, device, precision)
        with nullcontext() if family in _BUILT_IN else named_errors(EncoderError, f"loading {full}", full):
            encoder = load(model, weights, modality=modality, device=device, precision=precision, **options)
    if modality is not None and encoder.modality != modality:
        raise EncoderError(
            f"{encoder.name} encodes {encoder.modality}, not {modality}",
            todo=f"--modality {encoder.modality}, or another encoder for {modality}",
        )
    return encoder


def expand(name: str) -> str:
    """The full name behind a short one; other names are returned as they are."""
    return SHORT_NAMES.get(name, name)


def split_options(name: str) -> tuple[str, dict[str, str]]:
    """``family:model/weights?option=value&other=value`` into the name and its options."""
    bare, mark, rest = name.partition("?")
    pairs = [pair.partition("=") for pair in rest.split("&")] if mark else []
    for option, equals, _ in pairs:
        if not option.isidentifier() or not equals:
            raise EncoderError(
                f"{option + equals!r} is no option", where=name, todo="write options as NAME?option=value&other=value"
            )
    return bare, {option: value for option, _, value in pairs}


def _refuse_unknown(options: dict[str, Any], load: Any, full: str) -> None:
    """Refuse options that a family's load does not take, with those that it takes."""
    taken = inspect.signature(load).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    known = [name for name in taken if name not in ("model", "weights", "modality", "device", "precision")]
    for option in options:
        if option not in known:
            raise EncoderError(
                f"{full.partition(':')[0]} has no option {option!r}",
                where=full,
                todo=f"its options: {', '.join(known) or 'none'}",
            )


def _refuse_request(info: FamilyInfo, modality: Modality, device: str, precision: str) -> None:
    """Refuse what a family of ours cannot do, before anything heavy is imported."""
    if info.modalities and modality not in info.modalities:
        raise EncoderError(
            f"{info.name} has no {modality} tower; it encodes {' and '.join(info.modalities)}",
            todo=f"--encoder {DEFAULTS[modality]} encodes {modality}, and so do sandbox encoders",
        )
    if precision == "fp16" and device == "cpu":
        raise EncoderError("fp16 is unusably slow on a CPU", todo="--precision fp32 or bf16")


def split_name(name: str) -> tuple[str, str, str | None]:
    """``family:model/weights`` into its three parts; the first slash divides model and weights, which may be a path."""
    family, colon, rest = name.partition(":")
    if not colon or not rest:
        raise _unknown(name)
    model, slash, weights = rest.partition("/")
    return family, model, weights if slash else None


def _family(family: str, full: str) -> Family:
    info = _BUILT_IN.get(family)
    if info is None:
        point = installed_families().get(family)
        if point is None:
            raise _unknown(full)
        return load_family(point)
    if not info.installed:
        raise EncoderError(f"the family {family} needs the package {info.needs}", where=full, todo=info.install)
    module, _, attribute = info.home.partition(":")
    found = getattr(import_module(module, __package__), attribute)
    return found() if isinstance(found, type) else found  # type: ignore[no-any-return]


def _unknown(name: str) -> EncoderError:
    """An error that suggests the nearest name."""
    family, colon, rest = name.partition(":")
    known = [*families(), *SHORT_NAMES]
    near = difflib.get_close_matches(family.lower(), known, n=1, cutoff=0.5)
    if near and near[0] in families():
        guess = f"did you mean {near[0]}:{rest or 'MODEL/WEIGHTS'}?"
    elif near:
        guess = f"did you mean {near[0]}?"
    elif not colon and "/" in name:
        guess = f"did you mean open_clip:{name}?"
    else:
        guess = f"families: {', '.join(families())}; short names: {', '.join(SHORT_NAMES)}; or my.py:MyEncoder"
    what = (
        f"no encoder family is called {family!r}"
        if colon
        else f"{name!r} is not an encoder name (family:model/weights)"
    )
    return EncoderError(what, where=name, todo=guess)


def _known_modality(modality: Modality) -> Modality:
    if modality in MODALITIES:
        return modality
    near = difflib.get_close_matches(str(modality), MODALITIES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(MODALITIES)}"
    raise EncoderError(f"no modality is called {modality!r}", todo=hint)
