"""Voxel grids: quantise points, number the cells, take one point per voxel, cover all in fragments, merge levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pointadapt.ops.segment import segment_count, segment_mean
from pointadapt.point import Point

FNV_OFFSET = 14695981039346656037 - 2**64  # FNV's 64-bit constants as signed integers: products wrap alike
FNV_PRIME = 1099511628211
SIGN = -(2**63)  # flipping the sign bit turns signed comparison into unsigned


@dataclass(frozen=True)
class Voxels:
    """Points grouped by voxel; M voxels in ascending (unsigned) order of their key.

    key      [N] int64, hash of each point's cell (64 unsigned bits, viewed as signed)
    order    [N] int64, points sorted by voxel; points of one voxel keep their order
    inverse  [N] int64, voxel of each point
    count    [M] int64, points in each voxel
    start    [M] int64, where each voxel's points begin in ``order``
    """

    key: Tensor
    order: Tensor
    inverse: Tensor
    count: Tensor
    start: Tensor

    def __len__(self) -> int:
        return len(self.count)

    def member(self, draws: Tensor | int) -> Tensor:
        """[M] rows: of each voxel its member number ``draws % count``."""
        return self.order[self.start + draws % self.count]

    def spread(self) -> Tensor:
        """[M] rows: one member per voxel, picked pseudo-randomly by the voxel's key.

        Needs no random state, so evaluation repeats itself, and prefers no part of the file (in airborne
        lidar "always the first row" would mean "mostly first echoes").
        """
        mixed = self.key[self.order[self.start]] * 0x9E3779B97F4A7C1 >> 33
        return self.member(mixed & 0x7FFFFFFF)

    def fragments(self) -> list[Tensor]:
        """As many row sets [M] as the fullest voxel has points; together they cover every point.

        Fragment i takes member ``i % count`` of every voxel.
        """
        parts = int(self.count.max()) if len(self) else 0
        return [self.member(part) for part in range(parts)]


def grid_index(coord: Tensor, grid_size: float) -> tuple[Tensor, Tensor]:
    """Cells of points: ``floor(coord / grid_size)``, shifted so that the least index is 0 on each axis.

    Divides in float64 whatever the input, as the official code does under NumPy 2.
    Returns ([N, 3] int64 cells, [3] int64 the shift; ``shift * grid_size`` is the grid's lower corner).
    """
    if not grid_size > 0:
        raise ValueError(f"grid_size must be positive, not {grid_size}")
    cells = torch.floor(coord.double() / grid_size).long()
    if len(cells) == 0:
        return cells, cells.new_zeros(3)
    least = cells.amin(0)
    return cells - least, least


def fnv_key(cells: Tensor) -> Tensor:
    """[N] int64: FNV-1 over the axes, one 64-bit word each (multiply, then xor)."""
    key = torch.full((len(cells),), FNV_OFFSET, dtype=torch.int64, device=cells.device)
    for axis in range(cells.shape[1]):
        key = (key * FNV_PRIME) ^ cells[:, axis].long()
    return key


def ravel_key(cells: Tensor) -> Tensor:
    """[N] int64: mixed-radix number of the cell, first axis most significant; no collisions."""
    key = torch.zeros(len(cells), dtype=torch.int64, device=cells.device)
    if len(cells) == 0:
        return key
    for axis, size in enumerate((cells.amax(0) + 1).tolist()):
        key = key * size + cells[:, axis].long()
    return key


def cloud_key(grid: Tensor, batch: Tensor, margin: int = 0) -> tuple[Tensor, Tensor]:
    """(key [N] int64, strides [3]): a number for each voxel of each cloud, in the order of cloud, x, y, z.

    A step along an axis adds its stride; steps of up to ``margin`` voxels never end in another row or cloud of voxels.
    """
    if len(grid) == 0:
        return batch.long(), batch.new_ones(3)
    grid = grid.long() - grid.long().amin(0)
    extent = grid.amax(0) + 1 + margin  # one margin between rows of voxels is enough: the next row has none before it
    strides = torch.stack([extent[1] * extent[2], extent[2], torch.ones_like(extent[2])])
    return batch * (extent[0] * strides[0]) + (grid * strides).sum(1), strides


HASHES = {"fnv": fnv_key, "ravel": ravel_key}


def voxelize(cells: Tensor, hash: str = "fnv") -> Voxels:
    """Group points by cell. ``cells`` [N, 3] int >= 0, from :func:`grid_index`."""
    key = HASHES[hash](cells)
    ordered, order = torch.sort(key ^ SIGN, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    start = first.nonzero()[:, 0]
    inverse = torch.empty_like(order)
    inverse[order] = first.cumsum(0) - 1
    count = torch.diff(start, append=start.new_tensor([len(key)]))
    return Voxels(key, order, inverse, count, start)


def merge(point: Point, key: Tensor, grid: Tensor, stride: int) -> Point:
    """The Point of coarser voxels: a row for each value of ``key`` [N], in its order; ``grid`` [N, 3] their indices.

    Coordinates are averaged; features [M, 0] are for the caller to make, as is what else it knows of the level.
    """
    values, inverse = torch.unique(key, return_inverse=True)
    member = torch.empty(len(values), dtype=torch.long, device=key.device)
    member[inverse] = torch.arange(len(key), device=key.device)  # any member: all share cloud and voxel
    return Point(
        coord=segment_mean(point.coord, inverse, len(values)),
        feat=point.feat.new_zeros(len(values), 0),
        grid_coord=grid[member],
        offset=segment_count(point.batch[member], point.num_clouds).cumsum(0),
        condition=point.condition,
        grid_size=None if point.grid_size is None else point.grid_size * stride,
        pooling_inverse=inverse,
    )


def grid_sample(
    coord: Tensor,
    grid_size: float,
    hash: str = "fnv",
    draw: torch.Generator | Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One point per voxel: (rows [M], cells [M, 3] int64, inverse [N]: each point's place in ``rows``).

    draw  a generator: uniformly random; a function of the counts [M]: the member is its result [M] modulo the count
          (official: ``randint(0, count.max(), M)``); None: the fixed choice of :meth:`Voxels.spread`
    """
    cells, _ = grid_index(coord, grid_size)
    voxels = voxelize(cells, hash)
    if draw is None:
        rows = voxels.spread()
    elif isinstance(draw, torch.Generator):
        uniform = torch.rand(len(voxels), generator=draw, dtype=torch.float64).to(coord.device)
        rows = voxels.member((uniform * voxels.count).long())
    else:
        rows = voxels.member(draw(voxels.count))
    return rows, cells[rows], voxels.inverse
