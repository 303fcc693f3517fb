"""From a split of a VideoSet to batches: frames read one by one, clips cut and normalised, packing into a Point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pointadapt.data.object_set import UP, draw
from pointadapt.data.transforms import Sample, Transform
from pointadapt.data.video_files import Video, frame_labels, list_videos
from pointadapt.data.video_frames import FAR, Recent, prepare_frame
from pointadapt.data.video_set import VIDEO_TASKS, VideoSet
from pointadapt.data.video_transforms import VIDEO_TRANSFORMS
from pointadapt.errors import UserError
from pointadapt.point import Point

__all__ = ["VIDEO_TASKS", "Clip", "VideoItems", "VideoSet", "clip_starts", "collate_videos", "videos_at"]

#: Bytes of prepared frames that are kept for the next access.
MEMORY = 256 << 20


@dataclass(frozen=True)
class Clip:
    """Which clip: row of its video, first frame, and which half of the scene (None: all of it)."""

    video: int
    start: int
    half: int | None = None


class VideoItems(Dataset):
    """The clips of one split.

    With ``train`` an item is a video, of which every access shows a random clip, augmented; else an item is a clip, in
    the order of videos and frames, always the same. Clips cover every frame, so that each gets a prediction; but for
    task action with a ``stride``, as published, they start every so many frames as long as they fit.

    An item is a dict of
        coord    [N, 3] float32, the frames behind each other     counts  [T] int64 points of each frame
        label    int (action)        frame_label  [T] int64 (action_segmentation), -1: not scored
        segment  [N] int64 (video_segmentation), -1: not scored       color  [N, 3] float32 in [0, 1] (with ``color``)
        index    [N] int32 row in the frame's file (frames that ``merge`` joins count on), -1: an added copy
        frames   [T] int64 position in the video, after ``merge``; -1: its last frame once more (short videos)
        time     [T] float32 position in the clip, in [0, 1)      video, name  str, name: the video's and @start
        center, scale  where the clip was moved from, and its factor
    Points of a frame are drawn at random: anew at every access in training, by the names of video and frame in
    evaluation, whatever their order in the file. Randomness depends on (seed, epoch, index) alone.

    split      name of a split, or the videos themselves, which then need no labels
    need       points that a frame must have for the model; where a frame has fewer, they are repeated, unscored
    transform  ``(sample, rng) -> sample``; by default the data set's augmentation with ``train``, else none
    memory     bytes of prepared frames kept; files of frames are never held as a whole video
    repeat     passes over the videos that make up one epoch
    labelled   whether samples have labels; by default those of a split do
    dropped    videos left out because they are shorter than a clip (``short_video: drop``)
    """

    def __init__(
        self,
        dataset: VideoSet,
        split: str | Sequence[Video],
        train: bool | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        need: int = 1,
        memory: int = MEMORY,
        repeat: int = 1,
        labelled: bool | None = None,
    ) -> None:
        self.dataset, self.split, self.seed, self.need, self.repeat = dataset, split, seed, need, repeat
        self.train = split == "train" if train is None else train
        self.labelled = isinstance(split, str) if labelled is None else labelled
        found = dataset.videos(split) if isinstance(split, str) else list(split)
        if not found:
            raise UserError(f"{dataset.file}: the split {split!r} lists no videos; add some under `splits`")
        if bad := next((video for video in found if video.problem), None):
            raise UserError(bad.problem)
        kept = [dataset.short_video == "pad_last" or self._length(video) >= dataset.span for video in found]
        self.videos = [video for video, keep in zip(found, kept, strict=True) if keep]
        self.dropped = [video for video, keep in zip(found, kept, strict=True) if not keep]
        if not self.videos:
            raise UserError(
                f"{dataset.file}: all {len(found)} videos of {split!r} are shorter than the {dataset.span} frames a "
                f"clip reaches over; lower `frames` or `step`, or set `short_video: pad_last`"
            )
        preset = VIDEO_TRANSFORMS[dataset.transform if self.train else "none"]
        self.transform = transform or preset()
        self.clips = [clip for row in range(len(self.videos)) for clip in self._clips(row)]
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by worker processes too
        self._frames = Recent(memory)
        self._labels: dict[int, np.ndarray] = {}

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return (len(self.videos) if self.train else len(self.clips)) * self.repeat

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, int(self._epoch), index])
        if self.train:
            return self.draw(index % len(self.videos), rng)
        return self.transform(self.clip(index % len(self.clips)), rng)

    def clip(self, index: int) -> Sample:
        """Clip ``index`` of evaluation, without a transform; the same at every call."""
        return self._sample(self.clips[index], None)

    def draw(self, video: int, rng: np.random.Generator) -> Sample:
        """A random clip of a video, transformed."""
        last = max(self.length(video) - self.dataset.span, 0)
        half = None if self.dataset.halves is None else int(rng.integers(2))
        return self.transform(self._sample(Clip(video, int(rng.integers(last + 1)), half), rng), rng)

    @property
    def targets(self) -> np.ndarray:
        """[videos] int64 class of each video (task action)."""
        return np.array([-1 if video.target is None else video.target for video in self.videos], np.int64)

    @property
    def notes(self) -> list[str]:
        """Sentences on what was done to short videos, for reports."""
        dataset, notes = self.dataset, []
        if self.dropped:
            names = ", ".join(video.name for video in self.dropped[:3]) + (" ..." if len(self.dropped) > 3 else "")
            notes.append(
                f"{len(self.dropped)} of {len(self.dropped) + len(self.videos)} videos are shorter than "
                f"{dataset.span} frames and were left out ({names}): they are missing from all scores."
            )
        short = sum(self._length(video) < dataset.span for video in self.videos)
        if short:
            notes.append(
                f"{short} of {len(self.videos)} videos are shorter than {dataset.span} frames; their last one repeats."
            )
        return notes

    def length(self, video: int) -> int:
        """Frames of a video, after ``merge``."""
        return self._length(self.videos[video])

    def frame(self, video: int, number: int) -> dict[str, np.ndarray]:
        """All points of one frame: coord [n, 3] with y up, before normalisation, index [n], segment [n] if labelled."""
        return self._frames.get(
            (video, number), lambda: prepare_frame(self.dataset, self.videos[video], number, self.labelled)
        )

    def frame_label(self, video: int) -> np.ndarray:
        """[F] int64 class of each frame (task action_segmentation); of joined frames the commonest."""
        if video not in self._labels:
            labels, merge = frame_labels(self.dataset, self.videos[video]), self.dataset.merge
            joined = labels[: self.length(video) * merge].reshape(-1, merge) + 1  # -1, which is not scored, becomes 0
            self._labels[video] = np.array([np.bincount(group).argmax() for group in joined], np.int64) - 1
        return self._labels[video]

    # ------------------------------------------------------------------ clips

    def _length(self, video: Video) -> int:
        length = video.length // self.dataset.merge
        if length < 2:
            raise UserError(
                f"{video.path}: joining {self.dataset.merge} frames leaves {length} of the {video.length} frames of "
                f"{video.name}; lower `merge`"
            )
        return length

    def _clips(self, row: int) -> list[Clip]:
        dataset = self.dataset
        cover = dataset.task != "action" or dataset.stride == 0
        starts = clip_starts(self.length(row), dataset.frames, dataset.step, dataset.stride, cover)
        halves = (None,) if dataset.halves is None else (0, 1)
        return [Clip(row, start, half) for start in starts for half in halves]

    def _sample(self, clip: Clip, rng: np.random.Generator | None) -> Sample:
        dataset, video, length = self.dataset, self.videos[clip.video], self.length(clip.video)
        wanted = clip.start + dataset.step * np.arange(dataset.frames)
        numbers = np.minimum(wanted, length - 1)
        seen = {int(number): self.frame(clip.video, int(number)) for number in numbers}
        if clip.half is not None:
            seen = self._half(seen, int(numbers[-1]), clip.half, video)
        center, factor = self._place(list(seen.values()))
        parts = [self._choose(seen[int(number)], video, int(number), rng) for number in numbers]
        coord = np.concatenate([part["coord"] for part in parts])
        half = "" if clip.half is None else "ab"[clip.half]
        sample: Sample = {
            "coord": ((coord - center) * factor).astype(np.float32),
            "counts": np.array([len(part["coord"]) for part in parts]),
            "index": np.concatenate([part["index"] for part in parts]),
            "frames": np.where(wanted < length, wanted, -1),
            "time": (np.arange(dataset.frames) / dataset.frames).astype(np.float32),
            "video": video.name,
            "name": f"{video.name}@{clip.start}{half}",
            "center": center.astype(np.float32) if np.abs(center).max() < FAR else center,
            "scale": factor,
        }
        if dataset.color:
            sample["color"] = np.concatenate([part["color"] for part in parts]).astype(np.float32) / 255
        if not self.labelled:
            return sample
        if dataset.task == "action":
            return {**sample, "label": -1 if video.target is None else video.target}
        if dataset.task == "action_segmentation":
            labels = self.frame_label(clip.video)[numbers]
            return {**sample, "frame_label": np.where(wanted < length, labels, -1)}
        scored = np.repeat(wanted < length, sample["counts"])
        segment = np.concatenate([part["segment"] for part in parts]).astype(np.int64)
        return {**sample, "segment": np.where(scored, segment, -1)}

    def _place(self, frames: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, float]:
        """(origin [3] float64, factor) of a clip, from all points of its frames."""
        dataset = self.dataset
        if dataset.normalize == "repo":
            return frames[0].get("center", np.zeros(3)), dataset.scale
        total = sum(len(frame["coord"]) for frame in frames)
        center = np.sum([frame["coord"].sum(0, dtype=np.float64) for frame in frames], 0) / total
        middle = center.astype(frames[0]["coord"].dtype)
        radius = math.sqrt(max(float(((frame["coord"] - middle) ** 2).sum(1).max()) for frame in frames))
        return center, 1 / radius if radius > 0 else 1.0

    def _choose(
        self, frame: dict[str, np.ndarray], video: Video, number: int, rng: np.random.Generator | None
    ) -> dict[str, np.ndarray]:
        """``points`` of a frame's points, or all; repeated where the model needs more."""
        count = len(frame["coord"])
        if rng is None:
            rng = np.random.default_rng(int.from_bytes(draw(f"{video.name} {number}", self.seed)[:8], "little"))
        rows = rng.permutation(count)[: self.dataset.points]
        chosen = {key: value[rows] for key, value in frame.items() if key != "center"}
        if len(rows) >= self.need:
            return chosen
        again = np.arange(self.need) % len(rows)
        out = {key: value[again] for key, value in chosen.items()}
        for key in ("index", "segment"):
            if key in out:
                out[key][len(rows) :] = -1
        return out

    def _half(
        self, frames: dict[int, dict[str, np.ndarray]], last: int, half: int, video: Video
    ) -> dict[int, dict[str, np.ndarray]]:
        """One side of the scene, cut along the files' z at the last frame's centre, with unscored context."""
        center = frames[last].get("center")
        if center is None or self.dataset.halves is None:
            raise UserError(f"{video.path}: `halves` cuts at a stored centre, which frames of {video.name} lack")
        side = UP[self.dataset.up][:, 2] * (1 if half == 0 else -1)
        out = {}
        for number, frame in frames.items():
            depth = (frame["coord"] - center) @ side
            rows = depth > -self.dataset.halves if half == 0 else depth >= -self.dataset.halves
            core = (depth > 0 if half == 0 else depth >= 0)[rows]
            if not rows.any():
                raise UserError(
                    f"{video.path}: frame {number} of {video.name} has no points in one half; drop `halves`"
                )
            cut = {key: value[rows] if key != "center" else value for key, value in frame.items()}
            out[number] = {**cut, "segment": np.where(core, cut["segment"], -1)} if "segment" in cut else cut
        return out


