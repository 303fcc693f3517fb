"""Raw ScanNet, S3DIS, nuScenes and SemanticKITTI to what the library reads: Pointcept's folders, or lists of frames.

A scan of rooms becomes a folder with one .npy per attribute, whole or not at all; lidar frames stay where they are.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pointadapt.data.benchmark_init import init_benchmark
from pointadapt.data.benchmarks import AREAS, NUSCENES_LISTS, facts, find_benchmark
from pointadapt.data.io import reason, replace
from pointadapt.data.prepare import Outcome, Show, shared
from pointadapt.data.split_lists import APART
from pointadapt.errors import UserError
from pointadapt.files import beside, read_json, read_text, write_text
from pointadapt.kinds import YAML

#: What becomes of one scan: its arrays, and a sentence to tell or "".
Arrays = tuple[dict[str, np.ndarray], str]
Job = tuple[Path, Path, Callable[..., Arrays], tuple[Any, ...]]


def convert_all(jobs: Sequence[Job], overwrite: bool, workers: int, show: Show | None) -> Outcome:
    """Run (source, target, function, further arguments) for every target that is not there."""
    todo = [job for job in jobs if overwrite or not job[1].is_dir()]
    failed, notes = [], []
    for done, (problem, note) in enumerate(shared(convert, todo, workers), len(jobs) - len(todo) + 1):
        failed += [problem] if problem else []
        notes += [note] if note else []
        if show is not None:
            show(done, len(jobs))
    return Outcome(len(todo) - len(failed), len(jobs) - len(todo), tuple(notes), tuple(failed))


def convert(job: Job) -> tuple[str, str]:
    """One scan: (what went wrong with it or "", what to tell of it or "")."""
    source, target, function, more = job
    try:
        arrays, note = function(source, *more)
    except UserError as error:
        return str(error), ""
    except MemoryError:
        raise
    except Exception as error:  # each reader has its own dozen ways to say that a file is damaged
        return f"{source} is damaged or incomplete ({reason(error)})", ""
    write_arrays(target, arrays)
    return "", note


def write_arrays(target: Path, arrays: dict[str, np.ndarray]) -> None:
    """``target/NAME.npy``, all or none. Raises UserError when they cannot be written."""
    temporary = beside(target)
    try:
        temporary.mkdir(parents=True)
        for name, values in arrays.items():
            np.save(temporary / f"{name}.npy", values)
        replace(temporary, target) if target.is_dir() else os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# --- ScanNet --------------------------------------------------------------------------------------------------------

TABLE = "scannetv2-labels.combined.tsv"


def scannet(source: Path, out: Path, overwrite: bool, workers: int, show: Show | None) -> Outcome:
    """`pointadapt prepare scannet`: scans/ and scans_test/, the table of labels, and the official lists of scenes.

    Labels of 20 and of 200 classes are written beside each other: segment20.npy, segment200.npy; -1 = none.
    """
    table = source / TABLE
    if not table.is_file():
        above = source.parent / TABLE
        cure = f"give {source.parent}" if above.is_file() else "it comes with the download: put it there"
        raise UserError(f"{source}: no {TABLE} here; {cure}")
    label_table(table)  # says what is wrong with it
    jobs: list[Job] = []
    missing = []
    for split in ("train", "val", "test"):
        for name in scene_list(source, split):
            places = [source / part / name for part in ("scans", "scans_test", "")]
            place = next((place for place in places if place.is_dir()), None)
            if place is None:
                missing.append(name)
            else:
                jobs.append((place, out / split / name, scannet_scan, (table, split != "test")))
    if not jobs and not missing:
        raise UserError(
            f"{source}: the official lists of scenes name no scene; copy scannetv2_train.txt and _val.txt again"
        )
    if not jobs:
        raise UserError(f"{source}: none of the listed scenes is in scans/ here, such as scans/{missing[0]}/")
    done = convert_all(jobs, overwrite, workers, show)
    absent = (f"{len(missing)} listed scenes are not here, such as {missing[0]}",) if missing else ()
    return Outcome(done.written, done.skipped, (*absent, *done.notes), done.failed)


def scene_list(source: Path, split: str) -> list[str]:
    """Names of the official split from scannetv2_SPLIT.txt; an absent test list is empty."""
    name = f"scannetv2_{split}.txt"
    file = next((source / part / name for part in ("", "meta_data") if (source / part / name).is_file()), None)
    if file is not None:
        return read_text(file).split()
    if split == "test":
        return []
    raise UserError(f"{source}: no {name}, the official list of scenes; it is in ScanNet's repository: put it there")


@cache
def label_table(file: Path) -> dict[str, tuple[int, int]]:
    """Raw label name -> (index among the 20 classes, among the 200); -1 = none."""
    nyu = {raw: index for index, raw in enumerate(facts("scannet")["nyu40id"])}
    raw200 = {raw: index for index, raw in enumerate(facts("scannet200")["raw_id"])}
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
        return {
            row["raw_category"]: (nyu.get(int(row["nyu40id"] or 0), -1), raw200.get(int(row["id"] or 0), -1))
            for row in rows
        }
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file}: it must have the columns id, raw_category and nyu40id ({error})") from error


def scannet_scan(place: Path, table: Path, labelled: bool) -> Arrays:
    """The mesh's vertices with area-weighted normals; labels by over-segment. Axes are not aligned, as published."""
    from plyfile import PlyData

    name = place.name
    ply = PlyData.read(str(place / f"{name}_vh_clean_2.ply"))
    vertex, face = ply["vertex"], ply["face"]
    coord = np.stack([vertex[axis] for axis in "xyz"], 1).astype(np.float32)
    arrays: dict[str, np.ndarray] = {
        "coord": coord,
        "color": np.stack([vertex[channel] for channel in ("red", "green", "blue")], 1).astype(np.uint8),
        "normal": vertex_normals(coord, np.stack(face[face.properties[0].name].tolist())),
    }
    if not labelled:
        return arrays, ""
    segments = np.asarray(downloaded(place / f"{name}_vh_clean_2.0.010000.segs.json")["segIndices"])
    if len(segments) != len(coord):
        raise UserError(f"{place}: {len(segments)} over-segments for the {len(coord)} vertices of the mesh")
    both = np.full((2, len(coord)), -1, np.int16)
    instance = np.full(len(coord), -1, np.int16)
    known, unknown = label_table(table), set()
    for group in downloaded(place / f"{name}.aggregation.json")["segGroups"]:
        rows = np.isin(segments, group["segments"])
        if group["label"] not in known:
            unknown.add(group["label"])
        both[:, rows] = np.array(known.get(group["label"], (-1, -1)), np.int16)[:, None]
        instance[rows] = group["id"]
    note = f"{name}: {', '.join(sorted(unknown))} stand in no row of {table.name}, so without a label"
    return {**arrays, "segment20": both[0], "segment200": both[1], "instance": instance}, note if unknown else ""


