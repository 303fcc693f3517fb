"""Small parts of PTv3: norms that take a Point, drop path, layer scale, relative and rotary positions."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.point import Point

if TYPE_CHECKING:
    from pointadapt.backbones.ptv3 import PTv3Config


class LayerNorm(nn.LayerNorm):
    """norm(point) -> [N, C]"""

    def forward(self, point: Point) -> Tensor:  # type: ignore[override]
        return super().forward(point.feat)


class BatchNorm(nn.BatchNorm1d):
    """norm(point) -> [N, C]"""

    def forward(self, point: Point) -> Tensor:  # type: ignore[override]
        return super().forward(point.feat)


class NoNorm(nn.Module):
    """norm(point) -> its features as they are"""

    def forward(self, point: Point) -> Tensor:
        return point.feat


class PDNorm(nn.Module):
    """Prompt-driven norm of PPT: one norm per data set (``decouple``), chosen by ``point.condition``.

    adaptive: scaled and shifted by a linear function of ``point.extra["context"]`` [1 or N, 256].
    """

    def __init__(
        self, make, channels: int, conditions: tuple[str, ...], decouple: bool, adaptive: bool, context_channels=256
    ) -> None:
        super().__init__()
        self.conditions, self.decouple = conditions, decouple
        self.norm = nn.ModuleList(make(channels) for _ in conditions) if decouple else make(channels)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(context_channels, 2 * channels)) if adaptive else None

    def forward(self, point: Point) -> Tensor:
        if not self.decouple:
            feat = self.norm(point)
        elif point.condition in self.conditions:
            feat = self.norm[self.conditions.index(point.condition)](point)
        else:
            raise UserError(
                f"this backbone normalises per data set and needs Point.condition to be one of "
                f"{', '.join(self.conditions)}; got {point.condition!r}"
            )
        if self.modulation is not None:
            shift, scale = self.modulation(point.extra["context"]).chunk(2, dim=1)
            feat = feat * (1 + scale) + shift
        return feat


def norm_maker(config: PTv3Config, place: str):
    """channels -> norm module for ``place`` "stem", "pool" or "block".

    Blocks have LayerNorm; stem and poolings have BatchNorm (eps 1e-3, momentum 0.01) in m1, LayerNorm in m2.
    """
    batch = config.generation == "m1" and place != "block"
    driven = config.pdnorm_bn if batch else config.pdnorm_ln
    affine = config.pdnorm_affine or not driven
    make = (
        partial(BatchNorm, eps=1e-3, momentum=0.01, affine=affine)
        if batch
        else partial(LayerNorm, elementwise_affine=affine)
    )
    if not driven:
        return make
    return lambda channels: PDNorm(
        make, channels, config.pdnorm_conditions, config.pdnorm_decouple, config.pdnorm_adaptive
    )


class LayerScale(nn.Module):
    """Elementwise gamma [C], starting at ``init``."""

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), float(init)))

    def forward(self, feat: Tensor) -> Tensor:
        return feat * self.gamma


class RelativePosition(nn.Module):
    """Learned bias for the clamped difference of grid coordinates, summed over the axes (S3DIS models)."""

    def __init__(self, patch_size: int, heads: int) -> None:
        super().__init__()
        self.bound = int((4 * patch_size) ** (1 / 3) * 2)  # the official float expression: 128 -> 15, 1024 -> 31
        self.rpe_table = nn.Parameter(torch.empty(3 * (2 * self.bound + 1), heads))
        nn.init.trunc_normal_(self.rpe_table, std=0.02)

    def forward(self, grid: Tensor) -> Tensor:
        """grid [P, W, 3] -> [P, H, W, W]"""
        relative = (grid[:, :, None] - grid[:, None]).clamp(-self.bound, self.bound) + self.bound
        rows = relative + torch.arange(3, device=grid.device) * (2 * self.bound + 1)
        return self.rpe_table[rows].sum(3).permute(0, 3, 1, 2)


class Rotary(nn.Module):
    """Rotary positions from metric coordinates: a third of each head per axis, half-split pairs (Utonia)."""

    inv_freq: Tensor

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        if head_dim % 6:
            raise ValueError(f"rotary positions need a head width divisible by 6, got {head_dim}")
        third = head_dim // 3
        self.register_buffer("inv_freq", base ** -(torch.arange(0, third, 2).float() / third))

    def forward(self, qkv: Tensor, coord: Tensor, heads: int) -> Tensor:
        """Turn queries and keys of qkv [N, 3C] by angles coord * inv_freq; values stay."""
        angle = coord[:, :, None].float() * self.inv_freq  # [N, 3, D / 6]
        angle = torch.cat([angle, angle], 2).flatten(1)[:, None, None]  # [N, 1, 1, D]
        parts = qkv.view(len(qkv), 3, heads, qkv.shape[1] // (3 * heads))  # -1 would fail on no points
        turned, values = parts[:, :2], parts[:, 2:]
        pairs = turned.unflatten(-1, (3, 2, -1))  # [..., axis, half, D / 6]
        rotated = torch.stack([-pairs[..., 1, :], pairs[..., 0, :]], -2).flatten(-3)
        turned = turned * angle.cos().to(qkv.dtype) + rotated * angle.sin().to(qkv.dtype)
        return torch.cat([turned, values], 1).view_as(qkv)
