"""Sonata-base forward on the CPU against the operators of the official code: spconv's convolution, eager attention.

    pip install spconv                                  # Linux wheels for the CPU; the library itself never needs it
    python benchmarks/official.py [--voxels 20000 60000]

The official model runs on no CPU as it is released (spconv's layers refuse a bias in eval mode there, and attention
without the fused kernel upcasts). This is its network from reference.py with its operators in their place: submanifold
convolution by spconv in training mode, held to one thread because its sums race with several, one rulebook per stage;
attention by products and softmax; voxels of a pool by ``unique`` over rows. Its numbers are checked against ours.
"""

from __future__ import annotations

import math
import sys
from importlib.metadata import version
from typing import Any

import reference
import torch
import torch.nn.functional as F
from common import arguments, interleaved, machine, peak_memory, room, table
from torch import Tensor, nn

from pointadapt.backbones.weights import load_backbone
from pointadapt.point import Point

try:
    import spconv.pytorch as spconv
except ModuleNotFoundError:
    sys.exit("benchmarks/official.py needs spconv: pip install spconv (Linux, x86-64)")


class Official(nn.Module):
    """The network of a PTv3 of the second generation, its weights in the official operators."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.convs = nn.ModuleDict()
        for depth, stage in enumerate(model.enc):
            for index, block in enumerate(stage.blocks):
                ours = block.cpe.conv
                channels = ours.weight.shape[0]
                conv = spconv.SubMConv3d(channels, channels, 3, bias=True, indice_key=f"stage{depth}")
                conv.weight.data, conv.bias.data = ours.weight.data, ours.bias.data
                self.convs[f"{depth} {index}"] = conv.train()

    def forward(self, point: Point) -> Tensor:
        assert point.grid_coord is not None
        stem = self.model.embedding
        feat, grid = F.gelu(stem.norm(point.but(feat=stem.linear(point.feat)))), point.grid_coord.long()
        for depth, stage in enumerate(self.model.enc):
            if stage.down is not None:
                feat, grid = pool(stage.down, feat, grid)
            rows = torch.cat([grid.new_zeros(len(grid), 1), grid], 1).int()
            sparse = spconv.SparseConvTensor(feat, rows, (grid.amax(0) + 97).tolist(), 1)
            curves = reference.curves(self.model, grid)
            for index, block in enumerate(stage.blocks):
                sparse = sparse.replace_feature(feat)
                feat = feat + reference.norm(
                    block.cpe.norm, block.cpe.linear(alone(self.convs[f"{depth} {index}"], sparse))
                )
                order = curves[index % len(curves)]
                feat = feat + reference.attend(block.mix.attn, reference.norm(block.mix.norm, feat), order, eager)
                mlp = block.ffn.mlp
                feat = feat + mlp.fc2(F.gelu(mlp.fc1(reference.norm(block.ffn.norm, feat))))
        return feat


def alone(conv: nn.Module, sparse: Any) -> Tensor:
    """In one thread: with more, spconv's threads share a pointer and some rows come out wrong."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = conv(sparse).features
    torch.set_num_threads(threads)
    return out


def eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return logits.softmax(-1) @ value


def pool(down: Any, feat: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    coarse, inverse = (grid // down.stride).unique(dim=0, return_inverse=True)
    feat = down.proj(feat)
    out = feat.new_zeros(len(coarse), feat.shape[1])
    out = out.scatter_reduce(0, inverse[:, None].expand_as(feat), feat, "amax", include_self=False)
    return F.gelu(reference.norm(down.norm, out)), coarse


def main() -> None:
    args = arguments(__doc__, voxels=[20_000, 60_000], backbone="sonata")
    torch.manual_seed(0)
    model: Any = load_backbone(args.backbone, weights=None).eval()
    official = Official(model)
    rows = []
    with torch.inference_mode():
        for voxels in args.voxels:
            point = room(voxels)
            cases = {"official": lambda point=point: official(point), "ours": lambda point=point: ours(model, point)}
            gap = (cases["ours"]() - cases["official"]()).abs().max().item()
            assert gap < 1e-3, f"the official operators differ by {gap}"
            memory = {name: peak_memory(run) for name, run in cases.items()}
            times = interleaved(cases, args)
            less = memory["ours"] / memory["official"] if memory["official"] else math.nan
            rows.append([len(point), *map(times.median, ("ours", "official")), times.ratio("ours", "official"),
                         memory["ours"], memory["official"], less, gap])  # fmt: skip
    print(f"## {args.backbone} against the official operators\n\n{machine(args)}; spconv {version('spconv')}.\n")
    head = [
        "voxels",
        "seconds",
        "official operators",
        "ratio",
        "peak +GB",
        "official +GB",
        "ratio",
        "largest difference",
    ]
    print(table(head, rows))


def ours(model: Any, point: Point) -> Tensor:
    return model(point.but(cache={})).feat


if __name__ == "__main__":
    main()
