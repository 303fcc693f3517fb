import pytest
import torch

from pointadapt.errors import UserError
from pointadapt.ops.order import CURVES, cloud_code, cloud_depths, curve_code, curve_order, depth_of, interleave
from pointadapt.point import Point, collate
from scenes import cloud


def cube(depth):
    side = torch.arange(2**depth)
    return torch.cartesian_prod(side, side, side)


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_codes_number_the_cube(curve, depth):
    code = curve_code(cube(depth), depth, curve)
    assert torch.equal(code.sort().values, torch.arange(8**depth))


def test_hilbert_of_depth_one_is_the_published_one():
    walk = cube(1)[curve_code(cube(1), 1, "hilbert").argsort()]
    assert ["".join(map(str, row)) for row in walk.tolist()] == ["000", "001", "011", "010", "110", "111", "101", "100"]


@pytest.mark.parametrize("depth", [2, 4])
def test_hilbert_walks_to_a_neighbour_each_step(depth):
    walk = cube(depth)[curve_code(cube(depth), depth, "hilbert").argsort()]
    assert (walk.diff(dim=0).abs().sum(1) == 1).all()


def test_hilbert_is_hierarchical():
    grid = cube(4)
    assert torch.equal(curve_code(grid, 4, "hilbert") >> 3, curve_code(grid >> 1, 3, "hilbert"))


def test_trans_swaps_x_and_y():
    grid = cube(3)
    for curve in ("z", "hilbert"):
        assert torch.equal(curve_code(grid[:, [1, 0, 2]], 3, curve), curve_code(grid, 3, f"{curve}-trans"))


def test_interleave_uses_21_bits():
    top = torch.tensor([2**20])
    zero = torch.tensor([0])
    assert interleave(top, zero, zero).item() == 1 << 62
    assert interleave(zero, zero, top).item() == 1 << 60


def test_depth_of_one_cloud_does_not_turn_another():
    depth = torch.tensor([3] * 8 + [5] * 8)
    grid = torch.cat([cube(1) * 3, cube(1) * 17])
    mixed = curve_code(grid, depth, "hilbert")
    assert torch.equal(mixed[:8], curve_code(grid[:8], 3, "hilbert"))
    assert torch.equal(mixed[8:], curve_code(grid[8:], 5, "hilbert"))


def test_depth_rule():
    assert depth_of(torch.tensor([0, 1, 2, 3, 6, 7, 8])).tolist() == [1, 2, 2, 3, 3, 4, 4]
    assert depth_of(torch.tensor([0, 3, 7, 8, 2**40]), 0).tolist() == [0, 2, 3, 4, 41]


@pytest.mark.parametrize("curve", CURVES)
def test_order_in_a_batch_is_each_clouds_own(curve):
    clouds = [cloud(200, 20), cloud(0), cloud(60, 9, seed=1), cloud(1, 3, seed=2)]
    order, inverse = curve_order(collate(clouds), curve)
    start = 0
    for one in clouds:
        alone, _ = curve_order(collate([one]), curve)
        assert torch.equal(order[start : start + len(one)] - start, alone)
        start += len(one)
    assert torch.equal(order[inverse], torch.arange(start))


def test_a_cloud_too_wide_says_so():
    grid = torch.tensor([[0, 0, 0], [2**21, 0, 0]])
    with pytest.raises(UserError, match="larger grid_size"):
        curve_order(Point(grid.float(), torch.zeros(2, 1), torch.tensor([2]), grid), "z")


def test_unknown_curve():
    with pytest.raises(ValueError, match="hilbert"):
        curve_code(cube(1), 1, "peano")


def test_all_curves_of_a_level_ask_the_device_once():
    """Meta stands for a GPU: what would wait for values fails on it."""
    point = collate([cloud(40, 6), cloud(20, 30, seed=1)])
    elsewhere = point.to("meta")
    elsewhere.cache["deepest"] = 5
    for curve in CURVES:
        assert cloud_code(elsewhere, curve).is_meta
        cloud_code(point, curve)
    assert cloud_depths(elsewhere, shared=True).is_meta
    assert point.cache["deepest"] == 5
