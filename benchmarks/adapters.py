"""What adapters add to the frozen backbone's forward pass (Sonata-base, eval, float32).

python benchmarks/adapters.py [--voxels 20000 60000] [--methods gem pointtpa]

One backbone for all, each method an adapter of its own copy of the module tree; the backbone alone takes its turns in
the same run.
"""

from __future__ import annotations

from typing import Any

import torch
from common import arguments, interleaved, machine, room, table

from pointadapt.backbones.weights import load_backbone
from pointadapt.methods import METHODS, adapt
from pointadapt.tasks.segmentation import Segmentation


def main() -> None:
    args = arguments(__doc__, voxels=[20_000, 60_000], methods=["gem", "pointtpa", "adapter", "linear"])
    torch.manual_seed(0)
    state = load_backbone("sonata", weights=None).state_dict()
    models: dict[str, Any] = {}
    for method in args.methods:
        backbone = load_backbone("sonata", weights=None)
        backbone.load_state_dict(state, assign=True)
        models[method] = adapt(Segmentation(backbone, 20), METHODS[method]()).eval().get_base_model().backbone
    plain = load_backbone("sonata", weights=None).eval()
    plain.load_state_dict(state, assign=True)
    rows = []
    with torch.inference_mode():
        for voxels in args.voxels:
            point = room(voxels)
            cases = {n: lambda m=m, p=point: m(p.but(cache={})) for n, m in {"frozen": plain, **models}.items()}
            times = interleaved(cases, args)
            rows.append([len(point), times.median("frozen"), *(times.ratio(m, "frozen") - 1 for m in models)])
    print(f"## What adapters add to the forward pass\n\n{machine(args)}. Shares of the frozen backbone's time.\n")
    print(table(["voxels", "frozen, seconds", *models], rows))


if __name__ == "__main__":
    main()
