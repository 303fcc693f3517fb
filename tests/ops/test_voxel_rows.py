import pytest
import torch

from pointadapt.backbones.sparse_unet import SparseUNet, SparseUNetConfig
from pointadapt.ops.voxel_rows import restore_rows, sort_rows
from pointadapt.point import Point, collate
from scenes import cloud, tiny

DECODER = dict(dec_depths=(1, 1), dec_channels=(12, 24), dec_num_head=(1, 2), dec_patch_size=(32, 32))


def test_rows_are_sorted_and_come_back():
    point = collate([cloud(60, 5), cloud(0), cloud(40, 5, seed=1)])
    point = point.but(mask=torch.rand(len(point)) < 0.5)
    inner, place = sort_rows(point)
    keys = [(c, *xyz) for c, xyz in zip(inner.batch.tolist(), inner.grid_coord.tolist(), strict=True)]
    assert keys == sorted(keys) and inner.counts == point.counts
    for name in ("coord", "feat", "grid_coord", "mask"):
        assert torch.equal(getattr(inner, name)[place], getattr(point, name))
    back = restore_rows(inner.but(feat=2 * inner.feat, extra={"state": 1}), point, place)
    assert torch.equal(back.feat, 2 * point.feat) and back.coord is point.coord and back.extra == {"state": 1}


def test_rows_of_one_voxel_keep_their_order():
    grid = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    point = Point(grid.float(), torch.arange(4.0)[:, None], torch.tensor([4]), grid)
    assert sort_rows(point)[0].feat[:, 0].tolist() == [1.0, 3.0, 0.0, 2.0]


def test_what_is_known_of_coordinates_is_kept():
    """A second pass over the same Point, with other features, finds neighbours and windows made."""
    point = cloud(60, 5)
    sort_rows(point)[0].cache["seen"] = True
    assert sort_rows(point.but(feat=point.feat + 1))[0].cache["seen"]
    assert "seen" not in sort_rows(point.but(coord=point.coord + 1))[0].cache


@pytest.mark.parametrize("kind", ["m2", "decoder", "m1", "legacy", "official", "voxels"])
def test_networks_give_rows_in_the_callers_order(kind):
    """A shuffled cloud gives shuffled features: of every level's parent, too."""
    torch.manual_seed(0)
    model = {
        "m2": tiny,
        "decoder": lambda: tiny(**DECODER),
        "m1": lambda: tiny(generation="m1", **DECODER),
        "legacy": lambda: tiny(generation="m1", legacy=True, **DECODER),
        "official": lambda: tiny(compat="official"),
        "voxels": lambda: SparseUNet(SparseUNetConfig(in_channels=9)).eval(),
    }[kind]()
    if kind == "official":
        model.draw = torch.arange
    point = collate([cloud(150, 8), cloud(70, 6, seed=1)])
    first, second = point.counts
    rows = torch.cat([torch.randperm(first), first + torch.randperm(second)])
    other = Point(point.coord[rows], point.feat[rows], point.offset, point.grid_coord[rows])
    with torch.no_grad():
        torch.testing.assert_close(model.dense(other), model.dense(point)[rows], atol=2e-5, rtol=1e-4)
        one, two = model(point), model(other)
    while one.parent is not None:
        assert one.parent.parent is not None or torch.equal(two.pooling_inverse, one.pooling_inverse[rows])
        one, two = one.parent, two.parent
    assert one.coord is point.coord and two.coord is other.coord
    torch.testing.assert_close(two.feat, one.feat[rows], atol=2e-5, rtol=1e-4)
    assert "conv_feat" not in one.extra
