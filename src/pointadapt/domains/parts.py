"""Part segmentation of shapes: scored on the points the model sees, files labelled on all of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from pointadapt.data.io import read_scan, write_labels
from pointadapt.data.object_arrays import ENDINGS, holds_shapes
from pointadapt.data.object_files import TEXT, read_columns
from pointadapt.data.object_transforms import object_eval
from pointadapt.data.objects import ObjectItems, thin
from pointadapt.data.transforms import Sample
from pointadapt.domains.domain import TO_VIEW, Asked, Found, Show
from pointadapt.domains.files import file_jobs
from pointadapt.domains.objects import VIEWS, Objects, notes_on, shape_files
from pointadapt.errors import UserError
from pointadapt.files import read_text, write_text
from pointadapt.metrics import confusion_matrix, part_scores, shape_miou, sum_over_processes
from pointadapt.run import Run
from pointadapt.tasks.parts import PartSegmentation


class Parts(Objects):
    """Every point gets a part of its shape's category."""

    target: ClassVar[str] = "segment"
    options: ClassVar[dict[str, Any]] = {"category": None}

    def settled(self, run: Run) -> Run:
        if run.head != "mlp3":
            raise UserError(f"head {run.head!r} is for classification: part segmentation has its published head, mlp3")
        if run.smoothing:
            raise UserError("smoothing is for classification: leave it at 0 for part segmentation")
        return super().settled(run)

    def task(self, backbone: Any) -> PartSegmentation:
        self.know(backbone)
        return PartSegmentation(backbone, self.names, self.dataset.categories, dropout=self.run.dropout)

    def vote(self, model: Any, samples: list[Sample], device: torch.device, views: int) -> list[Tensor]:
        """[N, parts] probabilities of the points of each sample, zero for parts of other categories.

        Views are augmented, not other points; what a view leaves out gets the votes of the others.
        """
        counts = [len(sample["coord"]) for sample in samples]
        seen = [{**sample, "index": np.arange(count)} for sample, count in zip(samples, counts, strict=True)]
        if views == 0:
            logits = self.logits(model, seen, device)
        else:
            starts = np.cumsum([0, *counts[:-1]])
            logits = torch.zeros(sum(counts), len(self.names))
            for view in range(views):
                drawn = [self.augment(sample, np.random.default_rng([VIEWS, view])) for sample in seen]
                rows = np.concatenate([start + one["index"] for start, one in zip(starts, drawn, strict=True)])
                logits.index_add_(0, torch.from_numpy(rows), self.logits(model, drawn, device))
            logits /= views
        category = torch.tensor([sample["category"] for sample in samples]).repeat_interleave(torch.tensor(counts))
        return list(model.restrict(logits, category).softmax(1).split(counts))

    def evaluate(
        self, model: nn.Module, items: ObjectItems, device: torch.device, asked: Asked, shown: int = 0
    ) -> Found:
        """Instance and class mIoU, IoU per category and per part, confusion of points; shows the worst shapes."""
        if asked.corruption:
            raise UserError("corrupted points have no known part: corruptions are for classification")
        counts = torch.zeros(len(self.names), len(self.names), dtype=torch.int64)
        sums = torch.zeros(2, len(self.dataset.categories), dtype=torch.float64)  # of shapes' mIoU; of shapes
        worst: list[tuple[float, int]] = []
        own = [list(parts) for parts in self.dataset.categories.values()]
        for rows in self.batches(items):
            samples = [items[row] for row in rows]
            for row, sample, votes in zip(rows, samples, self.vote(model, samples, device, asked.views), strict=True):
                found, truth = votes.argmax(1), torch.from_numpy(sample["segment"])
                miou = shape_miou(found, truth, own[sample["category"]])
                sums[:, sample["category"]] += torch.tensor([miou, 1.0], dtype=torch.float64)
                counts += confusion_matrix(found, truth, len(self.names))
                worst = sorted([*worst, (miou, row)])[:shown]
        counts, sums = sum_over_processes(counts), sum_over_processes(sums)
        scenes = []
        for miou, row in worst:
            sample = items[row]
            predicted = self.vote(model, [sample], device, asked.views)[0].argmax(1).numpy()
            title = f"{sample['name']}: mIoU {100 * miou:.1f}"
            kept = {"coord": sample["coord"] @ TO_VIEW.T, "segment": sample["segment"], "classes": self.names}
            scenes.append({**kept, "name": title, "predicted": predicted})
        found_scores, by_category = part_scores(counts, sums[0], sums[1])
        named = dict(zip(self.dataset.categories, by_category, strict=True))
        return Found(found_scores, {"categories": named, "confusion": counts.tolist()}, scenes, notes_on(asked))

    # ------------------------------------------------------------------ prediction

    def jobs(self, source: Path, out: Path | None, overwrite: bool) -> list[tuple[Path, Path]]:
        jobs = file_jobs(source, out, overwrite, shape_files)
        if len(jobs) == 1:
            self.category_of(jobs[0][0])
        return jobs

    def category_of(self, source: Path) -> int:
        """Index of a shape's category: as told, that of a folder it lies in, or the only one."""
        names, told = list(self.dataset.categories), self.told["category"]
        if told is not None:
            if told not in self.dataset.aliases:
                raise UserError(f"category {told!r} is unknown: use one of {', '.join(names)}")
            return self.dataset.aliases[told]
        for folder in source.resolve().parents:
            if folder.name in self.dataset.aliases:
                return self.dataset.aliases[folder.name]
        if len(names) == 1:
            return 0
        raise UserError(
            f"{source}: it lies in no folder of a category; say what it is with --category, one of {', '.join(names)}"
        )

    def label(self, model: nn.Module, source: Path, target: Path, device: torch.device, show: Show) -> None:
        """Every point of the file takes the part of the nearest point that the model saw."""
        coord = read_points(source)
        whole = {**self.dataset.prepare(coord, source, self.need), "category": self.category_of(source)}
        (pool,) = thin([whole], self.dataset.points)
        sample = object_eval(self.dataset.points)(pool, np.random.default_rng(0))
        confidence, part = self.vote(model, [sample], device, self.run.tta)[0].max(1)
        nearest = cKDTree(sample["coord"]).query(whole["coord"])[1]
        parts, surely = np.zeros(len(coord), np.int64), np.zeros(len(coord), np.float32)
        parts[whole["index"]], surely[whole["index"]] = part.numpy()[nearest], confidence.numpy()[nearest]
        if source.suffix.lower() in TEXT:
            write_columns(source, target, parts, surely)
        else:
            write_labels(source, target, parts, surely)
        show(1.0, None)


