"""Object data sets without a published layout: folders named after classes, and array files with many shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pointadapt.data.io import is_left_out, is_scan
from pointadapt.data.layout import UP_NOTE, adjusted, first_found, refuse_others
from pointadapt.data.object_arrays import Arrays, holds_shapes, read_arrays
from pointadapt.data.object_files import read_shape, walk
from pointadapt.data.object_layouts import FINDERS, ObjectLayout, listed, shapenet_set, suite_alone, suite_file, suites
from pointadapt.data.object_set import TASKS, ObjectSet
from pointadapt.data.scans import SPLITS
from pointadapt.data.survey import named_split
from pointadapt.errors import UserError

#: Files of scenes: airborne and terrestrial surveys.
SURVEYS = (".las", ".laz", ".e57")
#: Files looked at to see how many points shapes have.
LOOKED_AT = 32


def find_objects(
    folder: Path | str,
    task: str | None = None,
    variant: str | None = None,
    points: int | None = None,
    up: str | None = None,
    val: float | None = None,
    label_field: str | None = None,
) -> ObjectLayout | None:
    """The object data set in a folder, or None where it holds scenes (or nothing).

    task     "classification" or "parts" where files alone leave it open; "scenes": do not look for objects
    variant  which of several data sets in the folder
    points, up, val  take the place of what the layout says; ``val`` is the share of train held out
    label_field      parts: field of the files with the part of each point

    Raises UserError for an unknown variant, a task the folder does not fit, and classes that train lacks.
    """
    folder = Path(folder)
    if task == "scenes" or not folder.is_dir():
        return None
    found = first_found(FINDERS, folder, variant)
    found = found or arrays(folder) or class_folders(folder, task, label_field) or suite_alone(folder, variant)
    if found is None:
        if task is None:
            return None
        raise UserError(
            f"{folder}: no shapes for {task}; it needs folders named after the classes with {', '.join(SPLITS)} in or "
            f"above them, an array file, or the layout of a published benchmark"
        )
    refuse_others(found, task, variant)
    return adjusted(found, up, val, points=points or None, tests=found.dataset.tests or suites(folder))


# --- array files ----------------------------------------------------------------------------------------------------


def arrays(folder: Path) -> ObjectLayout | None:
    """NPZ, NPY or HDF5 files with many shapes each, train, val and test by their names."""
    splits: dict[str, list[str]] = {}
    first: Arrays | None = None
    for file in sorted(path for path in folder.iterdir() if path.suffix.lower() in (".npz", ".npy", ".h5", ".hdf5")):
        words = file.stem.lower().replace("-", "_").split("_")
        split = next((name for word in words if (name := named_split(word)) in SPLITS), None)
        if split is None or suite_file(file) or not holds_shapes(file):
            continue
        content = read_arrays(file)
        if content.label is None and content.segment is None:
            continue
        first = content if first is None or split == "train" else first
        splits.setdefault(split, []).append(file.name)
    if first is None:
        return None
    notes = []
    if "train" not in splits:  # something must be learned from
        spare = "val" if "val" in splits else "test"
        splits["train"] = splits.pop(spare)
        notes.append(f"no file is called train: {', '.join(splits['train'])} takes its place")
    named = {split: tuple(splits.get(split, ())) for split in SPLITS}
    if first.segment is not None and first.label is None:
        return part_arrays(folder, named, first, notes)
    classes = tuple(first.classes) if first.classes else listed(folder / "shape_names.txt")
    if classes is None:
        most = max(
            int(label.max())
            for files in named.values()
            for f in files
            if (label := read_arrays(folder / f).label) is not None
        )
        classes = tuple(f"class {i}" for i in range(most + 1))
        notes.append("the files name no classes: give them names in `classes`, in the order of their label ids")
    if first.segment is not None:
        return ObjectLayout(shapenet_set(folder, named), "array files", tuple(notes))
    points = min(1024, len(first.shape(0)[0]))
    dataset = ObjectSet(folder, "classification", classes, splits=named, points=points, up="z")
    return ObjectLayout(dataset, "array files", (*notes, UP_NOTE))


def part_arrays(folder: Path, splits: dict[str, tuple[str, ...]], first: Arrays, notes: list[str]) -> ObjectLayout:
    """Shapes with a part for each point: by ShapeNetPart's 50 ids, or the parts of one category from 0."""
    assert first.segment is not None
    low, high = int(first.segment.min()), int(first.segment.max())
    if "shapenet" in str(folder.resolve()).lower() or (low > 0 and high < 50):
        notes.append("parts are read by the ids of ShapeNetPart (0 to 49)")
        return ObjectLayout(shapenet_set(folder, splits), "ShapeNetPart (array files)", tuple(notes))
    classes = tuple(f"part {i}" for i in range(high + 1))
    categories = {"shape": tuple(range(high + 1))}
    dataset = ObjectSet(folder, "parts", classes, categories, splits=splits, points=2048, up="z", transform="parts")
    return ObjectLayout(dataset, "array files with parts", (*notes, UP_NOTE))


# --- folders named after classes ------------------------------------------------------------------------------------


