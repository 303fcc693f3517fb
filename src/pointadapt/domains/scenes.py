"""Scenes: semantic segmentation of scans of any size, scored on their original points, labelled tile by tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pointadapt.data.io import read_scan, write_labels
from pointadapt.data.labels import listed_points, parse_labels
from pointadapt.data.loader import ScanDataset, collate_batch
from pointadapt.data.presets import TRAIN_TRANSFORMS, eval_transform, finish, tta_views
from pointadapt.data.scan import Scan
from pointadapt.data.scans import UP, DataSet
from pointadapt.data.tiles import MARGIN, tiles
from pointadapt.data.transforms import CenterShift, Compose, Sample, fragments
from pointadapt.domains.domain import Asked, Domain, Found, Show, autocast, give_back_memory, process
from pointadapt.domains.files import file_jobs
from pointadapt.errors import UserError
from pointadapt.metrics import confusion_matrix, group_scores, scores, sum_over_processes, top_k_confusion
from pointadapt.run import Run
from pointadapt.tasks.segmentation import Segmentation


class Scenes(Domain):
    """A run on a :class:`~pointadapt.data.scans.DataSet`."""

    target: ClassVar[str] = "segment"
    dataset: DataSet

    def settled(self, run: Run) -> Run:
        if run.head != "linear":
            raise UserError(f"head {run.head!r} is for objects: scenes have a linear head")
        return super().settled(run)

    @classmethod
    def remembered(cls, content: Any, run: Run, file: Path) -> DataSet:
        return DataSet.from_dict(content, run.data, file)

    def train_size(self) -> int:
        return len(self.dataset.scans("train"))

    def transforms(self) -> dict[str, Any]:
        return TRAIN_TRANSFORMS

    def task(self, backbone: Any) -> Segmentation:
        return Segmentation(backbone, self.names, dropout=self.run.dropout)

    def items(self, split: str, train: bool = False) -> ScanDataset:
        cache, workers = self.run.cache, self.run.num_workers
        if train:
            _, count = parse_labels(self.run.labels)
            rows = listed_points(self.run.labels)
            points = count if rows is None else (Path(self.run.labels), rows)
            return ScanDataset(self.dataset, split, seed=self.run.seed, cache=cache, points=points, workers=workers)
        return ScanDataset(self.dataset, split, train=False, limit=self.run.tile, cache=cache, workers=workers)

    def draw(self, items: ScanDataset, index: int, rng: np.random.Generator) -> Sample:
        transform = TRAIN_TRANSFORMS[self.run.transform](self.dataset.voxel, self.run.points)
        few = {} if items.points is None else {"few_labels": True}
        return transform({**items[index], **few}, rng)

    def collate(self, samples: list[Sample], rng: np.random.Generator) -> dict[str, Any]:
        return collate_batch(samples, self.run.mix3d, rng, self.dataset.voxel)

    def evaluate(
        self, model: nn.Module, items: ScanDataset, device: torch.device, asked: Asked, shown: int = 0
    ) -> Found:
        """Scores on the original points of all scans, which are named, and the confusion [classes, classes].

        ``further`` has the mean IoU of the data set's groups of classes, and of its top_k with several labels.
        """
        if asked.corruption:
            raise UserError("corruptions are for single objects: leave the corruption out")
        rank, processes = process()
        counts = torch.zeros(len(self.names), len(self.names), dtype=torch.int64)
        tops = {k: counts.clone() for k in sorted({1, self.dataset.top_k})} if self.dataset.top_k else {}
        views: list[dict[str, Any]] = []
        for index in range(rank, len(items), processes):
            sample = items[index]
            probability = vote(model, sample, self.dataset.voxel, self.run, device, asked.views)
            found = probability.argmax(1)
            if len(views) < shown:
                kept = {key: sample[key] for key in ("name", "coord", "color", "segment")}
                views.append({**kept, "predicted": found.numpy(), "classes": self.names})
            counts += confusion_matrix(found, torch.from_numpy(sample["segment"]), len(self.names))
            for k in tops:
                tops[k] += top_k_confusion(probability, all_labels(sample), k)
            give_back_memory()
        counts = sum_over_processes(counts)
        result = scores(counts, asked.absent)
        further = group_scores(result.iou, self.names, self.dataset.groups)
        for k, matrix in tops.items():
            further[f"mIoU top-{k}, any label"] = scores(sum_over_processes(matrix), asked.absent).miou
        scans = [str(path.resolve()) for path in items.dataset.paths(items.split)]
        details = {"absent": asked.absent, "further": further, "scans": scans, "confusion": counts.tolist()}
        return Found(result.as_dict(), details, views)

    def jobs(self, source: Path, out: Path | None, overwrite: bool) -> list[tuple[Path, Path]]:
        return file_jobs(source, out, overwrite)

    def label(self, model: nn.Module, source: Path, target: Path, device: torch.device, show: Show) -> None:
        found, confidence = classify(model, self.dataset, read_scan(source), self.run, device, show)
        write_labels(source, target, self.dataset.raw_ids[found], confidence)


def all_labels(sample: Sample) -> Tensor:
    """[N, k] int64 class indices of every point, its first label in column 0."""
    first = torch.from_numpy(sample["segment"])[:, None]
    if "more_segments" not in sample:
        return first
    return torch.cat([first, torch.from_numpy(sample["more_segments"].astype(np.int64))], 1)


def classify(
    model: nn.Module,
    dataset: DataSet,
    scan: Scan,
    run: Run,
    device: torch.device,
    show: Show = lambda share, name: None,
) -> tuple[np.ndarray, np.ndarray]:
    """(class index [N] int64, confidence [N] float32 = its mean probability) of a scan, tile by tile."""
    size, done = len(scan), 0
    found, confidence = np.zeros(size, np.int64), np.zeros(size, np.float32)
    for rows, core in tiles(upright(scan, dataset), dataset.grid_size, run.tile, MARGIN * dataset.grid_size):
        probability = vote(model, dataset.prepare(scan, rows), dataset.voxel, run, device, run.tta)
        best, index = probability[torch.from_numpy(core)].max(1)
        found[rows[core]], confidence[rows[core]] = index.numpy(), best.numpy()
        done += int(core.sum())
        show(done / size, None)
        give_back_memory()
    return found, confidence


def upright(scan: Scan, dataset: DataSet) -> np.ndarray:
    """[N, 3] float32 coordinates from the scan's corner, z up: tiles are cut in x and y."""
    corner = scan.coord.min(0)
    return ((scan.coord - corner) @ UP[dataset.up].T).astype(np.float32)


