"""What `pointadapt init` writes for videos: a dataset.yaml with a comment on every value."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pointadapt.data.layout import flow, heading, lacking, line, listing, write_yaml
from pointadapt.data.video_files import Video
from pointadapt.data.video_folders import find_videos
from pointadapt.data.video_layouts import VideoLayout
from pointadapt.data.video_set import VideoSet

#: key -> what stands above it in the file.
COMMENTS = {
    "frames": "Frames of a clip, the frames from one of them to the next, and from one clip's start to the next one's\n"
    "# in evaluation (0: one clip behind the other).",
    "merge": "Frames of the files that are joined into one, for sparse sensors; those left over at the end go.",
    "points": "Points of a frame that the model sees.",
    "columns": "Which columns of arrays are x, y and z.",
    "box": "Limits per axis in the files' units and axes, {x: [low, high]}; points outside are left out.",
    "color": "Whether the colour of each point is seen beside its coordinates.",
    "up": "The upward axis of the files: x, y, z, -y or -z. The model sees y up.",
    "normalize": "clip_sphere: all frames of a clip together into the unit sphere; repo: coordinates times `scale`.",
    "short_video": "A video of fewer frames than a clip: pad_last shows its last frame again, drop leaves it out and\n"
    "# says so.",
    "empty_frames": "A frame without points: refuse, or repeat the frame before it.",
    "gaps": "Whether numbers may be missing among the names of frames.",
    "halves": "Cut clips in two at the stored centre, with this much context; null: whole.",
    "transform": "Augmentation in training: scale, scale_turn, scale_mirror, jitter, hoi4d, synthia or none.",
    "holdout": "Share of each class of train that becomes val, where val is empty.",
}


def init_videos(folder: Path | str, layout: VideoLayout | None = None, overwrite: bool = False) -> Path:
    """Write ``folder/dataset.yaml`` for the videos in it; returns its path.

    layout   what :func:`pointadapt.data.video_folders.find_videos` returned, if it has been called already
    Raises UserError when dataset.yaml exists already (unless ``overwrite``) or there are no videos.
    """
    missing = "no videos in folders named after classes and no known benchmark"
    return write_yaml(folder, layout, find_videos, describe, overwrite, missing)


def videos_by_class(dataset: VideoSet) -> dict[str, Counter[str]]:
    """split -> class (task action; else "videos") -> videos, for all splits that have any."""
    return {split: counted(dataset, videos) for split, videos in listed(dataset).items()}


def listed(dataset: VideoSet) -> dict[str, list[Video]]:
    """split -> its videos, for all splits that have any."""
    found = {split: dataset.videos(split) for split in dataset.split_names}
    return {split: videos for split, videos in found.items() if videos}


def counted(dataset: VideoSet, videos: list[Video]) -> Counter[str]:
    return Counter("videos" if video.target is None else dataset.classes[video.target] for video in videos)


def video_warnings(layout: VideoLayout) -> list[str]:
    """Sentences on what a user should know or check."""
    dataset, notes = layout.dataset, list(layout.notes)
    found = listed(dataset)
    if dataset.task == "action" and "train" in found:
        seen = counted(dataset, found["train"])
        notes += lacking("video", [name for name in dataset.classes if not seen[name]])
    for split, videos in found.items():
        cut = sum(video.length % dataset.merge > 0 for video in videos)
        if cut:
            notes.append(
                f"`merge: {dataset.merge}` leaves out the last frames of {cut} of {len(videos)} videos of {split}, "
                "which fill no group"
            )
        short = sum(video.length // dataset.merge < dataset.span for video in videos)
        if short:
            fate = "are left out" if dataset.short_video == "drop" else "show their last frame again"
            notes.append(
                f"{short} of {len(videos)} videos of {split} are shorter than {dataset.span} frames and {fate}"
            )
    if len(layout.variants) > 1:
        notes.append(f"there are several protocols ({', '.join(layout.variants)}): choose with --variant")
    return notes


def describe(layout: VideoLayout) -> str:
    """dataset.yaml with comments that say what each value does."""
    dataset, counts = layout.dataset, videos_by_class(layout.dataset)
    values = dataset.as_dict()
    sizes = {split: sum(count.values()) for split, count in counts.items()}
    lines = [
        *heading(layout, sum(sizes.values()), sizes, "videos"),
        "# action: one class per video; action_segmentation: one per frame; video_segmentation: one per point.",
        line("task", dataset.task),
        "# Names in the order of the model's outputs.",
    ]
    per_class = counts.get("train", Counter())
    if dataset.task == "action":
        told = [f"  - {flow(name)}  # {per_class[name]:,} to learn from" for name in dataset.classes]
        lines += ["classes:", *told]
    else:
        lines += [line("classes", values["classes"])]
    if dataset.ids:
        lines += ["# Number in the files or their names: class.", "ids:"]
        lines += [f"  {number}: {flow(name)}" for number, name in dataset.ids.items()]
    if dataset.ignore or dataset.task == "video_segmentation":
        lines += ["# Numbers that are neither learned nor scored.", line("ignore", values["ignore"])]
    if dataset.label_pattern:
        lines += [
            "# The part of a video's name that is its number or class.",
            line("label_pattern", dataset.label_pattern),
        ]
    if dataset.label_field:
        lines += [
            "# The field of the frames' files with the class of each point.",
            line("label_field", dataset.label_field),
        ]
    optional = {"columns": (0, 1, 2), "halves": None, "gaps": False}
    if dataset.task != "video_segmentation":
        optional["color"] = False
    for key, comment in COMMENTS.items():
        if key in optional and getattr(dataset, key) == optional[key]:
            continue
        lines += [f"# {comment}", line(key, values[key])]
        if key == "frames":
            lines[-1] = "".join(f"{name}: {flow(values[name])}\n" for name in ("frames", "step", "stride"))
        if key == "normalize" and dataset.scale != 1:
            lines[-1] = line(key, values[key]).rstrip("\n") + f"\nscale: {flow(values['scale'])}\n"
    lines += [
        "# Folders, array files, rows of them (test.h5#12), patterns (*_s0[1-5]_*.npz), or lists (txt, csv).",
        *listing("splits", values["splits"]),
    ]
    return "\n".join(lines) + "\n"
