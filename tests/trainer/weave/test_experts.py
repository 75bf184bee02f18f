"""The candidates that need no training, against restatements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cmcr.trainer.weave.data import WeaveData
from cmcr.trainer.weave.experts import anchor_keys, anchors, cluster, linear, untrained
from torch.nn import functional as F

Data = Callable[..., WeaveData]


def test_power_zero_is_procrustes_up_to_a_rotation_of_both(make_data: Data) -> None:
    data = make_data()
    one, two = data.sides
    u, _, vt = np.linalg.svd((one.overlap.double().T @ two.overlap.double()).numpy(), full_matrices=False)
    expert = linear(data, 0.0)
    x, y = one.bank, two.bank
    mapped, turned = x.double().numpy() @ u @ vt, F.normalize(x @ torch.from_numpy(u).float(), dim=1)
    cosines = mapped @ y.double().numpy().T / np.linalg.norm(mapped, axis=1, keepdims=True)  # into the narrower space
    np.testing.assert_allclose(expert.rows(0, x) @ expert.rows(1, y).T, cosines, atol=1e-5)
    np.testing.assert_allclose((expert.rows(0, x) @ expert.rows(0, x).T), turned @ turned.T, atol=1e-5)


def test_a_power_shrinks_each_direction_by_its_covariance(make_data: Data) -> None:
    data = make_data()
    one, two = data.sides
    u, s, vt = np.linalg.svd((one.overlap.T @ two.overlap).double().numpy(), full_matrices=False)
    expert = linear(data, 0.5)
    wanted = [one.bank.numpy() @ u * (s / s[0]) ** 0.25, two.bank.numpy() @ vt.T * (s / s[0]) ** 0.25]
    scores = (wanted[0] / np.linalg.norm(wanted[0], axis=1, keepdims=True)) @ (
        wanted[1] / np.linalg.norm(wanted[1], axis=1, keepdims=True)
    ).T
    np.testing.assert_allclose(expert.rows(0, one.bank) @ expert.rows(1, two.bank).T, scores, atol=1e-5)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_kept_side_has_the_identity_as_core_and_the_same_scores(make_data: Data, kept: int) -> None:
    data = make_data()
    expert = linear(data, 0.25, kept)
    assert expert.cores[kept].spec.kind == "identity"
    assert expert.cores[1 - kept].spec.dim_out == data.sides[kept].dim
    free = linear(data, 0.25)
    led = free.cores[1 - kept](data.sides[1 - kept].bank) @ free.cores[kept](data.sides[kept].bank).T
    bare = expert.cores[1 - kept](data.sides[1 - kept].bank) @ data.sides[kept].bank.T
    torch.testing.assert_close(bare, led, atol=1e-5, rtol=1e-4)
    walk = anchors(data, 12.0, 0.5, 100, 0, kept)
    assert walk.cores[kept].spec.kind == "identity"
    assert walk.rows(1 - kept, data.sides[1 - kept].bank).shape[1] == data.sides[kept].dim


@pytest.mark.parametrize("dims", [(9, 6), (6, 6)])
def test_a_walk_over_anchors_is_its_loops(make_data: Data, dims: tuple[int, int]) -> None:
    data, scale = make_data(rows=23, banks=(7, 5), dims=dims), 9.0
    keys = []
    for side in data.sides:
        rows = []
        for t in side.overlap:
            weights = [float(np.exp(scale * float(t @ x))) for x in side.bank]
            x = sum(w * row for w, row in zip(weights, side.bank, strict=True))
            rows.append(F.normalize(t + F.normalize(x, dim=0), dim=0))
        keys.append(torch.stack(rows))
    both = torch.cat(keys, dim=1).double()
    both -= both.mean(0)
    values, vectors = np.linalg.eigh((both.T @ both / len(both)).numpy())
    values = np.maximum(values, 1e-3 * values[-1])
    white = both.numpy() @ (vectors @ np.diag(values**-0.25) @ vectors.T)
    expert = anchors(data, scale, 0.5, 100, 0)
    for side in (0, 1):
        x = data.sides[side].bank[0]
        weights = np.array([np.exp(scale * float(x @ key)) for key in keys[side]])
        wanted = sum(w * row for w, row in zip(weights / weights.sum(), white, strict=True))
        claim = f"side {side}: a bank vector is not weighed by the anchors of its own space, completed"
        np.testing.assert_allclose(
            expert.rows(side, x[None])[0], wanted / np.linalg.norm(wanted), atol=2e-4, err_msg=claim
        )


def test_clustering_is_the_same_each_time_and_leaves_no_cluster_empty(make_data: Data) -> None:
    points = [side.overlap for side in make_data(rows=203).sides]
    points = [torch.cat([rows, rows[:60]]) for rows in points]  # doubles: two centres may start on one point
    state = torch.random.get_rng_state()
    found, again = cluster(points, 50, 3), cluster(points, 50, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert len(found[0]) == len(found[1]) <= 50
    for rows, width in zip(found, (9, 6), strict=True):
        assert rows.shape[1] == width
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))  # an empty one would be zero
    data = make_data(rows=203)
    assert len(anchor_keys(data, 12.0, 50, 0)[0]) <= 50
    assert len(anchor_keys(data, 12.0, 203, 0)[0]) == 203


def test_every_candidate_of_the_grids_comes_and_the_smallest_data_suffices(make_data: Data) -> None:
    data = make_data(rows=16, banks=(2, 3), dims=(2, 2))
    found = list(untrained(data, (0.0, 0.5), (12.0, 17.0), (0.5, 1.0), 8, 0, None))
    assert [expert.name for expert in found] == ["linear"] * 2 + ["anchors"] * 4
    assert len({tuple(expert.settings.items()) for expert in found}) == 6
    for expert in found:
        for side in (0, 1):
            assert torch.isfinite(expert.rows(side, data.sides[side].bank)).all()
    assert list(untrained(data, (), (12.0,), (), 8, 0, None)) == []
