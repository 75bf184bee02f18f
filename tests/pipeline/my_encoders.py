"""Encoders for tests of the encode run, loaded as users load theirs: ``my_encoders.py:TextTable``."""

from __future__ import annotations

import os
import signal
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cmcr.cache.errors import ItemError
from cmcr.pipeline.encoders.base import Item, Modality, Space, Vectors

TABLE = np.random.default_rng(7).standard_normal((512, 512)).astype(np.float32)


def unit(rows: Any) -> Vectors:
    array = np.asarray(rows, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


class TextTable:
    """Texts to sums of table rows, 512-d; a text that begins with an exclamation mark is refused as it says.

    ``!item`` ItemError on encoding, ``!value`` ValueError on encoding, ``!nan`` and ``!zero`` bad vectors, ``!decode``
    ItemError on decoding. With ``by_batch`` vectors depend on the size of the batch, as a real network's last bits do.
    """

    name = "text-table"
    modality: Modality = "text"
    space = Space("table-1", "table")
    dim = 512
    by_batch = True
    records = True

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.sizes: list[int] = []

    def fingerprint(self) -> str:
        return "text-table-1"

    def decode(self, item: Item) -> str:
        assert isinstance(item.data, str)
        if item.data.startswith("!decode"):
            raise ItemError("this text says that it cannot be decoded")
        return item.data

    def encode(self, batch: Sequence[str]) -> Vectors:
        if self.records:
            self.seen += batch
            self.sizes.append(len(batch))
        if any(text.startswith("!item") for text in batch):
            raise ItemError("this text says that it cannot be encoded")
        if any(text.startswith("!value") for text in batch):
            raise ValueError("could not encode <object at 0x7f3a>")
        marks = [zlib.crc32(text.encode()) for text in batch]
        rows = TABLE[[m % 512 for m in marks]] + 0.5 * TABLE[[m // 512 % 512 for m in marks]]
        if self.by_batch:
            rows = rows + 0.1 * TABLE[len(batch) % 512]
        rows = unit(rows)
        rows[[text.startswith("!nan") for text in batch], 3] = np.nan
        rows[[text.startswith("!zero") for text in batch]] = 0.0
        return rows


class PlainTable(TextTable):
    """Remembers nothing, so that its memory does not grow."""

    records = False


class OtherTable(TextTable):
    """Another space of another dimension over the same texts."""

    name = "other-table"
    space = Space("table-2", "other")
    dim = 20

    def fingerprint(self) -> str:
        return "other-table-1"

    def encode(self, batch: Sequence[str]) -> Vectors:
        return unit(super().encode(batch)[:, :20])


class SlowTable(TextTable):
    """Takes a few milliseconds a batch, and writes each text that it encodes to the file in CMCR_TEST_SEEN."""

    def encode(self, batch: Sequence[str]) -> Vectors:
        time.sleep(0.004)
        with Path(os.environ["CMCR_TEST_SEEN"]).open("a") as seen:
            seen.write("".join(f"{text}\n" for text in batch))
        return super().encode(batch)


class PacedTable(SlowTable):
    """Takes CMCR_TEST_PACE seconds a batch."""

    def encode(self, batch: Sequence[str]) -> Vectors:
        time.sleep(float(os.environ["CMCR_TEST_PACE"]))
        return super().encode(batch)


class DoomedTable(TextTable):
    """Ends its process by the signal in CMCR_TEST_SIGNAL as it is made."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), int(os.environ["CMCR_TEST_SIGNAL"]))


class VisibleTable(TextTable):
    """Writes the GPUs that a task may see to the file in CMCR_TEST_SEEN; a dry run does not."""

    def __init__(self) -> None:
        super().__init__()
        if "SUBMITIT_LOCAL_JOB_ID" in os.environ:
            with Path(os.environ["CMCR_TEST_SEEN"]).open("a") as seen:
                seen.write(f"{os.environ['CUDA_VISIBLE_DEVICES']}\n")


class Pixels:
    """Images to their 8 x 8 thumbnail, 192-d."""

    name = "pixels"
    modality: Modality = "image"
    space = Space("pixels-1", "pixels")
    dim = 192

    def fingerprint(self) -> str:
        return "pixels-1"

    def decode(self, item: Item) -> Any:
        from cmcr.pipeline.decoders import decode_image

        assert isinstance(item.data, bytes)
        return np.asarray(decode_image(item.data, item.name).resize((8, 8)), dtype=np.float32).reshape(-1) + 1.0

    def encode(self, batch: Sequence[Any]) -> Vectors:
        return unit(np.stack(batch))


class Spectrum(Pixels):
    """Audio to 33 bands of its power spectrum."""

    name = "spectrum"
    modality: Modality = "audio"
    space = Space("spectrum-1", "spectrum")
    dim = 33

    def decode(self, item: Item) -> Any:
        from cmcr.pipeline.decoders import decode_audio

        assert isinstance(item.data, bytes)
        sound = decode_audio(item.data, item.name).samples.mean(axis=0)
        frames = np.resize(sound, (max(1, len(sound) // 64), 64))
        return np.log1p(np.abs(np.fft.rfft(frames)).mean(axis=0)) + 1e-3


class Extent(Pixels):
    """Point clouds to the moments of their coordinates, 12-d."""

    name = "extent"
    modality: Modality = "pointcloud"
    space = Space("extent-1", "extent")
    dim = 12

    def decode(self, item: Item) -> Any:
        from cmcr.pipeline.decoders import decode_points

        assert isinstance(item.data, bytes)
        xyz = decode_points(item.data, item.name)[:, :3]
        return np.concatenate([xyz.mean(axis=0), xyz.std(axis=0), xyz.min(axis=0), xyz.max(axis=0)]) + 1e-3


class MortalTable(PacedTable):
    """The first process to reach the text ``caption 5`` is killed by it; with CMCR_TEST_ALL_DIE every one is."""

    def encode(self, batch: Sequence[str]) -> Vectors:
        if "caption 5" in batch:
            try:
                Path(os.environ["CMCR_TEST_GRAVE"]).touch(exist_ok="CMCR_TEST_ALL_DIE" in os.environ)
            except FileExistsError:
                return super().encode(batch)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(batch)


class PacedText:
    """The sandbox's CLIP for texts, which takes CMCR_TEST_PACE seconds a batch."""

    modality: Modality = "text"

    def __init__(self) -> None:
        from cmcr.pipeline.encoders.registry import load_encoder

        self._inner = load_encoder("sandbox:clip", modality=self.modality)
        self.name, self.space, self.dim = self._inner.name, self._inner.space, self._inner.dim

    def fingerprint(self) -> str:
        return self._inner.fingerprint()

    def decode(self, item: Item) -> Any:
        return self._inner.decode(item)

    def encode(self, batch: Sequence[Any]) -> Vectors:
        time.sleep(float(os.environ["CMCR_TEST_PACE"]))
        return self._inner.encode(batch)


class PacedImage(PacedText):
    """The same for images."""

    modality: Modality = "image"
