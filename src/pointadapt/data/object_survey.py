"""What `pointadapt init` writes for single objects: a dataset.yaml with a comment on every value."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from pointadapt.data.object_folders import find_objects
from pointadapt.data.object_layouts import Layout
from pointadapt.data.object_set import YAML, ObjectSet
from pointadapt.errors import UserError
from pointadapt.files import write_text


def init_objects(folder: Path | str, layout: Layout | None = None, overwrite: bool = False) -> Path:
    """Write ``folder/dataset.yaml`` for the objects in it; returns its path.

    layout   what :func:`pointadapt.data.object_folders.find_objects` returned, if it has been called already
    Raises UserError when dataset.yaml exists already (unless ``overwrite``) or there are no objects.
    """
    folder = Path(folder)
    target = folder / YAML
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already; edit it, or remove it to start anew")
    layout = layout or find_objects(folder)
    if layout is None:
        raise UserError(f"{folder}: no shapes in folders named after classes and no known benchmark; check the path")
    write_text(target, describe(layout))
    return target


def shapes_by_class(dataset: ObjectSet) -> dict[str, Counter[str]]:
    """split -> class (or category) -> shapes, for all splits that have any."""
    counts = {
        split: Counter(dataset.targets[item.target] for item in dataset.items(split)) for split in dataset.split_names
    }
    return {split: count for split, count in counts.items() if count}


def warnings(layout: Layout) -> list[str]:
    """Sentences on what a user should know or check."""
    counts = shapes_by_class(layout.dataset)
    notes = list(layout.notes)
    missing = [name for name in layout.dataset.targets if "train" in counts and not counts["train"][name]]
    if missing:
        few = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        notes.append(f"train has no shape of {few}")
    if len(layout.variants) > 1:
        others = ", ".join(layout.variants[:8]) + (" ..." if len(layout.variants) > 8 else "")
        notes.append(f"the folder holds several data sets ({others}): choose with --variant")
    return notes


def describe(layout: Layout) -> str:
    """dataset.yaml with comments that say what each value does and what it was taken from."""
    dataset, counts = layout.dataset, shapes_by_class(layout.dataset)
    values = dataset.as_dict()
    total = sum(sum(count.values()) for split, count in counts.items() if split not in dataset.tests)
    several = ", ".join(f"{split} {sum(count.values()):,}" for split, count in counts.items())
    lines = [
        f"# How to read the {total:,} shapes of this folder ({layout.title}): {several}.",
        "# pointadapt init wrote it; change what you know better. Paths are relative to this file.",
        "",
        "# classification: one class per shape; parts: one part per point.",
        line("task", dataset.task),
    ]
    per_class = counts.get("train", Counter())
    if dataset.task == "classification":
        lines += ["# Names in the order of the model's outputs, and of the label ids in array files.", "classes:"]
        lines += [f"  - {flow(name)}  # {per_class[name]:,} to learn from" for name in dataset.classes]
    else:
        lines += ["# Names of the parts in the order of their ids.", line("classes", values["classes"])]
        lines += ["# Category: the ids of its parts; a shape can only have those.", "categories:"]
        lines += [
            f"  {flow(name)}: {flow(ids)}  # {per_class[name]:,} shapes to learn from"
            for name, ids in values["categories"].items()
        ]
        if dataset.label_field:
            lines += [
                "# The field of the files that holds the part of each point.",
                line("label_field", dataset.label_field),
            ]
    if dataset.folders:
        lines += ["# Name of a folder: what the shapes in it are.", "folders:"]
        lines += [f"  {flow(folder)}: {flow(name)}" for folder, name in dataset.folders.items()]
    lines += [
        "# Points of a shape that the model sees: drawn at random in training, the farthest from each other else.",
        line("points", dataset.points),
        "# The upward axis of the files: x, y, z, -y or -z. The model sees every shape with y up.",
        line("up", dataset.up),
        "# Centroid to the origin, farthest point to distance 1.",
        line("normalize", dataset.normalize),
        "# Augmentation in training: rotate (any turn), scale_translate, scale_rotate, parts, jitter or none.",
        line("transform", dataset.transform),
        "# Share of each class of train that becomes val, where val is empty.",
        line("holdout", dataset.holdout),
        "# Folders, files, array files, rows of them (shapes.npz#12), or lists of names.",
        *listing("splits", values["splits"]),
        *(("# Suites of corrupted shapes, each a test split; they are not normalised.",) if dataset.tests else ()),
        *(listing("tests", values["tests"]) if dataset.tests else ()),
    ]
    return "\n".join(lines) + "\n"


def listing(key: str, splits: dict[str, list[str]]) -> list[str]:
    lines = [f"{key}:"] if splits else [f"{key}: {{}}"]
    for split, sources in splits.items():
        lines += [f"  {flow(split)}:" if sources else f"  {flow(split)}: []", *(f"    - {flow(s)}" for s in sources)]
    return lines


def flow(value: Any) -> str:
    return yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True
    ).splitlines()[0]


def line(key: str, value: Any) -> str:
    return f"{key}: {flow(value)}\n"
