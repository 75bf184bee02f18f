"""Encoded images to RGB, chosen by content, never by name."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ...cache.errors import ItemError

Grey = npt.NDArray[np.float64]
_WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
# what Pillow itself calls a decompression bomb: 179 million pixels
MAX_PIXELS = 2 * 89_478_485


def decode_image(data: bytes, name: str = "") -> Image.Image:
    """Decode an image to RGB as it is meant to be seen.

    EXIF orientation is applied, transparency is laid over white, CMYK becomes RGB, 16-bit, 32-bit and float grey is
    scaled to 8 bits instead of clipped, and of an animation the first frame is taken.

    Parameters
    ----------
    data : bytes
        The encoded file.
    name : str
        For messages.

    Returns
    -------
    PIL.Image.Image
        Mode RGB.

    Raises
    ------
    ItemError
        If the data is empty, no image, truncated, or has more than 179 million pixels.
    """
    if not data:
        raise ItemError("the image is empty (zero bytes)", where=name)
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > MAX_PIXELS:
            raise ItemError(
                f"the image has {picture.width} x {picture.height} pixels, more than {MAX_PIXELS}", where=name
            )
        picture.load()
        return _to_rgb(_oriented(picture))
    except UnidentifiedImageError as error:
        raise ItemError("the data is no image that Pillow can read", where=name) from error
    except Image.DecompressionBombError as error:
        raise ItemError(f"the image is too large: {error}", where=name) from error
    except MemoryError as error:
        raise ItemError("the image does not fit into memory", where=name) from error
    except (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, EOFError, ArithmeticError) as error:
        # what Pillow's format plugins raise for damaged files
        raise ItemError(f"the image cannot be decoded: {error or type(error).__name__}", where=name) from error


def _oriented(picture: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a damaged EXIF block leaves the picture as it is."""
    try:
        return ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError):
        return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    """RGB out of any mode of Pillow."""
    if picture.mode.startswith("I;16"):
        return _scaled(np.asarray(picture, dtype=np.float64) / 65535.0)
    if picture.mode in ("I", "F"):
        depths = (65535.0,) if picture.mode == "I" else (1.0, 255.0, 65535.0)
        return _scaled(_unit_range(np.asarray(picture, dtype=np.float64), depths))
    if picture.mode in _WITH_ALPHA or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _unit_range(grey: Grey, depths: tuple[float, ...]) -> Grey:
    """Wide grey to 0..1: by the first depth that holds its values, else by its own range."""
    if not np.isfinite(grey).all():
        raise ValueError("non-finite pixels")
    low, high = float(grey.min()), float(grey.max())
    for full in depths:
        if low >= 0 and high <= full:
            return grey / full
    return (grey - low) / (high - low)


def _scaled(grey: Grey) -> Image.Image:
    """Grey in 0..1, (H, W), to RGB."""
    return Image.fromarray(np.rint(grey * 255.0).astype(np.uint8)).convert("RGB")
