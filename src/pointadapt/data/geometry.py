"""What can be measured on bare coordinates: surface normals, the spacing of points."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree

from pointadapt.ops.segment import segment_mean
from pointadapt.ops.voxel import grid_index, voxelize

CHUNK = 100_000


def estimate_normals(coord: np.ndarray, grid_size: float | None = None, k: int = 16) -> np.ndarray:
    """[N, 3] float32 unit normals: the direction of least spread among the k nearest points (PCA).

    With ``grid_size`` the points are first averaged per voxel, and a voxel's normal goes to all its points: faster
    on dense scans, and neighbourhoods then have a size in metres rather than in points.
    Normals look up (z >= 0); level ones towards +y, and along x towards +x. Fewer than 3 points: straight up.
    """
    if grid_size is not None:
        voxels = voxelize(grid_index(torch.from_numpy(coord), grid_size)[0])
        offset = coord.mean(0)
        centers = segment_mean(torch.from_numpy(coord - offset), voxels.inverse, len(voxels))
        return estimate_normals(centers.numpy(), None, k)[voxels.inverse.numpy()]
    normal = np.tile(np.array([0, 0, 1], np.float32), (len(coord), 1))
    k = min(k, len(coord))
    if k < 3:
        return normal
    tree = cKDTree(coord)
    for start in range(0, len(coord), CHUNK):
        rows = slice(start, start + CHUNK)
        near = coord[tree.query(coord[rows], k)[1]].astype(np.float64)  # [n, k, 3]
        near -= near.mean(1, keepdims=True)
        _, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", near, near))
        normal[rows] = axes[:, :, 0]
    return look_up(normal)


def look_up(normal: np.ndarray) -> np.ndarray:
    """Turn each normal so that the first of z, y, x that is not (nearly) zero is positive."""
    x, y, z = normal.T
    flip = np.where(np.abs(z) > 1e-3, z < 0, np.where(np.abs(y) > 1e-3, y < 0, x < 0))
    return np.where(flip[:, None], -normal, normal)


def spacing(coord: np.ndarray, samples: int = 5_000) -> float:
    """Median distance from a point to its nearest neighbour at another place, over evenly picked points."""
    if len(coord) < 2:
        return 0.0
    local = coord - coord.mean(0)
    picked = local[:: max(len(local) // samples, 1)]
    distance, _ = cKDTree(local).query(picked, min(8, len(local)))
    distance = np.where(distance > 0, distance, np.inf).min(1)  # points that coincide are one place
    distance = distance[np.isfinite(distance)]
    return float(np.median(distance)) if len(distance) else 0.0
