"""Transforms: what happens to a scan between the file and the model, in training and in evaluation.

A sample is a dict of numpy arrays, a transform a callable ``(sample, rng) -> new sample``; the caller's dict and
arrays are never written to. All randomness comes from the ``rng`` handed in. Keys:

    coord      [N, 3] float32, metres times the data set's scale     color    [N, 3] float32, 0-255, zeros if missing
    normal     [N, 3] float32, zeros if missing                      segment  [N] int64 class index, -1 = ignored
    grid_coord [N, 3] int64, voxel indices                           feat     [N, C] float32, made by Collect
    inverse    [N_before] int64, row of each point after GridSample  origin_segment  [N_before], its label
    few_labels True where a training point with a label is rare: no transform then drops it for one without

Published sequences of them are in presets.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from pointadapt.ops.voxel import grid_index, grid_sample, voxelize

Sample = dict[str, Any]
Transform = Callable[[Sample, np.random.Generator], Sample]

PER_POINT = ("coord", "color", "normal", "segment", "more_segments", "grid_coord", "feat", "index")


def take(sample: Sample, rows: np.ndarray) -> Sample:
    """The sample with only these rows of everything that belongs to single points; ``inverse`` no longer holds."""
    return {k: v[rows] if k in PER_POINT else v for k, v in sample.items() if k != "inverse"}


def rare(sample: Sample) -> np.ndarray:
    """Rows of labelled points that must not get lost: all where labels are few, else none."""
    return np.flatnonzero(sample["segment"] >= 0) if sample.get("few_labels") else np.empty(0, np.int64)


@dataclass(frozen=True)
class Compose:
    """Transforms one after the other."""

    steps: Sequence[Transform]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for step in self.steps:
            sample = step(sample, rng)
        return sample


# --- geometry -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CenterShift:
    """Origin to the centre of the bounding box in x and y, and to its lowest point in z if ``apply_z``."""

    apply_z: bool = True

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        low, high = sample["coord"].min(0), sample["coord"].max(0)
        shift = (low + high) / 2
        shift[2] = low[2] if self.apply_z else 0
        return {**sample, "coord": sample["coord"] - shift}


@dataclass(frozen=True)
class NormalizeCoord:
    """Centroid to the origin, the farthest point to distance 1, for single objects."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return {**sample, "coord": unit_sphere(sample["coord"])}


def unit_sphere(coord: np.ndarray) -> np.ndarray:
    """[N, 3] around the centroid, the farthest point at distance 1; points of one place are centred alone."""
    centred = coord - coord.mean(0)
    radius = np.sqrt((centred**2).sum(1).max())
    return (centred / radius if radius > 0 else centred).astype(coord.dtype)


@dataclass(frozen=True)
class Scale:
    """Coordinates times a fixed factor."""

    factor: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return {**sample, "coord": sample["coord"] * np.float32(self.factor)}


@dataclass(frozen=True)
class Rotate:
    """Around one axis through ``center`` (None: the bounding box's) by a fixed angle in radians; normals turn along."""

    angle: float
    axis: str = "z"
    center: tuple[float, float, float] | None = (0.0, 0.0, 0.0)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        coord = sample["coord"]
        center = np.asarray((coord.min(0) + coord.max(0)) / 2 if self.center is None else self.center, coord.dtype)
        turn = rotation(self.axis, self.angle).T.astype(np.float32)
        out = {**sample, "coord": (coord - center) @ turn + center}
        return {**out, "normal": sample["normal"] @ turn} if "normal" in sample else out


def rotation(axis: str, angle: float) -> np.ndarray:
    """[3, 3] matrix turning column vectors by ``angle`` around ``axis`` (right hand)."""
    a = "xyz".index(axis)
    b, c = (a + 1) % 3, (a + 2) % 3
    turn = np.eye(3)
    turn[b, b] = turn[c, c] = np.cos(angle)
    turn[c, b] = np.sin(angle)
    turn[b, c] = -turn[c, b]
    return turn


