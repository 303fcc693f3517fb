"""Part segmentation of single objects: features of groups spread to every point, the published head, NLL.

The head is that of Point-MAE's part segmentation: outputs of three blocks side by side, their
maximum and mean and the object's category as a summary of the whole, interpolation from the three nearest centres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone
from pointadapt.errors import UserError
from pointadapt.ops.devices import move
from pointadapt.ops.neighbors import spread
from pointadapt.point import Point
from pointadapt.tasks.auxiliary import WithAuxiliary
from pointadapt.tasks.classification import read_part
from pointadapt.tasks.head import OfBackbone, backbone_fingerprint, check_untrained, class_names
from pointadapt.tokens import Tokens

#: What a checkpoint of the published part segmentation calls the parts of the head -> ours; "_cls" in IDPT and ACT.
RENAMED = [
    (r"^(label_conv|propagation_0|convs[123]|bns[12])_cls\.", r"\1."),
    (r"^label_conv\.", "head.label."),
    (r"^propagation_0\.mlp_convs\.0\.", "head.enter."),
    (r"^propagation_0\.mlp_bns\.0\.", "head.enter_norm."),
    (r"^propagation_0\.mlp_convs\.1\.", "head.point.0."),
    (r"^propagation_0\.mlp_bns\.1\.", "head.point.1."),
    (r"^convs1\.", "head.join."),
    (r"^bns1\.", "head.join_norm."),
    (r"^convs2\.", "head.out.0."),
    (r"^bns2\.", "head.out.1."),
    (r"^convs3\.", "head.out.3."),
]


class PartSegmentation(WithAuxiliary):
    """``model(point) -> logits [N, parts]``, one row per point; clouds may be of different size.

    backbone    one that works on groups of points and has ``taps``
    parts       number of parts of all categories together, or their names in index order
    categories  name of a category -> its part indices; ``point.extra["category"]`` [B] says which one each cloud is,
                as an index into them. None: the clouds have no category, every part may be anywhere (S3DIS)
    taps        blocks, counted from 0, whose normed outputs the head reads; default the ends of three equal thirds
    read        what of a whole cloud the head reads beside the category, side by side: "max" and "mean" over groups
                of all taps; "NAME", "max NAME", "mean NAME" of the last tap's tokens of that name; "extra NAME": a
                vector [B, taps * C] that a method left in the last tap's ``extra``. A method may choose others when
                it is put in place: :meth:`read_from`
    dropout     inside the head
    Raises UserError for a backbone without taps, fewer than two parts, and parts or taps that are no index.
    """

    def __init__(
        self,
        backbone: Backbone,
        parts: int | Sequence[str],
        categories: Mapping[str, Sequence[int]] | None,
        taps: Sequence[int] | None = None,
        read: Sequence[str] | None = None,
        dropout: float = 0.5,
    ) -> None:
        import pointadapt.methods  # noqa: F401  else PeftModel.from_pretrained does not know them in a fresh process

        super().__init__()
        if not backbone.depth:
            raise UserError(
                f"{backbone.name_or_path} does not work on groups of points: part segmentation needs a backbone such "
                "as point-mae; with this one use pa.Segmentation"
            )
        self.classes = class_names(parts)
        self.categories = {name: tuple(own) for name, own in (categories or {}).items()}
        if wrong := sorted({part for own in self.categories.values() for part in own if part not in self.indices}):
            raise UserError(f"categories name the parts {wrong}, there are only 0..{len(self.classes) - 1}")
        self.backbone = backbone
        self.name_or_path = backbone.name_or_path
        self.taps = tapped_blocks(backbone.depth, taps)
        self.dropout = dropout
        self.read: tuple[str, ...] = ()
        self.read_from(read or backbone.part_reads)

    @property
    def indices(self) -> range:
        return range(len(self.classes))

    def read_from(self, parts: Sequence[str]) -> None:
        """Build a new head that reads these. Raises UserError when an adapter has trained a head already."""
        head = self._modules.get("head")
        if head is not None and tuple(parts) == self.read:
            return
        check_untrained(head, PartHead, parts, self.read)
        self.read = tuple(parts)
        wide, whole = head_widths(self.read, len(self.taps), self.backbone.out_channels)
        fingerprint = backbone_fingerprint(self.backbone)
        head = PartHead(wide, whole, len(self.categories), len(self.classes), fingerprint, self.dropout)
        self.head = move(head, self.backbone.device)

    def forward(self, point: Point) -> Tensor:
        category = self.category_of(point)
        tapped = self.backbone.taps(point, self.taps)
        last = tapped[-1]
        feat, whole = side_by_side(tapped, self.read)
        return self.keep_losses(last, self.head(point, last.center, feat, whole, category))

    def category_of(self, point: Point) -> Tensor | None:
        """[B] the clouds' categories. Raises UserError where they are missing or unknown."""
        if not self.categories:
            return None
        category = point.extra.get("category")
        if category is None or len(category) != point.num_clouds:
            raise UserError(
                'point.extra["category"] must give the category of every cloud, an index into '
                f"{', '.join(self.categories)}"
            )
        return category

    def loss(self, logits: Tensor, segment: Tensor, ignore: int = -1) -> Tensor:
        """Negative log-likelihood of logits [N, parts] and part indices [N], mean over the labelled points, plus what
        the last forward pass left in ``extra["losses"]``; in float32."""
        if (segment != ignore).any():
            loss = F.cross_entropy(logits.float(), segment, ignore_index=ignore)
        else:
            loss = logits.float().sum() * 0
        return self.with_auxiliary(loss)

    def restrict(self, logits: Tensor, category: Tensor) -> Tensor:
        """``logits`` [N, parts] with -inf at parts that do not belong to the category [N] of each point."""
        allowed = torch.zeros(len(self.categories), len(self.classes), dtype=torch.bool, device=logits.device)
        for row, parts in enumerate(self.categories.values()):
            allowed[row, list(parts)] = True
        return logits.masked_fill(~allowed[category], -torch.inf)

    def predict(self, point: Point) -> Tensor:
        """[N] part of each point: the likeliest of its category's own."""
        logits = self(point)
        if self.categories:
            logits = self.restrict(logits, point.extra["category"][point.batch])
        return logits.argmax(1)


