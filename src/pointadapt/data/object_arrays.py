"""Array files that hold many shapes: HDF5, NPZ, NPY, and the pickles of few-shot and Point-MAE data sets.

h5   data [M, N, 3+]; label [M] or [M, 1]; pid [M, N] parts              (ModelNet40, ScanObjectNN, corruption suites)
npz  xyz, data, points or coord [M, N, 3+]; label [M]; part [M, N]; classes [C] names. ``xyz_q``: int16 / 32767.
     With ``shape_ptr`` [M+1] all shapes lie behind each other, [P, 3+], part [P]
npy  [M, N, 3+], labels in a second file: data_NAME.npy with label.npy, or NAME.npy with NAME_label(s).npy
dat  pickle of (list of [N, 3+], list of labels): Point-MAE's ModelNet40
pkl  pickle of {"train": [(points, label, ...), ...], "test": ...}: few-shot episodes, one part named by #train
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from pointadapt.data.io import reason
from pointadapt.data.unpickle import read_pickle
from pointadapt.errors import UserError

ENDINGS = (".h5", ".hdf5", ".npz", ".npy", ".dat", ".pkl")
COORDS = ("xyz_q", "xyz", "data", "points", "coord")
LABELS = ("label", "labels", "y")
PARTS = ("part", "parts", "pid", "segment")
#: Full scale of coordinates stored as int16.
INT16 = 32767


@dataclass(frozen=True, eq=False)
class Arrays:
    """M shapes of one file: coord, each [N, 3+] (or one packed array with ``ptr``), label [M], parts of points."""

    path: Path
    coord: Sequence[np.ndarray] | np.ndarray
    label: np.ndarray | None = None
    segment: np.ndarray | None = None
    ptr: np.ndarray | None = None
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.coord) if self.ptr is None else len(self.ptr) - 1

    def shape(self, row: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(coord [N, 3] float64, part of each point [N] or None)."""
        rows: Any = row if self.ptr is None else slice(self.ptr[row], self.ptr[row + 1])
        coord = np.asarray(self.coord[rows])
        if coord.ndim != 2 or coord.shape[1] < 3 or coord.dtype.kind not in "iuf":
            raise UserError(f"{self.path}#{row}: an array of shape {list(coord.shape)}; a shape is [N, 3] numbers")
        out = coord[:, :3].astype(np.float64) / (INT16 if coord.dtype == np.int16 else 1)
        return out, None if self.segment is None else np.asarray(self.segment[rows]).reshape(-1)


def read_arrays(path: Path, part: str = "") -> Arrays:
    """All shapes of a file, remembered for the last few. Raises UserError for missing or misshapen arrays."""
    return _read(path, part, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, part: str, changed: int) -> Arrays:
    ending = path.suffix.lower()
    if ending in (".dat", ".pkl"):
        return from_pickle(path, part)
    if part:
        raise UserError(f"{path}: #{part} names a part of a pickle; here only the number of a shape may follow")
    try:
        fields = {".npz": npz_fields, ".npy": npy_fields}.get(ending, h5_fields)(path)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{path}: not readable as {ending[1:].upper()}, so damaged ({reason(error)})") from error
    return checked(path, fields)


def checked(path: Path, fields: dict[str, np.ndarray]) -> Arrays:
    """The arrays of a file by their known names, with sizes that fit each other."""
    coord, label, segment = (first(fields, names) for names in (COORDS, LABELS, PARTS))
    ptr, classes = fields.get("shape_ptr"), fields.get("classes")
    if coord is None:
        raise UserError(
            f"{path}: no array of points in it ({', '.join(fields) or 'it is empty'}); call one data or xyz"
        )
    wanted = 3 if ptr is None else 2
    if coord.ndim != wanted or coord.shape[-1] < 3 or coord.dtype.kind not in "iuf":
        form = "[shapes, points, 3 or more]" if ptr is None else "[points, 3 or more]"
        raise UserError(
            f"{path}: points of shape {list(coord.shape)} and type {coord.dtype}; it must be {form} numbers"
        )
    if ptr is not None and (
        ptr.ndim != 1 or len(ptr) < 2 or ptr[0] != 0 or ptr[-1] != len(coord) or (np.diff(ptr) < 0).any()
    ):
        raise UserError(f"{path}: `shape_ptr` must rise from 0 to the {len(coord)} points")
    shapes = len(coord) if ptr is None else len(ptr) - 1
    if label is not None:
        label = as_label(path, label, shapes)
    if segment is not None and segment.size != coord[..., 0].size:
        raise UserError(f"{path}: parts of shape {list(segment.shape)} for points of shape {list(coord.shape)}")
    return Arrays(path, coord, label, segment, ptr, None if classes is None else [text(name) for name in classes])


