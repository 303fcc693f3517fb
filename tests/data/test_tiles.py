"""Tiles: every point once, bounded size, enough context."""

import numpy as np
import pytest

from pointadapt.data.tiles import tiles


def scene(seed, num, size=(20, 12, 3)):
    return np.random.default_rng(seed).uniform(0, size, (num, 3)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [50, 400, 3000])
def test_every_point_is_in_one_core(seed, limit):
    coord = scene(seed, 5000)
    seen = np.zeros(len(coord), dtype=int)
    for rows, core in tiles(coord, grid_size=0.5, limit=limit, margin=1.0):
        assert len(rows) == len(core) and len(np.unique(rows)) == len(rows)
        np.add.at(seen, rows[core], 1)
    assert (seen == 1).all()


def test_size_and_context():
    coord = scene(0, 20_000)
    parts = list(tiles(coord, grid_size=0.25, limit=4000, margin=1.0))
    assert len(parts) > 4
    for rows, core in parts:
        assert len(np.unique((coord[rows] / 0.25).astype(np.int64), axis=0)) <= 4000
        low, high = coord[rows[core], :2].min(0), coord[rows[core], :2].max(0)
        near = ((coord[:, :2] > low - 0.75) & (coord[:, :2] < high + 0.75)).all(1)
        assert np.isin(np.flatnonzero(near), rows).all(), "points near the core are missing"


def test_small_scan_is_one_tile():
    coord = scene(1, 300)
    ((rows, core),) = tiles(coord, grid_size=0.1, limit=300, margin=1.0)
    assert core.all() and (rows == np.arange(300)).all()


def test_many_points_in_one_voxel_or_column():
    assert len(list(tiles(np.zeros((500, 3), np.float32), 0.1, limit=10, margin=0.5))) == 1
    column = np.zeros((500, 3), np.float32)
    column[:, 2] = np.arange(500)  # 500 voxels above each other cannot be cut in the plane
    ((rows, core),) = tiles(column, 0.1, limit=10, margin=0.5)
    assert len(rows) == 500 and core.all()
    assert list(tiles(np.zeros((0, 3), np.float32), 0.1, limit=10, margin=0.5)) == []
