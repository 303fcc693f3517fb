"""The generated scans: the same for the same seed, complete, with the domain gap that the demo is about."""

import numpy as np
import pytest

from pointadapt.data.furniture import KINDS, build
from pointadapt.data.furniture_item import Item
from pointadapt.data.raycast import BALL, BOX, CYLINDER, Sensor, Solid, scan, turn_of
from pointadapt.data.scans import DataSet
from pointadapt.data.synthetic import ROOM_CLASSES, room, write_rooms
from pointadapt.data.synthetic_aerial import AERIAL_CLASSES, aerial, write_tiles

EXACT = Sensor(rows=80, columns=160, low=-80, high=80, noise=0, noise_far=0, dropout=0, mixed=0, jitter=0)


def solid(shape, centre, half, turn=None, label=0, **more):
    turn = np.eye(3) if turn is None else turn
    return Solid(shape, np.array(centre, float), np.array(half, float), turn, np.full(3, 0.5), label, **more)


def test_rays_hit_box_faces():
    box = solid(BOX, (3, 0, 0), (1, 2, 1.5), turn_of(0.4, 0.2, -0.3))
    seen = scan([box], np.zeros(3), EXACT, np.random.default_rng(0))
    local = (seen.coord - box.centre) @ box.turn / box.half
    assert len(local) > 300
    np.testing.assert_allclose(np.abs(local).max(1), 1, atol=1e-9)
    assert ((seen.normal * seen.coord).sum(1) < 0).all()  # only sides that face the scanner


def test_rays_hit_round_surfaces():
    ball, rod = solid(BALL, (-3, 1, 0.5), (0.5, 0.8, 0.4)), solid(CYLINDER, (0, 3, 0), (0.4, 0.4, 1.2))
    seen = scan([ball, rod], np.zeros(3), EXACT, np.random.default_rng(0))
    on_ball = (seen.coord[seen.solid == 0] - ball.centre) / ball.half
    np.testing.assert_allclose((on_ball**2).sum(1), 1, atol=1e-9)
    on_rod = (seen.coord[seen.solid == 1] - rod.centre) / rod.half
    assert len(on_rod) > 50
    np.testing.assert_allclose(np.maximum(np.hypot(on_rod[:, 0], on_rod[:, 1]), np.abs(on_rod[:, 2])), 1, atol=1e-9)


@pytest.mark.parametrize("bearing", [0.0, 1.7, np.pi, -3.1])
def test_nearer_solid_hides_the_farther(bearing):
    turn = turn_of(bearing)
    near = solid(BOX, (2, 0, 0), (0.1, 1, 1)).moved(turn, np.zeros(3))
    far = solid(BOX, (4, 0, 0), (0.1, 1.5, 1.5)).moved(turn, np.zeros(3))
    alone = scan([far], np.zeros(3), EXACT, np.random.default_rng(0))
    both = scan([far, near], np.zeros(3), EXACT, np.random.default_rng(0))
    assert len(alone.coord) > 100
    assert set(both.solid) == {1}, "the far plate lies in the near one's shadow"


def test_sensor_noise_and_dropout():
    wall = solid(BOX, (3, 0, 0), (0.1, 3, 3))
    clean = scan([wall], np.zeros(3), EXACT, np.random.default_rng(0))
    noisy = scan([wall], np.zeros(3), Sensor(80, 160, -80, 80, noise=0.01, dropout=0.3), np.random.default_rng(0))
    assert len(noisy.coord) < 0.85 * len(clean.coord)
    from_plane = noisy.coord[np.abs(noisy.normal[:, 0]) > 0.5, 0] - 2.9
    assert 0.005 < from_plane.std() < 0.03


@pytest.mark.parametrize("style", ["a", "b"])
def test_room_is_complete_and_deterministic(style):
    first, again, other = room(3, style), room(3, style), room(4, style)
    for key in first:
        assert np.array_equal(first[key], again[key])
    assert not np.array_equal(first["coord"][:50], other["coord"][:50])
    coord, color, segment = first["coord"], first["color"], first["segment"]
    assert (coord.dtype, color.dtype, segment.dtype) == (np.float32, np.uint8, np.int64)
    assert 20_000 < len(coord) < 60_000
    assert np.isfinite(coord).all() and np.abs(coord).max() < 8
    assert segment.min() >= -1 and segment.max() < len(ROOM_CLASSES)
    assert len(np.unique(segment[segment >= 0])) >= 8
    floor = coord[segment == ROOM_CLASSES.index("floor"), 2]
    assert abs(np.median(floor)) < 0.03
    assert coord[segment == ROOM_CLASSES.index("lamp"), 2].max() > 1


@pytest.mark.parametrize("style", ["a", "b"])
def test_rooms_hold_every_class(style):
    seen = np.zeros(len(ROOM_CLASSES), dtype=int)
    for seed in range(8):
        segment = room(seed, style)["segment"]
        seen += np.bincount(segment[segment >= 0], minlength=len(ROOM_CLASSES)) > 30
    assert (seen >= 3).all(), dict(zip(ROOM_CLASSES, seen, strict=True))


