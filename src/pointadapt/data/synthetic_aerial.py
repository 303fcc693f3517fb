"""Procedural airborne laser scans with known ASPRS classes: terrain, buildings, trees, shrubs, grass, roads.

Pulses come down in slanted flight strips through a density grid of foliage onto a height field of everything solid, so
that occlusion, walls at the edge of a strip, several returns per pulse and ground under trees come about by themselves.
As in national surveys, vegetation is classed by its height above ground: low < 0.5 m < medium < 1.5 m < high.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pointadapt.files import write_text, written

Array = NDArray[Any]

AERIAL_CLASSES = ("ground", "low vegetation", "medium vegetation", "high vegetation", "building")
ASPRS_CODES = (2, 3, 4, 5, 6)  # of AERIAL_CLASSES, in that order
GROUND, BUILDING, OTHER = 0, 4, -1  # OTHER: cars and fences, which surveys leave unclassified
MARGIN = 8.0  # metres around the tile that are built and scanned, then cut
CELL, VOXEL, STEP = 0.25, 0.5, 0.4  # edge of the height field's cells, of the foliage's voxels; march step
INTENSITY = dict(road=720.0, soil=930.0, grass=1120.0, tile=1230.0, slab=880.0, leaf=1150.0, other=900.0)


@dataclass
class Solid:
    """A rectangle turned by ``angle`` around ``middle``, half sizes ``half``, and its top as a function of (u, v)."""

    middle: Array
    half: Array
    angle: float
    top: Callable[[Array, Array], Array]
    label: int
    intensity: float

    def local(self, xy: Array) -> Array:
        """[..., 2] positions in the rectangle's own frame."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return (xy - self.middle) @ np.array([[cos, -sin], [sin, cos]])


@dataclass
class Tile:
    """The scene: ``size`` metres square, plus the margin; a smooth terrain, solids, foliage, road distance."""

    rng: np.random.Generator
    size: float
    waves: Array  # [K, 4] amplitude, wave vector, phase
    slope: Array
    road: tuple[float, float, float, float] | None = None  # angle, offset, bend, half width
    solids: list[Solid] = field(default_factory=list)
    foliage: Array = field(default_factory=lambda: np.zeros((0, 0, 0)))
    meadow: Array = field(default_factory=lambda: np.zeros((0, 4)))

    def ground(self, xy: Array) -> Array:
        """Terrain height at [..., 2]."""
        return xy @ self.slope + _sum_waves(self.waves, xy)

    def road_distance(self, xy: Array) -> Array:
        """Metres to the road's edge (negative on it)."""
        if self.road is None:
            return np.full(xy.shape[:-1], 1e3)
        angle, offset, bend, half = self.road
        along = (xy - self.size / 2) @ [np.cos(angle), np.sin(angle)]
        across = (xy - self.size / 2) @ [-np.sin(angle), np.cos(angle)]
        return np.abs(across - offset - bend * along**2) - half


def aerial(seed: int, size: float = 50.0) -> dict[str, np.ndarray]:
    """One tile: coord float32 [N, 3] (metres), intensity, return_number, number_of_returns uint16 / uint8 [N],
    segment int64 [N] (index into AERIAL_CLASSES, -1 unclassified). The same seed gives the same tile.
    """
    rng = np.random.default_rng([seed, 71])
    tile = Tile(rng, size, _waves(rng, 6, 0.5, 20), rng.normal(0, 0.03, 2))
    tile.meadow = _waves(rng, 8, 1.0, 7)
    kind = rng.choice(["suburb", "blocks", "park"], p=[0.5, 0.3, 0.2])
    if rng.random() < 0.75:
        tile.road = (rng.uniform(0, np.pi), rng.uniform(-15, 15), rng.normal(0, 0.004), rng.uniform(2, 4))
    _build(tile, kind)
    _plant(tile, kind)
    strips = [_strip(tile) for _ in range(rng.integers(2, 4))]
    columns = [np.concatenate(parts) for parts in zip(*strips, strict=True)]
    coord, segment, intensity, number, total = columns
    keep = ((coord[:, :2] >= 0) & (coord[:, :2] < size)).all(1)
    order = np.flatnonzero(keep)
    return dict(
        coord=coord[order].astype(np.float32),
        intensity=intensity[order].clip(1, 4000).astype(np.uint16),
        return_number=number[order].astype(np.uint8),
        number_of_returns=total[order].astype(np.uint8),
        segment=segment[order].astype(np.int64),
    )


