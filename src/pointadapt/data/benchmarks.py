"""Published scene benchmarks: class lists (benchmarks.json), official splits, grids, and how to find one in a folder.

The folders are those of Pointcept's preprocessing as users have them, SemanticKITTI's and nuScenes' own, and what
``pointadapt prepare`` writes. Names are looked at, and whether labels are there; no point is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pointadapt.data.io import is_scan
from pointadapt.data.scan import LABELS, canonical
from pointadapt.data.scans import MODEL_VOXEL, DataSet
from pointadapt.data.split_lists import APART
from pointadapt.data.unpickle import read_pickle
from pointadapt.errors import UserError
from pointadapt.files import read_json
from pointadapt.kinds import YAML

Splits = dict[str, tuple[str, ...]]
AREAS = tuple(f"Area_{i}" for i in range(1, 7))
CHUNKS = "train_grid1mm_chunk6x6_stride3x3"
NO_TEST = "its test split has no public labels, so it is left out: label it with predict, score it on the server"


@dataclass(frozen=True)
class Benchmark:
    """A published data set found in a folder.

    datasets  name of the file to write -> what it says (S3DIS has one for each fold)
    lists     name of a list of scans to write beside it -> its lines
    notes     sentences that the user should know
    """

    title: str
    datasets: dict[str, DataSet]
    lists: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """A benchmark: its title, what its folder looks like, and the function (folder, variant) -> Benchmark or None."""

    title: str
    wanted: str
    find: Callable[[Path, str | None], Benchmark | None]


@cache
def facts(name: str) -> dict[str, Any]:
    """Class names in the order of the model's outputs, and raw ids, from the package's benchmarks.json."""
    return read_json(Path(__file__).with_name("benchmarks.json"))[name]


def counted(name: str) -> dict[int, str]:
    """Classes of files whose labels are indices already."""
    return dict(enumerate(facts(name)["names"]))


def raw_classes(name: str) -> dict[int, str]:
    """Raw id -> name in the order of the outputs; of several ids with one name the first is written by predict."""
    return {raw: class_name for class_name, ids in facts(name)["raw"].items() for raw in ids}


def first_scan(folder: Path, pattern: str, label: str) -> Path | None:
    """A scan ``folder/pattern`` with a label file, if there is one."""
    found = (place for place in sorted(folder.glob(pattern)) if is_scan(place) and (place / f"{label}.npy").is_file())
    return next(found, None)


def refuse_unlabelled(folder: Path, pattern: str, label: str) -> None:
    """Raises UserError where scans ``folder/pattern`` lack labels of any kind."""
    scans = [place for place in sorted(folder.glob(pattern)) if is_scan(place)]
    files = (file.stem for place in scans for file in place.glob("*.npy"))
    if scans and not any(canonical(name) in LABELS for name in files):
        raise UserError(f"{scans[0] / label}.npy: no such file, nor labels in scans beside it; prepare them again")


def need_val(folder: Path, label: str) -> str:
    if not any((folder / "val").glob("*")):
        raise UserError(
            f"{folder}: there is no val/ with scans, which scores are on; add it beside train/, or hold out a part of "
            f"what is here with --label-field {label}"
        )
    return "val"


# --- indoor ---------------------------------------------------------------------------------------------------------


def scannet(folder: Path, variant: str | None, name: str = "scannet", label: str = "segment20") -> Benchmark | None:
    if first_scan(folder / "train", "scene????_??", label) is None:
        refuse_unlabelled(folder / "train", "scene????_??", label)
        return None
    splits: Splits = {"train": ("train",), "val": (need_val(folder, label),)}
    dataset = DataSet(folder, counted(name), splits=splits, label_field=label, normals="file")
    notes = [NO_TEST]
    if name == "scannet200":
        dataset = replace(dataset, groups={key: tuple(names) for key, names in facts(name)["groups"].items()})
    elif first_scan(folder / "train", "scene????_??", "segment200"):
        notes.append("the scans have labels of ScanNet200, too: choose them with --layout scannet200")
    return Benchmark("", {YAML: dataset}, notes=tuple(notes))


def scannet200(folder: Path, variant: str | None) -> Benchmark | None:
    return scannet(folder, variant, "scannet200", "segment200")


def scannetpp(folder: Path, variant: str | None) -> Benchmark | None:
    chunks = sorted(place.name for place in folder.glob("train_grid*chunk*") if place.is_dir())
    train = CHUNKS if CHUNKS in chunks else (chunks or ["train"])[0]
    scene = "[0-9a-f]" * 10
    if first_scan(folder / train, f"{scene}*", "segment") is None:
        return None
    val = need_val(folder, "segment")
    dataset = DataSet(
        folder, counted("scannetpp"), splits={"train": (train,), "val": (val,)},
        label_field="segment", normals="file", top_k=3,
    )  # fmt: skip
    whole = () if chunks else ("train/ holds whole scenes; published results are trained on chunks of 6 m",)
    return Benchmark("", {YAML: dataset}, notes=(NO_TEST, *whole))


def structured3d(folder: Path, variant: str | None) -> Benchmark | None:
    if first_scan(folder / "train", "scene_?????/room_*", "segment") is None:
        return None
    splits: Splits = {"train": ("train",), "val": (need_val(folder, "segment"),)}
    if (folder / "test").is_dir() and first_scan(folder / "test", "scene_?????/room_*", "segment"):
        splits["test"] = ("test",)
    dataset = DataSet(folder, counted("structured3d"), splits=splits, label_field="segment", normals="file")
    return Benchmark("", {YAML: dataset})


def s3dis(folder: Path, variant: str | None) -> Benchmark | None:
    areas = [area for area in AREAS if first_scan(folder / area, "*", "segment")]
    if not areas:
        return None
    if variant not in (None, "6fold", *areas):
        raise UserError(
            f"{folder}: variant {variant!r} is unknown; give 6fold or the area to test on: {', '.join(areas)}"
        )
    if variant is None and "Area_5" not in areas:
        raise UserError(f"{folder}: Area_5 is missing, which is tested on; choose another: --variant {areas[0]}")
    if len(areas) == 1 or (variant == "6fold" and len(areas) < len(AREAS)):
        missing = ", ".join(area for area in AREAS if area not in areas)
        raise UserError(f"{folder}: {missing} are missing; S3DIS is one folder of rooms for each of six areas")
    notes = []
    if len(areas) < len(AREAS):
        notes.append(f"only {', '.join(areas)} are here: scores are not the published protocol's")

    def fold(area: str) -> DataSet:
        splits = {"train": tuple(a for a in areas if a != area), "val": (area,)}
        return DataSet(
            folder, counted("s3dis"), splits=splits, label_field="segment", normals="file", transform="s3dis"
        )

    if variant == "6fold":
        notes.append("adapt and evaluate each of the six files, then: pointadapt pool RUN RUN RUN RUN RUN RUN")
        return Benchmark("6 folds", {f"{area}.yaml": fold(area) for area in AREAS}, notes=tuple(notes))
    area = variant or "Area_5"
    return Benchmark(f"{area} to test on", {YAML: fold(area)}, notes=tuple(notes))


# --- outdoor --------------------------------------------------------------------------------------------------------

#: Coordinates are scaled so that a voxel of 5 cm has the edge that backbones know; there is no colour but intensity.
OUTDOOR: dict[str, Any] = {"grid_size": 0.05, "scale": round(MODEL_VOXEL / 0.05, 4), "transform": "outdoor"}


def semantickitti(folder: Path, variant: str | None) -> Benchmark | None:
    base = "dataset/sequences" if (folder / "dataset" / "sequences").is_dir() else "sequences"
    official = facts("semantickitti")["splits"]
    here = {
        split: [number for number in numbers if any((folder / base / f"{number:02d}" / "velodyne").glob("*.bin"))]
        for split, numbers in official.items()
    }
    if not here["train"]:
        return None
    for number in here["train"] + here["val"]:
        if not any((folder / base / f"{number:02d}" / "labels").glob("*.label")):
            place = folder / base / f"{number:02d}" / "labels"
            raise UserError(f"{place}: no .label files, which the labels' own download has; unpack it over the frames")
    splits = {s: tuple(f"{base}/{n:02d}/velodyne" for n in here[s]) for s in ("train", "val")}
    notes = [NO_TEST]
    missing = [f"{n:02d}" for s in ("train", "val") for n in official[s] if n not in here[s]]
    if missing:
        notes.append(f"sequences {', '.join(missing)} are missing: scores are not the published protocol's")
    dataset = DataSet(
        folder, raw_classes("semantickitti"), tuple(facts("semantickitti")["ignore"]), splits,
        label_field="label", color={"intensity": 1.0}, **OUTDOOR,
    )  # fmt: skip
    return Benchmark("", {YAML: dataset}, notes=tuple(notes))


NUSCENES_LISTS = {split: f"nuscenes_{split}.txt" for split in ("train", "val")}


def nuscenes(folder: Path, variant: str | None) -> Benchmark | None:
    lists: dict[str, list[str]] = {}
    info = {split: folder / "info" / f"nuscenes_infos_10sweeps_{split}.pkl" for split in NUSCENES_LISTS}
    if all(file.is_file() for file in info.values()):
        lists = {NUSCENES_LISTS[split]: nuscenes_list(file) for split, file in info.items()}
    elif not all((folder / name).is_file() for name in NUSCENES_LISTS.values()):
        if any(folder.glob("v1.0-*/lidarseg.json")):
            raise UserError(f"{folder}: raw nuScenes; list its frames first: pointadapt prepare nuscenes {folder} OUT")
        return None
    dataset = DataSet(
        folder, raw_classes("nuscenes"), tuple(facts("nuscenes")["ignore"]),
        {split: (name,) for split, name in NUSCENES_LISTS.items()},
        label_field="label", color={"intensity": 255.0}, **OUTDOOR,
    )  # fmt: skip
    return Benchmark("", {YAML: dataset}, lists, (NO_TEST,))


def nuscenes_list(file: Path) -> list[str]:
    """Frames and their labels from an index of Pointcept's, whose paths are relative to ``raw`` beside ``info``."""
    content = read_pickle(file)
    try:
        return [f"raw/{frame['lidar_path']}{APART}raw/{frame['gt_segment_path']}" for frame in content]
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{file}: it must hold a list of frames with lidar_path and gt_segment_path ({error})"
        ) from error


