"""Procedural point videos whose classes come in time-reversed pairs, so that only the order of frames tells them apart.

    coord, label = clips(seed=0, count=200)     # [200, 16, 256, 3], z up; [200] rows of VIDEO_CLASSES

A thing (a random body with a hinged lid) is seen while ONE motion goes on. Classes 2k and 2k + 1 are the same motion
forwards and backwards: the frames of ``clip(seed, 2k + 1)`` are exactly those of ``clip(seed, 2k)``, last first. So a
model that is blind to order gets one of the two right and no more. Points are drawn anew in every frame, so none can
be followed. The choice of motions is ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

VIDEO_CLASSES = (
    "move right", "move left", "rise", "fall", "recede", "approach",
    "turn left", "turn right", "grow", "shrink", "open", "close",
)  # fmt: skip
SHIFT = {"move right": 0, "recede": 1, "rise": 2}  # along which axis


def partner(label: int) -> int:
    """The class of the same clips run backwards."""
    return label ^ 1


def clip(seed: int, label: int, frames: int = 16, points: int = 256, noise: float = 0.01) -> Array:
    """[frames, points, 3] float32. See :func:`frames_of`."""
    return np.stack(frames_of(seed, label, frames, points, noise))


def frames_of(
    seed: int, label: int, frames: int = 16, points: int = 256, noise: float = 0.01, vary: float = 0.0
) -> list[Array]:
    """The frames of one clip, each [n, 3] float32, in a scene of about 2 x 2 x 2 around the origin.

    noise  standard deviation of every coordinate
    vary   share of the points that a frame may lack: n lies between (1 - vary) * points and points
    The same seed and label give the same clip. The thing, where it stands, how fast and how far it moves are random.
    """
    if not 0 <= label < len(VIDEO_CLASSES):
        raise ValueError(f"label must be 0..{len(VIDEO_CLASSES) - 1}, got {label}")
    if frames < 2 or points < 1 or not 0 <= vary < 1:
        raise ValueError(f"a clip needs frames >= 2, points >= 1 and 0 <= vary < 1, got {frames}, {points}, {vary}")
    rng = np.random.default_rng([seed, label // 2])  # the same for both directions
    thing = Thing(rng)
    motion = VIDEO_CLASSES[label // 2 * 2]
    begin, end = rng.uniform(0, 0.25), rng.uniform(0.75, 1)
    made = []
    for time in np.linspace(0, 1, frames):
        phase = np.clip((time - begin) / (end - begin), 0, 1)  # rest, motion, rest
        count = points - int(rng.integers(0, int(points * vary) + 1))
        coord = thing.seen(rng, count, motion, phase)
        made.append((coord + noise * rng.standard_normal((count, 3))).astype(np.float32))
    return made[::-1] if label % 2 else made


def clips(
    seed: int, count: int, frames: int = 16, points: int = 256, noise: float = 0.01, first: int = 0
) -> tuple[Array, NDArray[np.int64]]:
    """Clips ``first`` to ``first + count`` of an endless sequence: [count, frames, points, 3] float32, [count] labels.

    Classes take turns, and every clip shows a thing of its own; a shorter call gives the first of a longer one.
    """
    numbers = range(first, first + count)
    label = np.array([number % len(VIDEO_CLASSES) for number in numbers], dtype=np.int64)
    shapes = (frames, points, 3)
    coord = [clip(_seed(seed, n), int(y), frames, points, noise) for n, y in zip(numbers, label, strict=True)]
    return np.stack(coord) if coord else np.empty((0, *shapes), np.float32), label


class Thing:
    """A body of some ellipsoids and boxes, with a lid hinged at its back edge; and how one clip moves it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.parts = [
            (bool(rng.random() < 0.5), rng.uniform(-0.2, 0.2, 3), rng.uniform(0.06, 0.26, 3))
            for _ in range(rng.integers(2, 5))
        ]
        self.lid = rng.uniform(0.15, 0.35, 2)  # half its width, its length
        self.angle = rng.uniform(0.1, 1.4)  # of the lid, where nothing opens
        self.yaw, self.size = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.1)
        self.place = rng.uniform(-0.3, 0.3, 3)
        self.amount = rng.uniform(0.6, 1.0)  # how much of a motion's full extent

    def seen(self, rng: np.random.Generator, count: int, motion: str, phase: float) -> Array:
        """[count, 3] points drawn from the surface at a phase 0..1 of a motion."""
        go = self.amount * (phase - 0.5)  # from -amount / 2 to amount / 2
        angle = self.angle + (2.2 * (go + 0.5) - self.angle if motion == "open" else 0.0)
        yaw = self.yaw + (2.0 * go if motion == "turn left" else 0.0)
        size = self.size * (np.exp(0.9 * go) if motion == "grow" else 1.0)
        coord = size * self.surface(rng, count, angle) @ _turn(yaw).T + self.place
        if motion in SHIFT:
            coord[:, SHIFT[motion]] += go
        return coord

    def surface(self, rng: np.random.Generator, count: int, angle: float) -> Array:
        """[count, 3] points, a third of them on the lid, which stands ``angle`` above the horizontal."""
        which = rng.integers(len(self.parts), size=count)
        coord = rng.standard_normal((count, 3))
        reach = np.where([self.parts[w][0] for w in which], np.abs(coord).max(1), np.linalg.norm(coord, axis=1))
        coord /= reach[:, None]
        centre, half = (np.array([part[i] for part in self.parts]) for i in (1, 2))
        coord = centre[which] + half[which] * coord
        lid = rng.random(count) < 1 / 3
        across, along = rng.uniform(-1, 1, count) * self.lid[0], rng.uniform(0, 1, count) * self.lid[1] * 2
        plate = np.stack([across, -self.lid[1] + along * np.cos(angle), 0.3 + along * np.sin(angle)], 1)
        return np.where(lid[:, None], plate, coord)


def _turn(yaw: float) -> Array:
    """Rotation about z, to the left as seen from above."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])
