"""Two toy spaces with pictures and sounds behind them, connectors, and result files of every kind."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.reader import Cache, open_cache
from cmcr.pipeline.evaluate import evaluate
from cmcr.pipeline.evaluation.space_damage import evaluate_space_damage
from cmcr.pipeline.reporting.values import Entry, Table
from PIL import Image


@dataclass(frozen=True)
class Results:
    """``folder`` holds result files, ``world`` caches and connectors."""

    folder: Path
    world: Path
    query: Cache
    gallery: Cache
    connectors: dict[str, Path]

    def entry(self, run: str, part: str, tables: list[Table]) -> Entry:
        return next(e for t in tables for e in t.entries if e.run.label == run and t.first.part == part)


def write_media(folder: Path, count: int) -> None:
    """A picture and a sound for each item, and a run record that says where they lie."""
    for n in range(count):
        Image.new("RGB", (24, 16), (9 * n % 256, 120, 200)).save(folder / f"item-{n}.png")
        with wave.open(str(folder / f"item-{n}.wav"), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes((np.sin(np.arange(2000) / (n + 2)) * 9000).astype("<i2").tobytes())


def say_root(cache: Cache, root: Path) -> None:
    """What an encode run records: where the sources lie."""
    (Path(cache.path) / "runs").mkdir(exist_ok=True)
    record = json.dumps({"roots": {root.name: str(root)}}) + "\n"
    (Path(cache.path) / "runs" / "1.jsonl").write_text(record)


@pytest.fixture
def results(make_cache: Callable[..., Any], make_connector: Callable[..., Any], tmp_path: Path) -> Results:
    """Retrieval by key of 24 sounds and pictures under two connectors, and damage under both."""
    media = tmp_path / "media"
    media.mkdir()
    write_media(media, 24)
    keys = [f"item-{n}" for n in range(24)]
    meta = [{"label": f"kind {n % 4}"} for n in range(24)]
    query = make_cache(
        "sounds", 24, space="clap", keys=keys, sources=[f"{key}.wav" for key in keys], meta=meta,
        captions=[f"sound <{n}> & more" for n in range(24)],
    )  # fmt: skip
    gallery = make_cache("pictures", 24, keys=keys, sources=[f"{key}.png" for key in keys], meta=meta)
    make_cache("kinds", 4, space="clap", keys=[f"kind {n}" for n in range(4)])
    for cache in (query, gallery):
        say_root(cache, media)
    folder = tmp_path / "results"
    connectors = {name: make_connector(seed).save(tmp_path / f"c-{name}") for seed, name in enumerate(("one", "two"))}
    for name, connector in connectors.items():
        evaluate(query=query, gallery=gallery, connector=connector, output=folder / f"{name}.json")
        evaluate_space_damage(
            connector, tmp_path / "sounds", classes=tmp_path / "kinds", label="label",
            output=folder / "damage" / f"{name}.json",
        )  # fmt: skip
    return Results(folder, tmp_path, open_cache(tmp_path / "sounds"), open_cache(tmp_path / "pictures"), connectors)
