"""Retrieval measures against plain restatements: every order of the ties is tried on small sets."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import CmcrError
from cmcr.trainer.metrics import both_directions, chance, rank_metrics, retrieval_metrics
from cmcr.trainer.ranking import Relevance
from hypothesis import given, settings
from hypothesis import strategies as st

KS = (1, 2, 5)


def naive_order(relevant: list[bool], k: int) -> dict[str, float]:
    """All measures of one ranked list, by their definitions."""
    ranks = [place + 1 for place, hit in enumerate(relevant) if hit]
    out = {f"R@{cut}": float(any(relevant[:cut])) for cut in KS}
    out |= {f"P@{cut}": sum(relevant[:cut]) / cut for cut in KS}
    out["mAP"] = sum((n + 1) / rank for n, rank in enumerate(ranks)) / len(ranks)
    out["MRR"] = 1 / ranks[0]
    out["rank"] = float(ranks[0])
    best = sum(1 / math.log2(1 + rank) for rank in range(1, min(k, len(ranks)) + 1))
    out["nDCG"] = sum(1 / math.log2(1 + rank) for rank in ranks if rank <= k) / best
    return out


def naive_expected(scores: list[int], relevant: list[bool], k: int) -> dict[str, float]:
    """Mean of every measure over all orders that agree with the scores."""
    runs = [[i for i in range(len(scores)) if scores[i] == level] for level in sorted(set(scores), reverse=True)]
    results = []
    for orders in itertools.product(*(itertools.permutations(run) for run in runs)):
        results.append(naive_order([relevant[i] for run in orders for i in run], k))
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}


def of(table: list[list[int]], relevant: list[list[bool]], **options: Any) -> Any:
    query, item = np.nonzero(np.array(relevant))
    relevance = Relevance.from_rows(query, item, len(table), len(table[0]))
    blocks = [(start, np.array(table[start : start + 2], np.float32)) for start in range(0, len(table), 2)]
    return rank_metrics(blocks, relevance, ks=KS, ndcg_at=3, **options)


@st.composite
def small_tables(draw: st.DrawFn) -> tuple[list[list[int]], list[list[bool]]]:
    gallery, queries = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    row = st.lists(st.integers(0, 2), min_size=gallery, max_size=gallery)
    flags = st.lists(st.booleans(), min_size=gallery, max_size=gallery)
    table = draw(st.lists(row, min_size=queries, max_size=queries))
    relevant = draw(st.lists(flags, min_size=queries, max_size=queries))
    relevant[0][0] = True
    return table, relevant


@settings(max_examples=40, deadline=None)
@given(small_tables())
def test_ties_count_the_mean_over_all_their_orders(case: tuple[list[list[int]], list[list[bool]]]) -> None:
    table, relevant = case
    got = of(table, relevant)
    want = [naive_expected(scores, hits, 3) for scores, hits in zip(table, relevant, strict=True) if any(hits)]
    each = got.per_query
    assert got.skipped == len(table) - len(want)
    for n, expected in enumerate(want):
        for column, k in enumerate(KS):
            assert each.recall[n, column] == pytest.approx(expected[f"R@{k}"], abs=1e-12)
            assert each.precision[n, column] == pytest.approx(expected[f"P@{k}"], abs=1e-12)
        for name, values in (("mAP", each.ap), ("MRR", each.rr), ("rank", each.first), ("nDCG", each.ndcg)):
            assert values[n] == pytest.approx(expected[name], abs=1e-12), name
    assert got.mean_average_precision == pytest.approx(np.mean([expected["mAP"] for expected in want]))
    assert got.median_rank == pytest.approx(np.median([expected["rank"] for expected in want]))


def test_many_relevant_items_take_the_sorting_path_to_the_same_figures() -> None:
    rng = np.random.default_rng(0)
    table, relevant = rng.integers(0, 9, (7, 53)), rng.random((7, 53)) < 0.5
    got = of(table.tolist(), relevant.tolist())
    for n in range(7):
        order = np.argsort(-table[n], kind="stable")
        samples = []
        for _ in range(400):
            shuffled = rng.permutation(53)
            order = shuffled[np.argsort(-table[n][shuffled], kind="stable")]
            samples.append(naive_order(relevant[n][order].tolist(), 3)["mAP"])
        assert got.per_query.ap[n] == pytest.approx(np.mean(samples), abs=5 * np.std(samples) / 20 + 1e-12)


def test_distinct_scores_need_no_expectation_on_either_path() -> None:
    rng = np.random.default_rng(1)
    for share in (0.05, 0.6):
        table = np.stack([rng.permutation(41) for _ in range(6)])
        relevant = rng.random((6, 41)) < share
        relevant[:, 3] = True
        for ties in ("expected", "optimistic"):
            got = of(table.tolist(), relevant.tolist(), ties=ties).per_query
            for n in range(6):
                want = naive_order(relevant[n][np.argsort(-table[n])].tolist(), 3)
                assert got.ap[n] == pytest.approx(want["mAP"], abs=1e-12)
                assert got.first[n] == want["rank"]
                assert got.rr[n] == pytest.approx(want["MRR"])


def test_constant_vectors_score_exactly_chance() -> None:
    relevance = Relevance.from_labels(["a", "b", "c"] * 31, ["a", "b", "b", "d"] * 29)
    constant = np.full((200, 37), 0.3, np.float32)
    got = retrieval_metrics(constant[:93], constant[:116], relevance, block=7)
    want = chance(relevance)
    assert got == want
    assert got.skipped == 31
    # 29 of 116 relevant, then 58 of 116: the chance of no hit in one draw is the share of the others
    assert got.recall[1] == pytest.approx((29 / 116 + 58 / 116) / 2, abs=1e-12)
    assert got.macro["macro_P@10"] == pytest.approx((29 / 116 + 58 / 116) / 2, abs=1e-12)


def test_repeated_gallery_rows_stay_tied_at_any_place() -> None:
    rng = np.random.default_rng(2)
    distinct = rng.standard_normal((5, 64)).astype(np.float32)
    gallery = distinct[rng.integers(0, 5, 203)]
    queries = rng.standard_normal((11, 64)).astype(np.float32)
    target = np.argmax((queries @ distinct.T / np.linalg.norm(distinct, axis=1)), axis=1)
    best = [np.flatnonzero((gallery == distinct[t]).all(1)) for t in target]
    relevance = Relevance.from_rows(np.arange(11), np.array([rows[-1] for rows in best]), 11, 203)
    got = retrieval_metrics(queries, gallery, relevance, block=4)
    assert got.per_query.recall[:, 0] == pytest.approx([1 / len(rows) for rows in best])


def test_optimistic_counts_strictly_higher_scores_and_gallery_order() -> None:
    table, relevant = [[1, 2, 2, 2, 0]], [[False, False, True, True, False]]
    got = of(table, relevant, ties="optimistic").per_query
    assert got.recall[0, 0] == 1
    assert got.first[0] == 1
    assert got.ap[0] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert got.precision[0, 1] == pytest.approx(1 / 2)


def test_as_many_relevant_items_as_queries_need_not_be_one_each() -> None:
    got = of([[3, 1, 2], [1, 2, 3]], [[True, True, False], [False, False, False]])
    assert got.per_query.query.tolist() == [0]
    assert got.per_query.ap[0] == pytest.approx((1 + 2 / 3) / 2)


def test_block_size_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    queries = rng.integers(-1, 2, (50, 8)).astype(np.float32)
    gallery = rng.integers(-1, 2, (67, 8)).astype(np.float32)
    relevance = Relevance.from_labels([f"c{n % 5}" for n in range(50)], [f"c{n % 7}" for n in range(67)])
    whole, parts = (retrieval_metrics(queries, gallery, relevance, block=size) for size in (1000, 7))
    assert whole.to_json() == pytest.approx(parts.to_json())


def test_several_relevant_items_and_both_directions() -> None:
    captions = [f"photo{n}#{c}" for n in range(4) for c in range(3)]
    images = [f"photo{n}" for n in range(4)]
    relevance = Relevance.from_keys(captions, images)
    assert relevance.counts().tolist() == [1] * 12
    assert relevance.transposed().counts().tolist() == [3] * 4
    assert relevance.transposed().rows(1, 3)[1].tolist() == [3, 4, 5, 6, 7, 8]
    eye = np.eye(4, dtype=np.float32)
    there, back = both_directions(np.repeat(eye, 3, axis=0), eye, relevance)
    assert there.recall[1] == back.recall[1] == 1
    assert back.mean_average_precision == pytest.approx(1)
    assert back.precision[5] == pytest.approx(3 / 5)


def test_a_numbered_key_that_both_sides_have_is_its_own_item() -> None:
    relevance = Relevance.from_keys(["img#1", "img#2", "img"], ["img#2", "img#1"])
    assert relevance.rows(0, 3)[1].tolist() == [1, 0]
    assert relevance.counts().tolist() == [1, 1, 0]


def test_pairs_transpose_and_unknown_keys_are_named() -> None:
    relevance = Relevance.from_pairs([("q1", "g0"), ("q0", "g2"), ("q1", "g2")], ["q0", "q1"], ["g0", "g1", "g2"])
    assert relevance.counts().tolist() == [1, 2]
    assert relevance.transposed().counts().tolist() == [1, 0, 2]
    assert relevance.transposed().rows(0, 3)[1].tolist() == [1, 0, 1]
    with pytest.raises(CmcrError, match="g9"):
        Relevance.from_pairs([("q1", "g9")], ["q0", "q1"], ["g0"])
    with pytest.raises(CmcrError, match="more than once"):
        Relevance.from_pairs([], ["q0", "q0"], ["g0"])


def test_what_cannot_be_measured_is_said() -> None:
    rows = np.ones((3, 4), np.float32)
    with pytest.raises(CmcrError, match="no query has a relevant item"):
        retrieval_metrics(rows, rows, Relevance.from_keys(["a", "b", "c"], ["d", "e", "f"]))
    with pytest.raises(CmcrError, match="one dimension"):
        retrieval_metrics(rows, rows[:, :3], Relevance.paired(3))
    with pytest.raises(CmcrError, match="relevance is for 2 queries"):
        retrieval_metrics(rows, rows, Relevance.paired(2))
    with pytest.raises(CmcrError, match="not finite"):
        retrieval_metrics(rows, rows * np.nan, Relevance.paired(3))
    with pytest.raises(CmcrError, match="ties"):
        retrieval_metrics(rows, rows, Relevance.paired(3), ties="best")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reference(kit: Path) -> Any:
    """The kit's own definition of the measures."""
    names: dict[str, Any] = {"__file__": str(kit / "reference_metrics.py"), "__name__": "reference_metrics"}
    exec(compile((kit / "reference_metrics.py").read_text(), "reference_metrics.py", "exec"), names)
    return SimpleNamespace(**names)


