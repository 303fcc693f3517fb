"""Point-PN, the small point network that makes APPT's tokens: Point-NN with trained layers.

Zhang et al., CVPR 2023 (arXiv 2303.08134), as APPT configures it. Written for CPUs: 1x1
convolutions are matrix products over rows, and the layer on [neighbour; centre] is applied to both before they are
gathered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.ops.neighbors import Rule
from pointadapt.ops.pyramid import Pyramid, pyramid
from pointadapt.ops.row_blocks import bottleneck, cuts, gather_weigh, max_mean
from pointadapt.point import Point

#: Width of a stage by that of the one before, and its residual blocks; frequencies of the geometry code.
GROWTH, DEPTH = (2, 2, 2, 1), (2, 1, 1, 1)
ALPHA, BETA = 1000.0, 100.0

Scale = Literal["patch", "cloud"]


class PointPN(nn.Module):
    """Point -> ([B, G, 8 width] features, [B, G, 3] centres) of G groups.

    width      of the stem; widths of the stages are 2, 4, 8, 8 times that
    up         axis of height over the lowest point, a fourth input channel; None: coordinates alone
    neighbors  K; groups G, stages halve the points down to it
    scale      relative coordinates are divided by their largest magnitude, axis by axis, within each "patch", or by
               their standard deviation over the "cloud"
    Raises UserError for a width whose geometry code cannot be laid out.
    """

    def __init__(
        self,
        width: int = 36,
        up: Literal["x", "y", "z"] | None = "y",
        neighbors: int = 40,
        groups: int = 64,
        scale: Scale = "patch",
        sampling: Rule = "clean",
    ) -> None:
        super().__init__()
        if width % 3:
            raise UserError(
                f"width {width} of the point network must be a multiple of 3, so that its stages of {2 * width}, "
                f"{4 * width} and {8 * width} channels hold sines and cosines of three axes"
            )
        self.up, self.neighbors, self.groups, self.sampling = up, neighbors, groups, sampling
        self.stem = nn.Linear(3 if up is None else 4, width, bias=False)
        self.stem_norm = nn.BatchNorm1d(width)
        widths = [width * math.prod(GROWTH[:s]) for s in range(len(GROWTH) + 1)]
        self.stages = nn.ModuleList(
            Stage(below, own, blocks, scale) for below, own, blocks in zip(widths, widths[1:], DEPTH, strict=False)
        )
        self.channels = widths[-1]

    def forward(self, point: Point) -> tuple[Tensor, Tensor]:
        levels = pyramid(point, self.groups, self.neighbors, len(self.stages), self.sampling)
        below = point.coord[levels.order]
        feat = F.relu(self.stem_norm(self.stem(self.inputs(point, levels))))
        for index, stage in enumerate(self.stages):
            near = levels.near[index]
            rows = levels.first if index == 0 else first_rows(near, below)
            center = below[rows]
            feat = stage(feat, rows, near, below[near] - center[:, :, None])
            below = center.flatten(0, 1)
        return feat.unflatten(0, (point.num_clouds, self.groups)), center

    def inputs(self, point: Point, levels: Pyramid) -> Tensor:
        """[N, 3 or 4] coordinates and height, in the pyramid's order."""
        coord = point.coord
        if self.up is not None:
            height = coord[:, "xyz".index(self.up)]
            low = height.new_full((point.num_clouds,), math.inf).scatter_reduce(0, point.batch, height, "amin")
            coord = torch.cat([coord, (height - low[point.batch])[:, None]], 1)
        return coord[levels.order]


def first_rows(near: Tensor, below: Tensor) -> Tensor:
    """[B, N_s] rows of the level before that are this level: the first ones of each of its clouds."""
    batch, size, _ = near.shape
    clouds = torch.arange(batch, device=near.device)[:, None] * (len(below) // batch)
    return clouds + torch.arange(size, device=near.device)


class Stage(nn.Module):
    """One level: gather K neighbours, weigh them by their geometry, residual blocks, pool."""

    frequency: Tensor

    def __init__(self, below: int, channels: int, blocks: int, scale: Scale) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(2 * below, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        self.blocks = nn.ModuleList(Residual(channels) for _ in range(blocks))
        steps = torch.arange(channels // 6) / (channels // 6)
        self.register_buffer("frequency", BETA / ALPHA**steps, persistent=False)

    def forward(self, feat: Tensor, rows: Tensor, near: Tensor, coord: Tensor) -> Tensor:
        """[n_below, below] -> [B N_s, C]: rows [B, N_s] of the centres, near [B, N_s, K], coord [B, N_s, K, 3]."""
        with torch.autocast(feat.device.type, enabled=False):
            neighbor, center = self.linear.weight.chunk(2, 1)
            feat = feat.to(neighbor.dtype)
            values = F.linear(feat, neighbor)
            own = F.linear(feat.index_select(0, rows.flatten()), center)
            if self.scale == "cloud":
                coord = coord / (coord.flatten(1).std(1)[:, None, None, None] + 1e-5)
            near, coord = near.flatten(0, 1), coord.flatten(0, 1)
            codes = [self.code(coord[part]).flatten(0, 1) for part in cuts(near, values.shape[1])]
            blocks = gather_weigh(values, own, near, codes, self.norm)
            for block in self.blocks:
                blocks = block(blocks)
            return max_mean(blocks, near.shape[1])

    @torch.no_grad()
    def code(self, coord: Tensor) -> Tensor:
        """[..., C] trigonometric code of relative coordinates: per axis all sines, then all cosines."""
        if self.scale == "patch":
            coord = coord / (coord.abs().amax(-2, keepdim=True) + 1e-6)
        angle = coord[..., None] * self.frequency
        code = angle.new_empty(*angle.shape[:-1], 2, angle.shape[-1])
        torch.sin(angle, out=code[..., 0, :])
        torch.cos(angle, out=code[..., 1, :])
        return code.flatten(-3)


class Residual(nn.Module):
    """relu(x + norm(Linear(relu(norm(Linear(x)))))) with half the width in the middle, on blocks of rows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.norm1 = nn.Linear(channels, channels // 2), nn.BatchNorm1d(channels // 2)
        self.up, self.norm2 = nn.Linear(channels // 2, channels), nn.BatchNorm1d(channels)

    def forward(self, blocks: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return bottleneck(blocks, self.down, self.norm1, self.up, self.norm2)
