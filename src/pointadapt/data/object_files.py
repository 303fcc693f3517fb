"""The shapes behind a source of an ObjectSet: folders, single files, array files, lists of names."""

from __future__ import annotations

import os
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pointadapt.data.io import FORMATS, is_left_out, is_output, read_scan, reason
from pointadapt.data.mesh import read_off, read_ply_mesh, sample_surface
from pointadapt.data.object_arrays import ENDINGS, Arrays, holds_shapes, read_arrays
from pointadapt.data.scan import Scan, assemble
from pointadapt.errors import NoPoints, UserError
from pointadapt.files import read_json, read_text

if TYPE_CHECKING:
    from pointadapt.data.object_set import ObjectSet

TEXT = (".xyz", ".txt", ".csv", ".pts")
#: File endings of one shape.
SHAPES = (".off", *TEXT, *FORMATS)
#: Points drawn on a mesh; farthest point sampling then chooses among them.
SURFACE_POINTS = 4096
#: Columns of a text file after x y z, by their number.
COLUMNS = {1: ["label"], 3: ["nx", "ny", "nz"], 4: ["nx", "ny", "nz", "label"]}


@dataclass(frozen=True)
class Item:
    """One shape: its name (path and row within the data set), where it lies, and its class (or category) index."""

    name: str
    path: Path
    target: int
    part: str = ""
    row: int | None = None


def is_shape(path: Path) -> bool:
    """Whether its name says that it is a file of one shape; an array of labels is none."""
    labels = path.suffix.lower() == ".npy" and path.stem.endswith(("label", "labels"))
    return path.suffix.lower() in SHAPES and not path.name.startswith(".") and not labels


def list_items(dataset: ObjectSet, source: str) -> list[Item]:
    """All shapes of one source. Raises UserError where it is missing, empty, or of no known class."""
    name, within = taken_apart(dataset.folder, source)
    path = dataset.folder / name
    files = listed_files(dataset, path)
    if files is not None:
        return [file_item(dataset, file) for file in files]
    if path.suffix.lower() in ENDINGS and holds_shapes(path):
        return array_items(dataset, name, path, within)
    if not is_shape(path):
        raise UserError(
            f"{path}: unknown format {path.suffix!r}; shapes are {', '.join(SHAPES)} or {', '.join(ENDINGS)}"
        )
    return [file_item(dataset, path)]


def listed_files(dataset: ObjectSet, path: Path) -> list[Path] | None:
    """The files that a folder holds, or a list names; None for a file that is no list. Raises UserError for others."""
    if path.is_dir():
        files = walk(path)
        if not files:
            raise UserError(f"{path}: no shapes in this folder; supported are {', '.join(SHAPES)}")
        return files
    if not path.is_file():
        raise UserError(f"{path}: no such file, which {dataset.file} lists in its splits")
    if path.suffix.lower() == ".json" or is_name_list(path):
        return [named_file(dataset, path, entry) for entry in read_names(path)]
    return None


def in_two_splits(dataset: ObjectSet) -> tuple[str, str, str] | None:
    """(file, split, another) of the first file that two splits list, by whatever path or link; no array is read."""
    owners: dict[str, list[tuple[str, str]]] = {}  # real file -> (what is meant in it, split)
    folders: dict[Path, str] = {}  # as they are named -> where they really are
    for split, sources in dataset.splits.items():
        for source in sources:
            name, within = taken_apart(dataset.folder, source)
            path = dataset.folder / name
            with suppress(UserError):  # what cannot be listed is told when it is used
                for file in listed_files(dataset, path) or [path]:
                    if file.parent not in folders:
                        folders[file.parent] = os.path.realpath(file.parent)
                    real = (
                        os.path.realpath(file) if file.is_symlink() else os.path.join(folders[file.parent], file.name)
                    )
                    here = owners.setdefault(real, [])
                    for meant, other in here:
                        if other != split and is_part(within, meant):
                            return str(file), other, split
                    if (within, split) not in here:
                        here.append((within, split))
    return None


def is_part(one: str, other: str) -> bool:
    """Whether two things meant in an array file share shapes: ``train/3``, ``train`` and all of it do."""
    return f"{one}/".startswith(f"{other}/" if other else "") or f"{other}/".startswith(f"{one}/" if one else "")


