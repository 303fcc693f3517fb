"""Array files of point videos: one video or many, dense, ragged or packed; HDF5, NPZ and NPY.

npz, npy  points [F, N, 3+] or a ragged list of F arrays [N, 3+], one video   (MSR-Action3D, NTU, SHREC'17)
          points [M, F, N, 3+], M videos
npz       xyz [P, 3], frame_start [F], seq_frame_ptr [M+1]: M videos behind each other                       (RadHAR)
h5        pcd [M, F, N, 3], label [M, F] of frames or semantic [M, F, N] of points, center [M, F, 3] or [M, 3] (HOI4D)

``label`` [M] is a class per video; ``rgb`` (or color, colors) is shaped as the points are. Ragged lists are pickles and
go through the restricted reader of unpickle.py.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pointadapt.data.io import reason
from pointadapt.data.object_arrays import first, header, open_h5, read_header, text
from pointadapt.data.unpickle import ArraysOnly
from pointadapt.errors import UserError

ENDINGS = (".npz", ".npy", ".h5", ".hdf5")
POINTS = ("point_clouds", "pcd", "data", "xyz", "points", "coord")
LABELS = ("label", "labels", "y")
SEGMENTS = ("semantic", "segment", "seg")
COLORS = ("rgb", "color", "colors")
SMALL = (*LABELS, "frame_label", "center", "classes", "name", "names", "frame_start", "seq_frame_ptr")


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame as it lies in a file: coord [N, 3]; None where it has none: the raw label of each point [N], a stored
    centre [3], colours as stored."""

    coord: np.ndarray
    segment: np.ndarray | None = None
    center: np.ndarray | None = None
    color: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class VideoArrays:
    """The videos of one file. ``points`` is [F, N, 3+] or a list of F ([M, ...] if ``many``), or packed [P, 3+]."""

    path: Path
    points: Any
    many: bool
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def packed(self) -> bool:
        return "seq_frame_ptr" in self.fields

    def __len__(self) -> int:
        if self.packed:
            return len(self.fields["seq_frame_ptr"]) - 1
        return len(self.points) if self.many else 1

    def frames(self, row: int) -> int:
        """Frames of one video."""
        if self.packed:
            return int(np.diff(self.fields["seq_frame_ptr"][row : row + 2])[0])
        return int(self.points.shape[1]) if self.many else len(self.points)

    def label(self, row: int) -> Any | None:
        """The label of a whole video, where the file has one."""
        label = first(self.fields, LABELS)
        if label is None or np.size(label) != len(self):
            return None
        return np.reshape(label, -1)[row]

    def frame_label(self, row: int) -> np.ndarray | None:
        """[F] raw labels of a video's frames, where the file has them."""
        if self.packed:
            label = self.fields.get("frame_label")
            return None if label is None else label[slice(*self.fields["seq_frame_ptr"][row : row + 2])]
        label = first(self.fields, ("frame_label", *LABELS))
        if label is None:
            return None
        label = np.asarray(label[row] if self.many else label)
        return label.reshape(-1) if label.size == self.frames(row) else None

    def frame(self, row: int, number: int, columns: tuple[int, ...] = (0, 1, 2)) -> Frame:
        """Frame ``number`` of video ``row``. Raises UserError where it is no array of points."""
        at: Any = (row, number) if self.many else number
        segments, center = first(self.fields, SEGMENTS), self.fields.get("center")
        if self.packed:
            start = self.fields["frame_start"]
            total = int(self.fields["seq_frame_ptr"][row]) + number
            at = slice(int(start[total]), int(start[total + 1]) if total + 1 < len(start) else len(self.points))
        coord = np.asarray(self.points[at])
        if coord.ndim != 2 or coord.shape[1] <= max(columns) or coord.dtype.kind not in "iuf":
            raise UserError(
                f"{self.path}: frame {number} is an array of shape {list(coord.shape)}; a frame is [N, 3] numbers"
                + (f" and columns {list(columns)} are asked for" if max(columns) > 2 else "")
            )
        segment = None if segments is None else np.asarray(segments[at]).reshape(-1)
        if segment is not None and len(segment) != len(coord):
            raise UserError(f"{self.path}: frame {number} has {len(segment)} labels for {len(coord)} points")
        if center is not None:  # [F, 3] or the whole video's [3]
            center = np.asarray(center[row] if self.many else center, np.float64)
            center = center[number] if center.ndim == 2 else center
        colors = first(self.fields, COLORS)
        color = None if colors is None else np.asarray(colors[at])
        return Frame(coord[:, list(columns)], segment, center, color)


