"""Features and classes of the samples of any folder through a frozen backbone, for distances of data sets.

What a sample is, and its feature (inferred for PointATA, after ORCA):

    shapes               a shape; the mean of its patch tokens ("embedder": before any block, "output": behind the last)
                         or, where the backbone works on single points, of its points' features
    action               a clip; the mean over the tokens of all its frames
    action_segmentation  a frame; the mean over its tokens
    video_segmentation   a token, whose group is labelled by half, and has one class in 60 % of its labelled points
                         (videos through a backbone over single points: its points take the place of tokens)
    scenes               a voxel; its dense features, all levels of the backbone brought up to it

Every class gets as many samples as any other, as far as it has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pointadapt.analysis.distance import At, Features
from pointadapt.analysis.transport import balanced
from pointadapt.backbones.backbone import Backbone
from pointadapt.data.loader import ScanDataset, collate_batch
from pointadapt.data.object_set import UP, ObjectSet
from pointadapt.data.object_transforms import object_eval
from pointadapt.data.objects import collate_objects, prepare, thin
from pointadapt.data.open import open_dataset
from pointadapt.data.presets import eval_transform
from pointadapt.data.scans import MODEL_VOXEL, DataSet
from pointadapt.data.synthetic_shapes import SHAPE_CLASSES, shapes
from pointadapt.data.video_set import VideoSet
from pointadapt.data.videos import VideoItems, collate_videos
from pointadapt.errors import UserError
from pointadapt.ops.frames import group_labels
from pointadapt.ops.segment import segment_mean
from pointadapt.point import Point

#: A folder of this name that does not exist stands for the bundled generator of shapes.
PROCEDURAL = "procedural"
#: Most scans that are read, and voxels of a scan that are computed at once.
SCANS, TILE = 16, 60_000
#: Shapes and clips that are computed at once.
SHAPES, CLIPS = 8, 4


def folder_features(
    backbone: Backbone, folder: Path | str, limit: int = 1000, split: str = "train", at: At = "embedder", seed: int = 0
) -> Features:
    """At most ``limit`` samples of a split of a folder with a dataset.yaml, without augmentation.

    Raises UserError where the backbone cannot read what the folder holds, or the split is empty.
    """
    if str(folder) == PROCEDURAL and not Path(folder).exists():
        return procedural_features(backbone, limit, at, seed)
    dataset = open_dataset(folder)
    if isinstance(dataset, DataSet):
        return voxel_features(backbone, dataset, limit, split, seed)
    if isinstance(dataset, VideoSet):
        return video_features(backbone, dataset, limit, split, at, seed)
    return shape_features(backbone, dataset, limit, split, at, seed)


@contextmanager
def in_eval(backbone: Backbone) -> Iterator[torch.device]:
    """Yields the backbone's device."""
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            yield next(backbone.parameters()).device
    finally:
        backbone.train(was_training)


def patches(backbone: Any, point: Point, at: At) -> Any:
    return backbone.tokenizer(point) if at == "embedder" else backbone(point)


def procedural_features(backbone: Backbone, limit: int, at: At, seed: int) -> Features:
    """The bundled generator's shapes, which nano-mae was pretrained on, with y up."""
    coord, label = shapes(seed, limit)
    parts = []
    with in_eval(backbone) as device:
        for stack in torch.from_numpy((coord @ UP["z"].T).astype(np.float32)).split(16):
            rows = stack.flatten(0, 1).to(device)
            point = Point(coord=rows, feat=rows, offset=stack.shape[1] * torch.arange(1, len(stack) + 1, device=device))
            parts.append(shape_means(backbone, point, at))
    return Features(torch.cat(parts), [SHAPE_CLASSES[y] for y in label])


# --- shapes ---------------------------------------------------------------------------------------------------------


def shape_features(
    backbone: Backbone, dataset: ObjectSet, limit: int, split: str, at: At = "embedder", seed: int = 0
) -> Features:
    """Features of a class-balanced part of a split, without augmentation; the backbone is used in eval mode."""
    items = dataset.items(split)
    if not items:
        raise UserError(f"{dataset.file}: the split {split!r} lists no shapes; name another split")
    chosen = [items[row] for row in balanced([item.target for item in items], limit, seed)]
    need = max(getattr(backbone.config, "groups", 1), getattr(backbone.config, "group_size", 1))
    fixed, parts = object_eval(dataset.points), []
    with in_eval(backbone) as device:
        for first in range(0, len(chosen), SHAPES):
            some = chosen[first : first + SHAPES]
            made = thin([prepare(dataset, item, need) for item in some], dataset.points)
            samples = [fixed({**sample, "name": ""}, np.random.default_rng(0)) for sample in made]
            parts.append(shape_means(backbone, collate_objects(samples)["point"].to(device), at))
    return Features(torch.cat(parts), [dataset.targets[item.target] for item in chosen])