def taken_apart(folder: Path, source: str) -> tuple[str, str]:
    """(file or folder, what is meant in it): ``shapes.npz#12`` is ("shapes.npz", "12"), unless a file is called so."""
    name, _, within = source.rpartition("#")
    return (source, "") if not name or (folder / source).exists() else (name, within)


def walk(folder: Path) -> list[Path]:
    """Files of shapes below a folder, in name order, without predictions; links to folders are followed, each folder
    is seen once."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_left_out(Path(place, name)))
        found += [path for name in files if is_shape(path := Path(place, name)) and not is_output(path)]
    return sorted(found)


def file_item(dataset: ObjectSet, path: Path) -> Item:
    """A file of one shape, whose class is the folder it lies in."""
    inside = Path(os.path.relpath(path, dataset.folder))  # it may lie beside the folder
    for name in reversed(inside.parts[:-1]):
        if name in dataset.aliases:
            return Item(inside.as_posix(), path, dataset.aliases[name])
    known = ", ".join(dataset.aliases)
    raise UserError(
        f"{path}: it lies in no folder of a known class ({known}); name the folder in `folders` or `classes` of "
        f"{dataset.file}, or take the file out"
    )


# --- lists of names -------------------------------------------------------------------------------------------------


def is_name_list(path: Path) -> bool:
    """A .txt file that begins with a name, not with the coordinates of a point (behind a line of headings or not)."""
    if path.suffix.lower() != ".txt" or path.stat().st_size == 0:
        return False
    with open(path, encoding="utf-8", errors="replace") as stream:
        return not any(is_numbers(stream.readline()) for _ in range(2))


def is_numbers(line: str) -> bool:
    """Whether a line holds at least three numbers."""
    words = line.split("#")[0].replace(",", " ").split()
    try:
        return len([float(word) for word in words]) >= 3
    except ValueError:
        return False


def read_names(path: Path) -> list[str]:
    """Entries of a list: lines of a .txt, or a JSON list."""
    if path.suffix.lower() == ".txt":
        return [name for line in read_text(path).splitlines() if (name := line.strip())]
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: a list of shapes must be a JSON list of names")
    return names


def named_file(dataset: ObjectSet, path: Path, entry: str) -> Path:
    """The file that an entry means: a path, ModelNet40's ``airplane_0001``, ShapeNetPart's ``shape_data/SYNSET/ID``."""
    places = [entry, entry.removeprefix("shape_data/")]
    if model := re.fullmatch(r"(.+)_\d+", entry):
        places.append(f"{model[1]}/{entry}")
    for place in places:
        for ending in ("", ".txt", *SHAPES):
            file = dataset.folder / f"{place}{ending}"
            if file.is_file():
                return file
    raise UserError(f"{path}: it lists {entry}, for which there is no file in {dataset.folder}")


# --- array files ----------------------------------------------------------------------------------------------------


def array_items(dataset: ObjectSet, name: str, path: Path, within: str) -> list[Item]:
    """Rows of an array file: all, those of one part of a pickle (``#train``), or one (``#12``, ``#train/12``)."""
    part, _, last = within.rpartition("/")
    if not last.isdigit():
        part, last = within, ""
    arrays = read_arrays(path, part)
    targets = array_targets(dataset, arrays, path)
    if last and int(last) >= len(arrays):
        raise UserError(f"{path}: there is no shape {last}, it holds {len(arrays)}")
    prefix = f"{name}#{part}/" if part else f"{name}#"
    rows = [int(last)] if last else range(len(arrays))
    return [Item(f"{prefix}{row}", path, int(targets[row]), part, row) for row in rows]


def array_targets(dataset: ObjectSet, arrays: Arrays, path: Path) -> np.ndarray:
    """[M] index of the class (or category) of each shape."""
    if dataset.task == "parts" and arrays.label is None:
        owner = {part: i for i, parts in enumerate(dataset.categories.values()) for part in parts}
        first = [arrays.shape(row)[1] for row in range(len(arrays))]
        if any(segment is None for segment in first):
            raise UserError(f"{path}: no parts of points in it, which `task: parts` needs")
        parts = np.array([int(segment[0]) for segment in first if segment is not None])
        check_range(parts, len(dataset.classes), path, "part")
        return np.array([owner[part] for part in parts.tolist()])
    if arrays.label is None:
        raise UserError(f"{path}: no labels in it or beside it, which `task: classification` needs")
    targets = arrays.label
    if arrays.classes is not None:
        check_range(targets, len(arrays.classes), path, "label")
        unknown = [arrays.classes[i] for i in np.unique(targets) if arrays.classes[i] not in dataset.aliases]
        if unknown:
            raise UserError(f"{path}: its class {unknown[0]!r} is not in `classes` of {dataset.file}; add it")
        return np.array([dataset.aliases.get(name, -1) for name in arrays.classes])[targets]
    check_range(targets, len(dataset.targets), path, "label")
    return targets


def check_range(values: np.ndarray, count: int, path: Path, kind: str) -> None:
    wrong = values[(values < 0) | (values >= count)]
    if len(wrong):
        raise UserError(f"{path}: {kind} {wrong[0]} is out of range, there are {count} (0 to {count - 1})")


# --- reading one shape ----------------------------------------------------------------------------------------------


def read_item(dataset: ObjectSet, item: Item) -> tuple[np.ndarray, np.ndarray | None]:
    """(coord [N, 3], part index of each point [N] int64 or None). Raises UserError as :func:`read_shape`, and for
    parts that are missing or out of range."""
    if item.row is not None:
        coord, segment = read_arrays(item.path, item.part).shape(item.row)
    else:
        scan = read_shape(item.path, max(SURFACE_POINTS, 2 * dataset.points), dataset.label_field)
        coord, segment = scan.coord, scan.label
    if dataset.task == "classification":
        return coord, None
    if segment is None:
        raise UserError(f"{item.path}: no part of each point in it; set `label_field` in {dataset.file}")
    check_range(segment, len(dataset.classes), item.path, "part")
    return coord, segment.astype(np.int64)


def read_shape(path: Path | str, points: int = SURFACE_POINTS, label_field: str | None = None) -> Scan:
    """One shape: OFF and meshes in PLY become ``points`` points on their surface, text and point files are read.

    Raises UserError when the file is missing, empty, damaged, without points or of unknown format, when coordinates are
    NaN or infinite, and for a mesh without area.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in (".off", ".ply", *TEXT):
        return read_scan(path, label_field)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes)")
    if ending in TEXT:
        return read_columns(path, label_field)
    if ending == ".off":
        vertices, faces = read_off(path)
        coord = sample_surface(vertices, faces, points, path) if len(faces) else vertices
    else:
        try:
            mesh = read_ply_mesh(path)
        except Exception as error:
            raise UserError(f"{path}: not readable as PLY, so damaged or truncated ({reason(error)})") from error
        if mesh is None:
            return read_scan(path, label_field)
        coord = sample_surface(*mesh, points, path)
    return Scan(path, finite(coord, path))


def read_columns(path: Path, label_field: str | None = None) -> Scan:
    """x y z, then one column: label; three: a normal; four: a normal and a label. Commas or blanks between them."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        first = stream.readline()
    header = 0 if is_numbers(first) else 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a file without numbers, which is told below
            values = np.loadtxt(path, delimiter="," if "," in first else None, skiprows=header, ndmin=2)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as lines of numbers ({reason(error)})") from error
    if values.size == 0:
        raise NoPoints(f"{path}: the file has no points")
    if values.shape[1] < 3:
        raise UserError(f"{path}: {values.shape[1]} numbers on a line; a point needs x, y and z")
    extra = values.shape[1] - 3
    names = ["x", "y", "z", *COLUMNS.get(extra, [f"column_{3 + i}" for i in range(extra)])]
    finite(values[:, :3], path)
    return assemble(path, dict(zip(names, values.T, strict=True)), label_field)


def finite(coord: np.ndarray, path: Path) -> np.ndarray:
    if len(coord) == 0:
        raise NoPoints(f"{path}: the file has no points")
    bad = len(coord) - int(np.isfinite(coord).all(1).sum())
    if bad:
        raise UserError(f"{path}: {bad} of {len(coord)} points have NaN or infinite coordinates; remove these points")
    return coord
