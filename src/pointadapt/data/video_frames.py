"""Frames of videos as clips take them: in the box, joined, y up, in an order that belongs to the points; remembered."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from pointadapt.data.object_set import UP
from pointadapt.data.object_transforms import sorted_rows
from pointadapt.data.video_arrays import Frame
from pointadapt.data.video_files import Video, read_frame
from pointadapt.data.video_set import AXES, VideoSet
from pointadapt.errors import UserError

#: Coordinates beyond this keep float64 until the clip is centred: float32 would round them to more than a millimetre.
FAR = 1e4


def prepare_frame(dataset: VideoSet, video: Video, number: int, labelled: bool) -> dict[str, np.ndarray]:
    """One frame, joined of ``merge``: coord [n, 3] in float64 or float32, index [n] int32, segment [n] int16 (task
    video_segmentation, if ``labelled``), center [3] where files have one.

    Raises UserError for coordinates that are no numbers, missing or unknown labels, and a frame without points.
    """
    first = number * dataset.merge
    raw = [read_inside(dataset, video, at) for at in range(first, first + dataset.merge)]
    coord, index, segment, center = join(raw)
    empty = len(coord) == 0
    if empty:
        coord, center = neighbour(dataset, video, number)
        index = np.full(len(coord), -1, np.int32)
        segment = None if segment is None else np.full(len(coord), -1, np.int64)
    rows = sorted_rows(coord)
    out = {"coord": coord[rows] @ UP[dataset.up].T, "index": index[rows]}
    if np.abs(out["coord"]).max() < FAR:
        out["coord"] = out["coord"].astype(np.float32)
    if center is not None:
        out["center"] = UP[dataset.up] @ center
    if labelled and dataset.task == "video_segmentation":
        if segment is None:
            raise UserError(
                f"{video.path}: no label of each point in frame {number} of {video.name}; set `label_field` in "
                f"{dataset.file}"
            )
        where = f"{video.path} (frame {number} of {video.name})"
        known = segment if empty else dataset.indices(segment, where)
        out["segment"] = known[rows].astype(np.int16)
    return out


def read_inside(dataset: VideoSet, video: Video, number: int) -> tuple[Frame, np.ndarray]:
    """(a raw frame within the box, rows that it keeps). Raises UserError for coordinates that are no numbers."""
    frame = read_frame(dataset, video, number)
    coord = np.asarray(frame.coord, np.float64)
    bad = len(coord) - int(np.isfinite(coord).all(1).sum())
    if bad:
        raise UserError(
            f"{video.path}: {bad} of {len(coord)} points of frame {number} of {video.name} have NaN or infinite "
            f"coordinates; remove these points"
        )
    inside = np.ones(len(coord), bool)
    for axis, (low, high) in dataset.box.items():
        values = coord[:, AXES.index(axis)]
        inside &= (values >= low) & (values <= high)
    return Frame(coord, frame.segment, frame.center), inside


def neighbour(dataset: VideoSet, video: Video, number: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Points that stand in for an empty frame: those before it, at the start those after. Raises UserError."""
    inside = " within `box`" if dataset.box else ""
    if dataset.empty_frames == "refuse":
        raise UserError(
            f"{video.path}: frame {number} of {video.name} has no points{inside}; take it out, or set "
            f"`empty_frames: repeat` to show the frame before it again"
        )
    count = video.length // dataset.merge
    for other in (*range(number - 1, -1, -1), *range(number + 1, count)):
        first = other * dataset.merge
        coord, _, _, center = join([read_inside(dataset, video, at) for at in range(first, first + dataset.merge)])
        if len(coord):
            return coord, center
    raise UserError(f"{video.path}: no frame of {video.name} has points{inside}; take the video out")


def join(frames: list[tuple[Frame, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(coord [n, 3], row of each in the frames behind each other, labels or None, centre) of what the frames keep."""
    coord = np.concatenate([frame.coord for frame, _ in frames])
    kept = np.flatnonzero(np.concatenate([inside for _, inside in frames])).astype(np.int32)
    labels = [frame.segment for frame, _ in frames if frame.segment is not None]
    segment = np.concatenate(labels)[kept] if len(labels) == len(frames) else None
    return coord[kept], kept, segment, frames[-1][0].center


class Recent:
    """Prepared frames that were used last, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.held: OrderedDict[Any, dict[str, np.ndarray]] = OrderedDict()

    def get(self, key: Any, make: Any) -> dict[str, np.ndarray]:
        if key in self.held:
            self.held.move_to_end(key)
            return self.held[key]
        value = self.held[key] = make()
        self.size += weight(value)
        while self.size > self.limit and len(self.held) > 1:
            self.size -= weight(self.held.popitem(last=False)[1])
        return value


def weight(frame: dict[str, np.ndarray]) -> int:
    return 500 + sum(value.nbytes for value in frame.values())  # 500: what Python itself takes
