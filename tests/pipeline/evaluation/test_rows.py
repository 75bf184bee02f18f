"""Rows read in pieces: spooled or from shards, the figures and the memory of an evaluation stay the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import CacheError, CmcrError
from cmcr.cache.reader import Cache
from cmcr.pipeline.evaluate import evaluate
from cmcr.pipeline.evaluation import rows
from cmcr.pipeline.evaluation.results import existing_result, read_result
from cmcr.pipeline.shared import SharedView
from cmcr.trainer.connector import Connector
from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo
from cmcr.trainer.metrics import both_directions
from cmcr.trainer.projectors import ProjectorSpec, build_projector
from cmcr.trainer.ranking import Relevance

Save = Callable[..., Cache]


@pytest.fixture
def connector() -> Connector:
    """A random linear head for the colour space."""
    head = build_projector(ProjectorSpec("affine", 3, 5))
    return Connector({"colours": head}, ConnectorInfo({"colours": SpaceInfo("id-colours", ("audio",), {})}, "toy"))


@pytest.fixture
def sides(save: Save) -> tuple[Cache, Cache]:
    random = np.random.default_rng(0)
    keys = [f"k{n}" for n in range(53)]
    return tuple(save(name, keys, random.standard_normal((53, 3))) for name in ("left", "right"))  # type: ignore[return-value]


def test_a_spooled_side_gives_the_figures_of_one_in_memory(
    sides: tuple[Cache, Cache], connector: Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = evaluate(query=sides[0], gallery=sides[1], connector=connector).to_json()
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    monkeypatch.setattr(rows, "READ_AT_ONCE", 7)
    view = SharedView(sides[0], connector)
    with rows.shared_rows(view) as spooled:
        assert isinstance(spooled, rows.SpooledRows)
        whole = rows.matrix(view)
        assert np.array_equal(spooled.read(3, 50), whole[3:50])
        assert np.array_equal(spooled.take(np.array([52, 0, 0, 9])), whole[[52, 0, 0, 9]])
    assert spooled.file.closed
    got = evaluate(query=sides[0], gallery=sides[1], connector=connector, block=11).to_json()
    for side in ("query_to_gallery", "gallery_to_query"):
        assert got[side].pop("chance") == want[side].pop("chance")
        mine, theirs = got[side].pop("interval"), want[side].pop("interval")
        for name, interval in theirs.items():
            assert mine[name] == pytest.approx(interval), name
        assert got[side] == pytest.approx(want[side])


def test_a_retrieval_result_is_kept_until_caches_pairs_or_settings_change(
    sides: tuple[Cache, Cache], save: Save, tmp_path: Path
) -> None:
    place, pairs = tmp_path / "made" / "r.json", tmp_path / "p.csv"
    pairs.write_text("k1,k2\nk1,k3\n")

    def run(**more: Any) -> Any:
        asked: dict[str, Any] = {"query": sides[0], "gallery": sides[1], "pairs": pairs, "output": place}
        return evaluate(**{**asked, "skip_existing": True, **more})

    first = run()
    before = place.stat().st_mtime_ns
    again = run()
    assert again.to_json() == first.to_json()
    assert again.there == first.there
    assert place.stat().st_mtime_ns == before
    record = read_result(place)
    assert record["query"]["fingerprint"] == "print-left"
    pairs.write_text("k1,k2\nk1,k4\n")
    assert run().to_json()["pairs"] != record["pairs"]
    other = save("other", [f"k{n}" for n in range(53)], np.random.default_rng(1).standard_normal((53, 3)))
    assert run(gallery=other).record["gallery"]["name"] == "other"
    assert run(gallery=other, ks=(1, 2)).there.recall.keys() == {1, 2}
    place.write_text("{ half a file")
    assert run().record["gallery"]["name"] == "right"


def test_a_file_that_is_no_result_says_so(tmp_path: Path) -> None:
    for text, message in (
        ("{", "cannot be read"),
        ("{}", "no result"),
        ('{"format": "cmcr-evaluation"}', "version None"),
    ):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(CmcrError, match=message):
            read_result(tmp_path / "x.json")
        assert existing_result(tmp_path / "x.json", {"protocol": "retrieval"}) is None
    with pytest.raises(CmcrError, match="does not exist"):
        read_result(tmp_path / "gone.json")


def test_an_empty_side_and_two_spaces_are_refused(sides: tuple[Cache, Cache], save: Save) -> None:
    empty = save("empty", [], np.empty((0, 3)))
    for cache, message in (
        (empty, "gallery cache has no rows"),
        (save("far", ["k1"], [[1, 0]], space="x"), "different"),
    ):
        with pytest.raises(CacheError, match=message):
            evaluate(query=sides[0], gallery=cache)


@pytest.mark.kit
def test_the_kits_five_caption_figures_are_reproduced_to_the_printed_digit(kit: Path) -> None:
    home = kit / "clip_minilm"

    def load(name: str) -> np.ndarray:
        return np.load(home / name).astype(np.float32)

    names, targets = load("names_minilm.npy"), load("names_clip_text.npy")
    left, _, right = np.linalg.svd(names.T @ targets, full_matrices=False)
    captions = load("test_captions5_minilm.npy").reshape(2500, -1) @ (left @ right)
    relevance = Relevance.from_rows(np.arange(2500), np.arange(2500) // 5, 2500, 500)
    there, back = both_directions(captions, load("test_image_clip.npy"), relevance, ties="optimistic")
    want = json.loads((home / "baselines.json").read_text())["procrustes_raw"]["five_captions"]
    assert {f"t2i_R@{k}": round(value, 4) for k, value in there.recall.items()} == {
        f"t2i_R@{k}": want[f"t2i_R@{k}"] for k in (1, 5, 10)
    }
    assert {f"i2t_R@{k}": round(value, 4) for k, value in back.recall.items()} == {
        f"i2t_R@{k}": want[f"i2t_R@{k}"] for k in (1, 5, 10)
    }
    assert back.true_recall[1] == pytest.approx(back.recall[1] / 5)  # one of five captions can be first


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
import cmcr
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.writer import ShardData, write_cache

def save(name, seed):
    random, shared = np.random.default_rng(seed), np.random.default_rng(7)
    def shards():
        for start in range(0, 100_000, 25_000):
            rows = shared.standard_normal((25_000, 512), dtype=np.float32)
            rows += 1.5 * random.standard_normal((25_000, 512), dtype=np.float32)
            yield ShardData([f"k{n:06d}" for n in range(start, start + 25_000)], rows.astype(np.float16))
    write_cache(home / name, CacheManifest("declared:x", "x", "image", "made", name, 512, kind="imported"), shards())

home = Path(sys.argv[1])
if sys.argv[2] == "write":
    save("query", 1)
    save("gallery", 2)
else:
    report = cmcr.evaluate(query=home / "query", gallery=home / "gallery", block=4096)
    print(report.there.recall[1], report.back.recall[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_hundred_thousand_against_as_many_takes_less_than_two_gib(tmp_path: Path) -> None:
    for step in ("write", "evaluate"):
        command = [sys.executable, "-c", FULL, str(tmp_path), step]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    there, back, peak = done.stdout.split()
    assert float(there) > 0.9
    assert float(back) > 0.9
    size = int(peak) * (1 if sys.platform == "darwin" else 1024)
    sys.stdout.write(f"peak {size / 2**30:.2f} GiB, imports included\n")
    assert size < 2 << 30
