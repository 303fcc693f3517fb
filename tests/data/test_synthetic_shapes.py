"""Procedural objects: the same for the same seed, on the unit sphere, told apart by their geometry alone."""

import time

import numpy as np
import pytest
from scipy.spatial import cKDTree

from pointadapt.data.surfaces import Assembly, areas, box, cylinder, lathe, prism, sample_surface, superquadric, torus
from pointadapt.data.synthetic_shapes import KINDS, SHAPE_CLASSES, compositions, make_shape, shapes


@pytest.fixture(scope="module")
def many():
    return shapes(0, 40 * len(SHAPE_CLASSES), points=512)


@pytest.mark.parametrize(
    ("surface", "area"),
    [
        (box(), 24.0),
        (cylinder(), 2 * np.pi + 4 * np.pi),
        (cylinder(0.0), np.pi + np.pi * np.sqrt(5)),
        (superquadric(), 4 * np.pi),
        (torus(0.2), 4 * np.pi**2 * 0.8 * 0.2),
        (prism(((-1, -1), (1, -1), (1, 1), (-1, 1)), 0.5), 4 + 1 + 4 * 1.5 * np.sqrt(4 + 0.25)),
        (lathe(((0, -1), (1, -1), (1, 1), (0, 1)), 0.01, 400), 24.0),
    ],
    ids=["box", "cylinder", "cone", "ball", "torus", "stump", "square lathe"],
)
def test_areas_of_known_bodies(surface, area):
    if surface is torus(0.2):  # its tube is one high, not 0.2
        surface = surface * (1, 1, 0.2)
    assert np.abs(surface).max() <= 1 + 1e-9
    assert areas(surface).sum() == pytest.approx(area, rel=0.06)


def test_points_are_even_over_the_area():
    plates = np.concatenate([box() * (1, 1, 0.5), box() * 0.5 + (5, 0, 0)])
    point = sample_surface(plates, 40_000, np.random.default_rng(0))
    small = point[:, 0] > 3
    assert small.mean() == pytest.approx(6 / (6 + 16), abs=0.01)
    np.testing.assert_allclose(np.abs((point[small] - (5, 0, 0)) / 0.5).max(1), 1, atol=1e-9)
    top = point[~small][point[~small][:, 2] == 0.5]
    cells = np.histogram2d(top[:, 0], top[:, 1], bins=4)[0]
    assert cells.min() > 0.8 * cells.mean()


def test_parts_go_where_they_are_put():
    assembly = Assembly(np.random.default_rng(0))
    assembly.box((1, 2, 3), (0.2, 0.4, 2.0), (np.pi / 2,))
    point = assembly.points(2000)
    np.testing.assert_allclose(np.ptp(point, axis=0), (0.4, 0.2, 2.0), atol=0.02)
    np.testing.assert_allclose((point.min(0) + point.max(0)) / 2, (1, 2, 3), atol=0.02)


def test_same_seed_same_shapes():
    coord, label = shapes(3, 20, points=256)
    again, _ = shapes(3, 20, points=256)
    np.testing.assert_array_equal(coord, again)
    fewer, fewer_label = shapes(3, 5, points=256)
    np.testing.assert_array_equal(coord[:5], fewer)
    np.testing.assert_array_equal(label[:5], fewer_label)
    assert not np.array_equal(coord, shapes(4, 20, points=256)[0])
    np.testing.assert_array_equal(compositions(3, 4, points=256), compositions(3, 6, points=256)[:4])


def test_shapes_fill_the_unit_sphere_and_differ(many):
    coord, label = many
    free = compositions(0, 64, points=512)
    assert coord.dtype == free.dtype == np.float32 and label.dtype == np.int64
    assert np.bincount(label).tolist() == [40] * len(SHAPE_CLASSES)
    for clouds in (coord, free):
        assert np.isfinite(clouds).all()
        np.testing.assert_allclose(np.linalg.norm(clouds, axis=2).max(1), 1, atol=1e-5)
        np.testing.assert_allclose(clouds.mean(1), 0, atol=1e-5)
        extents = np.ptp(clouds, axis=1)
        assert len(np.unique(extents.round(4), axis=0)) == len(clouds)


@pytest.mark.parametrize("name", SHAPE_CLASSES)
def test_every_kind_varies(name):
    made = [make_shape(KINDS[name], 512, np.random.default_rng([9, i])) for i in range(12)]
    gaps = [cKDTree(a).query(b)[0].mean() for a, b in zip(made, made[1:], strict=False)]
    same = cKDTree(made[0]).query(make_shape(KINDS[name], 512, np.random.default_rng([9, 0])))[0].mean()
    assert same == 0 and min(gaps) > 0.02


def neighbour_accuracy(feature, label, train):
    """Share of the rest whose nearest training example has their label."""
    spread = feature[train].std(0) + 1e-9
    found = cKDTree(feature[train] / spread).query(feature[~train] / spread)[1]
    return (label[train][found] == label[~train]).mean()


def test_classes_need_geometry(many):
    """Extents alone tell little; where the points are within the extent tells much."""
    coord, label = many
    train = np.arange(len(label)) < 0.75 * len(label)
    extent = np.ptp(coord, axis=1)
    from_extent = neighbour_accuracy(extent, label, train)
    low = coord.min(1, keepdims=True)
    cell = ((coord - low) / (extent[:, None] + 1e-6) * 4).astype(int).clip(0, 3)
    occupancy = np.stack([np.bincount(c @ (16, 4, 1), minlength=64) for c in cell]).astype(float)
    occupancy = np.sqrt(occupancy / coord.shape[1])
    spread = occupancy[train].std(0).mean()
    from_geometry = neighbour_accuracy(occupancy / spread, label, train)
    assert 0.2 < from_extent < 0.6
    assert from_geometry > from_extent + 0.2


def test_two_hundred_per_second():
    began = time.process_time()
    shapes(1, 128, points=2048), compositions(1, 128, points=2048)
    assert 256 / (time.process_time() - began) > 200
