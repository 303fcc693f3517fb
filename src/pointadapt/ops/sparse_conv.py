"""Submanifold 3D convolution: output sites = input sites, sums over the occupied voxels of a k^3 cube.

    out[p] = b + sum_k W[:, k0, k1, k2, :] x[p + (k0 - r, k1 - r, k2 - r)],  r = k // 2, same cloud only

Cross-correlation, k-axes in the column order of grid_coord, weight layout [out, k, k, k, in] as in spconv 2.
Checkpoint keys therefore load without a transpose.
"""

from __future__ import annotations

import importlib.util
import math
import os
import warnings
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pointadapt.errors import UserError
from pointadapt.ops.frozen import eager_cpu
from pointadapt.ops.tap_map import TapMap
from pointadapt.ops.tap_pairs import Pairs, TapPairs
from pointadapt.ops.voxel import cloud_key
from pointadapt.point import Point


@cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def triton_works(device: torch.device) -> bool:
    """Whether a kernel finds the neighbours of three voxels on ``device``: triton also needs a C compiler there.

    Tried once; a warning tells why it does not.
    """
    try:
        from pointadapt.ops.triton_conv import make_subm_map

        line = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 2]], device=device)
        three = Point(line.float(), line.float(), torch.tensor([3], device=device), line)
        return int((make_subm_map(three, 3).there.sources >= 0).sum()) == 7
    except Exception as error:  # of a compiler, a driver, a version of triton: each has its own
        warnings.warn(f"PyTorch computes sparse convolutions, Triton cannot: {error}", RuntimeWarning, stacklevel=2)
        return False


def uses_triton(feat: Tensor) -> bool:
    """Whether convolutions of ``feat`` run as Triton kernels: on GPUs since Ampere where triton is installed and works.

    The environment variable POINTADAPT_CONV decides it: "torch" never, "triton" always (an error where it cannot be;
    on the CPU triton needs TRITON_INTERPRET=1), "auto" or unset as above.
    """
    wish = os.environ.get("POINTADAPT_CONV", "auto")
    if wish not in ("auto", "torch", "triton"):
        raise UserError(f"POINTADAPT_CONV={wish} is none of auto, torch, triton: set one of these, or unset it")
    if wish == "triton" and not has_triton():
        raise UserError("POINTADAPT_CONV=triton, but triton is not installed: pip install triton, or unset it")
    known = feat.dtype in (torch.float32, torch.float16, torch.bfloat16)
    if wish == "auto":
        modern = feat.is_cuda and torch.cuda.get_device_capability(feat.device) >= (8, 0)
        return known and modern and has_triton() and triton_works(feat.device)
    return known and wish == "triton"


def neighbors(point: Point, kernel_size: int = 3) -> TapPairs | TapMap:
    """The rows that each tap connects; once per set of coordinates, shared by all blocks of a stage.

    Pairs for PyTorch, tables for Triton kernels (:func:`uses_triton`): whatever :func:`subm_conv` takes.

    Duplicate voxels (Mix3D makes them) are defined: the centre tap is a row's own features, every other
    tap reads the first row of the neighbouring voxel.
    """
    if uses_triton(point.feat):
        from pointadapt.ops.triton_conv import subm_map

        return subm_map(point, kernel_size)
    return point.remember(("neighbors", kernel_size), lambda: make_neighbors(point, kernel_size))


def make_neighbors(point: Point, kernel_size: int) -> TapPairs:
    """See :func:`neighbors`; the centre tap is left out. Raises ValueError for an even kernel."""
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    grid = point.grid_coord
    assert grid is not None
    if len(grid) == 0:
        return TapPairs([])
    radius = kernel_size // 2
    key, strides = cloud_key(grid, point.batch, radius)
    ordered, rows = key.sort(stable=True)
    voxels, counts = ordered.unique_consecutive(return_counts=True)
    duplicates = len(voxels) < len(key)
    if duplicates:
        rows = rows[counts.cumsum(0) - counts]  # the first of each voxel
    taps = kernel_size**3
    found: Pairs = []
    for column, (x, y) in enumerate(product(range(-radius, radius + 1), repeat=2)):
        wanted = key + (x * strides[0] + y * strides[1] - radius)
        place = torch.searchsorted(voxels, wanted)
        for tap in range(column * kernel_size, (column + 1) * kernel_size):
            if tap >= taps // 2 and not duplicates:
                return TapPairs(found, mirrored=True)  # opposite taps connect the same pairs the other way round
            there = voxels[place.clamp(max=len(voxels) - 1)] == wanted
            written = there.nonzero()[:, 0]
            if len(written) and tap != taps // 2:
                written, read = written.int(), rows[place[written]].int()
                found.append((tap, written, read))
                if not duplicates:
                    found.append((taps - 1 - tap, read, written))
            wanted, place = wanted + 1, place + there  # the next voxel up: at the next place, if this one was there
    return TapPairs(found)


