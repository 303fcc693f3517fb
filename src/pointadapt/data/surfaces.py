"""Triangulated surfaces of procedural objects, and points spread evenly over them.

A surface is an array of triangles [T, 3, 3] (corner, axis). The makers fill the cube [-1, 1]^3, z up; an
:class:`Assembly` scales, turns and moves them to where a part goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pointadapt.data.raycast import Array, turn_of

Profile = tuple[tuple[float, float], ...]
Numbers = Sequence[float] | Array


def grid_surface(corner: Array) -> Array:
    """Two triangles per cell of a grid of corners [n, m, 3]; those without area are dropped."""
    a, b, c, d = corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]
    triangles = np.concatenate([np.stack([a, b, c], -2).reshape(-1, 3, 3), np.stack([a, c, d], -2).reshape(-1, 3, 3)])
    return triangles[areas(triangles) > 1e-12]


def areas(triangles: Array) -> Array:
    """[T] areas."""
    u, v = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    # np.cross takes ten times as long
    x = u[:, 1] * v[:, 2] - u[:, 2] * v[:, 1]
    y = u[:, 2] * v[:, 0] - u[:, 0] * v[:, 2]
    z = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    return np.sqrt(x * x + y * y + z * z) / 2


def signed_power(value: Array, power: float) -> Array:
    value = np.where(np.abs(value) < 1e-9, 0.0, value)  # a small power would make 0.7 of the sine of 2 pi
    return np.sign(value) * np.abs(value) ** power


@lru_cache(maxsize=512)
def lathe(profile: Profile, power: float = 1.0, segments: int = 20) -> Array:
    """The profile ((radius, z), ...) turned about z. The cross-section is a superellipse: power 1 a circle, 0.25 nearly
    a square, 2 a diamond. Begin and end the profile at radius 0 to close it."""
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    radius, z = np.array(profile, dtype=float).T
    x = radius[:, None] * signed_power(np.cos(angle), power)
    y = radius[:, None] * signed_power(np.sin(angle), power)
    return grid_surface(np.stack([x, y, np.broadcast_to(z[:, None], x.shape)], -1))


CYLINDER: Profile = ((0, -1), (1, -1), (1, 1), (0, 1))


@lru_cache(maxsize=64)
def box() -> Array:
    near = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]], dtype=float)
    return prism(tuple(map(tuple, near[:-1])))


def cylinder(top: float = 1.0) -> Array:
    """A cylinder, or with another radius at its top a cone."""
    return lathe((*CYLINDER[:2], (round(top, 2), 1), (0, 1)))


@lru_cache(maxsize=256)
def superquadric(upright: float = 1.0, across: float = 1.0) -> Array:
    """powers 1, 1: a ball; near 0: a box; 2: pointed."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 12)
    radius, z = signed_power(np.cos(angle).clip(0), upright), signed_power(np.sin(angle), upright)
    return lathe(tuple(zip(radius.tolist(), z.tolist(), strict=True)), across)


@lru_cache(maxsize=64)
def torus(thick: float = 0.2, share: float = 1.0) -> Array:
    """A ring about z, or the first ``share`` of it; ``thick`` is the tube's radius against the outer radius."""
    angle, around = np.linspace(0, 2 * np.pi * share, 21), np.linspace(0, 2 * np.pi, 9)
    radius = 1 - thick + thick * np.cos(around)
    corner = [radius * np.cos(angle)[:, None], radius * np.sin(angle)[:, None]]
    return grid_surface(np.stack([*corner, np.broadcast_to(np.sin(around), corner[0].shape)], -1))


@lru_cache(maxsize=512)
def prism(outline: Profile, top: float = 1.0) -> Array:
    """A polygon (x, y) that its centroid sees whole, raised from z = -1 to 1, scaled by ``top`` up there."""
    flat = np.array([*outline, outline[0]], dtype=float)
    middle = np.broadcast_to(flat[:-1].mean(0), flat.shape)
    rings = [(middle, 1.0, -1), (flat, 1.0, -1), (flat, top, 1), (middle, top, 1)]
    return grid_surface(np.stack([np.column_stack([ring * s, np.full(len(flat), z)]) for ring, s, z in rings]))


