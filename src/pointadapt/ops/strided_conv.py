"""Sparse convolution between two resolutions: the 2^3 (or s^3) voxels below a coarse one, and the way back.

    down   out[q] = b + sum over fine rows p in q of  W[:, d0, d1, d2, :] x[p],   d = p mod s, q = p // s
    up     out[p] = b + W[:, d0, d1, d2, :] x[q],                                 the fine rows that were there

Kernel = stride, no padding: every coarse voxel that holds a point is an output site, as in spconv's SparseConv3d and
SparseInverseConv3d. Weight layout [out, s, s, s, in], cross-correlation (a dense conv3d of that stride gives the same).
Rows that share a voxel (Mix3D makes them) all count on the way down and get the same on the way up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pointadapt.ops.sparse_conv import tap_conv, uses_triton
from pointadapt.ops.tap_map import TapMap, stride_map
from pointadapt.ops.tap_pairs import TapPairs
from pointadapt.ops.voxel import cloud_key, merge
from pointadapt.point import Point


def coarsen(point: Point, stride: int = 2) -> Point:
    """The voxels of ``stride`` times the size that hold points, cloud by cloud in the order of x, y, z.

    Coordinates are averaged; features [M, 0] are for the convolution to make. The result knows its ``parent`` and
    each of the parent's rows' place in it (``pooling_inverse``). Made once for a set of coordinates.
    """

    def make() -> Point:
        assert point.grid_coord is not None
        grid = point.grid_coord.long() // stride
        return merge(point, cloud_key(grid, point.batch)[0], grid, stride)

    made = point.remember(("coarse", stride), make)
    return made.but(parent=point, extra=point.extra)  # what is remembered holds coordinates alone


def links(fine: Point, coarse: Point, stride: int = 2) -> TapPairs | TapMap:
    """What coarse rows read of fine ones through the taps of the s^3 cube; once per set of coordinates.

    As pairs, or for Triton kernels as tables: either way what :func:`pointadapt.ops.sparse_conv.tap_conv` takes.
    """
    inverse = coarse.pooling_inverse
    assert inverse is not None

    def taps() -> Tensor:
        grid = fine.grid_coord
        assert grid is not None
        x, y, z = (grid.long() % stride).unbind(1)
        return (x * stride + y) * stride + z

    def make() -> TapPairs:
        tap = taps()
        order = tap.argsort(stable=True)
        found, start = [], 0
        for number, count in enumerate(torch.bincount(tap, minlength=stride**3).tolist()):
            rows = order[start : start + count]
            if count:
                found.append((number, inverse[rows], rows))
            start += count
        return TapPairs(found)

    if uses_triton(fine.feat):
        return fine.remember(("tap_links", stride), lambda: stride_map(taps(), inverse, len(coarse), stride**3))
    return fine.remember(("links", stride), make)


class Strided(nn.Module):
    """Weights of both directions, initialised as spconv does (kaiming uniform, a = sqrt 5)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, stride, stride, stride, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        bound = 1 / math.sqrt(stride**3 * in_channels)
        for value in (self.weight, self.bias):
            if value is not None:
                nn.init.uniform_(value, -bound, bound)


class DownConv3d(Strided):
    """``conv(point) -> Point`` of the coarse voxels; its features are the convolution of ``point.feat``."""

    def forward(self, point: Point) -> Point:
        coarse = coarsen(point, self.stride)
        feat = tap_conv(point.feat, self.weight, self.bias, links(point, coarse, self.stride), len(coarse))
        return coarse.but(feat=feat)


class UpConv3d(Strided):
    """``conv(coarse) -> [N, out]`` for the rows of ``coarse.parent``, the Point it was made from by a DownConv3d."""

    def forward(self, coarse: Point) -> Tensor:
        fine = coarse.parent
        assert fine is not None
        back = links(fine, coarse, self.stride).reversed()
        return tap_conv(coarse.feat, self.weight, self.bias, back, len(fine))
