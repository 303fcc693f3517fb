import pytest
import torch

from pointadapt.errors import UserError
from pointadapt.ops.neighbors import farthest_points, group, lexicographic, nearest, spread
from pointadapt.point import Point, collate


def blob(points: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(points, 3, generator=draw) * torch.tensor([1.0, 0.5, 0.2])


def packed(*clouds: torch.Tensor) -> Point:
    return collate([Point(c, c, torch.tensor([len(c)])) for c in clouds])


def kernel(points: torch.Tensor, count: int) -> list[int]:
    """The CUDA kernel, thread by thread: strided scan, then a tree that halves the threads."""
    number = len(points)
    threads = min(512, 1 << (number.bit_length() - 1))
    smallest = [1e10] * number
    magnitude = [float(m) for m in points.square().sum(1)]
    chosen = [0]
    for _ in range(count - 1):
        step = (points - points[chosen[-1]]).square().sum(1).tolist()
        best, where = [-1.0] * threads, [0] * threads
        for thread in range(threads):
            for k in range(thread, number, threads):
                if magnitude[k] <= 1e-3:
                    continue
                smallest[k] = min(smallest[k], step[k])
                if smallest[k] > best[thread]:
                    best[thread], where[thread] = smallest[k], k
        stride = threads // 2
        while stride:
            for thread in range(stride):
                if best[thread + stride] > best[thread]:
                    best[thread], where[thread] = best[thread + stride], where[thread + stride]
            stride //= 2
        chosen.append(where[0])
    return chosen


@pytest.mark.parametrize("points", [1, 5, 64, 100, 700])
def test_released_sampling_is_that_of_the_kernel(points):
    cloud = blob(points, points)
    cloud[points // 2 :] *= 0.02  # many in the dead zone around the origin
    count = min(points, 24)
    assert farthest_points(cloud[None], count, "released")[0].tolist() == kernel(cloud, count)


def test_released_sampling_breaks_ties_like_the_kernel():
    """Points on a small lattice: nearly every choice is among equals, and some points are doubled."""
    draw = torch.Generator().manual_seed(0)
    for points in (8, 50, 600):
        cloud = torch.randint(-2, 3, (points, 3), generator=draw).float()
        assert farthest_points(cloud[None], min(points, 40), "released")[0].tolist() == kernel(cloud, min(points, 40))


def test_released_sampling_without_candidates_gives_the_first_row():
    cloud = 0.001 * blob(20)
    assert farthest_points(cloud[None], 4, "released")[0].tolist() == [0] * 4 == kernel(cloud, 4)
    one = cloud.clone()
    one[7] = 1.0
    assert farthest_points(one[None], 4, "released")[0].tolist() == [0, 7, 7, 7] == kernel(one, 4)


@pytest.mark.parametrize("rule", ["clean", "released"])
def test_a_longer_sample_starts_like_a_shorter(rule):
    cloud = blob(300)[None]
    assert torch.equal(farthest_points(cloud, 64, rule)[:, :20], farthest_points(cloud, 20, rule))


def test_clean_sampling_starts_farthest_from_the_centroid_and_maximises_the_least_distance():
    cloud = blob(80)
    rows = farthest_points(cloud[None], 10)[0]
    assert rows[0] == (cloud - cloud.mean(0)).norm(dim=1).argmax()
    for n in range(1, 10):
        to_chosen = torch.cdist(cloud, cloud[rows[:n]]).amin(1)
        assert torch.isclose(to_chosen[rows[n]], to_chosen.max())


def test_clean_groups_do_not_depend_on_the_order_of_points():
    cloud = blob(200)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    one, other = group(packed(cloud), 12, 8), group(packed(cloud[shuffled]), 12, 8)
    assert torch.equal(one.center, other.center) and torch.equal(one.coord, other.coord)
    assert torch.equal(one.index, shuffled[other.index])


def test_groups_hold_the_nearest_points_of_each_centre():
    a, b = blob(90, 1), blob(140, 2)
    found = group(packed(a, b), 10, 6)
    assert found.center.shape == (2, 10, 3) and found.coord.shape == (2, 10, 6, 3)
    for row, cloud in enumerate((a, b)):
        assert torch.equal(cloud[found.index[row]] - found.center[row][:, None], found.coord[row])
        expected = torch.cdist(found.center[row], cloud).topk(6, largest=False).values
        torch.testing.assert_close(found.coord[row].norm(dim=-1).sort(-1).values, expected, atol=1e-5, rtol=1e-5)


def test_a_cloud_with_too_few_points_is_refused():
    with pytest.raises(UserError, match="cloud of 9 points cannot be cut into 10 groups of 4"):
        group(packed(blob(30), blob(9)), 10, 4)
    with pytest.raises(UserError, match="at least 12 points"):
        group(packed(blob(11)), 4, 12)


def test_lexicographic_order():
    coord = torch.tensor([[[1.0, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 5]]])
    assert lexicographic(coord)[0].tolist() == [3, 2, 1, 0]


def test_nearest_comes_first():
    coord = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]])
    assert nearest(torch.tensor([[[2.2, 0, 0]]]), coord, 3)[0, 0].tolist() == [2, 1, 0]


def test_spread_interpolates_within_each_cloud():
    clouds = [blob(40, 1), blob(70, 2)]
    point = packed(*clouds)
    center = torch.stack([c[:9] for c in clouds])
    index, weight = spread(point, center)
    assert index.shape == weight.shape == (110, 3)
    torch.testing.assert_close(weight.sum(1), torch.ones(110))
    assert (index[:40] < 9).all() and (index[40:] >= 9).all()
    for row in (3, 20, 40, 90):  # a centre gets itself, others by inverse squared distance
        cloud = row >= 40
        distance = (center[int(cloud)] - point.coord[row]).square().sum(1)
        near = distance.argsort()[:3]
        expected = 1 / (distance[near] + 1e-8)
        assert (index[row] - 9 * cloud).tolist() == near.tolist()
        torch.testing.assert_close(weight[row], expected / expected.sum(), atol=1e-6, rtol=1e-4)
    value = center.flatten(0, 1)[index[:9]]
    torch.testing.assert_close((weight[:9, :, None] * value).sum(1), clouds[0][:9], atol=1e-5, rtol=1e-5)


def test_spread_with_fewer_centres_than_neighbours():
    index, weight = spread(packed(blob(5)), blob(2)[None])
    assert index.shape == (5, 2) and torch.allclose(weight.sum(1), torch.ones(5))


def test_coordinates_that_are_no_numbers_are_refused():
    coord = torch.rand(40, 3)
    coord[7, 1] = torch.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        group(Point(coord, coord, torch.tensor([40])), 8, 4)


@pytest.mark.parametrize("points", [64, 1000])
@pytest.mark.parametrize("is_lattice", [False, True])
def test_nearest_is_the_brute_force(points, is_lattice):
    """Few points are compared one by one, many in a tree; on a lattice most distances are tied."""
    draw = torch.Generator().manual_seed(points)
    coord = torch.rand(3, points, 3, generator=draw)
    coord = (coord * 6).round() if is_lattice else coord
    query = coord[:, :20] + 0.1
    every = (query[:, :, None] - coord[:, None]).square().sum(-1)
    found = nearest(query, coord, 16)
    assert found.shape == (3, 20, 16) and all(len(row.unique()) == 16 for row in found.flatten(0, 1))
    wanted = every.sort(-1).values[..., :16]
    torch.testing.assert_close(every.gather(2, found), wanted, rtol=1e-6, atol=1e-7)
    if not is_lattice:
        assert torch.equal(found, every.argsort(-1)[..., :16])
