"""E57 through libE57 (package pye57, extra ``e57``): all scans of a file as one cloud, in the file's global frame.

A written file repeats the source node by node (poses, images, blobs, extensions), with two more fields per point,
``pa:class`` and ``pa:confidence``, in an extension namespace of their own as the standard provides. Readers that
do not know the extension skip these fields. Points the scanner marked invalid are not read; written, they have
class -1 and confidence 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pointadapt.data.scan import Scan, assemble
from pointadapt.errors import UserError

try:
    from pye57 import libe57
except ImportError as error:  # this module itself is imported only when a file is an E57
    raise UserError("E57 files need the package pye57; install it with: pip install pointadapt[e57]") from error

URI, PREFIX = "urn:pointadapt:labels", "pa"
CLASS, CONFIDENCE = f"{PREFIX}:class", f"{PREFIX}:confidence"
CHUNK = 1_000_000
NAMES = {
    "colorRed": "red",
    "colorGreen": "green",
    "colorBlue": "blue",
    "nor:normalX": "nx",
    "nor:normalY": "ny",
    "nor:normalZ": "nz",
    "returnIndex": "return_number",
    "returnCount": "number_of_returns",
    CLASS: "class",
    CONFIDENCE: "confidence",
}
GEOMETRY = ("cartesian", "spherical")


def read(path: Path, label_field: str | None = None) -> Scan:
    file = libe57.ImageFile(str(path), "r")
    try:
        parts = [scan_fields(scan) for scan in children(file.root()["data3D"])]
    finally:
        file.close()
    shared = [name for name in parts[0] if all(name in part for part in parts)] if parts else ["xyz"]
    fields = {name: np.concatenate([part[name] for part in parts] or [np.empty((0, 3))]) for name in shared}
    return assemble(path, fields, label_field)


def children(node: Any) -> Iterator[Any]:
    return (node[i] for i in range(node.childCount()))


def prototype_names(points: Any) -> list[str]:
    return [child.elementName() for child in children(libe57.StructureNode(points.prototype()))]


def scan_fields(scan: Any) -> dict[str, np.ndarray]:
    """The valid points of one scan: ``xyz`` [n, 3] in the global frame, and its other fields."""
    points = scan["points"]
    names = prototype_names(points)
    values = {name: np.empty(points.childCount()) for name in names}
    done = 0
    for count, buffers in chunks(points, names):
        for name in names:
            values[name][done : done + count] = buffers[name][:count]
        done += count
    keep = valid(values)
    values = {name: column[keep] for name, column in values.items()}
    fields = {"xyz": to_global(scan, cartesian(values))}
    for name, column in values.items():
        if not name.startswith(GEOMETRY) and not name.endswith("Invalid"):
            fields[NAMES.get(name, name)] = column
    return fields


def chunks(points: Any, names: list[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(count, name -> buffer) until the end; every field as float64, which holds all of E57's but huge integers."""
    file, size = points.destImageFile(), max(min(CHUNK, points.childCount()), 1)
    buffers, destinations = {}, libe57.VectorSourceDestBuffer()
    for name in names:
        buffers[name] = np.empty(size)
        destinations.append(libe57.SourceDestBuffer(file, name, buffers[name], size, True, True))
    reader = points.reader(destinations)
    try:
        while count := reader.read():
            yield count, buffers
    finally:
        reader.close()


def valid(values: dict[str, np.ndarray]) -> np.ndarray:
    state = next((values[f"{kind}InvalidState"] for kind in GEOMETRY if f"{kind}InvalidState" in values), None)
    return np.ones(len(next(iter(values.values()))), bool) if state is None else state == 0


def cartesian(values: dict[str, np.ndarray]) -> np.ndarray:
    """[n, 3] in the scanner's frame."""
    if "cartesianX" in values:
        return np.stack([values[f"cartesian{axis}"] for axis in "XYZ"], 1)
    distance, azimuth, elevation = (values[f"spherical{name}"] for name in ("Range", "Azimuth", "Elevation"))
    level = distance * np.cos(elevation)
    return np.stack([level * np.cos(azimuth), level * np.sin(azimuth), distance * np.sin(elevation)], 1)


def to_global(scan: Any, xyz: np.ndarray) -> np.ndarray:
    if not scan.isDefined("pose"):
        return xyz
    pose = scan["pose"]
    if pose.isDefined("rotation"):
        w, x, y, z = (pose["rotation"][name].value() for name in "wxyz")
        turn = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        xyz = xyz @ turn.T
    if pose.isDefined("translation"):
        xyz = xyz + [pose["translation"][name].value() for name in "xyz"]
    return xyz


