"""What `pointadapt init` writes for single objects: a dataset.yaml with a comment on every value."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pointadapt.data.layout import flow, heading, lacking, line, listing, write_yaml
from pointadapt.data.object_folders import find_objects
from pointadapt.data.object_layouts import ObjectLayout
from pointadapt.data.object_set import ObjectSet


def init_objects(folder: Path | str, layout: ObjectLayout | None = None, overwrite: bool = False) -> Path:
    """Write ``folder/dataset.yaml`` for the objects in it; returns its path.

    layout   what :func:`pointadapt.data.object_folders.find_objects` returned, if it has been called already
    Raises UserError when dataset.yaml exists already (unless ``overwrite``) or there are no objects.
    """
    missing = "no shapes in folders named after classes and no known benchmark"
    return write_yaml(folder, layout, find_objects, describe, overwrite, missing)


def shapes_by_class(dataset: ObjectSet) -> dict[str, Counter[str]]:
    """split -> class (or category) -> shapes, for all splits that have any."""
    counts = {
        split: Counter(dataset.targets[item.target] for item in dataset.items(split)) for split in dataset.split_names
    }
    return {split: count for split, count in counts.items() if count}


def warnings(layout: ObjectLayout) -> list[str]:
    """Sentences on what a user should know or check."""
    counts = shapes_by_class(layout.dataset)
    notes = list(layout.notes)
    missing = [name for name in layout.dataset.targets if "train" in counts and not counts["train"][name]]
    notes += lacking("shape", missing)
    if len(layout.variants) > 1:
        others = ", ".join(layout.variants[:8]) + (" ..." if len(layout.variants) > 8 else "")
        notes.append(f"the folder holds several data sets ({others}): choose with --variant")
    return notes


def describe(layout: ObjectLayout) -> str:
    """dataset.yaml with comments that say what each value does and what it was taken from."""
    dataset, counts = layout.dataset, shapes_by_class(layout.dataset)
    values = dataset.as_dict()
    total = sum(sum(count.values()) for split, count in counts.items() if split not in dataset.tests)
    lines = [
        *heading(layout, total, {split: sum(count.values()) for split, count in counts.items()}, "shapes"),
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