def test_styles_differ_in_colour_noise_and_furniture():
    a, b = room(0, "a"), room(0, "b")
    warmth = [float((r["color"][:, 0].astype(float) - r["color"][:, 2]).mean()) for r in (a, b)]
    assert warmth[1] > warmth[0] + 15

    def roughness(scan):
        floor = scan["coord"][scan["segment"] == ROOM_CLASSES.index("floor"), 2]
        return np.percentile(np.abs(floor - np.median(floor)), 50)

    assert roughness(b) > 2 * roughness(a)
    for label, kinds in KINDS["b"].items():
        shared = {maker for maker, _ in KINDS["a"][label]}
        assert sum(weight for maker, weight in kinds if maker not in shared) >= 0.45, label


@pytest.mark.parametrize("style", ["a", "b"])
def test_furniture_stays_on_its_footprint(style):
    for label in KINDS[style]:
        for seed in range(6):
            item = build(label, style, np.random.default_rng(seed))
            assert isinstance(item, Item) and item.width > 0 and item.depth > 0
            low, high = extent(item)
            if item.place == "ceiling":
                assert high[2] < 0.02 and low[2] > -2
            else:
                assert -0.06 < low[2] < 1.2 and high[2] < 2.4
            assert (high - low)[:2].max() < 2 * max(item.width, item.depth) + 0.3, (label, seed)


def extent(item):
    reach = [np.abs(s.turn) @ s.half for s in item.solids]
    low = np.min([s.centre - r for s, r in zip(item.solids, reach, strict=True)], axis=0)
    high = np.max([s.centre + r for s, r in zip(item.solids, reach, strict=True)], axis=0)
    return low, high


def test_unknown_style():
    with pytest.raises(ValueError, match="style"):
        room(0, "c")


def test_written_rooms_are_a_data_set(tmp_path):
    file = write_rooms(tmp_path / "site", 1, "b", seed=5, val=1, test=1)
    dataset = DataSet.open(file.parent)
    assert dataset.names == list(ROOM_CLASSES)
    assert [len(dataset.paths(split)) for split in ("train", "val", "test")] == [1, 1, 1]
    made = room(5 * 10_000, "b")
    sample = dataset.read(dataset.paths("train")[0])
    assert np.array_equal(sample["segment"], made["segment"])
    assert np.array_equal(sample["color"], made["color"])
    np.testing.assert_allclose(sample["coord"] / dataset.scale, made["coord"] - made["coord"].min(0), atol=1e-5)
    assert not list(file.parent.glob("*.part"))


def test_aerial_tile():
    tile, again = aerial(1), aerial(1)
    for key in tile:
        assert np.array_equal(tile[key], again[key])
    coord, segment = tile["coord"], tile["segment"]
    assert 15 < len(coord) / 2500 < 45  # points per square metre
    assert coord[:, :2].min() >= 0 and coord[:, :2].max() <= 50
    assert (tile["return_number"] <= tile["number_of_returns"]).all() and tile["return_number"].min() == 1
    assert segment.max() < len(AERIAL_CLASSES) and segment.min() >= -1


def test_aerial_classes_follow_height_and_returns():
    tiles = [aerial(seed) for seed in range(2, 5)]
    height, segment, returns = [], [], []
    for tile in tiles:
        coord, labels = tile["coord"], tile["segment"]
        ground = coord[labels == 0]
        from scipy.spatial import cKDTree

        near = cKDTree(ground[:, :2]).query(coord[:, :2], k=3)[1]
        height.append(coord[:, 2] - ground[near, 2].mean(1))
        segment.append(labels)
        returns.append(tile["number_of_returns"])
    height, segment, returns = (np.concatenate(parts) for parts in (height, segment, returns))
    share = np.bincount(segment[segment >= 0], minlength=5) / (segment >= 0).sum()
    assert (share > 0.005).all(), share
    low, medium, high, building = (np.median(height[segment == k]) for k in (1, 2, 3, 4))
    assert low < 0.5 < medium < 1.5 < high
    assert building > 2.5
    several = [(returns[segment == k] > 1).mean() for k in (0, 3)]
    assert several[1] > 0.4 > several[0]


def test_written_tiles_are_a_data_set(tmp_path):
    file = write_tiles(tmp_path / "town", 1, seed=2, test=1, size=25)
    dataset = DataSet.open(file)
    sample, made = dataset.read(dataset.paths("train")[0]), aerial(20_000, 25)
    assert dataset.names == list(AERIAL_CLASSES)
    assert np.array_equal(sample["segment"], made["segment"])
    np.testing.assert_allclose(sample["coord"] / dataset.scale, made["coord"] - made["coord"].min(0), atol=0.011)
    assert np.ptp(sample["color"][:, 0]) > 50
    assert not list(file.parent.glob("*part*"))
