"""What `pointadapt init` writes for a published scene benchmark: dataset.yaml with comments, and lists of scans."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from pointadapt.data.benchmarks import Benchmark
from pointadapt.data.layout import flow
from pointadapt.data.scans import MODEL_VOXEL, DataSet
from pointadapt.errors import UserError
from pointadapt.files import write_text


def init_benchmark(
    folder: Path | str,
    found: Benchmark,
    grid_size: float | None = None,
    scale: float | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the dataset.yaml of a benchmark (several for the folds of S3DIS) and its lists; returns the yaml files.

    grid_size, scale   take the place of the published ones
    Raises UserError when a file is there already (unless ``overwrite``) or a split turns out to be empty.
    """
    folder = Path(folder)
    files = [folder / name for name in found.datasets]
    for file in files:
        if file.exists() and not overwrite:
            raise UserError(f"{file} exists already; edit it, or remove it to start anew")
    for name, value in {"grid_size": grid_size, "scale": scale}.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} is {value}; it must be a number above 0")
    for name, lines in found.lists.items():
        write_text(folder / name, "".join(f"{line}\n" for line in lines))
    for file, dataset in zip(files, found.datasets.values(), strict=True):
        if grid_size is not None:
            dataset = replace(dataset, grid_size=grid_size, scale=float(f"{MODEL_VOXEL / grid_size:.4g}"))
        if scale is not None:
            dataset = replace(dataset, scale=scale)
        write_text(file, describe(dataset, found.title))
    return files


def describe(dataset: DataSet, title: str) -> str:
    """dataset.yaml with a comment on every value."""
    sizes = ", ".join(f"{split} {len(dataset.scans(split)):,}" for split in dataset.splits)
    values = dataset.as_dict()
    lines = [
        f"# {title} ({sizes} scans); pointadapt init wrote it. Paths are relative to this file.",
        "",
        "# Label in the files: name, in the official order of the outputs. Ids that share a name are one class.",
        "classes:",
        *(f"  {raw}: {flow(name)}" for raw, name in dataset.classes.items()),
        "# Ids that are neither learned nor scored; -1 never is.",
        line("ignore", values["ignore"]),
        "# The field of the files that holds the labels.",
        line("label_field", dataset.label_field),
        "# Edge of a voxel in metres, and the factor on coordinates that gives it the edge the backbone knows.",
        line("grid_size", dataset.grid_size),
        line("scale", dataset.scale),
        "# rgb, none, or one or three fields that take its place, each with the value that becomes full scale.",
        line("color", dataset.color),
        "# file (estimated where a scan has none), estimate or none.",
        line("normals", dataset.normals),
        line("up", dataset.up),
        "# Training transforms: indoor, s3dis (indoor, on 60 % of a room), outdoor or aerial.",
        line("transform", dataset.transform),
    ]
    if dataset.groups:
        lines += ["# Evaluation also tells the mean IoU of these groups of classes."]
        lines += ["groups:", *(f"  {flow(name)}: {flow(list(names))}" for name, names in dataset.groups.items())]
    if dataset.top_k:
        lines += ["# Points have several labels; evaluation also tells mIoU where any of the k best classes counts."]
        lines += [line("top_k", dataset.top_k)]
    lines += ["# Scans, folders of scans, or lists of scans (.txt, .json).", "splits:"]
    lines += [f"  {split}: {flow(list(entries))}" for split, entries in dataset.splits.items()]
    return "\n".join(lines) + "\n"


def line(key: str, value: Any) -> str:
    return f"{key}: {flow(value)}"
