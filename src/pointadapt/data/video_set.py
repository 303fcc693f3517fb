"""VideoSet: a folder of point videos and the dataset.yaml that says how to read them and cut clips from them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from pointadapt.data.object_set import (
    UP,
    check_choice,
    check_folders,
    check_names,
    check_points,
    check_share,
    check_switch,
    checked,
    draw,
)
from pointadapt.data.scans import (
    SPLITS,
    YAML,
    check_ignore,
    check_positive,
    check_splits,
    check_text,
    read_yaml,
    whole,
    wrong,
)
from pointadapt.data.video_files import Video, list_videos
from pointadapt.data.video_transforms import VIDEO_TRANSFORMS
from pointadapt.errors import UserError

VIDEO_TASKS = ("action", "action_segmentation", "video_segmentation")
NORMALIZE = ("clip_sphere", "repo")
SHORT = ("pad_last", "drop")
EMPTY = ("refuse", "repeat")
AXES = "xyz"


@dataclass(frozen=True)
class VideoSet:
    """How to read the videos of one folder. ``VideoSet.open(folder)`` reads its dataset.yaml.

    task           "action": one class per video; "action_segmentation": one per frame; "video_segmentation": per point
    classes        names of the model's outputs in order
    ids            number in files or names -> class, where numbers are not simply 0, 1, ... in the order of ``classes``
    ignore         numbers that are neither learned nor scored (-1 never is)
    folders        action: name of a folder -> class of the videos in it, where it is not the class's own name
    label_pattern  action: regular expression on a video's name whose first group is its number or class
    label_field    video_segmentation: field of the frames' files with the label of each point; None: the first known
    splits         train, val, test -> sources relative to the folder: a folder, a file, a row (``test.h5#12``), a
                   pattern (``*_s0[1-5]_*.npz``), or a list (txt, csv). A folder of frames is one video
    holdout        share of the videos of train that becomes val where ``splits`` has none, class by class
    frames         T, frames of a clip
    step           frames of the video from one frame of a clip to its next
    stride         frames from one clip's start to the next one's in evaluation; 0: one clip behind the other, the
                   last one pulled back to the video's end
    merge          frames of the files that are joined into one, for sparse sensors such as radar; the last ones of a
                   video that fill no group are left out
    points         points of a frame that the model sees; a frame of fewer gives all it has
    columns        which columns of arrays are x, y and z
    box            axis -> [low, high] in the files' units and axes; points outside are left out
    color          video_segmentation: whether the head sees the colour of each point beside its coordinates
    up             the files' upward axis: x, y, z, -y or -z; the model sees y up
    normalize      "clip_sphere": the centroid of all frames of a clip to the origin, its farthest point to distance 1
                   (inferred for PointATA); "repo": as the published loaders, coordinates times ``scale``
                   (less the stored centre of the clip's first frame, where frames have one)
    scale          repo: that factor (MSR-Action3D 1/300, NTU 100)
    short_video    a video of fewer frames than a clip: "pad_last" shows its last frame again, "drop" leaves it out,
                   counted and told by :attr:`pointadapt.data.videos.VideoItems.dropped`
    empty_frames   a frame without points: "refuse", or "repeat" the frame before it
    gaps           whether numbers may be missing among the frames of a folder
    halves         video_segmentation: cut every clip in two along the files' z at the stored centre of its last frame,
                   with so many units of context that are seen but not scored; None: whole
    transform      augmentation in training: a name of VIDEO_TRANSFORMS, the same change for all frames of a clip
    """

    folder: Path
    task: str
    classes: tuple[str, ...]
    ids: dict[int, str] = field(default_factory=dict)
    ignore: tuple[int, ...] = ()
    folders: dict[str, str] = field(default_factory=dict)
    label_pattern: str | None = None
    label_field: str | None = None
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    holdout: float = 0.0
    frames: int = 24
    step: int = 1
    stride: int = 0
    merge: int = 1
    points: int = 1024
    columns: tuple[int, int, int] = (0, 1, 2)
    box: dict[str, tuple[float, float]] = field(default_factory=dict)
    color: bool = False
    up: str = "y"
    normalize: str = "clip_sphere"
    scale: float = 1.0
    short_video: str = "pad_last"
    empty_frames: str = "refuse"
    gaps: bool = False
    halves: float | None = None
    transform: str = "scale"

    @classmethod
    def open(cls, path: Path | str) -> VideoSet:
        """From a folder with a dataset.yaml, or the yaml itself. Raises UserError naming what is wrong in it."""
        path = Path(path)
        file = path / YAML if path.is_dir() else path
        if not path.exists():
            raise UserError(f"there is no folder {path}: check the path")
        if not file.is_file():
            raise UserError(f"{path}: no {YAML} here; write one with: pointadapt init {path}")
        return cls.from_dict(read_yaml(file), file.parent, file)

    @classmethod
    def from_dict(cls, content: Any, folder: Path | str, file: Path | str = YAML) -> VideoSet:
        """From what :meth:`as_dict` returned, every value checked; the listed files need not exist."""
        names = [f.name for f in fields(cls) if f.name != "folder"]
        dataset = cls(folder=Path(folder), **checked(content, names, CHECKS, folder, file))
        dataset._check(file)
        return dataset

    def _check(self, file: Path | str) -> None:
        """What holds between several keys."""
        for key, table in (("ids", self.ids), ("folders", self.folders)):
            for name, target in table.items():
                if target not in self.classes:
                    raise UserError(f"{file}: `{key}.{name}` is {target!r}, which is none of {', '.join(self.classes)}")
        both = sorted(set(self.ids) & set(self.ignore))
        if both:
            raise UserError(f"{file}: label id {both[0]} is both in `ids` and in `ignore`; take it out of one")
        for key, given in (("halves", self.halves is not None), ("color", self.color)):
            if given and self.task != "video_segmentation":
                raise UserError(f"{file}: `{key}` is for `task: video_segmentation`; remove it")

    def as_dict(self) -> dict[str, Any]:
        """All but the folder, in types that JSON and YAML know; JSON turns the numbers of ``ids`` into text."""
        values = {k: v for k, v in asdict(self).items() if k != "folder"}
        lists = {key: list(values[key]) for key in ("classes", "ignore", "columns")}
        tables = {key: {name: list(v) for name, v in values[key].items()} for key in ("splits", "box")}
        return {**values, **lists, **tables}

    @property
    def file(self) -> Path:
        return self.folder / YAML

    @property
    def names(self) -> list[str]:
        """Names of the C outputs of the model."""
        return list(self.classes)

    @property
    def split_names(self) -> tuple[str, ...]:
        return SPLITS

    @property
    def span(self) -> int:
        """Frames of a video that a clip reaches over, first to last."""
        return self.step * (self.frames - 1) + 1

    @cached_property
    def aliases(self) -> dict[str, int]:
        """Name of a class, or of a folder -> index of the class."""
        own = {name: i for i, name in enumerate(self.classes)}
        return {**own, **{folder: own[name] for folder, name in self.folders.items()}}

    @cached_property
    def numbers(self) -> dict[int, int]:
        """Number in the files -> index of the class; ignored ones -> -1."""
        named = {raw: self.classes.index(name) for raw, name in self.ids.items()}
        counted = {} if self.ids else {i: i for i in range(len(self.classes)) if i not in self.ignore}
        return {-1: -1, **dict.fromkeys(self.ignore, -1), **named, **counted}

    def index(self, label: Any, where: Path | str = "") -> int:
        """Index of one label, a class's name or a number; -1 where it is ignored. Raises UserError if unknown."""
        text = str(label).strip()
        if text in self.aliases:
            return self.aliases[text]
        if re.fullmatch(r"-?\d+", text) and int(text) in self.numbers:
            return self.numbers[int(text)]
        raise UserError(
            f"{where}: unknown label {text!r}: it is none of {', '.join(self.classes[:8])}"
            f"{' ...' if len(self.classes) > 8 else ''}; add it to `classes`, `ids` or `ignore` of {self.file}"
        )

    def indices(self, labels: np.ndarray, where: Path | str = "") -> np.ndarray:
        """int64 indices of an array of labels, as :meth:`index`."""
        values, inverse = np.unique(labels, return_inverse=True)
        return np.array([self.index(value, where) for value in values.tolist()], np.int64)[inverse.reshape(-1)]

    def sources(self, split: str) -> tuple[str, ...]:
        """What the yaml lists for a split. Raises UserError for an unknown one."""
        if split not in SPLITS:
            raise UserError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        return self.splits.get(split, ())

    def videos(self, split: str) -> list[Video]:
        """The videos of a split in the order of its sources, each once. Raises UserError naming what is wrong, and for
        a video that two splits list."""
        if self._shared:
            raise UserError(self._shared)
        if self.holdout and not self.splits.get("val") and split in ("train", "val"):
            return self._held_out()[split]
        return self._listed(split)

    def _listed(self, split: str) -> list[Video]:
        found = [video for source in self.sources(split) for video in list_videos(self, source)]
        return list({video.name: video for video in found}.values())

    @cached_property
    def _shared(self) -> str:
        """A sentence on a video that two splits list, "" where there is none. Lists them all, therefore once."""
        split_of: dict[str, str] = {}
        for split in SPLITS:
            with suppress(UserError):  # what cannot be listed is told when it is used
                for video in self._listed(split):
                    if (other := split_of.setdefault(video.name, split)) != split:
                        return (
                            f"{self.file}: the video {video.name} is both in {other} and in {split} of `splits`; take "
                            f"it out of one, a video learned from cannot be a test as well"
                        )
        return ""

    def paths(self, split: str) -> list[Path]:
        """Files and folders that the videos of a split come from, each once."""
        return list(dict.fromkeys(video.path for video in self.videos(split)))

    def _held_out(self) -> dict[str, list[Video]]:
        """train cut in two: the share ``holdout`` of each class, lowest hashes of names first, at least one of two."""
        videos = self._listed("train")
        held: set[str] = set()
        for target in {video.target for video in videos}:
            names = sorted((video.name for video in videos if video.target == target), key=draw)
            held.update(names[: max(round(self.holdout * len(names)), 1)] if len(names) > 1 else ())
        return {
            "train": [video for video in videos if video.name not in held],
            "val": [video for video in videos if video.name in held],
        }


# --- checks of the yaml's values: (file, key, value) -> value, or UserError -----------------------------------------


def check_ids(file: Any, key: str, value: Any) -> dict[int, str]:
    if not isinstance(value, dict):
        raise wrong(file, key, value, "lines of `number in the files: class`")
    return {whole(file, key, raw): str(name) for raw, name in value.items()}


def check_box(file: Any, key: str, value: Any) -> dict[str, tuple[float, float]]:
    wanted = "axes with their limits, as in {x: [0, 6], z: [-4, 4]}"
    if not isinstance(value, dict) or not set(value) <= set(AXES):
        raise wrong(file, key, value, wanted)
    box: dict[str, tuple[float, float]] = {}
    for axis, limits in value.items():
        numbers = isinstance(limits, list | tuple) and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in limits
        )
        if not numbers or len(limits) != 2 or not limits[0] < limits[1]:
            raise wrong(file, f"{key}.{axis}", limits, "[low, high], the lower one first")
        box[str(axis)] = (float(limits[0]), float(limits[1]))
    return box


def check_columns(file: Any, key: str, value: Any) -> tuple[int, int, int]:
    good = isinstance(value, list | tuple) and len(value) == 3 and len(set(map(str, value))) == 3
    if not good or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value):
        raise wrong(file, key, value, "three different numbers of columns, counted from 0")
    return value[0], value[1], value[2]


