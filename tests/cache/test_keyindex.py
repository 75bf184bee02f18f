from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache import keyindex
from cmcr.cache.errors import DuplicateKeyError
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.reader import open_cache
from cmcr.cache.shard import ShardData
from cmcr.cache.writer import CacheWriter, write_cache
from hypothesis import given, settings
from hypothesis import strategies as st

MANIFEST = CacheManifest("s", "s", "text", "e", "f", 2)
KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), min_size=1, max_size=40)


def cache_of(path, *shards: list[str]):
    return write_cache(path, MANIFEST, [ShardData(keys, np.ones((len(keys), 2))) for keys in shards])


@settings(max_examples=40, deadline=None)
@given(
    keys=st.lists(KEYS, unique=True, max_size=30),
    others=st.lists(st.text(max_size=50), max_size=10),
    cut=st.integers(0, 30),
)
def test_index_of_finds_exactly_the_keys_that_are_there(tmp_path_factory, keys, others, cut):
    cache = cache_of(tmp_path_factory.mktemp("c") / "c", keys[:cut], keys[cut:])
    asked = others + keys[::-1] + keys[:3]
    expected = [keys.index(key) if key in keys else -1 for key in asked]
    assert cache.index_of(asked).tolist() == expected


@pytest.mark.parametrize("values", [1, 7, 100])
@pytest.mark.parametrize("partition", [16, 1 << 20])
def test_collisions_of_the_hash_are_told_apart_by_the_key(tmp_path, monkeypatch, values, partition):
    real = keyindex.hash_keys
    monkeypatch.setattr(keyindex, "PARTITION_ROWS", partition)
    monkeypatch.setattr(keyindex, "BLOCK_ROWS", 13)
    monkeypatch.setattr(keyindex, "hash_keys", lambda raw: (real(raw) % np.uint64(values)) << np.uint64(57))
    keys = [f"key {number}" for number in range(200)]
    cache = cache_of(tmp_path / "c", keys[:77], keys[77:])
    asked = ["none", *keys[::-1], "key 200"]
    assert cache.index_of(asked).tolist() == [-1, *range(199, -1, -1), -1]


def test_partitions_give_the_same_file_as_one_sort(tmp_path, monkeypatch):
    keys = [f"{number:x}" for number in np.random.default_rng(0).permutation(5000).tolist()]
    cache = cache_of(tmp_path / "c", keys[:1234], [], keys[1234:])
    keyindex.build(cache, tmp_path / "whole")
    monkeypatch.setattr(keyindex, "PARTITION_ROWS", 300)
    monkeypatch.setattr(keyindex, "BLOCK_ROWS", 171)
    keyindex.build(cache, tmp_path / "parts")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()
    assert (tmp_path / "whole").stat().st_size == 16 * 5000


def test_hashes_do_not_depend_on_the_padding():
    raw = [b"a", b"ab", b"a longer key than eight bytes"]
    wide, wider = (keyindex.hash_keys(np.array(raw, dtype=f"S{width}")) for width in (29, 100))
    assert np.array_equal(wide, wider)
    assert keyindex.hash_keys(np.array(raw[:1])) == wide[0]
    many = np.array([f"{number}".encode() for number in range(20_000)])
    assert len(np.unique(keyindex.hash_keys(many))) == len(many)


@pytest.mark.parametrize("shards", [(["a", "b"], ["c", "a"]), (["x", "a"], ["a"], ["a"])])
def test_a_key_in_two_shards_is_an_error_that_names_both(tmp_path, shards):
    cache = cache_of(tmp_path / "c", *shards)
    with pytest.raises(DuplicateKeyError, match=r"'a' \(shard 0; shard 1\)"):
        cache.index_of(["b"])


def test_the_index_is_made_once_and_again_when_shards_are_added(tmp_path):
    cache = cache_of(tmp_path / "c", ["a", "b"])
    assert cache.index_of(["b"]).tolist() == [1]
    (first,) = (tmp_path / "c/index").iterdir()
    made = first.stat().st_mtime_ns
    assert open_cache(cache.path).index_of(["a"]).tolist() == [0]
    assert first.stat().st_mtime_ns == made
    with CacheWriter.open(cache.path, MANIFEST) as writer:
        unit = keyindex_unit(writer.next_shard())
        writer.append_plan([unit], 1)
        writer.write_shard(unit, ShardData(["c"], np.ones((1, 2))), expected=1)
    assert cache.index_of(["c"]).tolist() == [-1]  # the cache as it was opened
    assert open_cache(cache.path).index_of(["c", "a"]).tolist() == [2, 0]
    assert [file.name for file in (tmp_path / "c/index").iterdir()] != [first.name]
    assert len(list((tmp_path / "c/index").iterdir())) == 1


def keyindex_unit(shard: int):
    from cmcr.cache.plan import Piece, Unit

    return Unit(shard, (Piece("rows", "more", 1, "identity"),))


def test_an_index_that_was_cut_short_is_made_anew(tmp_path):
    cache = cache_of(tmp_path / "c", ["a", "b", "c"])
    cache.index_of(["a"])
    (file,) = (tmp_path / "c/index").iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    assert open_cache(cache.path).index_of(["c"]).tolist() == [2]


def test_a_cache_that_cannot_be_written_to_is_indexed_elsewhere(tmp_path, tmp_path_factory, monkeypatch):
    cache = cache_of(tmp_path / "c", ["a", "b", "c"])
    real = os.ftruncate

    def refuse(handle: int, size: int) -> None:
        if str(cache.path) in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise PermissionError(13, "Permission denied")
        real(handle, size)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "ftruncate", refuse)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("elsewhere")))
    assert cache.index_of(["c", "x"]).tolist() == [2, -1]
    assert list((tmp_path / "c/index").iterdir()) == []
