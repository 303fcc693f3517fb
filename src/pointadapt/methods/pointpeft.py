"""Point-PEFT without its memory bank: prompts with places in space, neighbourhoods of groups, adapters, biases.

Tang et al.: Point-PEFT, Parameter-Efficient Fine-Tuning for 3D Pre-trained Models. AAAI 2024, arXiv 2310.03059. Written
from a description of the method, in the clean form alone; what the released code does otherwise
and why it is not done here is said at :class:`PointPEFTConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.methods.adapters import BiasDelta, Retrained
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, peft_method
from pointadapt.methods.sites import Site, width
from pointadapt.ops.amax import amax
from pointadapt.ops.attention import attend
from pointadapt.ops.neighbors import farthest_points, gather, nearest
from pointadapt.tokens import Tokens

BIASES = ("norm1", "norm2", "proj", "fc1", "fc2")


@peft_method("pointpeft")
@dataclass
class PointPEFTConfig(AdapterConfig):
    """Defaults: 671,533 trained parameters on Point-MAE with 15 classes, head included.

    The released code trains 773,017. The difference is what cannot act or be rebuilt: prompts of blocks that use none
    (23,040), gates that nothing reads (12), and the adapters of a bank of training features (78,432), which needs a
    second, fine-tuned network and a file whose making was not released. Its neighbourhoods also mix up prompts, groups
    and samples of a batch; here every index stays within its cloud.
    """

    paper: ClassVar[str] = "Tang et al. 2024, arXiv 2310.03059"
    works_on: ClassVar[tuple[str, ...]] = ("tokens",)
    needs: ClassVar[str] = "groups of points with centres, which networks over single points do not have"
    default_targets: ClassVar[tuple[str, ...]] = (*BIASES, "ffn", "block", "final_norm")
    #: Prompts are new tokens, and both adapters start at random, as published.
    identity: ClassVar[bool] = False

    prompts: int = field(default=10, metadata={"help": "Prompts in each block of the first half."})
    rank: int = field(default=16, metadata={"help": "Width of both adapters."})
    neighbors: int = field(default=16, metadata={"help": "Tokens of a neighbourhood."})
    scale: float = field(default=0.7, metadata={"help": "Factor on the adapter behind the feed-forward branch."})
    spread: float = field(default=0.3, metadata={"help": "Factor on what neighbourhoods add to the groups' tokens."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout on prompts."})

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, prompts=self.prompts, rank=self.rank, neighbors=self.neighbors)

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        self.channels: int = getattr(model, "backbone", model).out_channels

    def shared(self, sites: list[Site]) -> nn.Module | None:
        return SharedParts(self.channels, self.prompts)

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        if site.slot == "block":
            return GeometryBlock(width(frozen), self, site, shared)
        if site.slot == "ffn":
            return BehindBranch(width(frozen), self)
        if site.slot in BIASES:
            return BiasDelta(len(frozen.get_parameter("bias")))
        return Retrained(frozen)


METHODS["pointpeft"] = PointPEFTConfig


class QuickBottleneck(nn.Module):
    """up(quick_gelu(down(x))), quick_gelu(x) = x sigmoid(1.702 x)."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, rank), nn.Linear(rank, channels)
        for linear in (self.down, self.up):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, feat: Tensor) -> Tensor:
        hidden = self.down(feat)
        return self.up(hidden * torch.sigmoid(1.702 * hidden))


class BehindBranch(Adapter):
    """y + scale * bottleneck(y), y what the feed-forward branch gives."""

    def __init__(self, channels: int, config: PointPEFTConfig) -> None:
        super().__init__()
        self.scale = config.scale
        self.bottleneck = QuickBottleneck(channels, config.rank)

    def forward(self, base, tokens: Tokens) -> Tokens:
        out = base(tokens)
        return out.but(feat=out.feat + self.scale * self.bottleneck(out.feat))


class NarrowAttention(nn.Module):
    """x + attention(norm x) among the tokens of each neighbourhood [..., K, C], six heads of three channels."""

    heads, width = 6, 18

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * self.width, bias=False)
        self.proj = nn.Linear(self.width, channels)

    def forward(self, feat: Tensor) -> Tensor:
        parts = self.qkv(self.norm(feat)).chunk(3, -1)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for x in parts)
        mixed = attend(query, key, value, scale=self.width**-0.5)
        return feat + self.proj(mixed.transpose(-3, -2).flatten(-2))