@dataclass(frozen=True)
class RandomRotate:
    """As :class:`Rotate` by a random angle, uniform in [-limit, limit], with probability ``p``."""

    limit: float
    axis: str = "z"
    center: tuple[float, float, float] | None = None
    p: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        return Rotate(rng.uniform(-self.limit, self.limit), self.axis, self.center)(sample, rng)


@dataclass(frozen=True)
class RandomScale:
    """Isotropic scale, uniform in [low, high]."""

    low: float = 0.9
    high: float = 1.1

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return Scale(rng.uniform(self.low, self.high))(sample, rng)


@dataclass(frozen=True)
class Flip:
    """Mirror x and/or y; normals too."""

    axes: tuple[int, ...] = (0, 1)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sign = np.ones(3, np.float32)
        sign[list(self.axes)] = -1
        return {**sample, **{k: sample[k] * sign for k in ("coord", "normal") if k in sample}}


@dataclass(frozen=True)
class RandomFlip:
    """Mirror x, and independently y, each with probability ``p``."""

    p: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        axes = tuple(axis for axis in (0, 1) if rng.random() < self.p)
        return Flip(axes)(sample, rng) if axes else sample


@dataclass(frozen=True)
class RandomJitter:
    """Gaussian noise on each coordinate, clipped."""

    sigma: float = 0.005
    clip: float = 0.02

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        noise = rng.standard_normal(sample["coord"].shape, np.float32) * np.float32(self.sigma)
        return {**sample, "coord": sample["coord"] + noise.clip(-self.clip, self.clip)}


