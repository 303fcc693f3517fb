"""A pyramid of point 4D convolutions in place of a tokenizer: few tokens for frames of many points, and finer levels.

P4Transformer's encoder (Fan et al., CVPR 2021) in a form of ours for dense scenes: three levels of
points that a decoder goes back through, and a fourth one that is the tokens of a frozen transformer. It is fresh: no
checkpoint fills it. Legend: R rows (frames of all clips), G anchors of a level, K neighbours, C channels, D the
transformer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointadapt.backbones.point_vit import PointViT
from pointadapt.errors import UserError
from pointadapt.ops.amax import amax
from pointadapt.ops.batchnorm import RowNorm
from pointadapt.ops.frames import frames_in, neighbour_rows
from pointadapt.ops.frozen import no_graph
from pointadapt.ops.neighbors import check_finite, clouds_of, farthest_points, gather, lexicographic, nearest
from pointadapt.point import Point

#: Points per anchor of the levels: 16,384 points, 4,096, 1,024, 256 and 128 anchors.
SHARES = (4, 16, 64, 128)
#: Widths of the first three levels by size; the fourth has the transformer's.
WIDTHS = {"pyramid": (128, 256, 512), "slim": (96, 192, 384)}
#: Frames that the third level sees, itself in the middle; the others see their own.
WINDOWS = (1, 1, 3, 1)
NEIGHBORS = 32
#: Distances, and values of a level, that are held at once where no gradient needs them all.
PAIRS, VALUES = 1 << 27, 1 << 26


@dataclass(frozen=True, eq=False)
class Level:
    """One level of all frames: center [R, G, 3], feat [R, G, C]."""

    center: Tensor
    feat: Tensor

    def rows(self, rows: Tensor) -> Level:
        """Some frames."""
        return Level(self.center[rows], self.feat[rows])

    @property
    def point(self) -> Point:
        """The anchors as clouds."""
        rows, groups, _ = self.center.shape
        end = groups * torch.arange(1, rows + 1, device=self.center.device)
        return Point(self.center.flatten(0, 1), self.feat.flatten(0, 1), end)


class FramePyramid(nn.Module):
    """``forward(Point) -> Point`` with ``extra["patches"]`` (the tokens) and ``extra["levels"]`` (the levels before).

    points    of a frame, which decide the number of anchors; a frame may have fewer, down to a quarter
    channels  D; 1,070,432 parameters on Point-MAE (pyramid), 643,808 (slim)
    size      a key of WIDTHS
    radius    of the first level's neighbourhoods, doubled at every level: of the 32 nearest points those beyond count
              as the nearest one. None: the 32 nearest, whatever the clip's unit is (inferred; published: the first 32
              in storage order within 0.9 metres)
    ``point.extra["anchors"]`` [R, G, 3] are the first level's where they are known already. Points bring ``feat``
    behind their coordinates (colours), or the coordinates where there is nothing else. The last layer is a Linear
    alone, so that tokens may be negative as the frozen tokenizer's are (inferred).
    """

    def __init__(self, points: int, channels: int, size: str = "pyramid", radius: float | None = None) -> None:
        super().__init__()
        if points < SHARES[-1]:
            raise UserError(f"the head {size} needs frames of at least {SHARES[-1]} points, not {points}: use head mlp")
        self.sizes = tuple(points // share for share in SHARES)
        widths = (3, *WIDTHS[size], channels)
        self.widths = widths[1:-1]
        self.levels = nn.ModuleList()
        for depth, (old, new, window) in enumerate(zip(widths, widths[1:], WINDOWS, strict=False)):
            inner = (32, 64) if depth == 0 else (old, old)
            near = None if radius is None else radius * 2**depth
            self.levels.append(PointConv4D(old, (*inner, new), window, near, is_last=depth == len(WINDOWS) - 1))

    def forward(self, point: Point) -> Point:
        frames = frames_in(point, point.num_clouds)
        center = point.extra.get("anchors")
        if center is None:
            center = point.remember(("anchors", self.sizes[0]), lambda: anchors(point, self.sizes[0]))
        feat = point.feat[:, 3:] if point.feat.shape[1] > 3 else point.coord
        below, found = point.but(feat=feat), []
        for depth, (size, convolution) in enumerate(zip(self.sizes, self.levels, strict=True)):
            here = center[:, :size]  # a longer sample of farthest points starts like a shorter one
            found.append(Level(here, convolution(below, here, frames, point, depth)))
            below = found[-1].point
        return point.but(extra={**point.extra, "patches": found[-1], "levels": found[:-1]})


class PointConv4D(nn.Module):
    """max over neighbours and frames of MLP(relu(norm(W_d (dx, dy, dz, dt))) + relu(norm(W_f feat)))."""

    def __init__(
        self, channels: int, widths: tuple[int, ...], window: int, radius: float | None, is_last: bool = False
    ) -> None:
        super().__init__()
        self.window, self.radius = window, radius
        self.place, self.bring = row_layer(4, widths[0]), row_layer(channels, widths[0])
        layers: list[nn.Module] = [row_layer(old, new) for old, new in zip(widths, widths[1:], strict=False)]
        if is_last:
            layers[-1] = nn.Linear(widths[-2], widths[-1])
        self.mlp = nn.Sequential(*layers)
        self.widest = max(widths)

    def forward(self, below: Point, center: Tensor, frames: int, point: Point, depth: int) -> Tensor:
        """[R, G, C] at anchors center [R, G, 3], of the points ``below``; ``point`` remembers the neighbours."""
        feat, (rows, groups, _) = self.bring(below.feat), center.shape
        offsets = range(-(self.window // 2), self.window // 2 + 1)
        found = []
        for offset in offsets:
            other = neighbour_rows(rows, frames, offset, center.device)
            key = ("4d", frames, depth, offset, groups, self.radius)
            index = point.remember(key, lambda other=other: self.neighbours(below, center, other))
            whole = no_graph(feat, self) and not self.training
            step = max(1, VALUES // (groups * index.shape[2] * self.widest)) if whole else rows
            parts = zip(center.split(step), index.split(step), strict=True)
            found.append(torch.cat([self.around(below, feat, c, i, offset) for c, i in parts]))
        return torch.stack(found).amax(0)

    def around(self, below: Point, feat: Tensor, center: Tensor, index: Tensor, offset: int) -> Tensor:
        way = below.coord[index] - center[:, :, None]
        way = torch.cat([way, torch.full_like(way[..., :1], offset)], -1)  # [R, G, K, 4]
        return amax(self.mlp(self.place(way) + feat[index]), 2)

    @torch.no_grad()
    def neighbours(self, below: Point, center: Tensor, clouds: Tensor) -> Tensor:
        """[R, G, K] rows of the points ``below`` near the anchors of each frame, in the frame ``clouds`` [R]."""
        counts = below.counts
        size = min(NEIGHBORS, min(counts))
        ends = below.offset.to(clouds)
        starts = (ends - torch.tensor(counts, device=ends.device))[clouds]
        if len(set(counts)) == 1:
            coord = below.coord.view(len(counts), -1, 3)
            step = max(1, PAIRS // (center.shape[1] * counts[0]))
            near = [self.choose(c, coord[r], size) for c, r in zip(center.split(step), clouds.split(step), strict=True)]
        else:
            split = below.coord.split(counts)
            near = [
                self.choose(c[None], split[row][None], size) for c, row in zip(center, clouds.tolist(), strict=True)
            ]
        return torch.cat(near) + starts[:, None, None]

    def choose(self, center: Tensor, coord: Tensor, size: int) -> Tensor:
        index = nearest(center, coord, size)
        if self.radius is None:
            return index
        apart = (gather(coord, index) - center[:, :, None]).norm(dim=-1)
        return torch.where(apart <= self.radius, index, index[..., :1])


def row_layer(channels: int, width: int) -> nn.Sequential:
    """A convolution of size 1 without bias, its BatchNorm and ReLU."""
    return nn.Sequential(nn.Linear(channels, width, bias=False), RowNorm(width), nn.ReLU())


@torch.no_grad()
def anchors(point: Point, count: int) -> Tensor:
    """[R, count, 3] farthest points of every frame, whatever the order of its points.

    Raises UserError for too few, and for NaN or infinite coordinates.
    """
    check_finite(point)
    few = min(point.counts)
    if few < count:
        raise UserError(f"a frame of {few} points has no {count} anchors: give every frame at least {count} points")
    found = []
    for coord in clouds_of(point):
        coord = gather(coord, lexicographic(coord))
        found.append(gather(coord, farthest_points(coord, count)))
    return torch.cat(found)


def put_pyramid(backbone: Any, points: int, size: str, radius: float | None) -> FramePyramid:
    """Put a new pyramid in front of a Point-MAE or its kin, in place: it is listed in ``fresh`` and takes the part of
    the small PointNet. Raises UserError for another backbone, and for one that has a pyramid already."""
    if not isinstance(backbone, PointViT):
        raise UserError(f"{backbone.name_or_path} takes no tokens of a pyramid: use point-mae or its kin, or head mlp")
    if backbone.pyramid is not None:
        raise UserError("this backbone has a pyramid already: load it anew")
    backbone.pyramid = FramePyramid(points, backbone.out_channels, size, radius)
    tokenizer: Any = backbone.tokenizer
    tokenizer.is_fed = True
    backbone.fresh = [*backbone.fresh, "pyramid"]
    return backbone.pyramid
