"""PointLoRA: low-rank updates and shared MLPs in the attention, and tokens selected at two scales as prompts.

Wang et al.: PointLoRA, Low-Rank Adaptation with Token Selection for Point Cloud Learning. CVPR 2025, arXiv 2504.16023.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.methods.adapters import Retrained
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, one_of, peft_method
from pointadapt.methods.sites import Site, bare, find_sites, plain_modules
from pointadapt.ops.neighbors import Groups, Rule, gather, group
from pointadapt.point import Point
from pointadapt.tokens import Tokens

#: The half of the patch embedding that works on single points; trained in full, like the position embedding.
FIRST = r"tokenizer\.embed\.first"
READ = ["cls", "max patch+selected"]


@peft_method("pointlora")
@dataclass
class PointLoRAConfig(AdapterConfig):
    """Defaults: 505,217 parameters on Point-MAE, of them 83,840 in the position and patch embedding, trained in full.

    Selected tokens stand at the end of the sequence under the name "selected", and the head's maximum includes them.
    On scenes, where there are no groups of points to select, low-rank updates and shared MLPs are all of it.
    """

    paper: ClassVar[str] = "Wang et al. 2025, arXiv 2504.16023"
    default_targets: ClassVar[tuple[str, ...]] = ("qkv", "proj", "tokenizer", "block", "pos", FIRST)
    regroups: ClassVar[bool] = True
    #: The MLPs start with small random weights, as published, and the selected tokens are new to the backbone.
    identity: ClassVar[bool] = False

    r: int = field(default=8, metadata={"help": "Rank of the updates. As published they are not scaled by alpha / r."})
    hidden: int = field(default=32, metadata={"help": "Width of the shared MLPs."})
    select: list[int] = field(
        default_factory=lambda: [32, 8], metadata={"help": "Tokens selected at the fine and at the coarse scale."}
    )
    scales: list[int] | None = field(
        default=None,
        metadata={
            "help": "Groups and their points at the fine, then at the coarse scale. Default: the backbone's own and "
            "half as many, twice as large (published: 128 32 64 64)."
        },
    )
    mask_weight: float = field(
        default=0.004, metadata={"help": "Weight of the loss on the scores, their mean negative entropy."}
    )
    read: list[str] | None = field(default_factory=READ.copy, metadata={"help": "What a classification head reads."})

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, r=self.r, hidden=self.hidden)
        for name, entries in (("select", 2), ("scales", 4)):
            value = getattr(self, name)
            if value is not None:
                one_of(f"number of entries of {name}", len(value), (entries,))
                at_least(1, **{name: min(value)})
                setattr(self, name, list(value))

    def prepare(self, model: Any) -> None:
        backbone = getattr(model, "backbone", model)
        is_scene = getattr(backbone, "kind", "points") == "points"
        if is_scene or (hasattr(model, "taps") and self.read == READ):  # part segmentation reads as without a method
            self.read = None
        if is_scene:
            self.target_modules = [t for t in self.target_modules or () if t not in self.default_targets[2:]]
        super().prepare(model)
        modules = plain_modules(model)
        frozen = [bare(modules[site.name]) for site in find_sites(modules, self)]
        #: What the shared MLPs stand beside: all Linear layers of one shape have one.
        self.shapes = sorted({(m.in_features, m.out_features) for m in frozen if isinstance(m, nn.Linear)})
        self.channels = getattr(backbone, "out_channels", 0)

    def slot_of(self, name: str, module: nn.Module, slots: dict[str, str]) -> str | None:
        has_weights = any(True for _ in module.parameters())  # PointGPT's positions have none
        return super().slot_of(name, module, slots) if has_weights else None

    def shared(self, sites: list[Site]) -> nn.Module | None:
        mlps = {shape_key(*shape): SharedMLP(shape[0], self.hidden, shape[1]) for shape in self.shapes}
        if any(site.slot == "block" for site in sites):
            for part in ("patch", "selected"):
                mlps[part] = SharedMLP(self.channels, self.hidden, self.channels)
        return nn.ModuleDict(mlps)

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        if site.slot == "tokenizer":
            return Selection(frozen, self)
        if site.slot == "block":
            return TokenMLPs(shared)
        if isinstance(frozen, nn.Linear):
            return LowRank(frozen, self.r, shared)
        return Retrained(frozen)


METHODS["pointlora"] = PointLoRAConfig


def shape_key(inputs: int, outputs: int) -> str:
    return f"from{inputs}to{outputs}"


class SharedMLP(nn.Sequential):
    """Linear, GELU, Linear; one for many places."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        down, up = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        super().__init__(down, nn.GELU(), up)
        for linear in (down, up):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)