def check_pattern(file: Any, key: str, value: Any) -> str | None:
    if value is None:
        return None
    try:
        if re.compile(value).groups < 1:
            raise ValueError
    except (re.error, TypeError, ValueError):
        raise wrong(file, key, value, r"a regular expression with one group, as in A(\d+)") from None
    return value


def check_halves(file: Any, key: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise wrong(file, key, value, "a width of context, 0 or more, or nothing")
    return float(value)


def at_least(low: int, what: str) -> Callable[[Any, str, Any], int]:
    def check(file: Any, key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise wrong(file, key, value, f"a whole number of {what}, at least {low}")
        return value

    return check


CHECKS: dict[str, Callable[[Any, str, Any], Any]] = {
    "task": check_choice(VIDEO_TASKS),
    "classes": check_names,
    "ids": check_ids,
    "ignore": check_ignore,
    "folders": check_folders,
    "label_pattern": check_pattern,
    "label_field": check_text,
    "splits": partial(check_splits, what="video"),
    "holdout": check_share,
    "frames": at_least(2, "frames"),
    "step": at_least(1, "frames"),
    "stride": at_least(0, "frames"),
    "merge": at_least(1, "frames"),
    "points": check_points,
    "columns": check_columns,
    "box": check_box,
    "color": check_switch,
    "up": check_choice(tuple(UP)),
    "normalize": check_choice(NORMALIZE),
    "scale": check_positive,
    "short_video": check_choice(SHORT),
    "empty_frames": check_choice(EMPTY),
    "gaps": check_switch,
    "halves": check_halves,
    "transform": check_choice(tuple(VIDEO_TRANSFORMS)),
}
