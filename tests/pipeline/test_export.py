"""Exports hold the rows of the cache, whole or since a generation, and are read by the libraries that they are for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache.errors import CmcrError
from cmcr.cache.importer import import_npy
from cmcr.cache.reader import Cache, open_cache
from cmcr.pipeline.export import export_cache
from cmcr.pipeline.project import project
from cmcr.trainer.connector import Connector

MakeCache = Callable[..., Cache]


def test_npy_and_keys_come_back_through_import(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache("images", 41, shards=(20, 0, 21), keys=[f"über {n}" for n in range(41)])
    report = export_cache(cache, tmp_path / "v.npy")
    assert (report.rows, report.dim, report.files) == (41, 12, (tmp_path / "v.npy", tmp_path / "v.keys.txt"))
    vectors = np.load(tmp_path / "v.npy", allow_pickle=False)
    np.testing.assert_array_equal(vectors, cache.read(0, 41))
    again = import_npy(
        tmp_path / "v.npy", tmp_path / "again", space="clip", modality="image", keys=str(tmp_path / "v.keys.txt")
    )
    assert again.keys() == cache.keys()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_parquet_table_has_every_column(make_cache: MakeCache, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    cache = make_cache("images", 7, captions=["a", None] * 3 + ["b"], meta=[{"n": n} for n in range(7)])
    export_cache(cache, tmp_path / "t.parquet", format="parquet")
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert [row["key"] for row in table] == cache.keys()
    assert [row["caption"] for row in table] == ["a", None, "a", None, "a", None, "b"]
    assert json.loads(table[3]["meta"]) == {"n": 3}
    np.testing.assert_array_equal(np.array([row["vector"] for row in table], np.float32), cache.read(0, 7))


def test_a_faiss_index_answers_in_the_order_of_the_keys(make_cache: MakeCache, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    cache = make_cache("images", 33)
    export_cache(cache, tmp_path / "i.faiss", format="faiss")
    index = faiss.read_index(str(tmp_path / "i.faiss"))
    found = index.search(cache.read(0, 33), 1)[1][:, 0]
    keys = (tmp_path / "i.keys.txt").read_text(encoding="utf-8").splitlines()
    assert [keys[row] for row in found] == cache.keys()


def test_since_takes_the_rows_that_were_appended(
    make_connector: Callable[..., Connector], make_cache: MakeCache, tmp_path: Path
) -> None:
    connector = make_connector()
    raw = make_cache("images", np.eye(12, dtype=np.float32)[:5])
    project(connector, raw, tmp_path / "gallery")
    first = export_cache(tmp_path / "gallery", tmp_path / "a.npy")
    from cmcr.cache.writer import ShardData, write_cache

    shards = [ShardData([f"images/{n:05d}" for n in range(5)], np.eye(12, dtype=np.float32)[:5])]
    shards.append(ShardData(["new/0", "new/1"], np.eye(12, dtype=np.float32)[5:7]))
    import shutil

    shutil.rmtree(raw.path)
    project(connector, write_cache(raw.path, raw.manifest, iter(shards)), tmp_path / "gallery")
    second = export_cache(tmp_path / "gallery", tmp_path / "b.npy", since=first.generation)
    assert (first.rows, second.rows, second.generation) == (5, 2, first.generation + 1)
    assert (tmp_path / "b.keys.txt").read_text(encoding="utf-8") == "new/0\nnew/1\n"
    grown = open_cache(tmp_path / "gallery")
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), grown.gather(["new/0", "new/1"]))
    nothing = export_cache(tmp_path / "gallery", tmp_path / "c.npy", since=second.generation)
    assert np.load(tmp_path / "c.npy").shape == (nothing.rows, 6) == (0, 6)


def test_a_generation_with_shards_to_come_is_exported_again_next_time(make_cache: MakeCache, tmp_path: Path) -> None:
    from cmcr.cache.marker import marker_name

    cache = make_cache("images", 12, shards=(5, 4, 3))
    plan = cache.path / "plan-00000.json"
    record = json.loads(plan.read_text(encoding="utf-8"))
    units = record["units"]
    for generation, part in enumerate((units[:1], units[1:])):  # the second and third shard planned by a second run
        again = {**record, "generation": generation, "units": part}
        plan.with_name(f"plan-{generation:05d}.json").write_text(json.dumps(again), encoding="utf-8")
    last = cache.path / "shards" / marker_name(2)
    marker = last.read_bytes()
    last.unlink()  # the run was killed before it
    first = export_cache(cache.path, tmp_path / "a.npy")
    assert (first.rows, first.generation) == (9, 0), "generation 1 is not finished, so it must come again"
    assert "--since 0" in first.lines()[-1]
    last.write_bytes(marker)
    second = export_cache(cache.path, tmp_path / "b.npy", since=first.generation)
    assert (second.rows, second.generation) == (7, 1)
    (cache.path / "shards" / marker_name(0)).unlink()
    third = export_cache(cache.path, tmp_path / "c.npy")
    assert (third.rows, third.generation) == (7, None)
    assert "next time export everything" in third.lines()[-1]


def test_odd_exports_get_one_clear_line(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache("images", 3)
    for message, about in (
        ("no export format 'csv'", {"output": tmp_path / "x", "format": "csv"}),
        ("generations 0 to 0, not 4", {"output": tmp_path / "x", "since": 4}),
        ("folder of the export does not exist", {"output": tmp_path / "no" / "x"}),
    ):
        with pytest.raises(CmcrError, match=message):
            export_cache(cache, **about)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
