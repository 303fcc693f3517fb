"""Sparse convolutions on a GPU: mask-sorted implicit GEMM over the tables of :mod:`pointadapt.ops.tap_map`.

Rows are sorted by the set of neighbours they have, so a tile of rows has few taps that only some of its rows need; each
tile walks over the taps it has and no others (the scheme of spconv 2's masked implicit GEMM, with gathers in the loop
and no buffer of neighbours). Products accumulate in float32 whatever the type. The gradient of the input is the same
kernel with the weight read the other way; the gradient of the weight sums over pairs. The host waits for the device
only to learn whether voxels have several rows, which changes what is computed. Kernels start on the current GPU,
wherever their tensors lie, so every launch is made beside its tensors.

PyTorch's own form in sparse_conv.py is the reference. Importing this file needs triton.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from pointadapt.ops.tap_map import Duplicates, TapMap, TapTable
from pointadapt.ops.triton_kernels import find_neighbors, tap_product, tap_weight_gradient
from pointadapt.ops.voxel import cloud_key
from pointadapt.point import Point

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Whether kernels run on the CPU, in triton's interpreter.
INTERPRETED = not isinstance(find_neighbors, triton.runtime.JITFunction)
#: Above this many rows a weight is cast once; below, each tile casts what it reads.
CAST_ROWS = 4096
#: A tile asks for more shared memory, or registers, than this GPU has: another one is taken.
NO_FIT = triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError


# ---------------------------------------------------------------------------------------------------------------------
# Neighbours
# ---------------------------------------------------------------------------------------------------------------------


def subm_map(point: Point, kernel_size: int = 3) -> TapMap:
    """The tables of a submanifold convolution, once per set of coordinates. Raises ValueError for an even kernel.

    The neighbours are those of :func:`pointadapt.ops.sparse_conv.neighbors`, duplicate voxels included.
    """
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    return point.remember(("tap_map", kernel_size), lambda: make_subm_map(point, kernel_size))


def make_subm_map(point: Point, kernel_size: int) -> TapMap:
    """See :func:`subm_map`."""
    grid, rows, taps = point.grid_coord, len(point), kernel_size**3
    assert grid is not None
    device = grid.device
    sources = torch.empty(taps, rows, dtype=torch.int32, device=device)
    if rows == 0:
        table = TapTable(sources, sources.new_empty(0))
        return TapMap(table, table, mirrored=True)
    key, strides = cloud_key(grid, point.batch, kernel_size // 2)
    sorted_key, row = key.sort(stable=True)
    block = 256
    with torch.cuda.device_of(key):
        find_neighbors[(triton.cdiv(rows, block), taps)](
            key, sorted_key, row, strides, sources, rows, rows.bit_length(), KERNEL=kernel_size, BLOCK=block
        )
    table = TapTable.sort(sources)
    start = torch.ones(rows, dtype=torch.bool, device=device)
    start[1:] = sorted_key[1:] != sorted_key[:-1]
    run = torch.where(start, torch.arange(rows, device=device), 0).cummax(0).values
    first = torch.empty_like(row).scatter_(0, row, row[run])
    return TapMap(table, table, mirrored=True, same=Duplicates(first))


# ---------------------------------------------------------------------------------------------------------------------
# Sizes of tiles
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """One way to cut a product: rows x columns of the result a program, ``depth`` of the sum a step."""

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 3


#: The first one is taken where none is timed. For 16-bit types; float32 takes half the depth. Gathered rows are loads
#: that wait for loads, so of n stages only (n - 1) / 2 hold data.
PRODUCT_TILES = (
    Tile(64, 64, 64, 4, 7),
    Tile(128, 128, 64, 8, 5),
    Tile(128, 64, 64, 4, 5),
    Tile(128, 64, 32, 4, 7),
    Tile(64, 128, 64, 4, 5),
    Tile(64, 128, 32, 4, 7),
    Tile(32, 64, 64, 4, 7),
)
#: Of the weight's gradient: channels out x channels in, and pairs a step.
WEIGHT_TILES = (
    Tile(64, 64, 64, 4, 7),
    Tile(128, 128, 64, 8, 5),
    Tile(128, 64, 64, 4, 5),
    Tile(64, 64, 32, 4, 7),
    Tile(32, 32, 64, 4, 7),
)
chosen: dict[Any, Tile] = {}


def fitted(
    tiles: tuple[Tile, ...], rows: int | None, columns: int, depth: int | None, dtype: torch.dtype
) -> list[Tile]:
    """The tiles that differ for a product of these sides; None: that side is longer than any tile."""

    def fit(size: int, limit: int | None) -> int:
        return size if limit is None else min(size, max(16, triton.next_power_of_2(limit)))

    wide = dtype == torch.float32
    found = [
        Tile(fit(t.rows, rows), fit(t.columns, columns), fit(t.depth // (2 if wide else 1), depth), t.warps, t.stages)
        for t in tiles
    ]
    return list(dict.fromkeys(found))


def choose(key: Any, tiles: list[Tile], run: Callable[[Tile], Any]) -> Tile:
    """The fastest of ``tiles``, timed when this ``key`` is first seen; the first one where timing is not wanted.

    That is in the interpreter, during graph capture, with POINTADAPT_TUNE=0, and where PyTorch is asked for
    deterministic algorithms: two tiles round differently.
    """
    if key in chosen:
        return chosen[key]
    if (
        INTERPRETED
        or os.environ.get("POINTADAPT_TUNE") == "0"
        or torch.are_deterministic_algorithms_enabled()
        or torch.cuda.is_current_stream_capturing()
    ):
        return tiles[0]
    times: dict[Tile, float] = {}
    for tile in tiles:
        try:
            times[tile] = triton.testing.do_bench(lambda tile=tile: run(tile), warmup=5, rep=20, return_mode="median")
        except NO_FIT:
            continue
    if not times:
        raise RuntimeError(f"no tile of {key} fits this GPU; POINTADAPT_CONV=torch computes without Triton")
    chosen[key] = min(times, key=lambda tile: times[tile])
    return chosen[key]


def processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def parts(programs: int, device: torch.device, most: int) -> int:
    """Into how many parts each sum is cut, a power of two <= ``most``, so that every processor has two programs."""
    if torch.are_deterministic_algorithms_enabled():
        return 1  # the number of parts follows from the number of rows, and so would the last bit of a cloud's result
    wanted = max(1, min(2 * processors(device) // max(programs, 1), most))
    return 1 << (wanted.bit_length() - 1)


def precision() -> str:
    """How float32 is multiplied, "ieee" or "tf32": as PyTorch is asked to for matrix products."""
    asked = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # set so, the older form of it raises
    if asked is None:  # before torch 2.9
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "tf32" if asked == "tf32" else "ieee"


# ---------------------------------------------------------------------------------------------------------------------
# Products
# ---------------------------------------------------------------------------------------------------------------------


def gather_product(
    feat: Tensor, weight: Tensor, bias: Tensor | None, table: TapTable, back: bool = False, mirrored: bool = False,
    tile: Tile | None = None, splits: int | None = None,
) -> Tensor:  # fmt: skip
    """[M, out] = the sum over taps of the rows of feat [N, in] that ``table`` says, times weight [out, K, in].

    back: the weight is used transposed, so feat is [N, out] and the result [M, in]; mirrored: and its taps in the
    opposite order. ``tile`` and ``splits`` fix what is else chosen.
    """
    (taps, rows), outer = table.sources.shape, weight.shape[2 if back else 0]
    feat, inner = feat.contiguous(), feat.shape[1]
    weight = weight.contiguous() if rows <= CAST_ROWS else weight.to(feat.dtype).contiguous()
    w_out, w_tap, w_in = weight.stride()
    w_inner, w_outer = (w_out, w_in) if back else (w_in, w_out)
    if rows == 0:
        return feat.new_zeros(0, outer)

    def run(tile: Tile) -> Tensor:
        lists = table.tiles(tile.rows)
        programs = len(lists[0]) * triton.cdiv(outer, tile.columns)
        cut = splits or parts(programs, feat.device, min(taps, 16))
        out = feat.new_empty(cut, rows, outer, dtype=feat.dtype if cut == 1 else torch.float32)
        tap_product[(programs, cut)](
            feat, weight, bias, out, table.order, *lists,
            rows, inner, outer, taps, w_tap, w_inner, w_outer,
            BIAS=bias is not None, MIRROR=mirrored, WIDEN=INTERPRETED and feat.dtype == torch.bfloat16,
            PRECISION=precision(), BLOCK_M=tile.rows, BLOCK_N=tile.columns, BLOCK_K=tile.depth,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return out[0] if cut == 1 else out.sum(0).to(feat.dtype)

    with torch.cuda.device_of(feat):
        if tile is None:
            # A weight cast in the kernel takes more shared memory: what fits with one type may not with another.
            types = feat.dtype, weight.dtype, precision()
            key = ("product", back, taps, inner, outer, rows.bit_length() // 2, types, feat.device)
            tile = choose(key, fitted(PRODUCT_TILES, None, outer, inner, feat.dtype), run)
        return run(tile)


def weight_gradient(
    feat: Tensor, grad: Tensor, weight: Tensor, table: TapTable, tile: Tile | None = None, splits: int | None = None
) -> Tensor:
    """[out, K, in] in the weight's type: per tap the sum over pairs of grad [M, out] x feat [N, in]."""
    (taps, rows), outer, inner = table.sources.shape, grad.shape[1], feat.shape[1]
    feat, grad = feat.contiguous(), grad.to(feat.dtype).contiguous()
    if rows == 0:
        return torch.zeros_like(weight)
    written, read, count = table.pairs()

    def run(tile: Tile) -> Tensor:
        programs = taps * triton.cdiv(outer, tile.rows) * triton.cdiv(inner, tile.columns)
        # Half of the taps have few pairs: cut so that those with many fill the GPU several times over.
        most = max(1, min(64, rows // (4 * tile.depth)))
        cut = splits or min(most, 8 * parts(programs, feat.device, most))
        out = feat.new_empty(cut, outer, taps, inner, dtype=torch.float32)
        tap_weight_gradient[(programs, cut)](
            feat, grad, out, written, read, count, rows, inner, outer, taps,
            WIDEN=INTERPRETED and feat.dtype == torch.bfloat16, PRECISION=precision(),
            BLOCK_O=tile.rows, BLOCK_I=tile.columns, BLOCK_R=tile.depth,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return (out[0] if cut == 1 else out.sum(0)).to(weight.dtype)

    with torch.cuda.device_of(feat):
        if tile is None:
            key = ("weight", taps, inner, outer, rows.bit_length() // 2, feat.dtype, precision(), feat.device)
            tile = choose(key, fitted(WEIGHT_TILES, outer, inner, None, feat.dtype), run)
        return run(tile)


class TapConvolution(torch.autograd.Function):
    """Convolution over a TapMap. Keeps the input only for a trainable weight; the weight is there anyway."""

    @staticmethod
    def forward(ctx, feat: Tensor, weight: Tensor, bias: Tensor | None, taps: TapMap) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(feat if ctx.needs_input_grad[1] else None, weight)
        ctx.taps, ctx.bias_dtype = taps, None if bias is None else bias.dtype
        return gather_product(feat, weight.flatten(1, 3), bias, taps.there)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (feat, weight), taps = ctx.saved_tensors, ctx.taps
        flat = weight.flatten(1, 3)
        grad_feat = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_feat = input_gradient(grad, flat, taps)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(feat, grad, flat, taps.there).view_as(weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return grad_feat, grad_weight, grad_bias, None


def input_gradient(grad: Tensor, weight: Tensor, taps: TapMap) -> Tensor:
    """[N, in] of grad [M, out] and weight [out, K, in]."""
    if not taps.same:
        return gather_product(grad, weight, None, taps.back, back=True, mirrored=taps.mirrored)
    # Neighbours read the first row of a voxel, so all its gradient goes there ...
    merged = taps.same.merge(grad)
    found = gather_product(merged, weight, None, taps.back, back=True, mirrored=taps.mirrored)
    if not taps.mirrored:
        return found
    # ... but the centre tap read each row's own features.
    is_first = taps.same.is_first[:, None]
    centre = weight[:, weight.shape[1] // 2].to(grad.dtype)
    return torch.where(is_first, found, 0) + (grad - torch.where(is_first, merged, 0)) @ centre


@torch.compiler.disable
def tap_conv(feat: Tensor, weight: Tensor, bias: Tensor | None, taps: TapMap) -> Tensor:
    """[M, out]: convolution of feat [N, in] with weight [out, k, k, k, in] over ``taps``.

    feat is float32, float16 or bfloat16; weight and bias may be of another type, products are computed in that of feat.
    Raises TypeError for other types.
    """
    if feat.dtype not in DTYPES:
        raise TypeError(f"Triton kernels compute in {', '.join(str(d) for d in DTYPES)}, not {feat.dtype}")
    if taps.merged:
        feat = taps.merged.merge(feat)
    return TapConvolution.apply(feat, weight, bias, taps)
