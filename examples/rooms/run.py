"""Every method on procedural rooms with 1 %, 10 % and 100 % of 100 labelled rooms; controls of GEM and PointTPA.

    python examples/rooms/run.py --out runs/rooms --threads 1        # again, in a second terminal, to share the work

Writes the rooms, then two grids, each with compare.html, .csv, .tex and .md: OUT/methods, all methods, whose learning
rates are chosen by runs of a quarter of the length; and OUT/controls, the variants beside their method at 10 %,
whose rates are chosen by runs of full length. May be stopped and started again; finished runs are kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from pointadapt.compare.compare import compare
from pointadapt.data.synthetic import write_rooms

#: Rooms of the style that nano was not pretrained on, to train, to choose learning rates and to score on.
TRAIN, VAL, TEST, SEED = 100, 8, 16, 2000
METHODS = ("random:linear", "all", "random:full")
CONTROLS = (
    "linear",
    "lora",
    "adapter",
    "gem",
    "GEM, share none = gem[share=none,up_bias=false]",
    "GEM, share qk = gem[share=qk]",
    "GEM, spatial alone = gem[use_ca=false]",
    "GEM, context alone = gem[use_sa=false]",
    "GEM, one latent = gem[num_latents=1]",
    "pointtpa",
    "PointTPA, all static = pointtpa[dynamic=none]",
    "PointTPA, one group = pointtpa[groups=[1]]",
    "PointTPA, uniform gate = pointtpa[gate=uniform]",
    "PointTPA, random gate = pointtpa[gate=random]",
    "PointTPA, random groups = pointtpa[grouping=random]",
    "full",
)
#: Runs of small crops: the first grid takes ten hours of a busy core, the second four.
RECIPE: dict[str, Any] = {
    "backbone": "nano", "steps": 200, "batch_size": 2, "points": 6144, "lr": 5e-3, "backbone_lr": 2e-3,
}  # fmt: skip


def rooms(folder: Path) -> Path:
    """The rooms; written if they are not there."""
    if not folder.is_dir():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")
        write_rooms(draft, TRAIN, "b", SEED, VAL, TEST)
        try:
            draft.rename(folder)
        except OSError:  # another process was first, with the same rooms
            shutil.rmtree(draft)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/rooms"))
    parser.add_argument("--steps", type=int, default=RECIPE["steps"])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--report-only", action="store_true")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    data = rooms(asked.out / "rooms")
    shared = {**RECIPE, "steps": asked.steps, "eval_every": asked.steps, "threads": asked.threads}
    grids = (
        ("methods", METHODS, ("1%", "10%", "100%"), 0.25, "bf16"),
        ("controls", CONTROLS, ("10%",), 1.0, "no"),  # quicker so on a core without instructions for bfloat16
    )
    for name, methods, labels, share, precision in grids:
        compare(
            data, asked.out / name, methods, 3, labels, factors=(0.3, 1.0, 3.0), trial_share=share,
            precision=precision, report_only=asked.report_only, **shared,
        )  # fmt: skip