def tapped_blocks(depth: int, taps: Sequence[int] | None) -> tuple[int, ...]:
    """The blocks that a head taps, in order; None: the ends of three equal thirds. Raises UserError for one that is
    none of the backbone's ``depth``, and for none at all."""
    found = tuple(thirds(depth) if taps is None else sorted(set(taps)))
    if not found or not 0 <= found[0] <= found[-1] < depth:
        raise UserError(f"taps must name blocks of the backbone, 0..{depth - 1}, not {taps}")
    return found


def thirds(depth: int) -> list[int]:
    """The last blocks of three equal thirds: 3, 7, 11 of 12."""
    return sorted({max(0, round(depth * share / 3) - 1) for share in (1, 2, 3)})


def head_widths(read: Sequence[str], taps: int, channels: int) -> tuple[int, int]:
    """Channels of what a head reads of groups, and of what it reads of whole clouds (or frames)."""
    wide = taps * channels
    return wide, sum(wide if part in ("max", "mean") or part.startswith("extra ") else channels for part in read)


def side_by_side(tapped: Sequence[Tokens], read: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What is of these widths: (features of groups [B, G, taps * C], of whole clouds [B, W])."""
    feat = torch.cat([tokens.part("patch") for tokens in tapped], 2)
    return feat, torch.cat([summary(part, feat, tapped[-1]) for part in read], 1)


def summary(part: str, feat: Tensor, last: Tokens) -> Tensor:
    """[B, k C]: one part of what the head reads of whole clouds; feat [B, G, taps * C]."""
    if part == "max":
        return feat.amax(1)
    return feat.mean(1) if part == "mean" else read_part(last, part)


class PartHead(OfBackbone):
    """Groups' features [B, G, C] -> logits [N, parts].

    What every point would multiply alike is multiplied once: the first layer runs on groups before their features
    are spread (both steps are linear), the layer that reads the whole cloud does so once per cloud.
    """

    def __init__(
        self, channels: int, whole: int, categories: int, parts: int, backbone_hash: str, dropout: float
    ) -> None:
        super().__init__()
        label = 64 if categories else 0
        self.num_categories = categories
        if categories:
            self.label = nn.Sequential(nn.Linear(categories, 64, bias=False), nn.BatchNorm1d(64), nn.LeakyReLU(0.2))
        self.enter, self.enter_norm = nn.Linear(3 + channels, 1536), nn.BatchNorm1d(1536)
        self.point = nn.Sequential(nn.Linear(1536, 1024), nn.BatchNorm1d(1024), nn.ReLU())
        self.join, self.join_norm = nn.Linear(1024 + whole + label, 512), nn.BatchNorm1d(512)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Sequential(nn.Linear(512, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, parts))
        self.bind(backbone_hash)

    def forward(self, point: Point, center: Tensor, feat: Tensor, whole: Tensor, category: Tensor | None) -> Tensor:
        """center [B, G, 3], feat [B, G, C], whole [B, W], category [B]."""
        if category is not None:
            one_hot = F.one_hot(category, self.num_categories).to(whole.dtype)
            whole = torch.cat([whole, self.label(one_hot)], 1)
        index, weight = spread(point, center)
        near, groups = self.enter.weight[:, :3], self.enter.weight[:, 3:]
        rows = F.linear(feat, groups, self.enter.bias).flatten(0, 1)  # the weights sum to 1: the bias is kept
        x = F.linear(point.coord, near)
        for k in range(index.shape[1]):
            x = x + weight[:, k, None] * rows[index[:, k]]
        x = self.point(F.relu(self.enter_norm(x)))
        own, rest = self.join.weight[:, : x.shape[1]], self.join.weight[:, x.shape[1] :]
        x = F.linear(x, own) + F.linear(whole, rest, self.join.bias)[point.batch]
        return self.out(self.drop(F.relu(self.join_norm(x))))
