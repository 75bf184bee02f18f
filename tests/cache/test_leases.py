"""Leases: one holder at a time, takeovers by the observer's own clock, nothing left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cmcr.cache.claims import Claims
from cmcr.cache.errors import CacheError, RecipeError
from cmcr.cache.lease_files import Holder, claim_files, machine, read_claims
from cmcr.cache.leases import Leases, expiry
from cmcr.cache.plan import Piece, Unit
from cmcr.cache.writer import CacheWriter
from hypothesis import given, settings
from hypothesis import strategies as st


class Clock:
    """A clock of an observer, set by hand."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def worker(path: Path, clock: Clock, machine: str = "elsewhere", seconds: float = 60.0) -> Leases:
    """A worker whose process nobody here can see."""
    leases = Leases(path, seconds, clock)
    leases.holder = Holder(leases.holder.worker, machine, 1, 1)
    return leases


def units(count: int) -> list[Unit]:
    return [Unit(i, (Piece("lines", "t.txt", 2, f"identity-{i}"),)) for i in range(count)]


def test_only_one_of_two_gets_a_lease_until_it_is_given_back(tmp_path: Path) -> None:
    with Leases(tmp_path) as one, Leases(tmp_path) as other:
        assert one.claim("00000")
        assert not other.claim("00000")
        assert other.claim("00001")
        one.release("00000")
        assert other.claim("00000")
    assert not (tmp_path / "leases").exists()


def test_a_lease_expires_on_the_observers_clock_alone(tmp_path: Path) -> None:
    owner, clock = worker(tmp_path, Clock(1e9)), Clock(-5e6)
    observer = worker(tmp_path, clock, "another")
    assert owner.claim("00003")
    os.utime(tmp_path / "leases" / "00003.c0", (0, 0))  # file times mean nothing
    assert not observer.claim("00003")
    clock.now += 59.9
    assert not observer.claim("00003")
    owner._beat()
    clock.now += 59.9
    assert not observer.claim("00003"), "the heartbeat changed in between"
    clock.now += 60.0
    assert observer.claim("00003")
    assert read_claims(tmp_path)["00003"].turn == 1
    owner.release("00003")  # a late owner takes nothing away from the new one
    assert read_claims(tmp_path)["00003"].holder == observer.holder
    owner.close()
    observer.close()


def test_an_observer_that_slept_does_not_take_a_lease_that_lives(tmp_path: Path) -> None:
    owner, clock = worker(tmp_path, Clock()), Clock()
    observer = worker(tmp_path, clock, "another")
    assert owner.claim("00000")
    assert not observer.claim("00000")
    for _ in range(5):
        owner._beat()
        clock.now += 1e6
        assert not observer.claim("00000")
    owner.close()
    observer.close()


def test_exactly_one_of_many_takes_an_expired_lease_over(tmp_path: Path) -> None:
    lost = worker(tmp_path, Clock())
    assert lost.claim("00000")
    clock = Clock()
    takers = [worker(tmp_path, clock, f"m{i}") for i in range(8)]
    assert not any(taker.claim("00000") for taker in takers)
    clock.now = 61.0
    got: list[bool] = []
    start = threading.Barrier(len(takers))

    def take(taker: Leases) -> None:
        start.wait()
        got.append(taker.claim("00000"))

    threads = [threading.Thread(target=take, args=(taker,)) for taker in takers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 1
    for taker in [*takers, lost]:
        taker.close()
    assert not (tmp_path / "leases").exists()


def test_a_dead_process_of_this_machine_loses_its_leases_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from cmcr.cache.leases import Leases\n"
        "assert Leases(Path(sys.argv[1])).claim('00000'); print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with Leases(tmp_path) as observer:
        assert not observer.claim("00000")
        child.send_signal(signal.SIGKILL)
        while Path(f"/proc/{child.pid}/stat").exists() and b") Z" not in Path(f"/proc/{child.pid}/stat").read_bytes():
            time.sleep(0.01)  # a zombie is dead too: nobody has waited for it yet
        assert observer.claim("00000")
        child.wait()
        observer.release("00000")
    assert [entry.name for entry in (tmp_path / "leases").iterdir()] != []  # the heartbeat of the killed
    with Leases(tmp_path) as observer:
        observer.clear(lambda name: True)
    assert not (tmp_path / "leases").exists()


def test_a_process_id_used_again_is_not_the_holder() -> None:
    assert Holder("w", machine(), os.getpid(), 17).is_dead()
    assert not Holder("w", "elsewhere", 999_999_999, 17).is_dead()


def test_a_claim_half_written_counts_as_held_until_it_expires(tmp_path: Path) -> None:
    clock = Clock()
    observer = worker(tmp_path, clock)
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "00000.c0").write_bytes(b"")
    assert not observer.claim("00000")
    clock.now = 60.0
    assert observer.claim("00000")
    observer.close()


def test_heartbeats_go_on_while_a_lease_is_held_and_only_then(tmp_path: Path) -> None:
    leases = Leases(tmp_path, seconds=0.12)
    assert leases.claim("00000")
    beat = tmp_path / "leases" / f"{leases.holder.worker}.beat"
    first = int(beat.read_text())
    time.sleep(0.3)
    assert int(beat.read_text()) > first
    assert json.loads((tmp_path / "leases" / "00000.c0").read_text())["format"] == "cmcr-lease"
    leases.release("00000")
    time.sleep(0.05)
    last = int(beat.read_text())
    time.sleep(0.15)
    assert int(beat.read_text()) == last
    leases.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["claim", "release", "beat", "wait"])), max_size=30))