class LowRank(Adapter):
    """W x + b + B A x + gate M(x), M shared by all layers of this shape.

    gate  a frozen weight per layer in the released code, always 1; set it to what a published file holds
    """

    def __init__(self, frozen: nn.Linear, rank: int, shared: Shared) -> None:
        super().__init__()
        self.key, self.shared, self.gate = shape_key(frozen.in_features, frozen.out_features), shared, 1.0
        self.a = nn.Parameter(torch.empty(rank, frozen.in_features))
        self.b = nn.Parameter(torch.zeros(frozen.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, base, x: Tensor) -> Tensor:
        return base(x) + F.linear(F.linear(x, self.a), self.b) + self.gate * self.shared()[self.key](x)


class TokenMLPs(Adapter):
    """x + M(x) for the groups' tokens and, with an M of their own, for the selected ones.

    x is what a block starts from: its position embedding is in it already.
    """

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, base, tokens: Tokens) -> Tokens:
        placed = tokens.placed()
        for part in ("patch", "selected"):
            if placed.count(part):
                feat = placed.part(part)
                placed = placed.with_part(part, feat + self.shared()[part](feat))
        return base(placed.but(pos=None)).but(pos=tokens.pos)


class Selection(Adapter):
    """Behind the tokenizer: the best-scored tokens of two scales, with their positions, as tokens "selected".

    The choice is hard, so the scorer learns from its own loss alone, the mean of p log p + (1 - p) log (1 - p), the
    coarse scale weighted by the ratio of tokens selected: it drives the scores towards 1/2.
    """

    def __init__(self, tokenizer: nn.Module, config: PointLoRAConfig) -> None:
        super().__init__()
        self.tokenizer = (tokenizer,)  # in a tuple: a reference, not a part
        channels: int = tokenizer.channels  # type: ignore[assignment]
        self.select, self.scales, self.mask_weight = config.select, config.scales, config.mask_weight
        self.scorer = nn.Sequential(nn.Linear(channels, channels // 2), nn.ReLU(), nn.Linear(channels // 2, 1))

    def forward(self, base, point: Point) -> Tokens:
        out = base(point)
        chosen, places, losses = [], [], []
        for tokens, wanted in zip(self.both_scales(out, point), self.select, strict=True):
            feat = tokens.part("patch")
            score = self.scorer(feat).squeeze(-1).float()
            best = score.topk(min(wanted, feat.shape[1]), dim=1).indices
            chosen.append(gather(feat, best))
            if tokens.pos is not None:
                places.append(gather(tokens.pos[:, tokens.rows("patch")], best))
            p = score.sigmoid()
            losses.append((p * F.logsigmoid(score) + (1 - p) * F.logsigmoid(-score)).mean())
        loss = losses[0] + self.select[1] / self.select[0] * losses[1]
        out = out.insert("selected", torch.cat(chosen, 1), torch.cat(places, 1) if places else None)
        known = {**out.extra.get("losses", {}), f"pointlora.{self.adapter_name}": self.mask_weight * loss}
        return out.but(extra={**out.extra, "losses": known})

    def both_scales(self, tokens: Tokens, point: Point) -> Iterator[Tokens]:
        tokenizer: Any = self.tokenizer[0]
        own = [tokenizer.groups, tokenizer.group_size]
        scales = self.scales or [*own, max(own[0] // 2, 1), 2 * own[1]]
        for scale in (scales[:2], scales[2:]):
            if scale == own:
                yield tokens
            else:
                found = scaled_groups(point, scale[0], scale[1], tokenizer.sampling)
                yield tokenizer.tokens(found.coord, found.center, point)


def scaled_groups(point: Point, groups: int, size: int, rule: Rule) -> Groups:
    """As :func:`group`, but a cloud of fewer points than ``size`` has groups of all its points, the last repeated.

    A maximum over the group does not see the repetition, so that the cloud's tokens are those it has alone.
    """
    if min(point.counts) >= size:
        return group(point, groups, size, rule)

    def make() -> Groups:
        found = [group(cloud, groups, min(size, len(cloud)), rule) for cloud in point.split()]
        fill = [torch.arange(size, device=point.coord.device).clamp(max=f.index.shape[2] - 1) for f in found]
        return Groups(
            torch.cat([f.center for f in found]),
            torch.cat([f.coord[:, :, rows] for f, rows in zip(found, fill, strict=True)]),
            torch.cat([f.index[:, :, rows] for f, rows in zip(found, fill, strict=True)]),
        )

    return point.remember(("groups", groups, size, rule, "repeated"), make)