def write(source: Path, target: Path, classes: np.ndarray, confidence: np.ndarray) -> None:
    old = libe57.ImageFile(str(source), "r")
    new = libe57.ImageFile(str(target), "w")
    try:
        for i in range(old.extensionsCount()):
            new.extensionsAdd(old.extensionsPrefix(i), old.extensionsUri(i))
        if not new.extensionsLookupUri(URI, ""):
            new.extensionsAdd(PREFIX, URI)
        Copy(new, classes, confidence).structure(old.root(), new.root())
        new.close()
    except BaseException:
        new.cancel()
        raise
    finally:
        old.close()


class Copy:
    """Repeats the nodes of one E57 file in another, adding class and confidence to the points of each scan."""

    def __init__(self, file: Any, classes: np.ndarray, confidence: np.ndarray):
        self.file, self.classes, self.confidence = file, classes, confidence
        self.done = 0  # valid points written so far

    def structure(self, old: Any, new: Any) -> None:
        for child in children(old):
            self.put(child, partial(new.set, child.elementName()))

    def put(self, old: Any, attach: Any) -> None:
        """Copy a node and attach it; containers are attached first, then filled, as libE57 wants it."""
        if isinstance(old, libe57.CompressedVectorNode):
            self.vector(old, attach)
        elif isinstance(old, libe57.StructureNode):
            attach(new := libe57.StructureNode(self.file))
            self.structure(old, new)
        elif isinstance(old, libe57.VectorNode):
            attach(new := libe57.VectorNode(self.file, old.allowHeteroChildren()))
            for child in children(old):
                self.put(child, new.append)
        elif isinstance(old, libe57.BlobNode):
            attach(new := libe57.BlobNode(self.file, old.byteCount()))
            content = np.empty(old.byteCount(), np.uint8)
            old.read(content, 0, len(content))
            new.write(content, 0, len(content))
        else:
            attach(self.leaf(old))

    def leaf(self, old: Any) -> Any:
        if isinstance(old, libe57.IntegerNode):
            return libe57.IntegerNode(self.file, old.value(), old.minimum(), old.maximum())
        if isinstance(old, libe57.FloatNode):
            return libe57.FloatNode(self.file, old.value(), old.precision(), old.minimum(), old.maximum())
        if isinstance(old, libe57.ScaledIntegerNode):
            limits = old.rawValue(), old.minimum(), old.maximum()
            return libe57.ScaledIntegerNode(self.file, *limits, old.scale(), old.offset())
        return libe57.StringNode(self.file, old.value())

    def vector(self, old: Any, attach: Any) -> None:
        """Copy a table of records chunk by chunk; the tables called ``points`` get the two new columns."""
        names = [name for name in prototype_names(old) if name not in (CLASS, CONFIDENCE)]
        prototype = libe57.StructureNode(self.file)
        for child in children(libe57.StructureNode(old.prototype())):
            if child.elementName() in names:
                self.put(child, partial(prototype.set, child.elementName()))
        is_points = old.elementName() == "points"
        columns = list(names)
        if is_points:
            prototype.set(CLASS, libe57.IntegerNode(self.file, 0, -(2**31), 2**31 - 1))
            prototype.set(CONFIDENCE, libe57.FloatNode(self.file, 0.0, libe57.E57_SINGLE, 0.0, 1.0))
            columns += [CLASS, CONFIDENCE]
        attach(new := libe57.CompressedVectorNode(self.file, prototype, libe57.VectorNode(self.file, True)))
        size = max(min(CHUNK, old.childCount()), 1)
        out, sources = {}, libe57.VectorSourceDestBuffer()
        for name in columns:
            out[name] = np.zeros(size)
            sources.append(libe57.SourceDestBuffer(self.file, name, out[name], size, True, True))
        writer = new.writer(sources)
        try:
            for count, buffers in chunks(old, names):
                for name in names:
                    out[name][:count] = buffers[name][:count]
                if is_points:
                    keep = valid({name: out[name][:count] for name in names})
                    rows = slice(self.done, self.done + int(keep.sum()))
                    out[CLASS][:count], out[CONFIDENCE][:count] = -1, 0
                    out[CLASS][:count][keep] = self.classes[rows]
                    out[CONFIDENCE][:count][keep] = self.confidence[rows]
                    self.done = rows.stop
                writer.write(count)
        finally:
            writer.close()
