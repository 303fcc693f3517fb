"""Tiny clouds and networks that many tests share."""

from __future__ import annotations

import torch

from pointadapt.backbones.ptv3 import PTv3, PTv3Config
from pointadapt.point import Point

TINY = PTv3Config(
    stride=(2, 2),
    enc_depths=(1, 1, 2),
    enc_channels=(12, 24, 36),
    enc_num_head=(1, 2, 2),
    enc_patch_size=(32, 32, 32),
)


def cloud(points: int = 200, side: int = 20, seed: int = 0, channels: int = 9) -> Point:
    """One cloud of about ``points`` distinct voxels in a cube of ``side``; ``points`` 0 gives an empty cloud."""
    draw = torch.Generator().manual_seed(seed)
    grid = torch.unique(torch.randint(0, side, (points, 3), generator=draw), dim=0)
    grid = grid[torch.randperm(len(grid), generator=draw)]
    feat = torch.randn(len(grid), channels, generator=draw)
    return Point(0.1 * grid.float(), feat, torch.tensor([len(grid)]), grid)


def tiny(**changes) -> PTv3:
    """A small random PTv3 with a fixed seed, in eval mode."""
    from dataclasses import replace

    torch.manual_seed(0)
    model = PTv3(replace(TINY, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms start at 0 and 1: make them count
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
