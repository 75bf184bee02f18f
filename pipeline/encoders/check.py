"""Loading an encoder and encoding one real item: does it work on this machine, and how fast."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass

import numpy as np

from ...cache.errors import EncoderError
from .base import MODALITIES, Encoder, Item, Modality
from .registry import expand, families, load_encoder, split_name, split_options

BATCH = 8
_SANDBOX: dict[str, tuple[Modality, ...]] = {
    "clip": ("text", "image"),
    "clap": ("text", "audio"),
    "ulip": ("pointcloud", "image"),
}


@dataclass(frozen=True)
class Checked:
    """What one tower did.

    Parameters
    ----------
    encoder, modality, space, space_id, dim, fingerprint
        As caches record them.
    item : str
        What was encoded.
    load_seconds, rate : float
        Time to load, and items per second, decoding included, in batches of eight.
    device, precision : str
    """

    encoder: str
    modality: str
    space: str
    space_id: str
    dim: int
    fingerprint: str
    item: str
    load_seconds: float
    rate: float
    device: str
    precision: str


def check(
    name: str, *, modality: Modality | None = None, device: str = "auto", precision: str = "fp32"
) -> list[Checked]:
    """Load an encoder and encode a small built-in item, for one modality or for every tower that its family has.

    Raises
    ------
    EncoderError
        As :func:`load_encoder`; also where a vector is not finite or not of unit length.
    """
    wanted = [modality] if modality else towers_of(name)
    return [_check_one(name, one, device, precision) for one in wanted]


def towers_of(name: str) -> list[Modality | None]:
    """The modalities that a name's towers encode; ``[None]`` where only the encoder itself knows."""
    full = expand(split_options(name)[0])
    family, colon, _ = full.partition(":")
    if not colon or family not in families():
        return [None]
    if family == "sandbox":
        return list(_SANDBOX.get(split_name(full)[1], (None,)))
    return list(families()[family].modalities) or [None]


def sample(modality: Modality) -> Item:
    """A small real item: a caption, picture, sound or point cloud of two bells of the sandbox world."""
    from ..sandbox.grammar import caption
    from ..sandbox.render import image_bytes, render
    from ..sandbox.shapes import sample_cloud
    from ..sandbox.synth import RATE, synthesise
    from ..sandbox.world import Composition

    bells = Composition("bell", "large", "red", "metal", 2)
    rng = np.random.default_rng(0)
    if modality == "text":
        return Item("sample", caption(bells, rng, flavour="both", split="train", complete=True), "sample.txt")
    if modality == "image":
        return Item("sample", image_bytes(render(bells, rng)), "sample.png")
    buffer = io.BytesIO()
    if modality == "audio":
        import soundfile

        soundfile.write(buffer, synthesise(bells, rng), RATE, format="WAV", subtype="PCM_16")
        return Item("sample", buffer.getvalue(), "sample.wav")
    np.save(buffer, sample_cloud(bells, rng), allow_pickle=False)
    return Item("sample", buffer.getvalue(), "sample.npy")


def _check_one(name: str, modality: Modality | None, device: str, precision: str) -> Checked:
    start = time.perf_counter()
    encoder = load_encoder(name, modality=modality, device=device, precision=precision)
    loaded = time.perf_counter()
    if encoder.modality not in MODALITIES:
        raise EncoderError(f"{encoder.name} says that it encodes {encoder.modality!r}", todo=", ".join(MODALITIES))
    item = sample(encoder.modality)
    row = encoder.encode([encoder.decode(item)])[0]
    length = float(np.linalg.norm(row.astype(np.float64)))
    if not np.isfinite(length) or abs(length - 1) > 1e-3:
        raise EncoderError(
            f"the vector of {encoder.name} has length {length:.4f}, not 1",
            where=f"{encoder.modality}: {_told(item)}",
            todo="damaged weights? fetch them again; an encoder of your own must return unit rows",
        )
    return Checked(
        encoder.name,
        encoder.modality,
        encoder.space.name,
        encoder.space.id,
        encoder.dim,
        encoder.fingerprint(),
        _told(item),
        loaded - start,
        _rate(encoder, item),
        str(getattr(encoder, "device", device)),
        precision,
    )


def _rate(encoder: Encoder, item: Item) -> float:
    """Items per second of the second batch of eight; the first warms up."""
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        encoder.encode([encoder.decode(item) for _ in range(BATCH)])
        seconds = time.perf_counter() - start
    return BATCH / max(seconds, 1e-9)


def _told(item: Item) -> str:
    return f"{item.data!r}" if isinstance(item.data, str) else f"{item.name}, {len(item.data):,} bytes"
