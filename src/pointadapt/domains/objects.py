"""Objects: what classification of shapes and part segmentation share, and classification itself.

Shapes come from an :class:`~pointadapt.data.object_set.ObjectSet`. One pass sees the points that farthest point
sampling chooses; voting (``tta`` views) averages logits over random subsets under the training augmentation, 10 as
published.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.data.io import LABELLED
from pointadapt.data.object_arrays import ENDINGS, holds_shapes, read_arrays
from pointadapt.data.object_files import SHAPES, SURFACE_POINTS, is_shape, read_shape, walk
from pointadapt.data.object_set import ObjectSet
from pointadapt.data.object_transforms import OBJECT_TRANSFORMS, object_eval
from pointadapt.data.objects import ObjectItems, collate_objects, corrupted, thin
from pointadapt.data.scans import MODEL_VOXEL
from pointadapt.data.transforms import Sample, Transform
from pointadapt.domains.domain import TO_VIEW, Asked, Domain, Found, Show, autocast, process
from pointadapt.domains.files import as_folder, check_target
from pointadapt.errors import UserError
from pointadapt.files import write_text
from pointadapt.metrics import classification_scores, confusion_matrix, sum_over_processes
from pointadapt.run import Run
from pointadapt.tasks.classification import Classification

#: The random stream of voting; a view is the same for every shape and every run.
VIEWS = 10_000
TABLE = "predictions.csv"


class Objects(Domain):
    """A run on an ObjectSet.

    need      points a shape must have, known once the task is built
    channels  of ``Point.feat``, zeros behind the coordinates, for backbones that take colours and normals as well
    """

    dataset: ObjectSet

    def __init__(self, run: Run, dataset: ObjectSet) -> None:
        if run.points:
            dataset = replace(dataset, points=run.points)
        if run.select == "val" and not dataset.splits.get("val") and not dataset.holdout:
            dataset = replace(dataset, holdout=run.val_share)
        self.need, self.channels = 1, 3
        super().__init__(run, dataset)

    def settled(self, run: Run) -> Run:
        if run.mix3d:
            raise UserError("mix3d merges crops of scenes: leave it at 0 for shapes")
        return super().settled(run)

    @classmethod
    def remembered(cls, content: Any, run: Run, file: Path) -> ObjectSet:
        return ObjectSet.from_dict(content, run.data, file)

    def train_size(self) -> int:
        return len(self.dataset.items("train"))

    def transforms(self) -> dict[str, Any]:
        return OBJECT_TRANSFORMS

    def know(self, backbone: Any) -> None:
        """Remember what the backbone asks of a shape. Raises UserError where that is more points than it is given."""
        config = getattr(backbone, "config", None)  # a foundation model cuts no groups by itself
        self.need = max(getattr(config, "groups", 1), getattr(config, "group_size", 1))
        self.channels = backbone.in_channels
        if self.dataset.points < self.need:
            raise UserError(
                f"shapes of {self.dataset.points} points are too few for {self.run.backbone}, which needs at least "
                f"{self.need}: raise points in {self.dataset.file}, or --points"
            )

    # ------------------------------------------------------------------ training

    def items(self, split: str, train: bool = False) -> ObjectItems:
        return ObjectItems(self.dataset, split, train, self.augment, need=self.need, cache=self.run.cache)

    @property
    def augment(self) -> Transform:
        return OBJECT_TRANSFORMS[self.run.transform](self.dataset.points)

    def draw(self, items: ObjectItems, index: int, rng: np.random.Generator) -> Sample:
        return self.augment(items.shape(index), rng)

    def collate(self, samples: list[Sample], rng: np.random.Generator) -> dict[str, Any]:
        return self.pack(samples)

    def pack(self, samples: list[Sample]) -> dict[str, Any]:
        """A batch, its Point as the backbone wants it: one over single points takes a shape's radius for a metre."""
        batch = collate_objects(samples)
        if self.channels != 3:
            point = batch["point"]
            batch["point"] = point.but(feat=F.pad(point.feat, (0, self.channels - 3)), grid_size=MODEL_VOXEL)
        return batch

    # ------------------------------------------------------------------ one forward pass, or the mean of several

    def views(self, sample: Sample, views: int, corruption: tuple[str, int] | None = None) -> list[Sample]:
        """A prepared shape as the model sees it: once, its farthest points, or ``views`` times.

        A corruption acts on the farthest points, as on the published files; views are then of what it left.
        """
        chosen = object_eval(self.dataset.points)(sample, np.random.default_rng(0))
        if corruption is not None:
            sample = chosen = corrupted(chosen, *corruption)
        if views == 0:
            return [chosen]
        return [self.augment(sample, np.random.default_rng([VIEWS, view])) for view in range(views)]

    @torch.inference_mode()
    def logits(self, model: nn.Module, samples: list[Sample], device: torch.device) -> Tensor:
        """[B or N, classes] float32 on the CPU."""
        point = self.pack(samples)["point"].to(device)
        with autocast(self.run, device):
            return model(point).float().cpu()

    def batches(self, items: ObjectItems) -> Iterator[list[int]]:
        """Indices of this process's share, at most a training batch of them at once."""
        rank, processes = process()
        share = list(range(rank, len(items), processes))
        for first in range(0, len(share), self.run.batch_size):
            yield share[first : first + self.run.batch_size]