#: name of --layout -> what it is, in the order in which folders are tried.
BENCHMARKS: dict[str, Known] = {
    "scannet": Known(
        "ScanNet v2", "train/sceneXXXX_YY/ and val/sceneXXXX_YY/ with coord.npy and segment20.npy", scannet
    ),
    "scannet200": Known(
        "ScanNet200", "train/sceneXXXX_YY/ and val/sceneXXXX_YY/ with coord.npy and segment200.npy", scannet200
    ),
    "scannetpp": Known(
        "ScanNet++", f"{CHUNKS}/ID/ (or train/ID/) and val/ID/ with coord.npy and segment.npy", scannetpp
    ),
    "structured3d": Known(
        "Structured3D", "train/scene_XXXXX/room_Y/ and val/scene_XXXXX/room_Y/ with coord.npy and segment.npy",
        structured3d,
    ),
    "s3dis": Known("S3DIS", "Area_1/ROOM/ to Area_6/ROOM/ with coord.npy and segment.npy", s3dis),
    "semantickitti": Known(
        "SemanticKITTI", "sequences/00/velodyne/*.bin and sequences/00/labels/*.label", semantickitti
    ),
    "nuscenes": Known(
        "nuScenes-lidarseg", "info/nuscenes_infos_10sweeps_{train,val}.pkl and raw/, or what prepare wrote", nuscenes
    ),
}  # fmt: skip