@dataclass(frozen=True)
class ElasticDistortion:
    """Displacement by smoothed noise on a coarse grid, for each (granularity, magnitude); normals stay.

    Noise lives on a dense grid over the scan's extent, so crop scans of more than some 100 m / granularity first.
    """

    params: tuple[tuple[float, float], ...] = ((0.2, 0.4), (0.8, 1.6))
    p: float = 0.95

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        coord = sample["coord"]
        for granularity, magnitude in self.params:
            low = coord.min(0)
            shape = ((coord - low).max(0) // granularity).astype(int) + 3
            noise = rng.standard_normal((3, *shape), np.float32)
            for _ in range(2):
                for axis in (1, 2, 3):
                    noise = ndimage.uniform_filter1d(noise, 3, axis, mode="constant")
            at = ((coord - low) / np.float32(granularity) + 1).T  # node 0 lies one cell below the lowest point
            moved = np.stack([ndimage.map_coordinates(axis, at, order=1) for axis in noise], 1)
            coord = coord + moved * np.float32(magnitude)
        return {**sample, "coord": coord}


# --- colour (left alone where it is missing, that is all zeros) -----------------------------------------------------


@dataclass(frozen=True)
class ChromaticAutoContrast:
    """Blend, by a random share, with the colour stretched to the full range of each channel."""

    p: float = 0.2

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p or not sample["color"].any():
            return sample
        color = sample["color"]
        low, high = color.min(0), color.max(0)
        stretched = (color - low) * (255 / np.maximum(high - low, 1e-6))
        share = np.float32(rng.random())
        return {**sample, "color": np.where(high > low, (1 - share) * color + share * stretched, color)}


@dataclass(frozen=True)
class ChromaticTranslation:
    """One random shift per channel, uniform within ``ratio * 255``."""

    p: float = 0.95
    ratio: float = 0.05

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p or not sample["color"].any():
            return sample
        shift = rng.uniform(-self.ratio, self.ratio, 3).astype(np.float32) * 255
        return {**sample, "color": (sample["color"] + shift).clip(0, 255)}


@dataclass(frozen=True)
class ChromaticJitter:
    """Gaussian noise of ``std * 255`` on every point and channel."""

    p: float = 0.95
    std: float = 0.05

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p or not sample["color"].any():
            return sample
        noise = rng.standard_normal(sample["color"].shape, np.float32) * np.float32(self.std * 255)
        return {**sample, "color": (sample["color"] + noise).clip(0, 255)}


# --- which points ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomDropout:
    """Keep ``int((1 - ratio) * N)`` points, without replacement, with probability ``p``; all labelled ones if few."""

    ratio: float = 0.2
    p: float = 1.0

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        size = len(sample["coord"])
        keep = rng.choice(size, max(int(size * (1 - self.ratio)), min(size, 1)), replace=False)
        return take(sample, np.union1d(keep, rare(sample)))


@dataclass(frozen=True)
class SphereCrop:
    """The points nearest to a random point: at most ``points`` of them, or a share ``rate``.

    ``column`` measures in x and y alone: a column from ground to treetop rather than a ball.
    """

    points: int | None = None
    rate: float | None = None
    column: bool = False

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        size = len(sample["coord"])
        keep = size if self.rate is None else max(int(size * self.rate), 1)
        keep = keep if self.points is None else min(keep, self.points)
        if keep >= size:
            return sample
        coord = sample["coord"][:, : 2 if self.column else 3]
        distance = ((coord - coord[rng.integers(size)]) ** 2).sum(1)
        return take(sample, np.sort(np.argpartition(distance, keep - 1)[:keep]))


@dataclass(frozen=True)
class GridSample:
    """One point per voxel; adds ``grid_coord``, and ``inverse`` for what comes back to all points.

    pick  "random": uniformly among the voxel's points (its labelled ones, where labels are few and it has any);
          "fixed": the same one each time, for evaluation.
    With a legacy ``RandomState`` for ``rng`` the draw is the official one: ``randint(0, count.max(), M) % count``.
    """

    grid_size: float = 0.02
    pick: str = "random"
    hash: str = "fnv"

    def __call__(self, sample: Sample, rng: np.random.Generator | np.random.RandomState) -> Sample:
        def draw(count: torch.Tensor) -> torch.Tensor:
            if isinstance(rng, np.random.RandomState):
                return torch.from_numpy(rng.randint(0, int(count.max()), len(count)))
            return torch.from_numpy(rng.integers(0, count.numpy()))

        coord = torch.tensor(sample["coord"])  # a copy: the array may be a read-only memory map
        found = grid_sample(coord, self.grid_size, self.hash, None if self.pick == "fixed" else draw)
        rows, cells, inverse = (part.numpy() for part in found)
        if self.pick == "random" and len(labelled := rare(sample)):
            labelled = rng.permutation(labelled)
            rows[inverse[labelled]] = labelled  # of several in one voxel the last stays: a random one
        return {**take(sample, rows), "grid_coord": cells, "inverse": inverse}


def fragments(sample: Sample, grid_size: float, rng: np.random.Generator) -> list[Sample]:
    """Test mode of grid sampling: samples that together hold every point, each with at most one point per voxel.

    Each has ``grid_coord``, and ``index`` [M]: the rows of ``sample`` it holds, to add its votes to.
    """
    cells, _ = grid_index(torch.tensor(sample["coord"]), grid_size)
    parts = [rows.numpy() for rows in voxelize(cells).fragments()]
    return [{**take(sample, rows), "grid_coord": cells.numpy()[rows], "index": rows} for rows in parts]


# --- what the model gets --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeepOriginal:
    """Remember the labels of all points as ``origin_segment``: scores are on them, not on voxels."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return {**sample, "origin_segment": sample["segment"]} if "segment" in sample else sample


@dataclass(frozen=True)
class NormalizeColor:
    """Colour from 0-255 to 0-1."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return {**sample, "color": sample["color"] / np.float32(255)}


@dataclass(frozen=True)
class Collect:
    """``feat`` = the columns of ``keys`` side by side: coordinates, colour, normal (9 channels) as in Sonata."""

    keys: tuple[str, ...] = ("coord", "color", "normal")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return {**sample, "feat": np.concatenate([sample[k] for k in self.keys], 1).astype(np.float32)}
