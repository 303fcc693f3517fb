"""bb_serialization_*: curve codes at several depths, the depth rule, a single point. Exact."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from pointadapt.ops.order import curve_code, depth_of


def check(path: Path) -> list[tuple[str, float, float]]:
    data = load_file(path)
    results = []

    def compare(name: str, mine: torch.Tensor, theirs: torch.Tensor) -> None:
        results.append((name, float((mine != theirs).sum()), 0.0))

    for key, expected in data.items():
        if found := re.fullmatch(r"d(\d+)\.code\.(.+)", key):
            depth, curve = int(found[1]), found[2]
            code = curve_code(data[f"d{depth}.grid_coord"], depth, curve)
            compare(key, data[f"d{depth}.batch"].long() << 3 * depth | code, expected)
        elif found := re.fullmatch(r"single_point\.code\.(.+)\.d(\d+)\.b(\d+)\.xyz(\d+)[_,]?(\d+)[_,]?(\d+)", key):
            curve, depth, cloud = found[1], int(found[2]), int(found[3])
            grid = torch.tensor([[int(found[i]) for i in (4, 5, 6)]])
            compare(key, (cloud << 3 * depth) | curve_code(grid, depth, curve), expected)
    if "depth_rule.max_coord" in data:
        mine = depth_of(data["depth_rule.max_coord"].long())
        compare("depth_rule.depth", mine, data["depth_rule.depth"])
    return results
