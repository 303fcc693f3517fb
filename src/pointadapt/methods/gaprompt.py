"""GAPrompt: learned points and a learned shift of the cloud, its shape as a vector, prompts and adapters that use it.

Ai et al.: GAPrompt, Geometry-Aware Point Cloud Prompt for 3D Vision Model. ICML 2025, arXiv 2505.04119. Written
from a description of the method, in the clean form alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, peft_method
from pointadapt.methods.pointpeft import neighborhoods
from pointadapt.methods.sites import Site, width
from pointadapt.ops.amax import amax
from pointadapt.ops.batchnorm import RowNorm
from pointadapt.ops.neighbors import Groups, clouds_of, gather, group, group_stack, nearest
from pointadapt.point import Point
from pointadapt.tokens import Tokens

READ = ["cls", "max patch", "extra shape"]


@peft_method("gaprompt")
@dataclass
class GAPromptConfig(AdapterConfig):
    """Defaults: 600,487 trained parameters on Point-MAE with 128 groups and 15 classes, head included.

    The released code trains 628,147, of which 23,040 are prompts of blocks that use none and 4,620 a learned scale
    that nothing reads. Its neighbourhoods mix up prompts, groups and samples of a batch, and double their features
    outside of training; here every index stays within its cloud, and nothing is doubled.
    """

    paper: ClassVar[str] = "Ai et al. 2025, arXiv 2505.04119"
    works_on: ClassVar[tuple[str, ...]] = ("tokens",)
    needs: ClassVar[str] = (
        "a tokenizer that groups points anew, which networks over voxels of single points do not have"
    )
    default_targets: ClassVar[tuple[str, ...]] = ("tokenizer", "block")
    regroups: ClassVar[bool] = True
    #: Points and prompts are new to the backbone, and the adapters start at random, as published.
    identity: ClassVar[bool] = False

    points: int = field(default=5, metadata={"help": "Learned points added to every cloud."})
    shift: float = field(
        default=0.1,
        metadata={
            "help": "How far points may be shifted. Published: 0.05 (ModelNet40), 0.1 (OBJ_ONLY), 0.2 (OBJ_BG), "
            "0.8 (PB_T50_RS)."
        },
    )
    prompts: int = field(default=10, metadata={"help": "Prompts in each block of the first half."})
    rank: int = field(default=16, metadata={"help": "Width of the adapters."})
    scale: float = field(default=0.7, metadata={"help": "Factor on the adapters' output."})
    shape_weight: float = field(
        default=0.5, metadata={"help": "Factor on the shape vector where prompts and adapters use it."}
    )
    spread: float = field(default=0.3, metadata={"help": "Factor on what neighbourhoods add to the groups' tokens."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout on prompts and inside of the small networks."})
    read: list[str] | None = field(default_factory=READ.copy, metadata={"help": "What a classification head reads."})

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, points=self.points, prompts=self.prompts, rank=self.rank)
        if not set(self.default_targets) <= set(self.target_modules or ()):
            raise UserError("gaprompt works as a whole: leave target_modules at tokenizer and block")

    def prepare(self, model: Any) -> None:
        backbone = getattr(model, "backbone", model)
        if not hasattr(getattr(backbone, "tokenizer", None), "group_size"):
            raise UserError(f"method 'gaprompt' cannot work on {type(backbone).__name__}: it needs {self.needs}")
        if hasattr(model, "taps") and self.read == READ:  # part segmentation reads as without a method
            self.read = None
        super().prepare(model)

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        if site.slot == "tokenizer":
            return PointPrompter(frozen, self)
        return ShapedBlock(width(frozen), self, site)


METHODS["gaprompt"] = GAPromptConfig


@dataclass(frozen=True, eq=False)
class Shape:
    """What the prompter hands to the blocks.

    vector [B, C] of each cloud's shape;  places [n, C] position embeddings of the prompts;  neighbors of a token
    """

    vector: Tensor
    places: Tensor
    neighbors: int


class PointPrompter(Adapter):
    """Around the tokenizer, which sees the shifted cloud and the learned points.

    The shape goes into ``extra["shape"]``, where a head may read it.
    """

    def __init__(self, tokenizer: nn.Module, config: GAPromptConfig) -> None:
        super().__init__()
        self.tokenizer = (tokenizer,)  # in a tuple: a reference, not a part
        frozen: Any = tokenizer
        self.amount = config.shift
        self.points = nn.Parameter(torch.empty(config.points, 3).uniform_(-0.01, 0.01))
        self.places = nn.Parameter(nn.init.trunc_normal_(torch.empty(config.prompts, 3), std=0.02))
        self.shift = ShiftNet(config.dropout)
        self.shape = nn.Sequential(
            nn.Linear(SHAPE * max(frozen.groups // 2, 1), 16),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(16, frozen.channels),
        )

    def forward(self, base, point: Point) -> Tokens:
        tokenizer: Any = self.tokenizer[0]
        with torch.autocast(point.coord.device.type, enabled=False):  # neighbours change with the last bits
            levels = Levels.of(point, tokenizer)
            shift, coarse = self.shift(point, levels)
            coord = point.coord + self.amount * shift * point.coord
        half = max(tokenizer.group_size // 2, 1)
        shape = Shape(self.shape(coarse.flatten(1)), tokenizer.pos(self.places), half)
        tokens = base(with_points(point, coord, 5 * self.points))
        extra = {**tokens.extra, "shape": shape.vector, f"gaprompt.{self.adapter_name}": shape}
        return tokens.but(point=point, extra=extra)


def with_points(point: Point, coord: Tensor, more: Tensor) -> Point:
    """Clouds at other coordinates [N, 3], each with ``more`` [n, 3] points behind its own."""
    pieces = [part for cloud in coord.split(point.counts) for part in (cloud, more.to(coord.dtype))]
    whole = torch.cat(pieces)
    step = len(more) * torch.arange(1, point.num_clouds + 1, device=point.offset.device)
    return Point(whole, whole, point.offset + step, extra=point.extra)


# ------------------------------------------------------------------------------------------------- the shift


#: Channels of the coarse level; flattened over its centres they are the shape.
SHAPE = 8


@dataclass(frozen=True, eq=False)
class Levels:
    """Where the shift network looks, of coordinates alone.

    row        [B, G, K] rows of the batch that each group holds;  center [B, G, 3]
    coarse     G/2 groups of K/2 centres among the centres
    up         [B, G, G/2] weights of the coarse centres at the centres
    down       [b, N, G] of the centres at the points, one stack of b clouds after the other
    """

    row: Tensor
    coarse: Groups
    up: Tensor
    down: list[Tensor]

    @classmethod
    def of(cls, point: Point, tokenizer: Any) -> Levels:
        groups, size, rule = tokenizer.groups, tokenizer.group_size, tokenizer.sampling

        def make() -> Levels:
            found = group(point, groups, size, rule)
            start = point.offset - torch.tensor(point.counts, device=point.offset.device)
            coarse = group_stack(found.center, max(groups // 2, 1), max(size // 2, 1), rule)
            stacks, down, taken = clouds_of(point), [], 0
            for coord in stacks:
                down.append(interpolation(coord, found.center[taken : taken + len(coord)]))
                taken += len(coord)
            return cls(found.index + start[:, None, None], coarse, interpolation(found.center, coarse.center), down)

        return point.remember(("gaprompt", groups, size, rule), make)


@torch.no_grad()
def interpolation(at: Tensor, known: Tensor, count: int = 32) -> Tensor:
    """[B, N, Q] weights of the nearest of points known [B, Q, 3] at [B, N, 3], inverse to squared distance, else 0.

    Dense: about half of a few dozen points are among the nearest, and products are quicker than gathers.
    """
    index = nearest(at, known, min(count, known.shape[1]))
    squared = (gather(known, index) - at[:, :, None]).square().sum(-1)
    weight = 1 / (squared + 1e-4)
    weight = weight / weight.sum(-1, keepdim=True)
    return weight.new_zeros(*at.shape[:2], known.shape[1]).scatter_(2, index, weight)


class RowsMLP(nn.Sequential):
    """Linear, BatchNorm, ReLU for each width, over the last dimension of [..., C]."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), RowNorm(outputs), nn.ReLU()]
        super().__init__(*layers)