def tube(path: Array, radius: float) -> Array:
    """A round tube along a path [n, 3] that stays in a plane of x or y constant, or bends little."""
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    helper = np.eye(3)[np.abs(along).max(0).argmin()]
    side = np.cross(along, helper)
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-9
    other = np.cross(along, side)
    angle = np.linspace(0, 2 * np.pi, 7)
    ring = np.cos(angle)[:, None] * side[:, None] + np.sin(angle)[:, None] * other[:, None]
    return grid_surface(path[:, None] + radius * ring)


class Assembly:
    """The parts of one object."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.parts: list[Array] = []

    def draw(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def add(self, surface: Array, centre: Numbers, size: Numbers, turn: Sequence[float] = ()) -> None:
        """A unit surface with full ``size`` (x, y, z), turned by (yaw, pitch, roll) radians, moved to ``centre``."""
        part = surface * (np.array(size) / 2)
        if turn:
            part = part @ turn_of(*turn).T
        self.parts.append(part + np.array(centre))

    def box(self, centre: Numbers, size: Numbers, turn: Sequence[float] = ()) -> None:
        self.add(box(), centre, size, turn)

    def rod(self, centre: Numbers, size: Numbers, turn: Sequence[float] = (), top: float = 1.0) -> None:
        self.add(cylinder(top), centre, size, turn)

    def legs(self, width: float, depth: float, height: float, thick: float, splay: float = 0.0) -> None:
        """Four legs from the floor to ``height``, square or round, leaning outwards by ``splay`` radians."""
        surface = box() if self.chance(0.5) else cylinder(self.rng.choice([1.0, 1.5]))
        for x in (-1, 1):
            for y in (-1, 1):
                centre = (x * (width - thick) / 2, y * (depth - thick) / 2, height / 2)
                self.add(surface, centre, (thick, thick, height), (0, y * splay, -x * splay) if splay else ())

    def points(self, count: int) -> Array:
        """[count, 3] points spread evenly over all parts."""
        return sample_surface(np.concatenate(self.parts), count, self.rng)


def sample_surface(triangles: Array, count: int, rng: np.random.Generator) -> Array:
    """[count, 3] points, uniform over the area of triangles [T, 3, 3]."""
    total = np.cumsum(areas(triangles))
    picked = triangles[np.searchsorted(total, rng.random(count) * total[-1]).clip(max=len(total) - 1)]
    u, v = rng.random((2, count, 1))
    root = np.sqrt(u)
    return (1 - root) * picked[:, 0] + root * (1 - v) * picked[:, 1] + root * v * picked[:, 2]


def random_surface(rng: np.random.Generator) -> Array:
    """A unit surface of any kind."""
    choice = rng.integers(7)
    if choice == 0:
        return box()
    if choice == 1:
        return cylinder(rng.choice([0.0, 0.4, 0.7, 1.0, 1.0]))
    if choice == 2:
        return superquadric(rng.choice([0.2, 0.5, 1.0, 1.6]), rng.choice([0.2, 0.5, 1.0, 1.6]))
    if choice == 3:
        return torus(rng.choice([0.1, 0.2, 0.35]), rng.choice([0.5, 0.75, 1.0]))
    if choice == 4:  # an outline, extruded
        corners = int(rng.integers(3, 9))
        angle = np.arange(corners) * 2 * np.pi / corners
        radius = rng.uniform(0.4, 1.0, corners)
        outline = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
        return prism.__wrapped__(outline, rng.uniform(0.3, 1.0))
    if choice == 5:  # a profile, turned; open or closed
        z = np.linspace(-1, 1, int(rng.integers(3, 7)))
        radius = rng.uniform(0.25, 1.0, len(z))
        radius[[0, -1]] *= rng.integers(0, 2, 2)
        return lathe.__wrapped__(np.stack([radius, z], 1), rng.choice([0.3, 1.0, 1.0]))
    turns = np.linspace(0, rng.uniform(1.0, 5.0), 12)
    path = np.stack([np.cos(turns), np.sin(turns), np.linspace(-1, 1, 12) * rng.uniform(0, 1)], 1)
    return tube(path, rng.uniform(0.05, 0.2))
