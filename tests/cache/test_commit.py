"""A paused worker goes on at any later time: it never puts older markers or other bytes in the place of newer ones."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache import commit, fsio
from cmcr.cache.ledger import Failure
from cmcr.cache.manifest import CacheManifest
from cmcr.cache.marker import find_marker
from cmcr.cache.plan import Piece, Unit
from cmcr.cache.reader import open_cache
from cmcr.cache.shard import ShardData
from cmcr.cache.verify import verify
from cmcr.cache.writer import CacheWriter

UNIT = Unit(0, (Piece("lines", "t.txt", 2, "identity"),))
LOST = [Failure("file0:000000002", "read", "OSError", "the file server was away")]
MakeShard = Callable[..., ShardData]


def begun(path: Path, manifest: CacheManifest) -> CacheWriter:
    writer = CacheWriter.open(path, manifest)
    if not writer.plans:
        writer.append_plan([UNIT], 2)
    return writer


def write(path: Path, manifest: CacheManifest, data: ShardData) -> None:
    """One attempt of a worker at the shard: both rows, or one row and one lost item."""
    lost = LOST[: 2 - len(data.keys)]
    begun(path, manifest).write_shard(UNIT, data, lost, expected=2)


def in_another_process(job: Callable[[], None]) -> None:
    process = multiprocessing.get_context("fork").Process(target=job)
    process.start()
    process.join()
    assert process.exitcode == 0


def steps_of(job: Callable[[], None]) -> int:
    calls: list[str] = []
    hook = lambda call, path: calls.append(call)  # noqa: E731
    fsio.HOOKS.append(hook)
    try:
        job()
    finally:
        fsio.HOOKS.remove(hook)
    return len(calls)


def paused(job: Callable[[], None], at: int, meanwhile: Callable[[], None]) -> None:
    """Run ``job``; before its file-system call number ``at`` it stands still while ``meanwhile`` happens elsewhere."""
    calls = 0

    def hook(call: str, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == at + 1:
            fsio.HOOKS.remove(hook)
            in_another_process(meanwhile)

    fsio.HOOKS.append(hook)
    job()
    if hook in fsio.HOOKS:
        fsio.HOOKS.remove(hook)


def attempt(shard: MakeShard, number: int, rows: int = 2) -> ShardData:
    """What a worker has in hand: no two attempts are alike, as when a file server fails now and then."""
    return replace(shard(0, rows), captions=[f"attempt {number}"] * rows)


@pytest.mark.parametrize("rows", [2, 1], ids=["all its rows", "one lost item"])
@pytest.mark.parametrize("retrying", [False, True], ids=["first write", "retry"])
def test_a_worker_paused_anywhere_while_its_shard_is_retried_never_puts_an_older_marker_back(
    tmp_path: Path, manifest: CacheManifest, shard: MakeShard, retrying: bool, rows: int
) -> None:
    def start(path: Path) -> None:
        begun(path, manifest).close()
        if retrying:
            write(path, manifest, attempt(shard, 0, 1))

    def mine(path: Path) -> None:
        write(path, manifest, attempt(shard, 1, rows))

    def story(path: Path) -> None:
        write(path, manifest, attempt(shard, 2, 1))  # took the lease over; an item was lost
        write(path, manifest, attempt(shard, 3))  # --retry-failed: now both rows are there

    start(tmp_path / "count")
    count = steps_of(lambda: mine(tmp_path / "count"))
    for at in range(count):
        path = tmp_path / f"c{at}"
        start(path)
        paused(lambda: mine(path), at, lambda: story(path))  # noqa: B023
        cache = open_cache(path)
        assert cache.captions(range(2)) == ["attempt 3"] * 2, f"paused before call {at}, an older marker is back"
        report = verify(path)
        assert report.ok, (at, report.problems)
        CacheWriter.open(path, manifest).close()
        left = [name for name in verify(path).leftovers if not newer(name, cache.shards[0].generation)]
        assert left == [], at


def newer(name: str, generation: int) -> bool:
    """Whether a leftover is of a higher generation than the committed one: nobody can tell that its writer is gone."""
    stem = Path(name).name.split(".")
    return name.startswith(("shards/", "errors/")) and stem[1].startswith("g") and int(stem[1][1:]) > generation


class Scheduler:
    """Lets one thread at a time make one file-system call, in an order drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.turn = threading.Condition()
        self.waiting: set[int] = set()
        self.running = 0
        self.chosen: int | None = None

    def hook(self, call: str, path: Path) -> None:
        me = threading.get_ident()
        with self.turn:
            self.waiting.add(me)
            self.running -= 1
            self._choose()
            self.turn.wait_for(lambda: self.chosen == me)
            self.chosen = None
            self.waiting.discard(me)
            self.running += 1

    def _choose(self) -> None:
        if self.running == 0 and self.chosen is None and self.waiting:
            self.chosen = self.chance.choice(sorted(self.waiting))
            self.turn.notify_all()

    def run(self, jobs: list[Callable[[], None]]) -> None:
        failed: list[BaseException] = []

        def live(job: Callable[[], None]) -> None:
            try:
                job()
            except BaseException as error:
                failed.append(error)
            with self.turn:
                self.running -= 1
                self._choose()

        self.running = len(jobs)
        threads = [threading.Thread(target=live, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if failed:
            raise failed[0]


@pytest.mark.parametrize("seed", range(40))
def test_three_writers_of_one_shard_in_any_order_of_calls_end_in_a_sound_shard(
    tmp_path: Path, manifest: CacheManifest, shard: MakeShard, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, chance = tmp_path / "c", random.Random(seed)
    begun(path, manifest).close()
    if chance.random() < 0.5:
        write(path, manifest, attempt(shard, 0, 1))
    plain = fsio.temporary_name
    monkeypatch.setattr(fsio, "temporary_name", lambda p: plain(p).with_name(f"{plain(p).name}{threading.get_ident()}"))
    writers = [CacheWriter.open(path, manifest) for _ in range(3)]
    results: list[Any] = []

    def job(writer: CacheWriter, tries: list[tuple[int, int]]) -> Callable[[], None]:
        def work() -> None:
            for number, rows in tries:
                data = attempt(shard, number, rows)
                results.append(writer.write_shard(UNIT, data, LOST[: 2 - rows], expected=2))

        return work

    scheduler = Scheduler(seed)
    monkeypatch.setattr(fsio, "HOOKS", [scheduler.hook])
    scheduler.run([job(writer, [(chance.randrange(4), chance.choice([1, 2])) for _ in range(2)]) for writer in writers])
    monkeypatch.setattr(fsio, "HOOKS", [])
    found = find_marker(path, 0)
    assert found is not None
    assert verify(path).ok, verify(path).problems
    assert found.generation == max(marker.generation for marker in results), (found, results)


def test_a_marker_on_its_way_whose_writer_died_is_swept_and_never_counts(
    tmp_path: Path, manifest: CacheManifest, shard: MakeShard
) -> None:
    write(tmp_path, manifest, shard(0, 1))
    done = find_marker(tmp_path, 0)
    assert done is not None
    (tmp_path / "shards" / ".00000.json.next").write_bytes(b"{}")
    assert verify(tmp_path).leftovers == ["shards/.00000.json.next"]
    assert list(open_cache(tmp_path).shards) == [done]
    CacheWriter.open(tmp_path, manifest).close()
    assert verify(tmp_path).leftovers == []


def test_taking_back_a_shard_that_was_written_again_meanwhile_leaves_the_new_one(
    tmp_path: Path, manifest: CacheManifest, shard: MakeShard
) -> None:
    write(tmp_path, manifest, shard(0, 1))
    seen = find_marker(tmp_path, 0)
    assert seen is not None
    write(tmp_path, manifest, shard(0, 2))
    assert not commit.drop(tmp_path, seen)
    now = find_marker(tmp_path, 0)
    assert now is not None
    assert (now.state, now.generation) == ("done", 1)
    assert commit.drop(tmp_path, now)
    assert find_marker(tmp_path, 0) == replace(now, state="dropped")


def test_without_hard_links_files_are_still_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(fsio.os, "link", refuse)
    file = tmp_path / "f"
    assert fsio.create_atomic(file, b"one")
    assert fsio.create_atomic(file, b"one")
    assert not fsio.create_atomic(file, b"two")
    assert file.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