def find_benchmark(folder: Path | str, layout: str | None = None, variant: str | None = None) -> Benchmark | None:
    """The benchmark in a folder, or None where it holds none.

    layout   which one (a name of BENCHMARKS); without it all are tried
    variant  S3DIS: the area to test on, or 6fold
    Raises UserError for a layout that the folder does not have, saying where it is meant to be, and for an incomplete
    one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = None
    if layout is None:
        for name, known in BENCHMARKS.items():
            found = known.find(folder, variant)
            if found is not None:
                layout = name
                break
        if layout is None:
            return None
    if layout not in BENCHMARKS:
        raise UserError(f"layout {layout!r} is unknown: use one of {', '.join(BENCHMARKS)}")
    known = BENCHMARKS[layout]
    if variant is not None and layout != "s3dis":
        raise UserError(f"there are no variants of {known.title}: leave the variant out")
    found = found or known.find(folder, variant)
    if found is None:
        raise UserError(f"{folder}: not laid out as {known.title}: it needs {known.wanted}{elsewhere(folder, known)}")
    return named(layout, found)


def part_of(folder: Path) -> str | None:
    """Title of the benchmark that the folder is one level too deep in, if it is."""
    folder = folder.resolve()
    for known in BENCHMARKS.values():
        found = glimpse(folder.parent, known)
        sets = found.datasets.values() if found else ()
        if folder.name in {Path(entry).parts[0] for one in sets for part in one.splits.values() for entry in part}:
            return known.title
    return None


def named(name: str, found: Benchmark) -> Benchmark:
    title = BENCHMARKS[name].title
    return replace(found, title=f"{title}, {found.title}" if found.title else title)


def elsewhere(folder: Path, known: Known) -> str:
    """ "; give FOLDER", where the benchmark lies one level higher or lower."""
    below = sorted(place for place in folder.iterdir() if place.is_dir())
    for place in (folder.resolve().parent, *below[:50]):
        if glimpse(place, known) is not None:
            return f"; give {place}"
    return ""


def glimpse(folder: Path, known: Known) -> Benchmark | None:
    """The benchmark in a folder; None also where it is incomplete."""
    try:
        return known.find(folder, None)
    except UserError:
        return None