@pytest.mark.kit
def test_optimistic_is_the_rule_of_the_kit_on_vectors_full_of_ties(reference: Any) -> None:
    rng = np.random.default_rng(4)
    queries = rng.integers(0, 2, (60, 6)).astype(np.float32) + np.float32(0.5)
    gallery = rng.integers(0, 2, (60, 6)).astype(np.float32) + np.float32(0.5)
    paired = retrieval_metrics(queries, gallery, Relevance.paired(60), ties="optimistic")
    scores = reference.unit(queries) @ reference.unit(gallery).T
    same = rank_metrics([(0, scores)], Relevance.paired(60), ties="optimistic")
    want = reference.paired_recall(queries, gallery)
    assert {f"R@{k}": value for k, value in same.recall.items()} == pytest.approx(want)
    assert paired.recall[1] >= want["R@1"]  # rounding loses none of the ties
    labels = [[f"c{n % size}" for n in range(60)] for size in (4, 5)]
    got = rank_metrics([(0, scores)], Relevance.from_labels(*labels), ties="optimistic")
    assert got.macro["macro_mAP"] == pytest.approx(
        reference.class_retrieval(queries, labels[0], gallery, labels[1])["macro_mAP"]
    )
    assert got.macro["macro_P@10"] == pytest.approx(
        reference.class_retrieval(queries, labels[0], gallery, labels[1])["macro_P@10"]
    )


@pytest.mark.kit
def test_chance_of_the_kit_is_the_exact_expectation(kit: Path, reference: Any) -> None:
    rows = reference.rows
    audio = [row["label"] for row in rows("audio_image", "test_audio.jsonl")]
    image = [row["label"] for row in rows("audio_image", "test_image.jsonl")]
    core = [label for label in image if label != "other"]
    # the kit's chance is a mean over random draws, so it agrees to about half a point
    assert chance(Relevance.from_labels(audio, core)).macro["macro_mAP"] == pytest.approx(0.1043, abs=0.005)
    assert chance(Relevance.from_labels(audio, image)).macro["macro_mAP"] == pytest.approx(0.0292, abs=0.005)
    assert chance(Relevance.from_labels(audio, core)).macro["macro_P@10"] == pytest.approx(1 / 12, abs=0.005)
