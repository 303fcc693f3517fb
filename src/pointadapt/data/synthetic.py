"""Procedural scanned rooms of two building styles with known labels: what the demo, the tests and nano train on.

A room is built from boxes, cylinders and balls (furniture.py), scanned from a few tripod positions with occlusion,
noise and uneven density (raycast.py) and coloured. Style "a" is a plain flat seen by a good scanner; style "b" has
other furniture for the same classes, sloped ceilings, warm dim light and a coarser, noisier scanner.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pointadapt.data.formats.ply import save
from pointadapt.data.furniture import build
from pointadapt.data.furniture_item import CLUTTER, ROOM_CLASSES, Item
from pointadapt.data.raycast import BOX, Array, Returns, Sensor, Solid, scan, turn_of
from pointadapt.files import write_text

STYLES = ("a", "b")
SENSORS = {
    "a": Sensor(rows=96, columns=190, low=-76, noise=0.002, noise_far=0.0005, dropout=0.02, mixed=0.03, jitter=0.15),
    "b": Sensor(rows=62, columns=260, low=-68, noise=0.008, noise_far=0.002, dropout=0.08, mixed=0.15, jitter=0.3),
}
#: Yaw of an item whose back is at the wall y = 0, y = length, x = 0, x = width.
FACING = (0.0, np.pi, -np.pi / 2, np.pi / 2)


@dataclass
class Room:
    """A room being furnished: interior x in 0..width, y in 0..length, z in 0..height, its solids and taken floor."""

    rng: np.random.Generator
    style: str
    width: float
    length: float
    height: float
    solids: list[Solid] = field(default_factory=list)
    taken: list[Array] = field(default_factory=list)  # rectangles x0, y0, x1, y1
    lights: list[Array] = field(default_factory=list)
    slope: tuple[int, float] | None = None  # side and how far into the room it comes

    def side_length(self, side: int) -> float:
        return self.width if side < 2 else self.length

    def free(self, box: Array, margin: float = 0.03) -> bool:
        """Whether a rectangle lies in the room and touches nothing that is taken."""
        inside = box[0] > -0.01 and box[1] > -0.01 and box[2] < self.width + 0.01 and box[3] < self.length + 0.01
        return bool(inside) and not any(
            box[0] < t[2] + margin and t[0] < box[2] + margin and box[1] < t[3] + margin and t[1] < box[3] + margin
            for t in self.taken
        )

    def under_slope(self, x: float, y: float, margin: float = 0.3) -> bool:
        if self.slope is None:
            return False
        side, reach = self.slope
        return (y, self.length - y, x, self.width - x)[side] < reach + margin

    def put(self, item: Item, x: float, y: float, yaw: float) -> None:
        base = self.height if item.place == "ceiling" else 0.0
        turn, shift = turn_of(yaw), np.array([x, y, base])
        self.solids += [solid.moved(turn, shift) for solid in item.solids]

    def slab(self, side: int, along: tuple, up: tuple, out: tuple, color: Array, label: str, **more: Any) -> None:
        """A box at a wall: its extent along the wall, upwards and outwards (negative: into the room)."""
        low, high = np.array([along[0], out[0], up[0]]), np.array([along[1], out[1], up[1]])
        centre, half = (low + high) / 2, (high - low) / 2
        sign, edge = (-1, 0.0) if side in (0, 2) else (1, self.length if side == 1 else self.width)
        centre[1] = edge + sign * centre[1]
        if side >= 2:
            centre, half = centre[[1, 0, 2]], half[[1, 0, 2]]
        self.solids.append(Solid(BOX, centre, half, np.eye(3), color, ROOM_CLASSES.index(label), **more))


def room(seed: int, style: str = "a") -> dict[str, np.ndarray]:
    """One scanned room: coord float32 [N, 3] (metres, z up, floor at 0), color uint8 [N, 3], segment int64 [N].

    segment indexes ROOM_CLASSES; -1 is clutter without a class. The same seed gives the same room.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {STYLES}, got {style!r}")
    rng = np.random.default_rng([seed, STYLES.index(style)])
    size = np.sort(rng.uniform([3.0, 3.2], [4.3, 5.4]))
    place = Room(rng, style, size[0], size[1], rng.uniform(2.4, 2.75))
    _shell(place)
    _furnish(place)
    views = [scan(place.solids, spot, SENSORS[style], rng) for spot in _tripods(place)]
    coord = np.concatenate([view.coord for view in views])
    color = np.concatenate([_shade(place, view) for view in views])
    label = np.array([solid.label for solid in place.solids])
    segment = label[np.concatenate([view.solid for view in views])]
    coord = coord - [place.width / 2, place.length / 2, 0]
    if style == "b":  # the survey's frame is not the building's
        coord = coord @ turn_of(rng.uniform(0, 2 * np.pi)).T
    return dict(coord=coord.astype(np.float32), color=color, segment=segment.astype(np.int64))


