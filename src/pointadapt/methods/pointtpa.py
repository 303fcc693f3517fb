"""PointTPA: a bottleneck beside every feed-forward branch, whose weights are mixed anew for each patch of a scene.

arXiv 2604.04933 (code: H-EmbodVis/PointTPA). In the last block of each stage the scene is cut into a fixed number of
patches along the block's curve (SNG); a small gate looks at each patch's mean feature and mixes K projections
(DPP). Checked against the released code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, one_of, peft_method
from pointadapt.methods.sites import Site, Unfit, width
from pointadapt.ops.order import curve_order, places
from pointadapt.ops.segment import segment_count
from pointadapt.point import Point


@peft_method("pointtpa")
@dataclass
class PointTPAConfig(AdapterConfig):
    """Defaults: 24 bottlenecks of width 64 on Sonata-base, 5 of them dynamic; 1,152,904 parameters.

    ``grouping`` and ``init`` are the clean forms: a scene's patches do not depend on its batch mates, and the
    adapter starts as an exact identity. ``"official"`` reproduces the released code (whose zero start is lost).
    Controls: dynamic="none" (all static), groups=[1] (one mixture per scene), gate="uniform", gate="random",
    grouping="random" (patches of random points).
    """

    paper: ClassVar[str] = "PointTPA 2026, arXiv 2604.04933"
    works_on: ClassVar[tuple[str, ...]] = ("points",)
    needs: ClassVar[str] = "attention along space-filling curves, whose stretches are its patches"

    mid: int = field(default=64, metadata={"help": "Width of the bottleneck."})
    groups: list[int] = field(
        default_factory=lambda: [200, 100, 50, 20, 10],
        metadata={"help": "Patches per scene (mode num) or points per patch (length); a stage each, the last goes on."},
    )
    experts: list[int] = field(
        default_factory=lambda: [4, 4, 2, 2, 2], metadata={"help": "Projections K to mix, of each stage."}
    )
    temperature: float = field(default=4.0, metadata={"help": "Divides the gate's logits."})
    dynamic: str | list[str] = field(
        default="last",
        metadata={"help": "Dynamic blocks: last (of each stage), all, none, or a list of stage.block, e.g. 3.11."},
    )
    mode: Literal["num", "length"] = field(
        default="num", metadata={"help": "Whether groups gives the number of patches or their length."}
    )
    grouping: Literal["clean", "official", "random"] = field(
        default="clean",
        metadata={"help": "clean: per scene, means over real points; official: padded to the batch's longest scene."},
    )
    gate: Literal["learned", "uniform", "random"] = field(
        default="learned", metadata={"help": "uniform: always 1/K; random: as initialised, never trained."}
    )
    gate_init: Literal["kaiming", "zero"] = field(
        default="kaiming", metadata={"help": "zero: every mixture starts at 1/K; kaiming starts far from it."}
    )
    init: Literal["clean", "official"] = field(
        default="clean", metadata={"help": "clean: up starts at zero; official: all Linear at std 0.02, no identity."}
    )
    alpha: float = field(default=1.0, metadata={"help": "Factor on the adapter's output."})

    def __post_init__(self) -> None:
        if self.target_modules is None:
            self.target_modules = ["ffn"]
        super().__post_init__()
        self.groups, self.experts = list(self.groups), list(self.experts)
        at_least(1, mid=self.mid, groups=min(self.groups, default=0), experts=min(self.experts, default=0))
        if not self.temperature > 0:
            raise UserError(f"temperature must be above 0, not {self.temperature!r}")
        one_of("mode", self.mode, ("num", "length"))
        one_of("grouping", self.grouping, ("clean", "official", "random"))
        one_of("gate", self.gate, ("learned", "uniform", "random"))
        one_of("gate_init", self.gate_init, ("kaiming", "zero"))
        one_of("init", self.init, ("clean", "official"))
        if isinstance(self.dynamic, str):
            one_of("dynamic", self.dynamic, ("last", "all", "none"))

    def is_dynamic(self, site: Site) -> bool:
        if isinstance(self.dynamic, str):
            return {"last": site.block in (None, site.blocks - 1), "all": True, "none": False}[self.dynamic]
        return f"{site.stage}.{site.block}" in self.dynamic

    def shared(self, sites: list[Site]) -> None:
        """Nothing is shared; all sites being known, raises UserError for a dynamic block that is none of them."""
        known = [f"{site.stage}.{site.block}" for site in sites]
        for name in () if isinstance(self.dynamic, str) else self.dynamic:
            one_of("dynamic", name, tuple(known))

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        if site.is_block and self.dynamic != "none":
            raise Unfit(f"{type(frozen).__name__} chooses the curve of its patches inside")
        stage = site.stage or 0  # backbones with more stages than entries go on with the last one
        experts = self.experts[min(stage, len(self.experts) - 1)] if self.is_dynamic(site) else None
        groups = Grouping(self.groups[min(stage, len(self.groups) - 1)], self.mode, self.grouping)
        return PatchAdapter(
            width(frozen),
            self.mid,
            experts,
            groups,
            temperature=self.temperature,
            gate=self.gate,
            gate_init=self.gate_init,
            init=self.init,
            alpha=self.alpha,
        )


METHODS["pointtpa"] = PointTPAConfig


@dataclass(frozen=True)
class Patches:
    """Which patch each point is in, for all scenes of a batch.

    order    [N] int64: rows sorted by patch
    lengths  [P] int64: points of each patch, in that order; none is empty
    divisor  [P] float: what the patch's sum is divided by to give the gate its input
    group    [N] int64: patch of each row
    """

    order: Tensor
    lengths: Tensor
    divisor: Tensor
    group: Tensor


@dataclass(frozen=True)
class Grouping:
    """Serialization-guided grouping (SNG): cuts each scene's curve into contiguous patches.

    size  patches per scene (mode "num") or points per patch (mode "length")
    rule  "clean": patch g of n points is [floor(g n / G), floor((g + 1) n / G)), G = n when there are fewer points;
          "official": patches of ceil(longest scene / G) points, zeros of the padding included in means;
          "random": clean, along a fixed random permutation in place of the curve
    """

    size: int
    mode: str = "num"
    rule: str = "clean"

    def __call__(self, point: Point, curve: str) -> Patches:
        return point.remember(("patches", self, curve), lambda: self.cut(*curve_order(point, curve), point.counts))

    def cut(self, order: Tensor, inverse: Tensor, counts: list[int]) -> Patches:
        """Patches of scenes of ``counts`` points whose rows ``order`` [N] sorts along the curve, scene by scene."""
        if self.rule == "random":
            shuffled = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in counts]
            starts = torch.tensor([0, *counts]).cumsum(0)[:-1]
            order = torch.cat([s + p for s, p in zip(starts.tolist(), shuffled, strict=True)]).to(order.device)
            inverse = places(order)
        longest = max(1, *counts)
        groups, lengths, divisors, taken = [], [], [], 0
        for n in counts:
            position = torch.arange(n, device=order.device)
            if self.mode == "length":
                length: int | None = self.size
            else:  # whole scenes are cut evenly; the official rule fixes the length by the longest of the batch
                length = -(-longest // self.size) if self.rule == "official" else None
            if length is None:
                parts = min(self.size, n)
                group = ((position + 1) * parts - 1) // max(n, 1)
            else:
                parts = -(-n // length)
                group = position // length
            points = segment_count(group, parts)
            groups.append(taken + group)
            lengths.append(points)
            divisors.append(torch.full_like(points, length) if length and self.rule == "official" else points)
            taken += parts
        return Patches(order, torch.cat(lengths), torch.cat(divisors).float(), torch.cat(groups)[inverse])


class Gate(nn.Module):
    """K mixing coefficients per patch from its mean feature: softmax((fc2 relu(fc1 p)) / temperature)."""

    fc1: Tensor
    fc2: Tensor
    bias: Tensor

    def __init__(self, channels: int, experts: int, temperature: float, trained: bool = True, init: str = "kaiming"):
        super().__init__()
        hidden = max(channels // 4 + 1, 16)
        self.temperature = temperature
        weights = {"fc1": torch.empty(hidden, channels), "fc2": torch.empty(experts, hidden)}
        for name, weight in weights.items():
            nn.init.kaiming_normal_(weight, mode="fan_out")  # std sqrt(2 / out), as released
            if name == "fc2" and init == "zero":
                nn.init.zeros_(weight)
        for name, value in {**weights, "bias": torch.zeros(experts)}.items():
            if trained:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, mean: Tensor) -> Tensor:
        """[P, C] -> [P, K], in float32."""
        logits = (mean @ self.fc1.T.to(mean.dtype)).relu() @ self.fc2.T.to(mean.dtype) + self.bias.to(mean.dtype)
        return (logits.float() / self.temperature).softmax(1)


class DynamicDown(nn.Module):
    """Dynamic projection (DPP): y_i = sum_k a_gk (W_k x_i + b_k) for every point i of patch g."""

    def __init__(self, channels: int, mid: int, experts: int, gate: Gate | None) -> None:
        super().__init__()
        self.experts, self.gate = experts, gate
        self.weight = nn.Parameter(torch.empty(experts, mid, channels))
        self.bias = nn.Parameter(torch.zeros(experts, mid))
        for weight in self.weight:
            nn.init.kaiming_uniform_(weight)  # per expert; std sqrt(2 / C)

    def coefficients(self, feat: Tensor, patches: Patches) -> Tensor:
        """[P, K], rows sum to 1."""
        if self.gate is None:
            return feat.new_full((len(patches.lengths), self.experts), 1 / self.experts)
        # Rows of a patch lie behind each other in order: this sum is deterministic on every device.
        total = torch.segment_reduce(feat[patches.order].float(), "sum", lengths=patches.lengths, unsafe=True)
        return self.gate(total / patches.divisor[:, None])

    def forward(self, feat: Tensor, patches: Patches) -> Tensor:
        """[N, C] -> [N, mid]: all K projections in one matrix product, then each point's mixture of them."""
        experts = nn.functional.linear(feat, self.weight.flatten(0, 1), self.bias.flatten())
        experts = experts.unflatten(1, (self.experts, -1))  # [N, K, mid]
        mixture = self.coefficients(feat, patches).to(experts.dtype)[patches.group]  # [N, K]
        return (mixture[:, None] @ experts).squeeze(1)


