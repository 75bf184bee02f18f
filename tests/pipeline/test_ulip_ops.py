"""What happens to a cloud before PointBERT, against naive restatements of the original's operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import ItemError
from cmcr.pipeline.encoders.ulip_ops import (
    choice,
    farthest_points,
    group,
    nearest_points,
    operator_order,
    prepare,
    unit_ball,
)


def cloud(count: int, seed: int = 0) -> np.ndarray:
    return unit_ball(np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32))


def lattice(count: int) -> np.ndarray:
    """Points of a grid in a random order: most distances are ties."""
    rng = np.random.default_rng(count)
    return (rng.integers(-3, 4, size=(count, 3)) / 4).astype(np.float32)


def chosen(points: np.ndarray, groups: int) -> list[int]:
    """Farthest points in terms of the cloud's own indices."""
    order = operator_order(len(points))
    return order[farthest_points(torch.from_numpy(points[order])[None], groups)[0].numpy()].tolist()


@pytest.mark.parametrize("count", [1, 2, 31, 33, 517, 1025])
@pytest.mark.parametrize("make", [cloud, lattice])
def test_farthest_points_are_those_of_the_original_operator(make: Any, count: int, ulip_maker: Any) -> None:
    """Thread by thread: the first point first, none near the origin, ties as the threads agree on them."""
    points = make(count)
    assert chosen(points, 37) == ulip_maker.kernel_of_furthest_points(points, 37)


def test_points_near_the_origin_are_never_chosen(ulip_maker: Any) -> None:
    points = cloud(200)
    points[1:100] *= np.float32(0.03)  # within sqrt(1e-3) of the origin
    found = chosen(points, 90)
    assert found == ulip_maker.kernel_of_furthest_points(points, 90)
    assert set(found) <= {0, *range(100, 200)}
    assert chosen(np.zeros((5, 3), dtype=np.float32), 4) == [0, 0, 0, 0]


def test_nearest_points_are_the_nearest_and_of_equals_the_first() -> None:
    for points in (cloud(517), lattice(301)):
        centres = points[::13]
        found = nearest_points(torch.from_numpy(points), torch.from_numpy(centres), 7).numpy()
        for centre, row in zip(centres, found, strict=True):
            delta = points - centre
            squared = delta[:, 0] ** 2 + delta[:, 1] ** 2 + delta[:, 2] ** 2
            assert row.tolist() == np.argsort(squared, kind="stable")[:7].tolist()


def test_fewer_points_than_neighbours_repeat() -> None:
    found = nearest_points(torch.from_numpy(cloud(3)), torch.zeros(1, 3), 8)[0].tolist()
    assert sorted(found[:3]) == [0, 1, 2]
    assert found[3:6] == found[:3]


def test_a_cloud_is_grouped_alike_in_every_company() -> None:
    clouds = [torch.from_numpy(cloud(count, count)) for count in (300, 7, 1025)]
    together = group(clouds, 20, 9)
    for index, one in enumerate(clouds):
        alone = group([one], 20, 9)
        assert torch.equal(together[0][index], alone[0][0])
        assert torch.equal(together[1][index], alone[1][0])


def test_colours_are_grouped_as_they_are_and_places_relative_to_the_centre() -> None:
    points = np.concatenate([cloud(100), np.random.default_rng(1).random((100, 3), dtype=np.float32)], axis=1)
    neighbourhoods, centres = group([torch.from_numpy(points)], 5, 4)
    back = neighbourhoods[0].clone()
    back[:, :, :3] += centres[0][:, None]
    rows = {tuple(row) for row in np.round(points, 5).tolist()}
    assert {tuple(row) for row in np.round(back.reshape(-1, 6).numpy(), 5).tolist()} <= rows


def test_a_large_cloud_is_sampled_by_its_key_alone_and_a_small_one_is_whole() -> None:
    points = cloud(1000)
    first = prepare(points, 3, 300, "a/b")
    assert first.shape == (300, 3)
    assert np.array_equal(first, prepare(points, 3, 300, "a/b"))
    assert not np.array_equal(first, prepare(points, 3, 300, "a/c"))
    assert prepare(points, 3, 1000, "a").shape == (1000, 3)
    assert choice(10, 4, "key").tolist() == [3, 4, 7, 9]  # raw generator bits: the same with every release
    picks = np.concatenate([choice(50, 10, str(key)) for key in range(400)])
    assert np.bincount(picks, minlength=50).min() > 40  # 80 expected of each
    assert all(len(set(choice(50, 10, str(key)))) == 10 for key in range(20))


def test_the_unit_ball_has_its_centre_at_the_mean_and_radius_one() -> None:
    ball = unit_ball(cloud(99) * np.float32(1e20) + np.float32(3e20))
    assert np.allclose(ball.mean(0), 0, atol=1e-5)
    assert np.linalg.norm(ball, axis=1).max() == pytest.approx(1)


def test_equal_points_stay_finite() -> None:
    for value in (0.0, 0.1, 1e30, -7.3):
        assert np.array_equal(unit_ball(np.full((100, 3), value, dtype=np.float32)), np.zeros((100, 3)))


def test_colours_become_0_to_1_and_no_colour_is_grey() -> None:
    rgb = np.random.default_rng(2).integers(0, 256, size=(20, 3)).astype(np.float32)
    xyz = cloud(20)
    eight_bit = prepare(np.concatenate([xyz, rgb], axis=1), 6, 99, "k")
    assert np.allclose(eight_bit[:, 3:], rgb / 255)
    assert np.array_equal(prepare(np.concatenate([xyz, rgb / 255], axis=1), 6, 99, "k")[:, 3:], eight_bit[:, 3:])
    assert np.array_equal(prepare(xyz, 6, 99, "k")[:, 3:], np.full((20, 3), 0.4, dtype=np.float32))
    assert prepare(np.concatenate([xyz, rgb], axis=1), 3, 99, "k").shape == (20, 3)
    with pytest.raises(ItemError, match="columns 4 to 6 range from"):
        prepare(np.concatenate([xyz, xyz], axis=1), 6, 99, "k")