def _shell(place: Room) -> None:
    """Floor, ceiling, walls with a door and windows, and what makes the plan irregular."""
    rng, style = place.rng, place.style
    painter = Item("wall", rng, style)
    width, length, height = place.width, place.length, place.height
    middle = np.array([width / 2, length / 2])

    def plate(z: float, material: str, **more: Any) -> None:
        centre, half = np.array([*middle, z]), np.array([width / 2 + 0.3, length / 2 + 0.3, 0.05])
        label = ROOM_CLASSES.index(material)
        place.solids.append(Solid(BOX, centre, half, np.eye(3), painter.paint(material), label, **more))

    plate(-0.05, "floor", stripe=((32, 0, 0), (0, 21, 0), (0, 0, 0))[rng.integers(3)])
    plate(height + 0.05, "ceiling")

    sides = rng.permutation(4)
    if style == "b" and rng.random() < 0.6:
        _slope(place, int(sides[3]), painter)
    openings: dict[int, list[tuple[str, float, float, float, float]]] = {side: [] for side in range(4)}
    openings[sides[0]].append(_door_opening(place, int(sides[0])))
    for side in sides[1 : 1 + rng.integers(1, 3)]:
        openings[side].append(_window_opening(place, int(side)))
    color = painter.paint("wall")
    accent = painter.paint("wall")
    for side in range(4):
        _wall(place, side, openings[side], accent if side == sides[1] else color, painter)
    if rng.random() < 0.35:
        _corner(place, color)
    if style == "b" and rng.random() < 0.5:  # beams under the flat ceiling
        for x in np.arange(0.6, width, 1.1):
            centre, half = np.array([x, middle[1], height - 0.07]), np.array([0.06, length / 2, 0.07])
            place.solids.append(Solid(BOX, centre, half, np.eye(3), painter.paint("wood"), 1))


def _slope(place: Room, side: int, painter: Item) -> None:
    """A roof slope over one side, with roof windows."""
    rng = place.rng
    across = place.length if side < 2 else place.width
    reach, low = rng.uniform(0.3, 0.5) * across, rng.uniform(1.0, 1.5)
    place.slope = (side, reach)
    angle, run = np.arctan2(place.height - low, reach), np.hypot(place.height - low, reach)
    turn = turn_of(FACING[side]) @ turn_of(0, angle)
    foot = {0: (0.5, 0.0), 1: (0.5, 1.0), 2: (0.0, 0.5), 3: (1.0, 0.5)}[side]
    shift = np.array([foot[0] * place.width, foot[1] * place.length, low])
    extent = place.side_length(side)

    def lay(x: float, y: float, z: float, size: tuple, material: str, label: str, opacity: float = 1.0) -> None:
        half, color = np.array(size) / 2, painter.paint(material)
        solid = Solid(
            BOX, np.array([x, y, z]), half, np.eye(3), color, ROOM_CLASSES.index(label), opacity, (0.0, 40.0, 0.0)
        )
        place.solids.append(solid.moved(turn, shift))

    lay(0, run / 2, 0.06, (extent + 0.2, run + 0.4, 0.1), "ceiling", "ceiling")
    for x in rng.uniform(-0.35, 0.35, rng.integers(1, 3)) * extent:
        size = rng.uniform([0.6, 0.7], [0.9, 1.1])
        lay(x, run / 2, 0.0, (size[0], min(size[1], run * 0.8), 0.06), "glass", "window")
        for edge in (-1, 1):
            lay(x + edge * size[0] / 2, run / 2, 0.0, (0.08, size[1] + 0.1, 0.14), "frame", "window")


def _door_opening(place: Room, side: int) -> tuple[str, float, float, float, float]:
    extent, rng = place.side_length(side), place.rng
    width = rng.uniform(0.8, 0.95) if place.style == "a" else rng.uniform(0.8, 1.5)
    left = rng.uniform(0.15, extent - width - 0.15)
    corner = np.array([left, 0.0, left + width, 0.95])
    place.taken.append(_at_wall(place, side, corner))
    return "door", left, left + width, 0.0, rng.uniform(1.98, 2.1)