def read_points(path: Path) -> np.ndarray:
    """[N, 3] points of one shape, in the file's order. Raises UserError for files that are no cloud of one shape."""
    if path.suffix.lower() in TEXT:
        return read_columns(path).coord
    if path.suffix.lower() == ".off":
        raise UserError(f"{path}: a mesh has no points that could be labelled: give a cloud of points")
    if path.suffix.lower() in ENDINGS and holds_shapes(path):
        raise UserError(f"{path}: it holds many shapes; parts are written into files of one shape each")
    return read_scan(path).coord


def write_columns(source: Path, target: Path, parts: np.ndarray, confidence: np.ndarray) -> None:
    """The lines of a text file with two columns more: part and confidence. Comments (behind a #) stay."""
    lines = [line for line in read_text(source).splitlines() if line.strip()]
    between = "," if "," in lines[0] else " "
    told = [at for at, line in enumerate(lines) if line.split("#")[0].strip()]  # a heading or none, then the points
    added = [("part", "confidence")] * (len(told) - len(parts))
    added += [(str(part), f"{share:.6f}") for part, share in zip(parts, confidence, strict=True)]
    for at, more in zip(told, added, strict=True):
        text, sign, comment = lines[at].partition("#")
        lines[at] = between.join([text.rstrip(), *more]) + (f" {sign}{comment}" if sign else "")
    write_text(target, "\n".join([*lines, ""]))
