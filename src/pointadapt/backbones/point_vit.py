"""Transformers over groups of points: Point-MAE, Point-BERT and ACT, and the parts ReCon and PointGPT share with them.

Farthest point sampling picks G centres, a small PointNet turns the K points around each into a token, blocks of a
plain ViT follow, as in the published code, its quirks included. Where the models really differ they have
their own class: recon.py, point_gpt.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone
from pointadapt.backbones.drop_path import DropPath, rising
from pointadapt.ops.amax import amax
from pointadapt.ops.attention import attend
from pointadapt.ops.batchnorm import RowNorm, settle
from pointadapt.ops.frozen import by_rows, no_graph
from pointadapt.ops.neighbors import Rule, group
from pointadapt.point import Point
from pointadapt.tokens import Tokens


@dataclass(frozen=True)
class PointViTConfig:
    """Everything that decides the network; defaults are Point-MAE's (and ACT's).

    family         which class it becomes: "vit" (Point-MAE, Point-BERT, ACT), "recon", "recon-as-vit" or "gpt"
    groups         G tokens, of group_size K points each
    embed_channels width of the small PointNet's output; where it is not ``channels`` a Linear follows (Point-BERT)
    embed_hidden   widths inside of it; the last is that of its second half (see PatchEmbed)
    cls_tokens     learned tokens in front of the groups; 0: none, as in the published part segmentation
    sampling       "clean": groups do not depend on the order of the points; "released": the CUDA operators' rule
    """

    family: Literal["vit", "recon", "recon-as-vit", "gpt"] = "vit"
    groups: int = 64
    group_size: int = 32
    channels: int = 384
    depth: int = 12
    heads: int = 6
    embed_channels: int = 384
    embed_hidden: tuple[int, ...] = (128, 256, 512)
    cls_tokens: int = 1
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    drop_path: float = 0.1
    sampling: Rule = "clean"

    def __post_init__(self) -> None:
        if self.channels % self.heads:
            raise ValueError(f"PointViTConfig.channels {self.channels} must be a multiple of heads {self.heads}")


#: Official key -> ours in Point-MAE, Point-BERT and ACT, rules applied in turn.
RENAMED = [
    (r"^cls_(token|pos)$", r"cls.\1"),
    (r"^encoder\.(first|second)_conv\.", r"tokenizer.embed.\1."),
    (r"^reduce_dim\.", "tokenizer.reduce."),
    (r"^pos_embed\.", "tokenizer.pos."),
    (r"^blocks\.blocks\.", "blocks."),
    (r"^(blocks\.\d+)\.norm1\.", r"\1.mix.norm."),
    (r"^(blocks\.\d+)\.norm2\.", r"\1.ffn.norm."),
    (r"^(blocks\.\d+)\.attn\.", r"\1.mix.attn."),
    (r"^(blocks\.\d+)\.mlp\.", r"\1.ffn.mlp."),
    (r"^norm\.", "final_norm."),
]


class PatchEmbed(nn.Module):
    """A small PointNet per group: [B, G, K, 3] -> [B, G, C]. Its 1x1 convolutions are Linear here.

    hidden  widths of ``first``, which works on single points, then that of ``second``, which also sees their maximum
    """

    def __init__(self, hidden: Sequence[int], channels: int) -> None:
        super().__init__()
        self.channels = channels
        *narrow, wide = hidden
        self.widest = max(2 * narrow[-1], wide, channels)
        self.first = rows_mlp(3, *narrow)
        self.second = rows_mlp(2 * narrow[-1], wide, channels)

    def forward(self, coord: Tensor) -> Tensor:
        if no_graph(coord, self) and not self.second[1].training:
            groups = coord.flatten(0, -3)
            return by_rows(self.embed, groups, groups.shape[1] * self.widest).unflatten(0, coord.shape[:-2])
        return self.embed(coord)

    def embed(self, coord: Tensor) -> Tensor:
        feat = self.first(coord)
        whole = amax(feat, -2, keepdim=True).expand_as(feat)
        return amax(self.second(torch.cat([whole, feat], -1)), -2)


def rows_mlp(channels: int, *widths: int) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them; its indices are those of the published ``first_conv``."""
    layers: list[nn.Module] = []
    for width in widths:
        if layers:
            layers += [RowNorm(channels), nn.ReLU()]
        layers.append(nn.Linear(channels, width))
        channels = width
    return nn.Sequential(*layers)


class PositionMLP(nn.Sequential):
    """Linear(3 -> hidden), GELU, Linear(hidden -> C) on centres."""

    def __init__(self, channels: int, hidden: int = 128) -> None:
        super().__init__(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, channels))


