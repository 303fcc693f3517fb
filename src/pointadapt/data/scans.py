"""DataSet: a folder of scans and the small dataset.yaml that says how to read them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pointadapt.data.formats.lidar import read_labels
from pointadapt.data.geometry import estimate_normals
from pointadapt.data.io import is_scan, read_scan
from pointadapt.data.presets import TRAIN_TRANSFORMS
from pointadapt.data.scan import Scan
from pointadapt.data.split_lists import expand, labels_of, scan_of
from pointadapt.data.transforms import Sample
from pointadapt.errors import UserError
from pointadapt.files import read_text
from pointadapt.kinds import YAML

SPLITS = ("train", "val", "test")
#: Fields that say where a data set lies; they are no keys of the yaml.
PLACES = ("folder", "yaml_file")
NORMALS = ("file", "estimate", "none")
#: A voxel's edge after scaling: what Sonata, Concerto and most others were trained on, in metres.
MODEL_VOXEL = 0.02
#: Matrices that bring a file's axes to x east, y north, z up, all without mirroring.
UP = {
    "z": np.eye(3),
    "y": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "-y": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
}


@dataclass(frozen=True)
class DataSet:
    """How to read the scans of one folder. ``DataSet.open(folder)`` reads its dataset.yaml.

    classes      raw id in the files -> name, in the order of the model's outputs; ids with one name are one class
    ignore       raw ids that are neither learned nor scored (-1 never is)
    splits       train, val, test -> paths relative to the folder: scans, folders of them, lists (data/split_lists.py)
    label_field  field with the labels; None: the first known name
    grid_size    edge of a voxel in the files' unit (metres)
    scale        factor on coordinates, so that a voxel has the edge ``grid_size * scale`` the backbone was trained on
    color        "rgb", "none", or one or three fields of the files that take its place: name -> value that becomes 255
    normals      "file" (estimated where a file has none), "estimate" or "none"
    up           the files' upward axis: z, y or -y
    transform    training transforms: a name of TRAIN_TRANSFORMS
    groups       name -> classes whose mean IoU is told apart (head, common and tail of ScanNet200)
    top_k        points may have several labels; evaluation adds IoU where any of the k most probable classes counts
    yaml_file    the file it was read from, for messages
    """

    folder: Path
    classes: dict[int, str]
    ignore: tuple[int, ...] = ()
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    label_field: str | None = None
    grid_size: float = 0.02
    scale: float = 1.0
    color: str | dict[str, float] = "rgb"
    normals: str = "estimate"
    up: str = "z"
    transform: str = "indoor"
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    top_k: int | None = None
    yaml_file: Path | None = field(default=None, compare=False)

    @classmethod
    def open(cls, path: Path | str) -> DataSet:
        """From a folder with a dataset.yaml, or the yaml itself. Raises UserError naming what is wrong in it."""
        path = Path(path)
        file = path / YAML if path.is_dir() else path
        if not path.exists():
            raise UserError(f"there is no folder {path}: check the path")
        if path.is_file() and is_scan(path):
            raise UserError(f"{path} is a scan: give the folder it is in, with a {YAML} or labels to make one from")
        if not file.is_file():
            raise UserError(f"{path}: no {YAML} here; write one with: pointadapt init {path}")
        dataset = replace(cls.from_dict(read_yaml(file), file.parent, file), yaml_file=file)
        for split in dataset.splits:
            for scan in dataset.paths(split):
                if not scan.exists():
                    raise UserError(f"{file}: splits.{split} lists {scan}, which does not exist")
        refuse_twice(file, (scan_of(entry) for split in dataset.splits for entry in dataset.scans(split)))
        return dataset

    @classmethod
    def from_dict(cls, content: Any, folder: Path | str, file: Path | str = YAML) -> DataSet:
        """From what :meth:`as_dict` returned, every value checked; the listed scans need not exist."""
        if not isinstance(content, dict):
            raise UserError(f"{file}: it must hold keys such as classes and splits, not {type(content).__name__}")
        if "task" in content:
            raise UserError(
                f"{file}: `task: {content['task']}` makes it a data set of single objects, this works on scenes; "
                f"from Python read it with open_dataset, or remove `task` if these are scenes"
            )
        check_keys(file, content, [f.name for f in fields(cls) if f.name not in PLACES])
        if "classes" not in content:
            raise UserError(f"{file}: the key 'classes' is missing (raw label id: name, one line each)")
        checked = {key: CHECKS[key](file, key, value) for key, value in content.items()}
        dataset = cls(folder=Path(folder), **checked)
        both = sorted(set(dataset.classes) & set(dataset.ignore))
        if both:
            raise UserError(f"{file}: label id {both[0]} is both in `classes` and in `ignore`; take it out of one")
        unknown = [name for names in dataset.groups.values() for name in names if name not in dataset.names]
        if unknown:
            raise UserError(f"{file}: `groups` names {unknown[0]!r}, which is no name in `classes`")
        if dataset.top_k is not None and dataset.top_k > len(dataset.names):
            raise UserError(f"{file}: `top_k` is {dataset.top_k}, but there are only {len(dataset.names)} classes")
        return dataset

    def as_dict(self) -> dict[str, Any]:
        """All but where it lies, in types that JSON and YAML know; JSON turns the ids of classes into strings."""
        values = {k: v for k, v in asdict(self).items() if k not in PLACES}
        lists = {key: {k: list(v) for k, v in values[key].items()} for key in ("splits", "groups")}
        return {**values, "ignore": list(self.ignore), **lists}

    @property
    def file(self) -> Path:
        return self.yaml_file or self.folder / YAML

    @property
    def voxel(self) -> float:
        """Edge of a voxel in the unit the model sees."""
        return self.grid_size * self.scale

    @cached_property
    def names(self) -> list[str]:
        """Names of the C classes, in the order of the model's outputs."""
        return list(dict.fromkeys(self.classes.values()))

    @cached_property
    def raw_ids(self) -> np.ndarray:
        """[C] int64: the raw id written for each class, the first of its name."""
        return np.array([next(k for k, v in self.classes.items() if v == name) for name in self.names])

    def paths(self, split: str) -> list[Path]:
        if split not in SPLITS:
            raise UserError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        return [self.folder / scan_of(entry) for entry in self.scans(split)]

    def scans(self, split: str) -> tuple[str, ...]:
        """Entries of a split with folders and lists taken apart: one a scan. Reads those, once."""
        if split not in self._scans:
            entries = self.splits.get(split, ())
            self._scans[split] = tuple(one for entry in entries for one in expand(self.folder, entry, self.file))
        return self._scans[split]

    @cached_property
    def _scans(self) -> dict[str, tuple[str, ...]]:
        return {}

    @cached_property
    def label_files(self) -> dict[Path, Path]:
        """Scan -> the file with its labels, for those that a list gives one."""
        entries = [entry for split in self.splits for entry in self.scans(split)]
        return {self.folder / scan_of(e): self.folder / apart for e in entries if (apart := labels_of(e)) is not None}

    def index(self, label: np.ndarray, path: Path | str = "") -> np.ndarray:
        """[N] int64 class index of raw ids, -1 for ignored ones. Raises UserError on ids that the yaml lacks."""
        segment = np.full(len(label), -1, np.int64)
        for raw in np.unique(label).tolist():
            if raw in self.classes:
                segment[label == raw] = self.names.index(self.classes[raw])
            elif raw != -1 and raw not in self.ignore:
                raise UserError(
                    f"{path}: label id {raw} is neither in `classes` nor in `ignore` of {self.file}; add it to one"
                )
        return segment

    def read(self, path: Path | str, labels: bool = True) -> Sample:
        """Read and prepare a scan. With ``labels``, raises UserError if the file has no label field."""
        apart = self.label_files.get(Path(path)) if labels else None
        scan = read_scan(path, self.label_field if labels and apart is None else None)
        if apart is not None:
            scan = replace(scan, label=read_labels(apart, len(scan), scan.path), label_field="label")
        if labels and scan.label is None:
            raise UserError(f"{path}: no label field known by name in it; set `label_field` in {self.file}")
        return self.prepare(scan, labels=labels)

    def prepare(self, scan: Scan, rows: np.ndarray | slice = slice(None), labels: bool = False) -> Sample:
        """The sample that transforms take, of some ``rows`` of a scan (a tile): see :mod:`..data.transforms`.

        The coordinates' origin is the lowest corner of those rows, removed in float64: geo-coordinates in float32
        would be good to half a metre only.
        """
        coord = scan.coord[rows] @ UP[self.up].T
        coord -= coord.min(0)
        sample: Sample = {"coord": (coord * self.scale).astype(np.float32), "color": self._color(scan, rows)}
        sample["normal"] = self._normal(scan, rows, coord)
        if labels and scan.label is not None:
            sample["segment"] = self.index(scan.label[rows], scan.path)
            if self.top_k is not None and scan.more_labels is not None:
                more = [self.index(column[rows], scan.path) for column in scan.more_labels.T]
                sample["more_segments"] = np.stack(more, 1)
        return {**sample, "name": scan.path.name}

    def _color(self, scan: Scan, rows: np.ndarray | slice) -> np.ndarray:
        if isinstance(self.color, dict):
            channels = []
            for name, full in self.color.items():
                if name not in scan.extras:
                    has = ", ".join(scan.extras) or "no further fields"
                    raise UserError(f"{scan.path}: no field {name!r}, which {self.file} uses as colour; it has {has}")
                channels.append(np.clip(scan.extras[name][rows] * (255 / full), 0, 255))
            return np.stack(channels * (3 // len(channels)), 1).round().astype(np.float32)
        if scan.color is None or self.color == "none":
            return np.zeros((len(scan.coord[rows]), 3), np.float32)
        return scan.color[rows].astype(np.float32)

    def _normal(self, scan: Scan, rows: np.ndarray | slice, coord: np.ndarray) -> np.ndarray:
        if self.normals == "none":
            return np.zeros(coord.shape, np.float32)
        if self.normals == "file" and scan.normal is not None:
            return (scan.normal[rows] @ UP[self.up].T).astype(np.float32)
        return estimate_normals(coord, self.grid_size)


def read_yaml(file: Path) -> Any:
    """The content of a yaml. Raises UserError when it is none."""
    try:
        return yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise UserError(f"{file}: no valid YAML ({' '.join(str(error).split())})") from error


# --- checks of the yaml's values: (file, key, value) -> value, or UserError -----------------------------------------


def wrong(file: Any, key: str, value: Any, wanted: str) -> UserError:
    return UserError(f"{file}: `{key}` must be {wanted}, not {value!r}")


def whole(file: Any, key: str, value: Any) -> int:
    try:
        if isinstance(value, bool | float):
            raise ValueError
        return int(value)
    except (TypeError, ValueError):
        raise wrong(file, key, value, "whole numbers (raw label ids)") from None


def check_classes(file: Any, key: str, value: Any) -> dict[int, str]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        raise wrong(file, key, value, "lines of `raw label id: name`")
    return {whole(file, key, raw): str(name) for raw, name in value.items()}


def check_ignore(file: Any, key: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise wrong(file, key, value, "a list of raw label ids")
    return tuple(whole(file, key, raw) for raw in value)


def check_splits(file: Any, key: str, value: Any, what: str = "scan") -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or not set(value) <= set(SPLITS):
        raise wrong(file, key, value, f"lists of paths under {', '.join(SPLITS)}")
    splits = path_lists(file, key, value)
    refuse_twice(file, (path for paths in splits.values() for path in paths), what)
    return splits


def path_lists(file: Any, key: str, value: dict) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for split, paths in value.items():
        if not isinstance(paths or [], list | tuple):
            raise wrong(file, f"{key}.{split}", paths, "a list of paths")
        found[str(split)] = tuple(str(path) for path in paths or [])
    return found


def refuse_twice(file: Any, paths: Iterable[str], what: str = "scan") -> None:
    if twice := repeated(paths):
        raise UserError(f"{file}: {twice} is listed twice in `splits`; a {what} learned from cannot be a test as well")


def check_keys(file: Any, content: dict, known: list[str]) -> None:
    """Raises UserError for a key of a dataset.yaml that is not among the known ones."""
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            cure = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(known)}"
            raise UserError(f"{file}: unknown key {key!r}; {cure}")


def repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def check_positive(file: Any, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise wrong(file, key, value, "a number above 0")
    return float(value)


def check_color(file: Any, key: str, value: Any) -> str | dict[str, float]:
    if isinstance(value, dict) and len(value) in (1, 3):
        return {str(name): check_positive(file, f"{key}.{name}", full) for name, full in value.items()}
    if value not in ("rgb", "none"):
        raise wrong(file, key, value, "rgb, none, or one or three fields with the value that becomes full scale, as in "
                    "{intensity: 2000, return_number: 5, number_of_returns: 5}")  # fmt: skip
    return value


def check_text(file: Any, key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise wrong(file, key, value, "the name of a field")
    return value


def check_groups(file: Any, key: str, value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or not all(isinstance(names, list | tuple) and names for names in value.values()):
        raise wrong(file, key, value, "lists of class names under the name of each group")
    return {str(group): tuple(str(name) for name in names) for group, names in value.items()}


def check_top_k(file: Any, key: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise wrong(file, key, value, "a whole number of classes, at least 1")
    return value


def one_of(choices: Iterable[str]) -> Any:
    def check(file: Any, key: str, value: Any) -> str:
        if value not in choices:
            raise wrong(file, key, value, f"one of {', '.join(choices)}")
        return value

    return check


CHECKS = {
    "classes": check_classes,
    "ignore": check_ignore,
    "splits": check_splits,
    "label_field": check_text,
    "grid_size": check_positive,
    "scale": check_positive,
    "color": check_color,
    "normals": one_of(NORMALS),
    "up": one_of(tuple(UP)),
    "transform": one_of(tuple(TRAIN_TRANSFORMS)),
    "groups": check_groups,
    "top_k": check_top_k,
}