class SharedParts(nn.Module):
    """What all blocks share: where prompts are in space [n, 3], and the attention inside neighbourhoods."""

    def __init__(self, channels: int, prompts: int) -> None:
        super().__init__()
        self.places = nn.Parameter(nn.init.trunc_normal_(torch.empty(prompts, 3), std=0.02))
        self.attention = NarrowAttention(channels)


class GeometryBlock(Adapter):
    """A block between prompts and neighbourhoods.

    In the first half of the network, prompts go in before the groups and come out again behind. What every
    neighbourhood holds is summed up and spread over the groups' tokens by distance; then x + bottleneck(x).
    """

    def __init__(self, channels: int, config: PointPEFTConfig, site: Site, shared: Shared) -> None:
        super().__init__()
        self.neighbors, self.spread, self.shared = config.neighbors, config.spread, shared
        self.prompts: nn.Parameter | None = None
        if site.block is not None and 2 * site.block < site.blocks:
            self.prompts = nn.Parameter(nn.init.trunc_normal_(torch.empty(config.prompts, channels), std=0.02))
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.BatchNorm1d(channels)
        self.bottleneck = QuickBottleneck(channels, config.rank)

    def forward(self, base, tokens: Tokens) -> Tokens:
        name, shared = f"prompt of {self.adapter_name}", self.shared()
        places = None
        if self.prompts is not None:
            tokens = tokens.insert(name, self.dropout(self.prompts)[None], before="patch")
            places = shared.places
        tokens = base(tokens)
        prompts = tokens.part(name) if places is not None else None
        found = neighborhoods(tokens, self.neighbors, places)
        nodes = tokens.part("patch") if prompts is None else torch.cat([prompts, tokens.part("patch")], 1)
        change = found.summed_up(nodes, self.norm, shared.attention)
        tokens = tokens.with_part("patch", tokens.part("patch") + self.spread * change)
        tokens = tokens.drop(name)
        return tokens.but(feat=tokens.feat + self.bottleneck(tokens.feat))


@dataclass(frozen=True, eq=False)
class Neighborhoods:
    """Q neighbourhoods of K nodes each among M nodes of a cloud, and how G groups take part in them.

    node    [B, Q] the node in the middle;  index [B, Q, K] its nearest nodes, itself included
    weight  [B, G, Q] rows sum to 1, inverse to the squared distance
    """

    node: Tensor
    index: Tensor
    weight: Tensor

    def summed_up(self, nodes: Tensor, norm: nn.Module, inside: nn.Module | None = None) -> Tensor:
        """[B, G, C] from nodes [B, M, C]: gelu(norm(maximum)) + 0.3 of the middle node, spread by weight."""
        feat = gather(nodes, self.index)
        highest = amax(feat if inside is None else inside(feat), 2)
        highest = F.gelu(norm(highest.flatten(0, 1)).view_as(highest))
        return self.weight.to(highest.dtype) @ (highest + 0.3 * gather(nodes, self.node).to(highest.dtype))


def neighborhoods(tokens: Tokens, count: int, places: Tensor | None = None) -> Neighborhoods:
    """Around every second centre (farthest point sampling), and around each of ``places`` [n, 3], nodes before them.

    Raises UserError when the tokens have no centres.
    """
    center = tokens.center
    if center is None:
        raise UserError("neighbourhoods need tokens with centres, which this backbone's tokens do not have")
    middle = tokens.remember_centers("every second", lambda: every_second(center))
    where, node = center, middle
    if places is not None:
        where = torch.cat([places.to(center.dtype).expand(len(center), -1, -1), center], 1)
        first = torch.arange(len(places), device=center.device).expand(len(center), -1)
        node = torch.cat([first, len(places) + middle], 1)
    query = gather(where, node)
    index = nearest(query, where, min(count, where.shape[1]))
    return Neighborhoods(node, index, inverse_distance(center, query))


def every_second(center: Tensor) -> Tensor:
    """[B, G / 2] of centres [B, G, 3], the farthest from one another."""
    return farthest_points(center.detach(), max(center.shape[1] // 2, 1))


def inverse_distance(at: Tensor, query: Tensor) -> Tensor:
    """[B, N, Q] weights of points query [B, Q, 3] at [B, N, 3]: inverse squared distances, rows sum to 1."""
    squared = (at[:, :, None] - query[:, None]).square().sum(-1)
    weight = 1 / (squared + 1e-4)
    return weight / weight.sum(-1, keepdim=True)
