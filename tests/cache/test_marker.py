from __future__ import annotations

import json

import numpy as np
import pytest
from cmcr.cache import marker as markers
from cmcr.cache.errors import CacheError
from cmcr.cache.reader import open_cache
from cmcr.cache.writer import CacheWriter, write_cache


@pytest.fixture
def written(tmp_path, manifest, shard):
    return write_cache(tmp_path / "c", manifest, [shard(0, 5)]).path


def change(path, **fields) -> None:
    file = path / "shards/00000.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"file": "../../etc/passwd"},
        {"file": "/etc/passwd"},
        {"file": "00001.g0.h5"},
        {"file": "00000.g0.h5\0"},
        {"ledger": "../../../etc/passwd"},
        {"shard": 1},
        {"shard": True},
        {"ok": 10**18, "expected": 10**18},
        {"ok": 6, "expected": 6, "bytes": 10},
        {"ok": -1},
        {"ok": "5"},
        {"ok": 4},
        {"failed": None},
        {"dim": 0},
        {"dim": 10**30},
        {"dtype": "O"},
        {"dtype": ["float16"]},
        {"key_length": 0},
        {"embedding_offset": None},
        {"embedding_offset": 2049},
        {"key_offset": 10**15},
        {"columns": None},
        {"crc32": 7},
        {"crc32": "/../../../x"},
        {"ledger_crc32": "/../../../x"},
        {"state": "maybe"},
        {"state": []},
        {"format": "other"},
        {"version": 2},
        {"version": True},
    ],
)
def test_a_marker_that_cannot_be_is_refused_naming_it(written, fields):
    change(written, **fields)
    with pytest.raises(CacheError) as caught:
        open_cache(written)
    assert "shards/00000.json" in str(caught.value)
    assert caught.value.todo


@pytest.mark.parametrize("content", [b"", b'{"format": "cmcr-sh', b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_marker_that_is_cut_short_or_garbage_is_refused_naming_it(written, content):
    (written / "shards/00000.json").write_bytes(content)
    with pytest.raises(CacheError, match=r"00000\.json[\s\S]*cmcr cache verify"):
        open_cache(written)


def test_a_damaged_marker_is_pending_and_is_written_as_a_new_generation(written, manifest, shard):
    (written / "shards/00000.json").write_bytes(b'{"form')
    with CacheWriter.open(written, manifest) as writer:
        (unit,) = writer.pending()
        assert writer.write_shard(unit, shard(0, 5), expected=5).file == "00000.g1.h5"
    assert len(open_cache(written)) == 5


def test_an_unknown_version_says_what_to_do(written):
    change(written, version=2)
    with pytest.raises(CacheError, match=r"Version 2[\s\S]*reads version 1[\s\S]*upgrade"):
        open_cache(written)


def test_unknown_fields_are_ignored(written):
    change(written, colour="green")
    assert len(open_cache(written)) == 5


def test_dropped_shards_temporary_and_foreign_files_do_not_count(written):
    for name in (".00001.json.tmp-host-1-2", "00001.g0.h5", "notes.json", "1.json"):
        (written / "shards" / name).write_bytes(b"not a marker")
    assert len(open_cache(written)) == 5
    change(written, state="dropped")
    assert len(open_cache(written)) == 0


def test_shards_are_ordered_as_numbers(tmp_path):
    for number in (100000, 99999, 2):
        (tmp_path / markers.marker_name(number)).write_text("{}")
    assert list(markers.list_markers(tmp_path)) == [2, 99999, 100000]


def test_a_marker_of_another_dim_than_the_manifest_is_refused(written):
    change(written, dim=4)
    with pytest.raises(CacheError, match="Shard 0 holds float16 of dim 4"):
        open_cache(written)


def test_an_hdf5_file_replaced_by_garbage_of_the_same_size_does_not_crash(tmp_path, manifest, shard):
    cache = write_cache(tmp_path / "c", manifest, [shard(0, 5, captions=True)])
    file = cache.path / "shards/00000.g0.h5"
    size = file.stat().st_size
    file.write_bytes(np.random.default_rng(0).bytes(size))
    opened = open_cache(cache.path)
    with pytest.raises(CacheError, match="cmcr cache verify"):
        opened.captions([0])
    with pytest.raises(CacheError, match="cmcr cache verify"):
        opened.keys()
    file.unlink()
    with pytest.raises(CacheError, match="cmcr cache verify"):
        open_cache(cache.path).rows([0])