class Tokenizer(nn.Module):
    """Point -> Tokens: one "patch" token per group of points, with the centres' position embedding."""

    position: ClassVar[type[nn.Module]] = PositionMLP

    def __init__(self, config: PointViTConfig) -> None:
        super().__init__()
        self.groups, self.group_size, self.sampling = config.groups, config.group_size, config.sampling
        self.channels = config.channels
        self.embed = PatchEmbed(config.embed_hidden, config.embed_channels)
        is_narrow = config.embed_channels != config.channels
        self.reduce = nn.Linear(config.embed_channels, config.channels) if is_narrow else nn.Identity()
        self.pos = self.position(config.channels)
        self.is_fed = False  # whether a pyramid makes the tokens (frame_pyramid.py)

    def forward(self, point: Point) -> Tokens:
        if self.is_fed and "patches" in point.extra:
            made = point.extra["patches"]
            return self.placed(made.feat, made.center, point)
        found = group(point, self.groups, self.group_size, self.sampling)
        return self.tokens(found.coord, found.center, point)

    def tokens(self, coord: Tensor, center: Tensor, point: Point) -> Tokens:
        """From groups [B, G, K, 3] around centres [B, G, 3]."""
        return self.placed(self.reduce(self.embed(coord)), center, point)

    def settle(self) -> None:
        """Give BatchNorm the statistics of groups on 16 ellipsoids.

        For random weights that stay frozen: with the mean of 0 and variance of 1 at the start, hardly anything of a
        shape gets through.
        """
        device, count = next(self.parameters()).device, max(1024, self.groups, self.group_size)
        clouds = F.normalize(torch.randn(16, count, 3, device=device), dim=2)
        clouds = clouds * (0.2 + 0.8 * torch.rand(16, 1, 3, device=device))
        rows = (clouds / clouds.norm(dim=2).amax(1)[:, None, None]).flatten(0, 1)
        point = Point(rows, rows, count * torch.arange(1, 17, device=device))
        settle(self.embed, lambda: self.embed(group(point, self.groups, self.group_size, self.sampling).coord))

    def placed(self, feat: Tensor, center: Tensor, point: Point) -> Tokens:
        """Features [B, G, C] of groups as tokens with their positions."""
        layout = (("patch", center.shape[1]),)
        return Tokens(feat, layout, self.pos(center), center, point, extra=point.extra, cache=point.cache)


class ClassTokens(nn.Module):
    """Puts learned tokens "cls", with learned positions, in front."""

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, count, channels))
        self.pos = nn.Parameter(torch.zeros(1, count, channels))
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.pos, std=0.02)

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens.insert("cls", self.token, self.pos, before=tokens.layout[0][0])


class Attention(nn.Module):
    """Multi-head attention between the tokens of a sequence, under ``tokens.mask`` if there is one."""

    def __init__(self, channels: int, heads: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.channels, self.heads = channels, heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tokens, prompt: tuple[Tensor, Tensor] | None = None) -> Tokens:
        """prompt: further keys and values, each [n, C] (or [B, n, C]), that every token sees (prefix tuning)."""
        batch, length, channels = tokens.feat.shape
        query, key, value = self.qkv(tokens.feat).chunk(3, -1)
        mask = self.mask(tokens)
        if prompt is not None:
            key, value = (
                torch.cat([p.to(x.dtype).expand(batch, -1, channels), x], 1)
                for p, x in zip(prompt, (key, value), strict=True)
            )
            if mask is not None:
                mask = F.pad(mask, (key.shape[1] - length, 0), value=mask.dtype == torch.bool)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        feat = attend(query, key, value, mask)
        return tokens.but(feat=self.proj(feat.transpose(1, 2).reshape(batch, length, channels)))

    def mask(self, tokens: Tokens) -> Tensor | None:
        """Which token may see which; None: every token sees every token."""
        return tokens.mask


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.channels = channels
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens.but(feat=self.fc2(F.gelu(self.fc1(tokens.feat))))


class Branch(nn.Module):
    """norm, then attention or MLP, then drop path: what a block adds to the stream. ``inner`` names the middle.

    Without ``has_norm`` the norm is the block's: the stream itself is normalised (ReCon, PointGPT).
    """

    def __init__(self, name: str, inner: nn.Module, channels: int, drop_path: float, has_norm: bool = True) -> None:
        super().__init__()
        self.inner, self.channels = name, channels
        self.norm = nn.LayerNorm(channels) if has_norm else nn.Identity()
        self.add_module(name, inner)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tokens) -> Tokens:
        tokens = getattr(self, self.inner)(tokens.but(feat=self.norm(tokens.feat)))
        return tokens.but(feat=self.drop_path(tokens.feat))