def as_label(path: Path, label: np.ndarray, shapes: int) -> np.ndarray:
    if label.size != shapes:
        raise UserError(f"{path}: {label.size} labels for {shapes} shapes")
    if label.dtype.kind not in "iub" and (label.dtype.kind != "f" or (label != np.floor(label)).any()):
        raise UserError(f"{path}: labels of type {label.dtype}; they must be whole numbers")
    return label.reshape(-1).astype(np.int64)


def first(fields: dict[str, Any], names: tuple[str, ...]) -> Any | None:
    return next((fields[name] for name in names if name in fields), None)


def text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


# --- formats --------------------------------------------------------------------------------------------------------


def open_h5(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: HDF5 needs the package h5py: pip install 'pointadapt[objects]'") from None
    return h5py.File(path, "r")


def h5_fields(path: Path) -> dict[str, np.ndarray]:
    known = (*COORDS, *LABELS, *PARTS, "shape_ptr", "classes")
    with open_h5(path) as file:
        return {name: file[name][()] for name in file if name in known}


def npz_fields(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def npy_fields(path: Path) -> dict[str, np.ndarray]:
    fields = {"data": np.load(path, mmap_mode="r", allow_pickle=False)}
    stems = ("label", "labels") if path.stem.startswith("data") else (f"{path.stem}_label", f"{path.stem}_labels")
    beside = next((file for stem in stems if (file := path.with_name(f"{stem}.npy")).is_file()), None)
    return fields if beside is None else {**fields, "label": np.load(beside, allow_pickle=False)}


def from_pickle(path: Path, part: str) -> Arrays:
    """A few-shot episode or Point-MAE's ModelNet40."""
    content = read_pickle(path)
    if isinstance(content, dict):
        if part not in content:
            raise UserError(f"{path}: it holds {', '.join(map(str, content))}; name one of them as {path.name}#NAME")
        shapes = content[part]
        if not all(isinstance(shape, list | tuple) and len(shape) >= 2 for shape in shapes):
            raise UserError(f"{path}: {part} must be a list of (points, label)")
        content = [shape[0] for shape in shapes], [shape[1] for shape in shapes]
    if not isinstance(content, list | tuple) or len(content) != 2:
        raise UserError(f"{path}: a pickle of shapes holds (points, labels), or a dict of train and test")
    points, labels = content
    label = as_label(path, np.concatenate([np.asarray(one).reshape(-1) for one in labels]), len(points))
    return Arrays(path, [np.asarray(one) for one in points], label)


def holds_shapes(path: Path) -> bool:
    """Whether a file with one of ENDINGS holds many shapes rather than the points of one; only headers are read."""
    ending = path.suffix.lower()
    try:
        if ending == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False).ndim == 3
        if ending != ".npz":
            return True
        with zipfile.ZipFile(path) as archive:
            return "shape_ptr.npy" in archive.namelist() or any(
                len(header(archive, name)[0]) == 3 for name in COORDS if f"{name}.npy" in archive.namelist()
            )
    except (ValueError, EOFError, zipfile.BadZipFile):
        return False  # the reader of single files says what is wrong


def header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, type) of an array in an NPZ."""
    with archive.open(f"{name}.npy") as stream:
        return read_header(stream)


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype
