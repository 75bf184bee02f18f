from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache import fsio
from cmcr.cache.errors import CacheError, DuplicateKeyError, FingerprintError
from cmcr.cache.ledger import Failure
from cmcr.cache.plan import Piece, Unit
from cmcr.cache.reader import open_cache
from cmcr.cache.shard import ShardData
from cmcr.cache.verify import verify
from cmcr.cache.writer import CacheWriter, write_cache

ROWS = [5, 0, 3]
LOST = [1, 2, 0]


def units(first: int = 0, count: int = 3, rows: list[int] | None = None) -> list[Unit]:
    rows = rows or [a + b for a, b in zip(ROWS, LOST, strict=True)]
    return [Unit(first + i, (Piece("lines", "file.txt", rows[i], f"identity-{first + i}"),)) for i in range(count)]


def failures(number: int, lost: int) -> list[Failure]:
    remark = [Failure(f"file{number}", "audit", "Remark", "no caption", lost=False)]
    return remark + [Failure(f"file{number}:bad{i}", "decode", "ItemError", "not UTF-8") for i in range(lost)]


def encode(path: Path, manifest, shard, *, retry: bool = False, count: int = 3, **options) -> None:
    """A small encode run: resumable, with an empty shard and failures."""
    with CacheWriter.open(path, manifest, **options) as writer:
        if not writer.plans:
            writer.append_plan(units(count=count), 6)
        for unit in writer.pending(retry_failed=retry):
            rows, lost = ROWS[unit.shard], LOST[unit.shard]
            if retry:
                rows, lost = rows + lost, 0
            notes = failures(unit.shard, lost) if lost else []
            writer.write_shard(unit, shard(unit.shard, rows, captions=True), notes, expected=rows + lost)


def markers_of(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in (path / "shards").glob("*.json")} if path.exists() else {}


def test_kill_at_every_call_then_resume_gives_the_undisturbed_bytes(
    tmp_path, manifest, shard, tree, killed, monkeypatch
):
    monkeypatch.setattr(fsio, "WRITE_BLOCK", 6000)  # several writes a file, so that it dies half written too
    encode(tmp_path / "calm", manifest, shard, count=2)
    calm = tree(tmp_path / "calm")
    at = 0
    while True:
        path = tmp_path / f"at{at}"
        finished = killed(lambda path=path: encode(path, manifest, shard, count=2), at)
        done = markers_of(path)
        if (path / "cache.json").exists():
            report = verify(path)
            assert report.ok, (at, report.problems)
        encode(path, manifest, shard, count=2)
        assert tree(path) == calm, at
        assert done.items() <= markers_of(path).items(), f"a finished shard was written again after call {at}"
        if finished is not None:
            break
        at += 1
    assert at == finished > 50


def test_kill_at_every_call_of_a_retry_never_shows_a_damaged_cache(tmp_path, manifest, shard, tree, killed):
    calm = tmp_path / "calm"
    encode(calm, manifest, shard, count=2)
    encode(calm, manifest, shard, retry=True, count=2)
    assert sorted(name for name in tree(calm) if name.endswith((".h5", "jsonl"))) == [
        "shards/00000.g1.h5",
        "shards/00001.g1.h5",
    ]
    at, finished = 0, None
    while finished is None:
        path = tmp_path / f"at{at}"
        encode(path, manifest, shard, count=2)
        finished = killed(lambda path=path: encode(path, manifest, shard, retry=True, count=2), at)
        report = verify(path)
        assert report.ok
        assert not report.pending, at
        encode(path, manifest, shard, retry=True, count=2)
        assert tree(path) == tree(calm), at
        at += 1


@pytest.mark.slow
def test_two_kills_in_a_row_at_random_calls(tmp_path, manifest, shard, tree, killed):
    encode(tmp_path / "calm", manifest, shard)
    rng = random.Random(5)
    for trial in range(300):
        path = tmp_path / f"trial{trial}"
        for _ in range(rng.randint(1, 4)):
            killed(lambda path=path: encode(path, manifest, shard), rng.randrange(80))
        encode(path, manifest, shard)
        assert tree(path) == tree(tmp_path / "calm"), trial


def test_temporary_files_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path, manifest, shard):
    encode(tmp_path / "c", manifest, shard)
    host, start = fsio.host_name(), fsio.process_start(os.getppid())
    dead = tmp_path / "c/shards" / f".00007.g0.h5.tmp-{host}-999999999-17"
    reborn = tmp_path / "c/errors" / f".00007.jsonl.tmp-{host}-{os.getpid()}-17"
    live = tmp_path / "c/shards" / f".00008.g0.h5.tmp-{host}-{os.getppid()}-{start}"
    elsewhere = tmp_path / "c" / ".plan-00009.json.tmp-other.host-1-17"
    for file in (dead, reborn, live, elsewhere):
        file.write_bytes(b"half")
    encode(tmp_path / "c", manifest, shard)
    assert [file.exists() for file in (dead, reborn, live, elsewhere)] == [False, False, True, True]
    assert verify(tmp_path / "c").leftovers == [elsewhere.name, f"shards/{live.name}"]


