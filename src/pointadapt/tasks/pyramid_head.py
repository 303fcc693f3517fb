"""The decoder of a frame pyramid: tokens of a transformer back to every point of every frame, level by level.

P4Transformer's decoder (Fan et al., CVPR 2021): interpolation from the three nearest anchors, the level's own features
beside it, two layers; and so on down to the points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.frame_pyramid import Level, row_layer
from pointadapt.ops.batchnorm import RowNorm
from pointadapt.ops.neighbors import spread
from pointadapt.point import Point
from pointadapt.tasks.clips import VideoHead

#: Widths from the coarsest level up to the points, by size of the pyramid.
WIDTHS = {"pyramid": (256, 256, 128, 128), "slim": (128, 128, 64, 64)}


class PyramidHead(VideoHead):
    """Tokens [R, G, D] and the pyramid's levels -> logits [N, classes].

    levels  widths of the levels, finest first; points bring 3 channels (colours, or coordinates)
    594,828 parameters on Point-MAE with 12 classes (pyramid), 201,164 (slim).
    """

    def __init__(
        self, channels: int, levels: Sequence[int], size: str, classes: int, backbone_hash: str, dropout: float
    ) -> None:
        super().__init__()
        widths = WIDTHS[size]
        skips = (*reversed(levels), 3)
        self.up = nn.ModuleList(
            Upwards(old, skip, new) for old, skip, new in zip((channels, *widths), skips, widths, strict=False)
        )
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(widths[-1], classes)
        self.bind(backbone_hash)

    def forward(self, point: Point, tokens: Level, levels: Sequence[Level]) -> Tensor:
        here = tokens
        for up, level in zip(self.up, reversed(levels), strict=False):
            here = Level(level.center, up(level.point, here).view(*level.center.shape[:2], -1))
        own = point.feat[:, 3:] if point.feat.shape[1] > 3 else point.coord
        return self.out(self.drop(self.up[-1](point.but(feat=own), here)))


class Upwards(nn.Module):
    """[N, width] at points with features, from anchors: two layers on both side by side.

    What several points would multiply alike is multiplied once, at the anchors.
    """

    def __init__(self, channels: int, skip: int, width: int) -> None:
        super().__init__()
        self.above, self.own = nn.Linear(channels, width, bias=False), nn.Linear(skip, width, bias=False)
        self.norm, self.more = RowNorm(width), row_layer(width, width)

    def forward(self, point: Point, anchors: Level) -> Tensor:
        index, weight = spread(point, anchors.center)
        rows = self.above(anchors.feat).flatten(0, 1)
        x = self.own(point.feat)
        for k in range(index.shape[1]):
            x = torch.addcmul(x, weight[:, k, None].to(rows.dtype), rows[index[:, k]])
        return self.more(F.relu(self.norm(x)))