@torch.inference_mode()
def vote(model: nn.Module, sample: Sample, voxel: float, run: Run, device: torch.device, views: int) -> Tensor:
    """[N, classes] float32 on the CPU: class probabilities of every point of a sample small enough for one pass.

    0 views: one point per voxel speaks for all in it. Otherwise the mean over the published test-time views, each
    cut into fragments that together hold every point.
    """
    rng = np.random.default_rng(0)  # transforms want one; those of evaluation draw nothing
    if views == 0:
        sample = eval_transform(voxel)(sample, rng)
        return probabilities(model, sample, voxel, run, device)[torch.from_numpy(sample["inverse"])]
    centred = CenterShift()(sample, rng)
    total: Tensor | None = None
    last = Compose(finish())
    for view in tta_views()[:views]:
        for part in fragments(view(centred, rng), voxel, rng):
            probability = probabilities(model, last(part, rng), voxel, run, device)
            if total is None:
                total = torch.zeros(len(sample["coord"]), probability.shape[1])
            total.index_add_(0, torch.from_numpy(part["index"]), probability)
    assert total is not None
    return total / total.sum(1, keepdim=True)


def probabilities(model: nn.Module, sample: Sample, voxel: float, run: Run, device: torch.device) -> Tensor:
    """[M, classes] float32 on the CPU, softmax of one forward pass."""
    point = collate_batch([sample], grid_size=voxel)["point"].to(device)
    with autocast(run, device):
        logits = model(point)
    return logits.float().softmax(1).cpu()