def test_appending_a_plan_leaves_the_shards_before_alone(tmp_path, manifest, shard):
    encode(tmp_path / "c", manifest, shard)
    before = markers_of(tmp_path / "c")
    with CacheWriter.open(tmp_path / "c", manifest) as writer:
        assert writer.next_shard() == 3
        writer.append_plan(units(3, 1, [4]), 6)
        assert [unit.shard for unit in writer.pending()] == [3]
        done = writer.write_shard(writer.pending()[0], shard(3, 4), expected=4)
        assert done.plan_generation == 1
        assert writer.pending() == []
    assert before.items() <= markers_of(tmp_path / "c").items()
    assert len(open_cache(tmp_path / "c")) == 12
    assert [plan.generation for plan in CacheWriter.open(tmp_path / "c", manifest).plans] == [0, 1]


def test_no_units_append_nothing_and_numbers_must_follow_on(tmp_path, manifest):
    with CacheWriter.open(tmp_path / "c", manifest) as writer:
        writer.append_plan([], 6)
        assert writer.plans == []
        with pytest.raises(CacheError, match="numbered from 0"):
            writer.append_plan(units(1), 6)


def test_changed_input_makes_a_shard_pending_again(tmp_path, manifest, shard):
    encode(tmp_path / "c", manifest, shard)
    plan = next((tmp_path / "c").glob("plan-*.json"))
    plan.write_text(plan.read_text().replace("identity-2", "identity-x"))
    assert [unit.shard for unit in CacheWriter.open(tmp_path / "c", manifest).pending()] == [2]


def test_another_fingerprint_is_refused_naming_both_unless_accepted(tmp_path, manifest, shard):
    encode(tmp_path / "c", manifest, shard)
    other = replace(manifest, fingerprint="fp-2")
    with pytest.raises(FingerprintError, match=r"fp-1[\s\S]*fp-2[\s\S]*--accept-fingerprint"):
        CacheWriter.open(tmp_path / "c", other)
    with CacheWriter.open(tmp_path / "c", other, accept_fingerprint=True) as writer:
        assert writer.pending() == []
        writer.append_plan(units(3, 1, [2]), 6)
        assert writer.write_shard(writer.pending()[0], shard(3, 2), expected=2).fingerprint == "fp-2"
    assert verify(tmp_path / "c").ok
    CacheWriter.open(tmp_path / "c", other).close()  # accepted once is accepted


@pytest.mark.parametrize("change", [{"dim": 4}, {"space_id": "other"}, {"modality": "audio"}, {"dtype": "float32"}])
def test_another_space_dim_or_type_is_always_refused(tmp_path, manifest, shard, change):
    encode(tmp_path / "c", manifest, shard)
    with pytest.raises(CacheError, match=next(iter(change))):
        CacheWriter.open(tmp_path / "c", replace(manifest, **change), accept_fingerprint=True)


def test_overwrite_begins_again_with_new_generations(tmp_path, manifest, shard):
    encode(tmp_path / "c", manifest, shard)
    old = open_cache(tmp_path / "c")
    encode(tmp_path / "c", replace(manifest, fingerprint="fp-2", dim=8), shard, overwrite=True)
    new = open_cache(tmp_path / "c")
    assert [m.file for m in new.shards] == ["00000.g1.h5", "00001.g1.h5", "00002.g1.h5"]
    assert new.manifest.fingerprint == "fp-2"
    assert verify(tmp_path / "c").leftovers == []
    with pytest.raises(CacheError, match="open the cache again"):
        old.rows([0])


def test_kill_during_overwrite_leaves_a_cache_that_goes_on(tmp_path, manifest, shard, killed):
    at, finished = 0, None
    while finished is None:
        path = tmp_path / f"at{at}"
        encode(path, manifest, shard)
        finished = killed(lambda path=path: CacheWriter.open(path, manifest, overwrite=True).close(), at)
        assert verify(path).ok, at
        encode(path, manifest, shard)
        assert len(open_cache(path)) == sum(ROWS)
        at += 1
    assert finished > 20


def test_a_late_worker_changes_nothing(tmp_path, manifest, shard):
    encode(tmp_path / "c", manifest, shard)
    with CacheWriter.open(tmp_path / "c", manifest) as writer:
        unit = units()[2]
        assert writer.write_shard(unit, shard(2, 3, captions=True), expected=3).generation == 0


