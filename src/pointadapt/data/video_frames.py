"""Frames of videos as clips take them: in the box, joined, y up, in an order that belongs to the points; remembered."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
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
    video_segmentation, if ``labelled``), color [n, 3] uint8 (with ``color``), center [3] where files have one.

    Raises UserError for coordinates that are no numbers, missing or unknown labels, missing colours, and a frame
    without points.
    """
    first = number * dataset.merge
    raw = [read_inside(dataset, video, at) for at in range(first, first + dataset.merge)]
    frame, index = join(raw)
    segment, empty = frame.segment, len(frame.coord) == 0
    if empty:
        frame = neighbour(dataset, video, number)
        index = np.full(len(frame.coord), -1, np.int32)
        segment = None if segment is None else np.full(len(index), -1, np.int64)
    rows = sorted_rows(frame.coord)
    out = {"coord": frame.coord[rows] @ UP[dataset.up].T, "index": index[rows]}
    if np.abs(out["coord"]).max() < FAR:
        out["coord"] = out["coord"].astype(np.float32)
    if frame.center is not None:
        out["center"] = UP[dataset.up] @ frame.center
    if dataset.color:
        assert frame.color is not None
        out["color"] = frame.color[rows]
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
    color = colors(dataset, video, number, frame) if dataset.color else None
    return replace(frame, coord=coord, color=color), inside


def colors(dataset: VideoSet, video: Video, number: int, frame: Frame) -> np.ndarray:
    """[N, 3] uint8 of colours stored in 0..1 (floats) or 0..255. Raises UserError for missing or strange ones."""
    where, color = f"frame {number} of {video.name}", frame.color
    if color is None:
        raise UserError(f"{video.path}: no colours in {where}; set `color: false` in {dataset.file}")
    if color.shape != (len(frame.coord), 3) or color.dtype.kind not in "iuf":
        raise UserError(
            f"{video.path}: colours of shape {list(color.shape)} for {len(frame.coord)} points in {where}; they must "
            f"be [N, 3] numbers, or set `color: false` in {dataset.file}"
        )
    if color.dtype.kind == "f" and color.size and color.max() <= 1:
        color = (255 * color).round()
    if color.size and not (color.min() >= 0 and color.max() <= 255):  # not: NaN is refused as well
        raise UserError(
            f"{video.path}: colours outside of 0 to 255 (or 0 to 1) in {where}; mend them, or set `color: false` in "
            f"{dataset.file}"
        )
    return color.astype(np.uint8)


def neighbour(dataset: VideoSet, video: Video, number: int) -> Frame:
    """What stands in for an empty frame: those before it, at the start those after. Raises UserError."""
    inside = " within `box`" if dataset.box else ""
    if dataset.empty_frames == "refuse":
        raise UserError(
            f"{video.path}: frame {number} of {video.name} has no points{inside}; take it out, or set "
            f"`empty_frames: repeat` in {dataset.file} (in prediction: --gaps) to show the frame before it again"
        )
    count = video.length // dataset.merge
    for other in (*range(number - 1, -1, -1), *range(number + 1, count)):
        first = other * dataset.merge
        frame, _ = join([read_inside(dataset, video, at) for at in range(first, first + dataset.merge)])
        if len(frame.coord):
            return frame
    raise UserError(f"{video.path}: no frame of {video.name} has points{inside}; take the video out")


def join(frames: list[tuple[Frame, np.ndarray]]) -> tuple[Frame, np.ndarray]:
    """(what the frames keep as one, row [n] of each point in the frames behind each other); the last one's centre."""
    kept = np.flatnonzero(np.concatenate([inside for _, inside in frames])).astype(np.int32)

    def together(name: str) -> np.ndarray | None:
        values = [value for frame, _ in frames if (value := getattr(frame, name)) is not None]
        return np.concatenate(values)[kept] if len(values) == len(frames) else None

    coord = np.concatenate([frame.coord for frame, _ in frames])[kept]
    return Frame(coord, together("segment"), frames[-1][0].center, together("color")), kept


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
