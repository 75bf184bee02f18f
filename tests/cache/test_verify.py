from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from cmcr.cache.errors import CacheError
from cmcr.cache.ledger import Failure
from cmcr.cache.plan import Piece, Unit
from cmcr.cache.reader import open_cache
from cmcr.cache.verify import repair, verify
from cmcr.cache.writer import CacheWriter


def encode(path: Path, manifest, shard) -> None:
    with CacheWriter.open(path, manifest) as writer:
        if not writer.plans:
            writer.append_plan([Unit(i, (Piece("lines", "f", 5, f"id{i}"),)) for i in range(4)], 5)
        for unit in writer.pending():
            lost = [Failure(f"bad{unit.shard}", "read", "ItemError", "gone")] * (unit.shard == 1)
            rows = 0 if unit.shard == 2 else 5 - len(lost)
            if unit.shard == 2:
                lost = [Failure(f"x{i}", "read", "ItemError", "gone") for i in range(5)]
            writer.write_shard(unit, shard(unit.shard, rows, captions=True), lost, expected=5)


@pytest.fixture
def path(tmp_path, manifest, shard):
    encode(tmp_path / "c", manifest, shard)
    return tmp_path / "c"


def edit(file: Path, **fields) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def flip(file: Path, at: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def double_key(path: Path) -> None:
    """Give the first row of shard 3 the key of the first row of shard 0, with a marker that fits."""
    import zlib

    file, marker = path / "shards/00003.g0.h5", path / "shards/00003.json"
    with h5py.File(file, "r+") as opened:
        opened["key"][0] = b"file0:000000001"
    edit(marker, bytes=file.stat().st_size, crc32=f"{zlib.crc32(file.read_bytes()):08x}")


def zero_row(path: Path) -> None:
    import zlib

    file, marker = path / "shards/00003.g0.h5", path / "shards/00003.json"
    with h5py.File(file, "r+") as opened:
        opened["embedding"][2] = np.zeros(8)
    edit(marker, bytes=file.stat().st_size, crc32=f"{zlib.crc32(file.read_bytes()):08x}")


DAMAGE = {
    "one bit of a shard": (3, True, lambda p: flip(p / "shards/00003.g0.h5", 2048)),
    "a shard cut short": (3, False, lambda p: (p / "shards/00003.g0.h5").write_bytes(b"x" * 10)),
    "a shard gone": (3, False, lambda p: (p / "shards/00003.g0.h5").unlink()),
    "a marker of garbage": (3, False, lambda p: (p / "shards/00003.json").write_bytes(b"{")),
    "a marker of other counts": (0, True, lambda p: edit(p / "shards/00000.json", ok=4, expected=4)),
    "a marker of another place": (0, True, lambda p: edit(p / "shards/00000.json", embedding_offset=2176)),
    "a ledger of one bit": (1, True, lambda p: flip(p / "errors/00001.jsonl", 3)),
    "a ledger gone": (2, True, lambda p: (p / "errors/00002.jsonl").unlink()),
    "another fingerprint": (3, False, lambda p: edit(p / "shards/00003.json", fingerprint="other")),
    "other input": (3, False, lambda p: edit(p / "shards/00003.json", identity="other")),
    "a zero row": (3, True, zero_row),
}


def test_a_sound_cache_has_no_problem_and_is_counted(path):
    for deep in (True, False):
        report = verify(path, deep=deep)
        assert report.ok
        assert (report.shards, report.rows, report.failed, report.pending, report.leftovers) == (4, 14, 6, [], [])
    assert [failure.key for failure in open_cache(path).failures()] == ["bad1", *(f"x{i}" for i in range(5))]


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_in_its_shard_and_repaired_to_the_undisturbed_rows(path, manifest, shard, name):
    before = open_cache(path)
    rows, keys = before.read(0, 14), before.keys()
    number, needs_deep, damage = DAMAGE[name]
    damage(path)
    report = verify(path)
    assert not report.ok
    assert list(report.damaged) == [number]
    assert verify(path, deep=False).ok == needs_deep
    done = repair(path)
    assert list(done.dropped) == [number]
    assert done.remaining == ()
    assert verify(path).pending == [number]
    encode(path, manifest, shard)
    after = open_cache(path)
    assert after.keys() == keys
    assert np.array_equal(after.read(0, 14), rows)
    assert verify(path).ok
    assert verify(path).leftovers == []


def test_a_key_in_two_shards_is_a_problem_that_repair_does_not_hide(path):
    double_key(path)
    (problem,) = verify(path).problems
    assert "'file0:000000001' (shard 0, file0.txt; shard 3, file3.txt)" in problem
    done = repair(path)
    assert done.dropped == {}
    assert len(done.remaining) == 1


def test_missing_plans_and_unplanned_shards_are_problems(path):
    content = (path / "plan-00000.json").read_text()
    (path / "plan-00000.json").write_text(content.replace('"generation": 0', '"generation": 1'))
    assert "generation 1" in verify(path).problems[0]
    (path / "plan-00000.json").unlink()
    assert verify(path).problems == [f"shard 0000{i} is not in the plan" for i in range(4)]


def test_unfinished_is_no_damage(path):
    (path / "shards/00003.json").unlink()
    report = verify(path)
    assert report.ok
    assert (report.pending, report.leftovers) == ([3], ["shards/00003.g0.h5"])


def test_leftovers_are_listed_and_repair_removes_them_saying_so(path):
    names = ["errors/.00001.jsonl.tmp-host-1-2", "shards/.00009.json.tmp-host-1-2", "shards/00000.g7.h5"]
    for name in names:
        (path / name).write_bytes(b"x")
    assert verify(path).leftovers == names
    assert verify(path).ok
    assert repair(path).removed == tuple(names)
    assert verify(path).leftovers == []


def test_a_folder_that_is_no_cache_cannot_be_verified(tmp_path):
    with pytest.raises(CacheError, match=r"cache\.json"):
        verify(tmp_path)
