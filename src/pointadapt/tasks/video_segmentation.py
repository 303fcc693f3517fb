"""Semantic segmentation of point videos: one class for every point of every frame.

The "vit" head of specs/pointata.md 6.3, chosen there: Point-MAE's part segmentation, frame by frame; its loss is the
published one for Synthia4D. The spec's convolution pyramid is not built.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone
from pointadapt.errors import UserError
from pointadapt.ops.frames import take_clouds
from pointadapt.ops.neighbors import spread
from pointadapt.point import Point
from pointadapt.tasks.clips import VideoHead, VideoTask
from pointadapt.tasks.head import backbone_fingerprint, check_untrained
from pointadapt.tasks.parts import summary, thirds
from pointadapt.tokens import Tokens


class VideoSegmentation(VideoTask):
    """``model(point) -> logits [N, classes]``, one row per point; frames may be of different size.

    taps     blocks, counted from 0, whose normed outputs the head reads; default the ends of three equal thirds
    read     what of a whole frame it reads beside them: as in PartSegmentation ("max", "mean")
    skip     channels of ``point.feat`` that every point brings itself: 3 for coordinates, 6 with colours
    dropout  inside the head
    Groups must be many enough for the frame: 256 and more for 8,192 points (inferred).
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
    ) -> None:
        super().__init__(backbone, classes, chunk, weights)
        if not backbone.depth:
            raise UserError(f"{backbone.name_or_path} has no groups of points to segment by: use point-mae or its kin")
        self.taps = tuple(thirds(backbone.depth) if taps is None else sorted(taps))
        self.skip, self.dropout = skip, dropout
        self.read_from(read or ("max", "mean"))

    def read_from(self, parts: Sequence[str]) -> None:
        """Build a new head that reads these. Raises UserError when an adapter has trained another head already."""
        head = self._modules.get("head")
        if head is not None and tuple(parts) == self.read:
            return
        check_untrained(head, PointsHead, parts, self.read)
        self.read = tuple(parts)
        own = self.backbone.out_channels
        wide = len(self.taps) * own
        whole = sum(wide if part in ("max", "mean") or part.startswith("extra ") else own for part in self.read)
        fingerprint = backbone_fingerprint(self.backbone)
        self.head = PointsHead(wide, whole, self.skip, len(self.classes), fingerprint, self.dropout)

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
        self.keep_losses(last)
        feat = torch.cat([tokens.part("patch") for tokens in tapped], 2)
        whole = torch.cat([summary(part, feat, last) for part in self.read], 1)
        center = last.center
        if kept != slice(None):  # a window is one clip
            rows = torch.arange(point.num_clouds, device=feat.device)[kept]
            point, center, feat, whole = take_clouds(point, rows), center[rows], feat[rows], whole[rows]
        return self.head(point, center, feat, whole)

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
