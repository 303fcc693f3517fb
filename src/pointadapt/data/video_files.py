"""The videos behind a source of a VideoSet: folders of frames, array files, patterns and lists; and their frames."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pointadapt.data.frame_names import misnumbered, natural
from pointadapt.data.io import LABELLED, is_left_out, is_output, is_scan, reason
from pointadapt.data.object_files import TEXT, is_shape, read_shape, taken_apart
from pointadapt.data.scans import read_yaml
from pointadapt.data.video_arrays import ENDINGS, Frame, contents, holds_videos, read_videos
from pointadapt.errors import NoPoints, UserError
from pointadapt.files import read_text

if TYPE_CHECKING:
    from pointadapt.data.video_set import VideoSet

#: Files beside the frames (or NAME_labels.* beside a file of one video) with one label per frame.
FRAME_LABELS = (".csv", ".txt", ".npy", ".yaml", ".yml")
WORDS = ("label", "labels")


@dataclass(frozen=True)
class Video:
    """One video, of which only names and sizes are known yet.

    name     path (and row) within the data set          target  index of its class (task action), None elsewhere
    length   frames                                      row     which video of an array file
    files    its frames, where they are files            label   its raw label, where its file has one
    problem  why it cannot be used, for whoever opens it
    """

    name: str
    path: Path
    length: int
    target: int | None = None
    row: int = 0
    files: tuple[Path, ...] = ()
    label: Any = None
    problem: str = ""


# --- listing --------------------------------------------------------------------------------------------------------


def list_videos(dataset: VideoSet, source: str, labelled: bool = True) -> list[Video]:
    """All videos of one source. Raises UserError where it is missing or empty, and if ``labelled`` where a frame is
    missing, a video has one frame only or cannot be read, or its class is unknown; else that is its ``problem``."""
    if any(sign in source for sign in "*?[") and not (dataset.folder / source).exists():
        told = LABELLED in source
        paths = sorted((path for path in dataset.folder.glob(source) if told or not is_output(path)), key=natural)
        files = files_of_videos(paths)
        found = [video for file in files for video in in_file(dataset, file)]
        inner = [video for folder in paths if holds_more(folder) for video in below(dataset, folder)]
        found += inner + ([] if files else sequences(dataset, frames_among(paths, text=not inner)))
        if not found:
            raise UserError(f"{dataset.file}: nothing fits the pattern {source} of its splits")
        return classified(dataset, found, labelled)
    name, within = taken_apart(dataset.folder, source)
    path = dataset.folder / name
    if not path.exists():
        raise UserError(f"{path}: no such file or folder, which {dataset.file} lists in its splits")
    if path.suffix.lower() in (".txt", ".csv") and path.is_file():
        return from_list(dataset, path, within, labelled)
    found = below(dataset, path)
    if within:
        found = [video for video in found if video.name.endswith(f"#{within}") or video.problem]
        if not found:
            raise UserError(f"{path}: there is no video {within} in it")
    if not found:
        raise UserError(f"{path}: no videos here: folders of frames, or array files {', '.join(ENDINGS)}")
    return classified(dataset, found, labelled)


def below(dataset: VideoSet, path: Path) -> list[Video]:
    """Videos in a file, or in a folder and all folders below it. A folder of frames is one video."""
    if not path.is_dir():
        if not files_of_videos([path]):
            raise UserError(f"{path}: no video: that is a folder of frames, or one of {', '.join(ENDINGS)}")
        return in_file(dataset, path)
    entries = entries_of(path)
    files = files_of_videos(entries)
    inner = [video for folder in entries if holds_more(folder) for video in below(dataset, folder)]
    frames = [] if files else frames_among(entries, text=not inner)
    found = [video for file in files for video in in_file(dataset, file)]
    return [*found, *([in_folder(dataset, path, frames)] if frames else []), *inner]


def entries_of(folder: Path) -> list[Path]:
    """What lies in a folder but is neither hidden nor a prediction, frame 10 after frame 9."""
    return sorted((path for path in folder.iterdir() if not is_left_out(path)), key=natural)


def holds_more(path: Path) -> bool:
    """Whether it is a folder to look into rather than a frame."""
    return path.is_dir() and not is_scan(path)


def is_frame(path: Path) -> bool:
    """Whether a file (or a folder in Pointcept's layout) holds the points of one frame, by its name."""
    if path.is_dir():
        return is_scan(path)
    return is_shape(path) and not (path.suffix.lower() in TEXT and path.stem.lower().endswith(WORDS))


def frames_among(paths: list[Path], text: bool = True) -> list[Path]:
    """The frames among the entries of one folder. Text files (times, notes) are none beside files made for points, nor
    with ``text`` False: beside folders of videos."""
    frames = [path for path in paths if is_frame(path)]
    return [path for path in frames if path.suffix.lower() not in TEXT] or (frames if text else [])


def files_of_videos(paths: list[Path]) -> list[Path]:
    """The array files among the files of one folder, where the first one holds whole videos rather than a frame."""
    files = [p for p in paths if p.suffix.lower() in ENDINGS and not p.stem.lower().endswith(WORDS) and p.is_file()]
    return files if files and holds_videos(files[0]) else []


def in_file(dataset: VideoSet, path: Path) -> list[Video]:
    """The videos of an array file, with the labels it has."""
    name = within_set(dataset, path)
    try:
        held = contents(path)
    except UserError as error:
        return [Video(name, path, 0, problem=str(error))]
    labels = held.label or [None] * len(held.frames)
    return [
        checked(Video(f"{name}#{row}" if held.many else name, path, length, row=row, label=label))
        for row, (length, label) in enumerate(zip(held.frames, labels, strict=True))
    ]


def in_folder(dataset: VideoSet, path: Path, frames: list[Path], name: str = "") -> Video:
    video = Video(name or within_set(dataset, path), path, len(frames), files=tuple(frames))
    instead = f", or set `gaps: true` in {dataset.file} (in prediction: --gaps) to take them as neighbours"
    return checked(video if dataset.gaps else replace(video, problem=misnumbered(frames, instead)))


def sequences(dataset: VideoSet, frames: list[Path]) -> list[Video]:
    """Videos whose frames lie in one folder (Synthia4D): NAME-000000.npz, NAME-000001.npz, ..., told by NAME."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for file in frames:
        groups.setdefault((file.parent, re.sub(r"\W?\d+$", "", file.stem)), []).append(file)
    return [in_folder(dataset, at, files, within_set(dataset, at / name)) for (at, name), files in groups.items()]


def checked(video: Video) -> Video:
    """The video, of which it is a problem to be too short."""
    if video.length > 1 or video.problem:
        return video
    what = "no frame" if video.length == 0 else "one frame"
    problem = f"{video.path}: a video of {what} shows no motion ({video.name}); add frames or take it out"
    return replace(video, problem=problem)


def classified(dataset: VideoSet, videos: Iterable[Video], labelled: bool) -> list[Video]:
    """The videos of task action with their classes, ignored ones left out; others unchanged.

    Raises UserError for an unknown class and for the first video with a problem, unless they need no labels."""
    found = list(videos)
    if not labelled:
        return found
    if bad := next((video for video in found if video.problem), None):
        raise UserError(bad.problem)
    if dataset.task != "action":
        return found
    found = [video if video.target is not None else replace(video, target=class_of(dataset, video)) for video in found]
    return [video for video in found if video.target != -1]


def class_of(dataset: VideoSet, video: Video) -> int:
    """By the label in its file, ``label_pattern``, or the folders it lies in. Raises UserError where none tells."""
    if video.label is not None:
        return dataset.index(video.label, video.name)
    if dataset.label_pattern is not None:
        match = re.search(dataset.label_pattern, video.name)
        if match is None:
            raise UserError(f"{video.path}: `label_pattern` of {dataset.file} does not fit the name {video.name}")
        return dataset.index(match[1], video.path)
    for name in reversed(video.name.split("/")[:-1]):
        if name in dataset.aliases:
            return dataset.aliases[name]
    raise UserError(
        f"{video.path}: unknown label: it lies in no folder of a known class ({', '.join(dataset.classes[:8])}"
        f"{' ...' if len(dataset.classes) > 8 else ''}); name the folder in `folders` or `classes` of {dataset.file}, "
        f"or take the video out"
    )


def within_set(dataset: VideoSet, path: Path) -> str:
    return Path(os.path.relpath(path, dataset.folder)).as_posix()


# --- lists ----------------------------------------------------------------------------------------------------------


def from_list(dataset: VideoSet, path: Path, within: str, labelled: bool) -> list[Video]:
    """Videos that a list names: lines of ``video`` or ``video,label``, or SHREC'17's seven numbers.

    ``within`` is "28" for SHREC's 28 classes instead of 14.
    """
    found: list[Video] = []
    for line in read_text(path).splitlines():
        words = [word.strip() for word in (line.split(",") if path.suffix.lower() == ".csv" else line.split())]
        if not words or not words[0] or words[0].lower() in ("video", "name", "file"):
            continue
        label: str | None
        is_shrec = len(words) == 7 and all(word.isdigit() for word in words)
        if is_shrec:
            entry = "gesture_{}/finger_{}/subject_{}/essai_{}".format(*words[:4])
            label = words[5 if within == "28" else 4]
        else:
            entry, label = words[0], words[1] if len(words) > 1 else None
        place = next((p for end in ("", *ENDINGS) if (p := dataset.folder / f"{entry}{end}").exists()), None)
        if place is None:
            raise UserError(f"{path}: it lists {entry}, for which there is nothing in {dataset.folder}")
        arrays = sorted(place.glob("*.npy")) if is_shrec else []
        if len(arrays) == 1:  # whatever it is called: beside frames pts_label.npy would be labels
            place = arrays[0]
            videos = in_file(dataset, place)
        else:
            videos = below(dataset, place)
        if labelled and label is not None and dataset.task == "action":
            videos = [replace(video, target=dataset.index(label, path)) for video in videos]
        found += videos
    if not found:
        raise UserError(f"{path}: the list names no videos")
    return classified(dataset, found, labelled)


# --- frames ---------------------------------------------------------------------------------------------------------


def read_frame(dataset: VideoSet, video: Video, number: int) -> Frame:
    """Frame ``number`` of a video as it lies in its file; of folders only that one file is read.

    Raises UserError when the file is damaged, or the array is not [N, 3]. A frame may have no points.
    """
    if not video.files:
        return read_videos(video.path).frame(video.row, number, dataset.columns)
    path = video.files[number]
    if path.suffix.lower() == ".npz" and (frame := read_pc(path)) is not None:
        return frame
    label_field = dataset.label_field if dataset.task == "video_segmentation" else None
    try:
        scan = read_shape(path, label_field=label_field)
    except NoPoints:
        return Frame(np.zeros((0, 3)), np.zeros(0, np.int64), color=np.zeros((0, 3), np.uint8))
    return Frame(scan.coord, scan.label, color=scan.color)


def read_pc(path: Path) -> Frame | None:
    """A frame of Synthia4D: pc [N, 3], semantic [N], center [3], rgb [N, 3]. None where the file has no ``pc``."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "pc" not in archive.files:
                return None
            fields = {name: archive[name] for name in ("pc", "semantic", "center", "rgb") if name in archive.files}
    except (ValueError, EOFError, OSError, KeyError) as error:
        raise UserError(f"{path}: not readable as NPZ, so damaged ({reason(error)}); copy it again") from error
    pc, segment = fields["pc"], fields.get("semantic")
    if pc.ndim != 2 or pc.shape[1] < 3:
        raise UserError(f"{path}: pc of shape {list(pc.shape)}; a frame is [N, 3]")
    if segment is not None and segment.size != len(pc):
        raise UserError(f"{path}: {segment.size} labels in `semantic` for {len(pc)} points")
    return Frame(pc[:, :3], None if segment is None else segment.reshape(-1), fields.get("center"), fields.get("rgb"))


# --- one label per frame --------------------------------------------------------------------------------------------


def frame_labels(dataset: VideoSet, video: Video) -> np.ndarray:
    """[F] int64 class index of each frame, -1 where ignored. Raises UserError where labels are missing or unknown,
    or are not one per frame."""
    file = label_file(video)
    raw: Any = None
    if file is not None:
        raw = read_frame_labels(file, video, dataset.gaps)
    elif not video.files:
        raw = read_videos(video.path).frame_label(video.row)
    if raw is None:
        places = f"{video.path}/labels.csv" if video.files else f"{video.path.with_suffix('')}_labels.csv"
        raise UserError(f"{video.path}: no label per frame of {video.name}; write one a line into {places}")
    where = file or video.path
    if len(raw) != video.length:
        raise UserError(f"{where}: {len(raw)} labels for the {video.length} frames of {video.name}")
    return dataset.indices(np.array([str(one).strip() or "-1" for one in raw]), where)


def label_file(video: Video) -> Path | None:
    """labels.* in a folder of frames, NAME_labels.* beside a folder or file."""
    name = video.path.name if video.files else video.path.stem
    beside = [video.path.with_name(f"{name}_{word}") for word in WORDS]
    inside = [video.path / word for word in WORDS] if video.path.is_dir() else []
    places = [place.with_name(f"{place.name}{end}") for place in (*inside, *beside) for end in FRAME_LABELS]
    return next((place for place in places if place.is_file()), None)


def read_frame_labels(file: Path, video: Video, gaps: bool = True) -> list[Any]:
    """One label per frame. Without ``gaps``, raises UserError for a label of a frame that is not there.

    npy         [F] numbers
    txt, csv    lines of ``label`` or ``frame,label`` (a file's name, with or without ending, or its position from 0);
                a heading with ``label`` in it may stand above
    yaml        a list of F labels, or of runs ``[first frame, last frame, label]``; frames in no run are ignored
    """
    if file.suffix == ".npy":
        try:
            return np.load(file, allow_pickle=False).reshape(-1).tolist()
        except (ValueError, EOFError) as error:
            raise UserError(f"{file}: not readable as labels of frames ({reason(error)})") from error
    if file.suffix in (".yaml", ".yml"):
        return from_runs(file, read_yaml(file), video.length)
    rows = [[word.strip() for word in row] for row in csv.reader(read_text(file).splitlines()) if row]
    column, key = -1, 0 if rows and len(rows[0]) > 1 else None
    if rows and "label" in (heading := [word.lower() for word in rows[0]]):
        column, key = heading.index("label"), heading.index("frame") if "frame" in heading else None
        rows = rows[1:]
    if short := next((row for row in rows if len(row) <= max(column, key or 0)), None):
        raise UserError(f"{file}: the line {','.join(short)!r} has too few columns; every frame needs its label")
    if key is None:
        return [row[column] for row in rows]
    given = {row[key]: row[column] for row in rows}
    labels = []
    for number in range(video.length):
        path = video.files[number] if video.files else Path(str(number))
        name = next((name for name in (path.name, path.stem, str(number)) if name in given), None)
        if name is None:
            raise UserError(f"{file}: no label for frame {path.name} of {video.name}; every frame needs a line")
        labels.append(given.pop(name))
    if given and not gaps:
        raise UserError(
            f"{file}: it has a label for frame {next(iter(given))}, which is not in {video.name}; add the frame, take "
            f"the line out, or set `gaps: true`"
        )
    return labels


def from_runs(file: Path, content: Any, length: int) -> list[Any]:
    if not isinstance(content, list):
        raise UserError(f"{file}: it must hold a list of labels, or of runs [first frame, last frame, label]")
    if not all(isinstance(run, list) for run in content):
        return ["-1" if one is None else one for one in content]
    labels: list[Any] = ["-1"] * length
    for run in content:
        if len(run) != 3 or not all(isinstance(v, int) for v in run[:2]) or not 0 <= run[0] <= run[1] < length:
            raise UserError(f"{file}: {run} is no run [first frame, last frame, label] within {length} frames from 0")
        labels[run[0] : run[1] + 1] = [run[2]] * (run[1] + 1 - run[0])
    return labels
