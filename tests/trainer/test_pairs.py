from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache.errors import FitError, JoinError
from cmcr.cache.reader import open_cache
from cmcr.trainer.completion import complete_rows
from cmcr.trainer.pairs import load_pairs, same_keys
from cmcr.trainer.recipe import load_recipe, make_recipe


def test_pairs_are_joined_by_key_whatever_the_order(
    make_cache: Callable[..., object], unit: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    keys = [f"k{i}" for i in range(300)]
    order = np.random.default_rng(0).permutation(300)
    one, two = unit(300, 7, 1), unit(300, 5, 2)
    make_cache("a", one, space="a", keys=keys, shard=120)
    make_cache("b", two[order], space="b", keys=[keys[i] for i in order], shard=77)
    make_cache("bank", unit(40, 5, 3), space="b", modality="image", keys=[f"i{i}" for i in range(40)])
    space = {"a": {"overlap": "a"}, "b": {"overlap": "b", "bank": ["bank"]}}
    pairs = load_pairs(make_recipe({"space": space, "fit": {"method": "c-mcr", "tau1": 0.1}}, base=tmp_path))
    assert (pairs.names, pairs.N, len(pairs), pairs.report.matched) == (("a", "b"), 300, 300, 300)
    some = np.array([5, 299, 0, 5])
    assert pairs.keys(some) == ["k5", "k299", "k0", "k5"]
    np.testing.assert_allclose(pairs.overlap["a"].rows(some), one[some], atol=1e-6)
    np.testing.assert_allclose(pairs.overlap["b"].rows(some), two[some], atol=1e-6)
    assert pairs.bank["b"] is not None
    expected = complete_rows(two[some], pairs.bank["b"], 0.1).vectors
    assert pairs.completed["b"] is not None
    np.testing.assert_allclose(pairs.completed["b"].rows(some), expected, atol=1e-5)
    assert pairs.completed["a"] is None
    assert pairs.bank["a"] is None
    assert pairs.overlap["a"].places is None  # in order and whole: no numbers are held
    assert pairs.overlap["b"].places is not None


def test_a_method_without_completions_gets_none_made(world: Path) -> None:
    pairs = load_pairs(world / "recipe.toml", complete=False)
    assert pairs.completed == {"clap": None, "clip": None}
    assert not (world / "completions").exists()


def test_a_second_load_reuses_the_completions(world: Path) -> None:
    said: list[str] = []
    first = load_pairs(world / "recipe.toml", say=said.append)
    second = load_pairs(world / "recipe.toml")
    assert [report.shards for report in first.completions.values()] == [3, 3]
    assert [report.shards for report in second.completions.values()] == [0, 0]
    assert "joined 600 rows by key" in said[0]
    assert sum("each caption averages" in line for line in said) == 2


def test_a_shard_that_came_late_is_completed_last_and_still_found_by_key(world: Path) -> None:
    whole = load_pairs(world / "recipe.toml")
    shutil.rmtree(world / "completions")
    late = world / "text-clip" / "shards" / "00001.json"
    late.rename(world / "late.json")
    part = load_pairs(load_recipe(world / "recipe.toml", ["fit.min_join=0.5"]))
    assert part.completions["clip"].shards == 2
    (world / "late.json").rename(late)
    pairs = load_pairs(world / "recipe.toml")
    assert pairs.completions["clip"].shards == 1
    some = np.array([3, 599, 256, 300, 3])
    for name in pairs.names:
        want, got = whole.completed[name], pairs.completed[name]
        assert want is not None
        assert got is not None
        np.testing.assert_array_equal(got.rows(some), want.rows(some))
    got = pairs.completed["clip"]
    assert got is not None
    assert got.places is not None  # the second of its shards stands at the end


def test_progress_shows_each_completion_while_it_is_made(world: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_pairs(world / "recipe.toml", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(256, 600), (512, 600), (600, 600)] * 2
    load_pairs(world / "recipe.toml", progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 6


def test_too_few_shared_keys_and_the_same_space_twice_are_refused(
    make_cache: Callable[..., object], unit: Callable[..., np.ndarray], tmp_path: Path, world: Path
) -> None:
    make_cache("short", unit(590, 20), space="clip", keys=[f"item-{i:06d}" for i in range(590)])
    space = {"clap": {"overlap": "text-clap"}, "clip": {"overlap": "short"}}
    with pytest.raises(JoinError, match="98"):
        load_pairs(make_recipe({"space": space, "fit": {"method": "x"}}, base=tmp_path))
    loose = make_recipe({"space": space, "fit": {"method": "x", "min_join": 0.9}}, base=tmp_path)
    assert load_pairs(loose).N == 590
    twice = {"clap": {"overlap": "text-clap"}, "clip": {"overlap": "text-clap"}}
    with pytest.raises(FitError, match="the same space"):
        load_pairs(make_recipe({"space": twice, "fit": {"method": "x"}}, base=tmp_path))


def test_a_bank_of_the_other_space_is_refused(world: Path) -> None:
    space = {"clap": {"overlap": "text-clap", "bank": ["images"]}, "clip": {"overlap": "text-clip"}}
    with pytest.raises(FitError, match="not of one space"):
        load_pairs(make_recipe({"space": space, "fit": {"method": "x"}}, base=world))


def test_keys_are_compared_one_by_one(
    make_cache: Callable[..., object], unit: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    make_cache("a", unit(20, 4), keys=[f"k{i}" for i in range(20)], shard=7)
    make_cache("b", unit(20, 4), keys=[f"k{i}" for i in range(20)], shard=9)
    make_cache("c", unit(20, 4), keys=[f"k{19 - i}" for i in range(20)])
    a, b, c = (open_cache(tmp_path / name) for name in "abc")
    assert same_keys(a, b)
    assert not same_keys(a, c)
