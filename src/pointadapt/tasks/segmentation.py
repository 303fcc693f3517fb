"""Semantic segmentation: a backbone, one Linear per point, cross-entropy + Lovász-softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone, fingerprint
from pointadapt.errors import UserError
from pointadapt.point import Point


class Head(nn.Linear):
    """The classifier. It carries the SHA-256 of the backbone it was made for, so every adapter file does too.

    Loading a head made for other backbone weights, or for another number of classes, raises UserError.
    """

    fingerprint: Tensor

    def __init__(self, channels: int, classes: int, backbone_hash: str) -> None:
        super().__init__(channels, classes)
        self.register_buffer("fingerprint", torch.tensor(list(bytes.fromhex(backbone_hash)), dtype=torch.uint8))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        saved = state_dict.get(prefix + "fingerprint")
        if saved is not None and not saved.is_meta and not torch.equal(saved.cpu(), self.fingerprint.cpu()):
            raise UserError(
                f"this adapter was trained on other backbone weights (sha256 {hex_of(saved)[:12]}..., these are "
                f"{hex_of(self.fingerprint)[:12]}...): load the backbone named in its adapter_config.json or run.json"
            )
        weight = state_dict.get(prefix + "weight")
        if weight is not None and weight.shape != self.weight.shape:
            raise UserError(
                f"this adapter's head has {weight.shape[0]} classes on {weight.shape[1]} channels, the model has "
                f"{self.weight.shape[0]} on {self.weight.shape[1]}: build the model with the adapter's class list"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def hex_of(hash_bytes: Tensor) -> str:
    """The SHA-256 in a head's ``fingerprint`` as 64 hexadecimal digits."""
    return bytes(hash_bytes.cpu().tolist()).hex()


class Segmentation(nn.Module):
    """``model(point) -> logits [N, classes]``.

    backbone   any Backbone; its ``dense`` features feed the head
    classes    their number, or their names in index order
    dropout    on the features, before the head
    Raises UserError for fewer than two classes, and in ``forward`` for features of another width than the backbone's.
    """

    def __init__(self, backbone: Backbone, classes: int | Sequence[str], dropout: float = 0.0) -> None:
        import pointadapt.methods  # noqa: F401  else PeftModel.from_pretrained does not know them in a fresh process

        super().__init__()
        self.classes = [f"class {i}" for i in range(classes)] if isinstance(classes, int) else list(classes)
        if len(self.classes) < 2:
            raise UserError(f"classes must name at least two classes to tell apart, got {self.classes}")
        self.backbone = backbone
        self.name_or_path = backbone.name_or_path
        self.dropout = nn.Dropout(dropout)
        self.head = Head(backbone.dense_channels, len(self.classes), backbone_fingerprint(backbone))

    def forward(self, point: Point) -> Tensor:
        wanted, given = self.backbone.in_channels, point.feat.shape[1]
        if given != wanted:
            raise UserError(
                f"Point.feat has {given} channels, this backbone takes {wanted}; 9 are x y z, r g b in 0-1 and a normal"
            )
        return self.head(self.dropout(self.backbone.dense(point)))

    def loss(self, logits: Tensor, segment: Tensor, ignore: int = -1) -> Tensor:
        """Cross-entropy plus Lovász-softmax, 1:1; zero (with gradients) when no point is labelled."""
        return segmentation_loss(logits, segment, ignore)


def backbone_fingerprint(backbone: Backbone) -> str:
    """SHA-256 of the weights a checkpoint filled; fresh parts are trained and travel with the adapter."""
    state = backbone.state_dict()
    return fingerprint({k: v for k, v in state.items() if k.split(".")[0] not in backbone.fresh and not v.is_meta})


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
