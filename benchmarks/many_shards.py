"""What grows with the number of shards: ``python benchmarks/many_shards.py``.

A cache of many tiny shards costs as many files, markers and plan lines as a huge one. For each count the table has what
opening it, planning and resuming on it, claiming and committing in it, and looking keys up cost; the last column is the
growth of the cost of one shard from the smallest count to the largest, which is 1 where nothing is quadratic. Shards
have two rows of eight numbers; fsync is left out, since its price depends on the disk alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from cmcr.cache import fsio
from cmcr.cache.claims import Claims
from cmcr.cache.commit import with_generation
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.marker import data_name, find_marker, marker_bytes, marker_name
from cmcr.cache.plan import Piece, Unit
from cmcr.cache.reader import open_cache
from cmcr.cache.shard import ShardData
from cmcr.cache.verify import verify
from cmcr.cache.writer import CacheWriter

ROWS, DIM, TIMED = 2, 8, 200
MANIFEST = CacheManifest("space", "bench", "text", "bench", "fp", DIM)


def unit(number: int) -> Unit:
    """A unit as one of a text file is."""
    start = number * 100
    piece = Piece("lines", "captions.txt", ROWS, f"{number:032x}", start, start + 100, number * ROWS + 1)
    return Unit(number, (piece,))


def keys_of(number: int) -> list[str]:
    """Keys of a shard."""
    return [f"captions:{ROWS * number + row:09d}" for row in range(ROWS)]


def data(number: int) -> ShardData:
    """Two rows."""
    vectors = np.random.default_rng(number).standard_normal((ROWS, DIM)).astype(np.float32)
    return ShardData(keys_of(number), vectors, captions=["a caption"] * ROWS)


def make(path: Path, count: int) -> None:
    """A finished cache: one shard by the writer, the others as copies of its files under their own names and keys."""
    with CacheWriter.open(path, MANIFEST) as writer:
        writer.append_plan([unit(number) for number in range(count)], ROWS)
        writer.write_shard(unit(0), data(0), expected=ROWS)
    model = find_marker(path, 0)
    assert model is not None
    image = (path / "shards" / model.file).read_bytes()
    for number in range(1, count):
        keys = [key.encode() for key in keys_of(number)]
        own = bytearray(image)
        at = model.key_offset or 0
        own[at : at + ROWS * model.key_length] = b"".join(key.ljust(model.key_length, b"\0") for key in keys)
        (path / "shards" / data_name(number, 0)).write_bytes(own)
        done = replace(with_generation(replace(model, shard=number), 0), identity=unit(number).identity)
        (path / "shards" / marker_name(number)).write_bytes(marker_bytes(done))


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(path: Path, count: int) -> dict[str, float]:
    """Seconds of each operation at one count."""
    found: dict[str, float] = {}
    found["open the cache"] = timed(lambda: open_cache(path))
    cache = open_cache(path)
    found["build the key index"] = timed(lambda: cache.index_of(["captions:000000001"]))
    wanted = [f"captions:{number:09d}" for number in np.random.default_rng(0).integers(0, ROWS * count, TIMED).tolist()]
    cache.index_of(wanted)
    found[f"look {TIMED} keys up"] = timed(lambda: cache.index_of(wanted))
    found["open a writer"] = timed(lambda: CacheWriter.open(path, MANIFEST).close())
    writer = CacheWriter.open(path, MANIFEST)
    found["list what is pending"] = timed(writer.pending)
    found["walk over done shards"] = timed(lambda: list(Claims(writer, [unit(number) for number in range(count)])))
    for number in range(TIMED):
        for name in (marker_name(count - TIMED + number), data_name(count - TIMED + number, 0)):
            (path / "shards" / name).unlink()
    pending = writer.pending()
    assert len(pending) == TIMED

    def work() -> None:
        claims = Claims(writer, pending)
        for one in claims:
            writer.write_shard(one, data(one.shard), expected=ROWS)
            claims.done(one)

    found[f"claim and commit {TIMED}"] = timed(work)
    writer.close()
    found["verify, records only"] = timed(lambda: verify(path, deep=False))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", default="1000,10000,100000")
    given = parser.parse_args()
    fsio.os.fsync = lambda handle: None  # type: ignore[attr-defined]
    counts = [int(count) for count in given.counts.split(",")]
    columns = []
    for count in counts:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "cache"
            made = timed(lambda: make(path, count))  # noqa: B023
            columns.append(measure(path, count))
            plan = (path / "plan-00000.json").stat().st_size
            marker = (path / "shards" / marker_name(0)).stat().st_size
            index = next((path / "index").iterdir()).stat().st_size
            print(
                f"{count:,} shards in {made:.1f} s; a shard has {plan / count:.0f} B of plan, {marker} B of marker; "
                f"{index / count / ROWS:.0f} B of key index a row",
                flush=True,
            )
    print(f"{'':26}" + "".join(f"{count:>14,}" for count in counts) + "   growth a shard")
    for name in columns[0]:
        values = [column[name] for column in columns]
        fixed = str(TIMED) in name
        growth = values[-1] / values[0] / (1 if fixed else counts[-1] / counts[0])
        print(f"{name:26}" + "".join(f"{1e3 * value:11.1f} ms" for value in values) + f"   {growth:14.2f}")


if __name__ == "__main__":
    main()
