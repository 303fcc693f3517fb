"""The demo on videos: motions forwards and backwards, which nothing but the order of frames tells apart. No download.

pointadapt demo --video                  # PointATA against a probe that sees one frame at a time
pointadapt demo --video --seeds 3        # other clips and weights for each seed

The frames of a clip of class 2k + 1 are those of class 2k, last first (data/synthetic_video.py). So a model that
averages over single frames gets half of them right at best, however good it is.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from pointadapt.analysis.describe import show, table
from pointadapt.analysis.report import Result, write_report
from pointadapt.data.synthetic_video import VIDEO_CLASSES, clip
from pointadapt.demo import run_folder, spread
from pointadapt.errors import UserError
from pointadapt.evaluate import evaluate
from pointadapt.files import write_text, written
from pointadapt.kinds import YAML
from pointadapt.predict import predict
from pointadapt.run import Run
from pointadapt.train import train

#: Every arm's rates; the last step is scored, for no score chose it.
RATES: dict[str, Any] = {"lr": 2e-3, "head_lr": 2e-3, "select": "last", "val_share": 0.0}
CHECKPOINT = "last"
#: Arm -> method, options, head. The probe is one Linear on the mean of the frames' features.
ARMS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "per-frame probe": ("linear", {}, "linear"),
    "PointATA": ("pointata", {}, "mlp"),
}
#: Videos of the test that get a picture of their timeline.
SHOWN = 4


@dataclass(frozen=True)
class Size:
    """pairs of classes (1 to 6), clips of the training and the test split, frames of a clip and points of a frame,
    groups a frame is cut into, steps and batch size of every arm."""

    pairs: int = 3
    train: int = 240
    test: int = 120
    frames: int = 8
    points: int = 96
    groups: int = 12
    steps: int = 300
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= len(VIDEO_CLASSES) // 2:
            raise UserError(f"pairs is {self.pairs}; there are {len(VIDEO_CLASSES) // 2} motions")


def demo_video(out: Path, seeds: int = 1, size: Size | None = None, random: bool = False) -> list[Result]:
    """Write clips, train and score every arm, write report.html and timelines into ``out``; returns the results.

    Seeds differ in clips, new weights and data order. ``random``: the backbone has random weights.
    """
    size = size or Size()
    results: list[Result] = []
    for seed in range(seeds):
        clips = write_reversed(out / f"clips-{seed}", size, seed)
        for name, (method, options, head) in ARMS.items():
            print(f"seed {seed}: {name}", file=sys.stderr)
            run = Run(
                clips, run_folder(out, name, seed), method=method, options=options, head=head, seed=seed,
                weights="random" if random else "default", groups=size.groups, steps=size.steps,
                eval_every=size.steps, batch_size=size.batch_size, **RATES,
            )  # type: ignore[arg-type]  # fmt: skip
            train(run, overwrite=True)
            evaluate(run, "test", CHECKPOINT)
            results.append(Result.from_run(run.folder, name))
    files = timelines(out, size)
    report = write_report(
        out / "report.html",
        "Motions forwards and backwards: who sees the order of frames?",
        results,
        lead=f"{size.train} clips of {size.frames} frames to train on, {size.test} to test, {2 * size.pairs} classes "
        f"in time-reversed pairs; {seeds} seed(s). A model blind to order gets half of each pair right at best.",
        notes=[f"Right direction, where the motion was recognised: {directions(results)}."],
    )
    show(comparison(results))
    print(f"wrote {report} and {len(files)} timelines in {out / 'predicted'}")
    return results


def write_reversed(folder: Path, size: Size, seed: int = 0) -> Path:
    """train.npz, test.npz and dataset.yaml of the benchmark; classes take turns, each clip shows a thing of its own."""
    classes = list(VIDEO_CLASSES[: 2 * size.pairs])
    for number, (split, count) in enumerate((("train", size.train), ("test", size.test))):
        label = np.arange(count) % len(classes)
        seeds = [int(np.random.SeedSequence([seed, number, i]).generate_state(1)[0]) for i in range(count)]
        points = np.stack([clip(s, int(y), size.frames, size.points) for s, y in zip(seeds, label, strict=True)])
        with written(folder / f"{split}.npz") as temporary:
            np.savez_compressed(temporary, points=points, label=label)
    content = {
        "task": "action", "classes": classes, "splits": {"train": ["train.npz"], "test": ["test.npz"]},
        "frames": size.frames, "points": size.points, "up": "z", "transform": "scale",
    }  # fmt: skip
    write_text(folder / YAML, yaml.safe_dump(content, sort_keys=False))
    return folder


def timelines(out: Path, size: Size) -> list[Path]:
    """PointATA's predictions for the first test clips of seed 0, with pictures."""
    with np.load(out / "clips-0" / "test.npz") as content:
        points = content["points"][:SHOWN]
    for number, frames in enumerate(points):
        with written(out / "predicted" / "clips" / f"clip_{number}.npz") as temporary:
            np.savez_compressed(temporary, points=frames)
    run, predicted = run_folder(out, "PointATA", 0), out / "predicted"
    files = predict(run, predicted / "clips", predicted / "tables", CHECKPOINT, overwrite=True, quiet=True)
    return [file for file in files if file.suffix == ".png"]


def direction(result: Result) -> float:
    """Of the clips whose motion was recognised, the share whose direction was, too; 0.5 is chance."""
    counts = np.asarray(result.confusion, dtype=float)
    pairs = counts.reshape(len(counts) // 2, 2, len(counts) // 2, 2)
    within = sum(pairs[k, :, k, :].sum() for k in range(len(pairs)))
    return float(np.trace(counts) / within) if within else 0.0


def by_arm(results: list[Result]) -> dict[str, list[Result]]:
    return {name: [r for r in results if r.name == name] for name in dict.fromkeys(r.name for r in results)}


def directions(results: list[Result]) -> str:
    return ", ".join(f"{name} {spread([100 * direction(r) for r in same])} %" for name, same in by_arm(results).items())


def comparison(results: list[Result]) -> Table:
    """Mean and spread (standard deviation) over seeds of every arm."""
    columns = ("arm", "video acc.", "right direction", "trained weights", "seconds", "seeds")
    made = table("test clips, %", *columns)
    for name, same in by_arm(results).items():
        made.add_row(
            name,
            spread([100 * (r.video_accuracy or 0) for r in same]),
            spread([100 * direction(r) for r in same]),
            f"{same[0].parameters['trained']:,}",
            f"{statistics.mean(r.seconds or 0 for r in same):.0f}",
            str(len(same)),
        )
    made.caption = "right direction: of the clips whose motion was recognised; 50 is chance"
    made.caption_justify = "left"
    return made
