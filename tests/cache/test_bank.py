from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cmcr.cache.bank import Bank, sample_rows
from cmcr.cache.errors import CacheError
from cmcr.cache.writer import write_cache


@pytest.fixture
def caches(tmp_path, manifest, shard):
    images = write_cache(tmp_path / "a", replace(manifest, modality="image"), [shard(0, 7), shard(1, 0), shard(2, 6)])
    texts = write_cache(tmp_path / "b", manifest, [shard(3, 10)])
    return [images, texts]


def naive(caches) -> np.ndarray:
    rows = np.concatenate([vectors for cache in caches for _, vectors in cache.batches(normalize=False)]).astype(float)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("size", [1, 4, 7, 13, 22, 23, 100])
def test_blocks_cut_the_caches_into_equal_pieces_of_unit_rows(caches, size):
    blocks = list(Bank(caches).blocks(size))
    assert {len(block) for block in blocks[:-1]} <= {size}
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.concatenate(blocks), naive(caches), atol=1e-6)


def test_rows_are_those_of_the_blocks(caches):
    bank = Bank(caches)
    wanted = [22, 0, 12, 13, 13, 7]
    np.testing.assert_allclose(bank.rows(wanted), naive(caches)[wanted], atol=1e-6)
    assert bank.rows([]).shape == (0, 8)
    with pytest.raises(IndexError, match="the bank has 23"):
        bank.rows([23])


def test_a_sample_is_seeded_without_repeats_and_its_blocks_are_its_rows(caches):
    one, same, other = Bank(caches, 9, seed=1), Bank(caches, 9, seed=1), Bank(caches, 9, seed=2)
    first = np.concatenate(list(one.blocks(4)))
    assert len(one) == len(first) == 9
    assert np.array_equal(first, np.concatenate(list(same.blocks(5))))
    assert not np.array_equal(first, other.rows(np.arange(9)))
    assert len(np.unique(first.round(5), axis=0)) == 9
    assert len({one.content_id(), other.content_id(), Bank(caches).content_id(), Bank(caches[:1]).content_id()}) == 4
    assert one.content_id() == same.content_id()
    assert len(Bank(caches, 1000)) == 23


def test_every_row_is_as_likely_to_be_sampled():
    counts = np.zeros(40)
    for seed in range(4000):
        counts[sample_rows(40, 10, seed)] += 1
    spread = (4000 * 0.25 * 0.75) ** 0.5
    assert np.abs(counts - 1000).max() < 4.5 * spread
    assert set(sample_rows(3_000_000, 10, 7)) < set(sample_rows(3_000_000, 1000, 7))


def test_caches_of_different_spaces_or_none_are_refused(caches, tmp_path, manifest, shard):
    foreign = write_cache(tmp_path / "c", replace(manifest, space_id="space-2"), [shard(0, 2)])
    with pytest.raises(CacheError, match=r"of one space[\s\S]*space-2"):
        Bank([*caches, foreign])
    empty = write_cache(tmp_path / "d", manifest, [shard(0, 0)])
    with pytest.raises(CacheError, match="no rows"):
        Bank([empty])
    with pytest.raises(CacheError, match="at least one cache"):
        Bank([])
    with pytest.raises(CacheError, match="bank_rows is 0"):
        Bank(caches, 0)