@dataclass(frozen=True)
class Contents:
    """What a listing needs of a file: frames of each video, their classes, names."""

    frames: list[int]
    label: list[Any] | None
    name: list[str] | None
    many: bool


def contents(path: Path) -> Contents:
    """Read from headers alone where a file is one video without a label; others are opened. Raises UserError as
    read_videos."""
    if path.suffix.lower() == ".npz":
        with opened(path):
            arrays = headers(path)
        key = points_key(arrays)
        more = any(name in arrays for name in (*LABELS, "frame_start"))  # to be read
        if key is not None and len(arrays[key][0]) != 4 and not more:
            return Contents([arrays[key][0][0]], None, None, False)
    videos = read_videos(path)
    label = [videos.label(row) for row in range(len(videos))]
    names = first(videos.fields, ("name", "names"))
    fits = names is not None and len(names) == len(videos)
    return Contents(
        [videos.frames(row) for row in range(len(videos))],
        None if None in label else named(videos, label),
        [text(name) for name in names] if names is not None and fits else None,
        videos.many or videos.packed,
    )


def named(videos: VideoArrays, label: list[Any]) -> list[Any]:
    """Labels as names, where the file says what its numbers mean."""
    classes = videos.fields.get("classes")
    if classes is None:
        return [text(one) if isinstance(one, bytes) else one for one in label]
    if not all(0 <= int(one) < len(classes) for one in label):
        raise UserError(f"{videos.path}: a label is out of range of its {len(classes)} classes")
    return [text(classes[int(one)]) for one in label]


def read_videos(path: Path) -> VideoArrays:
    """All videos of a file; the last two files are remembered, HDF5 and NPY are read frame by frame.

    Raises UserError for a damaged file and for missing or misshapen arrays.
    """
    return _read(path, path.stat().st_mtime_ns, os.getpid())


@lru_cache(maxsize=2)
def _read(path: Path, changed: int, pid: int) -> VideoArrays:
    with opened(path):
        ending = path.suffix.lower()
        fields = npz_fields(path) if ending == ".npz" else npy_fields(path) if ending == ".npy" else h5_fields(path)
    return checked(path, fields)