def class_folders(folder: Path, task: str | None = None, label_field: str | None = None) -> ObjectLayout | None:
    """CLASS/{train,val,test}/FILE, {train,val,test}/CLASS/FILE or CLASS/FILE, FILE of any format of shapes.

    Files of surveys, and points that have labels, are scenes unless ``task`` says otherwise.
    """
    places = subfolders(folder)
    if not places or any(is_scan(place) for place in places):
        return None
    tops = {split: place for place in places if (split := named_split(place.name)) in SPLITS}
    if tops:
        splits, classes = split_first(tops)
    else:
        splits, classes = class_first(folder, places)
    if len(classes) < (1 if task == "parts" else 2) or not splits["train"]:
        return None
    files = [file for source in splits["train"] for file in walk(folder / source)]
    if any(file.name == "coord.npy" for file in files):  # folders of arrays, one a scene
        return None
    looked_at = [files[i] for i in np.linspace(0, len(files) - 1, min(LOOKED_AT, len(files))).astype(int)]
    if task is None and is_scenes(looked_at[0]):
        return None
    sizes = [len(read_shape(file)) for file in looked_at]
    usual = usual_size(sizes)
    options: dict[str, Any] = {"splits": splits, "points": min(usual, 2048 if task == "parts" else 1024), "up": "z"}
    title = "folders of shapes named after their classes"
    notes = [UP_NOTE]
    if min(sizes) < usual:
        smallest = looked_at[sizes.index(min(sizes))]
        notes.append(f"{smallest} has {min(sizes)} points, far fewer than most: leave it out if it is damaged")
    if task != "parts":
        return ObjectLayout(ObjectSet(folder, TASKS[0], classes, **options), title, tuple(notes))
    categories = part_ids(folder, splits, classes, label_field)
    names = tuple(f"{name} {i + 1}" for name, ids in categories.items() for i in range(len(ids)))
    dataset = ObjectSet(folder, "parts", names, categories, transform="parts", label_field=label_field, **options)
    return ObjectLayout(dataset, title, (*notes, "parts have numbers for names: give them better ones in `classes`"))


def usual_size(sizes: list[int]) -> int:
    """The least size of those at least half as large as the median: one stray shape is not to shrink all others."""
    typical = sorted(sizes)[len(sizes) // 2]
    return min(size for size in sizes if 2 * size >= typical)


def subfolders(folder: Path) -> list[Path]:
    """Folders with shapes in or below them, without those of corruption suites and predictions."""
    places = sorted(path for path in folder.iterdir() if path.is_dir() and not is_left_out(path))
    return [p for p in places if any(not suite_file(file) for file in walk(p))]


def split_first(tops: dict[str, Path]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """{train,val,test}/CLASS/FILE: (sources, classes)."""
    found = {split: [place.name for place in subfolders(top)] for split, top in tops.items()}
    classes = tuple(found.get("train", ()))
    if classes:
        for split, names in found.items():
            refuse_unknown(tops[split], names, classes)
    return {split: (tops[split].name,) if found.get(split) else () for split in SPLITS}, classes


def class_first(folder: Path, places: list[Path]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """CLASS/{train,val,test}/FILE or CLASS/FILE: (sources, classes)."""
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for place in places:
        for inner in subfolders(place):
            if (split := named_split(inner.name)) in SPLITS:
                splits[split].append(f"{place.name}/{inner.name}")
    if not splits["train"]:
        return {"train": tuple(place.name for place in places), "val": (), "test": ()}, tuple(p.name for p in places)
    classes = tuple(source.split("/")[0] for source in splits["train"])
    for split, sources in splits.items():
        refuse_unknown(folder, [source.split("/")[0] for source in sources], classes, split)
    return {split: tuple(sources) for split, sources in splits.items()}, classes


def refuse_unknown(place: Path, names: list[str], classes: tuple[str, ...], split: str = "") -> None:
    unknown = [name for name in names if name not in classes]
    if unknown:
        where = f"{place / unknown[0]}{f' ({split})' if split else ''}"
        raise UserError(
            f"{where}: train has no class {unknown[0]!r}, it has {', '.join(classes)}; rename the folder or take it out"
        )


def is_scenes(file: Path) -> bool:
    """Whether a file is one of a scene: of a survey, or with a label for each point."""
    return file.suffix.lower() in SURVEYS or (is_scan(file) and read_shape(file).label is not None)


def part_ids(
    folder: Path, splits: dict[str, tuple[str, ...]], classes: tuple[str, ...], label_field: str | None = None
) -> dict[str, tuple[int, ...]]:
    """Category -> ids of its parts, as found in the files of train.

    Raises UserError where a point has no part, or ids are not counted through all categories from 0.
    """
    found: dict[str, set[int]] = {name: set() for name in classes}
    for source in splits["train"]:
        for file in walk(folder / source):
            label = read_shape(file, label_field=label_field).label
            if label is None:
                raise UserError(f"{file}: no part of each point in it, which `--task parts` needs")
            name = next(name for name in reversed(file.relative_to(folder).parts[:-1]) if name in found)
            found[name].update(np.unique(label).tolist())
    owned = [part for ids in found.values() for part in ids]
    if sorted(owned) != list(range(len(owned))):
        raise UserError(
            f"{folder}: part ids must be counted through all categories from 0 without gaps; found "
            f"{', '.join(f'{name} {sorted(ids)}' for name, ids in found.items())}"
        )
    return {name: tuple(sorted(ids)) for name, ids in found.items()}
