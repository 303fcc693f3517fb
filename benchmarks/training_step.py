"""One training step on Sonata-base: GEM and PointTPA against full fine-tuning, with and without checkpointing.

python benchmarks/training_step.py [--voxels 20000]

A step is forward, loss (20 classes, cross-entropy + Lovász), backward and AdamW. Memory is the peak above the input and
all weights (full fine-tuning's second copy is not counted against it); gradients and the optimiser's state count.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from common import arguments, interleaved, machine, peak_memory, room, table

from pointadapt.backbones.weights import load_backbone
from pointadapt.methods import METHODS, adapt
from pointadapt.point import Point
from pointadapt.tasks.segmentation import Segmentation

CASES = {
    "full": ("full", False),
    "full, checkpointing": ("full", True),
    "GEM": ("gem", False),
    "GEM, checkpointing": ("gem", True),
    "PointTPA": ("pointtpa", False),
    "linear": ("linear", False),
}


def stepper(method: str, checkpointing: bool, point: Point, target: torch.Tensor) -> Callable[[], Any]:
    """A function that takes one optimiser step of a model made for it."""
    torch.manual_seed(0)
    backbone = load_backbone("sonata", weights=None)
    backbone.checkpointing = checkpointing
    for module in backbone.modules():
        if hasattr(module, "rate"):  # DropPath, off in the frozen backbone as in training
            module.rate = 0.0
    model = adapt(Segmentation(backbone, 20), METHODS[method]()).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4)

    def step() -> None:
        loss = model.get_base_model().loss(model(point.but(cache={})), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    args = arguments(__doc__, voxels=20_000)
    point = room(args.voxels)
    target = torch.randint(0, 20, (len(point),), generator=torch.Generator().manual_seed(0))
    memory = {}
    for name, (method, checkpointing) in CASES.items():
        step = stepper(method, checkpointing, point, target)
        memory[name] = peak_memory(lambda step=step: (step(), step()))
        del step
        gc.collect()
    steps = {name: stepper(*case, point, target) for name, case in CASES.items()}
    times = interleaved(steps, args)
    full = "full"
    rows = [[n, times.median(n), times.ratio(n, full), memory[n], memory[n] / memory[full]] for n in times]
    print(f"## Training step at {len(point):,} voxels\n\n{machine(args)}.\n")
    print(table(["method", "seconds", "of full", "peak +GB", "of full"], rows))


if __name__ == "__main__":
    main()