class opened:
    """Turns what a library says of a damaged file into a UserError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, UserError):
            if str(self.path) not in str(error):
                raise UserError(f"{self.path}: this file is refused: {error}") from error
        elif isinstance(error, Exception) and not isinstance(error, MemoryError):
            ending = self.path.suffix[1:].upper()
            raise UserError(
                f"{self.path}: not readable as {ending}, so damaged or truncated ({reason(error)}); copy it again"
            ) from error


def checked(path: Path, fields: dict[str, Any]) -> VideoArrays:
    """The arrays of a file by their known names, with sizes that fit each other."""
    if "seq_frame_ptr" in fields or "frame_start" in fields:
        return checked_packed(path, fields)
    key = points_key({name: (value.shape, value.dtype) for name, value in fields.items() if name in POINTS})
    if key is None:
        held = ", ".join(f"{name} {list(np.shape(value))}" for name, value in fields.items()) or "it is empty"
        raise UserError(
            f"{path}: no video in it ({held}); it needs {' or '.join(POINTS[:3])} of shape [frames, points, 3], "
            f"[videos, frames, points, 3] or a list of frames"
        )
    many = len(fields[key].shape) == 4
    return VideoArrays(path, fields[key], many, {k: v for k, v in fields.items() if k != key})


def checked_packed(path: Path, fields: dict[str, Any]) -> VideoArrays:
    missing = [name for name in ("xyz", "frame_start", "seq_frame_ptr") if name not in fields]
    if missing:
        raise UserError(f"{path}: packed videos need xyz, frame_start and seq_frame_ptr; {missing[0]} is missing")
    xyz, start, ptr = fields["xyz"], fields["frame_start"], fields["seq_frame_ptr"]
    if xyz.ndim != 2 or (np.diff(start) < 0).any() or (len(start) and not 0 <= start[0] <= start[-1] <= len(xyz)):
        raise UserError(f"{path}: `frame_start` must rise from 0 to the {len(xyz)} points")
    if len(ptr) < 2 or ptr[0] != 0 or ptr[-1] != len(start) or (np.diff(ptr) < 0).any():
        raise UserError(f"{path}: `seq_frame_ptr` must rise from 0 to the {len(start)} frames")
    return VideoArrays(path, xyz, False, {k: v for k, v in fields.items() if k != "xyz"})


def points_key(arrays: dict[str, tuple[tuple[int, ...], np.dtype]]) -> str | None:
    """The array of points among arrays of these shapes and types: 3 or 4 axes, or a list of frames."""
    for name in POINTS:
        shape, dtype = arrays.get(name, ((), np.dtype(float)))
        if len(shape) in (3, 4) or (len(shape) == 1 and dtype.hasobject):
            return name
    return None


# --- formats --------------------------------------------------------------------------------------------------------


def npz_fields(path: Path) -> dict[str, Any]:
    """The known arrays; one of objects through the reader that knows arrays and nothing else."""
    fields: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            if name not in (*POINTS, *SEGMENTS, *COLORS, *SMALL):
                continue
            if not header(archive, name)[1].hasobject:
                fields[name] = arrays[name]
                continue
            with archive.open(f"{name}.npy") as stream:
                read_header(stream)
                fields[name] = ArraysOnly(stream, encoding="latin1").load()
    return fields


def headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """name -> (shape, type) of all arrays in an NPZ."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        return {name: header(archive, name) for name in names}


def npy_fields(path: Path) -> dict[str, Any]:
    with open(path, "rb") as stream:
        if read_header(stream)[1].hasobject:
            data = ArraysOnly(stream, encoding="latin1").load()
        else:
            data = np.load(path, mmap_mode="r", allow_pickle=False)
    fields: dict[str, Any] = {"data": data}
    for stem in (f"{path.stem}_label", f"{path.stem}_labels"):
        if (beside := path.with_name(f"{stem}.npy")).is_file():
            fields["label"] = np.load(beside, allow_pickle=False)
    return fields


def h5_fields(path: Path) -> dict[str, Any]:
    """Data sets of an open file for points and their labels, arrays for all that is small."""
    file = open_h5(path)
    small = {name: file[name][()] for name in SMALL if name in file}
    return {**{name: file[name] for name in (*POINTS, *SEGMENTS, *COLORS) if name in file}, **small}


def holds_videos(path: Path) -> bool:
    """Whether a file with one of ENDINGS holds whole videos rather than one frame; only headers are read.

    True for a ragged NPY, which NumPy refuses, and for a damaged file, so that its reader says what is wrong.
    """
    ending = path.suffix.lower()
    try:
        if ending == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False).ndim in (3, 4)
        if ending != ".npz":
            return any(len(value.shape) == 4 for name, value in h5_fields(path).items() if name in POINTS)
        arrays = headers(path)
        return "seq_frame_ptr" in arrays or points_key(arrays) is not None
    except (ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile):
        return True
