"""A virtual laser scanner: rays against boxes, cylinders and balls, the nearest return per direction.

Every solid is a unit shape (cube, cylinder or ball of half size 1) scaled, turned and moved, so that a ray becomes a
ray again in the solid's own frame with the same parameter t, and a convex shape is one interval of t.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BOX, CYLINDER, BALL = range(3)


@dataclass(frozen=True)
class Solid:
    """A unit shape scaled by ``half`` [3], turned by ``turn`` [3, 3] and moved to ``centre`` [3] (metres).

    opacity below 1 lets that share of the rays pass and returns the others from inside (foliage, glass);
    stripe [3] is the direction and frequency (radians per metre) of a pattern on its surface, 0 = plain.
    """

    shape: int
    centre: Array
    half: Array
    turn: Array
    color: Array
    label: int
    opacity: float = 1.0
    stripe: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def moved(self, turn: Array, shift: Array) -> Solid:
        return replace(self, turn=turn @ self.turn, centre=turn @ self.centre + shift)


def turn_of(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """[3, 3] rotation: about y by roll, then x by pitch, then z by yaw (radians)."""
    (ca, sa), (cb, sb), (cc, sc) = ((np.cos(a), np.sin(a)) for a in (yaw, pitch, roll))
    about_z = np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cb, -sb], [0, sb, cb]])
    about_y = np.array([[cc, 0, sc], [0, 1, 0], [-sc, 0, cc]])
    return about_z @ about_x @ about_y


@dataclass(frozen=True)
class Sensor:
    """A spinning scanner: ``rows`` lines from ``low`` to ``high`` degrees elevation, ``columns`` shots per turn."""

    rows: int
    columns: int
    low: float = -65.0
    high: float = 90.0
    noise: float = 0.002  # metres, plus noise_far per metre of range
    noise_far: float = 0.0005
    dropout: float = 0.02  # of all shots, plus more at grazing incidence and on dark surfaces
    mixed: float = 0.05  # share of shots at depth edges that return a mixture of both ranges
    jitter: float = 0.1  # of the angular step


@dataclass(frozen=True)
class Returns:
    """What one tripod position sees: coord [N, 3], normal [N, 3], solid [N] (index into the scene), depth [N]."""

    coord: Array
    normal: Array
    solid: NDArray[np.int64]
    depth: Array


def scan(scene: list[Solid], origin: Array, sensor: Sensor, rng: np.random.Generator) -> Returns:
    """Shoot the sensor's rays from ``origin`` [3]: occlusion, range noise, dropouts and mixed pixels."""
    direction = _directions(sensor, rng)
    depth, solid = _cast(scene, origin, direction, sensor, rng)
    true_depth = depth.copy()
    hit = np.isfinite(depth)
    depth[~hit] = 0
    beside, share = np.roll(depth, 1, axis=1), rng.random(depth.shape)
    edge = hit & (beside > 0) & (np.abs(beside - depth) > 0.15) & (rng.random(depth.shape) < sensor.mixed)
    depth[edge] = (share * depth + (1 - share) * beside)[edge]

    hit &= rng.random(depth.shape) < np.sqrt(np.linalg.norm(direction[..., :2], axis=-1))  # shots crowd at the zenith
    solid, depth, true_depth, direction = solid[hit], depth[hit], true_depth[hit], direction[hit]
    normal = _normals(scene, solid, origin + true_depth[:, None] * direction)
    grazing = np.abs((normal * direction).sum(1)).clip(0.02)
    dark = 1 - np.stack([s.color for s in scene])[solid].mean(1)
    lost = sensor.dropout * (0.5 + dark) + 0.6 * np.exp(-grazing / 0.06)
    keep = rng.random(len(depth)) > lost
    spread = sensor.noise + sensor.noise_far * depth
    coord = origin + (depth + spread * rng.standard_normal(len(depth)))[:, None] * direction
    return Returns(coord[keep], normal[keep], solid[keep], depth[keep])


def _directions(sensor: Sensor, rng: np.random.Generator) -> Array:
    """[rows, columns, 3] unit vectors of one turn."""
    step = np.array([(sensor.high - sensor.low) / sensor.rows, 360.0 / sensor.columns])
    row, column = np.mgrid[: sensor.rows, : sensor.columns]
    wobble = sensor.jitter * rng.standard_normal((2, sensor.rows, sensor.columns))
    up = np.radians(sensor.low + (row + 0.5 + wobble[0]) * step[0])
    turn = np.radians(-180 + (column + 0.5 + wobble[1]) * step[1])
    return np.stack([np.cos(up) * np.cos(turn), np.cos(up) * np.sin(turn), np.sin(up)], axis=-1)


