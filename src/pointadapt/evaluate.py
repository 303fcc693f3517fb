"""Evaluation of a run: scores on the original points of a split, deterministic.

pointadapt evaluate runs/site-a --split test --tta 4
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pointadapt.analysis.report import Result, write_report
from pointadapt.data.loader import ScanDataset
from pointadapt.data.scans import DataSet
from pointadapt.data.transforms import Sample
from pointadapt.errors import UserError
from pointadapt.files import write_text
from pointadapt.metrics import Absent, confusion_matrix, scores, sum_over_processes
from pointadapt.predict import give_back_memory, vote, with_views
from pointadapt.run import Run, dataset_of, load_model

#: Scans that report.html shows in 3D.
SCENES = 3


def evaluate(
    run: Run | Path | str,
    split: str | None = None,
    checkpoint: str = "best",
    tta: int | None = None,
    absent: Absent = "exclude",
) -> dict[str, Any]:
    """Score a trained run; returns what is also written to ``evaluation.json`` in its folder, beside report.html.

    run     a Run or its folder
    split   of its data set; default "test" where there is one, else "val"
    tta     test-time views (0 = one pass per scan), default the run's
    absent  what a class counts that is neither labelled nor predicted: see metrics.scores
    """
    run = with_views(run if isinstance(run, Run) else Run.load(run), tta)
    dataset = DataSet.open(run.data)
    split = split or ("test" if dataset.paths("test") else "val")
    trained_on = dataset_of(run).names
    if dataset.names != trained_on:
        raise UserError(f"{run.data} lists other classes than {run.folder} was trained on: {', '.join(trained_on)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(run, dataset.names, checkpoint).to(device)
    scans = ScanDataset(dataset, split, train=False, limit=run.tile, cache=run.cache)
    scenes: list[dict[str, Any]] = []

    def keep(sample: Sample, found: Tensor) -> None:
        if len(scenes) < SCENES:
            shown = {key: sample[key] for key in ("name", "coord", "color", "segment")}
            scenes.append({**shown, "predicted": found.numpy(), "classes": dataset.names})

    counts = confusion_of(model, scans, run, device, run.tta, keep)
    result = {
        "run": str(run.folder),
        "split": split,
        "checkpoint": checkpoint,
        "tta": run.tta,
        "absent": absent,
        "classes": dataset.names,
        **scores(counts, absent).as_dict(),
        "confusion": counts.tolist(),
    }
    write_text(run.folder / "evaluation.json", json.dumps(result, indent=2) + "\n")
    title = f"{run.method} on {run.data.resolve().name}: {split}"
    write_report(run.folder / "report.html", title, [Result.from_run(run.folder)], scenes)
    return result


def confusion_of(
    model: nn.Module,
    scans: ScanDataset,
    run: Run,
    device: torch.device,
    views: int = 0,
    each: Callable[[Sample, Tensor], None] = lambda sample, found: None,
) -> Tensor:
    """[classes, classes] counts over the original points of all scans, shared out over processes and summed up.

    ``each`` is called with every sample and its predicted class per point [N].
    """
    classes = len(scans.dataset.names)
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for index in range(rank, len(scans), processes):
        sample = scans[index]
        found = vote(model, sample, scans.dataset.voxel, run, device, views).argmax(1)
        each(sample, found)
        counts += confusion_matrix(found, torch.from_numpy(sample["segment"]), classes)
        give_back_memory()
    return sum_over_processes(counts)