class Block(nn.Module):
    """x + position, + attention, + feed-forward: the position is added anew before every block."""

    attention: ClassVar[type[Attention]] = Attention
    feed_forward: ClassVar[type[MLP]] = MLP
    #: Whether the norms belong to the branches (mix, ffn).
    has_norm: ClassVar[tuple[bool, bool]] = (True, True)

    def __init__(self, config: PointViTConfig, drop_path: float) -> None:
        super().__init__()
        channels = self.channels = config.channels
        attn = self.attention(channels, config.heads, config.qkv_bias)
        mlp = self.feed_forward(channels, int(channels * config.mlp_ratio))
        self.mix = Branch("attn", attn, channels, drop_path, self.has_norm[0])
        self.ffn = Branch("mlp", mlp, channels, drop_path, self.has_norm[1])

    def forward(self, tokens: Tokens) -> Tokens:
        tokens = tokens.placed()
        tokens = tokens.plus(self.mix(tokens))
        return tokens.plus(self.ffn(tokens))


class PointViT(Backbone):
    """``forward(Point) -> Tokens``: the normed output of the last block. Reads coordinates alone.

    The class tokens are in ``fresh``: Point-MAE's checkpoints have none, and every published method trains them.
    """

    slots: ClassVar[dict[str, str]] = {
        "tokenizer": r"tokenizer",
        "embed": r"tokenizer\.embed",
        "pos": r"tokenizer\.pos",
        "block": r"blocks\.\d+",
        "mix": r"mix",
        "ffn": r"ffn",
        "norm1": r"mix\.norm",
        "attn": r"mix\.attn",
        "qkv": r"mix\.attn\.qkv",
        "proj": r"mix\.attn\.proj",
        "norm2": r"ffn\.norm",
        "mlp": r"ffn\.mlp",
        "fc1": r"ffn\.mlp\.fc1",
        "fc2": r"ffn\.mlp\.fc2",
        "final_norm": r"final_norm",
    }
    block: ClassVar[type[nn.Module]] = Block
    tokenizer_class: ClassVar[type[nn.Module]] = Tokenizer
    kind: ClassVar[str] = "tokens"
    reads: ClassVar[tuple[str, ...]] = ("cls", "max patch")
    #: Official key -> ours.
    renamed: ClassVar[list[tuple[str, str]]] = RENAMED

    def __init__(self, config: PointViTConfig) -> None:
        super().__init__()
        self.config = config
        self.in_channels, self.depth = 3, config.depth
        self.out_channels = config.channels
        self.tokenizer = self.tokenizer_class(config)
        self.cls = ClassTokens(config.cls_tokens, config.channels) if config.cls_tokens else nn.Identity()
        self.blocks = nn.ModuleList(self.block(config, rate) for rate in rising(config.drop_path, config.depth))
        self.final_norm = nn.LayerNorm(config.channels)
        self.fresh = ["cls"] if config.cls_tokens else []
        self.pyramid: nn.Module | None = None  # makes the tokens of dense frames where a task puts one
        self.apply(init_weights)

    def forward(self, point: Point) -> Tokens:  # type: ignore[override]
        *_, tokens = self.stages(point)
        return self.leave(tokens)

    def enter(self, point: Point) -> Tokens:
        """What goes into the first block."""
        if self.pyramid is not None:
            point = self.pyramid(point)
        return self.cls(self.tokenizer(point))

    def stages(self, point: Point) -> Iterator[Tokens]:
        """What leaves the blocks, one by one, before the final norm."""
        tokens = self.enter(point)
        for block in self.blocks:
            tokens = self.through(block, tokens)
            yield tokens

    def leave(self, tokens: Tokens) -> Tokens:
        return tokens.but(feat=self.final_norm(tokens.feat))

    def taps(self, point: Point, layers: Sequence[int]) -> list[Tokens]:
        """Normed outputs of the blocks ``layers`` (counted from 0), as part segmentation reads them."""
        return [self.leave(tokens) for index, tokens in enumerate(self.stages(point)) if index in layers]

    @classmethod
    def from_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A bare official state dict in our key names; entries without a counterpart here keep theirs."""
        found = {}
        for key, value in state.items():
            for pattern, new in cls.renamed:
                key = re.sub(pattern, new, key)
            found[key] = value.squeeze(-1) if value.ndim == 3 and key.startswith("tokenizer.embed.") else value
        return found


def init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
