"""Raw items to arrays: images, audio, point clouds. Own decoders only; a bad item raises ItemError with the reason."""

from ...cache.errors import ItemError
from .audio import Audio, decode_audio, to_mono
from .image import decode_image
from .points import decode_points

__all__ = ["Audio", "ItemError", "decode_audio", "decode_image", "decode_points", "to_mono"]
