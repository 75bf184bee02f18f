from __future__ import annotations

import itertools
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache import mapped
from cmcr.cache.errors import CacheError
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.reader import open_cache
from cmcr.cache.shard import ShardData
from cmcr.cache.writer import write_cache
from hypothesis import given, settings
from hypothesis import strategies as st


def unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


@pytest.fixture
def made(tmp_path, manifest, shard):
    """A cache of five shards, two of them empty, and its vectors as stored, in float32."""
    shards = [shard(i, rows, captions=i != 3) for i, rows in enumerate([7, 0, 13, 1, 0])]
    cache = write_cache(tmp_path / "c", manifest, shards)
    return cache, np.concatenate([s.vectors for s in shards]).astype("<f2").astype(np.float32), shards


@pytest.mark.parametrize("size", [1, 2, 5, 7, 20, 21, 22, 100])
@pytest.mark.parametrize("normalize", [True, False])
def test_batches_give_every_row_once_in_order_whatever_the_size(made, size, normalize):
    cache, stored, shards = made
    keys, vectors = [], []
    for some, rows in cache.batches(size, normalize=normalize):
        assert rows.dtype == np.float32
        assert len(some) == len(rows) <= size
        keys += some
        vectors.append(rows)
    assert [len(v) for v in vectors[:-1]] == [size] * (len(vectors) - 1)
    assert keys == [key for s in shards for key in s.keys] == cache.keys()
    np.testing.assert_allclose(np.concatenate(vectors), unit(stored) if normalize else stored, atol=1e-7)


@pytest.mark.parametrize("indices", [[], [0], [20, 0, 7, 6, 7, 20], list(range(21)), np.arange(20, -1, -1)])
def test_gather_equals_the_naive_choice_of_rows(made, indices):
    cache, stored, _ = made
    chosen = np.asarray(indices, dtype=int)
    assert np.array_equal(cache.rows(indices, normalize=False), stored[chosen])
    np.testing.assert_allclose(cache.rows(indices), unit(stored[chosen]).reshape(-1, 8), atol=1e-7)
    keys = cache.keys(indices)
    assert np.array_equal(cache.index_of(keys), chosen)
    assert np.array_equal(cache.gather(keys, normalize=False), stored[chosen])


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    picks=st.lists(st.integers(0, 10_000), max_size=30),
    span=st.integers(1, 200),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_gather_equals_naive_for_any_shards_and_spans(tmp_path_factory, sizes, picks, span, dtype):
    manifest = CacheManifest("s", "s", "text", "e", "f", 3, dtype=dtype)
    vectors = np.random.default_rng(0).standard_normal((sum(sizes), 3)).astype(np.float32)
    bounds = np.cumsum([0, *sizes])
    keys = [f"k{row}" for row in range(sum(sizes))]
    shards = [ShardData(keys[a:b], vectors[a:b]) for a, b in itertools.pairwise(bounds)]
    cache = write_cache(tmp_path_factory.mktemp("c") / "c", manifest, shards)
    stored = vectors.astype(dtype).astype(np.float32)
    rows = np.array([pick % len(keys) for pick in picks] if keys else [], dtype=int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped, "SPAN", span)
        assert np.array_equal(cache.rows(rows, normalize=False), stored[rows])
        assert np.array_equal(cache.read(0, len(cache), normalize=False), stored)
        assert cache.keys(rows) == [keys[row] for row in rows]
        assert cache.keys() == keys


@pytest.mark.parametrize("indices", [[21], [-1], [0.5], [[0, 1]], ["a"]])
def test_rows_out_of_range_or_of_the_wrong_type_are_an_index_error(made, indices):
    with pytest.raises(IndexError, match="asked for"):
        made[0].rows(indices)


def test_gather_names_keys_that_are_not_there(made):
    with pytest.raises(CacheError, match=r"1 of 2 keys are not here: \['nobody'\]"):
        made[0].gather(["file0:000000001", "nobody"])


def test_texts_come_by_row_and_are_none_where_absent(made):
    cache, _, shards = made
    everything = [s.captions[r] if s.captions else None for s in shards for r in range(len(s.keys))]
    order = [20, 3, 8, 0, 8, 19]
    assert cache.captions(order) == [everything[i] for i in order]
    assert cache.captions(range(len(cache))) == everything
    assert cache.sources([20, 0]) == [None, "file0.txt"]
    assert cache.meta([1, 0, 20]) == [{"row": 1}, None, None]
    assert cache.has_column("caption")


