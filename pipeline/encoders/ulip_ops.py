"""What happens to a point cloud before the network: sampling, the unit ball, farthest points, nearest neighbours.

Farthest points are those of the operator that ULIP evaluates with (``pointnet2_ops``, Pointnet2_PyTorch,
``sampling_gpu.cu``): the first is point 0, points within 0.0316 of the origin are never chosen, and of equally far
points the one wins that the operator's threads agree on. Everything is elementwise arithmetic without matrix products:
the same bits on every processor, whatever else is in the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...cache.errors import ItemError

ORIGIN = 1e-3
"""Squared distance from the origin up to which the operator skips a point (``if (mag <= 1e-3) continue``)."""
THREADS = 512
"""Of the operator's blocks; they decide between equally far points."""
CHUNK = 32
"""Centres whose distances to all points are held at once."""
GREY = 0.4
"""The colour of points without one (ULIP, ``data/dataset_3d.py``, ``rgb_data = np.ones_like(point_set) * 0.4``)."""

Cloud = npt.NDArray[np.float32]


def prepare(points: Cloud, channels: int, most: int, key: str) -> Cloud:
    """A decoded cloud as the network takes it.

    Parameters
    ----------
    points : ndarray
        (N, 3) xyz or (N, 6) xyz and rgb.
    channels : {3, 6}
        What the network takes. Colours of 0 to 255 become 0 to 1; a cloud without colours is grey.
    most : int
        Points that are kept: of a larger cloud a random choice without repetition, which depends on ``key`` alone.
        A smaller one is taken as it is, as in ULIP's evaluation.
    key : str
        Of the item.

    Returns
    -------
    ndarray
        (min(N, most), channels) float32, xyz within the unit ball.

    Raises
    ------
    ItemError
        If colours are needed and columns 4 to 6 are none.
    """
    kept = points[choice(len(points), most, key)]
    xyz = unit_ball(kept[:, :3])
    if channels == 3:
        return xyz
    return np.ascontiguousarray(np.concatenate([xyz, colours(kept, key)], axis=1))


def choice(count: int, most: int, key: str) -> npt.NDArray[np.int64]:
    """Indices, ascending, of ``most`` out of ``count`` points; from raw generator bits, which no release changes."""
    if count <= most:
        return np.arange(count)
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "little")
    order = np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
    return np.sort(order[:most])


def unit_ball(xyz: Cloud) -> Cloud:
    """Centre at the mean and scale the farthest point to 1 (ULIP, ``pc_normalize``); equal points stay at 0."""
    exact = xyz.astype(np.float64)
    exact -= exact.mean(axis=0)
    radius = np.sqrt((exact**2).sum(axis=1).max())
    # the mean of equal points is off by rounding, which must not be blown up to the unit ball
    if radius <= 1e-7 * np.abs(xyz).max():
        return np.zeros_like(xyz)
    return np.ascontiguousarray(exact / radius, dtype=np.float32)


def colours(points: Cloud, key: str) -> Cloud:
    """The rgb of a cloud, (N, 3) in 0..1."""
    if points.shape[1] == 3:
        return np.full((len(points), 3), GREY, dtype=np.float32)
    rgb = points[:, 3:6]
    low, high = float(rgb.min()), float(rgb.max())
    if low < 0 or high > 255:
        raise ItemError(
            f"columns 4 to 6 range from {low:.3g} to {high:.3g}; colours are 0 to 1 or 0 to 255",
            where=key,
            todo="save xyz alone, (N, 3), where the other columns are normals",
        )
    return rgb / np.float32(255) if high > 1 else rgb


