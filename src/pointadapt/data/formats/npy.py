"""NumPy files: arrays, structured arrays, archives, and folders in Pointcept's layout (one .npy per attribute).

Columns of a plain [N, k] array: x y z, then by k  4: intensity | 6: r g b | 7: r g b label | 9: r g b nx ny nz.
Other columns are kept as ``column_3``, ... Labels may lie in a second file: ``scan.npy`` + ``scan_labels.npy``, or
``scan_points.npy`` + ``scan_labels.npy``.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pointadapt.data.scan import Scan, assemble, canonical
from pointadapt.errors import UserError

RGB, NORMAL = ["red", "green", "blue"], ["nx", "ny", "nz"]
COLUMNS = {4: ["intensity"], 6: RGB, 7: [*RGB, "label"], 9: [*RGB, *NORMAL]}
ADDED = ("class", "confidence")


def read(path: Path, label_field: str | None = None) -> Scan:
    if path.is_dir():
        return assemble(path, attributes(path, label_field), label_field)
    if path.suffix.lower() == ".npz":
        return assemble(path, archive_fields(path), label_field)
    array = np.load(path, allow_pickle=False)
    fields = array_fields(path, array)
    if (beside := label_file(path)) is not None:
        fields["labels"] = np.load(beside, allow_pickle=False).ravel()
        if len(fields["labels"]) != len(array):
            raise UserError(f"{beside}: {len(fields['labels'])} labels for the {len(array)} points of {path}")
    return assemble(path, fields, label_field)


def archive_fields(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def array_fields(path: Path, array: np.ndarray) -> dict[str, np.ndarray]:
    if array.dtype.names:
        return {name: array[name] for name in array.dtype.names}
    if array.ndim != 2 or array.shape[1] < 3:
        raise UserError(f"{path}: an array of shape {array.shape} holds no points; it needs [N, 3] or more columns")
    extra = array.shape[1] - 3
    names = COLUMNS.get(array.shape[1], [f"column_{3 + i}" for i in range(extra)])
    return dict(zip(["x", "y", "z", *names], array.T, strict=True))


def label_file(path: Path) -> Path | None:
    """The file of labels that belongs to an array of points, if there is one."""
    stems = {path.stem, path.stem.removesuffix("_points"), path.stem.removesuffix("points")}
    candidates = [path.with_name(f"{stem}{end}.npy") for stem in sorted(stems) for end in ("_labels", "_label")]
    return next((c for c in candidates if c.is_file() and c != path), None)


def attributes(folder: Path, label_field: str | None = None) -> dict[str, np.ndarray]:
    """The per-point arrays of a folder in Pointcept's layout; others (a pose) are left out."""
    if not (folder / "coord.npy").is_file():
        raise UserError(f"{folder}: a folder is a scan only with a coord.npy in it (Pointcept's layout)")
    loaded = {file.stem: np.load(file, allow_pickle=False) for file in sorted(folder.glob("*.npy"))}
    size = len(loaded["coord"])
    known = ("color", "normal", "segment")
    for name, values in loaded.items():
        rows = len(values) if values.ndim else 0
        if (canonical(name) in known or name == label_field) and rows != size:
            raise UserError(
                f"{folder / name}.npy: {rows} rows for the {size} points of coord.npy; export or prepare it again"
            )
    return {name: values for name, values in loaded.items() if values.ndim and len(values) == size}


def write(source: Path, target: Path, classes: np.ndarray, confidence: np.ndarray) -> None:
    added = {"class": classes.astype(np.int32), "confidence": confidence.astype(np.float32)}
    if source.is_dir():
        target.mkdir()
        for file in sorted(source.iterdir()):
            if file.is_file() and file.stem not in ADDED:
                shutil.copyfile(file, target / file.name)
        for name, values in added.items():
            np.save(target / f"{name}.npy", values)
        return
    if source.suffix.lower() == ".npz":
        arrays = {name: values for name, values in archive_fields(source).items() if name not in ADDED}
        with zipfile.ZipFile(source) as content:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in content.infolist())
        save: Any = np.savez_compressed if packed else np.savez
        with open(target, "wb") as stream:
            save(stream, **arrays, **added)
        return
    array = np.load(source, allow_pickle=False)
    with open(target, "wb") as stream:
        np.save(stream, with_columns(array, added))


def with_columns(array: np.ndarray, added: dict[str, np.ndarray]) -> np.ndarray:
    """The array with class and confidence as two more fields, or as its last two columns."""
    if not array.dtype.names:
        dtype = np.result_type(array.dtype, np.float32)
        return np.concatenate([array.astype(dtype), *(v[:, None].astype(dtype) for v in added.values())], 1)
    kept = [name for name in array.dtype.names if name not in ADDED]
    dtype = np.dtype([(name, array.dtype[name]) for name in kept] + [(k, v.dtype) for k, v in added.items()])
    out = np.empty(array.shape, dtype)
    for name in kept:
        out[name] = array[name]
    for name, values in added.items():
        out[name] = values
    return out
