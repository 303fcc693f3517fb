"""Point Transformer V3 and its pretrained descendants (Sonata, Concerto, Utonia, PPT) as one network.

What differs between the official packages is a field of :class:`PTv3Config`; quirks and key names are
theirs. A block is a sum of branches, so that methods can stand beside each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone
from pointadapt.backbones.drop_path import DropPath, rising
from pointadapt.backbones.ptv3_parts import LayerScale, NoNorm, RelativePosition, Rotary, norm_maker
from pointadapt.ops.attention import window_attention, windows
from pointadapt.ops.frozen import by_rows, no_graph
from pointadapt.ops.levels import Levels
from pointadapt.ops.order import cloud_code, cloud_depths, depths
from pointadapt.ops.segment import segment_max
from pointadapt.ops.sparse_conv import SubMConv3d
from pointadapt.ops.voxel import cloud_key, merge
from pointadapt.ops.voxel_rows import restore_rows, sort_rows
from pointadapt.point import Point


@dataclass(frozen=True)
class PTv3Config:
    """Everything that decides the network; field names are the official ones where there is one.

    generation      "m1": classic PTv3 (5^3 conv stem, BatchNorm, curve pooling); "m2": Sonata and later
    dec_depths      empty = encoder only
    rope_base       None = no rotary positions (m1, m2)
    legacy          checkpoints from before 2024-03-26: a CPE reads the previous block's MLP branch, and curves
                    are one bit shallower where the largest coordinate is 2^k - 1
    window_layout   "flash": fixed windows; "shrink": windows shrink to the batch's smallest cloud
    compat          "clean": per-cloud curves, unshuffled in eval; "official": batch-wide curve depth,
                    orders shuffled in eval too
    """

    in_channels: int = 9
    order: tuple[str, ...] = ("z", "z-trans", "hilbert", "hilbert-trans")
    stride: tuple[int, ...] = (2, 2, 2, 2)
    enc_depths: tuple[int, ...] = (3, 3, 3, 12, 3)
    enc_channels: tuple[int, ...] = (48, 96, 192, 384, 512)
    enc_num_head: tuple[int, ...] = (3, 6, 12, 24, 32)
    enc_patch_size: tuple[int, ...] = (1024, 1024, 1024, 1024, 1024)
    dec_depths: tuple[int, ...] = ()
    dec_channels: tuple[int, ...] = ()
    dec_num_head: tuple[int, ...] = ()
    dec_patch_size: tuple[int, ...] = ()
    mlp_ratio: float = 4
    qkv_bias: bool = True
    qk_scale: float | None = None
    attn_drop: float = 0.0
    proj_drop: float = 0.0
    drop_path: float = 0.3
    pre_norm: bool = True
    layer_scale: float | None = None
    mask_token: bool = False
    shuffle_orders: bool = True
    enable_rpe: bool = False
    rope_base: float | None = None
    dec_rope_enable: bool = True
    pdnorm_bn: bool = False
    pdnorm_ln: bool = False
    pdnorm_decouple: bool = True
    pdnorm_adaptive: bool = False
    pdnorm_affine: bool = True
    pdnorm_conditions: tuple[str, ...] = ("ScanNet", "S3DIS", "Structured3D")
    generation: Literal["m1", "m2"] = "m2"
    legacy: bool = False
    window_layout: Literal["flash", "shrink"] = "flash"
    compat: Literal["clean", "official"] = "clean"

    def __post_init__(self) -> None:
        stages = len(self.enc_depths)
        for name in ("enc_channels", "enc_num_head", "enc_patch_size"):
            if len(getattr(self, name)) != stages:
                raise ValueError(f"PTv3Config.{name} needs {stages} entries, one per encoder stage")
        if len(self.stride) != stages - 1:
            raise ValueError(f"PTv3Config.stride needs {stages - 1} entries, one per pooling")
        for name in ("dec_depths", "dec_channels", "dec_num_head", "dec_patch_size"):
            if self.dec_depths and len(getattr(self, name)) != stages - 1:
                raise ValueError(f"PTv3Config.{name} needs {stages - 1} entries, one per decoder stage")


class Embedding(nn.Module):
    """Stem: Linear (m2) or 5^3 submanifold convolution (m1), norm, GELU; then masked rows get the mask token."""

    def __init__(self, config: PTv3Config) -> None:
        super().__init__()
        channels = config.enc_channels[0]
        self.is_conv = config.generation == "m1"
        if self.is_conv:
            self.conv = SubMConv3d(config.in_channels, channels, kernel_size=5, bias=False)
        else:
            self.linear = nn.Linear(config.in_channels, channels)
        self.norm = norm_maker(config, "stem")(channels)
        self.mask_token = nn.Parameter(torch.zeros(1, channels)) if config.mask_token else None

    def forward(self, point: Point) -> Point:
        feat = self.conv(point) if self.is_conv else self.linear(point.feat)
        feat = F.gelu(self.norm(point.but(feat=feat)))
        if point.mask is not None and self.mask_token is not None:
            feat = torch.where(point.mask[:, None], self.mask_token.to(feat.dtype), feat)
        return point.but(feat=feat)


class CPE(nn.Module):
    """Conditional position encoding: submanifold 3^3 convolution, Linear, LayerNorm."""

    def __init__(self, config: PTv3Config, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = SubMConv3d(channels, channels)
        self.linear = nn.Linear(channels, channels)
        self.norm = norm_maker(config, "block")(channels)

    def forward(self, point: Point) -> Point:
        # In m1 the convolution does not always see the residual stream (quirks 4 and 5).
        seen = point.but(feat=point.extra.get("conv_feat", point.feat))
        feat = self.linear(self.conv(seen))
        return point.but(feat=self.norm(point.but(feat=feat)))


class Attention(nn.Module):
    """Serialized window attention: dense softmax attention inside disjoint windows along the block's curve."""

    def __init__(self, config: PTv3Config, channels: int, heads: int, patch_size: int, rope: bool) -> None:
        super().__init__()
        self.channels, self.heads, self.patch_size = channels, heads, patch_size
        self.scale = config.qk_scale
        self.shrink = config.window_layout == "shrink"
        self.qkv = nn.Linear(channels, 3 * channels, bias=config.qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.attn_drop, self.drop = config.attn_drop, nn.Dropout(config.proj_drop)
        self.rpe = RelativePosition(patch_size, heads) if config.enable_rpe else None
        self.rope = Rotary(channels // heads, config.rope_base) if rope and config.rope_base else None

    def forward(self, point: Point, prompt: tuple[Tensor, Tensor] | None = None) -> Point:
        """prompt: further keys and values, each [T, C] or one set per cloud [B, T, C], that every window sees."""
        qkv = self.qkv(point.feat)
        if self.rope is not None:
            qkv = self.rope(qkv, point.coord, self.heads)
        grid = point.grid_coord
        assert grid is not None
        feat = window_attention(
            qkv,
            self.heads,
            windows(point, point.extra["curve"], self.patch_size, self.shrink),
            scale=self.scale,
            bias=None if self.rpe is None else lambda members: self.rpe(grid[members]),
            prompt=prompt,
            batch=point.batch,
            dropout=self.attn_drop if self.training else 0.0,
        )
        return point.but(feat=self.drop(self.proj(feat)))


class Mix(nn.Module):
    """Attention branch: norm, attention, layer scale, drop path."""

    def __init__(self, attn: Attention, norm: nn.Module, scale: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm, self.attn, self.scale, self.drop_path = norm, attn, scale, DropPath(drop_path)

    def forward(self, point: Point) -> Point:
        point = self.attn(point.but(feat=self.norm(point)))
        return point.but(feat=self.drop_path(self.scale(point.feat)))


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, channels: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.channels = channels
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, point: Point) -> Point:
        plain = type(self.fc1) is type(self.fc2) is nn.Linear  # an adapter may want to see all rows at once
        if plain and no_graph(point.feat, self) and not (self.training and self.drop.p):
            return point.but(feat=by_rows(self.rows, point.feat, self.fc1.out_features))
        return point.but(feat=self.rows(point.feat))

    def rows(self, feat: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(feat)))))


