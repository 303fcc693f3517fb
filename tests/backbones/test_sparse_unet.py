"""The sparse U-Net: size, locality, independence of batch mates, files."""

import pytest
import torch

from contracts import BACKBONES, tiny
from pointadapt.analysis.describe import backbone_kind, describe_checkpoint
from pointadapt.backbones.sparse_unet import SparseUNet, SparseUNetConfig
from pointadapt.backbones.weights import load_backbone, save_backbone
from pointadapt.errors import UserError
from pointadapt.evaluate import evaluate
from pointadapt.point import Point, collate
from pointadapt.train import train
from scenes import cloud
from tiny_runs import tiny_run


def test_count_is_the_published_one():
    with torch.device("meta"):
        net = SparseUNet(SparseUNetConfig(in_channels=6))
    count = sum(p.numel() for p in net.parameters()) + 96 * 20 + 20
    assert count == 39_157_844  # published: 39.2 M
    # stem, then per level: down, blocks; up, blocks of the decoder, widths as in the definition
    convolutions = 125 * 6 * 32
    above, layers, back = (32, 32, 64, 128, 256), (2, 3, 4, 6), (96, 96, 128, 256, 256)
    for s in range(4):
        convolutions += 8 * above[s] * above[s + 1] + layers[s] * 2 * 27 * above[s + 1] ** 2
        joined = back[s] + above[s]
        convolutions += 8 * back[s + 1] * back[s] + 27 * joined * back[s] + 3 * 27 * back[s] ** 2 + joined * back[s]
    assert sum(p.numel() for p in net.parameters() if p.ndim > 1) == convolutions


def test_every_point_gets_features_at_its_own_resolution():
    net = load_backbone("sparse-unet", weights=None)
    assert net.kind == "voxels" and net.dense_channels == 96 and not net.fresh
    point = collate([cloud(300), cloud(0), cloud(40, 5, seed=1), cloud(1)])
    with torch.no_grad():
        feat = net.dense(point)
    assert feat.shape == (len(point), 96) and feat.isfinite().all()


def test_a_cloud_is_alone_in_any_batch():
    net = tiny("unet").backbone
    clouds = [cloud(90), cloud(200, seed=1), cloud(1, seed=2), cloud(0)]
    with torch.no_grad():
        together = net.dense(collate(clouds)).split([len(c) for c in clouds])
        for one, part in zip(clouds, together, strict=True):
            torch.testing.assert_close(net.dense(one), part, atol=1e-6, rtol=1e-5)


def test_order_of_the_rows_and_place_in_space_do_not_matter():
    net, point = tiny("unet").backbone, cloud()
    shuffle = torch.randperm(len(point))
    moved = Point(point.coord[shuffle], point.feat[shuffle], point.offset, point.grid_coord[shuffle])
    with torch.no_grad():
        expected = net.dense(point)
        torch.testing.assert_close(net.dense(moved), expected[shuffle], atol=1e-6, rtol=1e-5)
        even = point.but(grid_coord=point.grid_coord + 8)  # a multiple of all strides: the same coarse voxels
        torch.testing.assert_close(net.dense(even), expected, atol=1e-6, rtol=1e-5)


def test_gradients_reach_every_parameter():
    net = tiny("unet").backbone.train()
    net.dense(cloud()).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_frozen_batch_norm_stands_still_in_training():
    net = tiny("unet").backbone.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train().dense(cloud())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_file_round_trip(tmp_path):
    net = tiny("unet").backbone
    save_backbone(net, tmp_path / "unet.safetensors")
    again = load_backbone(tmp_path / "unet.safetensors")
    assert again.config == net.config == BACKBONES["unet"]
    assert all(torch.equal(again.state_dict()[k], v) for k, v in net.state_dict().items())
    assert backbone_kind(again.config) == "voxels"
    describe_checkpoint(tmp_path / "unet.safetensors")


def test_what_a_user_gets_wrong(tmp_path):
    with pytest.raises(UserError, match="decoder already"):
        load_backbone("sparse-unet", weights=None, decoder=True)
    with pytest.raises(UserError, match="no hosted weights"):
        load_backbone("sparse-unet")
    torch.save({"state_dict": {"backbone.x": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="save_backbone"):
        load_backbone(tmp_path / "other.pth", config="sparse-unet")
    with pytest.raises(ValueError, match="enc_layers"):
        SparseUNetConfig(enc_layers=(2, 2))


@pytest.mark.parametrize("method", ["gem", "convlora"])
def test_adapts_and_scores_scans_as_any_backbone(method, tmp_path):
    save_backbone(tiny("unet").backbone, tmp_path / "unet.safetensors")
    run = tiny_run(tmp_path, backbone=str(tmp_path / "unet.safetensors"), method=method)
    result = train(run)
    assert result["steps"] == 6 and result["parameters"]["trained_without_head"] > 0
    scored = evaluate(run.out)
    assert 0 < scored["allacc"] <= 1 and evaluate(run.out)["confusion"] == scored["confusion"]
    with pytest.raises(UserError, match="on convolutions use method convlora"):
        train(tiny_run(tmp_path, backbone=run.backbone, method="lora", out=tmp_path / "other"))
