"""Point videos: what their tasks share, and recognition of the action of each.

Videos come from a :class:`~pointadapt.data.video_set.VideoSet`, clip by clip; no video is held as a whole. Training
sees a random clip of each video per epoch; evaluation and prediction see all clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pointadapt.analysis.timeline import draw_timeline
from pointadapt.data.labels import fewer_videos, parse_labels
from pointadapt.data.transforms import Sample
from pointadapt.data.video_files import Video
from pointadapt.data.video_set import VideoSet
from pointadapt.data.video_transforms import VIDEO_TRANSFORMS
from pointadapt.data.videos import VideoItems, collate_videos
from pointadapt.domains import alignment
from pointadapt.domains.domain import TO_VIEW, Asked, Domain, Found, Show, autocast, gathered, give_back_memory, process
from pointadapt.domains.video_outputs import TABLE, picture_of, video_jobs, write_table
from pointadapt.errors import UserError
from pointadapt.files import read_json
from pointadapt.metrics import confusion_matrix
from pointadapt.metrics_video import ClipVotes
from pointadapt.run import Run
from pointadapt.tasks.video import VideoClassification

#: Frames of a clip that the report shows side by side.
SHOWN_FRAMES = 5
#: Bytes of frames kept in prediction, where only clips that overlap show one twice.
FRAMES_KEPT = 32 << 20


class Videos(Domain):
    """A run on a VideoSet.

    need    points a frame must have, known once the task is built; where it has fewer, they are repeated
    ending  of what prediction writes for a video, "" for a folder
    """

    dataset: VideoSet
    aligns: ClassVar[bool] = True
    heads: ClassVar[tuple[str, ...]] = ("mlp", "linear")
    options: ClassVar[dict[str, Any]] = {"gaps": False}
    ending: ClassVar[str] = TABLE

    def __init__(self, run: Run, dataset: VideoSet) -> None:
        if run.points:
            dataset = replace(dataset, points=run.points)
        if run.select == "val" and not dataset.splits.get("val") and not dataset.holdout:
            dataset = replace(dataset, holdout=run.val_share)
        self.need = 1
        super().__init__(run, dataset)

    def settled(self, run: Run) -> Run:
        if run.mix3d:
            raise UserError("mix3d merges crops of scenes: leave it at 0 for videos")
        if run.head not in self.heads:
            raise UserError(f"head {run.head!r} is not for videos: use one of {', '.join(self.heads)}")
        if parse_labels(run.labels)[1] is not None:
            raise UserError(f"labels {run.labels} is for scenes: give a share of the videos, such as 10%")
        return super().settled(run)

    @classmethod
    def remembered(cls, content: Any, run: Run, file: Path) -> VideoSet:
        return VideoSet.from_dict(content, run.data, file)

    def learned(self) -> list[Video]:
        """The videos of train, of which ``run.labels`` keeps a share."""
        return fewer_videos(self.dataset.videos("train"), parse_labels(self.run.labels)[0], self.run.seed)

    def train_size(self) -> int:
        return len(self.learned())

    def transforms(self) -> dict[str, Any]:
        return VIDEO_TRANSFORMS

    def know(self, backbone: Any) -> None:
        """Remember what the backbone asks of a frame."""
        config = getattr(backbone, "config", None)
        self.need = max(getattr(config, "groups", 1), getattr(config, "group_size", 1))

    # ------------------------------------------------------------------ training

    def items(self, split: str, train: bool = False) -> VideoItems:
        some: Any = self.learned() if split == "train" and self.run.labels != "100%" else split
        augment = VIDEO_TRANSFORMS[self.run.transform if train else "none"]()
        return VideoItems(self.dataset, some, train, augment, need=self.need, labelled=True)

    def draw(self, items: VideoItems, index: int, rng: np.random.Generator) -> Sample:
        return items.draw(index, rng)

    def collate(self, samples: list[Sample], rng: np.random.Generator) -> dict[str, Any]:
        return collate_videos(samples)

    def first_stage(self, model: nn.Module, resume: bool, is_main: bool) -> dict[str, Any] | None:
        return alignment.first_stage(model, self, resume, is_main)

    # ------------------------------------------------------------------ clip by clip

    @torch.inference_mode()
    def logits(self, model: nn.Module, batch: dict[str, Any], device: torch.device) -> Tensor:
        """Float32 on the CPU."""
        with autocast(self.run, device):
            return model(batch["point"].to(device)).float().cpu()

    def stream(
        self, model: nn.Module, items: VideoItems, device: torch.device, show: Show = lambda share, name: None
    ) -> Iterator[tuple[list[int], dict[str, Any], Tensor]]:
        """(rows of ``items.clips``, batch, logits) of this process's videos, in the order of videos and frames."""
        rank, processes = process()
        share = [row for row, clip in enumerate(items.clips) if clip.video % processes == rank]
        for first in range(0, len(share), self.run.batch_size):
            rows = share[first : first + self.run.batch_size]
            batch = collate_videos([items.clip(row) for row in rows])
            yield rows, batch, self.logits(model, batch, device)
            show(min(first + self.run.batch_size, len(share)) / len(share), None)
            give_back_memory()

    def notes(self, items: VideoItems) -> list[str]:
        """For the report: what was done to short videos, and what Stage 1 did."""
        told = self.run.folder / alignment.LOG
        return [*items.notes, *([alignment.in_words(read_json(told))] if told.is_file() else [])]

    def check_asked(self, asked: Asked) -> None:
        if asked.corruption:
            raise UserError("corruptions are for single objects: leave the corruption out")

    # ------------------------------------------------------------------ prediction

    def jobs(self, source: Path, out: Path | None, overwrite: bool) -> list[tuple[Path, Path]]:
        found = video_jobs(self.as_told(), source, out, overwrite, self.ending)
        self.sources = {name: video for name, _, video in found}
        return [(name, target) for name, target, _ in found]

    def as_told(self) -> VideoSet:
        """The data set as prediction was told to read it; new frames need no field of labels."""
        plain = replace(self.dataset, label_field=None)
        return replace(plain, gaps=True, empty_frames="repeat") if self.told["gaps"] else plain

    def to_predict(self, name: Path) -> VideoItems:
        """All clips of one video, without labels; a short one is shown whole whatever training did with such."""
        dataset = replace(self.as_told(), short_video="pad_last")
        return VideoItems(dataset, [self.sources[name]], train=False, need=self.need, memory=FRAMES_KEPT)