def test_a_foreign_folder_or_file_is_left_alone(tmp_path, manifest):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CacheError, match=r"notes\.txt and is no cache"):
        CacheWriter.open(tmp_path, manifest, overwrite=True)
    with pytest.raises(CacheError, match="A file stands"):
        CacheWriter.open(tmp_path / "notes.txt", manifest)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "cache.json").write_text('{"name": "npm"}')
    with pytest.raises(CacheError, match="not of this format"):
        CacheWriter.open(tmp_path, manifest, overwrite=True)


def test_a_key_that_stands_twice_in_a_shard_names_both_sources(tmp_path, manifest, shard):
    data = shard(0, 3)
    data.keys[2], data.sources = data.keys[0], ["a.png", "b.png", "a.jpg"]
    with pytest.raises(DuplicateKeyError, match=r"a\.png .*a\.jpg"):
        write_cache(tmp_path / "c", manifest, [data])


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "zero"), (1e30, "float32")]
)
def test_vectors_that_a_cache_cannot_hold_are_refused_by_key(tmp_path, manifest, shard, value, message):
    data = shard(0, 3)
    data.vectors[1] = value
    with pytest.raises(CacheError, match=message) as caught:
        write_cache(tmp_path / "c", manifest, [data])
    assert data.keys[1] in str(caught.value)


@pytest.mark.parametrize("vectors", [np.ones((3, 9)), np.ones((2, 8)), np.ones(3), np.ones((3, 8), int)])
def test_vectors_of_the_wrong_shape_or_type_are_refused(tmp_path, manifest, shard, vectors):
    with pytest.raises(CacheError, match="the cache takes floats"):
        write_cache(tmp_path / "c", manifest, [ShardData(shard(0, 3).keys, vectors)])


def test_an_item_that_is_neither_row_nor_ledger_line_is_refused(tmp_path, manifest, shard):
    with CacheWriter.open(tmp_path / "c", manifest) as writer:
        writer.append_plan(units(), 6)
        with pytest.raises(CacheError, match="5 rows and 0 lost items of 6 expected"):
            writer.write_shard(units()[0], shard(0, 5), expected=6)
        with pytest.raises(CacheError, match="not planned"):
            writer.write_shard(units(3, 1, [1])[0], shard(3, 1), expected=1)


def test_a_disk_that_returns_other_bytes_is_noticed_and_nothing_is_committed(tmp_path, manifest, shard, monkeypatch):
    def damage(call: str, path: Path) -> None:
        if call == "reopen" and path.name.startswith(".00000.g0"):
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

    monkeypatch.setattr(fsio, "HOOKS", [damage])
    with pytest.raises(CacheError, match="differs from what was written"):
        encode(tmp_path / "c", manifest, shard)
    assert list((tmp_path / "c/shards").iterdir()) == []


def test_a_full_disk_is_a_clear_error_and_what_was_done_stays(tmp_path, manifest, shard, monkeypatch):
    def full(call: str, path: Path) -> None:
        if call == "write" and path.name.startswith(".00002.g0"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(fsio, "HOOKS", [full])
    with pytest.raises(CacheError, match="No space left on device"):
        encode(tmp_path / "c", manifest, shard)
    monkeypatch.undo()
    assert [m.shard for m in open_cache(tmp_path / "c").shards] == [0, 1]
    assert verify(tmp_path / "c").leftovers == []


def test_write_cache_completes_what_is_missing_and_refuses_other_rows(tmp_path, manifest, shard):
    shards = [shard(0, 4), shard(1, 3)]
    write_cache(tmp_path / "c", manifest, shards)
    (tmp_path / "c/shards/00001.json").unlink()
    assert len(write_cache(tmp_path / "c", manifest, shards)) == 7
    with pytest.raises(CacheError, match="holds other rows"):
        write_cache(tmp_path / "c", manifest, [shard(0, 5)])
    assert len(write_cache(tmp_path / "c", manifest, [shard(0, 5)], overwrite=True)) == 5


def test_run_records_stand_in_runs_alone(tmp_path, manifest, shard, tree):
    encode(tmp_path / "c", manifest, shard)
    before = tree(tmp_path / "c")
    source = tmp_path / "in/file0.txt"
    source.parent.mkdir()
    source.write_text("x")
    with CacheWriter.open(tmp_path / "c", manifest) as writer:
        writer.log_run({"seconds": 1.5, "roots": {"in": str(source.parent)}})
        writer.log_run({"done": True})
    assert tree(tmp_path / "c") == before
    cache = open_cache(tmp_path / "c")
    assert cache.source_path(0) == source
    assert cache.source_path(len(cache) - 1) is None


def test_undisturbed_bytes_hold_neither_host_nor_folder(tmp_path, manifest, shard, tree):
    encode(tmp_path / "c", manifest, shard)
    for name, content in tree(tmp_path / "c").items():
        assert fsio.host_name().encode() not in content, name
        assert str(tmp_path).encode() not in content, name