def test_two_hold_a_lease_only_after_one_was_silent_for_its_time(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]]
) -> None:
    path, clock = tmp_path_factory.mktemp("l"), Clock()
    crew = [worker(path, clock, f"m{i}", 10.0) for i in range(3)]
    silent_since = [0.0] * 3
    holds: set[int] = set()
    for who, what in steps:
        if what == "wait":
            clock.now += 6.0
        elif what == "beat":
            crew[who]._beat()
            silent_since[who] = clock.now
        elif what == "release":
            crew[who].release("00000")
            holds.discard(who)
        elif who not in holds and crew[who].claim("00000"):
            silent_since[who] = clock.now
            late = [other for other in holds if clock.now - silent_since[other] < 10.0]
            assert not late
            holds.add(who)
    for one in crew:
        one.close()


def test_the_time_of_expiry_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMCR_LEASE_SECONDS", "2.5")
    assert expiry() == 2.5
    for wrong in ("soon", "-1", "0", "nan", "inf", "1e9"):
        monkeypatch.setenv("CMCR_LEASE_SECONDS", wrong)
        with pytest.raises(RecipeError, match="CMCR_LEASE_SECONDS"):
            expiry()


def opened(path: Path, manifest, count: int) -> CacheWriter:  # type: ignore[no-untyped-def]
    writer = CacheWriter.open(path, manifest)
    if not writer.plans:
        writer.append_plan(units(count), 2)
    return writer


def test_three_writers_share_the_units_and_each_shard_is_written_once(tmp_path, manifest, shard, tree):  # type: ignore[no-untyped-def]
    def work(path: Path) -> None:
        with opened(path, manifest, 23) as writer:
            claims = Claims(writer, writer.pending())
            for unit in claims:
                writer.write_shard(unit, shard(unit.shard, 2), expected=2)
                with (path.parent / f"{path.name}.txt").open("a") as seen:
                    seen.write(f"{unit.shard}\n")
                claims.done(unit)

    work(tmp_path / "alone")
    opened(tmp_path / "all", manifest, 23).close()
    fork = multiprocessing.get_context("fork")
    crew = [fork.Process(target=work, args=(tmp_path / "all",)) for _ in range(3)]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
    assert [process.exitcode for process in crew] == [0, 0, 0]
    assert [int(line) for line in (tmp_path / "alone.txt").read_text().split()] == list(range(23))
    assert sorted(int(line) for line in (tmp_path / "all.txt").read_text().split()) == list(range(23))
    assert tree(tmp_path / "all") == tree(tmp_path / "alone")
    assert not (tmp_path / "all" / "leases").exists()


def test_workers_by_number_take_every_nth_shard_and_no_lease(tmp_path, manifest):  # type: ignore[no-untyped-def]
    with opened(tmp_path, manifest, 7) as writer:
        parts = [[unit.shard for unit in Claims(writer, writer.pending(), part=(i, 3))] for i in range(3)]
        assert parts == [[0, 3, 6], [1, 4], [2, 5]]
        assert not (tmp_path / "leases").exists()


def test_a_unit_put_aside_ends_the_run_of_its_worker_and_stays_open_for_others(tmp_path, manifest):  # type: ignore[no-untyped-def]
    with opened(tmp_path, manifest, 3) as writer:
        claims = Claims(writer, writer.pending())
        for unit in claims:
            claims.put_aside(unit)
        assert claims.unfinished == {0, 1, 2}
        assert claim_files(tmp_path / "leases") == []
        again = Claims(writer, writer.pending())
        assert [again.put_aside(unit) or unit.shard for unit in again] == [0, 1, 2]


def test_a_waiting_worker_stops_when_it_is_told(tmp_path, manifest):  # type: ignore[no-untyped-def]
    with opened(tmp_path, manifest, 1) as writer, Leases(tmp_path) as other:
        assert other.claim("00000")
        told: list[int] = []
        claims = Claims(writer, writer.pending(), waiting=told.append)
        threading.Timer(0.2, claims.stop).start()
        assert list(claims) == []
        assert told == [1]
        assert claims.unfinished == {0}


def test_overwriting_is_refused_while_another_worker_writes(tmp_path, manifest):  # type: ignore[no-untyped-def]
    opened(tmp_path, manifest, 2).close()
    with Leases(tmp_path) as other:
        assert other.claim("00001")
        with pytest.raises(CacheError, match="Other workers hold leases"):
            CacheWriter.open(tmp_path, manifest, overwrite=True)
    CacheWriter.open(tmp_path, manifest, overwrite=True).close()


def test_a_shard_tried_again_by_another_worker_is_not_tried_twice(tmp_path, manifest, shard):  # type: ignore[no-untyped-def]
    from cmcr.cache.ledger import Failure

    lost = [Failure("bad", "decode", "ItemError", "no")]
    with opened(tmp_path, manifest, 2) as writer:
        for unit in writer.pending():
            writer.write_shard(unit, shard(unit.shard, 1), lost, expected=2)
        first = Claims(writer, writer.pending(retry_failed=True), retry=True)
        with CacheWriter.open(tmp_path, manifest) as second:
            rest = Claims(second, second.pending(retry_failed=True), retry=True)
            mine, theirs = iter(first), iter(rest)
            unit = next(mine)
            other = next(theirs)
            assert (unit.shard, other.shard) == (0, 1)
            writer.write_shard(unit, shard(0, 2), expected=2)
            first.done(unit)
            rest.done(other)  # it failed again: nothing was written
            assert list(theirs) == []