class Classified(Objects):
    """Classification of whole shapes; predictions go into one table."""

    target: ClassVar[str] = "label"
    options: ClassVar[dict[str, Any]] = {"probabilities": False}

    def task(self, backbone: Any) -> Classification:
        self.know(backbone)
        run, head = self.run, cast(Any, self.run.head)  # a head that is not for shapes is refused there
        return Classification(backbone, self.names, head=head, smoothing=run.smoothing, dropout=run.dropout)

    def probabilities(self, model: nn.Module, samples: list[Sample], device: torch.device, asked: Asked) -> Tensor:
        """[B, classes]: softmax of the logits' mean over views, view by view over all shapes."""
        seen = [self.views(sample, asked.views, asked.corruption) for sample in samples]
        logits = [self.logits(model, list(view), device) for view in zip(*seen, strict=True)]
        return torch.stack(logits).mean(0).softmax(1)

    def evaluate(
        self, model: nn.Module, items: ObjectItems, device: torch.device, asked: Asked, shown: int = 0
    ) -> Found:
        """OA, mean accuracy, accuracy per class and confusion; shows the shapes that are most surely wrong."""
        counts = torch.zeros(len(self.names), len(self.names), dtype=torch.int64)
        wrong: list[tuple[float, int, int, int]] = []
        for rows in self.batches(items):
            samples = [items.shape(row) for row in rows]
            confidence, found = self.probabilities(model, samples, device, asked).max(1)
            truth = torch.tensor([sample["label"] for sample in samples])
            counts += confusion_matrix(found, truth, len(self.names))
            misses = (found != truth).nonzero().flatten().tolist()
            wrong += [(-float(confidence[i]), rows[i], int(truth[i]), int(found[i])) for i in misses]
        counts = sum_over_processes(counts)
        scenes = []
        for _, row, truth_index, found_index in sorted(wrong)[:shown]:
            sample = self.views(items.shape(row), 0, asked.corruption)[0]
            title = f"{sample['name']}: {self.names[truth_index]} taken for {self.names[found_index]}"
            scenes.append({"name": title, "coord": sample["coord"] @ TO_VIEW.T})
        return Found(classification_scores(counts), {"confusion": counts.tolist()}, scenes, notes_on(asked))

    # ------------------------------------------------------------------ prediction

    def jobs(self, source: Path, out: Path | None, overwrite: bool) -> list[tuple[Path, Path]]:
        """(shape, table) pairs; one table for all."""
        if not source.exists():
            raise UserError(f"there is no shape {source}: check the path")
        if out is None:
            folder = source.with_name(f"{source.name}{LABELLED}")
            target = folder / TABLE if source.is_dir() else source.with_name(f"{source.stem}{LABELLED}.csv")
        elif out.suffix.lower() == ".csv" and not out.is_dir():
            target = out
        else:
            target = as_folder(out, ".csv") / TABLE
        if target.is_dir():
            raise UserError(f"{target} is a folder: give --out another name")
        check_target(target, source, overwrite)
        self.root = source if source.is_dir() else source.parent
        return [(file, target) for file in shape_files(source)]

    def label(self, model: nn.Module, source: Path, target: Path, device: torch.device, show: Show) -> Any:
        """[(name, probabilities [classes]), ...], one for each shape in the file."""
        asked = Asked(self.run.tta)
        name = source.relative_to(self.root).as_posix()
        answers = []
        shapes = list(read_shapes(source, self.dataset.points))
        for number, (suffix, coord) in enumerate(shapes, 1):
            prepared = self.dataset.prepare(coord, f"{source}{suffix}", self.need)
            (sample,) = thin([{**prepared, "name": name}], self.dataset.points)
            answers.append((f"{name}{suffix}", self.probabilities(model, [sample], device, asked)[0]))
            show(number / len(shapes), None)
        return answers

    def conclude(self, target: Path, answers: list[tuple[Path, Any]]) -> None:
        """The table: file, class, confidence and, if asked for, the probability of every class."""
        more = self.names if self.told["probabilities"] else []
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["file", "class", "confidence", *more])
        for name, probability in (row for _, rows in answers for row in rows):
            confidence, index = probability.max(0)
            values = [f"{p:.6f}" for p in probability.tolist()] if more else []
            table.writerow([name, self.names[int(index)], f"{float(confidence):.6f}", *values])
        write_text(target, text.getvalue())


def shape_files(source: Path) -> list[Path]:
    """Files of shapes below a folder in name order, or the file itself. Raises UserError where there is none."""
    if not source.is_dir():
        if not is_shape(source) and source.suffix.lower() not in ENDINGS:
            raise UserError(f"{source}: unknown format {source.suffix!r}; shapes are {', '.join(SHAPES)}")
        return [source]
    files = sorted(walk(source), key=lambda file: file.relative_to(source).as_posix())
    if not files:
        raise UserError(f"{source}: no shapes in this folder; supported are {', '.join(SHAPES)}")
    return files


def read_shapes(path: Path, points: int) -> Iterator[tuple[str, np.ndarray]]:
    """("", coord [N, 3]) of a file of one shape; ("#0", coord), ("#1", coord), ... of an array file with many."""
    if path.suffix.lower() in ENDINGS and holds_shapes(path):
        arrays = read_arrays(path)
        for row in range(len(arrays)):
            yield f"#{row}", arrays.shape(row)[0]
    else:
        yield "", read_shape(path, max(SURFACE_POINTS, 2 * points)).coord


def notes_on(asked: Asked) -> list[str]:
    """What was done to the shapes, for the report."""
    notes = [f"Scores are votes: logits averaged over {asked.views} augmented views."] if asked.views else []
    if asked.corruption:
        notes.append("Shapes corrupted by {} at severity {}.".format(*asked.corruption))
    return notes
