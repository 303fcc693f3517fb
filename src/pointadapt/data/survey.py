"""What `pointadapt init` does: look at a folder of scans, propose how to learn from them, write dataset.yaml."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pointadapt.data.geometry import spacing
from pointadapt.data.io import read_scan, walk_scans
from pointadapt.data.layout import flow, line
from pointadapt.data.scan import Scan
from pointadapt.data.scans import MODEL_VOXEL, SPLITS, YAML, DataSet
from pointadapt.errors import UserError
from pointadapt.files import write_text

LAS_ENDINGS = (".las", ".laz")
ECHOES = ("intensity", "return_number", "number_of_returns")
SPLIT_DRAWS = 200


@dataclass(frozen=True)
class FileSurvey:
    """What one file holds. ``labels``: raw id -> points; ``echoes``: field -> its 99th percentile."""

    name: str
    points: int
    extent: tuple[float, float, float]
    spacing: float
    has_color: bool
    has_normal: bool
    label_field: str | None
    labels: dict[int, int]
    echoes: dict[str, float]


def find_scans(folder: Path | str) -> list[Path]:
    """All scans below a folder, in name order."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = walk_scans(folder)
    if not found:
        raise UserError(
            f"{folder}: no scans in it (LAS, LAZ, PLY, PCD, E57, NPY, NPZ), and no shapes (also OFF, XYZ, TXT; "
            "a folder for each class)"
        )
    return found


def survey(folder: Path | str, label_field: str | None = None) -> list[FileSurvey]:
    """Read every scan below a folder once and note what matters for a dataset.yaml."""
    return [look(path, Path(folder), label_field) for path in find_scans(folder)]


def look(path: Path, folder: Path, label_field: str | None) -> FileSurvey:
    scan = read_scan(path, label_field)
    raw, counts = np.unique([] if scan.label is None else scan.label, return_counts=True)
    return FileSurvey(
        name=path.relative_to(folder).as_posix(),
        points=len(scan),
        extent=tuple(np.ptp(scan.coord, axis=0).round(3).tolist()),
        spacing=spacing(scan.coord),
        has_color=scan.color is not None,
        has_normal=scan.normal is not None,
        label_field=scan.label_field,
        labels={int(k): int(v) for k, v in zip(raw, counts, strict=True)},
        echoes=echo_ranges(scan),
    )


def echo_ranges(scan: Scan) -> dict[str, float]:
    if any(name not in scan.extras for name in ECHOES):
        return {}
    return {name: float(np.percentile(scan.extras[name], 99)) for name in ECHOES}


def init_dataset(
    folder: Path | str,
    files: list[FileSurvey] | None = None,
    classes: dict[int, str] | Sequence[int] | None = None,
    label_field: str | None = None,
    grid_size: float | None = None,
    scale: float | None = None,
    val: float = 0.2,
    overwrite: bool = False,
    indoor_grid: float = MODEL_VOXEL,
) -> Path:
    """Write ``folder/dataset.yaml`` after looking at the files; returns its path.

    files      what :func:`survey` returned, if it has been called already
    classes    raw ids (and names) to learn; other ids found are ignored. By default all but ASPRS's "unclassified",
               noise and artefacts
    grid_size  edge of a voxel in metres; by default about twice the spacing of points
    scale      factor on coordinates; by default such that a voxel has the edge MODEL_VOXEL
    val        share of the points to hold out for validation, in whole files
    indoor_grid  smallest voxel to propose for rooms: what the backbone was trained on, in metres

    Raises UserError when dataset.yaml exists already (unless ``overwrite``), no point has a label to learn, or a
    number makes no sense.
    """
    folder = Path(folder)
    target = folder / YAML
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already; edit it, or remove it to start anew")
    for name, value in {"grid_size": grid_size, "scale": scale}.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} is {value}; it must be a number above 0")
    if not 0 <= val < 1:
        raise UserError(f"val is {val}; it is a share of the points, at least 0 and below 1")
    files = survey(folder, label_field) if files is None else files
    dataset = propose(folder, files, classes, label_field, grid_size, scale, val, indoor_grid)
    write_text(target, describe(dataset, files))
    return target