def _window_opening(place: Room, side: int) -> tuple[str, float, float, float, float]:
    extent, rng = place.side_length(side), place.rng
    width = min(rng.uniform(0.9, 1.8), extent - 0.4)
    left = rng.uniform(0.2, extent - width - 0.2)
    low = rng.uniform(0.8, 1.0) if place.style == "a" else rng.choice([0.08, 0.5, 1.2])
    top = rng.uniform(2.0, 2.2) if place.style == "a" else low + rng.uniform(0.7, 1.0)
    if place.slope is not None and place.slope[0] == side:
        low, top = 0.25, 0.85
    spot = _at_wall(place, side, np.array([left, 0.0, left + width, 0.0]))
    place.lights.append(np.array([spot[[0, 2]].mean(), spot[[1, 3]].mean(), (low + top) / 2]))
    return "window", left, left + width, low, min(float(top), place.height - 0.15)


def _at_wall(place: Room, side: int, box: Array) -> Array:
    """A rectangle given along and away from a wall, in room coordinates."""
    left, near, right, far = box
    return np.array(
        {
            0: (left, near, right, far),
            1: (left, place.length - far, right, place.length - near),
            2: (near, left, far, right),
            3: (place.width - far, left, place.width - near, right),
        }[side]
    )


def _wall(place: Room, side: int, openings: list, color: Array, painter: Item) -> None:
    """The pieces of a wall around its openings, and what fills them."""
    extent, start, thick = place.side_length(side), -0.2, (0.0, 0.2)
    for kind, left, right, low, top in sorted(openings, key=lambda hole: hole[1]):
        place.slab(side, (start, left), (0, place.height), thick, color, "wall")
        place.slab(side, (left, right), (top, place.height), thick, color, "wall")
        if low > 0:
            place.slab(side, (left, right), (0, low), thick, color, "wall")
        start = right
        fill = _fill_door if kind == "door" else _fill_window
        fill(place, side, (left, right), (low, top), painter)
    place.slab(side, (start, extent + 0.2), (0, place.height), thick, color, "wall")


def _fill_door(place: Room, side: int, along: tuple, up: tuple, painter: Item) -> None:
    left, right = along
    frame, leaf, metal = painter.paint("frame"), painter.paint("door"), painter.paint("metal")
    for x in (left, right - 0.06):
        place.slab(side, (x, x + 0.06), up, (-0.02, 0.12), frame, "door")
    place.slab(side, along, (up[1] - 0.06, up[1]), (-0.02, 0.12), frame, "door")
    if place.style == "a" or place.rng.random() < 0.4:
        place.slab(side, along, up, (0.05, 0.1), leaf, "door")
        place.slab(side, (left + 0.1, left + 0.24), (1.02, 1.05), (-0.02, 0.05), metal, "door")
        return
    # Style b: double leaves with panes, or a barn door that slides in front of the wall.
    if place.rng.random() < 0.5:
        place.slab(side, along, up, (-0.08, -0.03), leaf, "door", stripe=(18.0, 18.0, 0.0))
        place.slab(side, (left - 0.3, right + 0.3), (up[1], up[1] + 0.06), (-0.09, -0.02), metal, "door")
        return
    middle, glass = (left + right) / 2, painter.paint("glass")
    for low, high in ((left, middle), (middle, right)):
        place.slab(side, (low + 0.02, high - 0.02), (0, 0.9), (0.03, 0.08), leaf, "door")
        place.slab(side, (low + 0.02, high - 0.02), (0.9, up[1]), (0.05, 0.06), glass, "door", opacity=0.6)
        place.slab(side, (low, low + 0.1), up, (0.02, 0.09), leaf, "door")
        place.slab(side, (high - 0.1, high), up, (0.02, 0.09), leaf, "door")


def _fill_window(place: Room, side: int, along: tuple, up: tuple, painter: Item) -> None:
    (left, right), (low, top), rng = along, up, place.rng
    frame = painter.paint("frame")
    share = 0.5 if place.style == "a" else 0.35
    place.slab(side, along, up, (0.14, 0.15), painter.paint("glass"), "window", opacity=share)
    for x in (left, (left + right - 0.06) / 2, right - 0.06):
        place.slab(side, (x, x + 0.06), up, (0.1, 0.18), frame, "window")
    for z in (low, top - 0.06):
        place.slab(side, along, (z, z + 0.06), (0.1, 0.18), frame, "window")
    if place.style == "a":
        place.slab(side, (left - 0.04, right + 0.04), (low - 0.03, low), (-0.05, 0.14), frame, "window")
    elif rng.random() < 0.5:  # slats
        for z in np.arange(low + 0.06, top, 0.11):
            place.slab(side, along, (z, z + 0.06), (0.03, 0.06), frame, "window")
    else:  # curtains
        cloth = painter.paint("fabric")
        for edge in (left - 0.2, right - 0.15):
            for fold in np.arange(0, 0.35, 0.07):
                out = (-0.1 - 0.03 * (round(fold / 0.07) % 2), -0.05)
                place.slab(
                    side, (edge + fold, edge + fold + 0.07), (max(low - 0.3, 0), top + 0.1), out, cloth, "window"
                )


