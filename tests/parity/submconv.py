"""bb_submconv_*: submanifold convolutions of several kernel sizes, two clouds, rows in any order."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from pointadapt.ops.sparse_conv import neighbors, subm_conv
from pointadapt.point import Point


def check(path: Path) -> list[tuple[str, float, float]]:
    data = load_file(path)
    cloud, grid = data["indices"][:, 0].long(), data["indices"][:, 1:].long()
    rows = cloud.argsort(stable=True)  # a Point's clouds lie behind each other
    offset = torch.bincount(cloud).cumsum(0)
    results = []
    for kernel in sorted({key.split(".")[0] for key in data if key.startswith("k")}):
        feat, weight = data[f"{kernel}.x"][rows], data[f"{kernel}.weight"]
        point = Point(grid[rows].float(), feat, offset, grid[rows])
        mine = subm_conv(feat, weight, data.get(f"{kernel}.bias"), neighbors(point, weight.shape[1]))
        results.append((f"{kernel}.y", float((mine - data[f"{kernel}.y"][rows]).abs().max()), 5e-5))
    return results
