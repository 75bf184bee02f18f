"""The tiny networks of the sandbox: one class per modality, each from a fixed-size input to a unit row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Modality


@dataclass(frozen=True)
class TowerSpec:
    """What a tower is built from.

    Parameters
    ----------
    modality : {"text", "image", "audio", "pointcloud"}
    dim : int
        Of the space.
    width : int
        Channels of the first layer (of the embedding, for text).
    words : int
        Size of the vocabulary with padding and unknown; text only.
    """

    modality: Modality
    dim: int
    width: int
    words: int = 0

    def record(self) -> dict[str, Any]:
        """Give the spec as JSON-able values."""
        return asdict(self)


def build_tower(spec: TowerSpec | Mapping[str, Any]) -> nn.Module:
    """Build the untrained tower of a spec or of its record."""
    made = spec if isinstance(spec, TowerSpec) else TowerSpec(**spec)
    if made.modality == "text":
        return TextTower(made.words, made.width, made.dim)
    if made.modality == "pointcloud":
        return PointTower(made.width, made.dim)
    return GridTower(3 if made.modality == "image" else 1, made.width, made.dim)


class TextTower(nn.Module):
    """Words, two convolutions over neighbours, mean and maximum over the words that are there."""

    def __init__(self, words: int, width: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width, padding_idx=0)
        self.near = nn.Conv1d(width, width, 3, padding=1)
        self.far = nn.Conv1d(width, width, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, dim))

    def forward(self, words: Tensor) -> Tensor:
        """Word numbers (B, L) to unit rows (B, dim); padding is 0 and has no influence."""
        there = (words != 0).unsqueeze(1)  # (B, 1, L)
        x = self.embed(words).transpose(1, 2)  # (B, width, L)
        x = (x + F.gelu(self.near(x))) * there
        x = (x + F.gelu(self.far(x))) * there
        mean = x.sum(2) / there.sum(2)
        top = x.masked_fill(~there, -torch.inf).amax(2)
        return F.normalize(self.head(torch.cat([mean, top], 1)), dim=1)


class GridTower(nn.Module):
    """Four convolutions over pixels or over a spectrum, mean and maximum over the places."""

    def __init__(self, channels: int, width: int, dim: int) -> None:
        super().__init__()
        sizes = (channels, width, 2 * width, 4 * width, 6 * width)
        strides = (2, 2, 2, 1)
        self.body = nn.Sequential(
            *[_conv_block(a, b, s) for a, b, s in zip(sizes[:-1], sizes[1:], strides, strict=True)]
        )
        self.head = nn.Sequential(nn.Linear(12 * width, 8 * width), nn.GELU(), nn.Linear(8 * width, dim))

    def forward(self, grid: Tensor) -> Tensor:
        """Pixels or spectra (B, C, H, W) to unit rows (B, dim)."""
        x = self.body(grid.contiguous(memory_format=torch.channels_last))  # (B, 6 width, H / 8, W / 8)
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return F.normalize(self.head(x), dim=1)


class PointTower(nn.Module):
    """PointNet (Qi et al. 2017) without its transforms: one network for every point, mean and maximum over all."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        sizes = (15, width, 2 * width, 4 * width)
        self.body = nn.Sequential(*[_point_block(a, b) for a, b in pairwise(sizes)])
        self.features = sizes[-1]
        self.head = nn.Sequential(nn.Linear(8 * width, 4 * width), nn.GELU(), nn.Linear(4 * width, dim))

    def forward(self, points: Tensor) -> Tensor:
        """Places and offsets (B, 9, N) to unit rows (B, dim)."""
        x = points.transpose(1, 2).reshape(-1, 9)  # (B N, 9)
        waves = [torch.sin(4 * x[:, :3]), torch.cos(4 * x[:, :3])]
        x = self.body(torch.cat([x, *waves], 1)).view(len(points), -1, self.features)  # (B, N, 4 width)
        return F.normalize(self.head(torch.cat([x.mean(1), x.amax(1)], 1)), dim=1)


def _conv_block(a: int, b: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())


def _point_block(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU())
