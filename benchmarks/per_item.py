"""What one item costs on the way past the network: ``python benchmarks/per_item.py``.

Reading, decoding, writing and reading back on one thread, with the bytes that a row takes on disk: the figures of
docs/scale.md. Each line is the median of five runs.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.reader import open_cache
from cmcr.cache.shard import ShardData
from cmcr.cache.writer import write_cache
from cmcr.pipeline.corpora import open_corpus
from cmcr.pipeline.encoders.torchvision_shim import prepare_torchvision
from PIL import Image

TEXT = "a small red dog runs after two birds on the street near an old house"
ROUNDS = 5


def line(what: str, function: Callable[[], object], items: int, unit: str) -> None:
    """Print the median time of an item."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    middle = statistics.median(seconds)
    print(f"{what:44} {1e6 * middle / items:10.2f} us a {unit} {items / middle:14,.0f} /s", flush=True)


def texts(folder: Path, count: int) -> None:
    """A caption file: planned, read, tokenised."""
    import open_clip

    file = folder / "captions.txt"
    file.write_text("".join(f"{TEXT} {number}\n" for number in range(count)))
    corpus = open_corpus([file], "text")
    units = corpus.plan([], 8192).units
    line("plan a text file", lambda: corpus.plan([], 8192), count, "caption")
    line("read its captions", lambda: [sum(1 for _ in corpus.read(unit)) for unit in units], count, "caption")
    tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    some = [f"{TEXT} {number}" for number in range(2000)]
    line("tokenise for CLIP", lambda: [tokenizer([one]) for one in some], len(some), "caption")


def images(folder: Path, count: int) -> None:
    """JPEG files of 512 x 384: planned and read as files, decoded and made ready for CLIP."""
    from open_clip.transform import image_transform

    (folder / "photos").mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        small = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((512, 384), Image.Resampling.BICUBIC)
        picture.save(folder / "photos" / f"{number:05}.jpg", quality=88)
    corpus = open_corpus([folder / "photos"], "image")
    units = corpus.plan([], 8192).units
    line("plan a folder", lambda: corpus.plan([], 8192), count, "file")
    line("read its files", lambda: [sum(1 for _ in corpus.read(unit)) for unit in units], count, "file")
    transform = image_transform(224, is_train=False)
    data = [path.read_bytes() for path in sorted((folder / "photos").iterdir())]
    sizes = sum(map(len, data)) / len(data)

    def decode() -> None:
        for one in data:
            transform(Image.open(io.BytesIO(one)).convert("RGB"))

    line(f"decode a JPEG of 512 x 384 ({sizes / 1000:.0f} kB) to 224", decode, len(data), "image")


def rows(folder: Path, count: int, dim: int) -> None:
    """Shards of 8,192 rows: written with all checks and fsyncs, opened, indexed, read."""
    vectors = np.random.default_rng(0).standard_normal((8192, dim)).astype(np.float32)

    def shard(number: int) -> ShardData:
        keys = [f"captions:{number * 8192 + row:09d}" for row in range(8192)]
        return ShardData(keys, vectors, captions=[f"{TEXT} {key}" for key in keys])

    shards = [shard(number) for number in range(count // 8192)]
    manifest = CacheManifest("space", "bench", "text", "bench", "fp", dim)
    numbers = iter(range(ROUNDS))
    line("write a row", lambda: write_cache(folder / f"c{next(numbers)}", manifest, shards), count, "row")
    cache = open_cache(folder / "c0")
    disk = sum(m.bytes for m in cache.shards) / len(cache)
    line("build the key index", lambda: _index(folder / "c0"), count, "row")
    line("read a row back, in order", lambda: [cache.read(at, at + 8192) for at in range(0, count, 8192)], count, "row")
    keys = cache.keys(np.random.default_rng(1).integers(0, count, 4096))
    line("gather rows by key", lambda: cache.gather(keys), len(keys), "row")
    print(f"a row of {dim} half floats with key and caption: {disk:.0f} B on disk")


def _index(path: Path) -> None:
    for file in (path / "index").glob("*"):
        file.unlink()
    open_cache(path).index_of(["captions:000000001"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=200_000)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rows", type=int, default=16 * 8192)
    parser.add_argument("--dim", type=int, default=512)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    prepare_torchvision()
    with tempfile.TemporaryDirectory() as place:
        texts(Path(place), given.captions)
        images(Path(place), given.images)
        rows(Path(place), given.rows, given.dim)


if __name__ == "__main__":
    main()
