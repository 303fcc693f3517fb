"""Semantic segmentation of point videos: one class for every point of every frame.

The heads are chosen here, since PointATA's are not published: Point-MAE's part segmentation, frame by frame ("mlp"), or
a pyramid of convolutions around the transformer ("pyramid", "slim"). The loss is the published one for Synthia4D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone
from pointadapt.backbones.frame_pyramid import Level, put_pyramid
from pointadapt.errors import UserError
from pointadapt.ops.devices import move
from pointadapt.ops.frames import take_clouds
from pointadapt.ops.neighbors import spread
from pointadapt.point import Point
from pointadapt.tasks.clips import VideoHead, VideoTask
from pointadapt.tasks.head import backbone_fingerprint, check_untrained
from pointadapt.tasks.parts import head_widths, side_by_side, tapped_blocks
from pointadapt.tasks.pyramid_head import PyramidHead
from pointadapt.tokens import Tokens

PointsHeadKind = Literal["mlp", "pyramid", "slim"]


class VideoSegmentation(VideoTask):
    """``model(point) -> logits [N, classes]``, one row per point; frames may be of different size.

    head     "mlp": groups of the backbone's own tokenizer; they must be many enough for the frame, 256 and more for
             8,192 points (inferred). "pyramid": convolutions make the tokens and bring them back to the points, which
             suits frames of thousands of points; the backbone is changed in place. "slim": the same with fewer weights
    taps     blocks, counted from 0, whose normed outputs the head reads; default the ends of three equal thirds
    read     what of a whole frame it reads beside them: as in PartSegmentation ("max", "mean")
    skip     channels of ``point.feat`` that every point brings itself: 3 for coordinates, 6 with colours (512 weights
             for each). A pyramid takes colours where there are any, else coordinates: 3 either way
    dropout  inside the head
    points   pyramid: points of a frame, see :class:`~pointadapt.backbones.frame_pyramid.FramePyramid`
    radius   pyramid: of the first neighbourhoods; None: the nearest points however far
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int | Sequence[str],
        taps: Sequence[int] | None = None,
        read: Sequence[str] | None = None,
        skip: int = 3,
        dropout: float = 0.5,
        chunk: int = 64,
        weights: Tensor | None = None,
        head: PointsHeadKind = "mlp",
        points: int = 16_384,
        radius: float | None = None,
    ) -> None:
        super().__init__(backbone, classes, chunk, weights)
        if head not in ("mlp", "pyramid", "slim"):
            raise UserError(f"head must be one of mlp, pyramid, slim, not {head!r}")
        if not backbone.depth:
            raise UserError(f"{backbone.name_or_path} has no groups of points to segment by: use point-mae or its kin")
        self.taps = tapped_blocks(backbone.depth, taps)
        self.head_kind, self.skip, self.dropout = head, skip, dropout
        if head == "mlp":
            self.read_from(read or ("max", "mean"))
            return
        fingerprint = backbone_fingerprint(backbone)
        pyramid = put_pyramid(backbone, points, head, radius)
        self.taps, self.skip = (backbone.depth - 1,), 3
        self.own_reach = 1
        wide, count = backbone.out_channels, len(self.classes)
        self.head = PyramidHead(wide, pyramid.widths, head, count, fingerprint, dropout)

    def widen(self, reach: int, stride: int) -> None:
        if stride != 1:
            raise UserError("segmentation needs tokens in every frame: use the method with stride 1")
        super().widen(reach, stride)

    def read_from(self, parts: Sequence[str]) -> None:
        """Build a new head that reads these. Raises UserError when an adapter has trained another head already, and for
        a pyramid, which reads the groups alone."""
        if self.head_kind != "mlp":
            raise UserError(f"the head {self.head_kind} cannot read {', '.join(parts)}: use head mlp with this method")
        head = self._modules.get("head")
        if head is not None and tuple(parts) == self.read:
            return
        check_untrained(head, PointsHead, parts, self.read)
        self.read = tuple(parts)
        wide, whole = head_widths(self.read, len(self.taps), self.backbone.out_channels)
        fingerprint = backbone_fingerprint(self.backbone)
        head = PointsHead(wide, whole, self.skip, len(self.classes), fingerprint, self.dropout)
        self.head = move(head, self.backbone.device)

    def forward(self, point: Point) -> Tensor:
        if point.feat.shape[1] < self.skip:
            raise UserError(f"point.feat has {point.feat.shape[1]} channels where the head reads {self.skip}")
        return torch.cat([self.points(part, kept) for part, kept in self.windows(point)])

    def points(self, point: Point, kept: slice) -> Tensor:
        """[n, classes]: logits of the points of the frames ``kept`` of each clip."""
        tapped: list[Tokens] = self.backbone.taps(point, self.taps)
        last = tapped[-1]
        if len(last) != point.num_clouds or last.center is None:
            raise UserError("segmentation needs tokens in every frame: use the method with stride 1")
        if self.head_kind != "mlp":
            return self.keep_losses(last, self.from_pyramid(point, last, kept))
        feat, whole = side_by_side(tapped, self.read)
        center = last.center
        if kept != slice(None):  # a window is one clip
            rows = torch.arange(point.num_clouds, device=feat.device)[kept]
            point, center, feat, whole = take_clouds(point, rows), center[rows], feat[rows], whole[rows]
        return self.keep_losses(last, self.head(point, center, feat, whole))

    def from_pyramid(self, point: Point, last: Tokens, kept: slice) -> Tensor:
        assert last.center is not None
        coarsest, levels = Level(last.center, last.part("patch")), last.extra["levels"]
        if kept != slice(None):
            rows = torch.arange(point.num_clouds, device=point.coord.device)[kept]
            point, coarsest = take_clouds(point, rows), coarsest.rows(rows)
            levels = [level.rows(rows) for level in levels]
        return self.head(point, coarsest, levels)

    def loss(self, logits: Tensor, segment: Tensor, ignore: int = -1) -> Tensor:
        """Weighted cross-entropy of logits [N, C] and class indices [N], summed over the labelled points and divided by
        their number plus one, as published; in float32."""
        each = F.cross_entropy(logits.float(), segment, self.weights, ignore_index=ignore, reduction="none")
        return self.with_auxiliary(each.sum() / ((segment != ignore).sum() + 1))


class PointsHead(VideoHead):
    """Groups' features [R, G, C] -> logits [N, classes].

    What the points of a group, or of a frame, would multiply alike is multiplied once.
    """

    def __init__(self, channels: int, whole: int, skip: int, classes: int, backbone_hash: str, dropout: float) -> None:
        super().__init__()
        self.skip = skip
        self.groups, self.near = nn.Linear(channels, 512), nn.Linear(skip, 512, bias=False)
        self.whole = nn.Linear(whole, 512, bias=False)
        self.norm, self.drop = nn.BatchNorm1d(512), nn.Dropout(dropout)
        self.out = nn.Sequential(nn.Linear(512, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, classes))
        self.bind(backbone_hash)

    def forward(self, point: Point, center: Tensor, feat: Tensor, whole: Tensor) -> Tensor:
        """center [R, G, 3], feat [R, G, C], whole [R, W]."""
        index, weight = spread(point, center)
        rows = self.groups(feat).flatten(0, 1)  # the weights sum to 1: the bias is kept
        x = self.near(point.feat[:, : self.skip]) + self.whole(whole)[point.batch]
        for k in range(index.shape[1]):
            x = x + weight[:, k, None] * rows[index[:, k]]
        return self.out(self.drop(F.relu(self.norm(x))))
