"""Scores of point videos: accuracy of clips and of whole videos; frames, edit score and segmental F1; mIoU's two rules.

All in 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pointadapt.metrics import confusion_matrix, scores

OVERLAPS = (0.1, 0.25, 0.5)


@dataclass
class ClipVotes:
    """Predictions of videos from those of their clips: the softmax of every clip summed, then the argmax.

    The order of clips plays no role. ``expected`` of :meth:`scores` makes videos without a clip count as wrong, so that
    none silently leaves the score.
    """

    classes: int
    votes: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    clips: int = 0
    right_clips: int = 0

    def add(self, logits: Tensor, videos: Sequence[str], labels: Iterable[int]) -> None:
        """Clips' logits [n, classes], the name of each one's video and its label.

        Raises ValueError where clips of one video have different labels.
        """
        shares = logits.detach().double().softmax(1).cpu()
        for share, video, label in zip(shares, videos, labels, strict=True):
            if self.labels.setdefault(video, int(label)) != int(label):
                raise ValueError(f"video {video!r} has clips of the labels {self.labels[video]} and {int(label)}")
            self.votes[video] = self.votes[video] + share if video in self.votes else share
            self.clips += 1
            self.right_clips += int(share.argmax() == int(label))

    def predictions(self) -> dict[str, int]:
        """Video -> class."""
        return {video: int(vote.argmax()) for video, vote in self.votes.items()}

    def scores(self, expected: Mapping[str, int] | None = None) -> dict[str, Any]:
        """video_accuracy, clip_accuracy, macc and accuracy per class over videos, numbers of videos and clips.

        expected  video -> label of all videos of the split; those without a clip are wrong, and listed in ``missing``
        """
        found = self.predictions()
        missing = sorted(set(expected or ()) - set(found))
        names = sorted(found)
        truth = torch.tensor([self.labels[name] for name in names], dtype=torch.long)
        confusion = confusion_matrix(
            torch.tensor([found[name] for name in names], dtype=torch.long), truth, self.classes
        )
        of_class = confusion.sum(1).double()
        for name in missing:
            of_class[(expected or {})[name]] += 1
        hits = confusion.diag().double()
        per_class = [h / n if n else None for h, n in zip(hits.tolist(), of_class.tolist(), strict=True)]
        present = [value for value in per_class if value is not None]
        videos = len(names) + len(missing)
        return {
            "video_accuracy": float(hits.sum()) / max(videos, 1),
            "clip_accuracy": self.right_clips / max(self.clips, 1),
            "macc": sum(present) / max(len(present), 1),
            "accuracy": per_class,
            "videos": videos,
            "clips": self.clips,
            "missing": missing,
        }


Segment = tuple[int, int, int]


def segments(labels: Sequence[int], background: Sequence[int] = (), compat: bool = False) -> list[Segment]:
    """(label, start, end) of the runs of equal labels, half-open: end is the first frame behind.

    compat  the last segment ends a frame early, as in the evaluation published with HOI4D
    """
    found: list[Segment] = []
    start = 0
    for at in range(1, len(labels) + 1):
        if at == len(labels) or labels[at] != labels[start]:
            end = at - 1 if compat and at == len(labels) else at
            if labels[start] not in background:
                found.append((int(labels[start]), start, end))
            start = at
    return found


def edit_score(prediction: Sequence[int], truth: Sequence[int], background: Sequence[int] = ()) -> float:
    """1 - Levenshtein distance of the two sequences of segments / the longer one's length; 1 where both are empty."""
    ours = [label for label, *_ in segments(prediction, background)]
    theirs = [label for label, *_ in segments(truth, background)]
    row = list(range(len(theirs) + 1))
    for i, label in enumerate(ours, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(theirs, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (label != other))
    return 1 - row[-1] / max(len(ours), len(theirs), 1)


def segment_hits(
    prediction: Sequence[int],
    truth: Sequence[int],
    overlap: float,
    background: Sequence[int] = (),
    compat: bool = False,
) -> tuple[int, int, int]:
    """(tp, fp, fn): each predicted segment takes the true one of its label with the best IoU, if that reaches
    ``overlap`` and is not taken yet.

    compat  the last segments end a frame early; a last segment of one frame is then never right
    """
    theirs = segments(truth, background, compat)
    taken = [False] * len(theirs)
    hits = misses = 0
    for label, start, end in segments(prediction, background, compat):
        best, which = -1.0, -1
        for index, (other, first, last) in enumerate(theirs):
            union = max(end, last) - min(start, first)
            if other == label and union > 0:
                share = (min(end, last) - max(start, first)) / union
                if share > best:
                    best, which = share, index
        if which >= 0 and best >= overlap and not taken[which]:
            taken[which] = True
            hits += 1
        else:
            misses += 1
    return hits, misses, taken.count(False)


@dataclass
class SegmentScores:
    """Action segmentation: accuracy over all frames, mean edit score of videos, F1 with tp, fp, fn POOLED over videos.

    background  labels that make no segments
    ignore      frames with this truth are left out of everything
    compat      see :func:`segment_hits`
    """

    background: tuple[int, ...] = ()
    ignore: int = -1
    compat: bool = False
    right: int = 0
    frames: int = 0
    edits: list[float] = field(default_factory=list)
    counts: dict[float, list[int]] = field(default_factory=lambda: {overlap: [0, 0, 0] for overlap in OVERLAPS})

    def add(self, prediction: Any, truth: Any) -> None:
        """The labels of one whole video, two sequences of equal length. Raises ValueError otherwise."""
        ours, theirs = (torch.as_tensor(v).reshape(-1).tolist() for v in (prediction, truth))
        if len(ours) != len(theirs):
            raise ValueError(f"prediction has {len(ours)} frames, truth {len(theirs)}")
        kept = [(p, t) for p, t in zip(ours, theirs, strict=True) if t != self.ignore]
        if not kept:
            return
        ours, theirs = [p for p, _ in kept], [t for _, t in kept]
        self.frames += len(kept)
        self.right += sum(p == t for p, t in kept)
        self.edits.append(edit_score(ours, theirs, self.background))
        for overlap, total in self.counts.items():
            found = segment_hits(ours, theirs, overlap, self.background, self.compat)
            total[:] = [a + b for a, b in zip(total, found, strict=True)]

    def merge(self, other: SegmentScores) -> None:
        """Add the videos of another process."""
        self.right, self.frames = self.right + other.right, self.frames + other.frames
        self.edits += other.edits
        for overlap, total in self.counts.items():
            total[:] = [a + b for a, b in zip(total, other.counts[overlap], strict=True)]

    def scores(self) -> dict[str, Any]:
        """frame_accuracy, edit, f1@10, f1@25, f1@50, and how many videos and frames they are of."""
        return {
            "frame_accuracy": self.right / max(self.frames, 1),
            "edit": sum(self.edits) / max(len(self.edits), 1),
            **{f"f1@{round(100 * o)}": 2 * tp / max(2 * tp + fp + fn, 1) for o, (tp, fp, fn) in self.counts.items()},
            "videos": len(self.edits),
            "frames": self.frames,
        }


def video_miou(
    confusion: Tensor, rule: Literal["present", "synthia4d", "hoi4d"] = "present", skip: Sequence[int] = ()
) -> float:
    """Mean IoU of a matrix [C, C] of points over the classes but ``skip``.

    present    over the classes that occur in truth or prediction (this package's rule)
    synthia4d  over all classes; one that never occurs counts 0
    hoi4d      over the classes that occur in the truth (published with skip=(0, 1))
    """
    found = scores(confusion, absent="zero" if rule == "synthia4d" else "exclude")
    truth = confusion.sum(1).tolist()
    kept = [
        value
        for index, value in enumerate(found.iou)
        if index not in skip and value is not None and (rule != "hoi4d" or truth[index])
    ]
    return sum(kept) / max(len(kept), 1)