def _corner(place: Room, color: Array) -> None:
    """A shaft that makes the plan an L, or (style b) a wall across the corner."""
    rng = place.rng
    size = rng.uniform(0.5, [0.35 * place.width, 0.35 * place.length])
    at = rng.integers(0, 2, 2)
    low = at * ([place.width, place.length] - size)
    box = np.array([*low, *(low + size)])
    if not place.free(box):
        return
    place.taken.append(box)
    centre, half = np.array([*(low + size / 2), place.height / 2]), np.array([*(size / 2), place.height / 2])
    turn = np.eye(3)
    if place.style == "b":
        outer = at * np.array([place.width, place.length])
        centre[:2], half[:2], turn = outer, size.min() * 0.7, turn_of(np.pi / 4)
    place.solids.append(Solid(BOX, centre, half, turn, color, ROOM_CLASSES.index("wall")))


def _furnish(place: Room) -> None:
    """Large pieces along the walls first, then tables with their chairs, then lamps and plants."""
    rng = place.rng
    wanted = ["bed"] * (rng.random() < 0.75) + ["sofa"] * (rng.random() < 0.8)
    wanted += ["cabinet"] * rng.integers(1, 3) + ["shelf"] * rng.integers(1, 3)
    for label in wanted:
        _against_wall(place, build(label, place.style, rng))
    for _ in range(rng.integers(1, 3)):
        _table_group(place)
    for label in ["lamp"] * rng.integers(1, 4) + ["plant"] * rng.integers(1, 3) + ["chair"]:
        item = build(label, place.style, rng)
        if item.place == "ceiling":
            _under_ceiling(place, item)
        else:
            _against_wall(place, item, gap=0.05)
    _litter(place)


def _against_wall(place: Room, item: Item, gap: float = 0.02) -> bool:
    for _ in range(30):
        side = int(place.rng.integers(4))
        extent = place.side_length(side)
        if extent < item.width + 0.1:
            continue
        left = place.rng.uniform(0.03, extent - item.width - 0.03)
        box = _at_wall(place, side, np.array([left, gap, left + item.width, gap + item.depth]))
        if place.free(box):
            place.taken.append(box)
            wobble = place.rng.normal(0, 0.04) if place.style == "b" else 0.0
            place.put(item, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, FACING[side] + wobble)
            return True
    return False


def _table_group(place: Room) -> None:
    """A table, free in the room or at a wall, and chairs at its open sides."""
    rng = place.rng
    item = build("table", place.style, rng)
    for _ in range(40):
        turned = int(rng.integers(4))
        width, depth = (item.width, item.depth) if turned < 2 else (item.depth, item.width)
        if place.width < width + 0.3 or place.length < depth + 0.3:
            continue
        x = rng.uniform(width / 2 + 0.05, place.width - width / 2 - 0.05)
        y = rng.uniform(depth / 2 + 0.05, place.length - depth / 2 - 0.05)
        box = np.array([x - width / 2, y - depth / 2, x + width / 2, y + depth / 2])
        if place.free(box, 0.1):
            break
    else:
        return
    place.put(item, x, y, FACING[turned])
    for direction in rng.permutation(4)[: rng.integers(1, 5)]:
        chair = build("chair", place.style, rng)
        if chair.width > 0.8:
            continue
        out = turn_of(FACING[direction])[:2, 1]  # from the table to the chair
        reach = (depth if direction < 2 else width) / 2 + chair.depth * rng.uniform(0.25, 0.6)
        slide = rng.uniform(-0.2, 0.2) * (width if direction < 2 else depth)
        spot = np.array([x, y]) + reach * out + slide * out[::-1]
        half = max(chair.width, chair.depth) / 2
        room_box = np.array([*(spot - half), *(spot + half)])
        if place.free(room_box):
            place.taken.append(room_box)
            place.put(chair, spot[0], spot[1], FACING[direction] + np.pi + rng.normal(0, 0.2))
    place.taken.append(box)


def _under_ceiling(place: Room, item: Item) -> None:
    for _ in range(10):
        x, y = place.rng.uniform(0.25, 0.75, 2) * (place.width, place.length)
        if not place.under_slope(x, y, 0.5):
            place.put(item, x, y, FACING[place.rng.integers(4)])
            place.lights.append(np.array([x, y, place.height - 0.3]))
            return