def farthest_points(xyz: Tensor, count: int) -> Tensor:
    """Indices (B, count) of points that are each the farthest from those before it; the first point comes first.

    Parameters
    ----------
    xyz : Tensor
        (B, N, 3) float32. Of equally far points the first wins; points near the origin (:data:`ORIGIN`) are never
        chosen, so rows of zeros can fill shorter clouds up.
    count : int
        Points to choose. Where fewer are there, the rest repeats.
    """
    x, y, z = (xyz[:, :, axis].contiguous() for axis in range(3))  # (B, N) each
    # skipped points stay below every distance; 1e10 is the operator's infinity
    nearest = torch.where(x * x + y * y + z * z > ORIGIN, 1e10, -1.0)  # (B, N)
    rows = torch.arange(len(xyz), device=xyz.device)
    last = torch.zeros_like(rows)
    chosen = [last]
    for _ in range(count - 1):
        here = xyz[rows, last].unsqueeze(2)  # (B, 3, 1)
        distance = (x - here[:, 0]).square_()
        distance += (y - here[:, 1]).square_()
        distance += (z - here[:, 2]).square_()
        torch.minimum(nearest, distance, out=nearest)
        last = nearest.argmax(1)
        chosen.append(last)
    return torch.stack(chosen, 1)


def operator_order(count: int) -> npt.NDArray[np.int64]:
    """Points in the order in which the operator prefers them where they are equally far.

    Thread t looks at the points t, t + T, t + 2T, ... and keeps its first best one. The threads then meet in pairs at
    distances T/2, ..., 2, 1 and the lower one wins a tie, so the lowest bit of t decides first.
    """
    threads = min(1 << (count.bit_length() - 1), THREADS)
    thread = np.arange(count) % threads
    reversed_bits = np.zeros(count, dtype=np.int64)
    for bit in range(threads.bit_length() - 1):
        reversed_bits = 2 * reversed_bits + (thread >> bit & 1)
    return np.argsort(reversed_bits, kind="stable")


def nearest_points(xyz: Tensor, centres: Tensor, count: int) -> Tensor:
    """Indices (G, count) of the points (N, 3) nearest to each centre (G, 3), nearest first, of equals the lowest.

    Fewer than ``count`` points repeat; the network pools by maximum, so repetition changes nothing.
    """
    axes = xyz.t().contiguous()  # (3, N)
    numbers = torch.arange(len(xyz), device=xyz.device)
    return torch.cat([_nearest(axes, numbers, some, count) for some in torch.split(centres, CHUNK)])


def _nearest(axes: Tensor, numbers: Tensor, centres: Tensor, count: int) -> Tensor:
    """The same for a few centres (C, 3), whose distances stay in the processor's cache."""
    squared = (centres[:, 0, None] - axes[0]).square_()  # (C, N)
    for axis in (1, 2):
        squared += (centres[:, axis, None] - axes[axis]).square_()
    # bits of a non-negative float32 are ordered as it is; with the index below them there are no ties
    ranks = squared.view(torch.int32).long().mul_(len(numbers)).add_(numbers)
    found = ranks.topk(min(count, len(numbers)), dim=1, largest=False).indices
    return found[:, torch.arange(count, device=axes.device) % found.shape[1]]


def group(clouds: Sequence[Tensor], groups: int, size: int) -> tuple[Tensor, Tensor]:
    """Neighbourhoods (B, groups, size, C), xyz relative to their centres, and the centres (B, groups, 3)."""
    orders = [torch.from_numpy(operator_order(len(cloud))).to(cloud.device) for cloud in clouds]
    ordered = [cloud[order, :3] for cloud, order in zip(clouds, orders, strict=True)]
    chosen = farthest_points(torch.nn.utils.rnn.pad_sequence(ordered, batch_first=True), groups)  # (B, groups)
    neighbourhoods, centres = [], []
    for cloud, points, picks in zip(clouds, ordered, chosen, strict=True):
        centre = points[picks]  # (groups, 3)
        near = cloud[nearest_points(cloud[:, :3], centre, size)]  # (groups, size, C)
        near[:, :, :3] -= centre[:, None]
        neighbourhoods.append(near)
        centres.append(centre)
    return torch.stack(neighbourhoods), torch.stack(centres)
