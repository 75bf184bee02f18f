"""A projected gallery: the same rows in the shared space, made once, kept up to date, the same bytes after a kill."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache.errors import CacheError, CmcrError, ConnectorError
from cmcr.cache.manifest import rows_unit
from cmcr.cache.reader import Cache, open_cache
from cmcr.cache.verify import verify
from cmcr.cache.writer import CacheWriter, ShardData
from cmcr.pipeline.project import plan_project, project
from cmcr.pipeline.shared import connector_fingerprint
from cmcr.pipeline.stopping import StopSignal
from cmcr.trainer.connector import Connector
from cmcr.trainer.projectors import ProjectorSpec, build_projector

MakeConnector = Callable[..., Connector]
MakeCache = Callable[..., Cache]


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a cache but the run records."""
    found = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in found.items() if not name.startswith(("runs", "index"))}


def grow(cache: Cache, name: str, rows: int) -> Cache:
    """Append one shard of random rows to a cache."""
    with CacheWriter.open(cache.path, cache.manifest) as writer:
        unit = rows_unit(writer.next_shard(), name, 0, rows, name)
        writer.append_plan([unit], rows)
        vectors = np.random.default_rng(len(cache)).normal(size=(rows, cache.dim)).astype(np.float32)
        writer.write_shard(unit, ShardData([f"{name}/{n}" for n in range(rows)], vectors), expected=rows)
    return open_cache(cache.path)


