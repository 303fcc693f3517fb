"""Sonata-base forward (random weights, eval, float32): against the plain reference and against the floor.

python benchmarks/sonata_forward.py [--voxels 20000 60000] [--largest 60000]

Every run is on a fresh Point, so neighbour maps, curves and windows are computed each time. The floor is the time that
the counted operations (attention, linears, convolution) would take at the rate of one large matrix product, which takes
its turns in the same run. The reference runs up to ``--largest`` voxels; inputs above ``--few`` have half the rounds.
"""

from __future__ import annotations

import math
from typing import Any

import reference
import torch
from common import arguments, interleaved, large_product, machine, operations, peak_memory, room, table

from pointadapt.backbones.weights import load_backbone


def main() -> None:
    args = arguments(
        __doc__, voxels=[10_000, 20_000, 60_000, 200_000, 1_000_000], largest=60_000, backbone="sonata", few=200_000
    )
    torch.manual_seed(0)
    model: Any = load_backbone(args.backbone, weights=None).eval()
    product, work = large_product()
    rows, times, peaks = [], [], []
    with torch.inference_mode():
        for voxels in args.voxels:
            point = room(voxels)
            count = operations(model, point)
            cases = {"floor": product, "ours": lambda point=point: model(point.but(cache={}))}
            if voxels <= args.largest:
                cases["reference"] = lambda point=point: reference.forward(model, point)
                gap = (cases["ours"]().feat - cases["reference"]()).abs().max().item()
                assert gap < 1e-3, f"the reference differs by {gap}"
            memory = {name: peak_memory(run) for name, run in cases.items() if name != "floor"}
            found = interleaved(cases, args, args.repeats if voxels <= args.few else max(1, args.repeats // 2))
            share = sum(count.values()) / work * found.ratio("floor", "ours")
            plain, against = math.nan, math.nan
            if "reference" in cases:
                plain, against = found.median("reference"), found.ratio("ours", "reference")
            rows.append(
                [
                    len(point),
                    *(count[k] / 1e9 for k in ("attention", "linear", "convolution")),
                    found.median("ours"),
                    plain,
                    against,
                    work / found.median("floor") / 1e9,
                    share,
                    memory["ours"],
                    memory.get("reference", math.nan),
                ]
            )
            times.append((len(point), found.median("ours")))
            peaks.append(memory["ours"])
    print(f"## Forward pass of {args.backbone}\n\n{machine(args)}. The floor is a product of 2048 x 2048 matrices.\n")
    head = ["voxels", "attention GFLOP", "linear", "convolution", "seconds", "plain reference", "ratio"]
    print(table([*head, "floor GFLOP/s", "share of the floor's rate", "peak +GB", "reference +GB"], rows))
    if len(times) > 1:
        (n0, t0), (n1, t1) = times[0], times[-1]
        print(f"\nGrowth from {n0:,} to {n1:,} voxels: time ~ voxels^{math.log(t1 / t0) / math.log(n1 / n0):.2f}.")


if __name__ == "__main__":
    main()
