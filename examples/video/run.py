"""PointATA against its baselines on point videos: real radar recordings (RadHAR), or motions forwards and backwards.

    pointadapt init radhar/ --frames 12                     # the folder of radhar_train.npz and radhar_test.npz
    python examples/video/run.py radhar/ --out runs/radhar
    python examples/video/run.py reversed --out runs/reversed

May be stopped and started again, and started several times at once: finished runs are kept in --out, which holds
compare.html, .csv, .tex and .md in the end. All arms share tokens, head, recipe and clips; the last step counts.
"""

import argparse
from pathlib import Path

from pointadapt.compare.compare import compare
from pointadapt.demo_video import Size, write_reversed
from pointadapt.kinds import YAML

#: Stage 1 at a size for CPUs; the method's defaults are 50 epochs of 40 steps.
STAGE_1 = "align=procedural,align_epochs=15,align_steps=20"
ARMS = (
    "per-frame probe = linear",
    "ST-Adapter = st-adapter",
    "full fine-tuning = full",
    "PVA alone = pointata[sce=none]",
    "PVA and SCE = pointata",
    f"Stage 1, PVA = pointata[sce=none,{STAGE_1}]",
    f"Stage 1, PVA and SCE = pointata[{STAGE_1}]",
    "PVA and SCE, random weights = random:pointata",
)
#: One Linear on the mean over time of every frame's features, for all arms.
RECIPE = {
    "backbone": "nano-mae", "head": "linear", "batch_size": 16, "lr": 2e-3, "head_lr": 2e-3, "backbone_lr": 2e-4,
    "precision": "bf16",
}  # fmt: skip
SIZES = {
    "radhar": {"steps": 400, "points": 64, "groups": 16},
    "reversed": {"steps": 2000, "points": 96, "groups": 12},
}
BENCHMARK = Size(pairs=6, train=4800, test=480, frames=8, points=96)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of videos with a dataset.yaml, or: reversed")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="fewer, for a trial")
    parser.add_argument("--arms", default="", help="only arms with this text in their line")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--report-only", action="store_true")
    asked = parser.parse_args()
    size = SIZES["reversed" if asked.data == "reversed" else "radhar"]
    data = Path(asked.data)
    if asked.data == "reversed":
        data = asked.out / "clips"
        if not (data / YAML).is_file():
            write_reversed(data, BENCHMARK)
    steps = asked.steps or size["steps"]
    compare(
        data, asked.out, [arm for arm in ARMS if asked.arms in arm], asked.seeds, factors=(1.0,),
        report_only=asked.report_only, **{**RECIPE, **size, "steps": steps, "eval_every": steps,
        "threads": asked.threads, "val_share": 0.0},
    )  # fmt: skip
