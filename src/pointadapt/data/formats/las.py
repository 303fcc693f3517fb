"""LAS and LAZ through laspy and lazrs, a million points at a time, so that large files need little memory.

Class ids go into the standard ``classification``; ids that do not fit there (above 31 in point formats 0-5, above
255 in 6-10, or negative) go into an extra-bytes dimension ``class``, and ``classification`` stays. ``confidence`` is
an extra-bytes dimension in either case.
"""

from __future__ import annotations

from pathlib import Path

import laspy
import numpy as np

from pointadapt.data.scan import Scan, as_color, find_label
from pointadapt.errors import UserError

CHUNK = 1_000_000
EXTRAS = ("intensity", "return_number", "number_of_returns")

#: Names of the standard classification codes; 64-67 as used by IGN (France), 26 by AHN (Netherlands).
ASPRS = {
    0: "never classified",
    1: "unassigned",
    2: "ground",
    3: "low vegetation",
    4: "medium vegetation",
    5: "high vegetation",
    6: "building",
    7: "low noise",
    8: "model key point",
    9: "water",
    10: "rail",
    11: "road surface",
    13: "wire guard",
    14: "wire conductor",
    15: "transmission tower",
    16: "wire connector",
    17: "bridge deck",
    18: "high noise",
    26: "civil structure",
    64: "perennial structure",
    65: "artefact",
    66: "virtual point",
    67: "miscellaneous building",
}
#: Codes that say nothing about what a point is.
NO_CLASS = (0, 1, 7, 18, 65, 66)


def read(path: Path, label_field: str | None = None) -> Scan:
    with laspy.open(path) as file:
        header = file.header
        names = set(header.point_format.dimension_names)
        field = label_field or "classification"
        if field not in names:
            raise UserError(f"{path}: no dimension {field!r} to read labels from; it has {', '.join(sorted(names))}")
        size = header.point_count
        coord = np.empty((size, 3), np.float64)
        rgb = np.empty((size, 3), np.uint16) if "red" in names else None
        columns = {name: header.point_format.dimension_by_name(name) for name in (*EXTRAS, field)}
        values = {name: np.empty(size, column.dtype) for name, column in columns.items()}
        done = 0
        for chunk in file.chunk_iterator(CHUNK):
            rows = slice(done, done + len(chunk))
            for axis, name in enumerate("xyz"):
                coord[rows, axis] = chunk[name]
            if rgb is not None:
                for axis, name in enumerate(("red", "green", "blue")):
                    rgb[rows, axis] = chunk[name]
            for name, column in values.items():
                column[rows] = chunk[name]
            done += len(chunk)
        check_complete(path, done, size)
    _, label = find_label(path, {field: values.pop(field)}, field)
    color = None if rgb is None else as_color(rgb)
    return Scan(path=path, coord=coord, color=color, label=label, label_field=field, extras=values)


def check_complete(path: Path, done: int, size: int) -> None:
    if done != size:
        raise UserError(f"{path}: the header promises {size} points, the file holds {done}; it is truncated")


def write(source: Path, target: Path, classes: np.ndarray, confidence: np.ndarray) -> None:
    with laspy.open(source) as file:
        old = file.header
        new = old.copy()
        largest = 255 if old.point_format.id >= 6 else 31
        fits = classes.min() >= 0 and classes.max() <= largest
        added = [("confidence", np.float32)] if fits else [("class", np.int32), ("confidence", np.float32)]
        new.remove_extra_dims([name for name, _ in added if name in old.point_format.extra_dimension_names])
        new.add_extra_dims([laspy.ExtraBytesParams(name, dtype) for name, dtype in added])
        new.vlrs = [vlr for vlr in new.vlrs if vlr.user_id != "copc"]  # the octree's order is not written
        evlrs = [vlr for vlr in new.evlrs or [] if vlr.user_id != "copc"]
        compress = target.suffix.lower() == ".laz"
        done = 0
        with open(target, "wb") as stream, laspy.LasWriter(stream, new, do_compress=compress, closefd=False) as writer:
            for chunk in file.chunk_iterator(CHUNK):
                rows = slice(done, done + len(chunk))
                points = laspy.ScaleAwarePointRecord.zeros(len(chunk), header=writer.header)
                for name in chunk.array.dtype.names:
                    if name in points.array.dtype.names:  # raw columns: every bit of the source
                        points.array[name] = chunk.array[name]
                points["classification" if fits else "class"] = classes[rows]
                points["confidence"] = confidence[rows]
                writer.write_points(points)
                done += len(chunk)
            if evlrs:
                writer.write_evlrs(laspy.vlrs.vlrlist.VLRList(evlrs))
        check_complete(source, done, old.point_count)
