"""Estimated normals on surfaces whose normals are known."""

import numpy as np
import pytest

from pointadapt.data.geometry import estimate_normals, look_up, spacing


def plane(normal, num=2000, seed=0):
    rng = np.random.default_rng(seed)
    normal = np.asarray(normal, float) / np.linalg.norm(normal)
    first = np.cross(normal, [0.31, 0.54, -0.78])
    first /= np.linalg.norm(first)
    return rng.uniform(-2, 2, (num, 2)) @ np.stack([first, np.cross(normal, first)])


@pytest.mark.parametrize("grid_size", [None, 0.1])
@pytest.mark.parametrize("normal", [(0, 0, 1), (0, 0, -1), (1, 0, 0), (-1, 0, 0), (0, -1, 0), (0.3, -0.5, -0.6)])
def test_planes(normal, grid_size):
    found = estimate_normals(plane(normal), grid_size)
    assert found.dtype == np.float32
    want = look_up(np.array([normal]) / np.linalg.norm(normal))
    np.testing.assert_allclose(found, np.repeat(want, len(found), 0), atol=1e-4)


def test_sphere():
    rng = np.random.default_rng(0)
    out = rng.standard_normal((4000, 3))
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    found = estimate_normals(out * 3)
    assert np.abs((found * out).sum(1)).mean() > 0.99
    assert (found[:, 2] > -1e-3).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_direction_of_level_normals():
    given = np.array([[0, 0, -1], [0, -1, 0], [-1, 0, 0], [-0.5, -0.5, 1e-4], [0.7, -0.7, 0.1]])
    up = look_up(given)
    np.testing.assert_array_equal(up, -given * [[1], [1], [1], [1], [-1]])


def test_far_from_the_origin_and_in_chunks(monkeypatch):
    near = plane((0.2, 0.3, 0.9))
    far = near + [770_500.0, 6_277_500.0, 40.0]
    whole = estimate_normals(near)
    np.testing.assert_allclose(estimate_normals(far), whole, atol=1e-3)
    monkeypatch.setattr("pointadapt.data.geometry.CHUNK", 77)
    np.testing.assert_array_equal(estimate_normals(near), whole)


@pytest.mark.parametrize("num", [0, 1, 2])
def test_too_few_points_look_up(num):
    assert estimate_normals(np.zeros((num, 3))).tolist() == [[0, 0, 1]] * num


def test_equal_points_give_unit_normals():
    found = estimate_normals(np.ones((50, 3)), 0.1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_spacing():
    grid = np.stack(np.meshgrid(*[np.arange(20) * 0.25] * 2, [0.0]), -1).reshape(-1, 3)
    assert spacing(grid) == pytest.approx(0.25)
    assert spacing(np.repeat(grid, 2, 0)) == pytest.approx(0.25)  # every point has a twin
    assert spacing(grid[:1]) == spacing(np.ones((30, 3))) == 0.0