def test_projected_rows_are_the_heads_output_with_everything_known_about_them(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector = make_connector()
    columns = {
        "captions": [f"caption {n}" if n % 3 else None for n in range(25)],
        "sources": [f"photos/{n}.jpg" for n in range(25)],
        "meta": [{"label": n % 4} for n in range(25)],
    }
    raw = make_cache("raw", 25, shards=(10, 10, 5), **columns)
    report = project(connector, raw, tmp_path / "out", batch_size=4, dtype="float32")
    shared = open_cache(tmp_path / "out")
    everything = np.arange(25)
    np.testing.assert_allclose(shared.rows(everything), connector.project(raw.rows(everything), "clip"), atol=1e-6)
    assert shared.keys() == raw.keys()
    assert shared.captions(everything) == columns["captions"]
    assert shared.sources(everything) == columns["sources"]
    assert shared.meta(everything) == columns["meta"]
    assert [marker.ok for marker in shared.shards] == [10, 10, 5]
    assert (report.shards, report.rows, report.kept, report.space, report.dim) == (3, 25, 0, "clip", 6)
    assert verify(tmp_path / "out").ok


def test_the_manifest_says_what_the_gallery_was_made_from(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector, raw = make_connector(), make_cache("raw", 5)
    project(connector, raw, tmp_path / "out")
    manifest = open_cache(tmp_path / "out").manifest
    print_ = connector_fingerprint(connector)
    assert (manifest.kind, manifest.space_id, manifest.space_name) == ("projected", f"shared:{print_}", "clap+clip")
    assert (manifest.modality, manifest.dim, manifest.dtype) == ("image", 6, "float16")
    assert manifest.made_from == {"connector": print_, "space": "clip", "cache": raw.content_id()}


def test_running_again_projects_only_what_is_new(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector, raw = make_connector(), make_cache("raw", 20, shards=(10, 10))
    project(connector, raw, tmp_path / "out")
    before = files_of(tmp_path / "out")
    again = project(connector, raw, tmp_path / "out")
    assert (again.shards, again.kept, again.rows) == (0, 2, 0)
    assert files_of(tmp_path / "out") == before
    raw = grow(raw, "monday", 7)
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "shards").iterdir()}
    report = project(connector, raw, tmp_path / "out")
    assert (report.shards, report.kept, report.rows) == (1, 2, 7)
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    shared = open_cache(tmp_path / "out")
    assert shared.keys() == raw.keys()
    assert shared.manifest.made_from["cache"] == raw.content_id()
    assert verify(tmp_path / "out").ok


def test_a_rewritten_shard_of_the_raw_cache_is_projected_again(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector, raw = make_connector(), make_cache("raw", 20, shards=(10, 10))
    project(connector, raw, tmp_path / "out", dtype="float32")
    fresh = np.random.default_rng(9).normal(size=(10, 12)).astype(np.float32)
    with CacheWriter.open(raw.path, raw.manifest) as writer:
        unit = writer.plans[0].units[1]
        writer.write_shard(unit, ShardData(raw.key_range(10, 20), fresh), expected=10)
    report = project(connector, raw.path, tmp_path / "out", dtype="float32")
    assert (report.shards, report.renewed, report.kept) == (1, 1, 1)
    shared = open_cache(tmp_path / "out")
    np.testing.assert_allclose(shared.rows(np.arange(10, 20)), connector.project(fresh, "clip"), atol=1e-6)
    assert verify(tmp_path / "out").ok
    assert project(connector, raw.path, tmp_path / "out", dtype="float32").shards == 0


def test_rows_that_the_raw_cache_lost_are_no_longer_found(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector, raw = make_connector(), make_cache("raw", 20, shards=(10, 10))
    project(connector, raw, tmp_path / "out")
    smaller = make_cache("smaller", raw.rows(np.arange(10)), keys=raw.key_range(0, 10))
    for name in ("shards", "plan-00000.json"):
        (raw.path / name).rename(raw.path / f"old-{name}")
        (smaller.path / name).rename(raw.path / name)
    report = project(connector, raw.path, tmp_path / "out")
    assert report.vanished == 1
    assert open_cache(tmp_path / "out").keys() == [f"raw/{n:05d}" for n in range(10)]
    assert project(connector, raw.path, tmp_path / "out").vanished == 0


@pytest.mark.parametrize("instant", [1, 7, 16, 25])
def test_a_projection_that_was_cut_off_ends_in_the_same_bytes(
    make_connector: MakeConnector,
    make_cache: MakeCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    instant: int,
) -> None:
    from cmcr.cache import fsio

    class Cut(BaseException):
        """Ends the run where a kill would."""

    # The "killed" process lives on in this test: what it left behind expires instead of being known to be dead.
    monkeypatch.setenv("CMCR_LEASE_SECONDS", "0.3")
    connector, raw = make_connector(), make_cache("raw", 40, shards=(10, 10, 10, 10))
    project(connector, raw, tmp_path / "undisturbed")
    calls = 0

    def count(call: str, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == instant * 3:
            raise Cut

    monkeypatch.setattr(fsio, "HOOKS", [count])
    with pytest.raises(Cut):
        project(connector, raw, tmp_path / "cut")
    monkeypatch.setattr(fsio, "HOOKS", [])
    project(connector, raw, tmp_path / "cut")
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "undisturbed")


def test_a_projection_asked_to_stop_finishes_its_shard_and_says_what_is_left(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    stop, raw = StopSignal(), make_cache("raw", 40, shards=(10, 10, 10, 10))

    def ask(done: int, total: int) -> None:
        stop.request(signal.SIGTERM)

    report = project(make_connector(), raw, tmp_path / "out", progress=ask, stop=stop)
    assert (report.shards, report.unfinished, report.rows) == (1, 3, 10)
    assert project(make_connector(), raw, tmp_path / "out").kept == 1


def test_a_dry_run_counts_what_a_projection_would_make_and_writes_nothing(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector, raw = make_connector(), make_cache("raw", 25, shards=(10, 15))
    plan = plan_project(connector, raw, tmp_path / "out")
    assert (plan.shards_before, plan.shards_now, plan.rows) == (0, 2, 25)
    assert not (tmp_path / "out").exists()
    project(connector, raw, tmp_path / "out")
    grown = grow(raw, "more", 7)
    plan = plan_project(connector, grown, tmp_path / "out")
    assert (plan.shards_before, plan.shards_now, plan.rows) == (2, 1, 7)
    with pytest.raises(CmcrError):
        plan_project(make_connector(seed=1), grown, tmp_path / "out")


def test_a_vector_that_the_head_sends_to_zero_is_a_ledger_line(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    import torch

    connector = make_connector(clip=ProjectorSpec("half", 12, 6, bias=True))
    head = connector.heads["clip"]
    with torch.no_grad():
        state = head.state_dict()
        state["linear1.weight"].copy_(torch.eye(6, 12))
        state["linear1.bias"].zero_()
    vectors = np.ones((4, 12), np.float32)
    vectors[2] *= -1
    report = project(connector, make_cache("raw", vectors), tmp_path / "out")
    assert (report.rows, report.failed) == (3, 1)
    (failure,) = open_cache(tmp_path / "out").failures()
    assert (failure.key, failure.stage) == ("raw/00002", "project")
    assert "zero" in failure.message


def test_originals_are_found_through_the_projected_cache(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.jpg").write_bytes(b"picture")
    raw = make_cache("raw", 2, sources=["0.jpg", "1.jpg"])
    with CacheWriter.open(raw.path, raw.manifest) as writer:
        writer.log_run({"roots": {"photos": str(photos)}})
    project(make_connector(), raw, tmp_path / "out")
    shared = open_cache(tmp_path / "out")
    assert [shared.source_path(n) for n in range(2)] == [None, photos / "1.jpg"]


def test_refusals_say_what_to_do(make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path) -> None:
    connector, raw = make_connector(), make_cache("raw", 5)
    project(connector, raw, tmp_path / "out")
    with pytest.raises(CmcrError, match="shared space already"):
        project(connector, tmp_path / "out", tmp_path / "twice")
    with pytest.raises(CmcrError, match="same cache"):
        project(connector, raw, raw.path)
    with pytest.raises(CmcrError, match="at least one row"):
        project(connector, raw, tmp_path / "other", batch_size=0)
    with pytest.raises(CacheError) as caught:
        project(make_connector(1), raw, tmp_path / "out")
    assert "--overwrite" in str(caught.value)
    stranger = make_cache("stranger", 5, manifest={"space_id": "id-xyz", "space_name": "xyz"})
    with pytest.raises(ConnectorError, match="xyz"):
        project(connector, stranger, tmp_path / "other")
    with pytest.raises(CacheError, match="no such folder"):
        project(connector, tmp_path / "nowhere", tmp_path / "other")


def test_overwrite_makes_the_gallery_of_another_connector(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    raw = make_cache("raw", 12, shards=(6, 6))
    project(make_connector(0), raw, tmp_path / "out")
    report = project(make_connector(1), raw, tmp_path / "out", overwrite=True, dtype="float32")
    assert report.shards == 2
    shared = open_cache(tmp_path / "out")
    np.testing.assert_allclose(
        shared.rows(np.arange(12)), make_connector(1).project(raw.rows(np.arange(12)), "clip"), atol=1e-6
    )


def test_two_heads_do_not_mix_in_one_gallery(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector = make_connector()
    project(connector, make_cache("raw", 5), tmp_path / "out")
    with pytest.raises(CacheError):
        project(connector, make_cache("sounds", 5, space="clap"), tmp_path / "out")


def test_a_cache_without_rows_gives_a_gallery_without_rows(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    report = project(make_connector(), make_cache("raw", np.empty((0, 12), np.float32)), tmp_path / "out")
    assert report.rows == 0
    assert len(open_cache(tmp_path / "out")) == 0


def test_an_identity_head_keeps_the_vectors(make_cache: MakeCache, tmp_path: Path) -> None:
    from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo

    heads = {"clip": build_projector(ProjectorSpec("identity", 12, 12))}
    connector = Connector(heads, ConnectorInfo({"clip": SpaceInfo("id-clip", ("image",))}, "identity"))
    raw = make_cache("raw", 9)
    project(connector, raw, tmp_path / "out", dtype="float32")
    np.testing.assert_allclose(open_cache(tmp_path / "out").rows(np.arange(9)), raw.rows(np.arange(9)), atol=1e-6)


def test_progress_counts_rows(make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    raw = make_cache("raw", 25, shards=(10, 10, 5))
    project(make_connector(), raw, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(10, 25), (20, 25), (25, 25)]
