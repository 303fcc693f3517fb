"""The procedural furniture of the synthetic rooms: one function per kind of object, two styles with their own kinds.

An :class:`~pointadapt.data.furniture_item.Item` is built in its own frame, which is told there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pointadapt.data.furniture_item import CLUTTER, Item
from pointadapt.data.raycast import CYLINDER

# ---- tables ----------------------------------------------------------------------------------------------------------


def desk(item: Item) -> None:
    width, depth = item.size((1.1, 1.7), (0.6, 0.8))
    height, wood, metal = item.rng.uniform(0.7, 0.76), item.paint("wood"), item.paint("metal")
    item.box((0, 0, height), (width, depth, 0.04), wood)
    item.legs(width - 0.06, depth - 0.06, height, 0.05, metal)
    if item.rng.random() < 0.5:
        item.box((0, -depth / 2 + 0.03, height - 0.2), (width - 0.1, 0.02, 0.35), wood)
    screen = item.rng.uniform(-0.25, 0.25) * width
    item.box((screen, -depth * 0.2, height + 0.32), (0.55, 0.04, 0.32), item.paint("metal"), label=CLUTTER)
    item.box((screen, -depth * 0.2, height + 0.1), (0.08, 0.06, 0.18), item.paint("metal"), label=CLUTTER)
    item.clutter(height + 0.02, int(item.rng.integers(0, 4)))


def dining_table(item: Item) -> None:
    width, depth = item.size((1.2, 1.9), (0.75, 0.95))
    height, wood = item.rng.uniform(0.72, 0.77), item.paint("wood")
    item.box((0, 0, height), (width, depth, 0.045), wood, stripe=(0, 40, 0))
    item.legs(width - 0.08, depth - 0.08, height, 0.07, wood)
    item.clutter(height + 0.02, int(item.rng.integers(0, 3)))


def round_table(item: Item) -> None:
    width, _ = item.size((0.8, 1.3), (0.8, 1.0))
    item.depth = width
    height, wood = item.rng.uniform(0.68, 0.8), item.paint("wood")
    item.rod((0, 0, height), (width, width, 0.05), wood)
    item.rod((0, 0, height / 2), (0.12, 0.12, height), wood)
    item.rod((0, 0, 0.03), (width * 0.5, width * 0.5, 0.06), wood)
    item.clutter(height + 0.025, int(item.rng.integers(0, 4)), spread=0.28)


def coffee_table(item: Item) -> None:
    width, depth = item.size((0.7, 1.1), (0.5, 0.8))
    height, wood = item.rng.uniform(0.3, 0.42), item.paint("wood")
    item.rod((0, 0, height), (width, depth, 0.06), wood)
    for angle in item.rng.uniform(0, 2) + np.arange(3) * 2 * np.pi / 3:
        foot = (0.3 * width * np.cos(angle), 0.3 * depth * np.sin(angle), height / 2)
        item.rod(foot, (0.06, 0.06, height), wood, (angle, 0, 0.2))
    item.clutter(height + 0.03, int(item.rng.integers(0, 3)), spread=0.25)


def trestle(item: Item) -> None:
    width, depth = item.size((1.3, 2.0), (0.6, 0.8))
    height, wood = item.rng.uniform(0.74, 0.9), item.paint("wood")
    item.box((0, 0, height), (width, depth, 0.05), wood, stripe=(0, 55, 0))
    for side in (-0.36, 0.36):
        for lean in (-0.3, 0.3):
            item.box((side * width, lean * depth * 0.65, height / 2), (0.06, 0.05, height), wood, (0, -lean))
        item.box((side * width, 0, height * 0.45), (0.05, depth * 0.5, 0.05), wood)
    item.clutter(height + 0.025, int(item.rng.integers(1, 5)))


# ---- chairs ----------------------------------------------------------------------------------------------------------


def plain_chair(item: Item) -> None:
    width, depth = item.size((0.4, 0.5), (0.42, 0.5))
    height, wood = item.rng.uniform(0.43, 0.48), item.paint("wood")
    item.box((0, 0, height), (width, depth, 0.05), wood if item.rng.random() < 0.5 else item.paint("fabric"))
    item.legs(width, depth, height, 0.04, wood)
    item.box((0, -depth / 2, height + 0.28), (width, 0.035, 0.36), wood, (0, 0.12))
    for x in (-1, 1):
        item.box((x * (width / 2 - 0.02), -depth / 2, height + 0.12), (0.035, 0.035, 0.3), wood, (0, 0.12))


def office_chair(item: Item) -> None:
    width, depth = item.size((0.48, 0.56), (0.48, 0.56))
    height, cloth, metal = item.rng.uniform(0.44, 0.52), item.paint("fabric"), item.paint("metal")
    item.box((0, 0, height), (width, depth, 0.09), cloth)
    item.box((0, -depth / 2 + 0.02, height + 0.38), (width * 0.9, 0.07, 0.55), cloth, (0, 0.15))
    item.rod((0, 0, height / 2), (0.06, 0.06, height), metal)
    for angle in np.arange(5) * 2 * np.pi / 5:
        item.box((0.14 * np.cos(angle), 0.14 * np.sin(angle), 0.07), (0.3, 0.05, 0.05), metal, (angle,))
    if item.rng.random() < 0.6:
        for x in (-1, 1):
            item.box((x * width * 0.55, 0, height + 0.2), (0.05, depth * 0.55, 0.04), metal)
            item.box((x * width * 0.55, 0, height + 0.1), (0.04, 0.05, 0.2), metal)


def stool(item: Item) -> None:
    width, _ = item.size((0.32, 0.42), (0.3, 0.4))
    item.depth = width
    height, wood = item.rng.uniform(0.42, 0.75), item.paint("wood")
    item.rod((0, 0, height), (width, width, 0.06), wood if item.rng.random() < 0.5 else item.paint("fabric"))
    for angle in item.rng.uniform(0, 2) + np.arange(3) * 2 * np.pi / 3:
        foot = (0.32 * width * np.cos(angle), 0.32 * width * np.sin(angle), height / 2)
        item.rod(foot, (0.04, 0.04, height), wood, (angle, 0, -0.14))


def bucket_chair(item: Item) -> None:
    """A low tub on one foot: no legs, a back all round."""
    width, _ = item.size((0.62, 0.75), (0.6, 0.7))
    item.depth = width
    cloth = item.paint("fabric")
    item.rod((0, 0, 0.36), (width, width, 0.16), cloth)
    item.rod((0, 0, 0.15), (width * 0.4, width * 0.4, 0.3), item.paint("metal"))
    for angle in np.radians(np.linspace(180, 360, 7)):
        spot = (0.46 * width * np.cos(angle), 0.46 * width * np.sin(angle), 0.55)
        item.box(spot, (0.07, width * 0.28, 0.42), cloth, (angle,))


def bench(item: Item) -> None:
    width, depth = item.size((0.9, 1.4), (0.32, 0.4))
    height, wood = item.rng.uniform(0.4, 0.48), item.paint("wood")
    item.box((0, 0, height), (width, depth, 0.06), wood, stripe=(0, 60, 0))
    for side in (-0.4, 0.4):
        item.box((side * width, 0, height / 2), (0.06, depth * 0.85, height), wood)


# ---- sofas and beds --------------------------------------------------------------------------------------------------


def couch(item: Item) -> None:
    width, depth = item.size((1.5, 2.2), (0.8, 0.95))
    cloth, height = item.paint("fabric"), item.rng.uniform(0.38, 0.46)
    item.box((0, 0, height / 2 + 0.05), (width, depth, height - 0.1), cloth)
    item.box((0, -depth / 2 + 0.12, height + 0.2), (width, 0.24, 0.5), cloth, (0, 0.12))
    for x in (-1, 1):
        item.box((x * (width / 2 - 0.09), 0, height + 0.02), (0.18, depth, 0.36), cloth)
    for x in np.linspace(-0.25, 0.25, 2) * width:
        item.box((x, 0.06, height + 0.05), (width * 0.38, depth * 0.65, 0.12), cloth * 1.05)


def modular_sofa(item: Item) -> None:
    """Low, on the floor, an L, without arms, with loose round cushions."""
    width, depth = item.size((1.7, 2.4), (1.3, 1.6))
    cloth, height = item.paint("fabric"), item.rng.uniform(0.28, 0.36)
    side = item.rng.choice([-1, 1])
    item.box((0, -depth / 2 + 0.4, height / 2), (width, 0.8, height), cloth)
    item.box((side * (width / 2 - 0.4), 0.2, height / 2), (0.8, depth - 0.4, height), cloth)
    item.box((0, -depth / 2 + 0.1, height + 0.15), (width, 0.2, 0.3), cloth)
    for x in item.rng.uniform(-0.4, 0.4, 3) * width:
        item.ball((x, -depth / 2 + 0.28, height + 0.16), (0.42, 0.2, 0.4), item.paint("fabric"))


def futon(item: Item) -> None:
    width, depth = item.size((1.4, 1.9), (0.8, 0.95))
    cloth, wood = item.paint("fabric"), item.paint("wood")
    for y in np.linspace(-0.4, 0.4, 5) * depth:
        item.box((0, y, 0.2), (width, 0.07, 0.04), wood)
    item.legs(width, depth, 0.2, 0.06, wood)
    item.box((0, 0.05, 0.3), (width, depth * 0.9, 0.16), cloth)
    item.box((0, -depth * 0.42, 0.6), (width, 0.15, 0.55), cloth, (0, 0.35))


def beanbag(item: Item) -> None:
    width, depth = item.size((0.8, 1.05), (0.8, 1.0))
    cloth = item.paint("fabric")
    item.ball((0, 0, 0.25), (width, depth, 0.5), cloth)
    item.ball((0, -depth * 0.2, 0.45), (width * 0.75, depth * 0.55, 0.6), cloth)


def plain_bed(item: Item) -> None:
    width, depth = item.size((0.95, 1.7), (1.95, 2.1))
    wood, cloth = item.paint("wood"), item.paint("bedding")
    item.box((0, 0, 0.2), (width, depth, 0.16), wood)
    item.legs(width, depth, 0.2, 0.07, wood)
    item.box((0, 0, 0.38), (width * 0.97, depth * 0.97, 0.22), item.paint("bedding"))
    item.box((0, depth * 0.15, 0.5), (width, depth * 0.62, 0.06), cloth)
    item.box((0, -depth / 2 + 0.03, 0.5), (width, 0.06, item.rng.uniform(0.8, 1.0)), wood)
    for x in (-0.24, 0.24) if width > 1.3 else (0,):
        item.box((x * width, -depth / 2 + 0.3, 0.54), (0.6, 0.38, 0.12), item.paint("bedding"))


def bunk_bed(item: Item) -> None:
    width, depth = item.size((1.95, 2.1), (0.85, 1.0))
    wood, top = item.paint("wood"), item.rng.uniform(1.3, 1.55)
    item.legs(width, depth, top + 0.35, 0.07, wood)
    for height in (0.35, top):
        item.box((0, 0, height), (width, depth, 0.08), wood)
        item.box((0, 0, height + 0.12), (width * 0.96, depth * 0.92, 0.15), item.paint("bedding"))
        item.ball((width * 0.38, 0, height + 0.22), (0.35, depth * 0.6, 0.14), item.paint("bedding"))
        item.box((0, depth / 2 - 0.02, height + 0.25), (width, 0.03, 0.1), wood)
    for step in np.linspace(0.3, top, 5):
        item.rod((-width * 0.33, depth / 2 + 0.03, step), (0.04, 0.04, 0.38), wood, (0, 0, np.pi / 2))


def floor_bed(item: Item) -> None:
    """A thick mattress on a pallet with a heap of blankets and four posts."""
    width, depth = item.size((1.2, 1.7), (1.9, 2.1))
    item.box((0, 0, 0.07), (width + 0.15, depth, 0.14), item.paint("wood"), stripe=(30, 0, 0))
    item.box((0, 0, 0.24), (width, depth * 0.95, 0.22), item.paint("bedding"))
    for _ in range(3):
        x, y = item.rng.uniform(-0.25, 0.25, 2) * (width, depth)
        size = (item.rng.uniform(0.5, 0.9), item.rng.uniform(0.5, 1.0), 0.3)
        item.ball((x, y, 0.36), size, item.paint("bedding"), (item.rng.uniform(0, 3),))
    if item.rng.random() < 0.5:
        item.legs(width + 0.1, depth, item.rng.uniform(1.6, 1.95), 0.06, item.paint("wood"), CYLINDER)


# ---- shelves and cabinets --------------------------------------------------------------------------------------------


def bookcase(item: Item) -> None:
    width, depth = item.size((0.8, 1.4), (0.28, 0.36))
    height, wood = item.rng.uniform(1.6, 2.15), item.paint("wood")
    for x in (-1, 1):
        item.box((x * (width / 2 - 0.012), 0, height / 2), (0.024, depth, height), wood)
    item.box((0, -depth / 2 + 0.006, height / 2), (width, 0.012, height), wood)
    boards = np.linspace(0.06, height - 0.02, int(item.rng.integers(5, 7)))
    for z, above in zip(boards, boards[1:], strict=False):
        item.box((0, 0, z), (width, depth, 0.024), wood)
        item.books(-width / 2 + 0.03, width / 2 - 0.03, -0.02, z + 0.012, depth, above - z)
    item.box((0, 0, height - 0.012), (width, depth, 0.024), wood)


def wall_boards(item: Item) -> None:
    """Boards on brackets, nothing below."""
    width, depth = item.size((0.9, 1.6), (0.22, 0.3))
    wood, metal = item.paint("wood"), item.paint("metal")
    for z in np.arange(item.rng.uniform(0.75, 1.1), 2.0, item.rng.uniform(0.34, 0.45)):
        part, shift = item.rng.uniform(0.55, 1.0), item.rng.uniform(-0.15, 0.15) * width
        item.box((shift, 0, z), (width * part, depth, 0.035), wood)
        for x in (-0.3, 0.3):
            item.box((shift + x * width * part, -depth * 0.2, z - 0.08), (0.02, depth * 0.6, 0.12), metal)
        item.books(shift - width * part / 2, shift + width * part / 2, -0.02, z + 0.018, depth, 0.3)


def ladder_shelf(item: Item) -> None:
    width, depth = item.size((0.6, 0.9), (0.4, 0.5))
    height, wood = item.rng.uniform(1.7, 2.0), item.paint("wood")
    lean = np.arctan2(depth * 0.7, height)
    for x in (-1, 1):
        item.box((x * width / 2, 0, height / 2), (0.04, 0.06, height), wood, (0, lean))
        item.box((x * width / 2, -depth / 2, height / 2), (0.04, 0.04, height), wood)
    for z in np.linspace(0.25, height - 0.15, 4):
        deep = depth * (1 - 0.65 * z / height)
        item.box((0, -depth / 2 + deep / 2, z), (width, deep, 0.03), wood)
        item.books(-width / 2 + 0.03, width / 2 - 0.03, -depth / 2 + deep / 2, z + 0.015, deep, 0.3)


def wardrobe(item: Item) -> None:
    width, depth = item.size((0.9, 1.8), (0.5, 0.62))
    height, wood, metal = item.rng.uniform(1.85, 2.2), item.paint("wood"), item.paint("metal")
    doors = max(2, round(width / 0.5))
    item.box((0, 0, 0.04), (width - 0.04, depth - 0.06, 0.08), wood * 0.7)
    item.box((0, -0.01, height / 2 + 0.04), (width, depth - 0.02, height - 0.08), wood)
    for index in range(doors):
        x = -width / 2 + (index + 0.5) * width / doors
        item.box((x, depth / 2 - 0.01, height / 2 + 0.04), (width / doors - 0.03, 0.02, height - 0.12), wood * 1.04)
        item.box((x + 0.15 * (-1) ** index, depth / 2 + 0.02, 1.05), (0.02, 0.04, 0.2), metal)


def drawers(item: Item) -> None:
    width, depth = item.size((0.5, 1.3), (0.4, 0.52))
    height, wood, metal = item.rng.uniform(0.6, 1.0), item.paint("wood"), item.paint("metal")
    item.box((0, -0.01, height / 2), (width, depth - 0.02, height), wood)
    rows = int(item.rng.integers(2, 5))
    for index in range(rows):
        z = (index + 0.5) * height / rows
        item.box((0, depth / 2 - 0.01, z), (width - 0.04, 0.02, height / rows - 0.03), wood * 1.05)
        item.box((0, depth / 2 + 0.01, z + 0.04), (width * 0.3, 0.03, 0.02), metal)
    item.clutter(height, int(item.rng.integers(0, 3)))


def kitchen(item: Item) -> None:
    """A worktop over low cupboards and a row hung on the wall above."""
    width, depth = item.size((1.5, 2.4), (0.58, 0.64))
    wood = item.paint("wood")
    item.box((0, -0.03, 0.45), (width, depth - 0.06, 0.8), wood, stripe=(10, 0, 0))
    item.box((0, 0, 0.88), (width + 0.04, depth, 0.05), item.paint("pot"))
    item.box((0, -depth / 2 + 0.17, item.rng.uniform(1.7, 1.85)), (width, 0.34, 0.6), wood, stripe=(10, 0, 0))
    item.clutter(0.905, int(item.rng.integers(2, 6)), spread=0.42)


def chest(item: Item) -> None:
    """A trunk with a round lid."""
    width, depth = item.size((0.8, 1.2), (0.45, 0.6))
    wood = item.paint("wood")
    item.box((0, 0, 0.23), (width, depth, 0.46), wood, stripe=(35, 0, 0))
    item.rod((0, 0, 0.46), (depth * 0.8, depth, width), wood, (0, 0, np.pi / 2))


def corner_cupboard(item: Item) -> None:
    """Tall, round-fronted, on high legs."""
    width, depth = item.size((0.6, 0.85), (0.45, 0.6))
    height, wood = item.rng.uniform(1.3, 1.75), item.paint("wood")
    item.rod((0, -0.02, 0.3 + (height - 0.3) / 2), (width, depth, height - 0.3), wood)
    item.legs(width * 0.75, depth * 0.7, 0.3, 0.05, wood, CYLINDER)
    item.rod((0, 0, height), (width * 1.08, depth * 1.08, 0.04), wood * 0.8)


# ---- lamps and plants ------------------------------------------------------------------------------------------------


def floor_lamp(item: Item) -> None:
    width, _ = item.size((0.35, 0.48), (0.3, 0.4))
    item.depth = width
    height, metal = item.rng.uniform(1.45, 1.8), item.paint("metal")
    item.rod((0, 0, 0.02), (0.3, 0.3, 0.04), metal)
    item.rod((0, 0, height / 2), (0.04, 0.04, height), metal)
    item.rod((0, 0, height), (width, width, 0.32), item.paint("shade"))


def panel_light(item: Item) -> None:
    """Flush on the ceiling (z = 0 is the ceiling)."""
    item.place = "ceiling"
    width, depth = item.size((0.55, 1.3), (0.3, 0.62))
    item.box((0, 0, -0.035), (width, depth, 0.07), item.paint("shade"))


def pendant(item: Item) -> None:
    """Hung from the ceiling (z = 0) on a cord."""
    item.place = "ceiling"
    width, _ = item.size((0.35, 0.6), (0.3, 0.4))
    item.depth = width
    drop, shade = item.rng.uniform(0.5, 0.9), item.paint("shade")
    item.rod((0, 0, -drop / 2), (0.03, 0.03, drop), item.paint("metal"))
    if item.rng.random() < 0.5:
        item.ball((0, 0, -drop), (width, width, width), shade)
    else:
        item.rod((0, 0, -drop), (width, width, 0.14), shade)
        item.rod((0, 0, -drop + 0.12), (width * 0.55, width * 0.55, 0.12), shade)


def arc_lamp(item: Item) -> None:
    width, depth = item.size((0.45, 0.6), (0.9, 1.2))
    height, metal = item.rng.uniform(1.5, 1.85), item.paint("metal")
    item.box((0, -depth / 2 + 0.15, 0.05), (0.3, 0.3, 0.1), metal)
    bend = np.linspace(0, np.pi * 0.75, 9)
    path = np.stack([-depth / 2 + 0.15 + depth * 0.36 * (1 - np.cos(bend)), height * np.sin(bend).clip(0, 1)], 1)
    for start, end in zip(path, path[1:], strict=False):
        mid, step = (start + end) / 2, end - start
        lean = -np.arctan2(step[0], step[1])
        item.rod((0, mid[0], mid[1]), (0.045, 0.045, float(np.hypot(*step)) + 0.02), metal, (0, lean))
    item.ball((0, path[-1, 0], path[-1, 1] - 0.1), (0.36, 0.36, 0.3), item.paint("shade"))


def bush(item: Item) -> None:
    width, _ = item.size((0.4, 0.7), (0.4, 0.6))
    item.depth = width
    pot, leaf = item.rng.uniform(0.25, 0.4), item.paint("leaf")
    item.rod((0, 0, pot / 2), (0.32, 0.32, pot), item.paint("pot"))
    tall = item.rng.uniform(0.5, 0.9)
    item.ball((0, 0, pot + tall * 0.5), (width, width, tall), leaf, opacity=0.75)
    for _ in range(14):
        yaw, tilt = item.rng.uniform(0, 2 * np.pi), item.rng.uniform(-0.9, 0.9)
        reach = width * item.rng.uniform(0.3, 0.55)
        spot = (reach * np.cos(yaw), reach * np.sin(yaw), pot + tall * item.rng.uniform(0.3, 1.0))
        item.ball(spot, (0.22, 0.1, 0.02), item.paint("leaf"), (yaw, tilt * 0.5, tilt))


def cactus(item: Item) -> None:
    item.size((0.45, 0.6), (0.35, 0.45))
    leaf, height = item.paint("leaf"), item.rng.uniform(0.8, 1.5)
    item.rod((0, 0, 0.13), (0.36, 0.36, 0.26), item.paint("pot"))
    item.rod((0, 0, 0.26 + height / 2), (0.17, 0.17, height), leaf)
    item.ball((0, 0, 0.26 + height), (0.17, 0.17, 0.17), leaf)
    for side in (-1, 1):
        z = 0.26 + height * item.rng.uniform(0.3, 0.6)
        item.rod((side * 0.13, 0, z), (0.1, 0.1, 0.2), leaf, (0, 0, np.pi / 2))
        item.rod((side * 0.22, 0, z + 0.17), (0.1, 0.1, 0.34), leaf)


def palm(item: Item) -> None:
    width, _ = item.size((0.8, 1.1), (0.7, 0.9))
    item.depth = width
    height = item.rng.uniform(1.0, 1.6)
    item.rod((0, 0, 0.15), (0.4, 0.4, 0.3), item.paint("pot"))
    item.rod((0, 0, height / 2 + 0.2), (0.07, 0.07, height), item.paint("wood"))
    for yaw in item.rng.uniform(0, 1) + np.arange(11) * 2 * np.pi / 11:
        for part, (reach, rise, tilt) in enumerate([(0.2, 0.12, -0.5), (0.42, 0.1, 0.35)]):
            spot = (reach * width * np.cos(yaw), reach * width * np.sin(yaw), height + 0.22 + rise - 0.05 * part)
            item.ball(spot, (0.34 * width, 0.13, 0.03), item.paint("leaf"), (yaw, 0, tilt))


def hanging_plant(item: Item) -> None:
    item.place = "ceiling"
    item.size((0.4, 0.55), (0.4, 0.5))
    drop = item.rng.uniform(0.4, 0.7)
    for x in (-0.1, 0.1):
        item.rod((x, 0, -drop / 2), (0.02, 0.02, drop), item.paint("metal"))
    item.rod((0, 0, -drop), (0.28, 0.28, 0.2), item.paint("pot"))
    for _ in range(16):
        yaw, fall = item.rng.uniform(0, 2 * np.pi), item.rng.uniform(0.0, 0.5)
        spot = (0.18 * np.cos(yaw), 0.18 * np.sin(yaw), -drop - fall + 0.15)
        item.ball(spot, (0.1, 0.1, 0.22), item.paint("leaf"), (yaw, 0.3), opacity=0.8)


Maker = Callable[[Item], None]

#: What stands in the rooms of each style, by class, with its weight. Style "b" shares only a few kinds with "a".
KINDS: dict[str, dict[str, list[tuple[Maker, float]]]] = {
    "a": dict(
        table=[(desk, 0.55), (dining_table, 0.45)],
        chair=[(plain_chair, 0.5), (office_chair, 0.5)],
        sofa=[(couch, 1.0)],
        bed=[(plain_bed, 1.0)],
        shelf=[(bookcase, 1.0)],
        cabinet=[(wardrobe, 0.55), (drawers, 0.45)],
        lamp=[(floor_lamp, 0.5), (panel_light, 0.5)],
        plant=[(bush, 1.0)],
    ),
    "b": dict(
        table=[(round_table, 0.35), (coffee_table, 0.25), (trestle, 0.25), (dining_table, 0.15)],
        chair=[(stool, 0.3), (bucket_chair, 0.3), (bench, 0.2), (plain_chair, 0.2)],
        sofa=[(modular_sofa, 0.35), (futon, 0.3), (beanbag, 0.2), (couch, 0.15)],
        bed=[(bunk_bed, 0.45), (floor_bed, 0.4), (plain_bed, 0.15)],
        shelf=[(wall_boards, 0.45), (ladder_shelf, 0.35), (bookcase, 0.2)],
        cabinet=[(kitchen, 0.35), (chest, 0.25), (corner_cupboard, 0.25), (drawers, 0.15)],
        lamp=[(pendant, 0.5), (arc_lamp, 0.35), (floor_lamp, 0.15)],
        plant=[(cactus, 0.3), (palm, 0.35), (hanging_plant, 0.2), (bush, 0.15)],
    ),
}


def build(label: str, style: str, rng: np.random.Generator) -> Item:
    """A random item of a class in a style."""
    makers, weights = zip(*KINDS[style][label], strict=True)
    item = Item(label, rng, style)
    makers[rng.choice(len(makers), p=weights)](item)
    return item
