"""Grid sampling: cells, hashes, one point per voxel, fragments. (Stored official results: tests/parity.)"""

import math

import pytest
import torch

from pointadapt.ops.voxel import HASHES, fnv_key, grid_index, grid_sample, ravel_key, voxelize


def points(num=500, seed=0, size=1.0):
    return torch.rand(num, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size


def test_cells_are_floors_from_zero():
    coord = torch.tensor([[-0.25, 0.0, 5.0], [0.19, 0.21, 5.39], [0.2, 0.4, 5.4]])
    cells, least = grid_index(coord, 0.2)
    assert least.tolist() == [-2, 0, 25]
    assert cells.tolist() == [[0, 0, 0], [2, 1, 1], [3, 2, 2]]  # 0.2f / 0.2 is just above 1, 5.4f / 0.2 just above 27
    assert grid_index(coord.double(), 0.2)[0].dtype == torch.int64


def test_divides_in_double_precision():
    coord = torch.arange(400)[:, None].expand(-1, 3) * 0.05  # float32: many lie a hair below a border
    want = [math.floor(value / 0.05) for value in coord[:, 0].tolist()]
    assert grid_index(coord, 0.05)[0][:, 0].tolist() == want
    assert want != torch.floor(coord[:, 0] / 0.05).tolist()


def test_geo_coordinates_keep_their_cells():
    near = points(300, size=20.0)
    far = near + torch.tensor([770_500.0, 6_277_500.0, 40.0], dtype=torch.float64)
    assert torch.equal(grid_index(near, 0.5)[0], grid_index(far, 0.5)[0])


def test_grid_size_must_be_positive():
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="grid_size"):
            grid_index(points(3), wrong)


def test_fnv_against_python_integers():
    cells = torch.tensor([[0, 0, 0], [1, 2, 3], [65534, 7, 900]])
    for cell, key in zip(cells.tolist(), fnv_key(cells).tolist(), strict=True):
        value = 14695981039346656037
        for axis in cell:
            value = (value * 1099511628211 % 2**64) ^ axis
        assert key % 2**64 == value


@pytest.mark.parametrize("name", HASHES)
def test_voxels_group_equal_cells(name):
    cells, _ = grid_index(points(2000), 0.1)
    cells = cells * 6000  # keys then use all 64 bits
    voxels = voxelize(cells, name)
    unique, inverse, count = torch.unique(cells, dim=0, return_inverse=True, return_counts=True)
    assert len(voxels) == len(unique)
    # the same partition of points, whatever the order of voxels
    pairs = torch.stack([voxels.inverse, inverse], 1).unique(dim=0)
    assert len(pairs) == len(unique)
    assert torch.equal(voxels.count[pairs[:, 0]], count[pairs[:, 1]])
    ordered = voxels.key[voxels.order].numpy().view("uint64")
    assert (ordered[1:] >= ordered[:-1]).all()
    assert name == "ravel" or ordered[0] < 2**63 < ordered[-1]


def test_no_collisions_on_a_dense_block():
    block = torch.cartesian_prod(*(torch.arange(64),) * 3)
    assert len(fnv_key(block).unique()) == len(ravel_key(block).unique()) == 64**3


@pytest.mark.parametrize("draw", [None, "generator", "official"])
def test_one_point_per_voxel(draw):
    coord = points(3000)
    generator = torch.Generator().manual_seed(3)
    how = {
        None: None,
        "generator": generator,
        "official": lambda count: torch.randint(0, int(count.max()), (len(count),), generator=generator),
    }[draw]
    rows, cells, inverse = grid_sample(coord, 0.1, draw=how)
    assert len(rows) == len(cells) == len(torch.unique(grid_index(coord, 0.1)[0], dim=0))
    assert torch.equal(inverse[rows], torch.arange(len(rows)))
    assert torch.equal(cells[inverse], grid_index(coord, 0.1)[0])


def test_random_choice_is_uniform_and_seeded():
    coord = torch.zeros(4, 3)
    picks = [int(grid_sample(coord, 1.0, draw=torch.Generator().manual_seed(s))[0][0]) for s in range(400)]
    share = torch.bincount(torch.tensor(picks), minlength=4) / 400
    assert (share > 0.15).all()
    again = [grid_sample(points(), 0.2, draw=torch.Generator().manual_seed(5))[0] for _ in range(2)]
    assert torch.equal(*again)


def test_fixed_choice_repeats_and_prefers_no_row():
    cells = torch.cartesian_prod(*(torch.arange(16),) * 3).repeat(4, 1)  # each voxel has members 0, 1, 2, 3
    rows = voxelize(cells).spread()
    assert torch.equal(rows, voxelize(cells).spread())
    share = torch.bincount(rows // 4096, minlength=4) / 4096
    assert (share - 0.25).abs().max() < 0.05


def test_fragments_cover_every_point_once_per_voxel():
    coord = points(2000)
    cells, _ = grid_index(coord, 0.15)
    voxels = voxelize(cells)
    parts = voxels.fragments()
    assert len(parts) == int(voxels.count.max()) > 3
    for part in parts:
        assert torch.equal(voxels.inverse[part], torch.arange(len(voxels)))
    assert torch.equal(torch.cat(parts).unique(), torch.arange(2000))


def test_none_and_one_point():
    empty = torch.zeros(0, 3)
    rows, cells, inverse = grid_sample(empty, 0.1)
    assert len(rows) == len(cells) == len(inverse) == 0
    assert voxelize(grid_index(empty, 0.1)[0]).fragments() == []
    rows, cells, inverse = grid_sample(torch.ones(1, 3), 0.1)
    assert rows.tolist() == [0] and cells.tolist() == [[0, 0, 0]] and inverse.tolist() == [0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_on_a_gpu():
    coord = points(5000)
    here = grid_sample(coord, 0.1)
    there = grid_sample(coord.cuda(), 0.1)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))
