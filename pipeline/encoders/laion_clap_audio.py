"""From samples to what CLAP's audio tower is fed, with every choice that the original leaves to chance made by key.

The original (Wu et al., arXiv 2211.06687, section 3.2; ``laion_clap/training/data.py``, ``get_audio_features``) crops
sounds of more than ten seconds at a position of numpy's global generator, so that the same file has another vector at
every call. Here the position is a hash of the sample's key: the same on every machine, in every order, in every batch.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ..decoders import Audio, to_mono

if TYPE_CHECKING:
    import torch

Samples = npt.NDArray[np.float32]

POLICY_VERSION = 1
"""Raise it whenever a function below changes its values: it is part of every fingerprint."""

RATE = 48_000
LENGTH = 480_000
"""Samples of an input: ten seconds."""
WINDOW = 1024
HOP = 480
MELS = 64
FRAMES = LENGTH // HOP + 1
_LOW, _HIGH = 50.0, 14_000.0
_FLOOR = 1e-10
_BLOCK = 8192  # frames of one transform: a sound of hours needs no more memory than its spectrum

POLICY: dict[str, int | float | str] = {
    "version": POLICY_VERSION,
    "rate": RATE,
    "length": LENGTH,
    "quantised": "int16, truncated",
    "short": "repeated whole, then zeros",
    "long": "cropped at blake2b(key)",
}
FUSION_POLICY: dict[str, int | float | str] = {
    **POLICY,
    "long": "whole shrunk (bilinear, antialiased) and three chunks at blake2b(key)",
    "window": WINDOW,
    "hop": HOP,
    "mels": MELS,
    "low": _LOW,
    "high": _HIGH,
    "scale": "htk, unnormalised, decibels",
}


class Clip(NamedTuple):
    """One decoded sound.

    ``values`` is float32: samples (LENGTH,) for an unfused model; log-mel spectra (1, FRAMES, MELS) of the whole, or
    (4, FRAMES, MELS) of the shrunk whole and three chunks where the sound is ``longer``, for a fused one.
    """

    values: torch.Tensor
    longer: bool = False


def draw(key: str, what: str, count: int) -> int:
    """A number in 0..count-1 that depends on the key, on what it is for and on nothing else."""
    hashed = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, person=what.encode())
    return int.from_bytes(hashed.digest(), "little") * count >> 64


def at_rate(audio: Audio) -> Samples:
    """Mono samples at RATE, as many as librosa gives the original: rounded up, the last one zero if need be.

    One sample matters: a short sound is repeated, and every repetition would begin elsewhere.
    """
    samples = to_mono(audio, RATE)
    if audio.rate == RATE:
        return samples
    wanted = math.ceil(audio.samples.shape[1] * (RATE / audio.rate))
    return np.pad(samples[:wanted], (0, max(0, wanted - len(samples))))


def quantised(samples: Samples) -> Samples:
    """Through 16-bit integers and back, as the original's training files were: (T,) float32 in -1..1."""
    whole = (np.clip(samples, -1.0, 1.0) * np.float32(32767.0)).astype(np.int16)
    return (whole / 32767.0).astype(np.float32)


def fill(samples: Samples) -> Samples:
    """A short sound repeated as often as it fits whole, then zeros: (LENGTH,)."""
    out = np.zeros(LENGTH, dtype=np.float32)
    times = LENGTH // len(samples)
    out[: times * len(samples)] = np.tile(samples, times)
    return out


def crop(samples: Samples, key: str) -> Samples:
    """LENGTH samples of a long sound, from a position that the key decides."""
    start = draw(key, "crop", len(samples) - LENGTH + 1)
    return samples[start : start + LENGTH]


def waveform(samples: Samples, key: str) -> Samples:
    """Quantised samples of any length (T,) as the unfused tower takes them: (LENGTH,)."""
    return crop(samples, key) if len(samples) > LENGTH else fill(samples)


