"""Images: every kind becomes RGB as it is meant to be seen, every bad one says why."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache.errors import ItemError
from cmcr.pipeline.decoders.image import decode_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


def encode(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def ramp(dtype: type, top: int) -> np.ndarray:
    return np.linspace(0, top, 256).reshape(16, 16).astype(dtype)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    for format in ("PNG", "TIFF", "PPM"):
        data = encode(Image.fromarray(ramp(np.uint16, 65535)), format)
        grey = np.asarray(decode_image(data))[..., 0]
        assert np.abs(grey.astype(int).ravel() - np.arange(256)).max() <= 1, format


def test_a_dark_sixteen_bit_image_stays_dark() -> None:
    data = encode(Image.fromarray(np.full((4, 4), 300, np.uint16)))
    assert np.asarray(decode_image(data)).max() <= 2


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_float_grey_is_scaled_by_its_depth(top: float) -> None:
    data = encode(Image.fromarray(np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)), "TIFF")
    grey = np.asarray(decode_image(data))[..., 0].astype(int).ravel()
    assert np.abs(grey - np.arange(256)).max() <= 1


def test_non_finite_pixels_are_refused() -> None:
    data = encode(Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "TIFF")
    with pytest.raises(ItemError, match="non-finite"):
        decode_image(data)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode: str) -> None:
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    if mode == "P":
        plain = Image.new("P", (4, 4), 0)
        data = encode(plain, transparency=0)
    else:
        data = encode(picture.convert(mode))
    decoded = decode_image(data)
    assert decoded.mode == "RGB"
    assert np.asarray(decoded).min() == 255


def test_half_transparent_red_becomes_pink() -> None:
    data = encode(Image.new("RGBA", (2, 2), (255, 0, 0, 128)))
    assert decode_image(data).getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("black", (0, 0, 16, 8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(stored, "PNG", exif=exif.tobytes()))
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    for format in ("GIF", "WEBP"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_image(data).getpixel((1, 1)) == (255, 0, 0), format


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "LAB", "I", "F", "RGB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    format = "JPEG" if mode in ("CMYK", "YCbCr") else "TIFF"
    source = Image.new("L" if mode in "IF" else "RGB", (5, 3), 90 if mode in "IF" else (200, 100, 50))
    picture = Image.new("LAB", (5, 3), (150, 20, 40)) if mode == "LAB" else source.convert(mode)
    decoded = decode_image(encode(picture, format))
    assert (decoded.mode, decoded.size) == ("RGB", (5, 3))


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_refused_before_it_unpacks() -> None:
    with pytest.raises(ItemError, match=r"too large|more than"):
        decode_image(png_of_size(100_000, 100_000), "bomb.png")
    with pytest.raises(ItemError, match="truncated"):
        decode_image(png_of_size(100, 100), "short.png")


def test_messages_name_the_item() -> None:
    with pytest.raises(ItemError) as caught:
        decode_image(b"", "a/b.jpg")
    assert "zero bytes" in str(caught.value)
    assert "a/b.jpg" in str(caught.value)


@settings(max_examples=80, deadline=None)
@given(
    format=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
)
def test_a_damaged_image_decodes_or_says_why(format: str, keep: float, flips: list[tuple[int, int]]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 17, 3), dtype=np.uint8)
    data = bytearray(encode(Image.fromarray(noise), format))
    for place, value in flips:
        data[place % len(data)] = value
    try:
        decoded = decode_image(bytes(data[: int(keep * len(data))]), "x")
    except ItemError:
        return
    assert decoded.mode == "RGB"


@pytest.mark.kit
def test_kit_images_end_as_their_manifest_expects(kit: Path) -> None:
    for line in (kit / "raw" / "bad" / "MANIFEST.jsonl").read_text().splitlines():
        entry = json.loads(line)
        path = kit / "raw" / "bad" / entry["file"]
        if path.suffix not in (".jpg", ".png", ".gif"):
            continue
        if entry["expect"].startswith("decodes"):
            assert decode_image(path.read_bytes(), path.name).mode == "RGB", path.name
        else:
            with pytest.raises(ItemError):
                decode_image(path.read_bytes(), path.name)
    bad = kit / "raw" / "bad"
    assert decode_image((bad / "exif_orientation6.jpg").read_bytes()).size == (170, 256)
    assert np.asarray(decode_image((bad / "gray_16bit.png").read_bytes())).mean() < 250


@pytest.mark.kit
def test_every_image_of_the_kit_decodes(kit: Path) -> None:
    paths = sorted((kit / "raw" / "images").iterdir())
    assert len(paths) == 64
    for path in paths:
        assert max(decode_image(path.read_bytes(), path.name).size) <= 256
