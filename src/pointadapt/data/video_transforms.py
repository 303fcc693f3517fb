"""Augmentations of clips: one random change for all frames of a clip, so that motion stays what it was.

As for objects a transform is ``(sample, rng) -> sample`` on a clip's packed points, with y up and the origin in their
middle. Time is never reversed: "sit down" reversed is "stand up". Presets whose name ends in ``_released`` do what the
published loaders really do, defects included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pointadapt.data.object_transforms import TURN, AxisScale
from pointadapt.data.transforms import Compose, Flip, RandomJitter, RandomScale, Rotate, Sample


@dataclass(frozen=True)
class MirrorX:
    """All points of all frames mirrored in x with probability ``p``."""

    p: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return Flip((0,))(sample, rng) if rng.random() < self.p else sample


@dataclass(frozen=True)
class FlipFirstPoint:
    """The published loaders' "flip": of an array [T, N, 3] it negates the first point of every frame, not x."""

    p: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        coord = sample["coord"].copy()
        first = np.cumsum(sample["counts"]) - sample["counts"]
        coord[first] *= -1
        return {**sample, "coord": coord}


@dataclass(frozen=True)
class TurnFarAbout:
    """The published Synthia loader's turn: 2 pi is handed over as the LOW bound, so angles lie in (1, 2 pi]."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return Rotate(2 * np.pi - (2 * np.pi - 1) * rng.random(), "y")(sample, rng)


def none() -> Compose:
    """The chosen points, nothing else."""
    return Compose([])


def scale() -> Compose:
    """Each axis times its own U[0.9, 1.1]: MSR-Action3D and NTU, as published."""
    return Compose([AxisScale(0.9, 1.1)])


def scale_turn() -> Compose:
    """As ``scale``, and any turn about the upward axis: where people or things face anywhere."""
    return Compose([AxisScale(0.9, 1.1), TURN])


def scale_mirror() -> Compose:
    """As ``scale``, and x mirrored half of the time: where no class tells left from right."""
    return Compose([AxisScale(0.9, 1.1), MirrorX()])


def jitter() -> Compose:
    """As ``scale``, and PointNet++'s noise (0.01, clipped at 0.05) on every point: for noisy sensors."""
    return Compose([AxisScale(0.9, 1.1), RandomJitter(0.01, 0.05)])


def hoi4d() -> Compose:
    """What HOI4D's loader means: x mirrored, one factor U[0.8, 1.2], noise of 0.01 clipped at 0.05."""
    return Compose([MirrorX(), RandomScale(0.8, 1.2), RandomJitter(0.01, 0.05)])


def hoi4d_released() -> Compose:
    """What HOI4D's loader does: one point of a frame negated, one factor U[0.8, 1.2], no noise."""
    return Compose([FlipFirstPoint(), RandomScale(0.8, 1.2)])


def synthia() -> Compose:
    """What Synthia4D's loader means: x mirrored, one factor U[0.8, 1.2], any turn about the upward axis."""
    return Compose([MirrorX(), RandomScale(0.8, 1.2), TURN])


def synthia_released() -> Compose:
    """What Synthia4D's loader does: one point of a frame negated, U[0.8, 1.2], turns of 1 to 2 pi only."""
    return Compose([FlipFirstPoint(), RandomScale(0.8, 1.2), TurnFarAbout()])


VIDEO_TRANSFORMS: dict[str, Callable[[], Compose]] = {
    "scale": scale,
    "scale_turn": scale_turn,
    "scale_mirror": scale_mirror,
    "jitter": jitter,
    "hoi4d": hoi4d,
    "synthia": synthia,
    "hoi4d_released": hoi4d_released,
    "synthia_released": synthia_released,
    "none": none,
}
