"""Transforms of single objects: how points are chosen, and the augmentations of the published protocols.

As for scenes a transform is ``(sample, rng) -> sample``, all randomness comes from ``rng`` and inputs are never written
to. Objects stand on the y axis here (see :class:`pointadapt.data.object_set.ObjectSet`). Which augmentation was used is
worth up to 3.5 points of accuracy on ScanObjectNN, so each preset has a name that reports show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pointadapt.data.transforms import Compose, NormalizeCoord, RandomJitter, RandomRotate, RandomScale, Sample, take
from pointadapt.ops.neighbors import farthest_points

UP_AXIS = "y"
#: Points that are sampled side by side: as many as fit the processor's cache.
AT_ONCE = 1 << 17


def pool_size(points: int) -> int:
    """Points that training draws ``points`` from: 1200 for 1024, 2400 for 2048, as published."""
    return points * 75 // 64


def sorted_rows(coord: np.ndarray) -> np.ndarray:
    """[N] rows by x, then y, then z: an order that belongs to the set of points."""
    order = np.argsort(coord[:, 0], kind="stable")
    same = np.diff(coord[order, 0]) == 0
    if same.any():  # y and z decide only there: a third of the time of sorting by all three
        tied = np.append(same, False) | np.insert(same, 0, False)
        some = order[tied]
        order[tied] = some[np.lexsort((coord[some, 2], coord[some, 1], coord[some, 0]))]
    return order


def farthest_rows(shapes: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """[min(count, N)] rows of each shape [N, 3] by farthest point sampling, from the point farthest from the centroid.

    Rows should be in an order that belongs to the set (:func:`sorted_rows`); then the choice does too. The first rows
    of a long sample are the short sample. Shapes of any sizes are sampled side by side: they are filled up with copies
    of their first choice, which are never chosen again.
    """
    size = max(len(coord) for coord in shapes)
    together = max(AT_ONCE // size, 1)
    if len(shapes) > together:
        stacks = (shapes[at : at + together] for at in range(0, len(shapes), together))
        return [rows for stack in stacks for rows in farthest_rows(stack, count)]
    start = [int(((coord - coord.mean(0)) ** 2).sum(1).argmax()) for coord in shapes]
    filled = [
        np.concatenate([coord, np.broadcast_to(coord[at], (size - len(coord), 3))])
        for coord, at in zip(shapes, start, strict=True)
    ]
    stack = torch.from_numpy(np.stack(filled).astype(np.float32))
    rows = farthest_points(stack, min(count, size), start=torch.tensor(start)).numpy()
    return [chosen[: len(coord)] for chosen, coord in zip(rows, shapes, strict=True)]


# --- choosing points ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomPoints:
    """``points`` random ones in random order; a smaller shape keeps all of its own."""

    points: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return take(sample, rng.permutation(len(sample["coord"]))[: self.points])


@dataclass(frozen=True)
class FirstPoints:
    """The first ``points``: of rows in the order of farthest point sampling, the sample of that size."""

    points: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return take(sample, np.arange(min(self.points, len(sample["coord"]))))


@dataclass(frozen=True)
class DropPoints:
    """PointNet++'s random dropout: a share of the points, itself uniform in [0, most], becomes copies of the first."""

    most: float = 0.875

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        rows = np.arange(len(sample["coord"]))
        rows[rng.random(len(rows)) < rng.uniform(0, self.most)] = 0
        return take(sample, rows)


# --- geometry -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AxisScale:
    """Each axis times its own factor, uniform in [low, high]."""

    low: float = 2 / 3
    high: float = 3 / 2

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return {**sample, "coord": sample["coord"] * rng.uniform(self.low, self.high, 3).astype(np.float32)}


@dataclass(frozen=True)
class Shift:
    """Along each axis by its own amount, uniform in [-limit, limit]."""

    limit: float = 0.2

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return {**sample, "coord": sample["coord"] + rng.uniform(-self.limit, self.limit, 3).astype(np.float32)}


#: Any angle about the upward axis through the origin.
TURN = RandomRotate(np.pi, UP_AXIS, (0.0, 0.0, 0.0), p=1.0)


# --- presets --------------------------------------------------------------------------------------------------------


def rotate(points: int) -> Compose:
    """Any turn about the upward axis: IDPT, ReCon, ACT and PointGST on ScanObjectNN."""
    return Compose([RandomPoints(points), TURN])


def scale_translate(points: int) -> Compose:
    """Axes scaled by U[2/3, 3/2], shifted by U[-0.2, 0.2]: Point-MAE, DAPT, PointLoRA, PointGPT; all on ModelNet40."""
    return Compose([RandomPoints(points), AxisScale(), Shift()])


def scale_rotate(points: int) -> Compose:
    """Axes scaled by U[0.9, 1.1], back into the unit sphere, any turn: APPT, Point-PEFT."""
    return Compose([RandomPoints(points), AxisScale(0.9, 1.1), NormalizeCoord(), TURN])


def parts(points: int) -> Compose:
    """One factor U[0.8, 1.25] and a shift by U[-0.1, 0.1]: part segmentation on ShapeNetPart."""
    return Compose([RandomPoints(points), RandomScale(0.8, 1.25), Shift(0.1)])


def jitter(points: int) -> Compose:
    """Any turn, PointNet++'s noise (0.01, clipped at 0.05) and dropout of points: for noisy scans."""
    return Compose([RandomPoints(points), TURN, RandomJitter(0.01, 0.05), DropPoints(0.5)])


def none(points: int) -> Compose:
    """Random points, nothing else."""
    return Compose([RandomPoints(points)])


OBJECT_TRANSFORMS: dict[str, Callable[[int], Compose]] = {
    "scale_translate": scale_translate,
    "rotate": rotate,
    "scale_rotate": scale_rotate,
    "parts": parts,
    "jitter": jitter,
    "none": none,
}


def object_eval(points: int) -> Compose:
    """Evaluation of shapes in the order of farthest point sampling: the same points whatever the file's order."""
    return Compose([FirstPoints(points)])