def propose(
    folder: Path,
    files: list[FileSurvey],
    classes: dict[int, str] | Sequence[int] | None,
    label_field: str | None,
    grid_size: float | None,
    scale: float | None,
    val: float,
    indoor_grid: float,
) -> DataSet:
    found = total(file.labels for file in files)
    names, no_class = known_classes(files)
    if classes is None:
        chosen = {raw: names.get(raw, f"class {raw}") for raw in sorted(found) if raw >= 0 and raw not in no_class}
    elif isinstance(classes, dict):
        chosen = dict(classes)
    else:
        chosen = {raw: names.get(raw, f"class {raw}") for raw in classes}
    if not any(found[raw] for raw in chosen):
        fields = sorted(file.label_field for file in files if file.label_field)
        cause = f"the field {fields[0]!r} holds only {sorted(found)}" if fields else "no file has a label field"
        cure = f"name the field: pointadapt init {folder} --label-field NAME"
        tops = {top for file in files if (top := top_folder(file.name))}
        if len(tops) == 1 and not fields:
            cause += f"; as shapes or videos all are of one class, {tops.pop()}, which there is nothing to tell from"
            cure += ", or add a folder of another class"
        raise UserError(f"{folder}: no labelled points to learn from ({cause}); {cure}")
    wide = max(max(file.extent[:2]) for file in files) > 40
    echoes = common_echoes(files)
    if grid_size is None:
        grid_size = suggest_grid(files) if wide or echoes else max(suggest_grid(files), indoor_grid)
    return DataSet(
        folder=folder,
        classes=chosen,
        ignore=tuple(raw for raw in sorted(found) if raw not in chosen and raw != -1),
        splits=suggest_splits(files, set(chosen), val),
        label_field=label_field or Counter(f.label_field for f in files if f.label_field).most_common(1)[0][0],
        grid_size=grid_size,
        scale=scale or float(f"{MODEL_VOXEL / grid_size:.4g}"),
        color="rgb" if any(file.has_color for file in files) else echoes or "none",
        normals="file" if all(file.has_normal for file in files) else "estimate",
        transform="aerial" if echoes else "outdoor" if wide else "indoor",
    )


def total(counts: Iterable[dict[int, int]]) -> Counter[int]:
    result: Counter[int] = Counter()
    for one in counts:
        result.update(one)
    return result


def known_classes(files: list[FileSurvey]) -> tuple[dict[int, str], tuple[int, ...]]:
    """(names of raw ids, ids that say nothing), for LAS's standard codes; other formats have none."""
    if not all(file.name.lower().endswith(LAS_ENDINGS) and file.label_field == "classification" for file in files):
        return {}, ()
    from pointadapt.data.formats.las import ASPRS, NO_CLASS

    return ASPRS, NO_CLASS


def suggest_grid(files: list[FileSurvey]) -> float:
    """Twice the spacing of neighbouring points, rounded to 1, 2, 2.5 or 5 times a power of ten."""
    wanted = 2 * float(np.median([file.spacing for file in files]))
    if wanted <= 0:
        return MODEL_VOXEL
    power = 10.0 ** math.floor(math.log10(wanted))
    step = min((1, 2, 2.5, 5, 10), key=lambda step: abs(math.log(step * power / wanted)))
    return float(f"{step * power:.3g}")


def suggest_splits(files: list[FileSurvey], classes: set[int], val: float) -> dict[str, tuple[str, ...]]:
    """Whole files to train, val and test; files without a labelled point go to none.

    Folders called train, val (validation) and test are taken at their word. Otherwise the split is the best of some
    fixed random ones: every class to learn should occur in training, then in validation, and the share of points
    should be near ``val``.
    """
    labelled = [file for file in files if any(file.labels.get(raw) for raw in classes)]
    folders = {file.name: named_split(file.name) for file in labelled}
    if "train" in folders.values():
        return {split: tuple(name for name, of in folders.items() if of == split) for split in ("train", "val", "test")}
    if len(labelled) < 2 or val <= 0:
        return {"train": tuple(file.name for file in labelled), "val": (), "test": ()}
    held_out = min(max(round(val * len(labelled)), 1), len(labelled) - 1)
    points = sum(file.points for file in labelled)
    rng = np.random.default_rng(0)

    def badness(order: np.ndarray) -> tuple[int, int, float]:
        out, learn = [labelled[i] for i in order[:held_out]], [labelled[i] for i in order[held_out:]]
        missing = [len(classes - set(total(file.labels for file in part))) for part in (learn, out)]
        return missing[0], missing[1], abs(sum(file.points for file in out) / points - val)

    best = min((rng.permutation(len(labelled)) for _ in range(SPLIT_DRAWS)), key=badness)
    out = {labelled[i].name for i in best[:held_out]}
    return {
        "train": tuple(file.name for file in labelled if file.name not in out),
        "val": tuple(file.name for file in labelled if file.name in out),
        "test": (),
    }


