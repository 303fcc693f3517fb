"""Evaluation of a run: scores of a split, deterministic; scans are scored on their original points.

pointadapt evaluate runs/site-a --split test --tta 4
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pointadapt.analysis.report import Result, write_report
from pointadapt.domains.domain import Asked, open_domain, remembered_domain
from pointadapt.domains.models import load_model
from pointadapt.errors import UserError
from pointadapt.files import read_json, write_text
from pointadapt.metrics import Absent, scores
from pointadapt.predict import memory_of, with_views
from pointadapt.run import Run, read_settings

#: Scans or shapes that report.html shows in 3D.
SCENES = 3
#: How adapter/best was chosen, in words.
SELECTION = {
    "val": "adapter/best is the step with the best score on validation data.",
    "last": "adapter/best is the last step; no score chose it.",
    "test": "adapter/best is the step with the best score on the test split itself, as published practice has it: "
    "scores on that split are optimistic, and no validation.",
}

LAST = "adapter/last is the last step; no score chose it."
#: Settings and keys of evaluation.json in which runs agree whose confusions are summed.
FOLDS_SHARE = (
    "method", "options", "backbone", "weights", "compat", "architecture", "decoder", "labels",
    "checkpoint", "classes", "absent", "tta",
)  # fmt: skip


def evaluate(
    run: Run | Path | str,
    split: str | None = None,
    checkpoint: str = "best",
    tta: int | None = None,
    absent: Absent = "exclude",
    corruption: str | None = None,
    severity: int = 3,
) -> dict[str, Any]:
    """Score a trained run; returns what is also written to ``evaluation.json`` in its folder, beside report.html.

    run         a Run or its folder
    split       of its data set; default "test" where there is one, else "val"
    tta         test-time views (0 = one pass), default the run's
    absent      what a class counts that is neither labelled nor predicted: see metrics.scores
    corruption  of every shape first, by its name in data/corruptions.py, at ``severity`` 1 to 5
    """
    run = with_views(run if isinstance(run, Run) else Run.load(run), tta)
    domain = open_domain(run)
    split = split or ("test" if domain.dataset.paths("test") else "val")
    trained_on = remembered_domain(run).names
    if domain.names != trained_on:
        raise UserError(f"{run.data} lists other classes than {run.folder} was trained on: {', '.join(trained_on)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(domain, checkpoint).to(device)
    asked = Asked(run.tta, absent, (corruption, severity) if corruption else None)
    with memory_of(run):
        found = domain.evaluate(model, domain.items(split), device, asked, SCENES)
    selection = LAST if checkpoint == "last" else SELECTION[run.select if domain.held_out() else "last"]
    result = {
        "run": str(run.folder),
        "kind": run.kind,
        "split": split,
        "checkpoint": checkpoint,
        "selection": selection,
        "transform": domain.run.transform,
        "tta": run.tta,
        "corruption": {"name": corruption, "severity": severity} if corruption else None,
        "classes": domain.names,
        **found.scores,
        **found.details,
    }
    write_text(run.folder / "evaluation.json", json.dumps(result, indent=2) + "\n")
    title = f"{run.method} on {run.data.resolve().name}: {split}"
    notes = [f"Augmentation in training: {domain.run.transform}. {selection}", *found.notes]
    write_report(
        run.folder / "report.html", title, [Result.from_run(run.folder)], found.scenes, "", notes, found.pictures
    )
    return result


def scored(folder: Path) -> dict[str, Any]:
    """A run's last evaluation of scenes, with the run's settings beside."""
    file = folder / "evaluation.json"
    again = f"score it with pointadapt evaluate {folder}"
    if not file.is_file():
        raise UserError(f"{folder} has no evaluation.json: {again}")
    found = {**read_settings(folder / "run.json")["run"], **read_json(file), "run": str(folder)}
    if found.get("kind", "scenes") != "scenes":
        raise UserError(f"{folder} is for {found['kind']}: only evaluations of scenes can be pooled")
    if "scans" not in found:
        raise UserError(f"{file} does not tell which scans it is on, as older ones do not: {again}")
    return found


def pool(folders: Sequence[Path | str]) -> dict[str, Any]:
    """Scores of the summed confusions of several runs' last evaluations: the 6-fold figures of S3DIS.

    folders   of runs with an evaluation.json each, which split the points among them
    Raises UserError when one is missing, when two scored the same scan, or when they differ in anything of FOLDS_SHARE.
    """
    results = [scored(Path(folder)) for folder in folders]
    if len(results) < 2:
        raise UserError("pooling needs the folders of two runs or more")
    first = results[0]
    seen: dict[str, str] = {}
    for result in results:
        for key in FOLDS_SHARE:
            if result.get(key) != first.get(key):
                raise UserError(f"{result['run']} and {first['run']} differ in {key}: they cannot be pooled")
        if twice := next((scan for scan in result["scans"] if scan in seen), None):
            raise UserError(f"{result['run']} and {seen[twice]} both scored {twice}: a scan counts once")
        seen.update(dict.fromkeys(result["scans"], result["run"]))
    confusion = torch.stack([torch.tensor(result["confusion"]) for result in results]).sum(0)
    further = {"mIoU of the folds, mean": sum(result["miou"] for result in results) / len(results)}
    return {
        "run": ", ".join(result["run"] for result in results),
        "kind": "scenes",
        "split": f"{len(results)} folds",
        "tta": first["tta"],
        "classes": first["classes"],
        **scores(confusion, first["absent"]).as_dict(),
        "absent": first["absent"],
        "further": further,
        "confusion": confusion.tolist(),
    }
