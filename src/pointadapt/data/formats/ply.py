"""PLY, ascii and binary, through plyfile. Adds vertex properties ``class`` (int) and ``confidence`` (float)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyElement, PlyListProperty, PlyProperty

from pointadapt.data.scan import Scan, assemble
from pointadapt.errors import UserError
from pointadapt.files import written


def read(path: Path, label_field: str | None = None) -> Scan:
    vertex = vertices(PlyData.read(str(path)), path)
    names = [p.name for p in vertex.properties if not isinstance(p, PlyListProperty)]
    return assemble(path, {name: vertex.data[name] for name in names}, label_field)


def vertices(file: PlyData, path: Path) -> PlyElement:
    if "vertex" not in file:
        raise UserError(f"{path}: a PLY file without an element 'vertex' has no points")
    return file["vertex"]


def save(file: Path, columns: dict[str, np.ndarray]) -> None:
    """Columns [N] of vertices, of float32, int32 or uint8, as a binary little-endian PLY, whole or not at all."""
    types = [(name, values.dtype) for name, values in columns.items()]
    rows = np.rec.fromarrays(list(columns.values()), dtype=types)
    with written(file) as temporary:
        PlyData([PlyElement.describe(np.asarray(rows), "vertex")], byte_order="<").write(str(temporary))


def write(source: Path, target: Path, classes: np.ndarray, confidence: np.ndarray) -> None:
    file = PlyData.read(str(source))
    old = vertices(file, source)
    kept = [p for p in old.properties if p.name not in ("class", "confidence")]
    added = [PlyProperty("class", "i4"), PlyProperty("confidence", "f4")]
    vertex = PlyElement(old.name, [*kept, *added], old.count, old.comments)
    data = np.empty(old.count, vertex.dtype())
    for prop in kept:
        data[prop.name] = old.data[prop.name]
    data["class"], data["confidence"] = classes, confidence
    vertex.data = data
    elements = [vertex if element is old else element for element in file.elements]
    with open(target, "wb") as stream:
        PlyData(elements, file.text, file.byte_order, file.comments, file.obj_info).write(stream)
