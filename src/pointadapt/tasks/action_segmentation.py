"""Action segmentation of point videos: one class for every frame; a temporal convolution network as head.

Head and loss are chosen here, since PointATA's are not published; the layers are MS-TCN's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone
from pointadapt.ops.frames import frames_in
from pointadapt.point import Point
from pointadapt.tasks.clips import VideoHead, VideoTask

DILATIONS = (1, 2, 4, 8, 16, 32)


class ActionSegmentation(VideoTask):
    """``model(point) -> logits [B, T, classes]``, one row per frame.

    read       parts of a frame's tokens that the head reads; default the backbone's own ("cls", "max patch")
    width      of the head; it sees 63 frames with tokens to each side
    smoothing  label smoothing of the loss
    steady     weight of the truncated squared difference of neighbouring frames' log-probabilities (MS-TCN: 0.15)
    tau        where it is truncated
    Where only every other frame has tokens, logits are interpolated between them.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int | Sequence[str],
        read: Sequence[str] | None = None,
        width: int = 128,
        smoothing: float = 0.0,
        dropout: float = 0.5,
        steady: float = 0.0,
        tau: float = 4.0,
        chunk: int = 256,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__(backbone, classes, chunk, weights)
        self.width, self.smoothing, self.dropout = width, smoothing, dropout
        self.steady, self.tau = steady, tau
        self.read_from(read or backbone.reads)

    def read_from(self, parts: Sequence[str]) -> None:
        """Build a new head that reads these. Raises UserError when an adapter has trained another head already."""
        if "head" in self._modules and tuple(parts) == self.read:
            return
        self.new_head(parts, lambda c, fp: FramesHead(c, self.width, len(self.classes), fp, self.dropout))

    def forward(self, point: Point) -> Tensor:
        return between_anchors(self.head(self.frames(point)), frames_in(point, point.num_clouds))

    def loss(self, logits: Tensor, label: Tensor, ignore: int = -1) -> Tensor:
        """Cross-entropy of logits [B, T, C] and class indices [B, T], mean over the labelled frames, in float32."""
        logits = logits.float()
        if (label != ignore).any():
            loss = F.cross_entropy(
                logits.flatten(0, 1), label.flatten(), self.weights, ignore_index=ignore, label_smoothing=self.smoothing
            )
        else:
            loss = logits.sum() * 0
        if self.steady and logits.shape[1] > 1:
            shares = logits.log_softmax(2)
            step = (shares[:, 1:] - shares[:, :-1].detach()).square().clamp(max=self.tau**2)
            loss = loss + self.steady * step.mean()
        return self.with_auxiliary(loss)


def between_anchors(logits: Tensor, frames: int) -> Tensor:
    """[B, T, C] of logits [B, T', C] at every (T / T')-th frame, linear between them; the last one's behind."""
    anchors = logits.shape[1]
    if anchors == frames:
        return logits
    at = torch.arange(frames, device=logits.device) * (anchors / frames)
    left = at.floor().long()
    part = (at - left).to(logits.dtype)[:, None]
    return logits[:, left] * (1 - part) + logits[:, (left + 1).clamp(max=anchors - 1)] * part


class FramesHead(VideoHead):
    """[B, T, channels] -> logits [B, T, classes]: LayerNorm, Linear, six residual dilated convolutions, Linear."""

    def __init__(self, channels: int, width: int, classes: int, backbone_hash: str, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation),
                nn.ReLU(),
                nn.Conv1d(width, width, 1),
                nn.Dropout(dropout),
            )
            for dilation in DILATIONS
        )
        self.out = nn.Linear(width, classes)
        self.bind(backbone_hash)

    def forward(self, feat: Tensor) -> Tensor:
        x = self.enter(feat).mT
        for layer in self.layers:
            x = x + layer(x)
        return self.out(x.mT)
