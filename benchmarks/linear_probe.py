"""An epoch of a linear probe on kept features against one forward pass over the same data (Sonata-base).

python benchmarks/linear_probe.py [--voxels 20000] [--scenes 2]

The epoch is every scene once: head, loss (20 classes, cross-entropy + Lovász), backward, AdamW.
"""

from __future__ import annotations

import torch
from common import arguments, interleaved, machine, room, table

from pointadapt.backbones.weights import load_backbone
from pointadapt.tasks.segmentation import Segmentation


def main() -> None:
    args = arguments(__doc__, voxels=20_000, scenes=2)
    torch.manual_seed(0)
    model = Segmentation(load_backbone("sonata", weights=None).requires_grad_(False).eval(), 20)
    points = [room(args.voxels, seed) for seed in range(args.scenes)]
    targets = [torch.randint(0, 20, (len(p),)) for p in points]
    optimizer = torch.optim.AdamW(model.head.parameters(), 1e-3)
    with torch.no_grad():
        kept = [model.frozen(p) for p in points]

    def forward() -> None:
        with torch.no_grad():
            for point in points:
                model.backbone.levels(point.but(cache={}))

    def epoch() -> None:
        for features, target in zip(kept, targets, strict=True):
            model.loss(model(features), target).backward()
            optimizer.step()
            optimizer.zero_grad()

    def whole() -> None:
        for point, target in zip(points, targets, strict=True):
            model.loss(model(point.but(cache={})), target).backward()
            optimizer.step()
            optimizer.zero_grad()

    times = interleaved({"forward": forward, "epoch on kept features": epoch, "epoch without": whole}, args)
    size = sum(f.numel() * 4 for k in kept for f in k.feats) / 1e6 / len(kept)
    rows = [[name, times.median(name), times.ratio(name, "forward")] for name in times]
    print(f"## Linear probe, {args.scenes} scenes of {args.voxels:,} voxels\n\n{machine(args)}.")
    print(f"A scene's features take {size:.0f} MB.\n")
    print(table(["", "seconds", "of a forward pass over the data"], rows))


if __name__ == "__main__":
    main()
