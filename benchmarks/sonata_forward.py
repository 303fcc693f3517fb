"""Time and peak memory of one Sonata-base forward (random weights) on a room of about N voxels.

    python benchmarks/sonata_forward.py --voxels 20000 60000 --threads 2 --repeats 5

Prints the median and the range over the repeats, each on a fresh Point, so neighbour maps, curves and windows are
computed every time. Memory is the growth of the process's resident peak over model and input.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import time

import torch

from pointadapt.backbones.weights import load_backbone
from pointadapt.point import Point


def room(voxels: int, seed: int = 0) -> Point:
    """Floor, four walls, a table and boxes as voxel surfaces, thinned to ``voxels``; 2 cm grid."""
    draw = torch.Generator().manual_seed(seed)
    side, height = int((voxels / 3.2) ** 0.5), int(0.55 * (voxels / 3.2) ** 0.5)

    def sheet(axis: int, at: int, low: tuple[int, int], high: tuple[int, int]) -> torch.Tensor:
        plane = torch.cartesian_prod(torch.arange(low[0], high[0]), torch.arange(low[1], high[1]))
        return torch.cat([plane[:, :axis], torch.full((len(plane), 1), at), plane[:, axis:]], 1)

    parts = [sheet(2, 0, (0, 0), (side, side))]
    parts += [sheet(axis, at, (0, 0), (side, height)) for axis in (0, 1) for at in (0, side - 1)]
    for _ in range(6):
        corner = torch.randint(side // 8, side * 6 // 8, (2,), generator=draw).tolist()
        size = torch.randint(side // 12, side // 6, (3,), generator=draw).tolist()
        x, y = corner
        parts.append(sheet(2, size[2], (x, y), (x + size[0], y + size[1])))
        parts += [sheet(0, at, (y, 0), (y + size[1], size[2])) for at in (x, x + size[0])]
        parts += [sheet(1, at, (x, 0), (x + size[0], size[2])) for at in (y, y + size[1])]
    grid = torch.unique(torch.cat(parts), dim=0)
    grid = grid[torch.randperm(len(grid), generator=draw)[:voxels]]
    return Point(0.02 * grid.float(), torch.randn(len(grid), 9, generator=draw), torch.tensor([len(grid)]), grid)


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, nargs="+", default=[20_000, 60_000])
    parser.add_argument("--backbone", default="sonata")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_backbone(args.backbone, weights=None)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {args.threads} threads")
    for voxels in args.voxels:
        made = room(voxels)
        before, times = peak_gb(), []
        with torch.inference_mode():
            for _ in range(args.repeats + 1):
                point = made.but(cache={})
                start = time.perf_counter()
                model(point)
                times.append(time.perf_counter() - start)
        times = times[1:]  # the first one warms up
        print(
            f"{args.backbone}: {len(made):,} voxels  median {statistics.median(times):.2f} s "
            f"({min(times):.2f} to {max(times):.2f}, {args.repeats} runs), peak memory +{peak_gb() - before:.2f} GB"
        )


if __name__ == "__main__":
    main()
