"""When an index beside a gallery is kept, grown, made anew, or left alone; and what a damaged one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import CacheError
from cmcr.cache.reader import Cache
from cmcr.pipeline.searcher import Searcher
from cmcr.pipeline.searching import faiss_kinds, gallery_index, held_out
from cmcr.pipeline.searching.record import Place
from cmcr.pipeline.shared import SharedView
from cmcr.trainer.connector import Connector

faiss = pytest.importorskip("faiss")
Grow = Callable[..., Cache]
Clustered = Callable[[int, int], np.ndarray]
both = pytest.mark.parametrize("kind", ["hnsw", "ivf"])


def claimed(truth: held_out.HeldOut, effort: int, recall: float) -> held_out.Measured:
    return held_out.Measured(effort, recall, 0.0, truth.scores)


def exact(gallery: Cache, queries: np.ndarray) -> np.ndarray:
    return np.argsort(-(queries @ gallery.read(0, len(gallery)).T), axis=1, kind="stable")[:, :10]


def agreement(searcher: Searcher, queries: np.ndarray) -> float:
    found = searcher.topk(queries, 10)[1]
    pairs = zip(found.tolist(), exact(searcher.gallery, queries).tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in pairs]))


@both
def test_one_row_less_than_twice_grows_the_index_and_twice_makes_it_anew(
    grow: Grow, clustered: Clustered, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        held_out, "measure", lambda index, truth, effort: claimed(truth, effort, 1.0)
    )  # growth alone decides
    one = clustered(400, 1)
    Searcher(None, grow(one), index=kind)
    almost = Searcher(None, grow(one, clustered(399, 2)), index=kind)
    doubled = Searcher(None, grow(one, clustered(400, 2)), index=kind)
    trained = [searcher.index.record.trained_rows for searcher in (almost, doubled) if searcher.index]
    assert trained == [400, 800], "an index is grown below twice its rows and built anew from there on"


def test_rows_unlike_those_it_was_built_of_make_it_anew(grow: Grow, clustered: Clustered) -> None:
    tight = np.repeat(clustered(12, 1), 100, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(1200, 24))
    tight = np.asarray(tight / np.linalg.norm(tight, axis=1, keepdims=True), np.float32)
    first = Searcher(None, grow(tight), index="ivf")
    loose = np.random.default_rng(1).normal(size=(1100, 24))  # anywhere: no list is near all answers of a query
    loose = np.asarray(loose / np.linalg.norm(loose, axis=1, keepdims=True), np.float32)
    second = Searcher(None, grow(tight, loose), index="ivf")
    assert first.index is not None
    assert second.index is not None
    assert second.index.record.trained_rows == 2300, "built anew: the old lists need more than twice the effort"
    assert second.index.record.recall >= 0.995


def test_an_index_that_never_reached_its_target_is_grown_until_it_falls_below_itself(
    grow: Grow, clustered: Clustered, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, trained = [clustered(600, 1)], []
    for reached, rows in ((0.93, 0), (0.93, 30), (0.925, 30), (0.9, 30)):
        monkeypatch.setattr(
            held_out, "measure", lambda index, truth, effort, reached=reached: claimed(truth, effort, reached)
        )
        parts += [clustered(rows, len(parts) + 1)] if rows else []
        searcher = Searcher(None, grow(*parts), index="hnsw")
        assert searcher.index is not None
        trained.append(searcher.index.record.trained_rows)
    assert trained == [600, 600, 600, 690], "short of 0.995 from the start: made anew only after a fall of its own"


@both
def test_another_connector_has_an_index_of_its_own(
    make_connector: Callable[..., Connector], make_cache: Callable[..., Cache], kind: str
) -> None:
    raw = make_cache("images", 700)
    queries = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for seed in (0, 1):
        connector = make_connector(seed)
        if seed:
            assert Searcher(connector, raw, index="kept").index is None
        scores, _ = Searcher(connector, raw, index=kind).topk(queries, 5)
        expected, _ = Searcher(connector, raw, index="exact").topk(queries, 5)
        assert np.mean(np.abs(scores - expected) < 1e-5) > 0.97


@both
def test_a_gallery_opened_before_it_grew_leaves_the_larger_index_alone(
    grow: Grow, clustered: Clustered, kind: str
) -> None:
    one, two = clustered(600, 1), clustered(50, 2)
    before = grow(one)
    after = Searcher(None, grow(one, two), index=kind)
    for asked in (kind, "kept"):
        late = Searcher(None, before, index=asked)
        assert late.index is None
        assert late.how == gallery_index.AHEAD
        assert agreement(late, clustered(20, 3)) == 1.0
    record = Place(SharedView(after.gallery), kind).read()  # type: ignore[arg-type]
    assert record is not None
    assert record.rows == 650, "a late reader must not take the index back to fewer rows"
    taken_back = Searcher(None, grow(one), index=kind)  # the rows are gone: no late reader, another gallery
    assert taken_back.index is not None
    assert taken_back.index.record.rows == 600


@both
def test_an_index_of_older_content_is_not_used_and_the_reader_is_told(
    grow: Grow, clustered: Clustered, kind: str
) -> None:
    one = clustered(600, 1)
    assert not Searcher(None, grow(one), index="kept").worth_saying
    Searcher(None, grow(one), index=kind)
    grown = Searcher(None, grow(one, clustered(9, 2)), index="kept")
    assert grown.index is None
    assert grown.worth_saying
    assert f"--index {kind} makes it one of the present 609" in grown.how


def test_files_replaced_between_reading_the_record_and_opening_them_are_looked_for_again(
    grow: Grow, clustered: Clustered, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = grow(clustered(600, 1))
    Searcher(None, gallery, index="hnsw")
    opened, tries = gallery_index.OpenIndex, []

    def gone_once(*about: Any) -> Any:
        tries.append(about)
        if len(tries) == 1:
            raise RuntimeError("no such file")
        return opened(*about)

    monkeypatch.setattr(gallery_index, "OpenIndex", gone_once)
    monkeypatch.setattr(faiss_kinds, "build", lambda *_: pytest.fail("built anew"))
    assert Searcher(None, gallery, index="hnsw").index is not None


def test_a_graph_with_edges_out_of_it_is_refused_and_made_again(grow: Grow, clustered: Clustered) -> None:
    gallery, queries = grow(clustered(900, 1)), clustered(30, 2)
    Searcher(None, gallery, index="hnsw")
    (path,) = Place(SharedView(gallery), "hnsw").folder.glob("*.faiss")
    data = bytearray(path.read_bytes())
    index = faiss.read_index(str(path))
    edges = faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size()).tobytes()
    middle = data.index(edges) + len(edges) // 2
    data[middle : middle + 400] = b"\x7f" * 400
    path.write_bytes(data)
    kept = Searcher(None, gallery, index="kept")
    assert kept.index is None, "FAISS would follow such edges out of its memory"
    assert "damaged" in kept.how
    again = Searcher(None, gallery, index="hnsw")
    assert agreement(again, queries) > 0.97


def test_lists_that_name_rows_that_are_not_there_get_one_clear_line(grow: Grow, clustered: Clustered) -> None:
    gallery = grow(clustered(900, 1))
    searcher = Searcher(None, gallery, index="ivf")
    assert searcher.index is not None
    searcher.index.index._view = SharedView(grow(clustered(90, 1)))
    with pytest.raises(CacheError, match="names rows that are not there") as error:
        searcher.topk(clustered(30, 2), 5)
    assert str(error.value.where).endswith(".faiss")


def test_damaged_held_out_queries_are_drawn_again_and_given_ones_are_asked_for(
    grow: Grow, clustered: Clustered
) -> None:
    one, two = clustered(900, 1), clustered(20, 2)
    for given, seed in ((None, 3), (clustered(16, 9), 4)):
        first = Searcher(None, grow(one), index="ivf", held_out=given)
        assert first.index is not None
        place = Place(first.view, "ivf")
        (place.folder / first.index.record.held_out).write_bytes(b"not a tensor")
        if given is None:
            again = Searcher(None, grow(one, two), index="ivf")
            assert again.index is not None
            assert again.index.record.recall >= 0.995
        else:
            with pytest.raises(CacheError, match="held-out queries of an index cannot be read"):
                Searcher(None, grow(one, clustered(20, seed)), index="ivf")


def test_an_interrupted_build_leaves_nothing_behind_and_the_next_one_goes_through(
    grow: Grow, clustered: Clustered, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = grow(clustered(900, 1))
    add = faiss_kinds.add

    def interrupted(index: Any, view: SharedView, start: int) -> None:
        add(index, view, start)
        raise KeyboardInterrupt

    monkeypatch.setattr(faiss_kinds, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Searcher(None, gallery, index="hnsw")
    folder: Path = Place(SharedView(gallery), "hnsw").folder
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(faiss_kinds, "add", add)
    assert Searcher(None, gallery, index="hnsw").index is not None
