"""Two encode workers against two bare forward processes: ``python benchmarks/workers.py``.

Budget: what a second worker adds to the throughput of encoding is at least 0.9 of what a second process adds to that
of bare forward passes. Each worker has one computing thread, one decoding thread and, where the system can pin, one
core; both are loaded and warm before the clock starts. Shards are of one batch, so that claims, commits and waiting
for the other's last shard weigh as much as they can.
The figure is the median of the rounds. The ratio of the best rates stands beside it; a single phase decides that one,
and a scaling above 2 is a failed measurement.

forward 1, 2    one and two processes that do nothing but ``encoder.encode`` on decoded batches, items a second
encode 1, 2     one and two workers on one cache by leases, from the text file to the last marker, items a second
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

BATCH = 2
TEXT = "a small red dog runs after two birds on the street near an old house"


def captions(file: Path, count: int) -> Path:
    """Captions of ordinary length."""
    file.write_text("".join(f"{TEXT} {i}\n" for i in range(count)))
    return file


def worker(pipe: Connection, number: int, name: str) -> None:
    """A process that encodes or only goes forward, as it is told, and answers with the instants of begin and end."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    import torch
    from cmcr.pipeline.encode import encode
    from cmcr.pipeline.encoders.base import Item
    from cmcr.pipeline.encoders.registry import load_encoder

    torch.set_num_threads(1)
    encoder = load_encoder(name, modality="text", device="cpu")
    batch = [encoder.decode(Item(str(i), f"{TEXT} {i}", name="")) for i in range(BATCH)]
    for _ in range(3):
        encoder.encode(batch)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        begin = time.monotonic()
        if order[0] == "forward":
            for _ in range(order[1]):
                encoder.encode(batch)
        else:
            settings = {"modality": "text", "batch_size": BATCH, "shard_size": BATCH, "workers": 1}
            encode(order[1], order[2], encoder=encoder, **settings)
        pipe.send((begin, time.monotonic()))


def run(pipes: list[Connection], order: tuple[Any, ...], items: int) -> float:
    """Items a second of all workers together."""
    for pipe in pipes:
        pipe.send(order)
    spans = [pipe.recv() for pipe in pipes]
    return items / (max(end for _, end in spans) - min(begin for begin, _ in spans))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=24, help="batches of 2 for each process")
    parser.add_argument("--encoder", default="", help="by default ViT-B/32 text with random weights")
    given = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        name = given.encoder
        if not name:
            from encode import clip_weights

            name = clip_weights(folder)
        pairs = [spawn.Pipe() for _ in range(2)]
        crew = [spawn.Process(target=worker, args=(theirs, i, name)) for i, (_, theirs) in enumerate(pairs)]
        for process in crew:
            process.start()
        pipes = [mine for mine, _ in pairs]
        for pipe in pipes:
            pipe.recv()
        items = given.batches * BATCH
        sources = [captions(folder / f"{count}.txt", count * items) for count in (1, 2)]
        print(f"batches of {BATCH}, {given.batches} a process, one thread each, {given.encoder or 'ViT-B/32 text'}")
        print(f"{'round':>5} {'forward 1':>12} {'forward 2':>12} {'encode 1':>12} {'encode 2':>12}   scaling    ratio")
        ratios, best = [], [0.0] * 4
        for number in range(given.rounds):
            rates = []
            for count in (1, 2):
                rates.append(run(pipes[:count], ("forward", given.batches), count * items))
            for count in (1, 2):
                output = folder / f"out-{number}-{count}"
                rates.append(run(pipes[:count], ("encode", sources[count - 1], output), count * items))
            best = [max(pair) for pair in zip(best, rates, strict=True)]
            bare, ours = rates[1] / rates[0], rates[3] / rates[2]
            ratios.append(ours / bare)
            shown = " ".join(f"{rate:10.1f}/s" for rate in rates)
            print(f"{number:5} {shown}   {ours:.2f}/{bare:.2f} {ratios[-1]:8.3f}", flush=True)
        for pipe in pipes:
            pipe.send(None)
        for process in crew:
            process.join()
    kept = best[3] / best[2] / (best[1] / best[0])
    middle = statistics.median(ratios)
    print(f"ratio of the scalings: {middle:.3f} in the median round (budget 0.9), {kept:.3f} by the best rates")


if __name__ == "__main__":
    main()
