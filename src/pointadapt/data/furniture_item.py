"""A piece of procedural furniture: solids, colours by style, footprint.

Frame of an item: x along its back, y to the front, z up, origin on the floor under its middle; metres.
"""

from __future__ import annotations

import numpy as np

from pointadapt.data.raycast import BALL, BOX, CYLINDER, Array, Solid, turn_of

ROOM_CLASSES = (
    "floor", "ceiling", "wall", "window", "door", "table", "chair", "sofa", "bed", "shelf", "cabinet", "lamp", "plant",
)  # fmt: skip
CLUTTER = -1

#: Colours (red, green, blue in 0-1) by style and material; a painter draws one and varies it.
PALETTES: dict[str, dict[str, list[tuple[float, float, float]]]] = {
    "a": dict(
        wall=[(0.93, 0.92, 0.89), (0.88, 0.9, 0.91), (0.9, 0.87, 0.8)],
        ceiling=[(0.96, 0.96, 0.95)],
        floor=[(0.62, 0.48, 0.33), (0.55, 0.55, 0.56), (0.7, 0.6, 0.46)],
        door=[(0.78, 0.66, 0.48), (0.86, 0.85, 0.83)],
        frame=[(0.95, 0.95, 0.95), (0.75, 0.76, 0.78)],
        glass=[(0.62, 0.74, 0.8)],
        wood=[(0.76, 0.6, 0.4), (0.84, 0.74, 0.58), (0.9, 0.89, 0.86)],
        metal=[(0.35, 0.36, 0.38), (0.6, 0.61, 0.63)],
        fabric=[(0.25, 0.33, 0.48), (0.4, 0.42, 0.45), (0.2, 0.22, 0.25), (0.35, 0.5, 0.52)],
        bedding=[(0.9, 0.91, 0.94), (0.55, 0.65, 0.8)],
        shade=[(0.97, 0.95, 0.86)],
        leaf=[(0.2, 0.45, 0.18), (0.3, 0.52, 0.22)],
        pot=[(0.88, 0.88, 0.86), (0.45, 0.45, 0.47)],
        paper=[(0.75, 0.2, 0.18), (0.2, 0.35, 0.6), (0.85, 0.75, 0.4), (0.25, 0.5, 0.35), (0.9, 0.9, 0.88)],
    ),
    "b": dict(
        wall=[(0.72, 0.5, 0.36), (0.52, 0.6, 0.5), (0.78, 0.7, 0.5), (0.5, 0.42, 0.42)],
        ceiling=[(0.72, 0.6, 0.44), (0.82, 0.78, 0.7)],
        floor=[(0.34, 0.2, 0.13), (0.62, 0.3, 0.2), (0.78, 0.76, 0.7), (0.3, 0.34, 0.3)],
        door=[(0.3, 0.42, 0.4), (0.36, 0.2, 0.13), (0.6, 0.55, 0.45)],
        frame=[(0.3, 0.2, 0.14), (0.22, 0.22, 0.22)],
        glass=[(0.4, 0.42, 0.4), (0.75, 0.7, 0.55)],
        wood=[(0.36, 0.22, 0.14), (0.22, 0.16, 0.13), (0.5, 0.3, 0.2), (0.3, 0.4, 0.36)],
        metal=[(0.14, 0.14, 0.14), (0.6, 0.48, 0.25)],
        fabric=[(0.6, 0.25, 0.18), (0.66, 0.52, 0.2), (0.7, 0.64, 0.54), (0.3, 0.36, 0.2)],
        bedding=[(0.7, 0.45, 0.3), (0.5, 0.3, 0.35), (0.85, 0.8, 0.66)],
        shade=[(0.75, 0.35, 0.2), (0.2, 0.2, 0.2), (0.85, 0.75, 0.45)],
        leaf=[(0.26, 0.36, 0.2), (0.4, 0.42, 0.2), (0.22, 0.34, 0.3)],
        pot=[(0.6, 0.32, 0.2), (0.24, 0.26, 0.3)],
        paper=[(0.5, 0.4, 0.3), (0.3, 0.3, 0.32), (0.66, 0.6, 0.48)],
    ),
}


class Item:
    """A piece of furniture being built: its solids, footprint (width, depth) and where it goes."""

    def __init__(self, label: str | int, rng: np.random.Generator, style: str, place: str = "wall") -> None:
        self.label = label if isinstance(label, int) else ROOM_CLASSES.index(label)
        self.rng, self.style, self.place = rng, style, place
        self.width = self.depth = 0.0
        self.solids: list[Solid] = []

    def size(self, width: tuple[float, float], depth: tuple[float, float]) -> tuple[float, float]:
        """Draw the footprint from two ranges."""
        self.width, self.depth = self.rng.uniform(*width), self.rng.uniform(*depth)
        return self.width, self.depth

    def paint(self, material: str) -> Array:
        choice = PALETTES[self.style][material]
        color = np.array(choice[self.rng.integers(len(choice))])
        return (color * self.rng.uniform(0.88, 1.12) + self.rng.normal(0, 0.025, 3)).clip(0.03, 0.98)

    def add(self, shape: int, centre: tuple, size: tuple, color: Array, turn: tuple = (), **more) -> None:
        """One solid of full ``size`` (x, y, z); ``turn`` = (yaw, pitch, roll) in radians."""
        half = np.maximum(np.array(size, dtype=float) / 2, 1e-3)
        label = more.pop("label", self.label)
        self.solids.append(Solid(shape, np.array(centre, dtype=float), half, turn_of(*turn), color, label, **more))

    def box(self, centre: tuple, size: tuple, color: Array, turn: tuple = (), **more) -> None:
        self.add(BOX, centre, size, color, turn, **more)

    def rod(self, centre: tuple, size: tuple, color: Array, turn: tuple = (), **more) -> None:
        self.add(CYLINDER, centre, size, color, turn, **more)

    def ball(self, centre: tuple, size: tuple, color: Array, turn: tuple = (), **more) -> None:
        self.add(BALL, centre, size, color, turn, **more)

    def legs(self, width: float, depth: float, height: float, thick: float, color: Array, shape: int = BOX) -> None:
        for x in (-1, 1):
            for y in (-1, 1):
                spot = (x * (width - thick) / 2, y * (depth - thick) / 2, height / 2)
                self.add(shape, spot, (thick, thick, height), color)

    def books(self, left: float, right: float, y: float, z: float, depth: float, room: float) -> None:
        """Books on a board from x = left to right, some gaps."""
        x = left
        while x < right - 0.05:
            width = min(self.rng.uniform(0.06, 0.25), right - x)
            if self.rng.random() < 0.75:
                tall, deep = room * self.rng.uniform(0.6, 0.92), depth * self.rng.uniform(0.6, 0.9)
                self.box((x + width / 2, y, z + tall / 2), (width * 0.96, deep, tall), self.paint("paper"))
            x += width

    def clutter(self, height: float, count: int, spread: float = 0.38) -> None:
        """Small things without a class on a top at ``height``."""
        for _ in range(count):
            x, y = self.rng.uniform(-spread, spread, 2) * (self.width, self.depth)
            size = self.rng.uniform([0.06, 0.06, 0.04], [0.3, 0.22, 0.25])
            shape = BOX if self.rng.random() < 0.6 else CYLINDER
            turn = (self.rng.uniform(0, np.pi),)
            self.add(shape, (x, y, height + size[2] / 2), tuple(size), self.paint("paper"), turn, label=CLUTTER)
