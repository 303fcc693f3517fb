"""Headless lidar files: SemanticKITTI's .bin (x y z remission) and nuScenes' .pcd.bin (and ring), with their labels.

A frame in a folder ``velodyne`` finds its labels by itself, in ``../labels/NNNNNN.label``; those of nuScenes have names
of their own, which a list of scans gives (see data/split_lists.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pointadapt.data.scan import Scan, assemble
from pointadapt.errors import UserError

COLUMNS = ("x", "y", "z", "intensity", "ring")
#: Bits of a SemanticKITTI label that hold the class; the others count instances.
CLASS_BITS = 0xFFFF


def read(path: Path, label_field: str | None = None) -> Scan:
    width = 5 if path.name.endswith(".pcd.bin") else 4
    if path.stat().st_size % (4 * width):
        raise UserError(f"{path}: its size is no multiple of {width} float32 numbers per point, so it is damaged, or "
                        "nuScenes frames (5 numbers) do not end in .pcd.bin")  # fmt: skip
    values = np.fromfile(path, np.float32).reshape(-1, width)
    fields = dict(zip(COLUMNS, values.T, strict=False))
    beside = place_of_labels(path)
    if beside is not None and (label_field == "label" or beside.is_file()):
        fields["label"] = read_labels(beside, len(values), path)
    return assemble(path, fields, label_field)


def labels_beside(path: Path) -> Path | None:
    """``../labels/NNNNNN.label`` of a frame in a folder ``velodyne``, if it is there."""
    file = place_of_labels(path)
    return file if file is not None and file.is_file() else None


def place_of_labels(path: Path) -> Path | None:
    """Where the labels of a frame in a folder ``velodyne`` belong."""
    return path.parent.parent / "labels" / f"{path.stem}.label" if path.parent.name == "velodyne" else None


def read_labels(file: Path, size: int, scan: Path) -> np.ndarray:
    """[N] raw class ids of a file that holds nothing else: uint32 ``.label``, uint8 ``.bin``, or ``.npy``.

    Raises UserError when it is missing or has another number of labels than the scan has points.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; unpack the labels' own download, which has those of {scan}")
    if file.suffix == ".npy":
        label = np.load(file, allow_pickle=False).reshape(-1)
    elif file.suffix == ".label":
        label = np.fromfile(file, np.uint32) & CLASS_BITS
    else:
        label = np.fromfile(file, np.uint8)
    if len(label) != size:
        raise UserError(f"{file}: {len(label)} labels for the {size} points of {scan}")
    return label.astype(np.int64)


def write(source: Path, target: Path, classes: np.ndarray, confidence: np.ndarray) -> None:
    """The class ids as a ``.label`` file, as the SemanticKITTI server takes them: there is no room for the rest."""
    if classes.size and not (classes.min() >= 0 and classes.max() <= CLASS_BITS):
        raise UserError(
            f"{target}: class ids go from {classes.min()} to {classes.max()}, a .label file holds 0 to 65535"
        )
    classes.astype("<u4").tofile(target)