def unfused_clip(samples: Samples, key: str) -> Clip:
    """Mono samples (T,) at RATE to the input of an unfused model."""
    import torch

    return Clip(torch.from_numpy(np.ascontiguousarray(waveform(quantised(samples), key))))


def fused_clip(samples: Samples, key: str) -> Clip:
    """Mono samples (T,) at RATE to the input of a fused model."""
    import torch

    whole = quantised(samples)
    if len(whole) <= LENGTH:
        return Clip(log_mel(torch.from_numpy(fill(whole)))[None])
    mel = log_mel(torch.from_numpy(whole))  # (F, MELS)
    if len(mel) == FRAMES:  # longer by less than a hop: the original takes it whole
        return Clip(mel[None])
    starts = chunk_starts(len(mel), key)
    chunks = [mel[start : start + FRAMES] for start in starts]
    return Clip(torch.stack([_shrunk(mel), *chunks]), longer=True)


def chunk_starts(frames: int, key: str) -> list[int]:
    """First frames of the chunks from the front, the middle and the back third of a long sound."""
    thirds = np.array_split(np.arange(frames - FRAMES + 1), 3)
    names = ("front", "middle", "back")
    return [
        int(third[draw(key, name, len(third))]) if len(third) else 0 for name, third in zip(names, thirds, strict=True)
    ]


def _shrunk(mel: torch.Tensor) -> torch.Tensor:
    """A whole spectrum (F, MELS) squeezed to (FRAMES, MELS), as torchvision's Resize does it for tensors."""
    import torch

    small = torch.nn.functional.interpolate(
        mel[None, None], size=(FRAMES, MELS), mode="bilinear", align_corners=False, antialias=True
    )
    return small[0, 0]


def log_mel(samples: torch.Tensor) -> torch.Tensor:
    """Log-mel spectrum in decibels: (T,) to (T // HOP + 1, MELS) float32; T is at least WINDOW.

    What the original has from torchaudio: power spectra of a centred Hann window, the mel scale of HTK, no
    normalisation of the filters. (Unfused models use librosa's other scale, and carry its filters in their weights.)
    """
    import torch

    padded = torch.nn.functional.pad(samples[None, None], (WINDOW // 2, WINDOW // 2), mode="reflect")[0, 0]
    bank, window = mel_bank(), torch.hann_window(WINDOW)
    frames = len(samples) // HOP + 1
    parts = []
    for start in range(0, frames, _BLOCK):
        stop = min(start + _BLOCK, frames)
        piece = padded[start * HOP : (stop - 1) * HOP + WINDOW]
        spectra = torch.stft(piece, WINDOW, HOP, window=window, center=False, return_complex=True)  # (W/2+1, n)
        parts.append(spectra.abs().square().T @ bank)  # (n, MELS)
    return 10.0 * torch.log10(torch.cat(parts).clamp(min=_FLOOR))


@lru_cache(maxsize=1)
def mel_bank() -> torch.Tensor:
    """Triangular filters on the mel scale of HTK, unnormalised: (WINDOW / 2 + 1, MELS) float32.

    In float32 throughout, as torchaudio makes them: it is off by a thousandth at the filters' skirts, and a pure tone
    there by 0.006 decibels from exact filters (librosa's), more than vectors may differ from the original's.
    """
    import torch

    low, high = (2595.0 * math.log10(1.0 + edge / 700.0) for edge in (_LOW, _HIGH))  # HTK book, eq. 5.13
    edges = 700.0 * (10.0 ** (torch.linspace(low, high, MELS + 2) / 2595.0) - 1.0)  # (MELS + 2,) hertz
    away = edges[None] - torch.linspace(0, RATE // 2, WINDOW // 2 + 1)[:, None]  # (WINDOW / 2 + 1, MELS + 2)
    gaps = edges[1:] - edges[:-1]
    return torch.minimum(-away[:, :-2] / gaps[:-1], away[:, 2:] / gaps[1:]).clamp(min=0.0)
