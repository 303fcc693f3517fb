"""``pointadapt init``: look at a folder and write its dataset.yaml."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pointadapt.errors import UserError
from pointadapt.files import read_text
from pointadapt.kinds import YAML
from pointadapt.run import option


@dataclass
class Init:
    """Look at a folder of scans, shapes or videos and write its dataset.yaml: classes, splits, sizes."""

    scans: Path = field(
        metadata={"help": "Folder with labelled scans, class folders of shapes or of videos, or a benchmark."}
    )
    task: Literal["scenes", "classification", "parts", "action", "action_segmentation", "video_segmentation"] | None = (
        option(None, "What it is for. Default: from the files.")
    )
    classes: tuple[int, ...] = option((), "Raw label ids to learn; all others are ignored. Default: all but noise.")
    label_field: str | None = option(None, "Field of the files with the labels. Default: the first known name.")
    grid_size: float | None = option(None, "Edge of a voxel in metres. Default: from the spacing of the points.")
    scale: float | None = option(None, "Factor on coordinates. Default: makes a voxel 0.02, which backbones know.")
    val: float | None = option(
        None,
        "Share to hold out for validation: of the points, in whole files; of the shapes or videos of each class. "
        "Default: 0.2; nothing of shapes and videos that have a test split.",
    )
    layout: str | None = option(None, "Scenes: a benchmark (scannet200, s3dis, ...). Default: seen from the folder.")
    variant: str | None = option(None, "Which of several data sets in the folder: OBJ_BG; of S3DIS, Area_6 or 6fold.")
    points: int | None = option(
        None, "Points of a shape, or of a video's frame, that the model sees. Default: 1024 or fewer, or as published."
    )
    up: Literal["x", "y", "z", "-y", "-z"] | None = option(
        None, "Shapes, videos: their upward axis. Default: z, or as published."
    )
    frames: int | None = option(None, "Videos: frames of a clip. Default: 24 or fewer, or as published.")
    backbone: str = option("nano", "Rooms get voxels no finer than this backbone was trained on.")
    overwrite: bool = option(False, "Replace a dataset.yaml that is there.")

    def run(self) -> None:
        from pointadapt.data.benchmarks import find_benchmark
        from pointadapt.data.object_folders import find_objects
        from pointadapt.data.survey import init_dataset, survey
        from pointadapt.data.video_folders import find_videos

        note_left_out(self.scans)
        layout = None
        chosen = self.label_field is not None or bool(self.classes)
        if self.layout is not None or (self.scans.is_dir() and not chosen and self.task in (None, "scenes")):
            benchmark = find_benchmark(self.scans, self.layout, self.variant)
            if benchmark is not None:
                self.refuse("a benchmark", "classes", "label_field", "val", "points", "up")
                return self.init_scenes(benchmark)
        if self.label_field is None or self.task is not None:  # labels of points make it scenes
            told = (self.task, self.variant, self.points, self.up, self.val, self.label_field, self.frames)
            videos = find_videos(self.scans, *told)
            if videos is not None:
                self.refuse("videos", "classes", "grid_size", "scale", "layout")
                return self.tell(init_video_set(self.scans, videos, self.overwrite))
            layout = find_objects(self.scans, self.task, self.variant, self.points, self.up, self.val, self.label_field)
        if layout is not None:
            self.refuse("shapes", "classes", "grid_size", "scale", "frames")
            return self.tell(init_shapes(self.scans, layout, self.overwrite))
        files = survey(self.scans, self.label_field)
        self.refuse("scenes", "variant", "points", "up", "frames")
        file = init_dataset(
            self.scans,
            files,
            classes=self.classes or None,
            label_field=self.label_field,
            grid_size=self.grid_size,
            scale=self.scale,
            val=0.2 if self.val is None else self.val,
            overwrite=self.overwrite,
            indoor_grid=indoor_grid(self.backbone),
        )
        note_warnings(self.scans, files)
        self.tell(file)

    def tell(self, file: Path) -> None:
        print(read_text(file), end="")
        print(f"\nwrote {file}: check it, then run: pointadapt adapt {self.scans}")

    def init_scenes(self, benchmark: Any) -> None:
        from pointadapt.data.benchmark_init import init_benchmark

        files = init_benchmark(self.scans, benchmark, self.grid_size, self.scale, self.overwrite)
        print(read_text(files[0]), end="")
        note_benchmark(benchmark, self.backbone, self.grid_size)
        print(f"\nfound {benchmark.title}; wrote {', '.join(map(str, files))}")

    def refuse(self, holds: str, *flags: str) -> None:
        """Raises UserError for flags that say nothing about what the folder holds."""
        for name in flags:
            if getattr(self, name):
                raise UserError(f"--{name.replace('_', '-')} says nothing about {holds}, which {self.scans} holds")


def look(folder: Path, backbone: str) -> bool:
    """Write the dataset.yaml of a folder that has none, as ``pointadapt init`` would; whether that was needed."""
    from pointadapt.data.benchmark_init import init_benchmark
    from pointadapt.data.benchmarks import find_benchmark
    from pointadapt.data.object_folders import find_objects
    from pointadapt.data.survey import init_dataset, survey
    from pointadapt.data.video_folders import find_videos

    if not folder.is_dir() or (folder / YAML).is_file():
        return False
    note_left_out(folder)
    benchmark = find_benchmark(folder)
    videos = None if benchmark else find_videos(folder)
    layout = None if benchmark or videos else find_objects(folder)
    if benchmark is not None:
        (file,) = init_benchmark(folder, benchmark)
        note_benchmark(benchmark, backbone)
    elif videos is not None:
        file = init_video_set(folder, videos)
    elif layout is not None:
        file = init_shapes(folder, layout)
    else:
        files = survey(folder)
        file = init_dataset(folder, files, indoor_grid=indoor_grid(backbone))
        note_warnings(folder, files)
    print(f"{folder} has no {YAML}: wrote {file} after looking at its files")
    return True


def note_left_out(folder: Path) -> None:
    """Say on stderr what in a folder is taken for a prediction, and of which benchmark it is a part."""
    from pointadapt.data.benchmarks import part_of
    from pointadapt.data.io import left_out

    if folder.is_dir() and (title := part_of(folder)):
        print(f"note: {folder} is a part of {title}: give {folder.resolve().parent}", file=sys.stderr)
    if sentence := left_out(folder):
        print(f"note: {sentence}", file=sys.stderr)


def note_benchmark(benchmark: Any, backbone: str, grid_size: float | None = None) -> None:
    """Say on stderr what is to be known of a benchmark that was found."""
    for note in benchmark.notes:
        print(f"note: {note}", file=sys.stderr)
    known, grid = indoor_grid(backbone), next(iter(benchmark.datasets.values())).grid_size
    if grid_size is None and known > grid:
        print(f"note: the published voxels of {grid:g} m; --grid-size {known:g} suits {backbone}", file=sys.stderr)


def init_shapes(folder: Path, layout: Any, overwrite: bool = False) -> Path:
    """Write the dataset.yaml of a folder of shapes; what was found wanting goes to stderr."""
    from pointadapt.data.object_survey import init_objects, warnings

    file = init_objects(folder, layout, overwrite)
    for warning in warnings(layout):
        print(f"note: {warning}", file=sys.stderr)
    return file


def init_video_set(folder: Path, layout: Any, overwrite: bool = False) -> Path:
    """Write the dataset.yaml of a folder of videos; what was found wanting goes to stderr."""
    from pointadapt.data.video_survey import init_videos, video_warnings

    file = init_videos(folder, layout, overwrite)
    for warning in video_warnings(layout):
        print(f"note: {warning}", file=sys.stderr)
    return file


def note_warnings(scans: Path, files: list[Any]) -> None:
    """Say on stderr what a look at the ``files`` of a new data set found wanting."""
    from pointadapt.data.scans import DataSet
    from pointadapt.data.survey import report

    for warning in report(DataSet.open(scans), files)["warnings"]:
        print(f"note: {warning}", file=sys.stderr)


def indoor_grid(backbone: str) -> float:
    """The voxel a named backbone was trained on in rooms; the common one for a checkpoint file."""
    from pointadapt.backbones.weights import BACKBONES, Source

    return BACKBONES[backbone].indoor_grid if backbone in BACKBONES else Source.indoor_grid