class PatchAdapter(Adapter):
    """up(relu(down(norm(x)))) beside the feed-forward branch, outside its drop path; ``down`` may be dynamic.

    experts  number of projections to mix; None = an ordinary Linear, which needs no patches at all
    """

    def __init__(
        self,
        channels: int,
        mid: int,
        experts: int | None,
        grouping: Grouping,
        *,
        temperature: float = 4.0,
        gate: str = "learned",
        gate_init: str = "kaiming",
        init: str = "clean",
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        self.grouping, self.alpha = grouping, alpha
        self.norm = nn.LayerNorm(channels)
        self.down: nn.Linear | DynamicDown
        if experts is None:
            self.down = nn.Linear(channels, mid)
            nn.init.kaiming_uniform_(self.down.weight)
            nn.init.zeros_(self.down.bias)
        else:
            gating = None if gate == "uniform" else Gate(channels, experts, temperature, gate == "learned", gate_init)
            self.down = DynamicDown(channels, mid, experts, gating)
        self.up = nn.Linear(mid, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        if init == "official":  # the released backbone re-draws every nn.Linear after the zero start
            for module in (self.down, self.up):
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, base, point: Point) -> Point:
        out = base(point)
        patches = self.grouping(point, point.extra["curve"]) if isinstance(self.down, DynamicDown) else None
        return out.but(feat=out.feat + self.alpha * self.branch(point.feat, patches))

    def branch(self, feat: Tensor, patches: Patches | None) -> Tensor:
        """[N, C] -> [N, C], what is added to the residual stream."""
        feat = self.norm(feat)
        hidden = self.down(feat, patches) if isinstance(self.down, DynamicDown) else self.down(feat)
        return self.up(hidden.relu())
