"""Cutting a scan too large for one pass into overlapping tiles, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pointadapt.ops.voxel import grid_index, voxelize

#: Context around a tile's core that evaluation and prediction use, in voxels.
MARGIN = 25


def tiles(coord: np.ndarray, grid_size: float, limit: int, margin: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows [n] int64, core [n] bool) per tile; every point is in the core of exactly one tile.

    coord      [N, 3] in the unit of ``grid_size``
    limit      most occupied voxels of a tile, its margin included
    margin     width of the context around a core: seen by the model, its own prediction thrown away

    The plane is halved at the median, along the longer side, until the tiles are small enough. A core narrower than
    its margin is halved no further: from there on a tile would hold more context than content.
    """
    if len(coord) == 0:
        return
    cells, _ = grid_index(torch.from_numpy(coord), grid_size)
    voxels = voxelize(cells, hash="ravel")
    first = np.zeros(len(coord), dtype=bool)
    first[voxels.order[voxels.start].numpy()] = True  # one point per voxel, to count voxels by
    cell = cells[:, :2].numpy().astype(np.int32)
    del coord, cells, voxels  # a generator would hold on to them; they are most of a large scan's memory
    around = int(np.ceil(margin / grid_size))
    todo = [(np.arange(len(cell)), cell.min(0), cell.max(0) + 1)]
    while todo:
        rows, low, high = todo.pop()
        here = cell[rows]
        core = ((here >= low) & (here < high)).all(1)
        if not core.any():
            continue
        inside = here[core]
        low, high = inside.min(0), inside.max(0) + 1
        axis = int(np.argmax(high - low))
        if first[rows].sum() <= limit or high[axis] - low[axis] <= max(around, 1):
            yield rows, core
            continue
        at = int(np.median(inside[first[rows][core], axis]))
        at = min(max(at, low[axis] + 1), high[axis] - 1)
        for side_low, side_high in ((at, high[axis]), (low[axis], at)):
            box_low, box_high = low.copy(), high.copy()
            box_low[axis], box_high[axis] = side_low, side_high
            near = ((here >= box_low - around) & (here < box_high + around)).all(1)
            todo.append((rows[near], box_low, box_high))
