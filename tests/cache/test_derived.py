"""What is to be done about a derived cache when its parent has changed: planned from values alone, then written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache import fsio
from cmcr.cache.derived import ParentShard, Work, compare, follow, lineage, parent_of, parent_shards, replanned
from cmcr.cache.errors import CacheError
from cmcr.cache.manifest import CacheManifest, rows_unit
from cmcr.cache.marker import DoneMarker
from cmcr.cache.plan import Piece, Plan, Unit
from cmcr.cache.reader import Cache, open_cache
from cmcr.cache.shard import ShardData
from cmcr.cache.writer import CacheWriter
from hypothesis import given, settings
from hypothesis import strategies as st

MakeShard = Callable[..., ShardData]


def marker(shard: int, content: int, rows: int = 5) -> DoneMarker:
    """A done marker of some content."""
    names = (f"{shard:05d}.g0.h5", 100, f"{content:08x}", rows, rows, 0, "float16", 8, 0, 0, 4)
    return DoneMarker(shard, 0, 0, *names, (), None, None, f"input-{shard}", "fp")


def plan_of(parent: dict[int, ParentShard], first: int = 0) -> list[Unit]:
    return [Unit(number, (shard.piece,)) for number, shard in enumerate(parent.values(), start=first)]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(0, 12), st.integers(0, 3)),
    st.dictionaries(st.integers(0, 12), st.integers(0, 3)),
)
def test_every_parent_shard_is_kept_renewed_or_fresh_and_every_planned_one_has_a_fate(
    before: dict[int, int], now: dict[int, int]
) -> None:
    old = parent_shards([marker(n, content) for n, content in sorted(before.items())], "how")
    new = parent_shards([marker(n, content) for n, content in sorted(now.items())], "how")
    changes = compare(plan_of(old), new)

    def parents(units: Sequence[Unit]) -> set[int]:
        return {parent_of(unit) for unit in units}

    assert parents(changes.kept) == {n for n in now if before.get(n) == now[n]}
    assert parents(changes.renewed) == {n for n in now if n in before and before[n] != now[n]}
    assert parents(changes.vanished) == set(before) - set(now)
    assert parents(changes.fresh) == set(now) - set(before)
    assert [unit.shard for unit in changes.fresh] == list(range(len(before), len(before) + len(changes.fresh)))
    plans = [Plan(0, 5, tuple(plan_of(old)))]
    after = [*replanned(plans, changes.renewed)[0].units, *changes.fresh]
    again = compare(after, new)
    assert (again.renewed, again.fresh, again.vanished) == ((), (), changes.vanished)


def test_the_identity_covers_the_parents_content_and_how_it_is_derived_from() -> None:
    shards = [marker(3, 1), replace(marker(4, 2), ok=2, failed=3), marker(9, 3)]
    found = parent_shards(shards, "how")
    assert [(n, shard.start, shard.stop) for n, shard in found.items()] == [(3, 0, 5), (4, 5, 7), (9, 7, 12)]
    assert found[4].rows.tolist() == [5, 6]
    assert [shard.piece.source for shard in found.values()] == ["00003", "00004", "00009"]
    one = found[3].piece.identity
    assert parent_shards([replace(shards[0], crc32="0")], "how")[3].piece.identity != one
    assert parent_shards(shards, "otherwise")[3].piece.identity != one
    assert parent_shards([replace(shards[0], generation=2, file="00003.g2.h5")], "how")[3].piece.identity == one


def test_a_plan_that_is_not_made_of_parent_shards_is_refused() -> None:
    with pytest.raises(CacheError, match="not of a parent shard"):
        compare([rows_unit(0, "rows", 0, 5, "x")], {})
    with pytest.raises(CacheError, match="not of a parent shard"):
        parent_of(Unit(0, (Piece("shard", "a/b", 5, "x"),)))


def derive(path: Path, parent: Cache) -> Work:
    """A derived cache whose rows are twice those of its parent."""
    manifest = CacheManifest("twice", "twice", "text", "test", "fp", parent.dim, "float32", kind="projected")
    with CacheWriter.open(path, manifest) as writer:
        work = follow(writer, parent, "twice")
        for unit, shard in work.todo:
            rows = parent.read(shard.start, shard.stop, normalize=False)
            keys = parent.key_range(shard.start, shard.stop)
            writer.write_shard(unit, ShardData(keys, 2 * rows), expected=len(rows))
    return work


@pytest.fixture
def parent(tmp_path: Path, manifest: CacheManifest, shard: MakeShard) -> Callable[..., Cache]:
    """``parent(generations, rewrite=None)``: a cache of one shard a generation; ``rewrite`` gives one other rows."""

    def make(generations: int, rewrite: int | None = None) -> Cache:
        with CacheWriter.open(tmp_path / "parent", manifest) as writer:
            for number in range(len(writer.plans), generations):
                writer.append_plan([rows_unit(number, f"file-{number}", 0, 4 + number, f"input-{number}")], 9)
            for unit in writer.pending():
                writer.write_shard(unit, shard(unit.shard, 4 + unit.shard), expected=4 + unit.shard)
            if rewrite is not None:
                data = shard(rewrite, 4 + rewrite)
                again = ShardData(data.keys, -data.vectors)
                writer.write_shard(writer.plans[rewrite].units[0], again, expected=4 + rewrite)
        return open_cache(tmp_path / "parent")

    return make


def test_growth_rewriting_and_loss_each_cost_the_shards_that_they_touch(
    tmp_path: Path, parent: Callable[..., Cache]
) -> None:
    out = tmp_path / "out"

    def counts(raw: Cache) -> tuple[int, int, int, int]:
        work = derive(out, raw)
        have = open_cache(out)
        assert have.keys() == raw.keys()
        expected = 2 * raw.read(0, len(raw), normalize=False)
        np.testing.assert_array_equal(have.read(0, len(have), normalize=False), expected)
        return len(work.todo), work.kept, work.renewed, work.vanished

    assert counts(parent(2)) == (2, 0, 0, 0)
    assert counts(parent(2)) == (0, 2, 0, 0)
    assert counts(parent(4)) == (2, 2, 0, 0)
    assert counts(parent(5, rewrite=1)) == (2, 3, 1, 0)
    lost = tmp_path / "parent" / "shards" / "00003.json"
    lost.rename(tmp_path / "lost.json")
    assert counts(open_cache(tmp_path / "parent")) == (0, 4, 0, 1)
    assert counts(open_cache(tmp_path / "parent")) == (0, 4, 0, 0)
    (tmp_path / "lost.json").rename(lost)
    assert counts(parent(5)) == (1, 4, 0, 0)


def test_an_older_view_of_the_parent_takes_nothing_back_that_a_newer_one_planned(
    tmp_path: Path, parent: Callable[..., Cache]
) -> None:
    before = parent(2)
    derive(tmp_path / "out", parent(4, rewrite=1))
    late = derive(tmp_path / "out", before)
    assert (len(late.todo), late.renewed, late.vanished, len(late.parent.shards)) == (0, 0, 0, 4)
    assert len(open_cache(tmp_path / "out").shards) == 4


@pytest.mark.parametrize("instant", range(0, 24, 3))
def test_a_renewal_that_was_cut_off_ends_in_the_same_bytes(
    tmp_path: Path,
    parent: Callable[..., Cache],
    tree: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    instant: int,
) -> None:
    class Cut(BaseException):
        """Ends the run where a kill would."""

    # The "killed" process lives on in this test: what it left behind expires instead of being known to be dead.
    monkeypatch.setenv("CMCR_LEASE_SECONDS", "0.3")
    derive(tmp_path / "cut", parent(3))
    shutil.copytree(tmp_path / "cut", tmp_path / "calm")
    raw = parent(4, rewrite=1)
    calls = 0

    def count(call: str, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > instant:
            raise Cut

    monkeypatch.setattr(fsio, "HOOKS", [count])
    with pytest.raises(Cut):
        derive(tmp_path / "cut", raw)
    monkeypatch.setattr(fsio, "HOOKS", [])
    derive(tmp_path / "cut", raw)
    derive(tmp_path / "calm", raw)
    assert tree(tmp_path / "cut") == tree(tmp_path / "calm")


def test_a_lineage_stays_while_a_cache_grows_and_differs_where_it_began_otherwise(
    tmp_path: Path, parent: Callable[..., Cache], manifest: CacheManifest, shard: MakeShard
) -> None:
    before = lineage(parent(2))
    assert lineage(parent(5, rewrite=0)) == before
    with CacheWriter.open(tmp_path / "other", manifest) as writer:
        unit = rows_unit(0, "file-9", 0, 4, "input-9")
        writer.append_plan([unit], 9)
        writer.write_shard(unit, shard(0, 4), expected=4)
    assert lineage(open_cache(tmp_path / "other")) != before
