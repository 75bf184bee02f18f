from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache.bank import Bank
from cmcr.cache.errors import CacheError, CmcrError, FitError, RecipeError
from cmcr.cache.manifest import CacheManifest, rows_unit
from cmcr.cache.reader import Cache, open_cache
from cmcr.cache.verify import verify
from cmcr.cache.writer import CacheWriter, ShardData
from cmcr.trainer import completed_cache as module
from cmcr.trainer.completed_cache import complete, completed_cache, plan_complete
from cmcr.trainer.completion import complete_rows
from cmcr.trainer.settings import CompletionSettings


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a cache but its run records."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "runs" not in path.relative_to(folder).parts
    }


@pytest.fixture
def caches(make_cache: Callable[..., object], unit: Callable[..., np.ndarray], tmp_path: Path) -> Path:
    captions = [f"caption {i}" for i in range(230)]
    make_cache("texts", unit(230, 12, 1), captions=captions, shard=100)
    make_cache("images", unit(90, 12, 2), modality="image", keys=[f"i{i}" for i in range(90)])
    make_cache("more", unit(31, 12, 3), modality="image", keys=[f"m{i}" for i in range(31)], dtype="float16")
    return tmp_path


def test_a_completed_cache_has_the_keys_captions_and_shards_of_its_query(caches: Path) -> None:
    report = complete(caches / "texts", [caches / "images", caches / "more"], caches / "done", 0.05)
    query, done = open_cache(caches / "texts"), open_cache(caches / "done")
    assert (report.rows, report.shards, report.skipped, report.bank_rows) == (230, 3, 0, 121)
    assert done.keys() == query.keys()
    assert done.captions(range(230)) == query.captions(range(230))
    assert [marker.ok for marker in done.shards] == [100, 100, 30]
    bank = Bank([open_cache(caches / "images"), open_cache(caches / "more")])
    expected = complete_rows(query.rows(np.arange(230)), bank, 0.05)
    np.testing.assert_allclose(done.rows(np.arange(230), normalize=False), expected.vectors, atol=1e-6)
    assert report.neighbours == pytest.approx(float(np.median(expected.neighbours)), rel=1e-3)
    assert (done.manifest.kind, done.manifest.modality, done.dtype) == ("completed", "image", "float32")
    assert verify(caches / "done").ok
    assert report.line().startswith("each caption averages ")


@pytest.fixture
def growing(tmp_path: Path, unit: Callable[..., np.ndarray]) -> Callable[..., Cache]:
    """``growing(sizes, seeds={})``: a text cache whose plan gains one generation of one shard for each new size."""

    def grow(sizes: Sequence[int], seeds: Mapping[int, int] = {}) -> Cache:
        manifest = CacheManifest("id-one", "one", "text", "test:text", "fp-one-text", 12, "float32")
        with CacheWriter.open(tmp_path / "growing", manifest) as writer:
            for number, rows in enumerate(sizes):
                if number == len(writer.plans):
                    writer.append_plan([rows_unit(number, f"part-{number}", 0, rows, f"input-{number}")], rows)
                done = number in open_numbers(writer.path)
                if not done or number in seeds:
                    keys = [f"part-{number}:{row}" for row in range(rows)]
                    vectors = unit(rows, 12, seeds.get(number, 100 + number))
                    writer.write_shard(writer.plans[number].units[0], ShardData(keys, vectors), expected=rows)
        return open_cache(tmp_path / "growing")

    return grow


def open_numbers(path: Path) -> set[int]:
    """Numbers of the shards that a cache has."""
    return {marker.shard for marker in open_cache(path).shards}


def every_row(cache: Cache) -> np.ndarray:
    """The stored vectors, bit for bit."""
    return cache.read(0, len(cache), normalize=False)


def test_a_query_that_grew_costs_its_new_shards_alone_and_equals_a_fresh_completion(
    caches: Path, growing: Callable[..., Cache]
) -> None:
    bank = [open_cache(caches / "images")]
    first, report = completed_cache(growing([70, 50]), bank, CompletionSettings())
    assert (report.shards, report.rows) == (2, 120)
    stamps = {file: file.stat().st_mtime_ns for file in (first.path / "shards").iterdir()}
    query = growing([70, 50, 33, 9])
    done, report = completed_cache(query, bank, CompletionSettings())
    assert (report.shards, report.skipped, report.renewed, report.vanished, report.rows) == (2, 2, 0, 0, 162)
    assert done.path == first.path
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    fresh, _ = completed_cache(query, bank, CompletionSettings(), caches / "fresh")
    assert done.keys() == fresh.keys() == query.keys()
    np.testing.assert_array_equal(every_row(done), every_row(fresh))
    assert done.meta(range(162)) == fresh.meta(range(162))
    assert verify(done.path).ok
    _, again = completed_cache(query, bank, CompletionSettings())
    assert (again.shards, again.skipped) == (0, 4)
    assert [path.name for path in (caches / "completions").iterdir()] == [done.path.name]


