"""Raw items to arrays: images, audio, point clouds. Own decoders only; a bad item raises ItemError with the reason."""

from __future__ import annotations

from .decode_audio import Audio, decode_audio, to_mono
from .decode_image import decode_image
from .decode_points import decode_points

__all__ = ["Audio", "decode_audio", "decode_image", "decode_points", "to_mono"]
