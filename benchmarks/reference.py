"""The plain reference: Sonata's forward pass as one would first write it in PyTorch, from the specification.

Keys of voxels in int64 and a binary search per offset; a convolution is gather, product and index_add for each of the
27 offsets; attention is scaled_dot_product_attention over windows; one neighbour table per stage. It reads the weights
of a :class:`~pointadapt.backbones.ptv3.PTv3` of the second generation and gives its numbers, so that times compare at
equal work. The curve's code of a voxel is the library's own.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pointadapt.backbones.ptv3 import PTv3
from pointadapt.ops.order import curve_code
from pointadapt.point import Point


def forward(model: PTv3, point: Point) -> Tensor:
    """[M, C] features of the deepest stage, eval mode, one cloud."""
    assert point.grid_coord is not None and point.num_clouds == 1
    stem: Any = model.embedding
    feat, grid = F.gelu(stem.norm(point.but(feat=stem.linear(point.feat)))), point.grid_coord.long()
    for stage in model.enc:
        stage_: Any = stage
        if stage_.down is not None:
            feat, grid = pool(stage_.down, feat, grid)
        pairs, orders = neighbours(grid), curves(model, grid)
        for index, block in enumerate(stage_.blocks):
            feat = feat + norm(block.cpe.norm, block.cpe.linear(convolve(block.cpe.conv, feat, pairs)))
            feat = feat + attend(block.mix.attn, norm(block.mix.norm, feat), orders[index % len(orders)])
            mlp = block.ffn.mlp
            feat = feat + mlp.fc2(F.gelu(mlp.fc1(norm(block.ffn.norm, feat))))
    return feat


def curves(model: PTv3, grid: Tensor) -> list[Tensor]:
    """Rows along each of the model's curves."""
    depth = (int(grid.max()) + 1).bit_length()
    return [curve_code(grid, depth, curve).argsort(stable=True) for curve in model.config.order]


def norm(module: Any, feat: Tensor) -> Tensor:
    return F.layer_norm(feat, feat.shape[1:], module.weight, module.bias, module.eps)


def neighbours(grid: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """(offset, rows written, rows read) for all 27 offsets."""
    grid = grid + 1
    size = (grid.amax(0) + 2).tolist()
    key = (grid[:, 0] * size[1] + grid[:, 1]) * size[2] + grid[:, 2]
    ordered, order = key.sort()
    found = []
    for tap, (x, y, z) in enumerate(product((-1, 0, 1), repeat=3)):
        wanted = key + (x * size[1] + y) * size[2] + z
        place = torch.searchsorted(ordered, wanted).clamp_(max=len(key) - 1)
        written = (ordered[place] == wanted).nonzero()[:, 0]
        found.append((tap, written, order[place[written]]))
    return found


def convolve(conv: Any, feat: Tensor, pairs: list[tuple[int, Tensor, Tensor]]) -> Tensor:
    taps = conv.weight.flatten(1, 3)
    out = feat.new_zeros(len(feat), len(taps))
    for tap, written, read in pairs:
        out.index_add_(0, written, feat[read] @ taps[:, tap].T)
    return out + conv.bias


def attend(attn: Any, feat: Tensor, order: Tensor, product=F.scaled_dot_product_attention) -> Tensor:
    """Windows of ``patch_size`` rows along the curve; the last one is filled with the rows before it."""
    rows, heads = len(feat), attn.heads
    size = min(attn.patch_size, rows)
    slots = torch.arange(-(-rows // size) * size)
    slots[rows:] -= size
    qkv = attn.qkv(feat)[order[slots]].view(-1, size, 3, heads, attn.channels // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    out = product(q, k, v).transpose(1, 2).reshape(-1, attn.channels)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(rows)
    return attn.proj(out[inverse])


def pool(down: Any, feat: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    grid = grid // down.stride
    size = (grid.amax(0) + 1).tolist()
    key = (grid[:, 0] * size[1] + grid[:, 1]) * size[2] + grid[:, 2]
    values, inverse = key.unique(return_inverse=True)
    feat = down.proj(feat)
    out = feat.new_zeros(len(values), feat.shape[1])
    out = out.scatter_reduce(0, inverse[:, None].expand_as(feat), feat, "amax", include_self=False)
    coarse = torch.stack([values // size[2] // size[1], values // size[2] % size[1], values % size[2]], 1)
    return F.gelu(norm(down.norm, out)), coarse
