"""Classification of whole clouds: a backbone, what the head reads of its output, an MLP, cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone
from pointadapt.errors import UserError
from pointadapt.ops.devices import move
from pointadapt.ops.segment import segment_max, segment_mean
from pointadapt.point import Point
from pointadapt.tasks.auxiliary import WithAuxiliary
from pointadapt.tasks.head import OfBackbone, backbone_fingerprint, check_untrained, class_names
from pointadapt.tokens import Tokens

HeadKind = Literal["mlp3", "mlp2", "linear", "appt"]


class Classification(WithAuxiliary):
    """``model(point) -> logits [B, classes]``, one row per cloud.

    backbone   any Backbone
    classes    their number, or their names in index order
    read       parts of the backbone's output that the head reads (see :func:`readout`); default the backbone's own.
               A method may choose others when it is put in place: :meth:`read_from`
    head       "mlp3": Point-MAE's three layers of width 256; "mlp2": Point-BERT's two; "linear"; "appt": APPT's three,
               of widths 512 and 256, with its own dropouts
    smoothing  label smoothing of the loss, spread over all classes as in torch; the published form that spreads
               eps over the OTHER classes is smoothing = eps * C / (C - 1)
    dropout    inside the MLP heads 0.5 as published (APPT's: 0.1 before it, 0.4 inside), unless given; before a linear
               head 0
    Raises UserError for fewer than two classes.
    """

    #: Heads that a method may ask for in :meth:`read_from`.
    heads: ClassVar[tuple[str, ...]] = get_args(HeadKind)

    def __init__(
        self,
        backbone: Backbone,
        classes: int | Sequence[str],
        read: Sequence[str] | None = None,
        head: HeadKind = "mlp3",
        smoothing: float = 0.0,
        dropout: float | None = None,
    ) -> None:
        import pointadapt.methods  # noqa: F401  else PeftModel.from_pretrained does not know them in a fresh process

        super().__init__()
        self.classes = class_names(classes)
        self.backbone = backbone
        self.name_or_path = backbone.name_or_path
        self.head_kind, self.smoothing, self.dropout = head, smoothing, dropout
        self.read: tuple[str, ...] = ()
        self.read_from(read or backbone.reads)

    def read_from(self, parts: Sequence[str], head_kind: HeadKind | None = None) -> None:
        """Build a new head that reads these parts, one of ``heads`` (default: the model's).

        Raises UserError when an adapter has trained another head already.
        """
        head, head_kind = self._modules.get("head"), head_kind or self.head_kind
        if head is not None and tuple(parts) == self.read and head_kind == self.head_kind:
            return
        check_untrained(head, Head, parts, self.read)
        self.read, self.head_kind = tuple(parts), head_kind
        channels = sum(width_of(part, self.backbone) for part in self.read)
        fingerprint = backbone_fingerprint(self.backbone)
        head = Head(head_kind, channels, len(self.classes), fingerprint, self.dropout)
        self.head = move(head, self.backbone.device)

    def forward(self, point: Point) -> Tensor:
        out = self.backbone(point)
        return self.keep_losses(out, self.head(readout(out, self.read)))

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy of logits [B, C] and class indices [B], plus what the last forward pass left in
        ``extra["losses"]`` (name -> scalar), in float32."""
        return self.with_auxiliary(F.cross_entropy(logits.float(), label, label_smoothing=self.smoothing))


def readout(out: Tokens | Point, parts: Sequence[str]) -> Tensor:
    """[B, k C]: parts of a backbone's output side by side.

    Of Tokens: a name of the layout ("cls": all tokens of that name, one behind the other), "max NAME", "mean NAME";
    "max A+B" over the tokens of both names (where there are any);
    "max" and "mean" over all tokens, "max+mean" their sum; "extra NAME": a vector [B, C] that a method left in
    ``extra``. Of a Point: "max" and "mean" over each cloud's points.
    """
    return torch.cat([read_part(out, part) for part in parts], 1)


def read_part(out: Any, part: str) -> Tensor:
    how, _, name = part.partition(" ")
    if how == "extra":
        return out.extra[name]
    if isinstance(out, Point):
        reduce = {"max": segment_max, "mean": segment_mean}[how]
        return reduce(out.feat, out.batch, out.num_clouds)
    if name:
        names = [n for n in name.split("+") if out.count(n)] or [name]
        feat = torch.cat([out.part(n) for n in names], 1)
    else:
        feat = out.part(part) if out.count(part) else out.feat
    if how == "max":
        return feat.amax(1)
    if how == "mean":
        return feat.mean(1)
    if how == "max+mean":
        return feat.amax(1) + feat.mean(1)
    return feat.flatten(1)


def width_of(part: str, backbone: Backbone) -> int:
    """Channels that one part of a read-out has."""
    tokens = getattr(getattr(backbone, "config", None), "cls_tokens", 1) if part == "cls" else 1
    return tokens * backbone.out_channels


class Head(OfBackbone):
    """[B, channels] -> logits. Indices of ``layers`` are those of the published ``cls_head_finetune``."""

    def __init__(
        self, head_kind: HeadKind, channels: int, classes: int, backbone_hash: str, dropout: float | None
    ) -> None:
        super().__init__()
        rate = (0.4 if head_kind == "appt" else 0.5) if dropout is None else dropout

        def hidden(width: int, out: int = 256) -> list[nn.Module]:
            norm = [nn.BatchNorm1d(out)] if head_kind in ("mlp3", "appt") else []
            return [nn.Linear(width, out), *norm, nn.ReLU(), nn.Dropout(rate)]

        layers: dict[str, list[nn.Module]] = {
            "mlp3": [*hidden(channels), *hidden(256), nn.Linear(256, classes)],
            "mlp2": [*hidden(channels), nn.Linear(256, classes)],
            "linear": [nn.Dropout(dropout or 0.0), nn.Linear(channels, classes)],
            "appt": [*hidden(channels, 512), *hidden(512), nn.Linear(256, classes)],
        }
        if head_kind not in layers:
            raise UserError(f"head must be one of {', '.join(layers)}, not {head_kind!r}")
        self.before = nn.Dropout((0.1 if dropout is None else dropout) if head_kind == "appt" else 0.0)
        self.layers = nn.Sequential(*layers[head_kind])
        self.bind(backbone_hash)

    def forward(self, feat: Tensor) -> Tensor:
        return self.layers(self.before(feat))
