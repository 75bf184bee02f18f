"""The tiled pass against whole rows of scores, against trec_eval and torchmetrics, and its memory."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import pytrec_eval
import torch
from cmcr.cache.errors import CmcrError
from cmcr.pipeline.encoders.torchvision_shim import prepare_torchvision
from cmcr.trainer import metrics, scoring
from cmcr.trainer.metrics import RetrievalMetrics, both_directions, chance, rank_metrics, retrieval_metrics
from cmcr.trainer.ranking import FEW, Relevance
from cmcr.trainer.scoring import ArrayRows, score_blocks, tiled_places
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def torchmetrics() -> Any:
    """torchmetrics.retrieval; it imports torchvision, which needs help beside a CPU-only torch."""
    prepare_torchvision()
    return importlib.import_module("torchmetrics.retrieval")


def flat(found: RetrievalMetrics) -> dict[str, Any]:
    record = found.to_json()
    record.pop("ties")
    return record


@st.composite
def vectors_and_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Relevance]:
    """Vectors of few values, so that scores tie, and pairs: none, several, and a hub that many rows share."""
    queries, gallery = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    left, right = (random.integers(-1, 2, (count, 3)).astype(np.float32) for count in (queries, gallery))
    wanted = random.random((queries, gallery)) < draw(st.sampled_from([0.02, 0.1]))
    wanted[:, random.integers(gallery)] |= random.random(queries) < draw(st.sampled_from([0.0, 0.9]))
    wanted[random.integers(queries), random.integers(gallery)] = True
    return left, right, Relevance.from_rows(*np.nonzero(wanted), queries, gallery)


@settings(max_examples=30, deadline=None)
@given(vectors_and_pairs(), st.sampled_from(["expected", "optimistic"]), st.integers(1, 50))
def test_tiles_count_what_whole_rows_of_scores_give_in_both_directions(
    case: tuple[np.ndarray, np.ndarray, Relevance], ties: Any, block: int
) -> None:
    left, right, relevance = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_GALLERY_AT_ONCE", 7)
        patch.setattr(scoring, "_PAIRS_AT_ONCE", 5)
        patch.setattr(metrics, "_is_sparse", lambda relevance: True)
        there, back = both_directions(left, right, relevance, ties=ties, block=block, ks=(1, 3))
        alone = retrieval_metrics(left, right, relevance, ties=ties, block=block, ks=(1, 3))
        patch.setattr(metrics, "_is_sparse", lambda relevance: False)
        rows = retrieval_metrics(left, right, relevance, ties=ties, block=block, ks=(1, 3))
        columns = retrieval_metrics(right, left, relevance.transposed(), ties=ties, block=block, ks=(1, 3))
    assert flat(there) == flat(alone) == pytest.approx(flat(rows))
    assert flat(back) == pytest.approx(flat(columns))
    assert RetrievalMetrics.from_json(back.to_json()) == back


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(2, 40), st.integers(0, 10**6))
def test_measures_are_those_of_trec_eval_and_torchmetrics(
    torchmetrics: Any, queries: int, gallery: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    scores = np.stack([random.permutation(gallery) for _ in range(queries)]).astype(np.float32) + 1  # no ties, none 0
    wanted = random.random((queries, gallery)) < 0.2
    wanted[0, 0] = True
    got = rank_metrics([(0, scores)], Relevance.from_rows(*np.nonzero(wanted), queries, gallery), ks=(1, 5, 10))
    kept = np.flatnonzero(wanted.any(1))
    assert got.skipped == queries - len(kept)
    names = {"map", "recip_rank", "ndcg_cut.10", "success.1,5,10", "recall.1,5,10", "P.1,5,10"}
    truth = {f"q{q}": {f"g{g}": int(wanted[q, g]) for g in range(gallery)} for q in kept}
    runs = {f"q{q}": {f"g{g}": float(scores[q, g]) for g in range(gallery)} for q in kept}
    found = list(pytrec_eval.RelevanceEvaluator(truth, names).evaluate(runs).values())
    trec = {name: np.mean([one[name] for one in found]) for name in found[0]}
    assert got.mean_average_precision == pytest.approx(trec["map"])
    assert got.mean_reciprocal_rank == pytest.approx(trec["recip_rank"])
    assert got.ndcg == pytest.approx(trec["ndcg_cut_10"])
    for k in (1, 5, 10):
        assert got.recall[k] == pytest.approx(trec[f"success_{k}"])
        assert got.true_recall[k] == pytest.approx(trec[f"recall_{k}"])
        assert got.precision[k] == pytest.approx(trec[f"P_{k}"])
    given_scores, target = torch.from_numpy(scores).flatten(), torch.from_numpy(wanted).flatten()
    index = torch.arange(queries).repeat_interleave(gallery)

    def theirs(kind: Any, **options: Any) -> float:
        return float(kind(empty_target_action="skip", **options)(given_scores, target, indexes=index))

    assert got.mean_average_precision == pytest.approx(theirs(torchmetrics.RetrievalMAP), abs=1e-6)
    assert got.mean_reciprocal_rank == pytest.approx(theirs(torchmetrics.RetrievalMRR), abs=1e-6)
    assert got.ndcg == pytest.approx(theirs(torchmetrics.RetrievalNormalizedDCG, top_k=10), abs=1e-6)
    assert got.recall[5] == pytest.approx(theirs(torchmetrics.RetrievalHitRate, top_k=5), abs=1e-6)
    assert got.true_recall[5] == pytest.approx(theirs(torchmetrics.RetrievalRecall, top_k=5), abs=1e-6)
    assert got.precision[5] == pytest.approx(theirs(torchmetrics.RetrievalPrecision, top_k=5), abs=1e-6)


def test_true_recall_counts_every_relevant_item_where_any_hit_counts_one() -> None:
    scores = np.array([[5, 4, 3, 2, 1, 0]], np.float32)
    relevance = Relevance.from_rows(np.zeros(4, np.int64), np.array([0, 3, 4, 5]), 1, 6)
    got = rank_metrics([(0, scores)], relevance, ks=(1, 5, 10))
    assert [*got.recall.values()] == [1, 1, 1]
    assert [*got.true_recall.values()] == [1 / 4, 3 / 4, 1]


def test_constant_vectors_score_exactly_chance_through_tiles() -> None:
    pairs = Relevance.from_rows(np.array([0, 0, 1, 2, 9]), np.array([0, 5, 5, 5, 12]), 10, 13)
    flat_rows = np.full((13, 5), 0.7, np.float32)
    there, back = both_directions(flat_rows[:10], flat_rows, pairs)
    assert there == chance(pairs)
    assert back == chance(pairs.transposed())


def test_many_relevant_items_of_one_row_are_counted_by_sorting_it() -> None:
    random = np.random.default_rng(5)
    left, right = (random.standard_normal((count, 4)).astype(np.float32) for count in (3, 500))
    hub = Relevance.from_rows(np.zeros(90, np.int64), np.arange(90) * 5, 3, 500)
    assert hub.counts().max() > FEW
    where, _ = tiled_places(ArrayRows(left), ArrayRows(right), hub, block=2, device="cpu", in_order=True, both=False)
    (_, scores), *_ = score_blocks(left, right, 3)
    targets = scores[0, np.arange(90) * 5]
    assert where.higher.tolist() == [(scores[0] > level).sum() for level in targets]
    assert where.equal.tolist() == [1] * 90


def test_vectors_that_are_no_rows_are_refused() -> None:
    with pytest.raises(CmcrError, match="not rows"):
        retrieval_metrics(np.ones(3, np.float32), np.ones((3, 3), np.float32), Relevance.paired(3))


MEMORY = """
import resource, sys
import numpy as np
from cmcr.trainer.metrics import both_directions
from cmcr.trainer.ranking import Relevance

class Made:  # rows that exist only while they are read
    def __init__(self, seed): self.seed, self.dim = seed, 64
    def __len__(self): return COUNT
    def read(self, start, stop): return self.take(np.arange(start, stop))
    def take(self, rows):
        return np.sin((rows[:, None] * 0.618 + np.arange(self.dim) * self.seed) * 7919).astype(np.float32)

both_directions(Made(1), Made(2), Relevance.paired(COUNT), block=1024)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_of_the_tiled_pass_does_not_grow_with_the_product_of_the_sides() -> None:
    peaks = []
    for count in (1000, 6000):  # a matrix of 6,000 x 6,000 scores is 144 MB in float32, 288 MB in float64
        code = MEMORY.replace("COUNT", str(count))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) * (1 if sys.platform == "darwin" else 1024))
    assert peaks[1] - peaks[0] < 100e6, peaks