def _litter(place: Room) -> None:
    """Boxes and bags on the floor that have no class."""
    rng = place.rng
    for _ in range(rng.integers(0, 4)):
        item = Item(CLUTTER, rng, place.style)
        item.size((0.2, 0.5), (0.2, 0.4))
        high = rng.uniform(0.1, 0.45)
        item.add(int(rng.integers(3)), (0, 0, high / 2), (item.width, item.depth, high), item.paint("paper"))
        _against_wall(place, item, gap=rng.uniform(0.05, 1.0))


def _tripods(place: Room) -> list[Array]:
    """Two to four scanner positions on free floor, far from each other."""
    rng = place.rng
    count = 2 + int(place.width * place.length > 15) + (place.style == "b" and rng.random() < 0.5)
    low, high = (1.45, 1.65) if place.style == "a" else (0.9, 1.35)
    spots = rng.uniform(0.12, 0.88, (200, 2)) * (place.width, place.length)
    free = [s for s in spots if place.free(np.array([*(s - 0.2), *(s + 0.2)])) and not place.under_slope(s[0], s[1])]
    chosen: list[Array] = []
    for _ in range(count):
        pool = free if free else [spots[0]]
        far = [min([np.hypot(*(s - c[:2])) for c in chosen], default=rng.random()) for s in pool]
        spot = pool[int(np.argmax(far))]
        chosen.append(np.array([*spot, rng.uniform(low, high)]))
    return chosen


def _shade(place: Room, view: Returns) -> np.ndarray:
    """Colours uint8 [N, 3]: material and pattern, light from windows and lamps, the camera's cast and noise."""
    rng, dim = place.rng, place.style == "b"
    base = np.stack([solid.color for solid in place.solids])[view.solid]
    stripe = np.array([solid.stripe for solid in place.solids])[view.solid]
    phase = np.sin((view.coord * stripe).sum(1)) * (stripe != 0).any(1)
    base = base * (1 + 0.12 * phase + 0.03 * rng.standard_normal(len(base)))[:, None]
    light = np.full(len(base), 0.4 if dim else 0.66)
    for lamp in place.lights:
        away = lamp - view.coord
        distance = np.linalg.norm(away, axis=1).clip(0.3)
        facing = np.abs((view.normal * away).sum(1) / distance)
        light += (0.85 if dim else 0.45) * facing / (1 + distance**2 / 3)
    exposure = rng.normal(1.0, 0.08 if dim else 0.03)
    cast = np.array([1.08, 0.92, 0.68]) if dim else np.array([1.0, 1.0, 1.0])
    color = 255 * (base * light[:, None] * exposure * cast).clip(0, 1) ** (0.85 if dim else 1.0)
    color += rng.normal(0, 10 if dim else 4, color.shape)
    return color.clip(0, 255).astype(np.uint8)


def write_rooms(
    folder: Path | str, num: int, style: str = "a", seed: int = 0, val: int = 0, test: int = 0, grid_size: float = 0.08
) -> Path:
    """Write ``num`` training rooms, and some to validate and test on, as PLY files with a dataset.yaml; its path.

    The label in the files is the class index + 1; 0 is clutter, which is ignored. Other seeds give other rooms.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for index, split in enumerate(["train"] * num + ["val"] * val + ["test"] * test):
        made = room(seed * 10_000 + index, style)
        file = folder / f"{split}_{len(splits[split]):03d}.ply"
        write_ply(file, made["coord"], made["color"], made["segment"] + 1)
        splits[split].append(file.name)
    content = {
        "classes": {index + 1: name for index, name in enumerate(ROOM_CLASSES)},
        "ignore": [0],
        "splits": {split: files for split, files in splits.items() if files},
        "label_field": "label",
        "grid_size": grid_size,
        "scale": 0.02 / grid_size,  # backbones know voxels of 0.02
    }
    target = folder / "dataset.yaml"
    write_text(target, yaml.safe_dump(content, sort_keys=False))
    return target


def write_ply(path: Path, coord: np.ndarray, color: np.ndarray, label: np.ndarray) -> None:
    """Write x y z (float32), red green blue (uint8) and label (int32) of [N] points."""
    columns = dict(zip("xyz", coord.astype(np.float32).T, strict=True))
    columns |= zip(("red", "green", "blue"), color.astype(np.uint8).T, strict=True)
    save(path, {**columns, "label": np.asarray(label, np.int32)})
