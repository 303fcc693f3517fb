"""ObjectSet: a folder of single objects and the dataset.yaml that says how to read them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from pointadapt.data.object_files import Item, in_two_splits, list_items, taken_apart
from pointadapt.data.object_transforms import OBJECT_TRANSFORMS, sorted_rows
from pointadapt.data.scans import (
    SPLITS,
    YAML,
    check_keys,
    check_splits,
    check_text,
    one_of,
    path_lists,
    read_yaml,
    repeated,
    whole,
    wrong,
)
from pointadapt.data.transforms import Sample, unit_sphere
from pointadapt.errors import UserError

TASKS = ("classification", "parts")
#: Matrices that bring a file's axes to y up, as in all published checkpoints of object models, without mirroring.
UP = {
    "y": np.eye(3),
    "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "x": np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, 1]]),
    "-y": np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]]),
    "-z": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
}


@dataclass(frozen=True)
class ObjectSet:
    """How to read the shapes of one folder. ``ObjectSet.open(folder)`` reads its dataset.yaml.

    task        "classification": one class per shape; "parts": one part per point, restricted to the shape's category
    classes     the model's outputs in order: class names, or part names
    categories  parts only: category -> indices of its parts in ``classes``
    folders     name of a folder -> class (or category) of the shapes in it, where it is not the class's own name
    splits      train, val, test -> sources relative to the folder: a folder, a file, an array file with many shapes,
                one row of it (``shapes.npz#12``), a part of a pickle (``0.pkl#train``), or a list of names (txt, json)
    tests       further test splits by name: suites of corrupted shapes, whose position and size are never normalised
    holdout     share of each class of train that becomes val, where ``splits`` has no val; drawn by the items' names
    points      points of a shape that the model sees; a shape of fewer gives all it has
    up          the files' upward axis: x, y, z, -y or -z; the model sees y up
    normalize   centroid to the origin and the farthest point to distance 1
    label_field parts only: field of the files with the part of each point; None: the first known name
    transform   augmentation in training: a name of OBJECT_TRANSFORMS
    """

    folder: Path
    task: str
    classes: tuple[str, ...]
    categories: dict[str, tuple[int, ...]] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tests: dict[str, tuple[str, ...]] = field(default_factory=dict)
    holdout: float = 0.0
    points: int = 1024
    up: str = "y"
    normalize: bool = True
    label_field: str | None = None
    transform: str = "scale_translate"

    @classmethod
    def open(cls, path: Path | str) -> ObjectSet:
        """From a folder with a dataset.yaml, or the yaml itself. Raises UserError naming what is wrong in it."""
        path = Path(path)
        file = path / YAML if path.is_dir() else path
        if not path.exists():
            raise UserError(f"there is no folder {path}: check the path")
        if not file.is_file():
            raise UserError(f"{path}: no {YAML} here; write one with: pointadapt init {path}")
        dataset = cls.from_dict(read_yaml(file), file.parent, file)
        for split, sources in {**dataset.splits, **dataset.tests}.items():
            for source in sources:
                if not (dataset.folder / taken_apart(dataset.folder, source)[0]).exists():
                    raise UserError(f"{file}: the split {split} lists {source}, which does not exist")
        return dataset

    @classmethod
    def from_dict(cls, content: Any, folder: Path | str, file: Path | str = YAML) -> ObjectSet:
        """From what :meth:`as_dict` returned, every value checked; the listed files need not exist."""
        names = [f.name for f in fields(cls) if f.name != "folder"]
        dataset = cls(folder=Path(folder), **checked(content, names, CHECKS, folder, file))
        dataset._check(file)
        return dataset

    def _check(self, file: Path | str) -> None:
        """What holds between several keys."""
        if self.task == "classification" and self.categories:
            raise UserError(f"{file}: `categories` is for `task: parts`; remove it or change the task")
        if self.task == "parts":
            if not self.categories:
                raise UserError(
                    f"{file}: `task: parts` needs `categories`, lines of `category: [indices of its parts]`"
                )
            owned = [part for parts in self.categories.values() for part in parts]
            if sorted(owned) != list(range(len(self.classes))):
                raise UserError(
                    f"{file}: `categories` must name each of the {len(self.classes)} parts of `classes` exactly once, "
                    f"by its index from 0"
                )
        for folder, name in self.folders.items():
            if name not in self.targets:
                raise UserError(f"{file}: `folders.{folder}` is {name!r}, which is none of {', '.join(self.targets)}")

    def as_dict(self) -> dict[str, Any]:
        """All but the folder, in types that JSON and YAML know."""
        values = {k: v for k, v in asdict(self).items() if k != "folder"}
        lists = {k: {name: list(v) for name, v in values[k].items()} for k in ("categories", "splits", "tests")}
        return {**values, **lists, "classes": list(self.classes)}

    @property
    def file(self) -> Path:
        return self.folder / YAML

    @property
    def names(self) -> list[str]:
        """Names of the C outputs of the model."""
        return list(self.classes)

    @property
    def targets(self) -> tuple[str, ...]:
        """What one shape is: a class, or a category."""
        return self.classes if self.task == "classification" else tuple(self.categories)

    @cached_property
    def aliases(self) -> dict[str, int]:
        """Folder name -> index of the class (or category) of its shapes."""
        own = {name: i for i, name in enumerate(self.targets)}
        return {**own, **{folder: own[name] for folder, name in self.folders.items()}}

    @property
    def split_names(self) -> tuple[str, ...]:
        return (*SPLITS, *self.tests)

    def sources(self, split: str) -> tuple[str, ...]:
        """What the yaml lists for a split. Raises UserError for an unknown one."""
        if split not in self.split_names:
            raise UserError(f"no split {split!r}; there are {', '.join(self.split_names)}")
        return self.tests[split] if split in self.tests else self.splits.get(split, ())

    def items(self, split: str) -> list[Item]:
        """The shapes of a split, in the order of its sources. Raises UserError where a shape has no known class, and
        for a file that two splits list."""
        if self._shared:
            file, one, other = self._shared
            raise UserError(
                f"{self.file}: {file} is both in {one} and in {other} of `splits`; take it out of one, a shape learned "
                "from cannot be a test as well"
            )
        if self.holdout and not self.splits.get("val") and split in ("train", "val"):
            return self._held_out()[split]
        return [item for source in self.sources(split) for item in list_items(self, source)]

    @cached_property
    def _shared(self) -> tuple[str, str, str] | None:
        """Once: it lists the files of all splits."""
        return in_two_splits(self)

    def paths(self, split: str) -> list[Path]:
        """Files that the shapes of a split come from, each once."""
        return list(dict.fromkeys(item.path for item in self.items(split)))

    def _held_out(self) -> dict[str, list[Item]]:
        """train cut in two: the share ``holdout`` of each class, lowest hashes of names first, at least one of two."""
        items = [item for source in self.sources("train") for item in list_items(self, source)]
        held: set[int] = set()
        for target in {item.target for item in items}:
            rows = sorted(
                (i for i, item in enumerate(items) if item.target == target), key=lambda i: draw(items[i].name)
            )
            held.update(rows[: max(round(self.holdout * len(rows)), 1)] if len(rows) > 1 else ())
        return {
            "train": [item for i, item in enumerate(items) if i not in held],
            "val": [item for i, item in enumerate(items) if i in held],
        }

    def prepare(self, coord: np.ndarray, path: Path | str = "", need: int = 1, normalize: bool | None = None) -> Sample:
        """``coord`` [N, 3] float32, turned y up, into the unit sphere if asked, and ``index`` [N], the rows they had.

        Rows come sorted, so that neither rounding nor what is chosen of them depends on the file's order.
        need       points the model needs at least
        normalize  takes the place of the data set's
        Raises UserError for an empty shape, one of fewer points or of one place, and NaN or infinite coordinates.
        """
        check_coord(coord, path, need)
        rows = sorted_rows(coord)
        turned = coord[rows].astype(np.float64) @ UP[self.up].T
        turned = unit_sphere(turned) if (self.normalize if normalize is None else normalize) else turned
        return {"coord": turned.astype(np.float32), "index": rows.astype(np.int32)}


def check_coord(coord: np.ndarray, path: Path | str, need: int = 1) -> None:
    if len(coord) == 0:
        raise UserError(f"{path}: the shape has no points; leave it out")
    if coord.ndim != 2 or coord.shape[1] != 3:
        raise UserError(f"{path}: coordinates of shape {list(coord.shape)}; a shape is [N, 3]")
    bad = len(coord) - int(np.isfinite(coord).all(1).sum())
    if bad:
        raise UserError(f"{path}: {bad} of {len(coord)} points have NaN or infinite coordinates; remove these points")
    if len(coord) < need:
        raise UserError(f"{path}: {len(coord)} points, the model needs at least {need}; leave this shape out")
    if len(coord) > 1 and (coord == coord[0]).all():
        raise UserError(f"{path}: all {len(coord)} points are at the same place; leave this shape out")


def draw(name: str, seed: int = 0) -> bytes:
    """A random number that belongs to a name, for splits that stay when shapes are added."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


# --- checks of the yaml's values: (file, key, value) -> value, or UserError -----------------------------------------


def check_names(file: Any, key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, dict) and list(value) == list(range(len(value))):
        value = list(value.values())
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise wrong(file, key, value, "a list of at least two names, in the order of the model's outputs")
    names = tuple(str(name) for name in value)
    if twice := repeated(names):
        raise UserError(f"{file}: `{key}` names {twice!r} twice; every output needs a name of its own")
    return names


def check_categories(file: Any, key: str, value: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict) or not all(isinstance(parts, list | tuple) for parts in value.values()):
        raise wrong(file, key, value, "lines of `category: [indices of its parts]`")
    return {str(name): tuple(whole(file, f"{key}.{name}", part) for part in parts) for name, parts in value.items()}


def check_folders(file: Any, key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise wrong(file, key, value, "lines of `name of the folder: class`")
    return {str(folder): str(name) for folder, name in value.items()}


def check_tests(file: Any, key: str, value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise wrong(file, key, value, "lists of paths under names of their own")
    if taken := sorted(set(value) & set(SPLITS)):
        raise UserError(f"{file}: `tests.{taken[0]}` belongs under `splits`; give it another name")
    return path_lists(file, key, value)


def check_share(file: Any, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise wrong(file, key, value, "a share, at least 0 and below 1")
    return float(value)


def check_points(file: Any, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise wrong(file, key, value, "a whole number of points above 0")
    return value


def check_switch(file: Any, key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(file, key, value, "true or false")
    return value


def check_choice(choices: Sequence[str]) -> Any:
    """As :func:`one_of`, for values that may be no text (YAML reads a bare y as such, but x: [1] as a list)."""
    allowed = one_of(tuple(choices))
    return lambda file, key, value: allowed(file, key, value if isinstance(value, str) else repr(value))


def checked(
    content: Any, names: list[str], checks: dict[str, Any], folder: Path | str, file: Path | str
) -> dict[str, Any]:
    """The values of a dataset.yaml with a ``task``, each checked. Raises UserError naming what is wrong."""
    if not isinstance(content, dict):
        raise UserError(f"{file}: it must hold keys such as task and classes, not {type(content).__name__}")
    check_keys(file, content, names)
    for key in ("task", "classes"):
        if key not in content:
            raise UserError(f"{file}: the key {key!r} is missing; write the file anew with: pointadapt init {folder}")
    return {key: checks[key](file, key, value) for key, value in content.items()}


def check_task(file: Any, key: str, value: Any) -> str:
    if value not in TASKS:
        raise wrong(file, key, value, f"one of {', '.join(TASKS)}; scenes have no such line")
    return value


CHECKS = {
    "task": check_task,
    "classes": check_names,
    "categories": check_categories,
    "folders": check_folders,
    "splits": partial(check_splits, what="shape"),
    "tests": check_tests,
    "holdout": check_share,
    "points": check_points,
    "up": check_choice(tuple(UP)),
    "normalize": check_switch,
    "label_field": check_text,
    "transform": check_choice(tuple(OBJECT_TRANSFORMS)),
}