def add_taps(out: Tensor, feat: Tensor, taps: Tensor, links: TapPairs) -> None:
    """Add what the taps [out, k^3, in] make of feat to ``out``, which is float32 at least.

    Sums of 16-bit numbers would lose what further taps add.
    """
    weights = taps.transpose(0, 2).unbind(1)  # [in, out] of each tap
    if not eager_cpu(feat):
        for tap, written, read in links.pairs:
            out.index_add_(0, written, (feat.index_select(0, read) @ weights[tap]).to(out.dtype))
        return
    most = max((len(block.read) for block in links.blocks), default=0)
    gathered, products = feat.new_empty(most, feat.shape[1]), feat.new_empty(most, out.shape[1])
    for block in links.blocks:
        rows = torch.index_select(feat, 0, block.read, out=gathered[: len(block.read)])
        product = products[: len(block.read)]
        for tap, part, into in zip(block.taps, rows.split(block.sizes), product.split(block.sizes), strict=True):
            torch.mm(part, weights[tap], out=into)
        sums = F.embedding_bag(block.order, product.to(out.dtype), block.offsets, mode="sum")
        out[block.first : block.first + len(sums)] += sums


def add_weight_gradient(grad_taps: Tensor, grad: Tensor, feat: Tensor, links: TapPairs) -> None:
    """Add every tap's sum over its pairs of grad[written] x feat[read] to ``grad_taps`` [out, k^3, in]."""
    if not eager_cpu(feat):
        for tap, written, read in links.pairs:
            grad_taps[:, tap] += grad.index_select(0, written).T @ feat.index_select(0, read)
        return
    for block in links.blocks:
        outer, inner = grad.index_select(0, block.written), feat.index_select(0, block.read)
        for tap, a, b in zip(block.taps, outer.split(block.sizes), inner.split(block.sizes), strict=True):
            grad_taps[:, tap] += a.T @ b


def start(feat: Tensor, taps: Tensor, rows: int | None) -> Tensor:
    """What :func:`add_taps` adds to: zeros [rows, out], or the centre tap of each row's own features."""
    wide = torch.promote_types(feat.dtype, torch.float32)
    if rows is None:
        return (feat @ taps[:, taps.shape[1] // 2].T).to(wide)
    return feat.new_zeros(rows, len(taps), dtype=wide)


class PairConvolution(torch.autograd.Function):
    """Gather, GEMM, sum per tap onto ``rows`` rows. Keeps only its inputs for the backward pass.

    rows None: onto those of the input, each of which reads itself through the centre tap, which ``links`` lack.
    """

    @staticmethod
    def forward(ctx, feat: Tensor, weight: Tensor, links: TapPairs, rows: int | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(feat if ctx.needs_input_grad[1] else None, weight)  # a frozen weight asks for no input
        ctx.links, ctx.sources = links, None if rows is None else len(feat)
        taps = weight.flatten(1, 3)  # [out, k^3, in]
        out = start(feat, taps, rows)
        add_taps(out, feat, taps, links)
        return out.to(feat.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        feat, weight = ctx.saved_tensors
        links, taps = ctx.links, weight.flatten(1, 3)
        grad_feat = grad_weight = None
        if ctx.needs_input_grad[0]:
            back = taps.transpose(0, 2)  # [in, k^3, out]
            total = start(grad, back, ctx.sources)
            back, way = (back.flip(1), links) if links.mirrored else (back, links.reversed())
            add_taps(total, grad, back, way)
            grad_feat = total.to(grad.dtype)
        if ctx.needs_input_grad[1]:
            grad_taps = torch.zeros_like(taps, dtype=torch.promote_types(taps.dtype, torch.float32))
            if ctx.sources is None:
                grad_taps[:, taps.shape[1] // 2] = grad.T @ feat
            add_weight_gradient(grad_taps, grad, feat, links)
            grad_weight = grad_taps.to(weight.dtype).view_as(weight)
        return grad_feat, grad_weight, None, None


def subm_conv(feat: Tensor, weight: Tensor, bias: Tensor | None, links: TapPairs | TapMap) -> Tensor:
    """[N, out]: submanifold convolution of feat [N, in] with weight [out, k, k, k, in] over :func:`neighbors`."""
    return tap_conv(feat, weight, bias, links)


def tap_conv(
    feat: Tensor, weight: Tensor, bias: Tensor | None, links: TapPairs | TapMap, rows: int | None = None
) -> Tensor:
    """[rows, out] of feat [N, in], weight [out, k, k, k, in] and what the taps connect.

    rows  None: a submanifold convolution, whose pairs lack the centre tap
    Under autocast it computes in the autocast type, as a linear layer does.
    """
    device = feat.device.type
    if isinstance(links, TapMap):
        if torch.is_autocast_enabled(device):
            feat = feat.to(torch.get_autocast_dtype(device))
        if feat.dtype != torch.float64:
            from pointadapt.ops import triton_conv

            return triton_conv.tap_conv(feat, weight, bias, links)  # casts the weight itself
        links = TapPairs(links.as_pairs())
    if torch.is_autocast_enabled(device):
        feat, weight = feat.to(torch.get_autocast_dtype(device)), weight.to(torch.get_autocast_dtype(device))
    out = PairConvolution.apply(feat, weight, links, rows)
    return out if bias is None else out + bias.to(out.dtype)


class SubMConv3d(nn.Module):
    """The layer: ``conv(point) -> [N, out]``. Initialised as spconv does (kaiming uniform, a = sqrt 5)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        cube = (kernel_size,) * 3
        self.weight = nn.Parameter(torch.empty(out_channels, *cube, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        bound = 1 / math.sqrt(kernel_size**3 * in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, point: Point) -> Tensor:
        return subm_conv(point.feat, self.weight, self.bias, neighbors(point, self.kernel_size))
