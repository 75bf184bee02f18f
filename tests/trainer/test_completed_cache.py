from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache.bank import Bank
from cmcr.cache.errors import CacheError, FitError
from cmcr.cache.reader import open_cache
from cmcr.cache.verify import verify
from cmcr.cache.writer import CacheWriter
from cmcr.trainer.completed_cache import complete, completed_cache
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


def test_completing_again_does_nothing_and_new_shards_alone_are_completed(
    caches: Path, make_cache: Callable[..., object], unit: Callable[..., np.ndarray]
) -> None:
    whole = complete(caches / "texts", caches / "images", caches / "whole")
    partial = caches / "partial"
    shutil.copytree(caches / "texts", partial)
    (partial / "shards" / "00002.json").unlink()  # as it was before its last shard came
    first = complete(partial, caches / "images", caches / "done")
    assert (first.shards, first.rows) == (2, 200)
    shutil.copy(caches / "texts" / "shards" / "00002.json", partial / "shards")
    second = complete(partial, caches / "images", caches / "done")
    assert (second.shards, second.skipped, second.rows) == (1, 2, 230)
    again = complete(partial, caches / "images", caches / "done")
    assert (again.shards, again.skipped) == (0, 3)
    keep = "shards/00000.g0.h5", "shards/00002.g0.h5", "cache.json"
    assert {n: b for n, b in files(caches / "done").items() if n in keep} == {
        n: b for n, b in files(whole.folder).items() if n in keep
    }


def test_a_query_shard_with_other_content_is_refused(
    caches: Path, make_cache: Callable[..., object], unit: Callable[..., np.ndarray]
) -> None:
    complete(caches / "texts", caches / "images", caches / "done")
    shutil.rmtree(caches / "texts")
    make_cache("texts", unit(230, 12, 9), shard=100)
    with pytest.raises(CacheError, match="other content now"):
        complete(caches / "texts", caches / "images", caches / "done")


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


def test_a_completion_is_found_again_by_content_and_settings(caches: Path) -> None:
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
    if call == "replace" and path.name == "00001.json":
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
