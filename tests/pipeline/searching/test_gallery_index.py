"""Indexes beside galleries: against brute force, grown, retrained, never stale, written atomically."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache import faiss_index, fsio
from cmcr.cache.errors import CmcrError, MissingExtraError
from cmcr.cache.reader import Cache
from cmcr.pipeline.searcher import Searcher
from cmcr.pipeline.searching import choice, faiss_kinds, held_out
from cmcr.pipeline.searching.choice import IndexSettings
from cmcr.pipeline.searching.record import Place
from cmcr.pipeline.shared import SharedView

ROWS, DIM = 3001, 24
Grow = Callable[..., Cache]


def clustered(rows: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(7).normal(size=(60, DIM))
    rng = np.random.default_rng(seed)
    found = centres[rng.integers(0, 60, rows)] + 0.7 * rng.normal(size=(rows, DIM))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def recall(searcher: Searcher, k: int = 10) -> float:
    """Share of the brute-force answers found, on queries that the index was not tuned on."""
    gallery = searcher.gallery.read(0, len(searcher.gallery))
    queries = clustered(157, 99)
    exact = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")[:, :k]
    scores, rows = searcher.topk(queries, k)
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, gallery[rows]), atol=2e-6)
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]))


def claimed(truth: held_out.HeldOut, effort: int, recall: float) -> held_out.Measured:
    return held_out.Measured(effort, recall, 0.0, truth.scores)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_finds_what_brute_force_finds(grow: Grow, kind: str) -> None:
    searcher = Searcher(None, grow(clustered(1700, 1), clustered(ROWS - 1700, 2)), index=kind)
    assert searcher.index is not None
    assert searcher.index.record.recall >= 0.995
    assert recall(searcher) >= 0.99
    assert recall(searcher, 37) >= 0.99
    assert searcher.topk(clustered(2, 3), ROWS)[1].shape == (2, ROWS)  # all rows: exactly
    _, rows, keys = searcher.find(clustered(9, 4), 7)
    assert keys == [[f"item/{row:05d}" for row in line] for line in rows.tolist()]


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_appended_gallery_grows_its_index_and_finds_new_rows(
    grow: Grow, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [clustered(ROWS, 1)]
    Searcher(None, grow(*parts), index=kind)
    monkeypatch.setattr(faiss_kinds, "build", lambda *_: pytest.fail("built anew"))
    for seed in range(2, 11):  # more parts than inverted lists keep apart
        parts.append(clustered(53, seed))
        searcher = Searcher(None, grow(*parts), index=kind)
    assert searcher.index is not None
    assert searcher.index.record.trained_rows == ROWS
    assert len(searcher.index.record.files) < faiss_kinds.MOST_PARTS
    assert searcher.index.index.rows == ROWS + 477
    assert recall(searcher) >= 0.99
    own = parts[-1]
    assert (searcher.topk(own, 1)[1][:, 0] >= ROWS).mean() > 0.97


def test_appended_rows_are_a_graph_of_their_own_until_they_are_a_tenth(grow: Grow) -> None:
    parts, tenth = [clustered(ROWS, 1)], ROWS // 10
    whole = Searcher(None, grow(*parts), index="hnsw").index
    for rows, files, shares_the_first in (
        (tenth - 57, 2, True),
        (56, 2, True),
        (1, 2, True),
        (1, 1, False),
        (9, 2, False),
    ):
        parts.append(clustered(rows, 10 + len(parts)))
        gallery = grow(*parts)
        searcher = Searcher(None, gallery, index="hnsw")
        assert whole is not None
        assert searcher.index is not None
        assert len(searcher.index.record.files) == files
        assert (searcher.index.record.files[0] == whole.record.files[0]) == shares_the_first
        assert searcher.index.index.rows == len(gallery)
        assert recall(searcher) >= 0.99
        assert recall(Searcher(None, gallery, index="kept"), 31) >= 0.99
        folder = gallery.path.parent / "indexes"
        assert len(list(folder.glob("*.faiss"))) == files


def test_a_tail_shorter_than_the_answers_adds_no_row_that_is_not_there(grow: Grow) -> None:
    parts = [clustered(ROWS, 1)]
    Searcher(None, grow(*parts), index="hnsw")
    queries = clustered(5, 2)
    searcher = Searcher(None, grow(*parts, queries[:3]), index="hnsw")
    scores, rows = searcher.topk(queries, 37)
    assert ((rows >= 0) & (rows < ROWS + 3)).all()
    assert all(len(set(line)) == 37 for line in rows.tolist())
    assert rows[:3, 0].tolist() == [ROWS, ROWS + 1, ROWS + 2]  # a row of the tail is found by its own vector
    assert (scores[:3, 0] > 0.9999).all()


def test_auto_falls_back_to_lists_where_a_graph_misses_its_target(grow: Grow, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = grow(clustered(ROWS, 1))
    monkeypatch.setattr("cmcr.pipeline.searching.choice.EXACT_NUMBERS", 0)
    real = held_out.measure
    monkeypatch.setattr(
        held_out,
        "measure",
        lambda index, truth, effort: (
            claimed(truth, effort, 0.9) if index.kind == "hnsw" else real(index, truth, effort)
        ),
    )
    searcher = Searcher(None, gallery, index="auto")
    assert searcher.index is not None
    assert searcher.index.record.kind == "ivf"
    assert searcher.how.startswith("ivf of 3,001 rows")
    assert recall(searcher) >= 0.99
    asked = Searcher(None, gallery, index="hnsw")  # by its name a graph is taken as it is, and the reader told
    assert "recall@10 0.900" in asked.how
    assert "short of the 0.995 aimed at" in asked.how


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_is_built_anew_when_the_gallery_doubled_or_changed(grow: Grow, kind: str) -> None:
    one, two = clustered(500, 1), clustered(ROWS, 2)
    first = Searcher(None, grow(one), index=kind)
    doubled = Searcher(None, grow(one, two), index=kind)
    changed = Searcher(None, grow(two, one), index=kind)  # as many rows, others first
    assert [s.index.record.trained_rows for s in (first, doubled, changed) if s.index] == [500, 3501, 3501]
    assert recall(changed) >= 0.99
    folder = changed.gallery.path.parent / "indexes"
    assert len(list(folder.glob("*.faiss"))) == 1
    assert len(list(folder.iterdir())) == 3


def test_an_index_is_built_anew_when_measured_recall_falls(grow: Grow, monkeypatch: pytest.MonkeyPatch) -> None:
    one = clustered(ROWS, 1)
    Searcher(None, grow(one), index="ivf")
    calls = []
    build = faiss_kinds.build
    monkeypatch.setattr(faiss_kinds, "build", lambda *about: calls.append(about) or build(*about))
    monkeypatch.setattr(held_out, "measure", lambda index, truth, effort: claimed(truth, effort, 1.0 if calls else 0.5))
    again = Searcher(None, grow(one, clustered(40, 2)), index="ivf")
    assert len(calls) == 1
    assert again.index is not None
    assert again.index.record.trained_rows == ROWS + 40


def test_a_kept_index_is_used_only_for_the_present_content(grow: Grow) -> None:
    one = clustered(ROWS, 1)
    gallery = grow(one)
    assert Searcher(None, gallery, index="kept").index is None
    Searcher(None, gallery, index="ivf")
    assert Searcher(None, gallery, index="kept").index is not None
    grown = Searcher(None, grow(one, clustered(5, 2)), index="kept")
    assert grown.index is None
    assert recall(grown) == 1.0


def test_a_damaged_index_is_made_again(grow: Grow) -> None:
    gallery = grow(clustered(ROWS, 1))
    Searcher(None, gallery, index="hnsw")
    place = Place(SharedView(gallery), "hnsw")
    (path,) = place.folder.glob("*.faiss")
    data = path.read_bytes()
    for broken in (data[:1000], b"\0" * len(data)):
        path.write_bytes(broken)
        kept = Searcher(None, gallery, index="kept")
        assert kept.index is None
        assert "is damaged; --index hnsw makes it again" in kept.how
        assert recall(Searcher(None, gallery, index="hnsw")) >= 0.99
        (path,) = place.folder.glob("*.faiss")
    place.file.write_text("{", encoding="utf-8")
    assert recall(Searcher(None, gallery, index="hnsw")) >= 0.99


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_kill_at_any_step_of_growth_leaves_an_index_that_is_right(grow: Grow, kind: str) -> None:
    one, two = clustered(ROWS, 1), clustered(60, 2)
    Searcher(None, grow(one), index=kind)
    gallery = grow(one, two)
    steps: list[str] = []

    class Killed(BaseException):
        pass

    def count(call: str, path: Path) -> None:
        steps.append(call)

    def kill(call: str, path: Path) -> None:
        steps.append(call)
        if len(steps) == at:
            raise Killed

    for at in range(1, 100):  # noqa: B007
        steps.clear()
        fsio.HOOKS.append(kill)
        try:
            Searcher(None, gallery, index=kind)
        except Killed:
            pass
        else:
            break
        finally:
            fsio.HOOKS.remove(kill)
        kept = Searcher(None, gallery, index="kept")
        assert kept.index is None or kept.index.index.rows == ROWS + 60
    assert 5 < at < 100
    assert recall(Searcher(None, gallery, index="kept")) >= 0.99


def test_held_out_queries_are_drawn_from_everywhere_and_are_no_rows(grow: Grow) -> None:
    gallery = grow(clustered(ROWS, 1))
    view = SharedView(gallery)
    drawn = held_out.draw(view, 64, 0)
    rows = gallery.read(0, ROWS)
    sims = drawn.queries @ rows.T
    assert sims.max() < 0.999
    assert (sims.argmax(axis=1) > ROWS // 2).any()
    np.testing.assert_allclose(drawn.scores[:, 0], sims.max(axis=1), atol=1e-6)
    part = held_out.answered(SharedView(grow(clustered(ROWS, 1)[:2000])), drawn.queries)
    whole = held_out.grown(part, SharedView(grow(clustered(ROWS, 1))))
    assert (whole.rows == drawn.rows).all()


def test_recall_may_be_measured_on_queries_of_ones_own(grow: Grow) -> None:
    own = clustered(31, 5)
    searcher = Searcher(None, grow(clustered(ROWS, 1)), index="ivf", held_out=own)
    assert searcher.index is not None
    record = searcher.index.record
    assert record.given
    kept = held_out.read(Place(searcher.view, "ivf").folder / record.held_out)
    assert (kept.queries == own).all()


def test_the_index_follows_size_and_memory() -> None:
    auto = IndexSettings()
    assert choice.choose_kind(1000, 512, auto, True)[0] is None
    assert choice.choose_kind(10**6, 256, auto, True)[0] == "hnsw"
    assert choice.choose_kind(10**7, 512, auto, True)[0] == "ivf"
    assert choice.choose_kind(10**6, 256, IndexSettings(memory_budget=1 << 30), True)[0] == "ivf"
    kind, why = choice.choose_kind(10**6, 256, auto, False)
    assert kind is None
    assert "FAISS is not installed" in why
    assert [choice.lists_for_search(rows) for rows in (1, 100, 3000, 10**6)] == [1, 6, 128, 2048]
    with pytest.raises(CmcrError, match="no index 'flat'"):
        IndexSettings("flat")


def test_without_faiss_only_an_approximate_search_is_refused(grow: Grow, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = grow(clustered(300, 1))

    def missing() -> Any:
        raise MissingExtraError("An approximate index needs FAISS, which is not installed.", todo="pip install")

    monkeypatch.setattr(faiss_index, "load_faiss", missing)
    for kind in ("auto", "exact", "kept"):
        assert Searcher(None, gallery, index=kind).index is None
    with pytest.raises(MissingExtraError, match="needs FAISS"):
        Searcher(None, gallery, index="hnsw")


def test_the_effort_reaches_the_target_by_two_standard_errors() -> None:
    class Stepwise:
        """Finds all at effort 64, all but the tenth row of one query in five at 32, half of all before."""

        kind, most_effort, rows = "hnsw", 10**6, 1000

        def search(self, vectors: np.ndarray, k: int, effort: int, newest: bool) -> tuple[np.ndarray, np.ndarray]:
            scores = np.ones((len(vectors), k), np.float32)
            if effort < 32:
                scores[:, 5:] = 0
            elif effort < 64:
                scores[::5, 9] = 0
            return scores, np.zeros((len(vectors), k), np.int64)

    truth = held_out.HeldOut(np.ones((50, 3), np.float32), np.ones((50, 10)), np.zeros((50, 10), np.int64), 0, 0)
    index: Any = Stepwise()
    found = held_out.measure(index, truth, 32)
    assert found.recall == pytest.approx(0.98)
    assert found.error == pytest.approx(0.1 * (0.2 * 0.8) ** 0.5 / 50**0.5)
    assert held_out.tune(index, truth, found.recall - 2.02 * found.error).effort == 32
    assert held_out.tune(index, truth, found.recall - 1.98 * found.error).effort == 64
    assert held_out.tune(index, truth, 0.97, least=64).recall == 1.0


def test_recall_after_growth_is_measured_on_the_new_part_and_equals_that_of_all(grow: Grow) -> None:
    parts = [clustered(ROWS, 1)]
    settings = IndexSettings("ivf", recall=0.9)
    Searcher(None, grow(*parts), index=settings)
    for seed in range(2, 5):
        parts.append(clustered(61, seed))
        searcher = Searcher(None, grow(*parts), index=settings)
        assert searcher.index is not None
        record = searcher.index.record
        kept = held_out.read(Place(searcher.view, "ivf").folder / record.held_out)
        assert kept.effort == record.effort
        assert kept.found is not None
        scores, _ = searcher.index.index.search(kept.queries, held_out.K, record.effort)
        np.testing.assert_allclose(kept.found, scores, atol=1e-7)
        assert held_out.measure(searcher.index.index, replace(kept, found=None), record.effort).recall == record.recall
    raised = Searcher(None, searcher.gallery, index=replace(settings, recall=0.91))  # without new rows
    assert raised.index is not None
    record = raised.index.record
    kept = held_out.read(Place(raised.view, "ivf").folder / record.held_out)
    assert kept.found is not None
    scores, _ = raised.index.index.search(kept.queries, held_out.K, record.effort)
    np.testing.assert_allclose(kept.found, scores, atol=1e-7)
