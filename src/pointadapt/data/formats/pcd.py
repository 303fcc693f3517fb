"""PCD, ascii, binary and compressed, through pypcd4. Adds fields ``class`` (int) and ``confidence`` (float)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pypcd4 import Encoding, MetaData, PointCloud

from pointadapt.data.scan import Scan, assemble
from pointadapt.errors import UserError


def load(path: Path) -> PointCloud:
    cloud = PointCloud.from_path(path)
    cloud.pc_data = np.atleast_1d(cloud.pc_data)
    if len(cloud.pc_data) != cloud.metadata.points:
        raise UserError(
            f"{path}: the header promises {cloud.metadata.points} points, the file holds {len(cloud.pc_data)}; "
            f"it is truncated, copy it again"
        )
    return cloud


def read(path: Path, label_field: str | None = None) -> Scan:
    cloud = load(path)
    fields = {name: cloud.pc_data[name] for name in cloud.pc_data.dtype.fields or {}}
    for packed in ("rgb", "rgba"):  # three bytes in the bits of a float or an integer
        if packed in fields and fields[packed].dtype.itemsize == 4:
            fields["rgb"] = PointCloud.decode_rgb(np.ascontiguousarray(fields.pop(packed)))
    return assemble(path, fields, label_field)


def write(source: Path, target: Path, classes: np.ndarray, confidence: np.ndarray) -> None:
    cloud = load(source)
    old = cloud.metadata
    columns = list(zip(old.fields, old.size, old.type, old.count, strict=True))
    columns = [c for c in columns if c[0] not in ("class", "confidence")]
    columns += [("class", 4, "I", 1), ("confidence", 4, "F", 1)]
    fields, size, kind, count = zip(*columns, strict=True)
    new = old.derive(fields=fields, size=size, type=kind, count=count)
    data = np.empty(len(cloud.pc_data), new.build_dtype())
    for name in cloud.pc_data.dtype.fields or {}:
        if name not in ("class", "confidence"):
            data[name] = cloud.pc_data[name]
    data["class"], data["confidence"] = classes, confidence
    if old.data == Encoding.ASCII:
        save_text(target, new, data)
    else:
        PointCloud(new, data).save(target, old.data)


def save_text(target: Path, header: MetaData, data: np.ndarray) -> None:
    """As pypcd4 does, but with all digits of a float: its ten decimals lose colours packed into one."""
    digits = {"f4": "%.9g", "f8": "%.17g"}
    formats = [digits.get(data.dtype[name].str[1:], "%d") for name in data.dtype.fields or {}]
    with open(target, "wb") as stream:
        stream.write(header.compose_header(Encoding.ASCII).encode())
        np.savetxt(stream, data, formats)
