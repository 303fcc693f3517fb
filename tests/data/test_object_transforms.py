"""Transforms of objects: each does what its protocol says, from the rng alone, without touching its input."""

import numpy as np
import pytest
import torch

from pointadapt.data import object_transforms
from pointadapt.data.object_transforms import (
    OBJECT_TRANSFORMS,
    AxisScale,
    DropPoints,
    Shift,
    farthest_rows,
    pool_size,
    sorted_rows,
)
from pointadapt.ops.neighbors import farthest_points
from shapes import cloud


def sample(points=100, seed=0):
    return {"coord": cloud(seed, points), "segment": np.arange(points), "name": "x"}


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", OBJECT_TRANSFORMS)
def test_presets_are_seeded_and_leave_their_input_alone(name):
    given = sample()
    before = given["coord"].copy()
    transform = OBJECT_TRANSFORMS[name](40)
    a, b, c = transform(given, rng()), transform(given, rng()), transform(given, rng(1))
    assert np.array_equal(a["coord"], b["coord"]) and not np.array_equal(a["coord"], c["coord"])
    assert a["coord"].shape == (40, 3) and a["coord"].dtype == np.float32 and len(set(a["segment"])) <= 40
    assert np.array_equal(given["coord"], before) and a["name"] == "x"


@pytest.mark.parametrize("seed", range(5))
def test_rotate_turns_about_y(seed):
    given = sample()
    out = OBJECT_TRANSFORMS["rotate"](100)(given, rng(seed))
    source = given["coord"][out["segment"]]
    assert out["coord"][:, 1] == pytest.approx(source[:, 1], abs=1e-6)
    assert np.hypot(*out["coord"][:, ::2].T) == pytest.approx(np.hypot(*source[:, ::2].T), abs=1e-5)
    assert np.abs(out["coord"] - source).max() > 0.05


def test_scale_translate_has_the_published_bounds():
    for seed in range(50):
        out = OBJECT_TRANSFORMS["scale_translate"](100)(sample(), rng(seed))
        source = sample()["coord"][out["segment"]]
        factor = np.ptp(out["coord"], axis=0) / np.ptp(source, axis=0)
        shift = out["coord"][0] - source[0] * factor
        assert (factor > 2 / 3 - 1e-4).all() and (factor < 1.5 + 1e-4).all() and (np.abs(shift) < 0.2 + 1e-4).all()
        assert np.unique(factor).size == 3


def test_parts_scales_all_axes_alike():
    out = OBJECT_TRANSFORMS["parts"](100)(sample(), rng())
    factor = np.ptp(out["coord"], axis=0) / np.ptp(sample()["coord"], axis=0)
    assert factor == pytest.approx(factor[0], rel=1e-4) and 0.8 <= factor[0] <= 1.25


def test_scale_rotate_ends_in_the_unit_sphere():
    out = OBJECT_TRANSFORMS["scale_rotate"](100)(sample(), rng())
    assert np.linalg.norm(out["coord"], axis=1).max() == pytest.approx(1, abs=1e-5)


def test_single_steps():
    given = sample()
    assert np.ptp(Shift(0.1)(given, rng())["coord"] - given["coord"], axis=0) == pytest.approx(0, abs=1e-5)
    assert np.ptp(AxisScale(2, 2)(given, rng())["coord"] / given["coord"]) == pytest.approx(0, abs=1e-5)
    dropped = DropPoints(0.9)(given, rng(2))
    copies = (dropped["segment"] == 0).sum()
    assert (
        len(dropped["coord"]) == 100
        and 1 < copies < 95
        and (dropped["coord"][dropped["segment"] == 0] == given["coord"][0]).all()
    )


def test_pool_is_the_published_one():
    assert [pool_size(n) for n in (1024, 2048, 8192)] == [1200, 2400, 9600]


def test_farthest_points_are_free_of_order_and_nested():
    coord = cloud(1, 300)
    shuffled = rng().permutation(300)

    def chosen(coord, count):
        coord = coord[sorted_rows(coord)]
        return coord[farthest_rows([coord], count)[0]]

    assert np.array_equal(chosen(coord, 50), chosen(coord[shuffled], 50))
    assert np.array_equal(chosen(coord, 50), chosen(coord, 80)[:50])


@pytest.mark.parametrize("at_once", [1, 600, 1 << 17])
def test_shapes_sampled_side_by_side_are_as_if_alone(at_once, monkeypatch):
    monkeypatch.setattr(object_transforms, "AT_ONCE", at_once)
    shapes = [cloud(i, n)[sorted_rows(cloud(i, n))] for i, n in enumerate((100, 37, 250, 60))]
    for coord, rows in zip(shapes, farthest_rows(shapes, 60), strict=True):
        alone = farthest_points(torch.from_numpy(coord)[None], min(60, len(coord)))[0].numpy()
        assert np.array_equal(rows, alone) and len(set(rows.tolist())) == min(60, len(coord))


@pytest.mark.parametrize("high", [2, 5, 10**6])
def test_sorted_rows_is_by_x_then_y_then_z(high):
    coord = np.random.default_rng(0).integers(0, high, (500, 3)).astype(np.float32)
    assert np.array_equal(sorted_rows(coord), np.lexsort((coord[:, 2], coord[:, 1], coord[:, 0])))
    assert sorted_rows(coord[:0]).tolist() == [] and sorted_rows(coord[:1]).tolist() == [0]
