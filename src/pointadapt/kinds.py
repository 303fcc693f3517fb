"""Kinds of data and what differs between them by name only: default settings, scores, and the file that does the rest.

A kind is one entry of KINDS and one module of :mod:`pointadapt.domains`. Nothing heavy is imported here, so that a Run
has its defaults at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

YAML = "dataset.yaml"


@dataclass(frozen=True)
class Kind:
    """One kind of data.

    name        the value of ``task`` in dataset.yaml; "scenes" is a yaml without that key
    domain      "module:Class" of its :class:`pointadapt.domains.domain.Domain`
    scores      key in metrics.jsonl and evaluation.json -> heading; the first one leads: it chooses the best step
    per_class   key -> heading of scores that every class has; the first one is drawn
    sources     what its files are called
    counted     what a confusion matrix counts
    views       largest number of test-time views
    recipe      default of every Run field that is left None
    """

    name: str
    domain: str
    scores: Mapping[str, str]
    per_class: Mapping[str, str]
    sources: str
    counted: str
    views: int
    recipe: Mapping[str, Any]

    @property
    def headline(self) -> str:
        return next(iter(self.scores))

    @property
    def heading(self) -> str:
        return self.scores[self.headline]


SCENES = Kind(
    name="scenes",
    domain="pointadapt.domains.scenes:Scenes",
    scores={"miou": "mIoU", "macc": "mAcc", "allacc": "allAcc"},
    per_class={"iou": "IoU", "recall": "recall"},
    sources="scans",
    counted="points",
    views=13,
    recipe={
        "backbone": "nano",
        "method": "gem",
        "head": "linear",
        "steps": 300,
        "batch_size": 2,
        "points": 16_000,
        "lr": 2e-3,
        "head_lr": 2e-3,
        "backbone_lr": 2e-4,
        "weight_decay": 0.02,
        "smoothing": 0.0,
        "clip": 3.0,
        "schedule": "onecycle",
        "warmup": 0.05,
    },
)
#: The protocol that the published object methods share, per step where it is per epoch there.
PUBLISHED = {
    "backbone": "nano-mae",
    "method": "lora",
    "head": "mlp3",
    "steps": 500,
    "batch_size": 32,
    "points": 0,
    "lr": 5e-4,
    "head_lr": 5e-4,
    "backbone_lr": 5e-4,
    "weight_decay": 0.05,
    "smoothing": 0.0,
    "clip": 10.0,
    "schedule": "cosine",
    "warmup": 1 / 30,
}
CLASSIFICATION = Kind(
    name="classification",
    domain="pointadapt.domains.objects:Classified",
    scores={"oa": "OA", "macc": "mAcc"},
    per_class={"accuracy": "accuracy"},
    sources="shapes",
    counted="shapes",
    views=100,
    recipe=PUBLISHED,
)
PARTS = Kind(
    name="parts",
    domain="pointadapt.domains.parts:Parts",
    scores={"instance_miou": "instance mIoU", "class_miou": "class mIoU", "allacc": "allAcc"},
    per_class={"iou": "IoU"},
    sources="shapes",
    counted="points",
    views=100,
    recipe={**PUBLISHED, "batch_size": 16, "lr": 2e-4, "head_lr": 2e-4, "backbone_lr": 2e-4},
)
#: Recipes of point videos are not published with PointATA: these are chosen here.
VIDEO = {
    **PUBLISHED,
    "method": "pointata",
    "head": "mlp",
    "batch_size": 16,
    "warmup": 0.1,
}
ACTION = Kind(
    name="action",
    domain="pointadapt.domains.videos:Actions",
    scores={"video_accuracy": "video acc.", "clip_accuracy": "clip acc.", "macc": "mAcc"},
    per_class={"accuracy": "accuracy"},
    sources="videos",
    counted="videos",
    views=0,
    recipe={**VIDEO, "smoothing": 0.1},
)
ACTION_SEGMENTATION = Kind(
    name="action_segmentation",
    domain="pointadapt.domains.video_segments:FrameActions",
    scores={"frame_accuracy": "frame acc.", "edit": "edit", "f1_10": "F1@10", "f1_25": "F1@25", "f1_50": "F1@50"},
    per_class={"accuracy": "accuracy"},
    sources="videos",
    counted="frames",
    views=0,
    recipe={**VIDEO, "batch_size": 8},
)
VIDEO_SEGMENTATION = Kind(
    name="video_segmentation",
    domain="pointadapt.domains.video_segments:PointClasses",
    scores={"miou": "mIoU", "macc": "mAcc", "allacc": "allAcc"},
    per_class={"iou": "IoU", "recall": "recall"},
    sources="videos",
    counted="points",
    views=0,
    recipe={**VIDEO, "batch_size": 8, "lr": 1e-3, "head_lr": 1e-3, "backbone_lr": 1e-3},
)
KINDS = {kind.name: kind for kind in (SCENES, CLASSIFICATION, PARTS, ACTION, ACTION_SEGMENTATION, VIDEO_SEGMENTATION)}


def kind_of(path: Path | str) -> str:
    """The kind that a data set's yaml names, by its ``task`` line alone; "scenes" without one or without a file.

    A name that is no kind is for the reader of the data set to refuse.
    """
    path = Path(path)
    file = path / YAML if path.is_dir() else path
    if file.name.endswith((".yaml", ".yml")) and file.is_file():
        text = file.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^task\s*:\s*[\"']?([\w-]+)", text, re.MULTILINE)
        if found and found[1] in KINDS:
            return found[1]
    return SCENES.name


def defaults_in_words(field: str) -> str:
    """The defaults of a Run field by kind, as ``--help`` shows them: "scenes 2, classification 32, parts 16"."""
    values: dict[Any, list[str]] = {}
    for kind in KINDS.values():
        value = kind.recipe[field]
        values.setdefault(f"{value:.3g}" if isinstance(value, float) else str(value), []).append(kind.name)
    if len(values) == 1:
        return next(iter(values))
    return ", ".join(f"{' and '.join(names)} {value}" for value, names in values.items())