def write_tiles(
    folder: Path | str,
    num: int,
    seed: int = 0,
    val: int = 0,
    test: int = 0,
    grid_size: float = 0.3,
    size: float = 50.0,
) -> Path:
    """Write ``num`` training tiles, and some to validate and test on, as LAZ with a dataset.yaml; returns its path.

    Classes are ASPRS codes, 1 (unclassified) is ignored; intensity and returns take the place of colour.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for index, split in enumerate(["train"] * num + ["val"] * val + ["test"] * test):
        file = folder / f"{split}_{len(splits[split]):03d}.laz"
        _write_laz(file, aerial(seed * 10_000 + index, size))
        splits[split].append(file.name)
    content = {
        "classes": dict(zip(ASPRS_CODES, AERIAL_CLASSES, strict=True)),
        "ignore": [1],
        "splits": {split: files for split, files in splits.items() if files},
        "label_field": "classification",
        "grid_size": grid_size,
        "scale": 0.02 / grid_size,  # backbones know voxels of 0.02
        "color": {"intensity": 1500, "return_number": 4, "number_of_returns": 4},
        "transform": "aerial",
    }
    target = folder / "dataset.yaml"
    write_text(target, yaml.safe_dump(content, sort_keys=False))
    return target


def _write_laz(file: Path, tile: dict[str, np.ndarray]) -> None:
    import laspy

    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales = np.full(3, 0.01)
    header.offsets = np.floor(tile["coord"].min(0))
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = tile["coord"].T.astype(np.float64)
    for name in ("intensity", "return_number", "number_of_returns"):
        cloud[name] = tile[name]
    cloud.classification = np.array([*ASPRS_CODES, 1], dtype=np.uint8)[tile["segment"]]  # -1 is the last
    with written(file) as part:
        cloud.write(str(part))


def _waves(rng: np.random.Generator, count: int, height: float, length: float) -> Array:
    """Random sinusoids [count, 4] of about this height and wavelength (metres)."""
    wave = 2 * np.pi / (length * rng.uniform(0.6, 3.0, count))
    turn = rng.uniform(0, 2 * np.pi, count)
    rise = height * rng.uniform(0.2, 1.0, count) / np.sqrt(count)
    return np.stack([rise, wave * np.cos(turn), wave * np.sin(turn), rng.uniform(0, 2 * np.pi, count)], axis=1)


def _sum_waves(waves: Array, xy: Array) -> Array:
    total = np.zeros(xy.shape[:-1])
    for rise, x, y, phase in waves:
        total += rise * np.sin(xy[..., 0] * x + xy[..., 1] * y + phase)
    return total


# ---- what stands on the ground ---------------------------------------------------------------------------------------


def _build(tile: Tile, kind: str) -> None:
    """Buildings parallel to the road, cars on it and fences between."""
    rng = tile.rng
    angle = (tile.road[0] if tile.road else rng.uniform(0, np.pi)) + rng.normal(0, 0.05)
    wanted = dict(suburb=rng.integers(5, 12), blocks=rng.integers(2, 5), park=rng.integers(0, 3))[kind]
    placed: list[tuple[Array, float]] = []
    for _ in range(wanted * 30):
        if len(placed) >= wanted:
            break
        big = kind == "blocks" and rng.random() < 0.7
        half = np.sort(rng.uniform([5, 8], [8, 20]) if big else rng.uniform([3.0, 3.5], [5.5, 13]))[::-1]
        middle, reach = rng.uniform(0, tile.size, 2), float(np.hypot(*half))
        clear = all(np.hypot(*(middle - other)) > 0.72 * (reach + radius) for other, radius in placed)
        if not clear or tile.road_distance(middle) < half[1] + 1.5:
            continue
        placed.append((middle, reach))
        _house(tile, middle, half, angle + rng.choice([0, np.pi / 2]), big)
    if tile.road is not None:
        for _ in range(rng.integers(2, 9)):
            spot = tile.size / 2 + _along(tile.road, rng.uniform(-30, 30), rng.choice([-1, 1]) * (tile.road[3] - 0.9))
            _block(tile, spot, (2.1, 0.9), tile.road[0], 1.5, OTHER, round_top=True)
    for _ in range(rng.integers(0, 6)):
        _block(tile, rng.uniform(0, tile.size, 2), (rng.uniform(4, 12), 0.13), angle, rng.uniform(0.8, 1.7), OTHER)


def _along(road: tuple[float, float, float, float], along: float, across: float) -> Array:
    angle, offset, bend, _ = road
    across += offset + bend * along**2
    return along * np.array([np.cos(angle), np.sin(angle)]) + across * np.array([-np.sin(angle), np.cos(angle)])


def _block(
    tile: Tile, middle: Array, half: tuple, angle: float, height: float, label: int, round_top: bool = False
) -> None:
    base = float(tile.ground(middle))

    def top(u: Array, v: Array) -> Array:
        if round_top:  # a car: bonnet, roof, boot
            return base + height * np.where(np.abs(u + 0.2) < 0.55 * half[0], 1.0, 0.6)
        return tile.ground(middle + 0 * u[..., None]) + height + 0 * u

    tile.solids.append(Solid(middle, np.array(half), angle, top, label, INTENSITY["other"]))


def _house(tile: Tile, middle: Array, half: Array, angle: float, big: bool) -> None:
    """A body with a flat, gable, hip or shed roof, perhaps a wing, chimneys or machines on top."""
    rng = tile.rng
    eaves = rng.uniform(8, 16.5) if big else rng.uniform(2.6, 6.5)
    roof = (
        rng.choice(["flat", "hip"], p=[0.85, 0.15])
        if big
        else rng.choice(["flat", "gable", "hip", "shed"], p=[0.15, 0.45, 0.3, 0.1])
    )
    base, pitch = float(tile.ground(middle)) + eaves, rng.uniform(0.3, 0.6)
    shine = INTENSITY["slab" if roof == "flat" else "tile"] * rng.uniform(0.75, 1.15)

    def top_of(a: float, b: float) -> Callable[[Array, Array], Array]:
        tops: dict[str, Callable[[Array, Array], Array]] = dict(
            flat=lambda u, v: base + 0.4 * (np.minimum(a - np.abs(u), b - np.abs(v)) < 0.35),
            gable=lambda u, v: base + pitch * (b - np.abs(v)),
            hip=lambda u, v: base + pitch * np.minimum(b - np.abs(v), a - np.abs(u)),
            shed=lambda u, v: base + 0.4 * pitch * (v + b),
        )
        return tops[roof]

    def put(shift: Array, size: Array, turn: float, top: Callable[[Array, Array], Array]) -> None:
        cos, sin = np.cos(angle), np.sin(angle)
        spot = middle + np.array([[cos, -sin], [sin, cos]]) @ shift
        tile.solids.append(Solid(spot, size, angle + turn, top, BUILDING, shine))

    put(np.zeros(2), half, 0.0, top_of(*half))
    if rng.random() < 0.4:  # a wing across one end
        wing = np.array([half[1] * rng.uniform(1.2, 1.8), half[1] * rng.uniform(0.6, 0.95)])
        put(np.array([half[0] - wing[1], half[1] * rng.uniform(-0.6, 0.6)]), wing, np.pi / 2, top_of(*wing))
    for _ in range(rng.integers(2, 7) if big else rng.integers(0, 3)):
        size = rng.uniform(0.6, 2.0, 2) if big else rng.uniform(0.3, 0.5, 2)
        spot, lift = rng.uniform(-0.7, 0.7, 2) * half, rng.uniform(0.8, 2.2) + (0 if big else pitch * half[1])
        put(spot, size, 0.0, partial(_level, base + lift))


def _level(height: float, u: Array, v: Array) -> Array:
    return height + 0 * u


def _plant(tile: Tile, kind: str) -> None:
    """Trees of several crowns, hedges and shrubs as leaf density (interactions per metre) on a voxel grid."""
    rng = tile.rng
    cells = int((tile.size + 2 * MARGIN) / VOXEL)
    tile.foliage = np.zeros((cells, cells, 56))
    trees = dict(suburb=rng.integers(8, 30), blocks=rng.integers(5, 30), park=rng.integers(20, 70))[kind]
    tallest = rng.uniform(6, 21)
    for _ in range(trees):
        middle = rng.uniform(-MARGIN, tile.size + MARGIN, 2)
        if _roofed(tile, middle, 0.5) or tile.road_distance(middle) < 0.3:
            continue
        height = rng.uniform(0.35, 1.0) * tallest
        _crown(tile, middle, height, rng.choice(["ball", "cone", "column", "dome"], p=[0.5, 0.2, 0.1, 0.2]))
    for _ in range(rng.integers(5, 45)):  # gardens: clumps of shrubs and small trees
        heart, spread = rng.uniform(-MARGIN, tile.size + MARGIN, 2), rng.uniform(1, 4)
        for middle in heart + rng.normal(0, spread, (rng.integers(1, 9), 2)):
            if not _roofed(tile, middle, 0.4) and tile.road_distance(middle) > 0.2:
                height = rng.uniform(0.5, 4.5)
                wide = np.array([1.0, rng.uniform(0.7, 1.4)]) * rng.uniform(0.4, 0.9) * height**0.7
                _leaves(tile, middle, wide, (0.0, height), rng.uniform(1.0, 3.5), 0.0)
    for _ in range(rng.integers(0, 7)):  # hedges
        angle = (tile.road[0] if tile.road else rng.uniform(0, np.pi)) + rng.choice([0, np.pi / 2])
        start, height = rng.uniform(0, tile.size, 2), rng.uniform(0.9, 2.8)
        for along in np.arange(0, rng.uniform(5, 22), 0.6):
            middle = start + along * np.array([np.cos(angle), np.sin(angle)])
            if not _roofed(tile, middle, 0.4) and tile.road_distance(middle) > 0:
                _leaves(tile, middle, np.array([0.6, 0.6]), (0.0, height * rng.uniform(0.85, 1.1)), 3.5, 0.0)


def _roofed(tile: Tile, spot: Array, margin: float) -> bool:
    return any((np.abs(s.local(spot)) < s.half + margin).all() for s in tile.solids)


def _crown(tile: Tile, middle: Array, height: float, shape: str) -> None:
    rng = tile.rng
    low = height * rng.uniform(0.1, 0.35)
    wide = dict(ball=0.32, cone=0.2, column=0.11, dome=0.42)[shape] * height * rng.uniform(0.75, 1.25)
    density = rng.uniform(0.5, 1.5)
    if shape == "dome":
        low = height * rng.uniform(0.4, 0.6)
    _leaves(tile, middle, np.array([wide, wide]), (low, height), density, 1.0 if shape == "cone" else 0.0)
    for _ in range(rng.integers(3, 7) if shape in ("ball", "dome") else 0):  # lobes
        turn, part = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.65)
        spot = middle + 0.6 * wide * np.array([np.cos(turn), np.sin(turn)])
        rise = rng.uniform(low, height - part * (height - low))
        _leaves(tile, spot, np.array([wide, wide]) * part, (rise, rise + part * (height - low)), density, 0.0)


def _leaves(tile: Tile, middle: Array, wide: Array, up: tuple[float, float], density: float, taper: float) -> None:
    """Add an ellipsoid (taper 0) or a cone (taper 1) of leaves between two heights above ground."""
    grid = tile.foliage
    base = float(tile.ground(middle))
    low = np.floor((np.array([*(middle - wide), base + up[0]]) - _origin(tile)) / VOXEL).astype(int)
    high = np.ceil((np.array([*(middle + wide), base + up[1]]) - _origin(tile)) / VOXEL).astype(int) + 1
    low, high = low.clip(0, grid.shape), high.clip(0, grid.shape)
    if (high <= low).any():
        return
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    x, y, z = (np.arange(a, b) for a, b in zip(low, high, strict=True))
    x, y, z = ((v + 0.5) * VOXEL + o for v, o in zip((x, y, z), _origin(tile), strict=True))
    level = (z - base - up[0]) / (up[1] - up[0])  # 0 at the foot, 1 at the tip
    radius = np.where(taper > 0, 1 - level, np.sqrt((1 - (2 * level - 1) ** 2).clip(0))).clip(0)
    away = np.hypot((x[:, None] - middle[0]) / wide[0], (y[None] - middle[1]) / wide[1])
    inside = (away[..., None] <= radius + 0.15) & (level > -0.1) & (level < 1.05)
    rough = tile.rng.uniform(0.2, 1.8, inside.shape)
    coarse = tile.rng.random([-(-n // 2) for n in inside.shape]) > 0.25  # gaps between branches
    for axis, length in enumerate(inside.shape):
        coarse = np.repeat(coarse, 2, axis=axis).take(np.arange(length), axis=axis)
    grid[part] = np.maximum(grid[part], inside * coarse * rough * density)


def _origin(tile: Tile) -> Array:
    """Lowest corner of the voxel grid."""
    return np.array([-MARGIN, -MARGIN, -4.0])


# ---- the flight ------------------------------------------------------------------------------------------------------


def _strip(tile: Tile) -> tuple[Array, ...]:
    """Returns of one flight line: coord [N, 3], segment, intensity, return number, number of returns [N]."""
    rng = tile.rng
    angle, tilt = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(-18, 18))
    lines, shots = rng.uniform(0.26, 0.42), rng.uniform(0.26, 0.36)
    reach = (tile.size + 2 * MARGIN) * 0.75
    line, shot = np.mgrid[-reach:reach:lines, -reach:reach:shots].reshape(2, -1)
    flat = np.stack([line + rng.normal(0, 0.05, line.shape), shot + rng.normal(0, 0.05, shot.shape)], axis=1)
    flat[:, 1] += (flat[:, 0] / lines % 2) * shots / 2  # zigzag
    cos, sin = np.cos(angle), np.sin(angle)
    xy = flat @ np.array([[cos, sin], [-sin, cos]]) + tile.size / 2
    slant = np.tan(tilt + np.radians(0.06) * flat[:, 1])[:, None] * np.array([-sin, cos])  # [M, 2] metres per metre up
    keep = ((xy > -MARGIN / 2) & (xy < tile.size + MARGIN / 2)).all(1)
    keep &= rng.random(len(xy)) > 0.03
    return _fly(tile, xy[keep], slant[keep])


def _height_field(tile: Tile) -> tuple[Array, NDArray[np.int64]]:
    """Highest solid surface per cell and which solid it is (-1: ground)."""
    cells = int((tile.size + 2 * MARGIN) / CELL)
    axis = (np.arange(cells) + 0.5) * CELL - MARGIN
    xy = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    surface, owner = tile.ground(xy), np.full((cells, cells), -1)
    for number, solid in enumerate(tile.solids):
        low = ((solid.middle - np.hypot(*solid.half) + MARGIN) / CELL).astype(int).clip(0, cells)
        high = ((solid.middle + np.hypot(*solid.half) + MARGIN) / CELL).astype(int).clip(-1, cells - 1) + 1
        part = (slice(low[0], high[0]), slice(low[1], high[1]))
        local = solid.local(xy[part])
        inside = (np.abs(local) <= solid.half + 0.1).all(-1)
        top = np.where(inside, solid.top(local[..., 0], local[..., 1]), -np.inf)
        owner[part] = np.where(top > surface[part], number, owner[part])
        surface[part] = np.maximum(surface[part], top)
    return surface, owner


def _fly(tile: Tile, xy: Array, slant: Array) -> tuple[Array, ...]:
    """March pulses down: leaves take part of the energy and return it, solids end the pulse."""
    rng = tile.rng
    surface, owner = _height_field(tile)
    cells, origin, grid = len(surface), _origin(tile), tile.foliage
    energy, last = np.ones(len(xy)), np.full(len(xy), np.inf)
    active = np.arange(len(xy))
    found: list[tuple[NDArray[np.int64], Array, NDArray[np.int64], Array]] = []  # pulse, coord, owner (-2: leaf), share
    leafy = np.flatnonzero(grid.any((0, 1)))
    top = max(float(surface.max()), leafy[-1] * VOXEL + VOXEL + origin[2] if len(leafy) else -np.inf) + STEP
    for z in np.arange(top, float(surface.min()) - STEP, -STEP):
        spot = xy[active] + z * slant[active]
        cell = ((spot + MARGIN) / CELL).astype(int).clip(0, cells - 1)
        height = surface[cell[:, 0], cell[:, 1]]
        solid = height >= z
        voxel = (
            ((np.column_stack([spot, np.full(len(spot), z)]) - origin) / VOXEL)
            .astype(int)
            .clip(0, np.array(grid.shape) - 1)
        )
        leaf = ~solid & (rng.random(len(spot)) < 1 - np.exp(-STEP * grid[voxel[:, 0], voxel[:, 1], voxel[:, 2]]))
        leaf &= last[active] - z > 0.7  # the receiver's dead time
        pulses = active[leaf]
        if len(pulses):
            share = rng.uniform(0.3, 1.3, len(pulses)).clip(max=1) * energy[pulses]
            at = z + rng.uniform(-STEP / 2, STEP / 2, len(pulses))
            found.append((pulses, _on_ray(xy, slant, pulses, at), np.full(len(pulses), -2), share))
            energy[pulses] -= share
            last[pulses] = z
        pulses = active[solid]
        if len(pulses):
            which, rise = owner[cell[solid, 0], cell[solid, 1]], height[solid]
            wall = rise > z + STEP * 1.5  # struck from the side
            at = np.where(wall, z + rng.uniform(0, STEP, len(pulses)), rise)
            # at an eave half of the footprint goes on to what lies below
            beside = spot[solid] + rng.normal(0, 0.18, (len(pulses), 2))
            below = ((beside + MARGIN) / CELL).astype(int).clip(0, cells - 1)
            split = (rise - surface[below[:, 0], below[:, 1]] > 1.0) & (energy[pulses] > 0.3)
            share = energy[pulses] * np.where(split, 0.5, 1.0)
            found.append((pulses, _on_ray(xy, slant, pulses, at), which, share))
            xy[pulses[split]] += (beside - spot[solid])[split]
            energy[pulses[split]] *= 0.5
            energy[pulses[~split]] = 0
        active = active[energy[active] > 0.2]
    return _measure(tile, found, len(xy))


def _on_ray(xy: Array, slant: Array, pulses: NDArray[np.int64], z: Array) -> Array:
    return np.column_stack([xy[pulses] + z[:, None] * slant[pulses], z])


def _measure(tile: Tile, found: list, pulses: int) -> tuple[Array, ...]:
    """Exact heights, classes, intensities and return numbers of the returns found on the march."""
    rng = tile.rng
    pulse, coord, owner, share = (np.concatenate(parts) for parts in zip(*found, strict=True))
    ground = tile.ground(coord[:, :2])
    segment, intensity = np.full(len(pulse), GROUND), np.full(len(pulse), INTENSITY["grass"])
    for number, solid in enumerate(tile.solids):
        mine = np.flatnonzero(owner == number)
        local = solid.local(coord[mine, :2])
        top = solid.top(local[:, 0], local[:, 1])
        coord[mine, 2] = np.where(np.abs(top - coord[mine, 2]) < 0.6, top, coord[mine, 2])
        segment[mine], intensity[mine] = solid.label, solid.intensity

    bare = owner == -1
    road = tile.road_distance(coord[:, :2])
    meadow = _sum_waves(tile.meadow, coord[:, :2])  # > 0: where grass stands high, < -0.6: bare soil
    intensity[bare & (meadow < -0.6)] = INTENSITY["soil"]
    grass = bare & (road > 0.2) & (meadow > 0.55)
    tall = rng.exponential(0.04 + 0.12 * (meadow - 0.55).clip(0, 1))
    coord[bare, 2] = ground[bare] + 0.5 * rng.normal(0, 0.02, bare.sum())
    coord[grass, 2] += tall[grass]
    paved = bare & (road < 0)
    intensity[paved] = INTENSITY["road"]

    leaf = owner == -2
    intensity[leaf] = INTENSITY["leaf"]
    above = coord[:, 2] - ground
    green = leaf | grass
    fuzzy = 0.07 + 0.025 * rng.standard_normal(len(above))  # where a survey's ground filter stops
    segment[green] = np.select([above < fuzzy, above < 0.5, above < 1.5], [0, 1, 2], 3)[green]

    nth = np.empty(len(pulse), dtype=np.int64)
    order = np.lexsort((-coord[:, 2], pulse))
    start = np.flatnonzero(np.diff(pulse[order], prepend=-1))
    nth[order] = np.arange(len(order)) - np.repeat(start, np.diff(start, append=len(order))) + 1
    total = np.bincount(pulse, minlength=pulses)[pulse]
    weak = np.where(leaf, 0.15 + 0.85 * share, share) ** 0.8
    intensity *= weak * np.exp(rng.normal(0, np.where(leaf, 0.2, 0.14)))
    coord += rng.normal(0, 0.015, coord.shape) * [2, 2, 1]
    below = leaf & (above < -0.1)
    keep = ~below & (nth <= 5)
    return coord[keep], segment[keep], intensity[keep], nth[keep], total[keep].clip(max=5)