class FFN(nn.Module):
    """Feed-forward branch: norm, MLP, layer scale, drop path."""

    def __init__(self, mlp: MLP, channels: int, norm: nn.Module, scale: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.channels = channels
        self.norm, self.mlp, self.scale, self.drop_path = norm, mlp, scale, DropPath(drop_path)

    def forward(self, point: Point) -> Point:
        point = self.mlp(point.but(feat=self.norm(point)))
        return point.but(feat=self.drop_path(self.scale(point.feat)))


class Block(nn.Module):
    """x + CPE(x), + attention, + feed-forward. ``index`` is the block's place in its stage: it picks the curve."""

    def __init__(
        self, config: PTv3Config, channels: int, heads: int, patch_size: int, drop_path: float, index: int, rope: bool
    ) -> None:
        super().__init__()
        self.index = index
        self.legacy = config.legacy and config.pre_norm
        norm = norm_maker(config, "block")

        def scale() -> nn.Module:
            return nn.Identity() if config.layer_scale is None else LayerScale(channels, config.layer_scale)

        def before() -> nn.Module:
            return norm(channels) if config.pre_norm else NoNorm()

        def after() -> nn.Module:
            return NoNorm() if config.pre_norm else norm(channels)

        self.cpe = CPE(config, channels)
        self.mix = Mix(Attention(config, channels, heads, patch_size, rope), before(), scale(), drop_path)
        self.norm1 = after()
        mlp = MLP(channels, int(channels * config.mlp_ratio), config.proj_drop)
        self.ffn = FFN(mlp, channels, before(), scale(), drop_path)
        self.norm2 = after()

    def forward(self, point: Point) -> Point:
        point = with_state(point, curve=point.curves[self.index % len(point.curves)])
        point = with_state(point.plus(self.cpe(point)), conv_feat=None)
        point = point.plus(self.mix(point))
        point = point.but(feat=self.norm1(point))
        branch = self.ffn(point)
        point = point.plus(branch)
        if self.legacy:  # the next block's convolution reads this branch, not the residual stream
            point = with_state(point, conv_feat=branch.feat)
        return point.but(feat=self.norm2(point))


def with_state(point: Point, **changes) -> Point:
    """The point with entries of ``extra`` set, or taken out where the value is None."""
    extra = {**point.extra, **changes}
    return point.but(extra={k: v for k, v in extra.items() if v is not None})


class Pooling(nn.Module):
    """Voxels of ``stride`` times the size: Linear, maximum over members, norm, GELU; coordinates are averaged.

    m2 divides grid coordinates by any stride and orders pooled rows by (cloud, x, y, z); m1 shifts curve codes,
    so its stride is a power of two and rows come in curve order.
    """

    def __init__(self, config: PTv3Config, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.by_curve = stride, config.generation == "m1"
        if self.by_curve and stride not in (2, 4, 8):
            raise ValueError(f"classic PTv3 pools by 2, 4 or 8, not {stride}")
        self.proj = nn.Linear(in_channels, channels)
        self.norm = norm_maker(config, "pool")(channels)

    def forward(self, point: Point) -> Point:
        assert point.grid_coord is not None
        cache = {}
        if self.by_curve:
            bits = self.stride.bit_length() - 1
            depth = depths(point)
            shift = torch.where(depth >= bits, bits, 0)  # a cloud shallower than the stride is not pooled
            grid = point.grid_coord.long() >> shift[point.batch][:, None]
            # Codes of the coarser curve are the fine codes without their last bits, so sort those.
            coarse = point.but(grid_coord=grid, cache={"depths": depth - shift, "counts": point.counts})
            key = cloud_code(coarse, point.curves[0])
            cache["depths"] = depth - shift
        else:
            grid = point.grid_coord.long() // self.stride
            key, _ = cloud_key(grid, point.batch)
        child = merge(point, key, grid, self.stride)
        assert child.pooling_inverse is not None
        child = child.but(
            feat=segment_max(self.proj(point.feat), child.pooling_inverse, len(child)),
            parent=point,
            extra=with_state(point, conv_feat=None).extra,
            cache=cache,
        )
        return child.but(feat=F.gelu(self.norm(child)))


class Unpooling(nn.Module):
    """Back to the parent: its projected features plus those of the pooled voxel each of its points fell into."""

    def __init__(self, config: PTv3Config, in_channels: int, skip_channels: int, channels: int) -> None:
        super().__init__()
        self.classic = config.generation == "m1"
        self.proj, self.norm = nn.Linear(in_channels, channels), norm_maker(config, "pool")(channels)
        self.skip_proj, self.skip_norm = nn.Linear(skip_channels, channels), norm_maker(config, "pool")(channels)

    def forward(self, point: Point) -> Point:
        parent = point.parent
        assert parent is not None and point.pooling_inverse is not None
        up = F.gelu(self.norm(point.but(feat=self.proj(point.feat))))
        skip = F.gelu(self.skip_norm(parent.but(feat=self.skip_proj(parent.feat))))
        # m1's first decoder convolution sees the skip branch alone.
        state = with_state(point, conv_feat=skip if self.classic else None).extra
        return parent.but(feat=skip + up.index_select(0, point.pooling_inverse), extra=state)


class Stage(nn.Module):
    """Blocks at one resolution, after a pooling (encoder) or an unpooling (decoder)."""

    down: Pooling | None
    up: Unpooling | None

    def __init__(self, blocks: list[Block], down: Pooling | None = None, up: Unpooling | None = None) -> None:
        super().__init__()
        self.down, self.up = down, up
        self.blocks = nn.ModuleList(blocks)


class PTv3(Backbone):
    """The network. ``forward`` returns the deepest stage, or the decoder's end when there is a decoder.

    ``draw`` decides the curves of a level: a function from their number to a permutation. It is used in training
    (``shuffle_orders``) and, with ``compat="official"``, in eval as well.
    """

    slots: ClassVar[dict[str, str]] = {
        "block": r"(enc|dec)\.\d+\.blocks\.\d+",
        "cpe": r"cpe",
        "mix": r"mix",
        "ffn": r"ffn",
        "norm1": r"mix\.norm",
        "norm2": r"ffn\.norm",
        "attn": r"mix\.attn",
        "qkv": r"mix\.attn\.qkv",
        "proj": r"mix\.attn\.proj",
        "mlp": r"ffn\.mlp",
        "fc1": r"ffn\.mlp\.fc1",
        "fc2": r"ffn\.mlp\.fc2",
    }

    def __init__(self, config: PTv3Config) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.draw: Callable[[int], Tensor] = torch.randperm
        self.embedding = Embedding(config)
        widths, stages = config.enc_channels, range(len(config.enc_depths))
        rates = rising(config.drop_path, sum(config.enc_depths))
        self.enc = nn.ModuleList()
        for s in stages:
            down = Pooling(config, widths[s - 1], widths[s], config.stride[s - 1]) if s else None
            shape = (widths[s], config.enc_num_head[s], config.enc_patch_size[s])
            blocks = [Block(config, *shape, rates.pop(0), i, rope=True) for i in range(config.enc_depths[s])]
            self.enc.append(Stage(blocks, down=down))
        self.out_channels = widths[-1]
        self.dense_channels = sum(widths)
        self.dec = nn.ModuleList()
        if config.dec_depths:
            rates = rising(config.drop_path, sum(config.dec_depths))
            below = [*config.dec_channels[1:], widths[-1]]
            for s in range(len(config.dec_depths)):
                width = config.dec_channels[s]
                part, rates = rates[: config.dec_depths[s]][::-1], rates[config.dec_depths[s] :]
                shape = (width, config.dec_num_head[s], config.dec_patch_size[s])
                rope = config.dec_rope_enable
                blocks = [Block(config, *shape, rate, i, rope=rope) for i, rate in enumerate(part)]
                self.dec.append(Stage(blocks, up=Unpooling(config, below[s], widths[s], width)))
            self.out_channels = self.dense_channels = config.dec_channels[0]
        if config.generation == "m2":
            self.apply(init_truncated)

    def forward(self, point: Point) -> Point:
        official = self.config.compat == "official"
        given = with_voxels(point, official)
        if official or self.config.legacy:  # curves of other depths than those that the caller's point may remember
            given = given.but(cache={})
        # "official" keeps the given order, so that what passes inside can be compared row by row, too
        point, place = (given, None) if official else sort_rows(given)
        point = self.embedding(self.serialize(point))
        for stage in cast(list[Stage], [*self.enc, *reversed(self.dec)]):
            if stage.down is not None:
                point = self.serialize(stage.down(point))
            if stage.up is not None:
                point = stage.up(point)
            for block in stage.blocks:
                point = self.through(block, point)
        point = with_state(point, conv_feat=None)
        return point if place is None else restore_rows(point, given, place)

    def dense(self, point: Point) -> Tensor:
        """[N, dense_channels]: the decoder's features, or all encoder levels brought up and concatenated."""
        point = self(point)
        return point.feat if self.dec else upcast(point)

    def levels(self, point: Point) -> Levels:
        """As ``dense``, without copies of coarse features."""
        if self.dec:
            return super().levels(point)
        out = self(point)
        feats, inverse = [out.feat], []
        while out.parent is not None:
            inverse.append(out.pooling_inverse)
            out = out.parent
            feats.append(out.feat)
        return Levels(feats[::-1], inverse[::-1])

    def serialize(self, point: Point) -> Point:
        """Choose the curves of this level; set the official, batch-wide curve depth where it is asked for."""
        official, legacy = self.config.compat == "official", self.config.legacy
        if (official or legacy) and "depths" not in point.cache:
            point.cache["depths"] = cloud_depths(point, shared=official, margin=0 if legacy else 1)
        # m1 pools the codes it has, so a shuffle permutes the rows of the level above; m2 starts from its list again.
        above = point.parent if self.config.generation == "m1" else None
        curves = self.config.order if above is None else above.curves
        # Officially the switch reaches the first level only: poolings shuffle always, in eval as well.
        wanted = self.config.shuffle_orders or (official and point.parent is not None)
        if wanted and (official or self.training):
            curves = tuple(curves[i] for i in self.draw(len(curves)).tolist())
        return point.but(curves=curves)


def with_voxels(point: Point, whole_batch: bool) -> Point:
    """The point with grid coordinates: its own, or floor((coord - min) / grid_size), min of each cloud.

    Raises ValueError when both grid_coord and grid_size are missing, or when a grid coordinate is negative.
    """
    if point.grid_coord is None:
        if point.grid_size is None:
            raise ValueError("Point needs grid_coord, or grid_size to make it from coord")
        low = point.coord.new_full((point.num_clouds, 3), torch.inf)
        low.scatter_reduce_(0, point.batch[:, None].expand(-1, 3), point.coord, "amin")
        if whole_batch:
            low = low.amin(0, keepdim=True).expand_as(low)
        grid = ((point.coord - low[point.batch]) / point.grid_size).floor().long()
        point = point.but(grid_coord=grid)
    elif len(point) and int(point.grid_coord.min()) < 0:
        raise ValueError("Point.grid_coord must not be negative: subtract each cloud's minimum")
    return point


def upcast(point: Point, levels: int | None = None) -> Tensor:
    """[N, sum of widths]: features of a pooled Point brought up its chain of parents and concatenated behind theirs.

    levels: how many levels are concatenated, counted from the deepest; above them features are only copied
    (the probing recipe of Sonata: all levels for the linear head, 2 for pictures).
    """
    feat, left = point.feat, levels
    while point.parent is not None:
        assert point.pooling_inverse is not None
        feat = feat.index_select(0, point.pooling_inverse)
        if left is None or left > 0:
            feat = torch.cat([point.parent.feat, feat], 1)
        left = None if left is None else left - 1
        point = point.parent
    return feat


def init_truncated(module: nn.Module) -> None:
    """Initialisation of m2 and later: truncated normal, std 0.02, zero biases."""
    if isinstance(module, nn.Linear | SubMConv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