def _cast(
    scene: list[Solid], origin: Array, direction: Array, sensor: Sensor, rng: np.random.Generator
) -> tuple[Array, NDArray[np.int64]]:
    """Nearest return per ray: (depth [rows, columns], inf where none, index of the solid)."""
    depth = np.full(direction.shape[:2], np.inf)
    index = np.full(direction.shape[:2], -1, dtype=np.int64)
    for number, solid in enumerate(scene):
        for window in _windows(solid, origin, sensor):
            rays = direction[window]
            near, far = _interval(solid, origin, rays)
            hit = (near <= far) & (near > 1e-6)
            if solid.opacity < 1:
                inside = np.where(hit, far - np.where(hit, near, 0), 0)
                near = near + rng.random(near.shape) * inside
                hit &= rng.random(near.shape) < solid.opacity
            hit &= near < depth[window]
            depth[window] = np.where(hit, near, depth[window])
            index[window] = np.where(hit, number, index[window])
    return depth, index


def _windows(solid: Solid, origin: Array, sensor: Sensor) -> list[tuple[slice, slice]]:
    """The parts of the range image that a solid's bounding ball may cover: most solids cover few rays."""
    offset = solid.centre - origin
    distance, radius = float(np.linalg.norm(offset)), float(np.linalg.norm(solid.half))
    everything = (slice(0, sensor.rows), slice(0, sensor.columns))
    if distance <= radius * 1.01:
        return [everything]
    margin = 3 * sensor.jitter
    spread = np.arcsin(radius / distance)
    up = np.arcsin(np.clip(offset[2] / distance, -1, 1))
    rows = (np.degrees([up - spread, up + spread]) - sensor.low) / (sensor.high - sensor.low) * sensor.rows
    first, last = int(max(np.floor(rows[0] - margin), 0)), int(min(np.ceil(rows[1] + margin) + 1, sensor.rows))
    if first >= last:
        return []
    if abs(up) + spread >= np.pi / 2 - 0.02:
        return [(slice(first, last), everything[1])]
    turn = np.arctan2(offset[1], offset[0])
    width = np.arcsin(min(np.sin(spread) / np.cos(up), 1.0))
    ends = (np.degrees([turn - width, turn + width]) + 180) / 360 * sensor.columns
    left, right = int(np.floor(ends[0] - margin)), int(np.ceil(ends[1] + margin)) + 1
    if right - left >= sensor.columns:
        return [(slice(first, last), everything[1])]
    parts = [(max(left, 0), min(right, sensor.columns))]
    if left < 0:
        parts.append((left + sensor.columns, sensor.columns))
    if right > sensor.columns:
        parts.append((0, right - sensor.columns))
    return [(slice(first, last), slice(a, b)) for a, b in parts]


def _interval(solid: Solid, origin: Array, rays: Array) -> tuple[Array, Array]:
    """Where rays [..., 3] enter and leave a solid (near > far: they miss it)."""
    start = (solid.turn.T @ (origin - solid.centre)) / solid.half
    heading = (rays @ solid.turn) / solid.half
    heading = np.where(np.abs(heading) < 1e-12, 1e-12, heading)
    ends = np.stack([(-1 - start) / heading, (1 - start) / heading])
    low, high = ends.min(0), ends.max(0)  # [..., 3] slabs
    if solid.shape == BOX:
        return low.max(-1), high.min(-1)
    used = slice(0, 2) if solid.shape == CYLINDER else slice(0, 3)
    a = (heading[..., used] ** 2).sum(-1)
    b = (heading[..., used] * start[used]).sum(-1)
    root = b * b - a * ((start[used] ** 2).sum() - 1)
    miss = root < 0
    root = np.sqrt(np.where(miss, 0, root))
    near, far = (-b - root) / a, (-b + root) / a
    if solid.shape == CYLINDER:
        near, far = np.maximum(near, low[..., 2]), np.minimum(far, high[..., 2])
    return np.where(miss, np.inf, near), np.where(miss, -np.inf, far)


def _normals(scene: list[Solid], solid: NDArray[np.int64], coord: Array) -> Array:
    """Outward unit normals [N, 3] of the solids at hit points [N, 3]."""
    centre, half, turn, shape = (
        np.stack([np.asarray(getattr(s, name)) for s in scene])[solid] for name in ("centre", "half", "turn", "shape")
    )
    local = np.einsum("nji,nj->ni", turn, coord - centre) / half
    face = np.abs(local).argmax(1)
    cap = (shape == BOX) | ((shape == CYLINDER) & (np.abs(local[:, 2]) > 0.999))
    flat = np.where(np.arange(3) == np.where(shape == CYLINDER, 2, face)[:, None], np.sign(local), 0.0)
    bent = np.where((shape == CYLINDER)[:, None], local * [1, 1, 0], local)
    normal = np.einsum("nij,nj->ni", turn, np.where(cap[:, None], flat, bent) / half)
    return normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-9)