class ShiftNet(nn.Module):
    """Two levels of groups down and up again: a shift per point [N, 3] and features [B, G/2, 8] of the shape."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.fine, self.coarse = RowsMLP(27, 64, 32, 64), RowsMLP(64, 64, 32, SHAPE)
        self.to_groups, self.to_points = RowsMLP(64 + SHAPE, 64, 32), RowsMLP(32 + 27, 32, 32)
        self.out = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 3))

    def forward(self, point: Point, levels: Levels) -> tuple[Tensor, Tensor]:
        waves = embedded(point.coord)
        groups = amax(self.fine(waves[levels.row]), 2)
        coarse = amax(self.coarse(gather(groups, levels.coarse.index)), 2)
        groups = self.to_groups(torch.cat([groups, levels.up @ coarse], -1))
        rows, taken = [], 0
        for weight in levels.down:
            rows.append((weight @ groups[taken : taken + len(weight)]).flatten(0, 1))
            taken += len(weight)
        feat = self.to_points(torch.cat([torch.cat(rows), waves], -1))
        return self.out(feat), coarse


def embedded(coord: Tensor) -> Tensor:
    """[N, 27]: x and sin, cos of 1, 2, 4 and 8 times x."""
    waves = [f(2**k * coord) for k in range(4) for f in (torch.sin, torch.cos)]
    return torch.cat([coord, *waves], -1)


# ------------------------------------------------------------------------------------------------- the blocks


class ShapedBlock(Adapter):
    """A block with prompts (first half of the network), neighbourhoods spread over the groups' tokens, an adapter."""

    def __init__(self, channels: int, config: GAPromptConfig, site: Site) -> None:
        super().__init__()
        self.scale, self.shape_weight, self.spread = config.scale, config.shape_weight, config.spread
        self.prompts: nn.Parameter | None = None
        if site.block is not None and 2 * site.block < site.blocks:
            self.prompts = nn.Parameter(nn.init.trunc_normal_(torch.empty(config.prompts, channels), std=0.02))
        self.dropout = nn.Dropout(config.dropout)
        self.neighbor_norm, self.norm = nn.BatchNorm1d(channels), nn.LayerNorm(channels)
        self.down, self.up = nn.Linear(channels, config.rank), nn.Linear(config.rank, channels)
        for linear in (self.down, self.up):
            nn.init.kaiming_uniform_(linear.weight, a=5**0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, base, tokens: Tokens) -> Tokens:
        name = f"prompt of {self.adapter_name}"
        shape: Shape = tokens.extra[f"gaprompt.{self.adapter_name}"]
        vector = self.shape_weight * shape.vector[:, None]
        if self.prompts is not None:
            tokens = tokens.insert(name, self.dropout(self.prompts) + vector + shape.places, before="patch")
        tokens = base(tokens).drop(name)
        nodes = tokens.part("patch")
        found = neighborhoods(tokens, shape.neighbors)
        tokens = tokens.with_part("patch", nodes + self.spread * found.summed_up(nodes, self.neighbor_norm))
        feat = tokens.feat if self.prompts is None else tokens.feat + vector
        hidden = self.down(self.norm(feat))
        return tokens.but(feat=tokens.feat + self.scale * self.up(hidden * torch.sigmoid(1.702 * hidden)))
