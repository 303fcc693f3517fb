"""Space-filling curves: z (Morton) and Hilbert codes of voxels, and the orders that sort points along them.

As in PTv3's serialisation (arXiv 2312.10035). ``z-trans`` and ``hilbert-trans`` swap x and y before encoding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pointadapt.errors import UserError
from pointadapt.point import Point

CURVES = ("z", "z-trans", "hilbert", "hilbert-trans")
MAX_DEPTH = 20  # 3 * 20 bits and the sign fit an int64


def curve_code(grid_coord: Tensor, depth: Tensor | int, curve: str, deepest: int | None = None) -> Tensor:
    """[N] int64 position of each voxel along a curve over a cube of 2**depth voxels a side.

    grid_coord [N, 3] int in [0, 2**depth); depth an int or one per voxel [N], ``deepest`` the largest if it is known.
    Raises ValueError for an unknown curve.
    """
    if curve not in CURVES:
        raise ValueError(f"unknown curve {curve!r}; choose one of {', '.join(CURVES)}")
    x, y, z = grid_coord.long().unbind(1)
    if curve.endswith("-trans"):
        x, y = y, x
    if curve.startswith("z"):
        return interleave(x, y, z)
    depth = torch.as_tensor(depth, device=x.device)
    axes = [x, y, z]
    if deepest is None:
        deepest = int(depth.max()) if depth.numel() else 0
    for bit in range(deepest - 1, -1, -1):  # Skilling's transform
        low = (depth > bit).long() * ((1 << bit) - 1)  # bits above a cloud's own depth must not turn the axes
        for d in range(3):
            is_set = (axes[d] >> bit & 1).bool()
            swap = torch.where(is_set, 0, (axes[0] ^ axes[d]) & low)
            axes[d] = axes[d] ^ swap
            axes[0] = axes[0] ^ torch.where(is_set, low, swap if d else 0)
    code = interleave(*axes)
    for shift in (1, 2, 4, 8, 16, 32):  # Gray code to binary
        code = code ^ code >> shift
    return code


def interleave(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Bit i of x, y, z goes to bit 3i+2, 3i+1, 3i (21 bits an axis)."""

    def spread(v: Tensor) -> Tensor:
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            wide = v << shift
            v = wide.bitwise_or_(v).bitwise_and_(mask)
        return v

    return spread(x) << 2 | spread(y) << 1 | spread(z)


def depth_of(largest: Tensor, margin: int = 1) -> Tensor:
    """Bits a curve needs for grid coordinates up to ``largest`` [B] (official rule; no margin before 2025-03-21)."""
    return ((largest[:, None] + margin) >> torch.arange(62, device=largest.device) > 0).sum(1)


def cloud_depths(point: Point, shared: bool = False, margin: int = 1) -> Tensor:
    """[B] int64 curve depth of each cloud, from its own extent; ``shared``: from the batch's (the official rule)."""
    grid = point.grid_coord
    assert grid is not None
    largest = torch.zeros(point.num_clouds, dtype=torch.long, device=grid.device)
    largest.scatter_reduce_(0, point.batch, grid.amax(1).long(), "amax")
    depth = depth_of(largest, margin)
    return depth.amax().expand_as(depth) if shared else depth


def depths(point: Point) -> Tensor:
    """[B] curve depths of this set of coordinates; whoever built the Point may have set them in its cache."""
    return point.remember("depths", lambda: cloud_depths(point))


def cloud_code(point: Point, curve: str) -> Tensor:
    """[N] int64 ``cloud << 3 * depth | curve code``, with the largest depth of the batch: sorts cloud by cloud.

    Raises UserError when a cloud is too wide for its voxels.
    """

    def make() -> Tensor:
        depth = depths(point)
        deepest = point.remember("deepest", lambda: int(depth.max()))  # for all curves: it waits for the device
        if deepest > MAX_DEPTH:
            raise UserError(
                f"a cloud spans more than 2^{MAX_DEPTH} voxels along one axis: "
                "choose a larger grid_size, or remove far outliers"
            )
        shift = 3 * deepest
        if shift + point.num_clouds.bit_length() > 63:
            raise UserError(f"{point.num_clouds} clouds of curve depth {shift // 3} do not fit: use a smaller batch")
        assert point.grid_coord is not None
        return point.batch << shift | curve_code(point.grid_coord, depth[point.batch], curve, deepest)

    return point.remember(("code", curve), make)


def curve_order(point: Point, curve: str) -> tuple[Tensor, Tensor]:
    """(order, inverse), both [N] int64: rows sorted by (cloud, position on the curve), and where each row went.

    Computed once per set of coordinates.
    """

    def make() -> tuple[Tensor, Tensor]:
        order = cloud_code(point, curve).argsort(stable=True)
        return order, places(order)

    return point.remember(("order", curve), make)


def places(order: Tensor) -> Tensor:
    """[N] int64: where each row went under ``order`` [N], the inverse permutation."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
