from __future__ import annotations

import numpy as np
import pytest
from cmcr.cache.errors import DuplicateKeyError, JoinError
from cmcr.cache.join import join
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.shard import ShardData
from cmcr.cache.writer import write_cache

MANIFEST = CacheManifest("s", "s", "text", "e", "f", 3)


@pytest.fixture
def cache(tmp_path):
    """``cache(name, keys, captions=None, cut=...)``: row r is (hash of its key, r, 1)."""

    def make(name, keys, captions=None, cut=5):
        rows = [[len(key) + ord(key[-1]) / 256, row, 1] for row, key in enumerate(keys)]
        vectors = np.array(rows, np.float32).reshape(-1, 3)
        parts = [slice(0, cut), slice(cut, None)]
        shards = [ShardData(keys[p], vectors[p], captions=captions[p] if captions else None) for p in parts]
        return write_cache(tmp_path / name, MANIFEST, shards)

    return make


def test_rows_are_matched_by_key_in_the_order_of_the_left(cache):
    keys = [f"k{i}" for i in range(23)]
    shuffled = [keys[i] for i in np.random.default_rng(1).permutation(23)]
    left, right = cache("l", keys, cut=9), cache("r", shuffled, cut=20)
    joined = join(left, right)
    assert np.array_equal(joined.left, np.arange(23))
    assert right.keys(joined.right) == left.keys(joined.left) == keys
    assert (joined.report.matched, joined.report.left_only, joined.report.right_only) == (23, 0, 0)
    assert str(joined.report) == "23 keys matched, 0 only on the left, 0 only on the right"


def test_a_partial_join_reports_what_is_missing_and_needs_a_smaller_min_join(cache):
    left, right = cache("l", [f"k{i}" for i in range(10)]), cache("r", [f"k{i}" for i in range(9, 1, -1)])
    with pytest.raises(
        JoinError, match=r"8 keys matched, 2 only on the left[\s\S]*80\.00%[\s\S]*'k0', 'k1'[\s\S]*--min-join"
    ):
        join(left, right)
    with pytest.raises(JoinError, match=r"2 only on the right[\s\S]*'k1', 'k0'|'k0', 'k1'"):
        join(right, left)
    report = join(left, right, min_join=0.8).report
    assert (report.matched, report.left_only, report.right_only) == (8, 2, 0)
    assert report.left_examples == ("k0", "k1")
    assert report.fraction == 0.8


def test_an_empty_join_shows_three_keys_of_each_side(cache):
    left, right = cache("l", ["a1", "a2", "a3", "a4"]), cache("r", ["b1", "b2", "b3", "b4"])
    with pytest.raises(JoinError, match=r"share no key\. Left: 'a1', 'a2', 'a3'\. Right: 'b1', 'b2', 'b3'\."):
        join(left, right, min_join=0.0)


def test_an_empty_cache_joins_with_nothing(cache):
    with pytest.raises(JoinError, match="Left: no rows"):
        join(cache("l", []), cache("r", ["a"]), min_join=0.0)


def test_matched_keys_with_other_captions_fail_showing_one(cache):
    keys = ["a", "b", "c"]
    left = cache("l", keys, ["one", None, "three"])
    with pytest.raises(JoinError, match=r"'c' stands for different captions: 'three' on the left, 'drei' on the right"):
        join(left, cache("r", keys[::-1], ["drei", "two", "one"]))
    assert join(left, cache("s", keys[::-1], ["three", "two", None])).report.matched == 3
    assert join(left, cache("t", keys)).report.matched == 3


def test_a_key_that_stands_twice_on_either_side_is_an_error(cache):
    once, twice = cache("o", [f"k{i}" for i in range(6)]), cache("t", ["k0", "k1", "k2", "k3", "k4", "k0"])
    with pytest.raises(DuplicateKeyError, match="'k0'"):
        join(once, twice)
    with pytest.raises(DuplicateKeyError, match=r"Rows 0 and 5 have the same key 'k0'"):
        join(twice, once)


@pytest.mark.kit
def test_the_captions_of_the_kit_join_across_the_two_spaces(kit, tmp_path):
    from cmcr.cache.importer import import_npy

    caches = {
        space: import_npy(
            kit / folder / "texts.npy",
            tmp_path / space,
            space=space,
            modality="text",
            captions=kit / "texts.txt",
            shard_size=size,
        )
        for space, folder, size in (("clip", "image_text", 10_000), ("clap", "audio_text", 36_000))
    }
    joined = join(caches["clip"], caches["clap"])
    assert joined.report.matched == 36_000
    assert np.array_equal(joined.left, joined.right)
    stored = np.load(kit / "audio_text/texts.npy", mmap_mode="r")
    assert np.array_equal(caches["clap"].rows([35_999, 7], normalize=False), stored[[35_999, 7]].astype(np.float32))
    assert caches["clip"].captions([0]) == [(kit / "texts.txt").read_text(encoding="utf-8").split("\n")[0]]
