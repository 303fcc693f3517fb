import pytest
import torch
import torch.nn.functional as F

from pointadapt.ops.sparse_conv import tap_conv
from pointadapt.ops.strided_conv import DownConv3d, UpConv3d, coarsen, links
from pointadapt.point import Point, collate
from scenes import cloud


def dense(point: Point, size: int) -> torch.Tensor:
    """[1, C, size, size, size] volume of one cloud."""
    volume = torch.zeros(size, size, size, point.feat.shape[1])
    volume[tuple(point.grid_coord.T)] = point.feat
    return volume.permute(3, 0, 1, 2)[None]


@pytest.mark.parametrize("stride", [2, 3])
def test_down_equals_dense_convolution(stride):
    torch.manual_seed(0)
    point, conv = cloud(60, 6), DownConv3d(9, 4, stride)
    with torch.no_grad():
        out = conv(point)
        volume = F.conv3d(dense(point, 6), conv.weight.permute(0, 4, 1, 2, 3), conv.bias, stride=stride)
    torch.testing.assert_close(out.feat, volume[0][:, *out.grid_coord.T].T, atol=1e-5, rtol=1e-5)
    occupied = (dense(point, 6).abs().sum(1) > 0).float()
    assert len(out) == int(F.max_pool3d(occupied, stride).sum())
    assert out.grid_size == (None if point.grid_size is None else stride * point.grid_size)


def test_up_equals_dense_transposed_convolution():
    torch.manual_seed(0)
    point = cloud(60, 6)
    down, up = DownConv3d(9, 5), UpConv3d(5, 3)
    with torch.no_grad():
        coarse = down(point)
        out = up(coarse)
        volume = F.conv_transpose3d(dense(coarse, 3), up.weight.permute(4, 0, 1, 2, 3), up.bias, stride=2)
    torch.testing.assert_close(out, volume[0][:, *point.grid_coord.T].T, atol=1e-5, rtol=1e-5)


def test_clouds_do_not_meet():
    torch.manual_seed(0)
    down, up = DownConv3d(9, 4), UpConv3d(4, 3)
    clouds = [cloud(80, 6), cloud(0), cloud(40, 5, seed=1), cloud(1, 2)]
    with torch.no_grad():
        together = down(collate(clouds))
        alone = [down(c) for c in clouds]
        assert together.counts == [len(c) for c in alone]
        torch.testing.assert_close(together.feat, torch.cat([c.feat for c in alone]), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(up(together), torch.cat([up(c) for c in alone]), atol=1e-6, rtol=1e-6)


def test_rows_of_one_voxel_all_count():
    one = cloud(40, 5)
    grid = torch.cat([one.grid_coord, one.grid_coord[:7]])
    twice = Point(grid.float(), torch.cat([one.feat, one.feat[:7]]), torch.tensor([len(grid)]), grid)
    weighed = one.but(feat=torch.cat([2 * one.feat[:7], one.feat[7:]]))
    down, up = DownConv3d(9, 4), UpConv3d(4, 3)
    with torch.no_grad():
        torch.testing.assert_close(down(twice).feat, down(weighed).feat, atol=1e-5, rtol=1e-5)
        out = up(down(twice))
    assert torch.equal(out[len(one) :], out[:7])


def test_gradients():
    point = cloud(30, 4, channels=3)
    coarse = coarsen(point)
    pairs = links(point, coarse)
    weight = torch.randn(2, 2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    feat = point.feat.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f, w: tap_conv(f, w, None, pairs, len(coarse)), (feat, weight))
    back = pairs.reversed()
    feat = torch.randn(len(coarse), 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, w: tap_conv(f, w, None, back, len(point)), (feat, weight))


def test_frozen_weight_costs_no_gradient():
    conv = DownConv3d(9, 4).requires_grad_(False)
    feat = cloud().feat.requires_grad_()
    conv(cloud().but(feat=feat)).feat.sum().backward()
    assert conv.weight.grad is None and feat.grad is not None


def test_coarse_voxels_are_found_once_and_hold_no_features():
    point = cloud()
    first, second = coarsen(point), coarsen(point.but(feat=point.feat * 2, extra={"a": 1}))
    assert first.grid_coord is second.grid_coord and first.cache is second.cache
    assert second.extra == {"a": 1} and second.parent.feat is not point.feat
    assert links(point, first) is links(second.parent, second)


def test_autocast_computes_low_and_gives_low():
    conv, point = DownConv3d(9, 4), cloud()
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(point)
    assert out.feat.dtype == torch.bfloat16
    torch.testing.assert_close(out.feat.float(), conv(point).feat, atol=5e-2, rtol=5e-2)
