"""Video data sets without a published layout: folders of frames, named after classes or with a label per frame."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pointadapt.data.frame_names import gap
from pointadapt.data.layout import UP_NOTE, adjusted, first_found, refuse_others
from pointadapt.data.scans import SPLITS
from pointadapt.data.survey import named_split
from pointadapt.data.video_arrays import contents
from pointadapt.data.video_files import (
    Video,
    entries_of,
    files_of_videos,
    frames_among,
    holds_more,
    label_file,
    read_frame,
    read_frame_labels,
)
from pointadapt.data.video_layouts import VIDEO_FINDERS, VideoLayout
from pointadapt.data.video_set import VIDEO_TASKS, VideoSet
from pointadapt.errors import UserError

#: Frames looked at to see points and labels.
LOOKED_AT = 32


def find_videos(
    folder: Path | str,
    task: str | None = None,
    variant: str | None = None,
    points: int | None = None,
    up: str | None = None,
    val: float | None = None,
    label_field: str | None = None,
    frames: int | None = None,
) -> VideoLayout | None:
    """The video data set in a folder, or None where it holds scenes or objects (or nothing).

    task     one of VIDEO_TASKS where files alone leave it open; another kind's: do not look for videos
    variant  which protocol of a benchmark
    points, up, val, label_field, frames  take the place of what the layout says; ``val``: share of train held out

    Raises UserError for an unknown variant and a task that the folder does not fit.
    """
    folder = Path(folder)
    if not folder.is_dir() or (task is not None and task not in VIDEO_TASKS):
        return None
    found = first_found(VIDEO_FINDERS, folder, variant) or plain(folder, task, label_field)
    if found is None:
        if task is None:
            return None
        raise UserError(
            f"{folder}: no videos for {task}; it needs folders of frames, {{{','.join(SPLITS)}}}/CLASS/VIDEO/FRAME for "
            f"actions, or the layout of a published benchmark"
        )
    refuse_others(found, task, variant)
    return adjusted(found, up, val, points=points or None, frames=frames or None)


def plain(folder: Path, task: str | None, label_field: str | None) -> VideoLayout | None:
    """{train,val,test}/CLASS/VIDEO/FRAME, CLASS/{train,val,test}/VIDEO/FRAME, CLASS/VIDEO/FRAME for actions; without
    CLASS for the segmentations: labels.csv in the folder of a video (action_segmentation, seen by itself), or a label
    of each point in the frames (video_segmentation, which must be asked for: folders of labelled scans are scenes).
    A VIDEO may be an array file."""
    videos = leaves(folder, folder)
    if not videos:
        return None
    parts = {video: split_of(Path(video.name).parts) for video in videos}
    if task is None and any(video.files and label_file(video) for video in videos):
        task = "action_segmentation"
    classes = dict.fromkeys(rest[-2] for _, rest in parts.values() if len(rest) > 1)
    if task is None and len(classes) > 1 and all(len(rest) > 1 for _, rest in parts.values()):
        if videos[0].files and read_frame(VideoSet(folder, "action", ("a", "b")), videos[0], 0).segment is not None:
            return None  # points with classes of their own: scans of scenes
        task = "action"
    if task is None:
        return None
    splits = sources(parts)
    learned = [video for video, (split, _) in parts.items() if split == "train"]
    options: dict[str, Any] = {"splits": splits, "up": "z", "points": usual_points(learned or videos)}
    frames = sorted(video.length for video in learned or videos)
    notes = [UP_NOTE]
    if pair := next((pair for video in videos if (pair := gap(video.files))), None):
        options["gaps"] = True
        notes.append(f"a frame is missing between {pair[0]} and {pair[1].name}: `gaps: true` takes them as neighbours")
    if task == "action":
        trained = sorted({parts[video][1][-2] for video in learned if len(parts[video][1]) > 1}) or sorted(classes)
        if len(trained) < 2:
            raise UserError(f"{folder}: the videos lie in fewer than two folders of classes; sort them by class first")
        options["frames"] = max(min(24, frames[len(frames) // 2]), 2)
        dataset = VideoSet(folder, task, tuple(trained), **options)
        return VideoLayout(dataset, "folders of videos named after their classes", tuple(notes))
    if task == "action_segmentation":
        names, ids = frame_classes(learned or videos)
        options["frames"] = max(min(150, frames[-1]), 2)
        dataset = VideoSet(folder, task, names, ids=ids, **options)
        return VideoLayout(dataset, "videos with a label per frame", tuple(notes))
    names, ids, colored = point_classes(folder, learned or videos, label_field)
    options |= {"frames": max(min(3, frames[0]), 2), "label_field": label_field, "color": colored}
    dataset = VideoSet(folder, task, names, ids=ids, **options)
    notes.append("classes have numbers for names: give them better ones in `classes` and `ids`")
    return VideoLayout(dataset, "videos with a label per point", tuple(notes))


def leaves(folder: Path, root: Path) -> list[Video]:
    """Videos below a folder, named by their path: folders of two or more frames, and array files."""
    entries, found = entries_of(folder), []
    inner = [video for place in entries if holds_more(place) for video in leaves(place, root)]
    for file in files_of_videos(entries):
        found.append(Video(file.relative_to(root).as_posix(), file, contents(file).frames[0]))
    frames = [] if found else frames_among(entries, text=not inner)
    if len(frames) > 1 and folder != root and named_split(folder.name) not in SPLITS:
        found.append(Video(folder.relative_to(root).as_posix(), folder, len(frames), files=tuple(frames)))
    return found + inner


def split_of(parts: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """(split, the other folders and the video) of a path; train where no folder says otherwise."""
    for at, part in enumerate(parts[:-1]):
        if (split := named_split(part)) in SPLITS:
            return split, (*parts[:at], *parts[at + 1 :])
    return "train", parts


def sources(parts: dict[Video, tuple[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    """split -> the highest folders that hold videos of that split alone."""
    found: dict[str, dict[str, None]] = {split: {} for split in SPLITS}
    for video, (split, _) in parts.items():
        path = Path(video.name)
        at = next((i for i, part in enumerate(path.parts[:-1]) if named_split(part) in SPLITS), 0)
        found[split][Path(*path.parts[: at + 1]).as_posix()] = None
    return {split: tuple(names) for split, names in found.items()}


def usual_points(videos: list[Video]) -> int:
    """Points of most frames looked at, at most 1024."""
    dataset = VideoSet(Path("."), "action", ("a", "b"))
    chosen = [videos[i] for i in np.linspace(0, len(videos) - 1, min(LOOKED_AT, len(videos))).astype(int)]
    counts = sorted(len(read_frame(dataset, video, video.length // 2).coord) for video in chosen)
    return max(min(1024, counts[len(counts) // 2]), 1)


def frame_classes(videos: list[Video]) -> tuple[tuple[str, ...], dict[int, str]]:
    """(names, numbers of names) of the labels per frame: names as written, or numbers from 0."""
    seen: Counter[str] = Counter()
    for video in videos:
        if (file := label_file(video)) is not None:
            seen.update(str(label).strip() for label in read_frame_labels(file, video))
    seen.pop("", None), seen.pop("-1", None)
    if all(label.isdigit() for label in seen):
        return numbered({int(label) for label in seen})
    return tuple(sorted(seen)), {}


def point_classes(
    folder: Path, videos: list[Video], label_field: str | None
) -> tuple[tuple[str, ...], dict[int, str], bool]:
    """(names, numbers of names) of the labels per point in the first, middle and last frames of some videos; and
    whether all of these frames have colours."""
    dataset = VideoSet(folder, "video_segmentation", ("a", "b"), label_field=label_field)
    seen: set[int] = set()
    colored = True
    for video in videos[:LOOKED_AT]:
        for number in {0, video.length // 2, video.length - 1}:
            frame = read_frame(dataset, video, number)
            segment, colored = frame.segment, colored and frame.color is not None
            if segment is None:
                raise UserError(
                    f"{video.path}: no label of each point in frame {number}, which video_segmentation needs"
                )
            seen.update(np.unique(segment).tolist())
    return *numbered(seen - {-1}), colored


def numbered(found: set[int]) -> tuple[tuple[str, ...], dict[int, str]]:
    if len(found) < 2:
        raise UserError(f"the labels have {len(found)} different values; there must be two classes at least")
    ids = {raw: f"class {raw}" for raw in sorted(found)}
    return tuple(ids.values()), {} if list(ids) == list(range(len(ids))) else ids
