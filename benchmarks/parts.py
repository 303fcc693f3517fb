"""Where a Sonata-base forward pass spends its time, part by part, next to what the part's operations would need.

python benchmarks/parts.py [--voxels 60000]

Modules and functions are timed where they are called; a part inside of another one is taken out of it.
"at the floor" is a part's counted operations at the rate of one large matrix product, over its time.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from common import CLOCKS, arguments, large_product, machine, operations, room, table
from torch import nn

import pointadapt.backbones.ptv3 as ptv3
from pointadapt.backbones.ptv3_parts import LayerNorm
from pointadapt.backbones.weights import load_backbone
from pointadapt.ops.sparse_conv import SubMConv3d, neighbors


class Meter:
    """Seconds by part; a part inside another one is taken out of it."""

    def __init__(self, clock: Any) -> None:
        self.clock, self.seconds, self.stack = clock, {}, []

    def enter(self, name: str) -> None:
        self.stack.append([name, self.clock(), 0.0])

    def leave(self) -> None:
        name, start, inside = self.stack.pop()
        spent = self.clock() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + spent - inside
        if self.stack:
            self.stack[-1][2] += spent

    def module(self, name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda *_: self.enter(name))
        module.register_forward_hook(lambda *_: self.leave())

    def function(self, name: str, call: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(name)
            try:
                return call(*args, **kwargs)
            finally:
                self.leave()

        return timed


def main() -> None:
    args = arguments(__doc__, voxels=60_000)
    model: Any = load_backbone("sonata", weights=None).eval()
    point = room(args.voxels)
    count = operations(model, point)
    product, work = large_product()
    clock, floors = CLOCKS[args.clock], []
    meter = Meter(clock)
    kinds: dict[type, str] = {
        SubMConv3d: "convolution",
        nn.Linear: "linears",
        LayerNorm: "norms",
        ptv3.MLP: "MLP: GELU, blocks",
        ptv3.Pooling: "pooling",
    }
    for module in model.modules():
        if type(module) in kinds:
            meter.module(kinds[type(module)], module)
    meter.module("all the rest", model)
    found: list[dict[str, float]] = []
    with ExitStack() as stack, torch.inference_mode():
        for name, label in (("window_attention", "attention with gathers"), ("windows", "curves and windows")):
            stack.enter_context(patch.object(ptv3, name, meter.function(label, getattr(ptv3, name))))
        timed = meter.function("neighbour maps", neighbors)
        stack.enter_context(patch("pointadapt.ops.sparse_conv.neighbors", timed))
        for _ in range(args.repeats + 1):
            meter.seconds = {}
            model(point.but(cache={}))
            found.append(meter.seconds)
            start = clock()
            product()
            floors.append(clock() - start)
    rate = work / statistics.median(floors[1:])
    seconds = {name: statistics.median(f.get(name, 0.0) for f in found[1:]) for name in found[1]}
    total = sum(seconds.values())
    counted = {"attention with gathers": "attention", "linears": "linear", "convolution": "convolution"}
    rows = []
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        share = f"{count[counted[name]] / rate / spent:.2f}" if name in counted else ""
        rows.append([name, spent, spent / total, share])
    print(f"## Where the forward pass at {len(point):,} voxels spends its time\n\n{machine(args)}.\n")
    print(table(["part", "seconds", "share", "at the floor"], rows))


if __name__ == "__main__":
    main()
