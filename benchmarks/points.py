"""Work on points against the best well-kept library: voxels, curves, neighbours, farthest points, LAZ.

python benchmarks/points.py [--points 200000]

Points are those of a procedural room, with noise inside of their voxels; float32. "speed" is the library's time over
ours: 1 is equal, above 1 we are faster. Neighbours: SciPy's cKDTree; voxels and curves: numpy; LAZ: laspy with lazrs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import laspy
import numpy as np
import torch
from common import arguments, interleaved, machine, room, table
from scipy.spatial import cKDTree

from pointadapt.data.io import read_scan
from pointadapt.ops.neighbors import farthest_points, nearest
from pointadapt.ops.order import curve_order
from pointadapt.ops.voxel import grid_sample
from pointadapt.point import Point


def numpy_voxels(coord: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """One row per voxel and every point's voxel, as one would with numpy: unique mixed-radix keys."""
    cells = np.floor(coord.astype(np.float64) / size).astype(np.int64)
    cells -= cells.min(0)
    extent = cells.max(0) + 1
    _, rows, inverse = np.unique(
        (cells[:, 0] * extent[1] + cells[:, 1]) * extent[2] + cells[:, 2], return_index=True, return_inverse=True
    )
    return rows, inverse


def numpy_curve(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows along the z curve, and where each row went: the usual spread of bits, then a sort."""

    def spread(v: np.ndarray) -> np.ndarray:
        for shift, mask in ((32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F)):
            v = (v | v << shift) & mask
        for shift, mask in ((4, 0x10C30C30C30C30C3), (2, 0x1249249249249249)):
            v = (v | v << shift) & mask
        return v

    x, y, z = grid.T.astype(np.int64)
    order = (spread(x) << 2 | spread(y) << 1 | spread(z)).argsort(kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return order, inverse


def numpy_farthest(coord: np.ndarray, count: int) -> np.ndarray:
    """Farthest point sampling of one cloud [N, 3], the usual loop."""
    distance, last, chosen = np.full(len(coord), np.inf, np.float32), 0, []
    for _ in range(count):
        chosen.append(last)
        distance = np.minimum(distance, ((coord - coord[last]) ** 2).sum(1))
        last = int(distance.argmax())
    return np.array(chosen)


def main() -> None:
    args = arguments(__doc__, points=200_000)
    draw = torch.Generator().manual_seed(0)
    surface = room(args.points // 2)
    coord = surface.coord.repeat(2, 1)
    coord = coord + 0.02 * torch.rand(coord.shape, generator=draw)
    array = coord.numpy()
    shapes = torch.randn(16, 2048, 3, generator=draw)
    shapes = shapes / shapes.norm(dim=-1, keepdim=True)
    centers = shapes[:, :64]

    def curves() -> Any:
        fresh = Point(surface.coord, surface.feat, surface.offset, surface.grid_coord)
        return curve_order(fresh, "z")

    folder = Path(tempfile.mkdtemp())
    header = laspy.LasHeader(point_format=2, version="1.2")
    header.scales = np.full(3, 1e-3)
    las = laspy.LasData(header)
    las.x, las.y, las.z = array.T
    las.write(str(folder / "room.laz"))

    def laspy_read() -> Any:
        found = laspy.read(folder / "room.laz", laz_backend=laspy.LazBackend.LazrsParallel)
        return found.xyz, np.stack([found.red, found.green, found.blue], 1), np.array(found.classification)

    work = {
        "voxel sampling, 2 cm": (lambda: grid_sample(coord, 0.02), lambda: numpy_voxels(array, 0.02), "numpy"),
        "the same, exact keys": (
            lambda: grid_sample(coord, 0.02, hash="ravel"),
            lambda: numpy_voxels(array, 0.02),
            "numpy",
        ),
        "z curve": (curves, lambda: numpy_curve(surface.grid_coord.numpy()), "numpy"),
        "16 shapes: 32 nearest of 2,048 to 64": (
            lambda: nearest(centers, shapes, 32),
            lambda: [cKDTree(s).query(c, 32) for s, c in zip(shapes.numpy(), centers.numpy(), strict=True)],
            "cKDTree",
        ),
        "16 shapes: 64 farthest of 2,048": (
            lambda: farthest_points(shapes, 64),
            lambda: [numpy_farthest(s, 64) for s in shapes.numpy()],
            "numpy",
        ),
        "reading LAZ": (lambda: read_scan(folder / "room.laz"), laspy_read, "laspy + lazrs"),
    }
    rows = []
    for name, (ours, theirs, library) in work.items():
        times = interleaved({"ours": ours, "theirs": theirs}, args)
        both = [1e3 * times.median("ours"), library, 1e3 * times.median("theirs")]
        rows.append([name, *both, times.ratio("theirs", "ours")])
    print(f"## Work on points\n\n{machine(args)}. {len(coord):,} points, for curves {len(surface):,}.\n")
    print(table(["", "ms", "library", "ms", "speed"], rows))


if __name__ == "__main__":
    main()
