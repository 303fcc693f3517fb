"""Semantic segmentation: a backbone, one Linear per point, cross-entropy + Lovász-softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone
from pointadapt.errors import UserError
from pointadapt.ops.devices import move
from pointadapt.ops.levels import Levels
from pointadapt.point import Point
from pointadapt.tasks.head import OfBackbone, backbone_fingerprint, class_names


class Head(OfBackbone, nn.Linear):
    """One Linear per point, bound to the backbone it was made for."""

    def __init__(self, channels: int, classes: int, backbone_hash: str) -> None:
        super().__init__(channels, classes)
        self.bind(backbone_hash)

    def forward(self, feat: Tensor | Levels) -> Tensor:
        return feat.linear(self.weight, self.bias) if isinstance(feat, Levels) else super().forward(feat)


class Segmentation(nn.Module):
    """``model(point) -> logits [N, classes]``.

    backbone   any Backbone; its ``dense`` features feed the head
    classes    their number, or their names in index order
    dropout    on the features, before the head
    Raises UserError for a backbone without such features, fewer than two classes, and in ``forward`` for features of
    another width than the backbone's.
    """

    def __init__(self, backbone: Backbone, classes: int | Sequence[str], dropout: float = 0.0) -> None:
        import pointadapt.methods  # noqa: F401  else PeftModel.from_pretrained does not know them in a fresh process

        super().__init__()
        backbone.need_dense()
        self.classes = class_names(classes)
        self.backbone = backbone
        self.name_or_path = backbone.name_or_path
        self.dropout = nn.Dropout(dropout)
        head = Head(backbone.dense_channels, len(self.classes), backbone_fingerprint(backbone))
        self.head = move(head, backbone.device)

    def forward(self, point: Point | Levels) -> Tensor:
        """Of a Point, or of the features that :meth:`frozen` made of one before."""
        if isinstance(point, Levels):
            dropped = self.dropout.p > 0 and self.training
            return self.head(self.dropout(point.dense()) if dropped else point)
        return self.head(self.dropout(self.backbone.dense(self.checked(point))))

    def frozen(self, point: Point) -> Levels:
        """The backbone's features, for ``forward``."""
        return self.backbone.levels(self.checked(point))

    def checked(self, point: Point) -> Point:
        wanted, given = self.backbone.in_channels, point.feat.shape[1]
        if given != wanted:
            raise UserError(
                f"Point.feat has {given} channels, this backbone takes {wanted}; 9 are x y z, r g b in 0-1 and a normal"
            )
        return point

    def loss(self, logits: Tensor, segment: Tensor, ignore: int = -1) -> Tensor:
        """Cross-entropy plus Lovász-softmax, 1:1; zero (with gradients) when no point is labelled."""
        return segmentation_loss(logits, segment, ignore)


def segmentation_loss(logits: Tensor, segment: Tensor, ignore: int = -1) -> Tensor:
    """CE + Lovász-softmax over the labelled points of the batch, in float32. logits [N, K], segment [N]."""
    labelled = segment != ignore
    logits, segment = logits[labelled].float(), segment[labelled]
    if len(segment) == 0:
        return logits.sum() * 0
    return F.cross_entropy(logits, segment) + lovasz_softmax(logits.softmax(1), segment)


def lovasz_softmax(probability: Tensor, segment: Tensor) -> Tensor:
    """Lovász extension of the Jaccard loss, mean over the classes present (Berman et al., 2018, Alg. 1).

    probability [N, K], segment [N] without ignored points, N >= 1.
    """
    present = segment.unique()
    member = (segment[None] == present[:, None]).to(probability.dtype)  # [K', N]
    error, order = (member - probability.T[present]).abs().sort(dim=1, descending=True)
    member = member.gather(1, order)
    total = member.sum(1, keepdim=True)
    jaccard = 1 - (total - member.cumsum(1)) / (total + (1 - member).cumsum(1))
    gradient = torch.diff(jaccard, dim=1, prepend=jaccard.new_zeros(len(present), 1))
    return (error * gradient).sum(1).mean()
