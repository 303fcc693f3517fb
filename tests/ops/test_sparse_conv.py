from itertools import product

import pytest
import torch
import torch.nn.functional as F

from pointadapt.ops import sparse_conv, tap_pairs
from pointadapt.ops.sparse_conv import SubMConv3d, neighbors, subm_conv
from pointadapt.ops.voxel_rows import sort_rows
from pointadapt.point import Point, collate
from scenes import cloud


def brute_force(point, weight, bias):
    """The definition, row by row; a neighbouring voxel is its first row."""
    radius = weight.shape[1] // 2
    first = {}
    for row, key in enumerate(zip(point.batch.tolist(), map(tuple, point.grid_coord.tolist()), strict=True)):
        first.setdefault(key, row)
    out = []
    for row, (cloud_id, voxel) in enumerate(
        zip(point.batch.tolist(), map(tuple, point.grid_coord.tolist()), strict=True)
    ):
        total = bias.clone()
        for offset in product(range(-radius, radius + 1), repeat=3):
            key = (cloud_id, tuple(v + o for v, o in zip(voxel, offset, strict=True)))
            source = row if offset == (0, 0, 0) else first.get(key)
            if source is not None:
                tap = weight[:, offset[0] + radius, offset[1] + radius, offset[2] + radius]
                total = total + tap @ point.feat[source]
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_equals_the_definition(kernel):
    point = collate([cloud(80, 6), cloud(0), cloud(40, 5, seed=1), cloud(1, 2)]).but()
    torch.manual_seed(0)
    conv = SubMConv3d(9, 4, kernel)
    with torch.no_grad():
        torch.testing.assert_close(conv(point), brute_force(point, conv.weight, conv.bias), atol=1e-5, rtol=1e-5)


def test_duplicate_voxels_have_a_meaning():
    one = cloud(60, 5)
    grid = torch.cat([one.grid_coord, one.grid_coord[:20]])
    point = Point(grid.float(), torch.randn(len(grid), 9), torch.tensor([len(grid)]), grid)
    torch.manual_seed(0)
    conv = SubMConv3d(9, 4)
    with torch.no_grad():
        torch.testing.assert_close(conv(point), brute_force(point, conv.weight, conv.bias), atol=1e-5, rtol=1e-5)


def test_full_grid_equals_dense_convolution():
    side = torch.arange(6)
    grid = torch.cartesian_prod(side, side, side)
    feat = torch.randn(len(grid), 3)
    point = Point(grid.float(), feat, torch.tensor([len(grid)]), grid)
    conv = SubMConv3d(3, 5)
    dense = F.conv3d(feat.T.view(1, 3, 6, 6, 6), conv.weight.permute(0, 4, 1, 2, 3), conv.bias, padding=1)
    torch.testing.assert_close(conv(point), dense[0].flatten(1).T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("duplicates", [False, True])
def test_gradients(duplicates):
    point = cloud(30, 4, channels=3)
    if duplicates:
        grid = torch.cat([point.grid_coord, point.grid_coord[:5]])
        point = Point(grid.float(), torch.randn(len(grid), 3), torch.tensor([len(grid)]), grid)
    pairs = neighbors(point)
    feat = point.feat.double().requires_grad_()
    weight = torch.randn(2, 3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, w: subm_conv(f, w, None, pairs), (feat, weight))


def test_frozen_weight_costs_no_gradient():
    conv = SubMConv3d(9, 4).requires_grad_(False)
    feat = cloud().feat.requires_grad_()
    conv(cloud().but(feat=feat)).sum().backward()
    assert conv.weight.grad is None and feat.grad is not None


def test_neighbours_are_found_once():
    point = cloud()
    assert neighbors(point) is neighbors(point.but(feat=torch.zeros(len(point), 2)))
    assert neighbors(point) is not neighbors(point.but(offset=point.offset.clone()))


def test_shift_of_the_grid_changes_nothing():
    point, conv = cloud(), SubMConv3d(9, 4)
    assert torch.equal(conv(point), conv(point.but(grid_coord=point.grid_coord + 7)))


def test_empty_and_even_kernel():
    conv = SubMConv3d(9, 4)
    assert conv(cloud(0)).shape == (0, 4)
    with pytest.raises(ValueError, match="odd"):
        neighbors(cloud(), 2)


def test_autocast_computes_low_and_gives_low():
    conv, point = SubMConv3d(9, 4), cloud()
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(point)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), conv(point), atol=5e-2, rtol=5e-2)


def test_taps_are_added_up_in_float32():
    grid = torch.tensor(list(product(range(5), repeat=3)))
    point = Point(grid.float(), torch.ones(125, 9), torch.tensor([125]), grid)
    feat = point.feat.bfloat16().requires_grad_()
    out = subm_conv(feat, torch.ones(9, 5, 5, 5, 9, dtype=torch.bfloat16), None, neighbors(point, 5))
    out.backward(torch.ones_like(out))
    exact = torch.tensor(125 * 9.0).bfloat16()  # one by one the numbers added are rounded, by up to an eighth
    assert out[62, 0] == exact and feat.grad[62, 0] == exact


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("duplicates", [False, True])
def test_blocks_of_rows_change_nothing(duplicates, ordered, monkeypatch):
    """Forward and both gradients are those of the pairs one by one, whatever order the rows have."""
    given = collate([cloud(90, 6, channels=3), cloud(50, 5, seed=1, channels=3)])
    if duplicates:
        grid = torch.cat([given.grid_coord[:20], given.grid_coord])  # of the first cloud
        given = Point(grid.float(), torch.randn(len(grid), 3), given.offset + 20, grid)
    point = sort_rows(given)[0] if ordered else given
    monkeypatch.setattr(tap_pairs, "ROWS", 16)
    links = sparse_conv.make_neighbors(point, 3)
    assert links.mirrored == (not duplicates)
    feat = point.feat.double().requires_grad_()
    taps = torch.randn(4, 3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    out = subm_conv(feat, taps, None, links)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, (feat, taps), grad)
    assert linked(links.blocks) == linked(links.pairs)
    assert max(len(block.offsets) for block in links.blocks) == 16 and len(links.blocks) >= len(point) // 16

    weights = taps.flatten(1, 3)
    centre = feat @ weights[:, 13].T
    parts = [torch.zeros_like(out).index_add(0, to, feat[of] @ weights[:, tap].T) for tap, to, of in links.pairs]
    expected = centre + sum(parts)
    torch.testing.assert_close(out, expected)
    for mine, theirs in zip(found, torch.autograd.grad(expected, (feat, taps), grad), strict=True):
        torch.testing.assert_close(mine, theirs)


def linked(pairs):
    if isinstance(pairs[0], tap_pairs.Block):
        pairs = [
            part
            for block in pairs
            for part in zip(block.taps, block.written.split(block.sizes), block.read.split(block.sizes), strict=True)
        ]
    return sorted(
        (tap, a, b) for tap, written, read in pairs for a, b in zip(written.tolist(), read.tolist(), strict=True)
    )
