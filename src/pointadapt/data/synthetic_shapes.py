"""Procedural objects: points on the surfaces of man-made things, with a class or freely composed.

    coord, label = shapes(seed=0, count=200)          # [200, 1024, 3] in the unit sphere, [200] rows of SHAPE_CLASSES
    coord = compositions(seed=0, count=200)           # assemblies of random parts, without a class

Each class has several builds, and all shapes are stretched at random: what tells the classes apart is how parts are
arranged, not their extent. Frame: z up, y to the front. The same seed gives the same shapes; a shorter call gives the
first of a longer one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pointadapt.data.surfaces import Assembly, box, cylinder, lathe, prism, random_surface, superquadric, torus, tube

STRETCH = 0.16  # standard deviation of the log of each axis's random scale


def chair(a: Assembly) -> None:
    width, depth, height = a.draw(0.42, 0.6), a.draw(0.42, 0.6), a.draw(0.35, 0.5)
    round_seat = a.chance(0.3)
    seat = superquadric(0.3, 0.6) if round_seat else box()
    a.add(seat, (0, 0, height), (width, depth, a.draw(0.03, 0.12)))
    tall, lean = a.draw(0.3, 0.65), a.draw(0.0, 0.25)
    back = (0, -depth / 2 - lean * tall / 2, height + tall / 2)
    style = a.rng.integers(4)
    if style == 0:
        a.box(back, (width, 0.04, tall), (0, lean))
    elif style == 1:  # slats between posts
        for x in (-1, 1):
            a.box((x * width * 0.46, back[1], back[2]), (0.04, 0.04, tall), (0, lean))
        for z in np.linspace(-0.4, 0.45, a.rng.integers(2, 5)):
            a.box((0, back[1] - lean * tall * z, back[2] + tall * z), (width, 0.03, 0.06))
    elif style == 2:  # spindles under a rail
        a.box((0, back[1] - lean * tall / 2, height + tall), (width, 0.04, 0.08))
        for x in np.linspace(-0.45, 0.45, a.rng.integers(4, 8)):
            a.rod((x * width, back[1], back[2]), (0.025, 0.025, tall), (0, lean))
    else:  # a shell around the back
        for angle in np.radians(np.linspace(200, 340, 6)):
            spot = (0.5 * width * np.cos(angle), 0.5 * depth * np.sin(angle), back[2])
            a.box(spot, (0.04, width * 0.26, tall), (angle,))
    if a.chance(0.3):
        star_foot(a, height, 0.5 * width)
    elif a.chance(0.15):  # sledge
        for x in (-1, 1):
            a.box((x * width * 0.47, 0, 0.02), (0.04, depth, 0.04))
            a.box((x * width * 0.47, depth * 0.47, height / 2), (0.04, 0.04, height))
    else:
        a.legs(width, depth, height, a.draw(0.03, 0.07), a.draw(0, 0.12) if a.chance(0.4) else 0.0)
    if a.chance(0.4):
        rise = a.draw(0.15, 0.25)
        for x in (-1, 1):
            a.box((x * width / 2, 0, height + rise), (0.05, depth * 0.9, 0.04))
            a.box((x * width / 2, depth * 0.4, height + rise / 2), (0.04, 0.04, rise))


def star_foot(a: Assembly, height: float, reach: float) -> None:
    """A column on arms or on a plate."""
    a.rod((0, 0, height / 2), (0.07, 0.07, height))
    if a.chance(0.5):
        a.rod((0, 0, 0.02), (2 * reach, 2 * reach, 0.04))
        return
    count = a.rng.integers(3, 6)
    for angle in np.arange(count) * 2 * np.pi / count + a.draw(0, 1):
        a.box((0.5 * reach * np.cos(angle), 0.5 * reach * np.sin(angle), 0.04), (reach, 0.05, 0.05), (angle,))


def stool(a: Assembly) -> None:
    width, height = a.draw(0.3, 0.45), a.draw(0.35, 0.75)
    a.add(cylinder() if a.chance(0.6) else box(), (0, 0, height), (width, width, a.draw(0.04, 0.12)))
    if a.chance(0.4):
        star_foot(a, height, width * 0.5)
    else:
        a.legs(width * 0.75, width * 0.75, height, a.draw(0.03, 0.05), a.draw(0.0, 0.15))
        if a.chance(0.5):
            a.add(torus(0.08), (0, 0, height * 0.35), (width, width, 0.03))


def table(a: Assembly) -> None:
    width, depth, height = a.draw(0.7, 1.8), a.draw(0.6, 1.0), a.draw(0.35, 0.8)
    top = box() if a.chance(0.6) else superquadric(0.1, a.draw(0.4, 1.0))
    a.add(top, (0, 0, height), (width, depth, a.draw(0.03, 0.08)))
    style = a.rng.integers(4)
    if style == 0:
        star_foot(a, height, 0.4 * depth)
    elif style == 1:
        for x in (-0.4, 0.4):
            a.box((x * width, 0, height / 2), (0.06, depth * 0.1, height))
            a.box((x * width, 0, 0.03), (0.06, depth * 0.8, 0.06))
        a.box((0, 0, height * 0.3), (width * 0.8, 0.04, 0.08))
    else:
        a.legs(width * a.draw(0.85, 1), depth * a.draw(0.85, 1), height, a.draw(0.04, 0.1))
        if a.chance(0.3):
            a.box((0, 0, height * a.draw(0.2, 0.5)), (width * 0.9, depth * 0.9, 0.03))
        if a.chance(0.4):
            for y in (-1, 1):
                a.box((0, y * depth * 0.42, height - 0.07), (width * 0.85, 0.02, 0.1))


def desk(a: Assembly) -> None:
    width, depth, height = a.draw(1.0, 1.7), a.draw(0.5, 0.9), a.draw(0.65, 0.8)
    a.box((0, 0, height), (width, depth, 0.04))
    chest = width * a.draw(0.22, 0.34)
    sides = (-1, 1) if a.chance(0.4) else (a.rng.choice([-1, 1]),)
    low = a.draw(0.0, 0.4) * height
    for x in sides:
        front_of_drawers(a, x * (width - chest) / 2, depth, low, height, chest, int(a.rng.integers(1, 5)))
    for x in {-1, 1} - set(sides) or ():
        a.box((x * (width / 2 - 0.02), 0, height / 2), (0.04, depth, height))
    if low > 0.1:
        a.legs(width, depth, height, 0.05)
    if a.chance(0.6):
        a.box((0, -depth * 0.45, height * 0.65), (width, 0.02, height * 0.6))
    if a.chance(0.35):  # an upper part
        a.box((0, -depth * 0.4, height + 0.35), (width, depth * 0.2, 0.03))
        for x in (-0.49, 0, 0.49):
            a.box((x * width, -depth * 0.4, height + 0.17), (0.03, depth * 0.2, 0.35))


def front_of_drawers(
    a: Assembly, x: float, depth: float, low: float, high: float, width: float, count: int, columns: int = 1
) -> None:
    """A case from ``low`` to ``high`` with drawers or doors and their handles."""
    a.box((x, 0, (low + high) / 2), (width, depth, high - low))
    tall, wide = (high - low) / count, width / columns
    knob, gap = a.chance(0.5), a.draw(0.84, 0.96)
    for column in range(columns):
        for row in range(count):
            cx, cz = x + (column - (columns - 1) / 2) * wide, low + (row + 0.5) * tall
            a.box((cx, depth / 2 + 0.01, cz), (wide * gap, 0.025, tall * gap))
            if knob:
                a.add(superquadric(), (cx, depth / 2 + 0.04, cz), (0.05, 0.05, 0.05))
            else:
                a.box((cx, depth / 2 + 0.04, cz), (wide * 0.4, 0.02, 0.02))


def cabinet(a: Assembly) -> None:
    width, depth, height = a.draw(0.4, 1.4), a.draw(0.35, 0.6), a.draw(0.5, 1.6)
    foot = a.draw(0.05, 0.3) if a.chance(0.5) else 0.0
    if foot:
        a.legs(width, depth, foot, a.draw(0.04, 0.08))
    front_of_drawers(a, 0, depth, foot, height, width, int(a.rng.integers(1, 6)), int(a.rng.integers(1, 4)))
    if a.chance(0.4):
        a.box((0, 0, height + 0.02), (width * 1.08, depth * 1.1, 0.04))


def night_stand(a: Assembly) -> None:
    """A drawer or two above an open compartment."""
    width, depth, height = a.draw(0.4, 0.6), a.draw(0.35, 0.5), a.draw(0.5, 0.7)
    front_of_drawers(a, 0, depth, height * a.draw(0.55, 0.75), height, width, int(a.rng.integers(1, 3)))
    a.box((0, 0, height), (width * 1.05, depth * 1.05, 0.03))
    if a.chance(0.5):
        a.legs(width, depth, height, 0.05)
    else:
        for x in (-1, 1):
            a.box((x * (width / 2 - 0.015), 0, height / 2), (0.03, depth, height))
    if a.chance(0.7):
        a.box((0, 0, height * a.draw(0.08, 0.25)), (width, depth, 0.03))


def shelf(a: Assembly) -> None:
    width, depth, height = a.draw(0.5, 1.4), a.draw(0.25, 0.45), a.draw(0.8, 2.0)
    posts = a.chance(0.3)
    for x in (-1, 1):
        if posts:
            for y in (-1, 1):
                a.box((x * width / 2, y * depth * 0.45, height / 2), (0.04, 0.04, height))
        else:
            a.box((x * width / 2, 0, height / 2), (0.03, depth, height))
    boards = np.linspace(0.03, height - 0.03, a.rng.integers(3, 7))
    for z in boards:
        a.box((0, 0, z), (width, depth, 0.03))
    if not posts and a.chance(0.5):
        a.box((0, -depth / 2, height / 2), (width, 0.02, height))
    for z in boards[:-1]:
        for x in a.rng.uniform(-0.42, 0.42, a.rng.integers(0, 4)) * width:
            tall = (boards[1] - boards[0]) * a.draw(0.3, 0.8)
            a.box((x, 0, z + tall / 2), (0.08 * width, depth * 0.6, tall))


def bed(a: Assembly) -> None:
    width, depth, height = a.draw(0.8, 1.8), a.draw(1.7, 2.2), a.draw(0.25, 0.5)
    a.add(box() if a.chance(0.5) else superquadric(0.2, 0.2), (0, 0, height), (width, depth, a.draw(0.15, 0.35)))
    if a.chance(0.6):
        a.legs(width, depth, height, 0.08)
    else:
        a.box((0, 0, height / 2), (width * 0.95, depth * 0.95, height))
    tall = a.draw(0.5, 1.1)
    if a.chance(0.85):
        if a.chance(0.7):
            a.box((0, -depth / 2, tall / 2), (width, 0.06, tall))
        else:
            a.box((0, -depth / 2, tall), (width, 0.05, 0.08))
            for x in np.linspace(-0.48, 0.48, a.rng.integers(4, 9)):
                a.rod((x * width, -depth / 2, tall / 2), (0.04, 0.04, tall))
    if a.chance(0.5):
        low = tall * a.draw(0.5, 0.9)
        a.box((0, depth / 2, low / 2), (width, 0.06, low))
    for x in (-0.25, 0.25) if width > 1.2 else (0,):
        a.add(superquadric(0.7, 0.4), (x * width, -depth * 0.38, height + 0.16), (min(0.6, width * 0.7), 0.35, 0.16))
    if a.chance(0.1):  # an upper bed
        a.box((0, 0, height + 1.0), (width, depth, 0.2))
        a.legs(width, depth, height + 1.2, 0.07)


def sofa(a: Assembly) -> None:
    width, depth, height = a.draw(0.9, 2.3), a.draw(0.7, 1.0), a.draw(0.3, 0.5)
    soft = a.draw(0.15, 0.5)
    foot = a.draw(0.05, 0.15)
    a.box((0, 0, (height + foot) / 2), (width, depth, height - foot))
    rise = a.draw(0.3, 0.6)
    back = superquadric(soft, soft)
    a.add(back, (0, -depth * 0.4, height + rise / 2), (width, 0.25, rise * 1.2), (0, a.draw(0, 0.2)))
    arm = a.draw(0.1, 0.25)
    if a.chance(0.85):
        tall = rise * a.draw(0.35, 0.8)
        for x in (-1, 1):
            a.box((x * (width - arm) / 2, 0, height + tall / 2), (arm, depth, tall))
            if a.chance(0.4):
                a.rod((x * (width - arm) / 2, 0, height + tall), (arm * 1.3, arm * 1.3, depth), (0, np.pi / 2))
    seats = a.rng.integers(1, 4)
    for x in (np.arange(seats) - (seats - 1) / 2) * (width - 2 * arm) / seats:
        a.add(superquadric(soft, soft), (x, 0.08, height + 0.04), ((width - 2 * arm) / seats, depth * 0.75, 0.18))
    a.legs(width, depth, foot, 0.06)
    if a.chance(0.15):  # an L
        x = a.rng.choice([-1, 1]) * (width / 2 - 0.35)
        a.box((x, depth * 0.9, height / 2), (0.7, depth * 0.9, height))


def lamp(a: Assembly) -> None:
    height, width = a.draw(0.5, 1.7), a.draw(0.25, 0.6)
    foot = width * a.draw(0.5, 0.9)
    a.add(lathe(((0, -1), (1, -1), (round(a.draw(0.2, 1), 1), 1), (0, 1))), (0, 0, 0.03), (foot, foot, 0.06))
    shade = a.draw(0.2, 0.4)
    if a.chance(0.5):
        a.rod((0, 0, height / 2), (0.03, 0.03, height))
        end = (0.0, height)
    elif a.chance(0.5):  # an arm with joints
        x, z = a.draw(-0.3, 0.3), height * a.draw(0.45, 0.6)
        end = (x + a.draw(0.2, 0.5), height)
        for start, stop in (((0, 0), (x, z)), ((x, z), end)):
            line = np.linspace((start[0], 0, start[1]), (stop[0], 0, stop[1]), 2)
            a.parts.append(tube(line, 0.02))
    else:  # an arc
        bend = np.linspace(0, np.pi * a.draw(0.6, 0.85), 9)
        reach = a.draw(0.3, 0.6)
        path = np.stack([reach * (1 - np.cos(bend)), 0 * bend, height * np.sin(bend / 1.7)], 1)
        a.parts.append(tube(path, 0.02))
        end = (float(path[-1, 0]), float(path[-1, 2]))
    if a.chance(0.7):  # an open shade
        top = round(a.draw(0.3, 1.0), 1)
        a.add(lathe(((1, -1), (top, 1)), 1.0 if a.chance(0.8) else 0.3), (end[0], 0, end[1]), (width, width, shade))
    else:
        a.add(superquadric(), (end[0], 0, end[1]), (width * 0.8, width * 0.8, shade))


def bathtub(a: Assembly) -> None:
    width, depth, height = a.draw(1.3, 1.9), a.draw(0.65, 0.95), a.draw(0.4, 0.65)
    low, wall = round(a.draw(0.65, 1.0), 2), round(a.draw(0.05, 0.15), 2)
    floor = round(a.draw(-0.8, -0.5), 2)
    outer = ((0, -1), (low, -1), (1, 1), (1 - wall, 1))
    inner = ((1 - 2 * wall, 0), (low - 2 * wall, floor), (0, floor))
    a.add(lathe((*outer, *inner), round(a.draw(0.2, 1.0), 1), 28), (0, 0, height / 2), (width, depth, height))
    if a.chance(0.4):
        a.legs(width * 0.7, depth * 0.7, 0.12, 0.1)
    if a.chance(0.5):
        a.rod((width * 0.46, 0, height + 0.08), (0.05, 0.05, 0.16))
        a.box((width * 0.41, 0, height + 0.16), (0.15, 0.04, 0.04))
    if a.chance(0.3):
        a.box((0, 0, height), (width * 1.05, depth * 0.1, 0.04))
        a.box((0, -depth / 2, height * 0.5), (width * 1.1, 0.04, height))


def toilet(a: Assembly) -> None:
    width, height = a.draw(0.35, 0.45), a.draw(0.35, 0.45)
    foot = round(a.draw(0.4, 0.7), 1)
    bowl = ((0, -1), (foot, -1), (foot * 0.8, -0.2), (1, 1), (0.75, 1), (0.4, 0.1), (0, 0))
    a.add(lathe(bowl, round(a.draw(0.7, 1.0), 1)), (0, 0.1, height / 2), (width, a.draw(0.45, 0.6), height))
    tall = a.draw(0.25, 0.45)
    a.box((0, -0.27, height + tall / 2), (width * a.draw(1.0, 1.3), 0.18, tall))
    a.box((0, -0.2, height * 0.5), (width * 0.6, 0.3, height))
    if a.chance(0.6):
        lid = superquadric(0.1, 0.9)
        if a.chance(0.5):
            a.add(lid, (0, -0.16, height + 0.22), (width, 0.04, 0.45), (0, 0.1))
        else:
            a.add(lid, (0, 0.1, height + 0.03), (width * 1.05, 0.55, 0.04))
    a.add(torus(0.25), (0, 0.1, height), (width, 0.5, 0.04))


def monitor(a: Assembly) -> None:
    width, height = a.draw(0.45, 1.0), a.draw(0.3, 0.6)
    stand = a.draw(0.08, 0.25)
    z = stand + height / 2
    a.box((0, 0, z), (width, a.draw(0.03, 0.1), height), (0, a.draw(-0.15, 0.15)))
    if a.chance(0.35):  # a tube behind the screen
        deep = a.draw(0.25, 0.45)
        back = prism(((-1, -1), (1, -1), (1, 1), (-1, 1)), round(a.draw(0.3, 0.7), 1))
        a.add(back, (0, -deep / 2, z), (width * 0.9, height * 0.9, deep), (0, np.pi / 2))
    elif a.chance(0.5):  # a frame around it
        for x in (-1, 1):
            a.box((x * width / 2, 0.02, z), (0.03, 0.1, height))
    a.box((0, -0.04, stand), (width * a.draw(0.08, 0.25), 0.05, 2 * stand))
    base = width * a.draw(0.3, 0.6)
    a.add(box() if a.chance(0.5) else cylinder(), (0, 0, 0.01), (base, a.draw(0.18, 0.3), 0.03))


def mug(a: Assembly) -> None:
    height, low = a.draw(0.6, 1.3), round(a.draw(0.6, 1.0), 1)
    a.add(lathe(((0, -1), (low, -1), (1, 1), (0.9, 1), (low - 0.1, -0.85), (0, -0.85))), (0, 0, 0), (1, 1, height))
    a.add(torus(0.2, 1.0), (0.5, 0, 0), (height * 0.7, height * 0.6, 0.12), (0, np.pi / 2))


def bottle(a: Assembly) -> None:
    """A bottle or a vase: a body, a shoulder, a neck."""
    neck, shoulder = round(a.draw(0.2, 0.5), 1), round(a.draw(-0.2, 0.5), 1)
    belly = round(a.draw(0.6, 1.0), 1)
    body = ((0, -1), (belly, -1), (1, shoulder), (neck, shoulder + 0.3))
    mouth = ((neck, 0.9), (neck + 0.1, 1), (neck - 0.1, 1))
    a.add(lathe((*body, *mouth), 1.0 if a.chance(0.7) else 0.3), (0, 0, 0), (0.5, 0.5, a.draw(0.8, 1.6)))


def aeroplane(a: Assembly) -> None:
    length, span = a.draw(1.2, 2.0), a.draw(1.2, 2.2)
    body = a.draw(0.12, 0.25)
    a.add(superquadric(a.draw(0.4, 1.0), 1.0), (0, 0, 0), (body, body, length), (0, np.pi / 2))
    sweep, chord, dihedral = a.draw(0, 0.6), a.draw(0.2, 0.4), a.draw(-0.05, 0.12)
    for x in (-1, 1):
        wing = prism(((-1, -0.6), (-1, 1), (1, round(0.2 - sweep, 1)), (1, -round(0.4 + sweep, 1))))
        scale = (x * span / 2, chord, 0.03)
        a.add(wing, (x * span / 4, 0.05, 0), scale, (0, 0, -x * dihedral))
        a.add(wing, (x * span / 10, -length * 0.44, 0.03), (x * span / 5, chord * 0.6, 0.02))
        if a.chance(0.5):
            a.rod((x * span * 0.22, 0.1, -0.08), (0.1, 0.1, 0.25), (0, np.pi / 2))
    a.box((0, -length * 0.44, 0.16), (0.02, chord * 0.6, 0.3), (0, 0.3))


KINDS: dict[str, Callable[[Assembly], None]] = {
    kind.__name__: kind
    for kind in (
        chair, stool, table, desk, cabinet, night_stand, shelf, bed, sofa, lamp, bathtub, toilet, monitor, mug, bottle,
        aeroplane,
    )
}  # fmt: skip
SHAPE_CLASSES = tuple(KINDS)


def composition(a: Assembly) -> None:
    """Two to six random parts, stacked, side by side or repeated in mirror images, rows and rings."""
    centre = np.zeros(3)
    for _ in range(a.rng.integers(2, 7)):
        size = np.exp(a.rng.normal(-0.6, 0.6, 3))
        surface = random_surface(a.rng)
        turn = tuple(a.rng.integers(0, 4, 3) * np.pi / 2) if a.chance(0.8) else tuple(a.rng.uniform(0, 6.3, 3))
        how = a.rng.integers(5)
        if how == 0:  # mirrored in x, or in x and y
            spot = centre + a.rng.uniform(0.2, 0.9, 3)
            for x in (-1, 1):
                for y in (-1, 1) if a.chance(0.5) else (1,):
                    a.add(surface, spot * (x, y, 1), size * 0.5, turn)
        elif how == 1:  # a row
            step = a.rng.normal(0, 0.4, 3) * (np.arange(3) == a.rng.integers(3))
            for index in range(a.rng.integers(2, 6)):
                a.add(surface, centre + index * step, size * 0.5, turn)
        elif how == 2:  # a ring about z
            count, reach = int(a.rng.integers(3, 7)), a.draw(0.3, 0.8)
            for angle in np.arange(count) * 2 * np.pi / count:
                spot = centre + (reach * np.cos(angle), reach * np.sin(angle), 0)
                a.add(surface, spot, size * 0.4, (angle, 0, turn[2]))
        else:
            a.add(surface, centre, size, turn)
            axis = a.rng.integers(3)
            centre = centre + np.eye(3)[axis] * size[axis] * a.draw(0.4, 1.0) * a.rng.choice([-1, 1])


def make_shape(kind: Callable[[Assembly], None], points: int, rng: np.random.Generator) -> np.ndarray:
    """[points, 3] float32 in the unit sphere: centroid at the origin, the farthest point at distance 1."""
    assembly = Assembly(rng)
    kind(assembly)
    coord = assembly.points(points) * np.exp(rng.normal(0, STRETCH, 3))
    coord -= coord.mean(0)
    return (coord / np.linalg.norm(coord, axis=1).max()).astype(np.float32)


def shapes(seed: int, count: int, points: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """coord [count, points, 3] float32, label [count] int64: all of ``SHAPE_CLASSES`` in turn."""
    label = np.arange(count) % len(SHAPE_CLASSES)
    kinds = list(KINDS.values())
    made = [make_shape(kinds[c], points, np.random.default_rng([seed, i, 0])) for i, c in enumerate(label)]
    return np.stack(made), label.astype(np.int64)


def compositions(seed: int, count: int, points: int = 1024) -> np.ndarray:
    """coord [count, points, 3] float32 of random assemblies without a class."""
    return np.stack([make_shape(composition, points, np.random.default_rng([seed, i, 1])) for i in range(count)])
