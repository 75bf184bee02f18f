"""The networks of ULIP's towers, with the parameter names of the official checkpoints.

Points: PointBERT (Yu et al., "Point-BERT", CVPR 2022) as ULIP configures it (``models/pointbert/*.yaml``).
Image and text: the ViT-B/16 and the transformer of SLIP (Mu et al., ECCV 2022), which ULIP keeps frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .torchvision_shim import prepare_torchvision


@dataclass(frozen=True)
class PointSpec:
    """What a PointBERT is built from.

    Parameters
    ----------
    channels : {3, 6}
        xyz, or xyz and rgb.
    depth, width, heads : int
        Of the transformer.
    groups, group_size : int
        Neighbourhoods of a cloud and points in each.
    token_width : int
        Of a neighbourhood's feature.
    """

    channels: int = 3
    depth: int = 12
    width: int = 384
    heads: int = 6
    groups: int = 512
    group_size: int = 32
    token_width: int = 256


@dataclass(frozen=True)
class SlipSpec:
    """What the towers of SLIP are built from: ViT-B/16 and a transformer over CLIP's tokens."""

    image_size: int = 224
    image_width: int = 768
    image_depth: int = 12
    image_heads: int = 12
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    context: int = 77
    vocabulary: int = 49408


class NeighbourhoodEncoder(nn.Module):
    """A small PointNet over each neighbourhood; ``encoder`` of Point-BERT."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(channels, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, width, 1)
        )

    def forward(self, points: Tensor) -> Tensor:
        """Neighbourhoods (G, K, C) to tokens (G, width)."""
        groups, size, channels = points.shape
        first, norm, last = self.second_conv[0], self.second_conv[1], self.second_conv[3]
        hidden = F.relu(self.first_conv[1](_pointwise(self.first_conv[0], points.reshape(-1, channels))))
        near = _pointwise(self.first_conv[3], hidden)  # (G K, 256)
        whole = near.view(groups, size, -1).amax(1)  # (G, 256)
        # The original joins `whole` to every point, (G K, 512), before this convolution: its half is the same for all.
        weight, bias = _matrix(first)
        of_whole, of_point = weight.tensor_split(2, dim=1)  # (512, 256) each
        joined = F.linear(near, of_point).view(groups, size, -1) + F.linear(whole, of_whole, bias)[:, None]
        hidden = F.relu(norm(joined.view(groups * size, -1)))  # (G K, 512)
        return _pointwise(last, hidden).view(groups, size, -1).amax(1)


def _pointwise(convolution: nn.Module, x: Tensor) -> Tensor:
    """A convolution of width 1 as the matrix product that it is: rows (N, C) to rows."""
    return F.linear(x, *_matrix(convolution))


def _matrix(convolution: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias of a convolution of width 1."""
    state = dict(convolution.named_parameters())
    return state["weight"][:, :, 0], state["bias"]


class PointBlocks(nn.Module):
    """Transformer blocks that take the positions anew in every layer."""

    def __init__(self, spec: PointSpec) -> None:
        super().__init__()
        prepare_torchvision()
        from timm.models.vision_transformer import Block

        self.blocks = nn.ModuleList(
            [Block(spec.width, spec.heads, qkv_bias=False, norm_layer=nn.LayerNorm) for _ in range(spec.depth)]
        )

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Tokens and positions (B, 1 + G, width) to tokens."""
        for block in self.blocks:
            x = block(x + position)
        return x


class PointBert(nn.Module):
    """From neighbourhoods to one feature: ``point_encoder`` of ULIP."""

    def __init__(self, spec: PointSpec) -> None:
        super().__init__()
        self.encoder = NeighbourhoodEncoder(spec.channels, spec.token_width)
        self.reduce_dim = nn.Linear(spec.token_width, spec.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, spec.width))
        self.blocks = PointBlocks(spec)
        self.norm = nn.LayerNorm(spec.width)

    def tokens(self, neighbourhoods: Tensor) -> Tensor:
        """Neighbourhoods (B, G, K, C) to tokens (B, G, token_width), one cloud at a time to bound memory."""
        return torch.stack([self.encoder(cloud) for cloud in neighbourhoods])

    def forward(self, neighbourhoods: Tensor, centres: Tensor) -> Tensor:
        """Neighbourhoods (B, G, K, C) and centres (B, G, 3) to features (B, 2 width)."""
        x = self.reduce_dim(self.tokens(neighbourhoods))  # (B, G, width)
        first = self.cls_token.expand(len(x), -1, -1)
        position = torch.cat([self.cls_pos.expand(len(x), -1, -1), self.pos_embed(centres)], 1)
        x = self.norm(self.blocks(torch.cat([first, x], 1), position))  # (B, 1 + G, width)
        return torch.cat([x[:, 0], x[:, 1:].amax(1)], 1)


class PointTower(nn.Module):
    """PointBERT and the projection into the space."""

    def __init__(self, spec: PointSpec, dim: int) -> None:
        super().__init__()
        self.point_encoder = PointBert(spec)
        self.pc_projection = nn.Parameter(torch.empty(2 * spec.width, dim))

    def forward(self, neighbourhoods: Tensor, centres: Tensor) -> Tensor:
        """Neighbourhoods (B, G, K, C) and centres (B, G, 3) to vectors (B, dim), not normalised."""
        features: Tensor = self.point_encoder(neighbourhoods, centres)
        return features @ self.pc_projection


class ImageTower(nn.Module):
    """SLIP's ViT-B/16 and the projection into the space."""

    def __init__(self, spec: SlipSpec, dim: int) -> None:
        super().__init__()
        prepare_torchvision()
        from timm.models.vision_transformer import VisionTransformer

        self.visual = VisionTransformer(
            img_size=spec.image_size,
            patch_size=16,
            embed_dim=spec.image_width,
            depth=spec.image_depth,
            num_heads=spec.image_heads,
            num_classes=0,
        )
        self.image_projection = nn.Parameter(torch.empty(spec.image_width, dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) to vectors (B, dim), not normalised."""
        features: Tensor = self.visual(pixels)
        return features @ self.image_projection


def text_tower(spec: SlipSpec, dim: int) -> nn.Module:
    """SLIP's text transformer, CLIP's with QuickGELU: tokens (B, L) to vectors (B, dim), not normalised."""
    prepare_torchvision()
    from open_clip.transformer import QuickGELU, TextTransformer

    tower: nn.Module = TextTransformer(
        context_length=spec.context,
        vocab_size=spec.vocabulary,
        width=spec.text_width,
        heads=spec.text_heads,
        layers=spec.text_depth,
        output_dim=dim,
        act_layer=QuickGELU,
    )
    return tower
