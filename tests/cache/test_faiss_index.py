from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache import fsio
from cmcr.cache.bank import Bank
from cmcr.cache.errors import CacheError, MissingExtraError
from cmcr.cache.faiss_index import hnsw_graph, index_path, inverted_lists, lists_for, row_chunks
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.writer import ShardData, write_cache

pytest.importorskip("torch")


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    """3,001 rows of two caches of one space."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 16))

    def cache(name: str, rows: int) -> object:
        vectors = (centres[rng.integers(40, size=rows)] + 0.2 * rng.standard_normal((rows, 16))).astype(np.float32)
        shards = [
            ShardData([str(i) for i in range(at, min(at + 700, rows))], vectors[at : at + 700])
            for at in range(0, rows, 700)
        ]
        return write_cache(tmp_path / name, CacheManifest("id", "one", "image", "test", "fp", 16, "float32"), shards)

    return Bank([cache("first", 2000), cache("second", 1001)])  # type: ignore[list-item]


def test_every_row_is_in_one_list_and_means_are_those_of_the_lists(bank: Bank) -> None:
    pytest.importorskip("faiss")
    lists = inverted_lists(bank)
    assert sorted(lists.rows.tolist()) == list(range(3001))
    assert len(lists.sizes) <= lists_for(3001) * 1.2
    for number in range(0, len(lists.sizes), 37):
        rows = bank.rows(lists.rows[lists.starts[number] : lists.starts[number + 1]])
        if len(rows):
            np.testing.assert_allclose(lists.centroids[number], rows.mean(axis=0), atol=1e-6)
            away = np.sqrt(np.square(rows - rows.mean(axis=0)).sum(axis=1).mean())
            assert lists.spread[number] == pytest.approx(away, abs=1e-3)
    chunks = list(row_chunks(lists, 100))
    np.testing.assert_array_equal(np.concatenate([numbers for _, _, numbers in chunks]), lists.rows)
    assert [chunk[0] for chunk in chunks[1:]] == [chunk[1] for chunk in chunks[:-1]]


@pytest.mark.parametrize("make", [inverted_lists, hnsw_graph])
def test_an_index_is_reproducible_and_found_again(
    bank: Bank, tmp_path: Path, make: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    make(bank, folder=tmp_path / "one")
    make(bank, folder=tmp_path / "two")
    (one,), (two,) = (list((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()
    monkeypatch.setattr(fsio, "write_atomic", lambda *_: pytest.fail("made again"))
    make(bank, folder=tmp_path / "one")


def test_another_bank_or_seed_has_an_index_of_its_own_beside_the_bank(bank: Bank) -> None:
    other = Bank(bank.caches[:1])
    paths = {index_path(bank, "ivf", 0), index_path(bank, "ivf", 1), index_path(other, "ivf", 0)}
    assert len(paths) == 3
    assert {path.parent for path in paths} == {bank.caches[0].path.parent / "indexes"}


@pytest.mark.parametrize("make", [inverted_lists, hnsw_graph])
def test_a_damaged_index_names_its_file(bank: Bank, make: Callable[..., object]) -> None:
    pytest.importorskip("faiss")
    make(bank)
    (file,) = (bank.caches[0].path.parent / "indexes").iterdir()
    file.write_bytes(file.read_bytes()[:-900])
    with pytest.raises(CacheError, match="cannot be read") as error:
        make(bank)
    assert error.value.where == str(file)
    file.unlink()
    make(bank)


def test_without_faiss_the_error_says_what_to_install(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match="pip install faiss-cpu"):
        inverted_lists(bank)