def top_folder(name: str) -> str:
    """The first folder of a path that is not called after a split; "" without one."""
    return next((part for part in name.split("/")[:-1] if named_split(part) not in SPLITS), "")


def named_split(name: str) -> str:
    split = name.split("/")[0].lower()
    return {"training": "train", "validation": "val", "testing": "test"}.get(split, split)


def common_echoes(files: list[FileSurvey]) -> dict[str, float]:
    """Intensity and returns with the values that become full scale, intensity alone where no file has returns; empty
    unless every file has them."""
    if not all(file.echoes for file in files):
        return {}
    scale = {name: max(file.echoes[name] for file in files) for name in ECHOES}
    told = scale if all(scale.values()) else {"intensity": scale["intensity"]}
    return told if all(told.values()) else {}


def report(dataset: DataSet, files: list[FileSurvey]) -> dict[str, Any]:
    """The short account that the command line prints after ``init``."""
    found = total(file.labels for file in files)
    split_of = {name: split for split, names in dataset.splits.items() for name in names}
    warnings = []
    if not dataset.splits.get("val"):
        warnings.append("only one labelled file, so nothing is held out for validation: cut it in two to get scores")
    missing = [name for raw, name in dataset.classes.items() if not found[raw]]
    if missing:
        warnings.append(f"no point of class {', '.join(missing)}")
    return {
        "files": [
            {"name": f.name, "points": f.points, "extent": f.extent, "split": split_of.get(f.name, "-")} for f in files
        ],
        "points": sum(file.points for file in files),
        "classes": {raw: (name, found[raw]) for raw, name in dataset.classes.items()},
        "ignored": {raw: found[raw] for raw in (*dataset.ignore, -1) if found[raw]},
        "spacing": float(np.median([file.spacing for file in files])),
        "grid_size": dataset.grid_size,
        "scale": dataset.scale,
        "color": dataset.color,
        "normals": dataset.normals,
        "transform": dataset.transform,
        "echoes": common_echoes(files),
        "warnings": warnings,
    }


def describe(dataset: DataSet, files: list[FileSurvey]) -> str:
    """dataset.yaml with comments that say what each value does and what it was taken from."""
    facts = report(dataset, files)
    known, _ = known_classes(files)
    ignored = ", ".join(f"{raw} {known[raw]}" for raw in dataset.ignore if raw in known)
    echoes = ", ".join(f"{name}: {value:g}" for name, value in facts["echoes"].items())
    lines = [
        f"# How to read the {len(files)} scans of this folder ({facts['points']:,} points); pointadapt init wrote it.",
        "# Change what you know better. Paths are relative to this file.",
        "",
        "# raw label id: name, in the order of the model's outputs. Ids that share a name are one class.",
        "classes:",
        *(f"  {raw}: {flow(name)}  # {count:,} points" for raw, (name, count) in facts["classes"].items()),
        "",
        "# Raw ids that are neither learned nor scored" + (f": {ignored}." if ignored else "."),
        line("ignore", list(dataset.ignore)),
        "# The field of the files that holds the labels.",
        line("label_field", dataset.label_field),
        "# Edge of a voxel in metres; one point of a voxel goes into the model. "
        f"Neighbouring points are {facts['spacing']:.3g} m apart.",
        line("grid_size", dataset.grid_size),
        "# Factor on coordinates. A voxel should have the edge the backbone was trained on: "
        f"{dataset.grid_size:g} x {dataset.scale:g} = {dataset.voxel:g}.",
        line("scale", dataset.scale),
        "# rgb, none, or three fields that take its place, each with the value that becomes full scale.",
        *([f"# color: {{{echoes}}}"] if echoes and dataset.color == "rgb" else []),
        line("color", dataset.color),
        "# file, estimate (from the 16 nearest points) or none.",
        line("normals", dataset.normals),
        "# The upward axis of the files: z, y or -y.",
        line("up", dataset.up),
        "# Training transforms: indoor (Sonata's), outdoor (turns, flips, scale, jitter on columns of a scan) "
        "or aerial (turns and flips only).",
        line("transform", dataset.transform),
        "splits:",
    ]
    for split, scans in dataset.splits.items():
        lines += [f"  {split}:" if scans else f"  {split}: []", *(f"    - {flow(scan)}" for scan in scans)]
    return "\n".join(lines) + "\n"
