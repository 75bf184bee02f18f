"""Encode against decoding and the forward pass alone, on the same threads: ``python benchmarks/encode.py``.

Budget (design, section 10): wall time at most 1.05 of decode + forward. Two yardsticks, each over the very batches that
the run makes, from bytes that are in memory already and with nothing written:

serial     a pool decodes a batch, then the batch goes forward, then the next: decode + forward, what the budget names
overlap    the pool decodes everything ahead while batches go forward: what a perfect pipeline would take

Each round runs all three, in another order than the round before, and gives ratios of its own; the table has the median
of the rounds, and of the ratios the smallest and largest too: a spread above the budget's 5% says that the machine was
not quiet enough to tell. The last column is the ratio to serial in processor time, which other processes disturb less
(and which does not see waiting for the disk). Networks have random weights: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, as the command line does
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from cmcr.pipeline.corpora import open_corpus
from cmcr.pipeline.encode import EncodeConfig, encode
from cmcr.pipeline.encoders.base import Encoder, Item
from cmcr.pipeline.encoders.registry import load_encoder
from cmcr.pipeline.encoders.torchvision_shim import prepare_torchvision
from PIL import Image

BATCH, SHARD = 32, 256


def clip_weights(folder: Path) -> str:
    """Name of CLIP ViT-B/32 with random weights in a file of the official keys and shapes."""
    prepare_torchvision()
    import open_clip

    torch.save(open_clip.create_model("ViT-B-32-quickgelu").state_dict(), folder / "clip.pt")
    return f"open_clip:ViT-B-32-quickgelu/openai@{folder / 'clip.pt'}"


def clap_weights(folder: Path) -> str:
    """Name of CLAP HTSAT-tiny, fused, with random weights in a file of the official keys, shapes and nesting."""
    from cmcr.pipeline.encoders.laion_clap_build import empty_network

    state = empty_network("HTSAT-tiny", fused=True).state_dict()
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": t for name, t in state.items()}}, folder / "clap.pt")
    return f"laion_clap:HTSAT-tiny/630k-fusion-best@{folder / 'clap.pt'}"


def pictures(folder: Path, count: int) -> Path:
    """JPEG files of about the size of web pictures."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        small = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(small).resize((512, 384), Image.Resampling.BICUBIC).save(folder / f"{i:05}.jpg", quality=88)
    return folder


def sounds(folder: Path, count: int) -> Path:
    """Stereo sounds of five seconds at 44.1 kHz, so that they are mixed and resampled."""
    import soundfile

    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        noise = random.normal(scale=0.1, size=(5 * 44_100, 2)).astype(np.float32)
        soundfile.write(folder / f"{i:05}.flac", noise, 44_100, subtype="PCM_16")
    return folder


def captions(file: Path, count: int) -> Path:
    """Captions of ordinary length."""
    words = [
        "a",
        "dog",
        "cat",
        "red",
        "car",
        "on",
        "the",
        "street",
        "near",
        "an",
        "old",
        "house",
        "with",
        "two",
        "small",
        "birds",
        "and",
        "some",
        "trees",
    ]
    random = np.random.default_rng(0)
    file.write_text("".join(" ".join(random.choice(words, 12)) + f" {i}\n" for i in range(count)))
    return file


def units_of(source: Path, modality: Any) -> list[list[Item]]:
    """All items in memory, unit by unit as the run has them."""
    corpus = open_corpus([source], modality)
    units = corpus.plan([], SHARD).units
    return [[entry for entry in corpus.read(unit) if isinstance(entry, Item)] for unit in units]


def batches_of(units: list[list[Item]]) -> Iterator[list[Item]]:
    """Fixed batches that never cross a unit."""
    for unit in units:
        yield from (unit[i : i + BATCH] for i in range(0, len(unit), BATCH))


def serial(encoder: Encoder, units: list[list[Item]], workers: int) -> None:
    """Decode a batch on the pool, forward it, and so on."""
    with ThreadPoolExecutor(workers) as pool:
        for batch in batches_of(units):
            encoder.encode(list(pool.map(encoder.decode, batch)))


def overlap(encoder: Encoder, units: list[list[Item]], workers: int) -> None:
    """Decode everything ahead, forward batches as they are ready."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [[pool.submit(encoder.decode, item) for item in batch] for batch in batches_of(units)]
        for batch in futures:
            encoder.encode([future.result() for future in batch])


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(title: str, encoder: Encoder, source: Path, folder: Path, rounds: int) -> float:
    """One row of the table; returns wall / (decode + forward)."""
    config = EncodeConfig(modality=encoder.modality)
    units = units_of(source, encoder.modality)
    encoder.encode([encoder.decode(item) for item in units[0][:BATCH]])

    def whole() -> float:
        shutil.rmtree(folder / "out", ignore_errors=True)
        settings = {"batch_size": BATCH, "shard_size": SHARD, "workers": config.decoders}
        return encode(source, folder / "out", modality=encoder.modality, encoder=encoder, **settings).seconds

    ways: dict[str, Callable[[], float]] = {
        "encode": whole,
        "serial": lambda: timed(lambda: serial(encoder, units, config.decoders)),
        "overlap": lambda: timed(lambda: overlap(encoder, units, config.decoders)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[number % 3 :] + list(ways)[: number % 3]:
            before = time.process_time()
            seconds[name].append(ways[name]())
            processor[name].append(time.process_time() - before)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: sorted(e / other for e, other in zip(seconds["encode"], seconds[name], strict=True))
        for name in ("serial", "overlap")
    }
    items = sum(map(len, units))
    told = [f"{statistics.median(r):6.3f} ({r[0]:.2f}-{r[-1]:.2f})" for r in ratios.values()]
    work = statistics.median(e / other for e, other in zip(processor["encode"], processor["serial"], strict=True))
    print(
        f"{title:20} {items:6} {items / middle['encode']:9.1f}/s {middle['encode']:8.2f} s {middle['serial']:8.2f} s "
        f"{middle['overlap']:8.2f} s {' '.join(told)} {work:8.3f}",
        flush=True,
    )
    return statistics.median(ratios["serial"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--sounds", type=int, default=96)
    parser.add_argument("--only", default="", help="rows of the table whose title holds this")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, shards of {SHARD}")
    columns = ("encode", "serial", "overlap")
    print(
        f"{'':20} {'items':>6} {'rate':>11} "
        + " ".join(f"{c:>10}" for c in columns)
        + f" {'/serial':>18} {'/overlap':>18}"
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sources: dict[str, Callable[[], Path]] = {
            "image": lambda: pictures(folder / "pictures", given.images),
            "text": lambda: captions(folder / "t.txt", given.texts),
            "audio": lambda: sounds(folder / "sounds", given.sounds),
        }
        rows: list[tuple[str, str, Callable[[], str]]] = [
            ("ViT-B/32 image", "image", lambda: clip_weights(folder)),
            ("ViT-B/32 text", "text", lambda: clip_weights(folder)),
            ("HTSAT-tiny audio", "audio", lambda: clap_weights(folder)),
            ("sandbox image", "image", lambda: "sandbox:clip"),
            ("sandbox text", "text", lambda: "sandbox:clip"),
        ]
        made: dict[str, Path] = {}
        ratios = []
        for title, modality, name in rows:
            if given.only in title:
                source = made[modality] if modality in made else sources[modality]()
                made[modality] = source
                encoder = load_encoder(name(), modality=modality)  # type: ignore[arg-type]
                ratios.append(measure(title, encoder, source, folder, given.rounds))
    print(f"worst ratio to decode + forward: {max(ratios):.3f} (budget 1.05)")


if __name__ == "__main__":
    main()
