"""Classification of point videos: what a head reads of every frame, its mean over time, cross-entropy.

Heads and loss are chosen here: PointATA's are not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone
from pointadapt.errors import UserError
from pointadapt.point import Point
from pointadapt.tasks.clips import VideoHead, VideoTask

VideoHeadKind = Literal["mlp", "linear"]


class VideoClassification(VideoTask):
    """``model(point) -> logits [B, classes]``, one row per clip.

    backbone   one over groups of points; it sees every frame for itself
    classes    their number, or their names in index order
    read       parts of a frame's tokens that the head reads (see ``tasks.classification.readout``); default the
               backbone's own ("cls", "max patch")
    head       "mlp": LayerNorm, Linear to 256, GELU, dropout, Linear (203,540 parameters on Point-MAE with 20 classes);
               "linear": one layer (15,380). On a backbone without temporal adapters the mean over time is blind to
               the order of frames
    smoothing  label smoothing of the loss (inferred)
    dropout    inside the MLP
    chunk, weights  see :class:`~pointadapt.tasks.clips.VideoTask`
    Raises UserError for a backbone over single points, or fewer than two classes.
    """

    #: Heads that a method may ask for in :meth:`read_from`.
    heads: ClassVar[tuple[str, ...]] = get_args(VideoHeadKind)

    def __init__(
        self,
        backbone: Backbone,
        classes: int | Sequence[str],
        read: Sequence[str] | None = None,
        head: VideoHeadKind = "mlp",
        smoothing: float = 0.1,
        dropout: float = 0.5,
        chunk: int = 256,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__(backbone, classes, chunk, weights)
        self.head_kind, self.smoothing, self.dropout = head, smoothing, dropout
        self.read_from(read or backbone.reads)

    def read_from(self, parts: Sequence[str], head_kind: VideoHeadKind | None = None) -> None:
        """Build a new head that reads these parts, one of ``heads`` (default: the model's).

        Raises UserError for a head that is none of them, and when an adapter has trained another one already.
        """
        head_kind = head_kind or self.head_kind
        if head_kind not in self.heads:
            raise UserError(f"head must be one of {', '.join(self.heads)}, not {head_kind!r}")
        if "head" in self._modules and tuple(parts) == self.read and head_kind == self.head_kind:
            return
        self.new_head(parts, lambda c, fp: ClipHead(head_kind, c, len(self.classes), fp, self.dropout))
        self.head_kind = head_kind

    def forward(self, point: Point) -> Tensor:
        return self.head(self.frames(point).mean(1))

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Smoothed cross-entropy of logits [B, C] and class indices [B], in float32."""
        loss = F.cross_entropy(logits.float(), label, self.weights, label_smoothing=self.smoothing)
        return self.with_auxiliary(loss)


class ClipHead(VideoHead):
    """[B, channels] -> logits [B, classes]."""

    def __init__(
        self, head_kind: VideoHeadKind, channels: int, classes: int, backbone_hash: str, dropout: float
    ) -> None:
        super().__init__()
        if head_kind == "linear":
            self.layers = nn.Sequential(nn.Linear(channels, classes))
        else:
            self.layers = nn.Sequential(
                nn.LayerNorm(channels),
                nn.Linear(channels, 256),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(256, classes),
            )
        self.bind(backbone_hash)

    def forward(self, feat: Tensor) -> Tensor:
        return self.layers(feat)
