"""Encoded audio to samples, by libsndfile and by content: WAV, FLAC, Ogg, MP3 (also inside WAV), AIFF and more."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.errors import ItemError

# a data chunk of this size or more is the "unknown length" of a header that was written to a pipe
_UNKNOWN_LENGTH = 0x7FFFF000
_BLOCK = 1 << 20
MAX_SAMPLES = 1 << 30
_DATA_CHUNK = re.compile(r"^data\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Audio:
    """Decoded audio: ``samples`` (C, T) float32, finite, nominally in -1..1, at ``rate`` samples a second."""

    samples: npt.NDArray[np.float32]
    rate: int


def decode_audio(data: bytes, name: str = "") -> Audio:
    """Decode audio to float32 samples.

    A file whose header promises more samples than it holds is refused: its vector would silently be that of another
    sound. The open-ended header that programs write into a pipe is accepted.

    Parameters
    ----------
    data : bytes
        The encoded file.
    name : str
        For messages.

    Raises
    ------
    ItemError
        If the data is empty, not audio, truncated, without samples, or has non-finite samples.
    """
    import soundfile

    if not data:
        raise ItemError("the audio is empty (zero bytes)", where=name)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            promised, rate, kind, log = sound.frames, int(sound.samplerate), str(sound.format), str(sound.extra_info)
            frames = _read(sound)  # (T, C)
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ItemError(f"the audio cannot be decoded: {_reason(error)}", where=name) from error
    except MemoryError as error:
        raise ItemError("the audio does not fit into memory", where=name) from error
    _refuse_truncated(len(frames), promised, kind, log, name)
    if not len(frames):
        raise ItemError("the audio has no samples", where=name)
    if rate <= 0:
        raise ItemError(f"the audio has a sample rate of {rate}", where=name)
    bad = int(frames.size - np.count_nonzero(np.isfinite(frames)))
    if bad:
        raise ItemError(f"{bad} of {frames.size} samples are not finite (NaN or infinite)", where=name)
    return Audio(np.ascontiguousarray(frames.T), rate)


def to_mono(audio: Audio, rate: int) -> npt.NDArray[np.float32]:
    """Mean over channels, resampled: (T,) float32 at ``rate``.

    Resampling is soxr's high quality; at least one sample comes out.
    """
    mono: npt.NDArray[np.float32] = audio.samples.mean(axis=0, dtype=np.float64).astype(np.float32)  # (T,)
    if rate == audio.rate:
        return mono
    import soxr

    out = np.asarray(soxr.resample(mono, audio.rate, rate, quality="HQ"), dtype=np.float32)
    return out if len(out) else mono[:1]


def _read(sound: Any) -> npt.NDArray[np.float32]:
    """All samples, (T, C), read in blocks: a header that promises too much must not decide an allocation."""
    blocks: list[npt.NDArray[np.float32]] = [np.empty((0, sound.channels), dtype=np.float32)]
    total = 0
    while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
        total += block.size
        if total > MAX_SAMPLES:
            raise ValueError(f"more than {MAX_SAMPLES} samples")
    samples: npt.NDArray[np.float32] = np.concatenate(blocks)
    return samples


def _refuse_truncated(found: int, promised: int, kind: str, log: str, name: str) -> None:
    """Raise where the header promises more than there is."""
    if kind == "FLAC" and found < promised:
        raise ItemError(f"the audio is truncated: {found} of {promised} samples are there", where=name)
    chunk = _DATA_CHUNK.search(log)
    if chunk and int(chunk.group(2)) < int(chunk.group(1)) < _UNKNOWN_LENGTH:
        raise ItemError(
            f"the audio is truncated: {chunk.group(1)} bytes of samples are promised, {chunk.group(2)} are there",
            where=name,
        )


def _reason(error: Exception) -> str:
    """libsndfile's own sentence, without the name of the buffer."""
    return str(getattr(error, "error_string", "") or error)
