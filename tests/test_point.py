import pytest
import torch

from pointadapt.point import Point, collate
from scenes import cloud


def test_copies_share_the_cache_until_coordinates_change():
    point = cloud()
    point.remember("key", lambda: 1)
    assert point.but(feat=torch.zeros(len(point), 2)).cache is point.cache
    assert point.but(coord=point.coord).cache == {}
    with pytest.raises(AttributeError):
        point.feat = None


def test_collate_and_split_are_inverse():
    clouds = [cloud(20), cloud(0), cloud(5, seed=1)]
    packed = collate(clouds)
    assert packed.counts == [len(c) for c in clouds] and packed.num_clouds == 3
    assert torch.equal(packed.batch.bincount(minlength=3), torch.tensor(packed.counts))
    for one, again in zip(clouds, packed.split(), strict=True):
        assert torch.equal(one.feat, again.feat) and torch.equal(one.grid_coord, again.grid_coord)


def test_wrong_rows_are_named():
    with pytest.raises(ValueError, match="feat has 3 rows"):
        Point(torch.zeros(2, 3), torch.zeros(3, 1), torch.tensor([2]))
    with pytest.raises(ValueError, match="offset"):
        Point(torch.zeros(2, 3), torch.zeros(2, 1), torch.tensor(2))
    with pytest.raises(ValueError, match="ends at 3, there are 2"):
        Point(torch.zeros(2, 3), torch.zeros(2, 1), torch.tensor([3]))
    with pytest.raises(ValueError, match="at least one"):
        collate([])
    with pytest.raises(ValueError, match="only some"):
        collate([cloud(5), cloud(5).but(grid_coord=None)])
    with pytest.raises(ValueError, match="several conditions"):
        collate([cloud(5).but(condition="S3DIS"), cloud(5).but(condition="ScanNet")])


def test_residual_sum_takes_the_branch_state():
    point = cloud(5)
    out = point.plus(point.but(feat=torch.ones_like(point.feat), extra={"latents": 1}))
    assert torch.equal(out.feat, point.feat + 1) and out.extra == {"latents": 1}


def test_to_moves_everything():
    point = cloud(5).but(extra={"a": torch.ones(2), "b": "text"})
    moved = point.to("meta")
    assert moved.feat.is_meta and moved.grid_coord.is_meta and moved.extra["a"].is_meta and moved.extra["b"] == "text"


def test_clouds_of_points_are_known_without_asking_the_device():
    """Meta stands for a GPU: what would wait for values fails on it."""
    point = collate([cloud(20), cloud(0), cloud(5, seed=1)])
    elsewhere = point.to("meta")
    assert elsewhere.batch.shape == point.batch.shape
