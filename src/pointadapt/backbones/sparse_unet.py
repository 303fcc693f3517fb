"""SparseUNet: the sparse convolution U-Net of residual blocks that scenes were segmented with before transformers.

Graham et al., Submanifold Sparse Convolutional Networks (CVPR 2018); the form with 34 layers of blocks is MinkUNet-34's
(Choy et al., CVPR 2019) with the widths of Pointcept's SpUNet: a 5^3 stem, four levels below it, four back up with
skips. A second scene backbone with neither attention nor curves, on this package's own sparse convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone
from pointadapt.backbones.ptv3 import with_voxels
from pointadapt.backbones.ptv3_parts import BatchNorm
from pointadapt.ops.sparse_conv import SubMConv3d
from pointadapt.ops.strided_conv import DownConv3d, UpConv3d
from pointadapt.ops.voxel_rows import restore_rows, sort_rows
from pointadapt.point import Point

norm = partial(BatchNorm, eps=1e-3, momentum=0.01)


@dataclass(frozen=True)
class SparseUNetConfig:
    """Widths and depths; the defaults are those of the published 39.2 M parameters.

    base_channels              width of the stem, at full resolution
    enc_channels, enc_layers   of the levels below it, each half as fine as the one above
    dec_channels, dec_layers   of the way back, from the finest level on (as many as of the encoder)
    """

    in_channels: int = 9
    base_channels: int = 32
    enc_channels: tuple[int, ...] = (32, 64, 128, 256)
    enc_layers: tuple[int, ...] = (2, 3, 4, 6)
    dec_channels: tuple[int, ...] = (96, 96, 128, 256)
    dec_layers: tuple[int, ...] = (2, 2, 2, 2)

    def __post_init__(self) -> None:
        levels = len(self.enc_channels)
        for name in ("enc_layers", "dec_channels", "dec_layers"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"SparseUNetConfig.{name} needs {levels} entries, one per level of enc_channels")


class Convs(nn.Module):
    """conv 3^3, norm, ReLU, conv 3^3, norm: all that a block sees of other voxels."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv1, self.norm1 = SubMConv3d(in_channels, channels, bias=False), norm(channels)
        self.conv2, self.norm2 = SubMConv3d(channels, channels, bias=False), norm(channels)

    def forward(self, point: Point) -> Point:
        point = point.but(feat=self.conv1(point))
        point = point.but(feat=self.norm1(point).relu())
        point = point.but(feat=self.conv2(point))
        return point.but(feat=self.norm2(point))


class Mix(nn.Module):
    """The block's one residual branch. It holds nothing but ``convs``: methods that put one adapter beside a local
    operation and another beside a global one find two places."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.convs = Convs(in_channels, channels)

    def forward(self, point: Point) -> Point:
        return self.convs(point)


class Project(nn.Module):
    """1^3 convolution and norm, where a block changes the width of its stream."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(in_channels, channels, bias=False), norm(channels)

    def forward(self, point: Point) -> Point:
        return point.but(feat=self.norm(point.but(feat=self.linear(point.feat))))


class Block(nn.Module):
    """relu(x + mix(x)), x projected where the width changes."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mix = Mix(in_channels, channels)
        self.skip = None if in_channels == channels else Project(in_channels, channels)

    def forward(self, point: Point) -> Point:
        stream = point if self.skip is None else self.skip(point)
        point = stream.plus(self.mix(point))
        return point.but(feat=point.feat.relu())


class Down(nn.Module):
    """conv 2^3 of stride 2, norm, ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = DownConv3d(in_channels, channels, bias=False), norm(channels)

    def forward(self, point: Point) -> Point:
        point = self.conv(point)
        return point.but(feat=self.norm(point).relu())


class Up(nn.Module):
    """Back to the voxels above: inverse conv 2^3, norm, ReLU; what came down from there stands behind it."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = UpConv3d(in_channels, channels, bias=False), norm(channels)

    def forward(self, point: Point) -> Point:
        above = point.parent
        assert above is not None
        feat = self.norm(above.but(feat=self.conv(point))).relu()
        return above.but(feat=torch.cat([feat, above.feat], 1), extra=point.extra)


class Stem(nn.Module):
    """conv 5^3, norm, ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = SubMConv3d(in_channels, channels, kernel_size=5, bias=False), norm(channels)

    def forward(self, point: Point) -> Point:
        point = point.but(feat=self.conv(point))
        return point.but(feat=self.norm(point).relu())


class Level(nn.Module):
    """Blocks at one resolution, after ``down`` (encoder) or ``up`` (decoder)."""

    down: Down | None
    up: Up | None

    def __init__(self, blocks: list[Block], down: Down | None = None, up: Up | None = None) -> None:
        super().__init__()
        self.down, self.up = down, up
        self.blocks = nn.ModuleList(blocks)


class SparseUNet(Backbone):
    """The network; ``forward`` returns features of the input's own voxels."""

    kind: ClassVar[str] = "voxels"
    slots: ClassVar[dict[str, str]] = {
        "block": r"(enc|dec)\.\d+\.blocks\.\d+",
        # The first block behind an up convolution changes its width: no adapter can stand beside it.
        "mix": r"(enc\.\d+\.blocks\.\d+|dec\.\d+\.blocks\.[1-9]\d*)\.mix",
        "convs": r"(enc\.\d+\.blocks\.\d+|dec\.\d+\.blocks\.[1-9]\d*)\.mix\.convs",
        "conv1": r"convs\.conv1",
        "conv2": r"convs\.conv2",
        "norm1": r"convs\.norm1",
        "norm2": r"convs\.norm2",
    }

    def __init__(self, config: SparseUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.stem = Stem(config.in_channels, config.base_channels)
        above = (config.base_channels, *config.enc_channels)
        self.enc, self.dec = nn.ModuleList(), nn.ModuleList()
        for s, (width, layers) in enumerate(zip(config.enc_channels, config.enc_layers, strict=True)):
            self.enc.append(Level([Block(width, width) for _ in range(layers)], down=Down(above[s], width)))
        below = (*config.dec_channels[1:], config.enc_channels[-1])
        for s, (width, layers) in enumerate(zip(config.dec_channels, config.dec_layers, strict=True)):
            blocks = [Block(width if i else width + above[s], width) for i in range(layers)]
            self.dec.append(Level(blocks, up=Up(below[s], width)))
        self.out_channels = self.dense_channels = config.dec_channels[0]
        for module in self.modules():
            if isinstance(module, nn.Linear | SubMConv3d):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, point: Point) -> Point:
        given = with_voxels(point, whole_batch=False)
        point, place = sort_rows(given)
        point = self.stem(point)
        for level in cast(list[Level], [*self.enc, *reversed(self.dec)]):
            for change in (level.down, level.up):
                point = point if change is None else change(point)
            for block in level.blocks:
                point = self.through(block, point)
        return restore_rows(point, given, place)

    def dense(self, point: Point) -> Tensor:
        """[N, dense_channels]."""
        return self(point).feat