def shape_means(backbone: Backbone, point: Point, at: At) -> Tensor:
    """[B, C] means over the patch tokens of each cloud, or over its points."""
    if backbone.kind == "tokens":
        return patches(backbone, point, at).part("patch").mean(1).float().cpu()
    return dense_means(backbone, point)


def dense_means(backbone: Backbone, point: Point) -> Tensor:
    """[B, C] means of the points' features."""
    return segment_mean(dense_points(backbone, point), point.batch, point.num_clouds).float().cpu()


def dense_points(backbone: Backbone, point: Point) -> Tensor:
    """[N, C] of clouds in the unit sphere, its radius taken for a metre; colours and normals are zero."""
    return backbone.dense(point.but(feat=F.pad(point.coord, (0, backbone.in_channels - 3)), grid_size=MODEL_VOXEL))


# --- scenes ----------------------------------------------------------------------------------------------------------


def voxel_features(backbone: Backbone, dataset: DataSet, limit: int, split: str, seed: int) -> Features:
    """Voxels of at most SCANS scans."""
    if backbone.kind != "points":
        raise UserError(
            f"{backbone.name_or_path} sees groups of points of single objects, and {dataset.folder} holds scenes: "
            "measure them with a backbone over single points, such as nano or sonata"
        )
    scans = dataset.scans(split)
    some = [scans[i] for i in sorted(np.random.default_rng(seed).permutation(len(scans))[:SCANS])]
    items = ScanDataset(replace(dataset, splits={**dataset.splits, split: tuple(some)}), split, train=False, limit=TILE)
    fixed, found, labels = eval_transform(dataset.voxel), [], []
    with in_eval(backbone) as device:
        for index in range(len(items)):
            sample = fixed(items[index], np.random.default_rng(0))
            point = collate_batch([sample], grid_size=dataset.voxel)["point"].to(device)
            segment = np.asarray(sample["segment"])
            rows = np.flatnonzero(segment >= 0)
            rows = rows[balanced(segment[rows], limit, seed)] if len(rows) else rows
            found.append(backbone.dense(point)[torch.from_numpy(rows).to(device)].float().cpu())
            labels.append(segment[rows])
    return evened(torch.cat(found), np.concatenate(labels), dataset.names, limit, seed)


# --- videos ----------------------------------------------------------------------------------------------------------


def video_features(backbone: Backbone, dataset: VideoSet, limit: int, split: str, at: At, seed: int) -> Features:
    config = backbone.config
    groups, size = (getattr(config, name, 1) for name in ("groups", "group_size"))
    items = VideoItems(dataset, split, train=False, need=max(groups, size))
    per_clip = {"action": 1, "action_segmentation": dataset.frames, "video_segmentation": dataset.frames * groups}
    wanted = limit if dataset.task == "action" else max(4 * math.ceil(limit / per_clip[dataset.task]), 16)
    rows = balanced([items.videos[clip.video].target or 0 for clip in items.clips], wanted, seed)
    found, labels = [], []
    with in_eval(backbone) as device:
        for first in range(0, len(rows), CLIPS):
            batch = collate_videos([items.clip(int(row)) for row in rows[first : first + CLIPS]])
            point = batch["point"].to(device)
            if backbone.kind == "points" and dataset.task == "video_segmentation":
                feat, label = dense_points(backbone, point).float(), batch["segment"]
            elif backbone.kind == "points":
                feat = dense_means(backbone, point)[:, None]  # [B T, 1, C]
            else:
                tokens = patches(backbone, point, at)
                feat = tokens.part("patch").float()  # [B T, G, D]
            if dataset.task == "action":
                feat, label = feat.unflatten(0, (-1, dataset.frames)).mean((1, 2)), batch["label"]
            elif dataset.task == "action_segmentation":
                feat, label = feat.mean(1), batch["frame_label"].flatten()
            elif backbone.kind == "tokens":
                label = group_labels(point, tokens.center, size, batch["segment"].to(device)).flatten().cpu()
                feat = feat.flatten(0, 1)
            found.append(feat.cpu()[label >= 0])
            labels.append(label[label >= 0].numpy())
    return evened(torch.cat(found), np.concatenate(labels), dataset.names, limit, seed)


def evened(features: Tensor, labels: np.ndarray, names: list[str], limit: int, seed: int) -> Features:
    if not len(labels):
        raise UserError("there are no labelled samples in this split: name another")
    rows = balanced(labels, limit, seed)
    return Features(features[torch.from_numpy(rows)], [names[y] for y in labels[rows]])
