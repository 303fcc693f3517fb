"""Scan: what a file of points holds, under one set of names whatever the format calls them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pointadapt.errors import UserError

#: Names under which files keep a class per point, in order of preference. What we write is called ``class``, so a
#: file's own ``label`` goes before a prediction added to it.
LABELS = ("classification", "label", "labels", "segment", "segment20", "segment200", "semantic", "class", "category")

ALIASES = {
    "returnnumber": "return_number",
    "return_num": "return_number",
    "numberofreturns": "number_of_returns",
    "num_returns": "number_of_returns",
    "strength": "intensity",
    "reflectance": "intensity",
    "remission": "intensity",
    "semantic_label": "semantic",
    "sem_label": "semantic",
}
COORDS = (("x", "y", "z"), ("coord",), ("coords",), ("xyz",), ("points",), ("point",), ("pos",), ("position",))
COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("color",), ("colors",), ("colour",), ("rgb",))
NORMALS = (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"), ("normal",), ("normals",))


@dataclass(frozen=True, eq=False)
class Scan:
    """The points of one file, in the file's order.

    coord   [N, 3] float64, the file's own coordinates (metres, geo-referenced or not)
    color   [N, 3] uint8, or None when the file has no colour or an all-zero one
    normal  [N, 3] float32, or None
    label   [N] int64 raw class ids, -1 where the file has none for a point; None when it has no label field
    more_labels  [N, k] int64 further labels of each point, -1 where there is none; None when a point has only one
    extras  other values per point: [N] each; intensity, return_number, number_of_returns where the file has them
    """

    path: Path
    coord: np.ndarray
    color: np.ndarray | None = None
    normal: np.ndarray | None = None
    label: np.ndarray | None = None
    label_field: str | None = None
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    more_labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.coord)


def canonical(name: str) -> str:
    """One spelling for a field: lower case, without the ``scalar_`` that CloudCompare puts in front."""
    name = name.strip().lower().replace(" ", "_").removeprefix("scalar_")
    return ALIASES.get(name, name)


def assemble(path: Path, fields: dict[str, np.ndarray], label_field: str | None = None) -> Scan:
    """A Scan from a file's named columns ([N] or [N, k] each).

    Raises UserError when there are no coordinates, no ``label_field`` where one is asked for, and for colours, normals
    or labels of other points.
    """
    columns: dict[str, np.ndarray] = {}
    for name, values in fields.items():
        columns.setdefault(canonical(name), np.asarray(values))
    coord = group(columns, COORDS)
    if coord is None:
        raise UserError(f"{path}: no coordinates among its fields ({', '.join(fields)}); it needs x, y and z")
    color, normal = group(columns, COLORS), group(columns, NORMALS)
    found, label = find_label(path, fields, label_field)
    if label is not None and label_field is None and len(label) == 1 < len(coord):
        found = label = None  # the class of the whole, as files of shapes have it
    if found is not None:
        columns.pop(canonical(found), None)
    for what, found_values in (("colours", color), ("normals", normal), ("labels", label)):
        if found_values is not None and len(found_values) != len(coord):
            raise UserError(f"{path}: {len(found_values)} {what} for {len(coord)} points; export it again")
    extras = {k: v.reshape(len(v)) for k, v in columns.items() if v.size == len(coord) and v.dtype.kind in "buif"}
    return Scan(
        path=path,
        coord=np.ascontiguousarray(coord, np.float64),
        color=None if color is None else as_color(color),
        normal=None if normal is None else as_normal(normal),
        label=label,
        label_field=found,
        extras=extras,
        more_labels=None if found is None else more_labels(path, found, np.asarray(fields[found])),
    )


def group(columns: dict[str, np.ndarray], choices: tuple[tuple[str, ...], ...]) -> np.ndarray | None:
    """[N, 3] the first of ``choices`` that is there: three columns, or one of width 3. Takes it out of ``columns``."""
    for names in choices:
        if len(names) == 3 and all(name in columns for name in names):
            return np.stack([columns.pop(name) for name in names], 1)
        if len(names) == 1 and (found := columns.get(names[0])) is not None and found.ndim == 2 and found.shape[1] == 3:
            return columns.pop(names[0])
    return None


def find_label(
    path: Path, fields: dict[str, np.ndarray], label_field: str | None
) -> tuple[str | None, np.ndarray | None]:
    """(the file's name of the label field, [N] int64 raw ids), or (None, None)."""
    spelled = {canonical(name): name for name in reversed(fields)}
    name: str | None
    if label_field is not None:
        name = label_field if label_field in fields else spelled.get(canonical(label_field))
        if name is None:
            has = ", ".join(fields)
            raise UserError(
                f"{path}: no field {label_field!r} to read labels from, it has {has}; add it or set label_field"
            )
    else:
        name = next((spelled[known] for known in LABELS if known in spelled), None)
    return (None, None) if name is None else (name, as_label(path, name, np.asarray(fields[name])))


def as_label(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """[N] int64; NaN (CloudCompare's unlabelled) becomes -1; of several labels per point the first counts."""
    values = np.atleast_1d(values)
    values = values.reshape(len(values), -1)[:, 0] if values.size else values.reshape(0)
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), -1, values)
        if not (np.isfinite(values) & (values == np.floor(values))).all():
            raise UserError(
                f"{path}: the field {name!r} has fractions or infinite values, so no class ids; set label_field"
            )
    if values.dtype.kind not in "buif":
        raise UserError(f"{path}: the field {name!r} holds no numbers, so no class ids; set label_field")
    return values.astype(np.int64)


def more_labels(path: Path, name: str, values: np.ndarray) -> np.ndarray | None:
    """[N, k] all but the first of several labels per point."""
    if values.ndim != 2 or values.shape[1] < 2:
        return None
    return np.stack([as_label(path, name, column) for column in values.T[1:]], 1)


def as_color(values: np.ndarray) -> np.ndarray | None:
    """[N, 3] uint8 from 0-1 floats, 0-255, or 16 bits (any value above 255); None if all are zero."""
    top = values.max() if values.size else 0
    if not top > 0:
        return None
    if values.dtype.kind == "f" and top <= 1:
        return np.round(values * 255).clip(0, 255).astype(np.uint8)
    if top > 255:
        return (values // 256 if values.dtype.kind in "iu" else values / 256).clip(0, 255).astype(np.uint8)
    return values.clip(0, 255).astype(np.uint8)


def as_normal(values: np.ndarray) -> np.ndarray | None:
    """[N, 3] float32 with NaN (PCL's undefined) as zeros; None if all are zero."""
    values = np.nan_to_num(values.astype(np.float32), nan=0, posinf=0, neginf=0)
    return values if values.any() else None
