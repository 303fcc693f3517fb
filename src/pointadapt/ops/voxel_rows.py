"""Rows in the order of their voxels while a network works on them: what it gathers then lies close in memory.

No network here depends on the order of a cloud's points. Scans come in the order of the scanner or of a hash, though,
and with a million voxels half of a sparse convolution's time would go into waiting for rows from far away.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pointadapt.ops.order import places
from pointadapt.ops.voxel import cloud_key
from pointadapt.point import Point


def sort_rows(point: Point) -> tuple[Point, Tensor]:
    """(the Point with its rows by (cloud, x, y, z) of ``grid_coord``, place [N] int64 of each given row in it).

    Rows of one voxel keep their order. Coordinates are sorted once, and what is remembered of them stays.
    """
    grid = point.grid_coord
    assert grid is not None

    def make() -> tuple[Tensor, Tensor, dict[str, Any]]:
        order = cloud_key(grid, point.batch)[0].argsort(stable=True)
        cache = {"counts": point.counts, "batch": point.batch}  # clouds stay where they are
        return order, places(order), {"coord": point.coord[order], "grid_coord": grid[order], "cache": cache}

    order, place, coords = point.remember("sorted rows", make)
    mask = None if point.mask is None else point.mask[order]
    return point.but(**coords, feat=point.feat.index_select(0, order), mask=mask), place


def restore_rows(out: Point, given: Point, place: Tensor) -> Point:
    """What a network made of sorted rows, its finest level in the rows of ``given`` again."""
    parent, inverse = out.parent, out.pooling_inverse
    if parent is None:
        return given.but(feat=out.feat.index_select(0, place), curves=out.curves, extra=out.extra)
    assert inverse is not None
    if parent.parent is None:
        inverse = inverse.index_select(0, place)
    return out.but(parent=restore_rows(parent, given, place), pooling_inverse=inverse)
