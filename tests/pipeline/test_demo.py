"""The demo, small: every method in the table, a page that needs nothing else, and a folder that may be used again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cmcr
import pytest
from cmcr.pipeline.demo import run
from cmcr.pipeline.demo.page import demo_lines, next_commands
from cmcr.pipeline.demo.results import DemoResult, TaskResult
from cmcr.pipeline.encoders.artefacts import artefacts_of
from cmcr.pipeline.sandbox.corpora import SandboxSizes

METHODS = ["chance", "identity", "procrustes", "ridge", "bridge", "c-mcr", "weave", "true pairs"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return cmcr.demo(tmp_path_factory.mktemp("demo") / "out", size="small")


def test_every_method_stands_beside_chance_and_the_projectors_on_true_pairs(small: DemoResult) -> None:
    record = json.loads((small.output / "metrics.json").read_text())
    assert record["synthetic"] is True
    for task in small.tasks:
        assert [row.method for row in task.rows] == METHODS
        figures = record["tasks"][task.task.name]["methods"]
        assert figures["chance"]["R@1"] == pytest.approx(1 / 40)
        assert figures["c-mcr"]["R@10"] > figures["chance"]["R@10"] + 0.1
        shares = record["tasks"][task.task.name]["share_of_true_pairs"]
        assert shares == {m: figures[m]["R@1"] / figures["true pairs"]["R@1"] for m in ("c-mcr", "weave")}
        assert task.of("weave").chose in ("trained", "linear", "anchors")
        assert task.of("weave").figures["R@10"] > figures["chance"]["R@10"] + 0.1
        assert (task.of("true pairs").rows, task.of("weave").rows) == (150, 1000 if task is small.tasks[0] else 200)


def test_the_page_embeds_every_picture_and_sound(small: DemoResult) -> None:
    page = (small.output / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert page.count("data:audio/wav") == 6
    assert "synthetic" in page
    for method in ("C-MCR", "weave", "bridge", "true pairs", "Procrustes"):
        assert method in page


def test_all_caches_of_the_demo_are_sound_and_the_lines_can_be_printed(small: DemoResult) -> None:
    caches = [path.parent for path in (small.output / "caches").rglob("cache.json")]
    assert len(caches) >= 14
    assert all(cmcr.verify(cache).ok for cache in caches)
    said = " ".join(str(line) for line in demo_lines(small))
    assert "weave" in said
    assert "150 true pairs" in said
    assert "bound" not in said


def test_what_is_said_to_type_next_names_the_encoders_with_the_sizes_of_their_downloads() -> None:
    shown = next_commands()
    assert "cmcr encoders pull clap clip" in shown
    assert "--encoder sentence:all-MiniLM-L6-v2" in shown.splitlines()[-1]
    for name, size in {"clap": "1.9 GB", "clip": "605 MB", "sentence:all-MiniLM-L6-v2": "91 MB"}.items():
        assert size in shown
        count, unit = size.split()
        largest = max(artefact.size or 0 for artefact in artefacts_of(name))
        assert largest == pytest.approx(float(count) * {"MB": 1e6, "GB": 1e9}[unit], rel=0.03)
    assert set(re.findall(r"--encoder (\S+)", shown)) == {"clap", "clip", "sentence:all-MiniLM-L6-v2"}


def test_a_second_run_in_the_same_folder_gives_the_same_figures_and_encodes_nothing(small: DemoResult) -> None:
    before = (small.output / "metrics.json").read_bytes()
    shards = {p: p.stat().st_mtime_ns for p in (small.output / "caches").rglob("*.h5")}
    cmcr.demo(small.output, size="small")
    assert (small.output / "metrics.json").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in (small.output / "caches").rglob("*.h5")} == shards


def test_a_folder_with_something_else_or_another_world_is_refused(small: DemoResult, tmp_path: Path) -> None:
    with pytest.raises(cmcr.CmcrError, match="another seed or size"):
        cmcr.demo(small.output, size="small", seed=1)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(cmcr.CmcrError, match="something else"):
        cmcr.demo(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_overwriting_a_demo_keeps_files_that_are_not_its_own(tmp_path: Path) -> None:
    cmcr.demo(tmp_path, size="small", only_corpora=True)
    (tmp_path / "notes.txt").write_text("mine")
    cmcr.demo(tmp_path, size="small", seed=1, only_corpora=True, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "demo.json").read_text())["seed"] == 1


RIVALS = ("identity", "procrustes", "ridge")


def ahead(result: TaskResult, rival: str, method: str = "c-mcr") -> float:
    """Paired lead of a method in R@1 over the queries of one world, in its standard errors."""
    ours, theirs = (result.of(name).report for name in (method, rival))
    assert ours is not None
    assert theirs is not None
    gaps = ours.there.per_query.recall[:, 0] - theirs.there.per_query.recall[:, 0]  # (Q,)
    return float(gaps.mean() / (gaps.std(ddof=1) / len(gaps) ** 0.5))


def test_without_a_pair_cmcr_beats_the_linear_baselines_in_a_smaller_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = SandboxSizes(captions=4000, images=700, sounds=700, clouds=60, evaluation=150, pairs=100)
    monkeypatch.setitem(run.SIZES, "small", smaller)
    monkeypatch.setitem(run.TRAINED, "small", 0.5)
    monkeypatch.setattr(run, "TASKS", run.TASKS[:1])
    (audio_image,) = cmcr.demo(tmp_path / "out", size="small", seed=11).tasks
    leads = {rival: ahead(audio_image, rival) for rival in RIVALS}
    assert min(leads.values()) > 2, f"C-MCR is ahead by so many standard errors: {leads}"
    leads = {rival: ahead(audio_image, rival, "weave") for rival in RIVALS}
    assert min(leads.values()) > 2, f"weave is ahead by so many standard errors: {leads}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_without_a_pair_cmcr_beats_the_linear_baselines_in_every_world(tmp_path: Path, seed: int) -> None:
    audio_image, _ = cmcr.demo(tmp_path / "out", seed=seed).tasks
    leads = {rival: ahead(audio_image, rival) for rival in RIVALS}
    assert min(leads.values()) > 2, f"C-MCR is ahead by so many standard errors: {leads}"
    leads = {rival: ahead(audio_image, rival, "weave") for rival in RIVALS}
    assert min(leads.values()) > 2, f"weave is ahead by so many standard errors: {leads}"