def test_a_retried_shard_of_the_query_is_renewed(caches: Path, growing: Callable[..., Cache]) -> None:
    bank = [open_cache(caches / "images")]
    before, _ = completed_cache(growing([70, 50, 33]), bank, CompletionSettings())
    query = growing([70, 50, 33], seeds={1: 9})
    done, report = completed_cache(query, bank, CompletionSettings())
    assert (report.shards, report.skipped, report.renewed) == (1, 2, 1)
    assert done.path == before.path
    fresh, _ = completed_cache(query, bank, CompletionSettings(), caches / "fresh")
    np.testing.assert_array_equal(every_row(done), every_row(fresh))
    assert sorted(file.name for file in (done.path / "shards").glob("*.h5")) == [
        "00000.g0.h5",
        "00001.g1.h5",
        "00002.g0.h5",
    ]
    assert verify(done.path).ok


def test_an_accepted_fingerprint_keeps_the_completion(caches: Path, growing: Callable[..., Cache]) -> None:
    bank = [open_cache(caches / "images")]
    query = growing([70, 50])
    first, _ = completed_cache(query, bank, CompletionSettings())
    CacheWriter.open(query.path, replace(query.manifest, fingerprint="newer"), accept_fingerprint=True).close()
    second, report = completed_cache(open_cache(query.path), bank, CompletionSettings())
    assert (report.shards, second.path) == (0, first.path)


def test_rows_that_the_query_lost_are_taken_back(caches: Path) -> None:
    complete(caches / "texts", caches / "images", caches / "done")
    (caches / "texts" / "shards" / "00001.json").rename(caches / "kept.json")
    report = complete(caches / "texts", caches / "images", caches / "done")
    assert (report.shards, report.vanished, report.rows) == (0, 1, 130)
    (caches / "kept.json").rename(caches / "texts" / "shards" / "00001.json")
    report = complete(caches / "texts", caches / "images", caches / "done")
    assert (report.shards, report.skipped, report.rows) == (1, 2, 230)
    assert verify(caches / "done").ok


def test_queries_of_one_name_and_encoder_but_other_input_do_not_share_a_completion(
    caches: Path, make_cache: Callable[..., object], unit: Callable[..., np.ndarray]
) -> None:
    bank, folder = [open_cache(caches / "images")], caches / "shared"
    one, _ = completed_cache(open_cache(caches / "texts"), bank, CompletionSettings(), folder)
    make_cache("elsewhere/texts", unit(230, 12, 9), shard=100)
    two, report = completed_cache(open_cache(caches / "elsewhere" / "texts"), bank, CompletionSettings(), folder)
    assert report.shards == 3
    assert one.path != two.path


@pytest.mark.parametrize(
    ("given", "name"), [({"tau": 0.0}, "tau"), ({"tau": float("nan")}, "tau"), ({"bank_rows": 0}, "bank_rows")]
)
def test_a_setting_that_is_not_valid_says_which_and_what_to_do(
    caches: Path, given: dict[str, float], name: str
) -> None:
    with pytest.raises(RecipeError, match=f"{name}: input should be") as error:
        complete(caches / "texts", caches / "images", caches / "done", **given)
    assert error.value.where
    assert f"--{name.replace('_', '-')}" in str(error.value.todo)
    assert not (caches / "done").exists()


def test_a_device_that_does_not_exist_is_refused(caches: Path) -> None:
    with pytest.raises(CmcrError, match="device"):
        complete(caches / "texts", caches / "images", caches / "done", device="abacus")
    assert not (caches / "done").exists()


