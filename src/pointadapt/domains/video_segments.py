"""Segmentation of point videos: the action of every frame, or the class of every point of every frame.

Clips cover every frame; where they overlap, their probabilities are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import nn

from pointadapt.analysis.timeline import bands, draw_timeline
from pointadapt.backbones.point_vit import PointViTConfig
from pointadapt.data.io import FORMATS, write_labels
from pointadapt.data.object_files import TEXT
from pointadapt.data.video_files import read_frame
from pointadapt.data.videos import VideoItems
from pointadapt.domains.domain import TO_VIEW, Asked, Found, Show, gathered
from pointadapt.domains.parts import write_columns
from pointadapt.domains.video_outputs import picture_of, write_ply, write_table
from pointadapt.domains.videos import Videos, averaged
from pointadapt.errors import UserError
from pointadapt.metrics import classification_scores, confusion_matrix, scores, sum_over_processes
from pointadapt.metrics_video import SegmentScores, video_miou
from pointadapt.run import Run
from pointadapt.tasks.action_segmentation import ActionSegmentation
from pointadapt.tasks.clips import class_weights
from pointadapt.tasks.video_segmentation import VideoSegmentation

#: A folder of labelled frames has these beside them.
SHARES, TIMELINE = "classes.csv", "timeline.png"
#: P4Transformer's, in the metres that clips keep with ``normalize: repo``.
RADIUS = 0.9
#: Frames of many points are cut into more groups than the backbone was pretrained with: 256 of 8,192 (inferred).
POINTS_PER_GROUP = 32
#: Training clips whose points are counted to weigh the classes.
COUNTED = 256


class FrameActions(Videos):
    """One class per frame."""

    target: ClassVar[str] = "frame_label"
    options: ClassVar[dict[str, Any]] = {**Videos.options, "probabilities": False}
    heads: ClassVar[tuple[str, ...]] = ("mlp",)

    def task(self, backbone: Any) -> ActionSegmentation:
        self.know(backbone)
        return ActionSegmentation(backbone, self.names, smoothing=self.run.smoothing, dropout=self.run.dropout)

    def timelines(
        self, model: nn.Module, items: VideoItems, device: torch.device, show: Show = lambda share, name: None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(video, probabilities [F, classes]) of this process's videos, one after the other."""
        video, total = -1, np.zeros((0, 0), np.float32)
        for rows, batch, logits in self.stream(model, items, device, show):
            for row, frames, probability in zip(rows, batch["frames"].numpy(), logits.softmax(2).numpy(), strict=True):
                if items.clips[row].video != video:
                    if video >= 0:
                        yield video, averaged(total)
                    video = items.clips[row].video
                    total = np.zeros((items.length(video), len(self.names)), np.float32)
                shown = frames >= 0
                total[frames[shown]] += probability[shown]
        if video >= 0:
            yield video, averaged(total)

    def evaluate(
        self, model: nn.Module, items: VideoItems, device: torch.device, asked: Asked, shown: int = 0
    ) -> Found:
        """Frame accuracy, edit score, F1 of segments pooled over videos, accuracy per class and confusion of frames;
        pictures of the timelines of the worst videos. Details have F1 as published with HOI4D, too, whose last segment
        ends a frame early ("f1_released")."""
        self.check_asked(asked)
        found, released = SegmentScores(), SegmentScores(compat=True)
        counts = torch.zeros(len(self.names), len(self.names), dtype=torch.int64)
        worst: list[tuple[float, str, str]] = []
        for video, probability in self.timelines(model, items, device):
            predicted, truth = probability.argmax(1), items.frame_label(video)
            found.add(predicted, truth)
            released.add(predicted, truth)
            counts += confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(truth), len(self.names))
            right = float((predicted == truth)[truth >= 0].mean()) if (truth >= 0).any() else 1.0
            name = items.videos[video].name
            if shown:
                picture = bands({"truth": truth, "predicted": predicted}, self.names)
                worst = sorted([*worst, (right, name, picture)])[:shown]
        for own in (found, released):
            for other in gathered(own)[1:]:
                own.merge(other)
        counts = sum_over_processes(counts)
        values = {key.replace("@", "_"): value for key, value in found.scores().items()}
        values["accuracy"] = classification_scores(counts)["accuracy"]
        pictures = [(f"{name}: {100 * right:.1f} % of the frames", picture) for right, name, picture in worst]
        details: dict[str, Any] = {"confusion": counts.tolist(), "dropped": [video.name for video in items.dropped]}
        details["f1_released"] = {key: value for key, value in released.scores().items() if key.startswith("f1@")}
        return Found(values, details, notes=self.notes(items), pictures=pictures)

    def label(self, model: nn.Module, source: Path, target: Path, device: torch.device, show: Show) -> None:
        """The table of frames, and the timeline's picture."""
        items, merge = self.to_predict(source), self.dataset.merge
        ((_, timeline),) = self.timelines(model, items, device, show)
        files, more = items.videos[0].files, self.names if self.told["probabilities"] else []
        rows = []
        for frame in range(items.videos[0].length):
            p = timeline[min(frame // merge, len(timeline) - 1)]
            name = [files[frame].name] if files else []
            rows.append((frame, *name, self.names[int(p.argmax())], f"{p.max():.6f}", *(f"{v:.6f}" for v in p if more)))
        write_table(target, ["frame", *(["file"] if files else []), "class", "confidence", *more], rows)
        draw_timeline(picture_of(target), timeline, self.names, str(source), merge)

    def about_all(self, answers: dict[Path, list[tuple[Path, Any]]]) -> list[Path]:
        return [picture_of(target) for target in answers]


class PointClasses(Videos):
    """One class per point of every frame; the loss weighs classes by 1 / ln(1.2 + their share).

    Scored on the points that the model sees, clip by clip, as published.
    """

    target: ClassVar[str] = "segment"
    ending: ClassVar[str] = ""
    heads: ClassVar[tuple[str, ...]] = ("mlp", "pyramid", "slim")

    def settled(self, run: Run) -> Run:
        if run.smoothing:
            raise UserError("smoothing is for actions: leave it at 0 for the segmentation of points")
        return super().settled(run)

    def task(self, backbone: Any) -> VideoSegmentation:
        head: Any = self.run.head
        if head == "mlp" and self.run.groups is None:
            more_groups(backbone, self.dataset.points // POINTS_PER_GROUP)
        self.know(backbone)
        task = VideoSegmentation(
            backbone,
            self.names,
            skip=6 if self.dataset.color else 3,
            dropout=self.run.dropout,
            head=head,
            points=self.dataset.points,
            radius=RADIUS if self.dataset.normalize == "repo" else None,
        )
        if head != "mlp":
            self.need = backbone.pyramid.sizes[0]
        return task

    def first_stage(self, model: nn.Module, resume: bool, is_main: bool) -> dict[str, Any] | None:
        """Weighs the loss's classes by how often they occur in training clips, as published for Synthia4D."""
        items, counts = self.items("train"), np.zeros(len(self.names), np.int64)
        for row in np.unique(np.linspace(0, len(items.clips) - 1, COUNTED).astype(int)):
            segment = items.clip(int(row))["segment"]
            counts += np.bincount(segment[segment >= 0], minlength=len(counts))
        device = next(model.parameters()).device
        model.get_base_model().weights = class_weights(torch.from_numpy(counts)).to(device)  # type: ignore[operator]
        return super().first_stage(model, resume, is_main)

    def evaluate(
        self, model: nn.Module, items: VideoItems, device: torch.device, asked: Asked, shown: int = 0
    ) -> Found:
        """mIoU, mean accuracy, IoU per class and confusion of points; shows the last frames of the worst clips.

        ``miou_labelled`` is over the classes that are labelled anywhere, HOI4D's rule; Synthia4D's is ``asked.absent``
        zero.
        """
        self.check_asked(asked)
        counts = torch.zeros(len(self.names), len(self.names), dtype=torch.int64)
        worst: list[tuple[float, int, np.ndarray]] = []
        for rows, batch, logits in self.stream(model, items, device):
            found, truth = logits.argmax(1), batch["segment"]
            counts += confusion_matrix(found, truth, len(self.names))
            sizes = [len(index) for index in batch["index"]]
            for row, ours, theirs in zip(rows, found.split(sizes), truth.split(sizes), strict=True):
                right = float((ours == theirs)[theirs >= 0].double().mean()) if (theirs >= 0).any() else 1.0
                worst = sorted([*worst, (right, row, ours.numpy())], key=lambda one: one[:2])[:shown]
        counts = sum_over_processes(counts)
        scenes = []
        for right, row, predicted in worst:
            sample = items.clip(row)
            last = slice(-int(sample["counts"][-1]), None)
            kept = {"coord": sample["coord"][last] @ TO_VIEW.T, "segment": sample["segment"][last]}
            title = f"{sample['name']}, last frame: {100 * right:.1f} % of the clip"
            scenes.append({**kept, "name": title, "predicted": predicted[last], "classes": self.names})
        labelled = video_miou(counts, "hoi4d")
        details = {"absent": asked.absent, "miou_labelled": labelled, "confusion": counts.tolist()}
        return Found(scores(counts, asked.absent).as_dict(), details, scenes, self.notes(items))

    # ------------------------------------------------------------------ prediction

    def label(self, model: nn.Module, source: Path, target: Path, device: torch.device, show: Show) -> None:
        """Every frame with a class and a confidence per point, classes.csv and timeline.png with the shares of classes.

        All points of a frame take the class of the nearest point that the model saw. Frames are written as soon as no
        later clip shows them.
        """
        items = self.to_predict(source)
        shares = np.zeros((items.length(0), len(self.names)), np.float32)
        waiting: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        for rows, batch, logits in self.stream(model, items, device, show):
            first = items.clips[rows[0]].start
            for number in sorted(number for number in waiting if number < first):
                shares[number] = self.write_frame(items, number, waiting.pop(number), target)
            probability = np.split(logits.softmax(1).numpy(), np.cumsum([len(i) for i in batch["index"]])[:-1])
            sizes = np.split(np.array(batch["point"].counts), len(rows))
            for frames, index, votes in zip(batch["frames"].numpy(), batch["index"], probability, strict=True):
                ends = np.cumsum(sizes.pop(0))
                for number, start, end in zip(frames.tolist(), [0, *ends[:-1]], ends, strict=True):
                    own = index[start:end] >= 0
                    if number >= 0:
                        waiting.setdefault(number, []).append((index[start:end][own], votes[start:end][own]))
        for number in sorted(waiting):
            shares[number] = self.write_frame(items, number, waiting.pop(number), target)
        merge = self.dataset.merge
        table = [(number * merge, *(f"{v:.6f}" for v in row)) for number, row in enumerate(shares)]
        write_table(target / SHARES, ["frame", *self.names], table)
        draw_timeline(target / TIMELINE, shares, self.names, f"{source}: share of points", merge)

    def write_frame(
        self, items: VideoItems, number: int, votes: list[tuple[np.ndarray, np.ndarray]], folder: Path
    ) -> np.ndarray:
        """Write one frame; returns the share [classes] of its points."""
        video, merge = items.videos[0], self.dataset.merge
        raw = [read_frame(items.dataset, video, at).coord for at in range(number * merge, (number + 1) * merge)]
        coord = np.concatenate(raw).astype(np.float64)
        index, place = np.unique(np.concatenate([rows for rows, _ in votes]), return_inverse=True)
        total = np.zeros((len(index), len(self.names)), np.float32)
        np.add.at(total, place, np.concatenate([probability for _, probability in votes]))
        total /= total.sum(1, keepdims=True)
        if not len(index):  # an empty frame
            return np.zeros(len(self.names), np.float32)
        nearest = cKDTree(coord[index]).query(coord)[1]
        found, confidence = total.argmax(1)[nearest], total.max(1)[nearest]
        raw_ids = {name: raw for raw, name in self.dataset.ids.items()}
        ids = np.array([raw_ids.get(name, place) for place, name in enumerate(self.names)])
        file = video.files[number] if video.files and merge == 1 else None
        if file is not None and file.suffix.lower() in TEXT:
            write_columns(file, folder / file.name, ids[found], confidence)
        elif file is not None and file.suffix.lower() in FORMATS and file.suffix.lower() != ".npz":
            write_labels(file, folder / file.name, ids[found], confidence)
        else:
            write_ply(folder / f"frame_{number * merge:06d}.ply", coord, ids[found], confidence)
        return np.bincount(found, minlength=len(self.names)) / len(found)

    def about_all(self, answers: dict[Path, list[tuple[Path, Any]]]) -> list[Path]:
        return [target / name for target in answers for name in (SHARES, TIMELINE)]


def more_groups(backbone: Any, groups: int) -> None:
    """Cut clouds into that many groups where the backbone cuts fewer, in place."""
    config = getattr(backbone, "config", None)
    if isinstance(config, PointViTConfig) and groups > config.groups:
        backbone.config = replace(config, groups=groups)
        backbone.tokenizer.groups = groups
