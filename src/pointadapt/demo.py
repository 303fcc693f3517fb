"""The demo: adapt the bundled model to rooms of a style it was not pretrained on, and compare. No download.

pointadapt demo                          # GEM and a linear probe
pointadapt demo --seeds 3 --random       # the README's table: other rooms and weights for each seed, and a control
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from pointadapt.analysis.describe import show, table
from pointadapt.analysis.report import Result, write_report
from pointadapt.data.io import read_scan
from pointadapt.data.scans import DataSet
from pointadapt.data.synthetic import write_rooms
from pointadapt.evaluate import evaluate
from pointadapt.predict import predict
from pointadapt.run import Run
from pointadapt.train import train

#: Rooms of the new style: labelled for training, for the validation curve, and for the final score.
TRAIN, VAL, TEST = 12, 2, 8
#: Every arm's recipe: two arms fit into five minutes on two cores.
RECIPE: dict[str, Any] = {"steps": 300, "batch_size": 2, "points": 6144, "lr": 5e-3, "eval_every": 100}
#: Two validation rooms are too few to choose a step by; the rate has gone to zero at the last one.
CHECKPOINT = "last"


def demo(
    out: Path, seeds: int = 1, steps: int = 0, random: bool = False, weights: Literal["default", "random"] = "default"
) -> list[Result]:
    """Write rooms, train and score every arm, write report.html and labelled scans into ``out``; returns the results.

    Seeds differ in rooms, new weights and data order. ``random`` adds a linear probe on random weights; ``weights``
    are those of the other arms.
    """
    arms = {"linear probe": ("linear", weights), "GEM": ("gem", weights)}
    if random:
        arms = {"linear probe on random weights": ("linear", "random"), **arms}
    recipe = {**RECIPE, "steps": steps or RECIPE["steps"]}
    results: list[Result] = []
    for seed in range(seeds):
        rooms = out / f"rooms-{seed}"
        write_rooms(rooms, TRAIN, "b", seed=1000 + seed, val=VAL, test=TEST)
        for name, (method, start) in arms.items():
            print(f"seed {seed}: {name}", file=sys.stderr)
            run = Run(rooms, run_folder(out, name, seed), weights=start, method=method, seed=seed, **recipe)
            train(run, overwrite=True)
            evaluate(run, "test", CHECKPOINT)
            results.append(Result.from_run(run.folder, name))
    report = write_report(
        out / "report.html",
        "A model pretrained on rooms of one style, adapted to another",
        results,
        scenes=label_rooms(out, list(arms)),
        lead=f"{TRAIN} labelled rooms to train on, {VAL} to validate, {TEST} to test; {seeds} seed(s).",
    )
    show(comparison(results))
    print(f"wrote {report} and labelled scans in {out / 'labelled'}")
    return results


def run_folder(out: Path, arm: str, seed: int) -> Path:
    return out / "runs" / f"{arm.lower().replace(' ', '-')}-{seed}"


def label_rooms(out: Path, arms: list[str]) -> list[dict[str, Any]]:
    """Let every arm of seed 0 label the test rooms; returns the first two for the report."""
    dataset = DataSet.open(out / "rooms-0")
    rooms = dataset.paths("test")
    labelled = {arm: out / "labelled" / arm.lower().replace(" ", "-") for arm in arms}
    for arm, folder in labelled.items():
        for room in rooms:
            predict(run_folder(out, arm, 0), room, folder / room.name, overwrite=True, quiet=True)
    scenes = []
    for room in rooms[:2]:
        sample = dataset.read(room)
        found = {arm: read_scan(folder / room.name, "class").label for arm, folder in labelled.items()}
        scenes.append(
            {
                **{key: sample[key] for key in ("name", "coord", "color", "segment")},
                "predicted": {arm: dataset.index(label) for arm, label in found.items() if label is not None},
                "classes": dataset.names,
            }
        )
    return scenes


def comparison(results: list[Result]) -> Table:
    """Mean and spread (standard deviation) over seeds of every arm."""
    made = table("test rooms, mIoU on all points", "arm", "mIoU", "accuracy", "trained weights", "seconds", "seeds")
    for name in dict.fromkeys(result.name for result in results):
        same = [result for result in results if result.name == name]
        made.add_row(
            name,
            spread([100 * (r.miou or 0) for r in same]),
            spread([100 * (r.allacc or 0) for r in same]),
            f"{same[0].parameters['trained']:,}",
            f"{statistics.mean(r.seconds or 0 for r in same):.0f}",
            str(len(same)),
        )
    return made


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
