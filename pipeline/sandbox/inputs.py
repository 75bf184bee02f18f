"""What the sandbox's towers are fed: pixels, log-mel spectra, points, word numbers; for training and use alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.int64]

INPUTS_VERSION = 1
"""Raise it whenever a function below changes its values: it is part of every fingerprint."""

IMAGE_SIDE = 64
AUDIO_RATE = 16_000
AUDIO_SAMPLES = 24_000
MELS = 48
_FFT = 512
_HOP = 200
FRAMES = 1 + AUDIO_SAMPLES // _HOP
_MEL_LOW, _MEL_HIGH = 50.0, 7_900.0
CLOUD_POINTS = 512
_WIDE = 0.16
MAX_WORDS = 24
PAD, UNKNOWN = 0, 1

CONSTANTS: dict[str, float | int | str] = {
    "version": INPUTS_VERSION,
    "image_side": IMAGE_SIDE,
    "image_resize": "bilinear, whole picture, antialiased",
    "audio_rate": AUDIO_RATE,
    "audio_samples": AUDIO_SAMPLES,
    "mels": MELS,
    "fft": _FFT,
    "hop": _HOP,
    "mel_low": _MEL_LOW,
    "mel_high": _MEL_HIGH,
    "cloud_points": CLOUD_POINTS,
    "cloud_surroundings": _WIDE,
    "max_words": MAX_WORDS,
}
"""Everything above that decides a vector, for fingerprints."""


def image_input(image: Image.Image) -> Floats:
    """Scale an RGB picture to (3, IMAGE_SIDE, IMAGE_SIDE) float32 in -1..1; the aspect ratio is not kept."""
    small = image.convert("RGB").resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(small, np.float32).transpose(2, 0, 1) / 127.5 - 1)


def audio_input(samples: Floats) -> Floats:
    """Turn mono samples (T,) at AUDIO_RATE into a log-mel spectrum, (1, MELS, FRAMES) float32.

    Longer sounds keep their first AUDIO_SAMPLES, shorter ones are followed by silence. The loudest sample is scaled to
    one; silence stays silence.
    """
    fixed = np.zeros(AUDIO_SAMPLES, np.float32)
    taken = np.asarray(samples, np.float32)[:AUDIO_SAMPLES]
    fixed[: len(taken)] = taken
    fixed /= max(float(np.abs(fixed).max()), 1e-4)
    padded = np.pad(fixed, _FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]  # (FRAMES, FFT)
    power = np.abs(np.fft.rfft(frames * _window(), axis=1)).astype(np.float32) ** 2  # (FRAMES, FFT / 2 + 1)
    mel = np.log(power @ _mel_bank() + 1e-3)  # (FRAMES, MELS)
    return np.ascontiguousarray((mel.T[None] + 2.0) / 4.0, dtype=np.float32)


def cloud_input(points: Floats) -> Floats:
    """Centre a cloud (N, 3 or more), scale it to the unit ball, choose CLOUD_POINTS: (9, CLOUD_POINTS) float32.

    The choice is a fixed pseudo-random order of the rows; clouds with fewer points repeat them. Only xyz is used. Rows
    0-2 are the places, rows 3-5 and 6-8 how far each point lies from the weighted mean of its wider and nearer
    surroundings.
    """
    xyz = np.asarray(points, np.float32)[:, :3]
    if len(xyz) >= CLOUD_POINTS:
        chosen = np.random.default_rng(0).permutation(len(xyz))[:CLOUD_POINTS]
    else:
        chosen = np.arange(CLOUD_POINTS) % len(xyz)
    middle = (xyz.min(axis=0) + xyz.max(axis=0)) / 2
    radius = float(np.linalg.norm(xyz - middle, axis=1).max())
    at = (xyz[chosen] - middle) / max(radius, 1e-6)  # (CLOUD_POINTS, 3)
    square = (at**2).sum(1)
    apart = square[:, None] + square[None, :] - 2 * at @ at.T
    wide = np.exp(apart * np.float32(-0.5 / _WIDE**2))
    near = np.square(np.square(wide))  # the same kernel at half the radius
    offsets = [at - (kernel @ at) / kernel.sum(1, keepdims=True) for kernel in (wide, near)]
    return np.ascontiguousarray(np.concatenate([at, offsets[0] * 3, offsets[1] * 8], axis=1).T, dtype=np.float32)


def words_of(text: str) -> list[str]:
    """Split a caption into lower-case words and numbers."""
    return re.findall(r"[a-z0-9]+", text.lower())


def text_input(text: str, vocabulary: Mapping[str, int]) -> Words:
    """Turn a caption into word numbers, (MAX_WORDS,) int64, padded with PAD; an empty caption is one UNKNOWN."""
    numbers = [vocabulary.get(word, UNKNOWN) for word in words_of(text)][:MAX_WORDS] or [UNKNOWN]
    out = np.full(MAX_WORDS, PAD, np.int64)
    out[: len(numbers)] = numbers
    return out


def build_vocabulary(captions: Sequence[str], at_least: int = 3) -> list[str]:
    """List the words that occur ``at_least`` times, in alphabetical order; word i has number i + 2."""
    counts: dict[str, int] = {}
    for text in captions:
        for word in words_of(text):
            counts[word] = counts.get(word, 0) + 1
    return sorted(word for word, count in counts.items() if count >= at_least)


def number_words(vocabulary: Sequence[str]) -> dict[str, int]:
    """Number the words of a vocabulary, after PAD and UNKNOWN."""
    return {word: i + 2 for i, word in enumerate(vocabulary)}


@lru_cache(maxsize=1)
def _window() -> Floats:
    return np.hanning(_FFT + 1)[:-1].astype(np.float32)


@lru_cache(maxsize=1)
def _mel_bank() -> Floats:
    """Triangular filters on the HTK mel scale, (FFT / 2 + 1, MELS)."""

    def mel(frequency: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return np.asarray(2595 * np.log10(1 + np.asarray(frequency, np.float64) / 700))

    edges = 700 * (10 ** (np.linspace(mel(_MEL_LOW), mel(_MEL_HIGH), MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(_FFT, 1 / AUDIO_RATE)[:, None]  # (F, 1)
    up = (bins - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[None, 2:] - bins) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(up, down), 0, None).astype(np.float32)