class Actions(Videos):
    """One class per video, by the votes of its clips."""

    target: ClassVar[str] = "label"
    options: ClassVar[dict[str, Any]] = {**Videos.options, "probabilities": False}

    def task(self, backbone: Any) -> VideoClassification:
        self.know(backbone)
        run = self.run
        head: Any = run.head
        return VideoClassification(backbone, self.names, head=head, smoothing=run.smoothing, dropout=run.dropout)

    def evaluate(
        self, model: nn.Module, items: VideoItems, device: torch.device, asked: Asked, shown: int = 0
    ) -> Found:
        """Accuracy of videos and of clips, mean accuracy and accuracy per class over videos, confusion of videos.

        Videos left out because they are short are named, and ``video_accuracy_all`` counts them as wrong. Shows clips
        of the videos that are most surely wrong.
        """
        self.check_asked(asked)
        votes = ClipVotes(len(self.names))
        for _, batch, logits in self.stream(model, items, device):
            votes.add(logits, batch["video"], batch["label"].tolist())
        for other in gathered(votes)[1:]:
            votes.votes.update(other.votes), votes.labels.update(other.labels)
            votes.clips, votes.right_clips = votes.clips + other.clips, votes.right_clips + other.right_clips
        found = votes.predictions()
        names = sorted(found)
        counts = confusion_matrix(
            torch.tensor([found[name] for name in names]),
            torch.tensor([votes.labels[name] for name in names]),
            len(self.names),
        )
        everything = {video.name: int(video.target or 0) for video in (*items.videos, *items.dropped)}
        scores = {key: value for key, value in votes.scores().items() if key != "missing"}
        details = {
            "confusion": counts.tolist(),
            "video_accuracy_all": votes.scores(everything)["video_accuracy"],
            "dropped": [video.name for video in items.dropped],
        }
        return Found(scores, details, self.worst(votes, items, shown), self.notes(items))

    def worst(self, votes: ClipVotes, items: VideoItems, shown: int) -> list[dict[str, Any]]:
        """Frames of the first clips of the videos that are most surely wrong, for the report."""
        scenes, found = [], votes.predictions()
        wrong = [name for name, index in found.items() if index != votes.labels[name]]
        surely = sorted(wrong, key=lambda name: (-float(votes.votes[name].max() / votes.votes[name].sum()), name))
        rows = {items.videos[clip.video].name: row for row, clip in reversed(list(enumerate(items.clips)))}
        for name in surely[:shown]:
            title = f"{name}: {self.names[votes.labels[name]]} taken for {self.names[found[name]]}"
            scenes.append({"name": title, "coord": strip(items.clip(rows[name]))})
        return scenes

    # ------------------------------------------------------------------ prediction

    def label(self, model: nn.Module, source: Path, target: Path, device: torch.device, show: Show) -> Any:
        """The table of clips and the timeline's picture; returns the video's mean probabilities [classes]."""
        items = self.to_predict(source)
        merge, clips = self.dataset.merge, []
        timeline = np.zeros((items.length(0), len(self.names)), np.float32)
        for _, batch, logits in self.stream(model, items, device, show):
            for frames, probability in zip(batch["frames"].numpy(), logits.softmax(1).numpy(), strict=True):
                seen = frames[frames >= 0]
                timeline[seen] += probability
                clips.append((int(seen[0]) * merge, (int(seen[-1]) + 1) * merge - 1, probability))
        timeline = averaged(timeline)
        more = self.names if self.told["probabilities"] else []
        rows = [
            (first, last, self.names[int(p.argmax())], f"{p.max():.6f}", *(f"{v:.6f}" for v in p if more))
            for first, last, p in clips
        ]
        mean = np.mean([p for *_, p in clips], axis=0)
        title = f"{source}: {self.names[int(mean.argmax())]} ({100 * mean.max():.0f} %)"
        write_table(target, ["first_frame", "last_frame", "class", "confidence", *more], rows)
        draw_timeline(picture_of(target), timeline, self.names, title, merge)
        return mean

    def about_all(self, answers: dict[Path, list[tuple[Path, Any]]]) -> list[Path]:
        """The pictures, and for several videos predictions.csv: video, class, confidence."""
        files = [picture_of(target) for target in answers]
        if len(answers) < 2:
            return files
        more = self.names if self.told["probabilities"] else []
        rows = [
            (name.as_posix(), self.names[int(p.argmax())], f"{p.max():.6f}", *(f"{v:.6f}" for v in p if more))
            for named in answers.values()
            for name, p in named
        ]
        (first, ((name, _), *_)), *_ = answers.items()
        folder = first.parents[len(name.parts) - 1]
        table = folder / f"predictions{TABLE}"
        write_table(table, ["video", "class", "confidence", *more], rows)
        return [table, *files]


def averaged(timeline: np.ndarray) -> np.ndarray:
    """Sums of probabilities [F, C] as means; zeros stay where no clip showed a frame."""
    return timeline / np.maximum(timeline.sum(1, keepdims=True), np.finfo(np.float32).tiny)


def strip(sample: Sample) -> np.ndarray:
    """[N, 3] points of some frames of a clip side by side in x, z up."""
    ends = np.cumsum(sample["counts"])
    starts = ends - sample["counts"]
    chosen = np.unique(np.linspace(0, len(ends) - 1, SHOWN_FRAMES).astype(int))
    width = 1.1 * float(np.ptp(sample["coord"][:, 0]))
    parts = [sample["coord"][starts[f] : ends[f]] + [at * width, 0, 0] for at, f in enumerate(chosen)]
    return np.concatenate(parts) @ TO_VIEW.T