def vertex_normals(coord: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[N, 3] float32 unit normals: the sum over each vertex's triangles, by area; zero for a vertex of none."""
    corner = coord.astype(np.float64)[faces]
    weighted = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])  # twice the area long
    total = np.stack([np.bincount(faces.ravel(), np.repeat(w, 3), len(coord)) for w in weighted.T], 1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.divide(total, length, out=np.zeros_like(total), where=length > 0).astype(np.float32)


def downloaded(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"{file}: no such file; download the scan again")
    return read_json(file)


# --- S3DIS ----------------------------------------------------------------------------------------------------------


def s3dis(source: Path, out: Path, overwrite: bool, workers: int, show: Show | None) -> Outcome:
    """`pointadapt prepare s3dis`: Area_1/ROOM/Annotations/CLASS_i.txt and so on; normals are estimated when read."""
    rooms = [room for area in AREAS for room in sorted((source / area).glob("*")) if (room / "Annotations").is_dir()]
    if not rooms:
        below = sorted(place.parent for place in source.glob("*/Area_1"))
        above = source.name in AREAS and any(source.glob("*/Annotations"))
        place = source.resolve().parent if above else next(iter(below), None)
        cure = f"give {place}" if place else "it needs Area_1/ROOM/Annotations/ and so on"
        raise UserError(f"{source}: no rooms of S3DIS here; {cure}")
    jobs: list[Job] = [(room, out / room.parent.name / room.name, s3dis_room, ()) for room in rooms]
    done = convert_all(jobs, overwrite, workers, show)
    missing = [area for area in AREAS if not any(room.parent.name == area for room in rooms)]
    absent = (f"{', '.join(missing)} are not here",) if missing else ()
    return Outcome(done.written, done.skipped, (*absent, *done.notes), done.failed)


def s3dis_room(room: Path) -> Arrays:
    """All objects of a room one after the other; what is no class (stairs) is clutter, as published."""
    names = facts("s3dis")["names"]
    files = sorted((room / "Annotations").glob("*.txt"))
    if not files:
        raise UserError(f"{room / 'Annotations'}: no .txt files, one for each object, in it")
    parts, mended = [], []
    for file in files:
        values, damaged = text_table(file)
        parts.append(values)
        mended += [file.name] if damaged else []
    label = [names.index(c) if (c := file.stem.split("_")[0]) in names else names.index("clutter") for file in files]
    sizes = [len(part) for part in parts]
    values = np.concatenate(parts)
    arrays: dict[str, np.ndarray] = {
        "coord": values[:, :3].astype(np.float32),
        "color": values[:, 3:].clip(0, 255).astype(np.uint8),
        "segment": np.repeat(label, sizes).astype(np.int16),
        "instance": np.repeat(np.arange(len(files)), sizes).astype(np.int16),
    }
    note = f"{room.parent.name}/{room.name}: a stray character in {', '.join(mended)} was taken for a blank"
    return arrays, note if mended else ""


def text_table(file: Path) -> tuple[np.ndarray, bool]:
    """([N, 6] float64 numbers of a text file, whether a character that belongs to no number had to be replaced)."""
    raw = file.read_bytes()
    clean = re.sub(rb"[^0-9eE+.\s-]", b" ", raw)
    try:
        values = np.array(clean.split(), np.float64)
    except ValueError as error:
        raise UserError(f"{file}: it holds something else than numbers ({error})") from error
    if len(values) == 0 or len(values) % 6:
        raise UserError(f"{file}: {len(values)} numbers are no lines of six, x y z r g b; download it again")
    return values.reshape(-1, 6), clean != raw


# --- nuScenes, SemanticKITTI ----------------------------------------------------------------------------------------


def nuscenes(source: Path, out: Path, overwrite: bool, workers: int, show: Show | None) -> Outcome:
    """`pointadapt prepare nuscenes`: lists of key frames with their labels; no point is copied.

    ``source`` holds samples/, lidarseg/ and v1.0-trainval/ (or v1.0-mini/) with its tables; the split is the official
    one, by scenes.
    """
    versions = [source / name for name in ("v1.0-trainval", "v1.0-mini") if (source / name / "lidarseg.json").is_file()]
    if not versions:
        raw = any(source.glob("v1.0-*"))
        cure = "unpack nuScenes-lidarseg over it" if raw else "give the folder with samples/"
        raise UserError(f"{source}: no v1.0-trainval/lidarseg.json here; {cure}")
    tables = versions[0]
    targets = {split: out / name for split, name in NUSCENES_LISTS.items()}
    check_categories(tables / "category.json")
    held_out = facts("nuscenes")["mini_val" if tables.name == "v1.0-mini" else "val"]
    val = {f"scene-{number:04d}" for number in held_out}
    lines: dict[str, list[str]] = {split: [] for split in targets}
    missing = 0
    try:
        scene = {row["token"]: row["name"] for row in records(tables / "scene.json")}
        scene_of = {row["token"]: scene[row["scene_token"]] for row in records(tables / "sample.json")}
        labels = {row["sample_data_token"]: row["filename"] for row in records(tables / "lidarseg.json")}
        for row in records(tables / "sample_data.json"):
            if row["token"] not in labels:
                continue
            frame, label = source / row["filename"], source / labels[row["token"]]
            split = "val" if scene_of[row["sample_token"]] in val else "train"
            if frame.is_file() and label.is_file():
                lines[split].append(f"{seen_from(out, frame)}{APART}{seen_from(out, label)}")
            else:
                missing += 1
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{tables}: its tables are damaged, {what}; unpack the metadata again") from error
    if not any(lines.values()):
        raise UserError(f"{source}: none of the {missing} labelled frames is here; unpack samples/ and lidarseg/")
    written = 0
    for split, file in targets.items():  # made anew each time: more frames may have been unpacked
        text = "".join(f"{line}\n" for line in sorted(lines[split]))
        if overwrite or not file.is_file() or file.read_bytes() != text.encode():
            write_text(file, text)
            written += 1
    if show is not None:
        show(len(targets), len(targets))
    notes = [f"train {len(lines['train'])}, val {len(lines['val'])} frames"]
    if missing:
        again = "" if all(lines.values()) else ", and a split without any cannot be used"
        notes.append(f"{missing} frames or labels are not here{again}: unpack them, then the same command lists them")
    return Outcome(written, len(targets) - written, tuple(notes))


def check_categories(file: Path) -> None:
    """Raises UserError where raw ids mean something else than the package's table says."""
    known = facts("nuscenes")["categories"]
    for row in records(file):
        index = row.get("index")
        if index is not None and (not 0 <= index < len(known) or known[index] != row["name"]):
            what = known[index] if 0 <= index < len(known) else "unknown"
            raise UserError(f"{file}: raw id {index} is {row['name']}, expected {what}: use nuScenes-lidarseg v1.0")


def records(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, one by one: the largest table has millions."""
    if not file.is_file():
        raise UserError(f"{file}: no such table; unpack the metadata of nuScenes again")
    decoder, text, at = json.JSONDecoder(), "", 0
    with open(file, encoding="utf-8") as stream:
        while chunk := stream.read(1 << 20):
            text, at = text[at:] + chunk, 0
            while True:
                at = re.compile(r"[\s,\[\]]*").match(text, at).end()  # type: ignore[union-attr]
                try:
                    row, at = decoder.raw_decode(text, at)
                except json.JSONDecodeError:
                    break
                yield row
    if text[at:].strip(" \n\t\r,[]"):
        raise UserError(f"{file}: this table is cut off; unpack it again")


def seen_from(folder: Path, file: Path) -> str:
    """A path relative to ``folder`` where it lies below it, else a full one."""
    folder, file = folder.resolve(), file.resolve()
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.as_posix()


def semantickitti(source: Path, out: Path, overwrite: bool, workers: int, show: Show | None) -> Outcome:
    """`pointadapt prepare semantickitti`: no frame is converted; a dataset.yaml lists them where they lie."""
    found = find_benchmark(source, "semantickitti")
    assert found is not None  # it raises where the layout is another
    if (out / YAML).is_file() and not overwrite:
        return Outcome(0, 1)
    kitti = found.datasets[YAML]
    splits = {split: tuple(seen_from(out, source / place) for place in kitti.splits[split]) for split in kitti.splits}
    there = dataclasses.replace(kitti, folder=out, splits=splits)
    init_benchmark(out, dataclasses.replace(found, datasets={YAML: there}), overwrite=True)
    if show is not None:
        show(1, 1)
    return Outcome(1, notes=(f"frames are read from {source} as they are, so keep it: none was copied", *found.notes))
