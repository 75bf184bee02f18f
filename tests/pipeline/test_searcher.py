"""Exact top-k: against a naive restatement, at sizes that do not divide, with ties."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cmcr.cache.errors import CacheError, CmcrError, ConnectorError
from cmcr.cache.reader import Cache
from cmcr.pipeline.project import project
from cmcr.pipeline.searcher import RunningTopK, Searcher
from cmcr.pipeline.shared import connector_fingerprint
from cmcr.trainer.connector import Connector
from cmcr.trainer.projectors import ProjectorSpec
from hypothesis import given, settings
from hypothesis import strategies as st


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def naive(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort every score; equal ones in the order of the gallery."""
    scores = np.array([[(q.astype(np.float64) * g).sum() for g in gallery] for q in queries])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def blocked(queries: np.ndarray, gallery: np.ndarray, k: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    best = RunningTopK(queries, k)
    for start in range(0, len(gallery), block):
        best.update(start, gallery[start : start + block])
    return best.result()


@settings(max_examples=30, deadline=None)
@given(
    queries=st.integers(1, 5),
    rows=st.integers(1, 60),
    distinct=st.integers(1, 60),
    k=st.integers(1, 12),
    block=st.integers(1, 70),
    seed=st.integers(0, 1000),
)
def test_blocked_topk_equals_sorting_everything_with_ties_by_row(
    queries: int, rows: int, distinct: int, k: int, block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    k = min(k, rows)
    bank = unit(rng.normal(size=(distinct, 7)))
    gallery = bank[rng.integers(0, distinct, rows)]  # repeated rows: exact ties across blocks
    asked = unit(rng.normal(size=(queries, 7)))
    scores, found = blocked(asked, gallery, k, block)
    expected_scores, expected = naive(asked, gallery, k)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-14)
    assert found.tolist() == expected.tolist()


def test_result_does_not_depend_on_block_or_on_the_other_queries() -> None:
    rng = np.random.default_rng(3)
    gallery = unit(rng.normal(size=(1003, 33)))
    gallery[700:] = gallery[:303]
    queries = unit(rng.normal(size=(41, 33)))
    scores, rows = blocked(queries, gallery, 17, 1003)
    for block in (1, 64, 999):
        other_scores, other = blocked(queries, gallery, 17, block)
        assert (other == rows).all()
        assert (other_scores == scores).all()
    alone = [blocked(queries[n : n + 1], gallery, 17, 100) for n in range(41)]
    assert (np.concatenate([found for _, found in alone]) == rows).all()
    assert (np.concatenate([found for found, _ in alone]) == scores).all()


def test_rows_closer_than_float32_can_tell_are_chosen_as_in_float64() -> None:
    rng = np.random.default_rng(5)
    centre = rng.normal(size=(1, 300))
    gallery = unit(centre + 4e-4 * rng.normal(size=(2000, 300)))  # cosines to the queries within some 1e-7
    queries = unit(centre + 4e-4 * rng.normal(size=(20, 300)))
    scores = gallery.astype(np.float64) @ queries.T.astype(np.float64)
    _, rows = blocked(queries, gallery, 5, 300)
    assert rows.tolist() == np.argsort(-scores.T, axis=1, kind="stable")[:, :5].tolist()
    rough = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")[:, :5]
    assert rough.tolist() != rows.tolist()  # float32 alone would have chosen others


def test_a_constant_gallery_answers_in_its_own_order() -> None:
    gallery = np.tile(unit(np.arange(1.0, 20.0)[None]), (500, 1))
    _, rows = blocked(gallery[:3], gallery, 5, 128)
    assert rows.tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("projected", [False, True])
def test_searching_a_raw_and_a_projected_gallery_equals_the_naive_way(
    make_connector: Callable[..., Connector], make_cache: Callable[..., Cache], projected: bool
) -> None:
    connector = make_connector()
    raw = make_cache("gallery", 157, shards=(50, 0, 100, 7))
    rng = np.random.default_rng(1)
    queries = connector.project(rng.normal(size=(9, 8)).astype(np.float32), "clap")
    gallery = raw
    if projected:
        report = project(connector, raw, raw.path.parent / "shared", dtype="float32")
        gallery = Cache(report.output)
    searcher = Searcher(connector, gallery, block=40)
    expected_scores, expected = naive(queries, connector.project(raw.rows(np.arange(157)), "clip"), 6)
    for memory_budget in (0, 1 << 30):
        searcher = Searcher(connector, gallery, block=40, memory_budget=memory_budget)
        for _ in range(2):  # cold, then warm
            hits = searcher.search(queries, 6)
            assert [[hit.key for hit in line] for line in hits] == [
                [f"gallery/{n:05d}" for n in line] for line in expected
            ]
            assert [hit.rank for hit in hits[0]] == [1, 2, 3, 4, 5, 6]
            found = np.array([[hit.score for hit in line] for line in hits])
            np.testing.assert_allclose(found, expected_scores, atol=1e-6)


def test_a_warm_searcher_reads_the_gallery_once(
    make_connector: Callable[..., Connector], make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    connector, gallery = make_connector(), make_cache("gallery", 30)
    searcher = Searcher(connector, gallery)
    queries = connector.project(np.eye(8, dtype=np.float32), "clap")
    first = searcher.topk(queries, 3)
    monkeypatch.setattr(type(gallery), "read", lambda *_, **__: pytest.fail("read again"))
    second = searcher.topk(queries, 3)
    assert (first[1] == second[1]).all()


def test_a_gallery_smaller_than_k_gives_all_its_rows(
    make_connector: Callable[..., Connector], make_cache: Callable[..., Cache]
) -> None:
    searcher = Searcher(make_connector(), make_cache("gallery", 4))
    hits = searcher.search(np.eye(6, dtype=np.float32)[:2], 10)
    assert [len(line) for line in hits] == [4, 4]


def test_no_queries_give_no_hits(make_connector: Callable[..., Connector], make_cache: Callable[..., Cache]) -> None:
    searcher = Searcher(make_connector(), make_cache("gallery", 4))
    assert searcher.search(np.empty((0, 6), np.float32), 3) == []


def test_bad_questions_get_one_clear_line(
    make_connector: Callable[..., Connector], make_cache: Callable[..., Cache]
) -> None:
    connector = make_connector()
    with pytest.raises(CacheError, match="gallery has no rows"):
        Searcher(connector, make_cache("empty", np.empty((0, 12), np.float32)))
    searcher = Searcher(connector, make_cache("gallery", 4))
    with pytest.raises(ConnectorError, match="rows of 6 numbers"):
        searcher.search(np.eye(8, dtype=np.float32), 3)
    with pytest.raises(CmcrError, match="at least one hit"):
        searcher.search(np.eye(6, dtype=np.float32), 0)
    with pytest.raises(CmcrError, match="NaN"):
        searcher.search(np.full((1, 6), np.nan, np.float32), 1)


def test_a_gallery_of_another_connector_is_refused_and_both_are_named(
    make_connector: Callable[..., Connector], make_cache: Callable[..., Cache]
) -> None:
    mine, other = make_connector(0), make_connector(1)
    raw = make_cache("gallery", 20)
    shared = Cache(project(other, raw, raw.path.parent / "shared").output)
    with pytest.raises(CacheError) as caught:
        Searcher(mine, shared)
    assert connector_fingerprint(mine) in str(caught.value)
    assert connector_fingerprint(other) in str(caught.value)
    assert "cmcr project" in str(caught.value)
    Searcher(other, shared)


def test_the_fingerprint_follows_weights_kinds_and_spaces_alone(make_connector: Callable[..., Connector]) -> None:
    one = make_connector(0)
    assert connector_fingerprint(one) == connector_fingerprint(make_connector(0))
    assert connector_fingerprint(one) != connector_fingerprint(make_connector(1))
    kept = make_connector(0, clap=ProjectorSpec("affine", 8, 6, centred=True))
    assert connector_fingerprint(one) != connector_fingerprint(kept)
    bridges = [ProjectorSpec("bridge", 8, 6, rows=3, scale=scale) for scale in (10.0, 30.0)]  # the same (zero) weights
    first, second = (connector_fingerprint(make_connector(0, clap=spec)) for spec in bridges)
    assert first != second
