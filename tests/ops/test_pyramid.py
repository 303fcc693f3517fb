"""Pyramids of neighbourhoods: what they hold, and that they belong to the set of points."""

import pytest
import torch

from pointadapt.errors import UserError
from pointadapt.ops.pyramid import level_sizes, pyramid, pyramid_rows
from pointadapt.point import Point, collate


def cloud(points, seed=0):
    coord = torch.randn(points, 3, generator=torch.Generator().manual_seed(seed))
    return Point(coord, coord, torch.tensor([points]))


def levels(point, **given):
    """Coordinates of level 0, 1, ... and of the neighbours, by clouds."""
    p = pyramid(point, **{"groups": 4, "neighbors": 6, "levels": 3, **given})
    below = point.coord[p.order]
    found = [(below[p.first], below[p.near[0]])]
    for near in p.near[1:]:
        below = found[-1][0].flatten(0, 1)
        found.append((found[-1][0][:, : near.shape[1]], below[near]))
    return found


def test_levels_halve_and_hold_their_centres():
    assert level_sizes(4, 3) == [16, 8, 4]
    point = collate([cloud(40, 1), cloud(70, 2)])
    for (center, near), size in zip(levels(point), (16, 8, 4), strict=True):
        assert center.shape == (2, size, 3) and near.shape == (2, size, 6, 3)
        assert torch.equal(near[:, :, 0], center)  # nearest first, and a centre is its own
        distance = (near - center[:, :, None]).norm(dim=-1)
        assert (distance.diff(dim=-1) >= 0).all()
    assert len({tuple(c.tolist()) for c in levels(point)[0][0][0]}) == 16


def test_neighbours_are_the_nearest():
    point = cloud(60)
    center, near = levels(point)[0]
    distance = (center[0][:, None] - point.coord).norm(dim=-1).topk(6, largest=False).values
    torch.testing.assert_close((near - center[:, :, None]).norm(dim=-1)[0], distance)


def test_order_of_points_changes_nothing():
    point = cloud(60)
    shuffled = point.coord[torch.randperm(60, generator=torch.Generator().manual_seed(3))]
    other = Point(shuffled, shuffled, point.offset)
    for (a, b), (c, d) in zip(levels(point), levels(other), strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


def test_batch_mates_change_nothing():
    clouds = [cloud(40, 1), cloud(70, 2)]
    together = levels(collate(clouds))
    for row, one in enumerate(clouds):
        for (a, b), (c, d) in zip(levels(one), together, strict=True):
            assert torch.equal(a[0], c[row]) and torch.equal(b[0], d[row])


def test_given_rows_are_used_after_turning_and_scaling():
    point = cloud(60)
    rows = pyramid_rows(point.coord[None], 4, 6, 3)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1))).Q
    coord = 1.3 * point.coord @ turn
    turned = Point(coord, coord, point.offset, extra={"pyramid": rows})
    for (a, b), (c, d) in zip(levels(point), levels(turned), strict=True):
        torch.testing.assert_close(1.3 * a @ turn, c)
        torch.testing.assert_close(1.3 * b @ turn, d)
    with pytest.raises(UserError, match=r"pyramid_rows\(coord, 4, 5, 3\)"):
        levels(turned.but(cache={}), neighbors=5)


@pytest.mark.parametrize("points", [1, 3, 10])
def test_few_points_are_repeated(points):
    point = cloud(points)
    for center, near in levels(point):
        assert center.isfinite().all() and near.isfinite().all()
    assert {tuple(c.tolist()) for c in levels(point)[0][0][0]} == {tuple(c.tolist()) for c in point.coord}


def test_broken_clouds_are_refused():
    broken = cloud(300)  # so many go through SciPy's tree, which would speak for itself
    broken.coord[5, 1] = float("nan")
    with pytest.raises(UserError, match="NaN or infinite"):
        levels(broken)
    empty = collate([cloud(40)]).but(offset=torch.tensor([40, 40]))
    with pytest.raises(UserError, match="a cloud of 0 points"):
        levels(empty)
