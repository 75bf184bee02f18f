"""The label-free criterion restated, and what it chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cmcr.trainer.projectors import affine
from cmcr.trainer.weave.criterion import Score, _reciprocal_ranks, choose, hold_out, score
from cmcr.trainer.weave.data import WeaveData
from cmcr.trainer.weave.experts import Expert, linear

Data = Callable[..., WeaveData]


def named(name: str, **settings: float) -> Expert:
    core = affine(torch.eye(2), None, 2)
    return Expert(name, (core, core), settings)


def test_a_fifth_is_held_out_and_at_most_a_thousand(make_data: Data) -> None:
    split = hold_out(make_data(rows=73), 0)
    assert len(split.held_out) == 14
    assert sorted([*split.fitted.tolist(), *split.held_out.tolist()]) == list(range(73))
    assert torch.equal(split.held_out, hold_out(make_data(rows=73), 0).held_out)
    assert not torch.equal(split.held_out, hold_out(make_data(rows=73), 1).held_out)
    assert len(hold_out(make_data(rows=6000), 0).held_out) == 1000
    assert len(hold_out(make_data(rows=16), 0).held_out) == 3


def test_the_score_is_the_mean_reciprocal_rank_of_both_directions(make_data: Data) -> None:
    data = make_data()
    split, expert, means, errors = hold_out(data, 0), linear(data, 0.0), [], []
    for side in (0, 1):
        own, other = data.sides[side], data.sides[1 - side]
        texts = [(own.overlap[i], other.overlap[i]) for i in split.held_out.tolist()]
        ranks = []
        for item in own.bank:
            wanted = max(range(len(texts)), key=lambda i: float(item @ texts[i][0]))
            g = expert.rows(side, item[None])[0]
            found = [float(g @ expert.rows(1 - side, there[None])[0]) for _, there in texts]
            ranks.append(1 / (1 + sum(f > found[wanted] for f in found)))
        mean = sum(ranks) / len(ranks)
        means.append(mean)
        errors.append(sum((r - mean) ** 2 for r in ranks) / (len(ranks) - 1) / len(ranks))
    got = score(expert, data, split, 0)
    assert got.mrr == pytest.approx(sum(means) / 2, abs=1e-6)
    assert got.error == pytest.approx(sum(errors) ** 0.5 / 2, rel=1e-5)


def test_ties_count_half() -> None:
    scores = torch.tensor([[3.0, 1.0, 3.0, 3.0], [5.0, 1.0, 0.0, 9.0], [2.0, 2.0, 2.0, 2.0]])
    assert _reciprocal_ranks(scores, torch.tensor([0, 1, 3])).tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 2.5])


def test_a_right_map_scores_above_a_shuffled_one_without_any_pair(make_data: Data) -> None:
    data = make_data(rows=400, banks=(200, 200))
    split = hold_out(data, 0)
    first, second = data.part(split.fitted).sides
    shuffled = replace(second, overlap=second.overlap[torch.randperm(len(second.overlap))])
    right = score(linear(data.part(split.fitted), 0.0), data, split, 0)
    wrong = score(linear(WeaveData((first, shuffled), split.fitted.numpy()), 0.0), data, split, 0)
    assert right.mrr > 0.4
    assert right.mrr > wrong.mrr + 5 * (right.error + wrong.error)


def test_of_those_within_one_standard_error_the_simplest_of_the_best_kind_is_taken() -> None:
    powers = [named("linear", power=p) for p in (0.0, 0.1, 0.25, 0.5)]
    walks = [named("anchors", scale=s, whiten=w) for s in (12.0, 17.0) for w in (0.5, 1.0)]
    other = [Score(0.30, 0.02)] * 3
    near = [Score(0.50, 0.02), Score(0.49, 0.02), Score(0.485, 0.02), Score(0.47, 0.02)]
    assert choose([named("trained"), *powers, *walks[:2]], [other[0], *near, *other[1:]]).settings == {"power": 0.25}
    close = Score(0.499, 0.001)  # of another kind: as good, and still not taken
    assert choose([named("trained"), *powers], [close, *near]).settings == {"power": 0.25}
    assert choose([named("trained"), *powers], [Score(0.51, 0.02), *near]).name == "trained"
    level = [Score(0.60, 0.02)] * 4
    assert choose([*powers, *walks], [*near, *level]).settings == {"scale": 12.0, "whiten": 0.5}
    assert choose(walks, [Score(0.1, 0.0), Score(0.2, 0.0), Score(0.1, 0.0), Score(0.3, 0.0)]).settings["scale"] == 17.0
