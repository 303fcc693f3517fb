"""The content of benchmarks.json, written down a second time: a class in the wrong place gives wrong scores silently.

Short lists stand here in full, long ones as the start of a sha256 of their lines.
"""

import hashlib

import pytest

from pointadapt.data.benchmarks import facts, raw_classes

NAMES = {
    "scannet": "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, desk, "
    "curtain, refrigerator, shower curtain, toilet, sink, bathtub, otherfurniture",
    "structured3d": "wall, floor, cabinet, bed, chair, sofa, table, door, window, picture, desk, shelves, curtain, "
    "dresser, pillow, mirror, ceiling, refrigerator, television, nightstand, sink, lamp, otherstructure, "
    "otherfurniture, otherprop",
    "s3dis": "ceiling, floor, wall, beam, column, window, door, table, chair, sofa, bookcase, board, clutter",
    "semantickitti": "car, bicycle, motorcycle, truck, other-vehicle, person, bicyclist, motorcyclist, road, parking, "
    "sidewalk, other-ground, building, fence, vegetation, trunk, terrain, pole, traffic-sign",
    "nuscenes": "barrier, bicycle, bus, car, construction_vehicle, motorcycle, pedestrian, traffic_cone, trailer, "
    "truck, driveable_surface, other_flat, sidewalk, terrain, manmade, vegetation",
}
#: (benchmark, list) -> its length and digest.
LONG = {
    ("scannet200", "names"): (200, "52f5560df1b11d34"),
    ("scannet200", "raw_id"): (200, "a03be47447c503fd"),
    ("scannet200", "head"): (66, "d49650b60cbd5111"),
    ("scannet200", "common"): (68, "56168327c5e6268f"),
    ("scannet200", "tail"): (66, "2790ad287d7e98fe"),
    ("scannetpp", "names"): (100, "8f00b019605fd426"),
    ("nuscenes", "categories"): (32, "9af2dfa0e6488442"),
    ("nuscenes", "val"): (150, "1ca357b353b5c1ab"),
}
NYU40 = {
    "scannet": [*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39],
    "structured3d": [*range(1, 10), 11, *range(14, 20), 22, 24, 25, 32, 34, 35, 38, 39, 40],
}
#: Raw id -> class of the official maps, counted from 0; the other ids are ignored.
RAW = {
    "semantickitti": {
        10: 0, 252: 0, 11: 1, 15: 2, 18: 3, 258: 3, 20: 4, 13: 4, 16: 4, 256: 4, 257: 4, 259: 4, 30: 5, 254: 5, 31: 6,
        253: 6, 32: 7, 255: 7, 40: 8, 60: 8, 44: 9, 48: 10, 49: 11, 50: 12, 51: 13, 70: 14, 71: 15, 72: 16, 80: 17,
        81: 18,
    },
    "nuscenes": {
        9: 0, 14: 1, 15: 2, 16: 2, 17: 3, 18: 4, 21: 5, 2: 6, 3: 6, 4: 6, 6: 6, 12: 7, 22: 8, 23: 9, 24: 10, 25: 11,
        26: 12, 27: 13, 28: 14, 30: 15,
    },
}  # fmt: skip
IGNORED = {"semantickitti": [0, 1, 52, 99], "nuscenes": [0, 1, 5, 7, 8, 10, 11, 13, 19, 20, 29, 31]}


@pytest.mark.parametrize("name", NAMES)
def test_classes_in_the_official_order(name):
    assert facts(name)["names"] == NAMES[name].split(", ")


@pytest.mark.parametrize(("name", "key"), LONG)
def test_long_lists(name, key):
    values = facts(name)["groups"][key] if key in ("head", "common", "tail") else facts(name)[key]
    digest = hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest()[:16]
    assert (len(values), digest) == LONG[name, key]


@pytest.mark.parametrize("name", NYU40)
def test_ids_of_nyu40(name):
    assert facts(name)["nyu40id"] == NYU40[name]


@pytest.mark.parametrize("name", RAW)
def test_raw_ids(name):
    names = NAMES[name].split(", ")
    assert raw_classes(name) == {raw: names[index] for raw, index in RAW[name].items()}
    assert facts(name)["ignore"] == IGNORED[name] and not RAW[name].keys() & set(IGNORED[name])
    assert list(dict.fromkeys(raw_classes(name).values())) == names  # the order of the outputs


def test_official_splits():
    splits = {"train": [0, 1, 2, 3, 4, 5, 6, 7, 9, 10], "val": [8], "test": [*range(11, 22)]}
    assert facts("semantickitti")["splits"] == splits
    assert facts("nuscenes")["mini_val"] == [103, 916]  # the long one: see LONG