def test_captions_keep_any_text_but_nul_and_broken_surrogates(tmp_path, manifest):
    texts = ["日本語 🎧", "a\nb\t ", "nul\0here", "half \ud800 pair", "", None]
    data = ShardData([f"k{i}" for i in range(6)], np.ones((6, 8)), captions=texts, meta=[{"t": "a\0"}, *[None] * 5])
    cache = write_cache(tmp_path / "c", manifest, [data])
    assert cache.captions(range(6)) == [
        "日本語 🎧",
        "a\nb\t ",
        "nul\ufffdhere",
        "half \ufffd\ufffd\ufffd pair",
        None,
        None,
    ]
    assert cache.meta([0]) == [{"t": "a\0"}]


def test_a_cache_without_rows_reads_as_empty(tmp_path, manifest, shard):
    for name, shards in (("none", []), ("empty", [shard(0, 0)])):
        cache = write_cache(tmp_path / name, manifest, shards)
        assert len(cache) == 0
        assert list(cache.batches()) == []
        assert cache.rows([]).shape == (0, 8)
        assert cache.index_of(["x"]).tolist() == [-1]
        assert list(cache.failures()) == []


def test_a_folder_that_is_no_cache_says_what_was_looked_for(tmp_path):
    with pytest.raises(CacheError, match=r"holds no cache\.json"):
        open_cache(tmp_path)
    with pytest.raises(CacheError, match="no such folder"):
        open_cache(tmp_path / "missing")


def test_a_file_of_the_wrong_size_names_the_shard_and_verify(made):
    cache, _, _ = made
    file = cache.path / "shards/00002.g0.h5"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CacheError, match=r"00002\.g0\.h5[\s\S]*cmcr cache verify"):
        open_cache(cache.path).rows([8])


def test_content_id_follows_the_content_and_not_the_place(tmp_path, manifest, shard):
    a = write_cache(tmp_path / "a", manifest, [shard(0, 3)])
    b = write_cache(tmp_path / "b", manifest, [shard(0, 3)])
    c = write_cache(tmp_path / "c", manifest, [shard(0, 4)])
    assert a.content_id() == b.content_id() != c.content_id()


def test_an_open_cache_pickles_to_its_path_and_works_after_a_fork(made):
    cache, stored, _ = made
    assert np.array_equal(pickle.loads(pickle.dumps(cache)).rows([3], normalize=False), stored[[3]])  # noqa: S301
    cache.captions([0])
    child = os.fork()
    if child == 0:
        same = np.array_equal(cache.rows([8], normalize=False), stored[[8]]) and cache.captions([9]) is not None
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def resident_file_mib() -> float:
    """Resident memory that is mapped from files, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssFile")).split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the memory counters of Linux")
def test_reading_all_of_a_cache_leaves_little_of_it_resident(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "RESIDENT_LIMIT", 8 << 20)
    monkeypatch.setattr(mapped, "SPAN", 4 << 20)
    rows, dim = 49_152, 512  # 48 MiB
    manifest = CacheManifest("s", "s", "text", "e", "f", dim)
    data = ShardData([f"{row:09d}" for row in range(rows)], np.ones((rows, dim), np.float16))
    cache = write_cache(tmp_path / "c", manifest, [data])
    picks = np.random.default_rng(0).permutation(rows)[:8192]
    before, most = resident_file_mib(), 0.0
    for start in range(0, len(picks), 1024):
        cache.rows(picks[start : start + 1024])
        most = max(most, resident_file_mib())
    for _ in cache.batches(1024):
        most = max(most, resident_file_mib())
    assert most - before < 20, f"{most - before:.0f} MiB more were resident"


def test_opening_a_thousand_shards_takes_well_under_a_second(tmp_path, manifest, shard):
    cache = write_cache(tmp_path / "c", manifest, [shard(0, 1)])
    text = (cache.path / "shards/00000.json").read_text()
    for number in range(1, 1000):
        name = f"{number:05d}"
        (cache.path / "shards" / f"{name}.json").write_text(
            text.replace('"00000.g0.h5"', f'"{name}.g0.h5"').replace('"shard": 0', f'"shard": {number}')
        )
    start = time.perf_counter()
    assert len(open_cache(cache.path)) == 1000
    assert time.perf_counter() - start < 1.0