def test_progress_counts_the_rows_of_every_block(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUERY_ROWS", 60)
    seen: list[tuple[int, int]] = []
    complete(caches / "texts", caches / "images", caches / "done", progress=lambda *now: seen.append(now))
    assert seen == [(60, 230), (100, 230), (160, 230), (200, 230), (230, 230)]


def test_other_settings_or_another_bank_do_not_go_into_the_same_cache(caches: Path) -> None:
    complete(caches / "texts", caches / "images", caches / "done")
    with pytest.raises(CacheError, match="fingerprint"):
        complete(caches / "texts", caches / "images", caches / "done", tau=0.02)
    with pytest.raises(CacheError, match="fingerprint"):
        complete(caches / "texts", caches / "more", caches / "done")
    report = complete(caches / "texts", caches / "more", caches / "done", overwrite=True)
    assert report.shards == 3


def test_a_bank_of_another_space_is_refused_naming_both(
    caches: Path, make_cache: Callable[..., object], unit: Callable[..., np.ndarray]
) -> None:
    make_cache("alien", unit(10, 12), space="other", modality="audio")
    with pytest.raises(FitError) as error:
        complete(caches / "texts", caches / "alien", caches / "done")
    assert "'one'" in str(error.value)
    assert "'other'" in str(error.value)
    assert not (caches / "done").exists()


def test_a_completion_is_found_again_by_bank_and_settings(caches: Path) -> None:
    query, bank = open_cache(caches / "texts"), [open_cache(caches / "images")]
    first, made = completed_cache(query, bank, CompletionSettings())
    second, found = completed_cache(query, bank, CompletionSettings(seed=5))  # a seed that decides nothing
    assert (made.shards, found.shards) == (3, 0)
    assert first.path == second.path
    assert first.path.parent == caches / "completions"
    other, remade = completed_cache(query, bank, CompletionSettings(bank_rows=40, seed=5), caches / "elsewhere")
    assert remade.shards == 3
    assert remade.bank_rows == 40
    assert other.path.parent == caches / "elsewhere"


def test_kill_during_a_completion_leaves_the_bytes_of_an_undisturbed_one(caches: Path) -> None:
    script = """
import os, signal, sys
from cmcr.cache import fsio
from cmcr.trainer.completed_cache import complete
def hook(call, path):
    if call == "link" and path.name == "00001.json":
        os.kill(os.getpid(), signal.SIGKILL)
fsio.HOOKS.append(hook)
complete(sys.argv[1], sys.argv[2], sys.argv[3], 0.05)
"""
    complete(caches / "texts", caches / "images", caches / "calm", 0.05)
    arguments = [str(caches / "texts"), str(caches / "images"), str(caches / "torn")]
    killed = subprocess.run([sys.executable, "-c", script, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    assert len(open_cache(caches / "torn").shards) == 1
    complete(caches / "texts", caches / "images", caches / "torn", 0.05)
    assert files(caches / "torn") == files(caches / "calm")


def test_a_planned_completion_is_resumed_shard_by_shard(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, done = CacheWriter.write_shard, []

    def stop_after_one(self: CacheWriter, unit: object, *rest: object, **named: object) -> object:
        if done:
            raise KeyboardInterrupt
        done.append(unit)
        return write(self, unit, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(CacheWriter, "write_shard", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        complete(caches / "texts", caches / "images", caches / "done")
    monkeypatch.setattr(CacheWriter, "write_shard", write)
    report = complete(caches / "texts", caches / "images", caches / "done")
    assert (report.shards, report.skipped) == (2, 1)


def test_a_completion_asked_to_stop_finishes_its_shard_and_says_what_is_left(caches: Path) -> None:
    class Asked:
        """Asks for the end as soon as somebody listens."""

        def when(self, call: Callable[[], None]) -> None:
            self.call = call

    stop, whole = Asked(), complete(caches / "texts", caches / "images", caches / "whole", 0.05)
    assert whole.unfinished == 0
    report = complete(
        caches / "texts", caches / "images", caches / "out", 0.05, progress=lambda done, total: stop.call(), stop=stop
    )
    assert (report.shards, report.unfinished) == (1, whole.shards - 1)
    rest = complete(caches / "texts", caches / "images", caches / "out", 0.05)
    assert (rest.shards, rest.skipped) == (whole.shards - 1, 1)
    assert files(caches / "out") == files(caches / "whole")


def test_a_dry_run_counts_what_a_completion_would_make_and_writes_nothing(caches: Path) -> None:
    plan = plan_complete(caches / "texts", caches / "images", caches / "out", "auto")
    assert (plan.shards_before, plan.rows) == (0, len(open_cache(caches / "texts")))
    assert not (caches / "out").exists()
    report = complete(caches / "texts", caches / "images", caches / "out", "auto")
    assert report.shards == plan.shards_now
    assert plan_complete(caches / "texts", caches / "images", caches / "out", "auto").shards_now == 0
    with pytest.raises(CacheError):
        plan_complete(caches / "texts", caches / "images", caches / "out", 0.3)
