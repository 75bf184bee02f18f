"""The bytes of a small cache, fixed: a change here is a change of the format."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from cmcr.cache.errors import CacheError
from cmcr.cache.ledger import Failure
from cmcr.cache.manifest import CacheManifest, read_manifest, read_plan
from cmcr.cache.plan import Piece, Unit
from cmcr.cache.reader import open_cache
from cmcr.cache.shard import ShardData
from cmcr.cache.verify import verify
from cmcr.cache.writer import CacheWriter

MADE_WITH = ("3.16.0", "2.0.0")  # h5py and HDF5 of the recorded shard bytes
SHARDS = {
    "00000.g0.h5": "901415305ae69cd5043e842d6450f094c139e47748abd0734e9ff7f0b89c143c",
    "00001.g0.h5": "74502244ee9cac648c120c9046d70238ecb02f33759956d21f805cbb6ffa404c",
}
MANIFEST = """{
  "accepted": [],
  "dim": 4,
  "dtype": "float16",
  "encoder": "open_clip:ViT-B-32-quickgelu/openai",
  "fingerprint": "fp-0",
  "format": "cmcr-cache",
  "kind": "encoded",
  "made_from": {},
  "modality": "text",
  "space_id": "0123abcd",
  "space_name": "clip",
  "version": 1
}
"""
PLAN = (
    '{"format": "cmcr-plan", "generation": 0, "shard_size": 3, "units": [\n'
    '{"pieces": [{"first": 1, "identity": "00ff", "kind": "lines", "rows": 3, "source": "captions.txt", "stop": 64}], '
    '"shard": 0},\n'
    '{"pieces": [{"identity": "11ee", "kind": "tar", "rows": null, "source": "a.tar"}, '
    '{"files": [["ä/1.png", 7]], "identity": "22dd", "kind": "files", "rows": 1, "source": "imgs"}], "shard": 1}\n'
    '], "version": 1}\n'
)
LEDGER = (
    '{"error": "ItemError", "key": "captions:000000002", "lost": true, "message": "The line is not UTF-8.", '
    '"stage": "decode"}\n'
)


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "c"
    manifest = CacheManifest("0123abcd", "clip", "text", "open_clip:ViT-B-32-quickgelu/openai", "fp-0", 4)
    units = [
        Unit(0, (Piece("lines", "captions.txt", 3, "00ff", stop=64, first=1),)),
        Unit(1, (Piece("tar", "a.tar", None, "11ee"), Piece("files", "imgs", 1, "22dd", files=(("ä/1.png", 7),)))),
    ]
    vectors = np.array([[1, 2, 3, 4], [-0.5, 0, 0.25, 8]], np.float32)
    data = ShardData(["captions:000000001", "captions:000000003"], vectors, captions=["a dog", "über"])
    lost = [Failure("captions:000000002", "decode", "ItemError", "The line is not UTF-8.")]
    with CacheWriter.open(path, manifest) as writer:
        writer.append_plan(units, 3)
        writer.write_shard(units[0], data, lost, expected=3)
        writer.write_shard(units[1], ShardData([], np.empty((0, 4), np.float32)), expected=0)
    return path


def masked(text: str) -> str:
    """A marker without what the version of HDF5 decides."""
    return re.sub(r'"(bytes|crc32|embedding_offset|key_offset)": (?!null)("[0-9a-f]{8}"|\d+)', r'"\1": *', text)


def example() -> str:
    """The marker of the example in docs/format.md."""
    text = (Path(__file__).resolve().parents[2] / "docs/format.md").read_text(encoding="utf-8")
    indented = text[text.index('    {\n      "bytes"') : text.index("and `errors/00000.jsonl`")]
    return "".join(line[4:] for line in indented.rstrip().splitlines(keepends=True)) + "\n"


def test_manifest_plan_ledger_and_marker_have_their_recorded_text(golden):
    assert (golden / "cache.json").read_text(encoding="utf-8") == MANIFEST
    assert (golden / "plan-00000.json").read_text(encoding="utf-8") == PLAN
    assert (golden / "errors/00000.jsonl").read_text(encoding="utf-8") == LEDGER
    assert [file.name for file in (golden / "errors").iterdir()] == ["00000.jsonl"]
    assert masked((golden / "shards/00000.json").read_text()) == masked(example())
    empty = json.loads((golden / "shards/00001.json").read_text())
    assert (empty["embedding_offset"], empty["key_offset"], empty["ledger"], empty["ok"]) == (None, None, None, 0)


def test_shards_and_their_markers_have_their_recorded_bytes(golden):
    versions = (h5py.__version__, h5py.version.hdf5_version)
    if versions != MADE_WITH:
        pytest.skip(f"the bytes were recorded with h5py and HDF5 {MADE_WITH}; here are {versions}")
    found = {name: hashlib.sha256((golden / "shards" / name).read_bytes()).hexdigest() for name in SHARDS}
    assert found == SHARDS
    assert (golden / "shards/00000.json").read_text() == example()


def test_the_recorded_ledger_is_the_one_that_the_page_shows():
    text = (Path(__file__).resolve().parents[2] / "docs/format.md").read_text(encoding="utf-8")
    assert "    " + LEDGER in text


def test_plain_h5py_reads_what_the_page_promises(golden):
    marker = json.loads((golden / "shards/00000.json").read_text())
    file = golden / "shards" / marker["file"]
    with h5py.File(file, "r") as shard:
        assert (shard.attrs["format"], shard.attrs["version"]) == ("cmcr-shard", 1)
        assert set(shard) == {"embedding", "key", "caption"}
        assert list(shard["key"].asstr()[:]) == ["captions:000000001", "captions:000000003"]
        assert list(shard["caption"].asstr()[:]) == ["a dog", "über"]
        assert shard["embedding"].dtype == np.dtype("<f2")
        assert shard["embedding"].chunks is None
        stored = shard["embedding"][:]
    raw = file.read_bytes()
    mapped = np.frombuffer(raw, "<f2", 8, marker["embedding_offset"]).reshape(2, 4)
    assert np.array_equal(mapped, stored)
    assert raw[marker["key_offset"] :][: marker["key_length"]] == b"captions:000000001"
    assert (marker["bytes"], marker["crc32"]) == (len(raw), f"{zlib.crc32(raw):08x}")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_large_columns_begin_at_a_page(tmp_path, dtype):
    manifest = CacheManifest("s", "s", "text", "e", "f", 64, dtype=dtype)
    data = ShardData([f"{row:09d}" for row in range(500)], np.ones((500, 64)), captions=["c" * 50] * 500)
    with CacheWriter.open(tmp_path / "c", manifest) as writer:
        unit = Unit(0, (Piece("rows", "x", 500, "id"),))
        writer.append_plan([unit], 500)
        done = writer.write_shard(unit, data, expected=500)
    assert done.embedding_offset is not None
    assert done.embedding_offset % 4096 == done.key_offset % 4096 == 0


def test_what_was_written_reads_back_as_values(golden):
    plan = read_plan(golden / "plan-00000.json")
    assert plan.units[1].pieces[1].files == (("ä/1.png", 7),)
    assert (plan.units[0].rows, plan.units[1].rows) == (3, None)
    cache = open_cache(golden)
    assert cache.rows([1], normalize=False).tolist() == [[-0.5, 0, 0.25, 8]]
    assert cache.captions([1]) == ["über"]
    assert verify(golden).ok


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MANIFEST.replace('"version": 1', '"version": 3'), "Version 3 of the cmcr-cache format is not known"),
        (MANIFEST.replace("cmcr-cache", "zarr"), "not a cmcr-cache record"),
        (MANIFEST.replace('"dim": 4', '"dim": 0'), "at least one element"),
        (MANIFEST.replace('"dim": 4', '"dim": "4"'), "'dim' is '4'"),
        (MANIFEST.replace("float16", "bfloat16"), "float16 or float32"),
        (MANIFEST.replace('"encoded"', '"found"'), "kind is 'found'"),
        (MANIFEST[:40], "cannot be read as JSON"),
        ("\0" * 100, "cannot be read as JSON"),
    ],
)
def test_a_manifest_that_is_damaged_or_of_another_version_is_refused(tmp_path, text, message):
    (tmp_path / "cache.json").write_text(text)
    with pytest.raises(CacheError, match=message) as caught:
        read_manifest(tmp_path)
    assert "cache.json" in str(caught.value)
    assert caught.value.todo


def test_unknown_fields_of_manifest_and_plan_are_ignored(golden, tmp_path):
    (tmp_path / "cache.json").write_text(MANIFEST.replace("{\n", '{\n  "colour": [1],\n', 1))
    assert read_manifest(tmp_path) == read_manifest(golden)
    (tmp_path / "plan-00000.json").write_text(PLAN.replace('"first": 1', '"colour": 2, "first": 1'))
    assert read_plan(tmp_path / "plan-00000.json") == read_plan(golden / "plan-00000.json")


@pytest.mark.parametrize(
    ("old", "new"), [('"shard": 1', '"shard": 2'), ('"units": [', '"units": [7, '), ('"tar"', "tar")]
)
def test_a_plan_that_cannot_be_is_refused(golden, tmp_path, old, new):
    (tmp_path / "cache.json").write_text(MANIFEST)
    (tmp_path / "plan-00000.json").write_text(PLAN.replace(old, new))
    with pytest.raises(CacheError):
        CacheWriter.open(tmp_path, read_manifest(golden))


def test_file_names_that_are_not_utf8_survive_the_plan(tmp_path):
    odd = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    unit = Unit(0, (Piece("files", "in", 1, "id", files=((odd, 3),)),))
    with CacheWriter.open(tmp_path / "c", CacheManifest("s", "s", "image", "e", "f", 2)) as writer:
        writer.append_plan([unit], 1)
    assert read_plan(tmp_path / "c/plan-00000.json").units == (unit,)