def clip_starts(length: int, frames: int, step: int, stride: int, cover: bool = False) -> list[int]:
    """First frames of the clips of a video; a video shorter than a clip has one, from 0.

    Every ``stride`` frames (0: one clip behind the other) as long as clips fit: for stride 1 the published
    ``length - step * (frames - 1)`` clips. With ``cover`` every frame of the video is in some clip: the ``step``
    interleaved sequences are cut each by itself, their last clips pulled back to the end.
    """
    span = step * (frames - 1) + 1
    if not cover:
        return list(range(0, max(length - span, 0) + 1, stride or span))
    starts = []
    for phase in range(min(step, length)):
        last = max((length - phase - 1) // step - (frames - 1), 0)  # in steps of this phase
        every = min(max((stride or frames * step) // step, 1), frames)
        starts += [phase + step * at for at in sorted({*range(0, last + 1, every), last})]
    return sorted(starts)


def videos_at(dataset: VideoSet, path: Path | str) -> list[Video]:
    """Videos at a path anywhere, to be predicted: a folder of frames, folders of such folders, an array file.

    Those that cannot be used are among them and have a ``problem``, so that one does not keep the others waiting.
    """
    if not Path(path).exists():
        raise UserError(f"there is no video {path}: check the path")
    return list_videos(dataset, str(Path(path).absolute()), labelled=False)


def collate_videos(samples: list[Sample]) -> dict[str, Any]:
    """Pack B clips of T frames: ``point`` (a Point of B * T clouds) and what belongs to the clips.

    point.feat   coord [N, 3], and beside it the colours where all samples have them: [N, 6]

    point.extra  "frames": T, "time": [B * T] float32
    label [B], frame_label [B, T], segment [N] where all samples have them; frames [B, T]; name, video, index, center,
    scale: lists of B. Raises ValueError for clips of different numbers of frames.
    """
    if not samples:
        raise ValueError("collate_videos needs at least one sample")
    frames = len(samples[0]["counts"])
    if any(len(sample["counts"]) != frames for sample in samples):
        raise ValueError("clips of one batch must have the same number of frames")
    coord = torch.from_numpy(np.concatenate([sample["coord"] for sample in samples]))
    offset = torch.from_numpy(np.concatenate([sample["counts"] for sample in samples])).cumsum(0)
    time = torch.from_numpy(np.concatenate([sample["time"] for sample in samples]))
    feat = coord
    if all("color" in sample for sample in samples):
        feat = torch.cat([coord, torch.from_numpy(np.concatenate([sample["color"] for sample in samples]))], 1)
    point = Point(coord=coord, feat=feat, offset=offset, extra={"frames": frames, "time": time})
    batch: dict[str, Any] = {"point": point, "frames": torch.from_numpy(np.stack([s["frames"] for s in samples]))}
    if all("label" in sample for sample in samples):
        batch["label"] = torch.tensor([sample["label"] for sample in samples])
    if all("frame_label" in sample for sample in samples):
        batch["frame_label"] = torch.from_numpy(np.stack([sample["frame_label"] for sample in samples]))
    if all("segment" in sample for sample in samples):
        batch["segment"] = torch.from_numpy(np.concatenate([sample["segment"] for sample in samples]))
    for key in ("name", "video", "index", "center", "scale"):
        batch[key] = [sample[key] for sample in samples]
    return batch
