"""Pictures and sounds of a page, small enough to be mailed with it."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path

from ...cache.errors import CmcrError
from ..decoders import decode_audio, to_mono
from ..tiles import tile_uri

TILE = 176
SECONDS, RATE = 10, 24000  # of a sound on the page


@lru_cache(maxsize=1024)
def picture_uri(modality: str, path: Path) -> str:
    """A picture of an item's file as a data URI; of a sound its envelope."""
    return tile_uri(modality, path, TILE)


@lru_cache(maxsize=1024)
def sound_uri(path: Path) -> str:
    """The first ten seconds of a sound, mono, as a data URI: MP3, or WAV where libsndfile is too old for that.

    Empty where the file cannot be read.
    """
    import soundfile

    try:
        audio = decode_audio(path.read_bytes(), path.name)
    except (CmcrError, OSError):
        return ""
    samples = to_mono(audio, RATE)[: SECONDS * RATE]
    kind, media = ("MP3", "audio/mpeg") if "MP3" in soundfile.available_formats() else ("WAV", "audio/wav")
    data = io.BytesIO()
    soundfile.write(data, samples, RATE, format=kind)
    return f"data:{media};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
