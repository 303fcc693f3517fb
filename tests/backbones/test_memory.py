"""What is kept for the backward pass: nothing of frozen prefixes, block inputs alone under checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from methods.objects import FAMILIES, clouds, small
from pointadapt.backbones.sparse_unet import SparseUNet, SparseUNetConfig
from pointadapt.methods import METHODS
from pointadapt.methods.core import adapt
from pointadapt.ops.frozen import by_rows, no_graph
from pointadapt.ops.sparse_conv import SubMConv3d
from pointadapt.ops.strided_conv import DownConv3d
from pointadapt.point import collate
from pointadapt.tasks.segmentation import Segmentation
from scenes import cloud, tiny

POINT = collate([cloud(300, 20), cloud(100, 15, seed=1)])


def kept(call: Any) -> tuple[Any, list[torch.Tensor]]:
    """What ``call()`` gives, and the tensors that autograd keeps meanwhile."""
    found: list[torch.Tensor] = []
    with saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        return call(), found


def step(model: Any, checkpointing: bool) -> dict[str, torch.Tensor]:
    """Logits and gradients of one training step with dropout, drop path and shuffled curves."""
    model.get_base_model().backbone.checkpointing = checkpointing
    model.train()
    torch.manual_seed(3)
    logits = model(POINT.but(cache={}))
    logits.square().sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {**found, "logits": logits.detach(), "random": torch.rand(3)}


@pytest.mark.parametrize("method", ["gem", "pointtpa", "adapter"])
def test_checkpointing_changes_no_number_and_keeps_less(method):
    options: dict[str, Any] = {"dropout": 0.2} if method == "gem" else {}
    model = adapt(Segmentation(tiny(drop_path=0.4, proj_drop=0.1, attn_drop=0.1), 4), METHODS[method](**options))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.any():  # adapters start at zero: let them matter
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    plain, less = step(model, False), step(model, True)
    assert plain.keys() == less.keys()
    assert all(torch.equal(plain[name], less[name]) for name in plain)
    sizes = []
    for checkpointing in (False, True):
        model.get_base_model().backbone.checkpointing = checkpointing
        _, found = kept(lambda: model(POINT.but(cache={})))
        sizes.append(sum(t.numel() for t in found))
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_of_token_networks(family):
    model = adapt(small(family, drop_path=0.4), METHODS["adapter"]())
    found = []
    for checkpointing in (False, True):
        model.get_base_model().backbone.checkpointing = checkpointing
        model.train()
        torch.manual_seed(3)
        model(clouds()).square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_trained_batch_norm_is_not_computed_twice():
    torch.manual_seed(0)
    config = SparseUNetConfig(
        base_channels=8, enc_channels=(8, 16), enc_layers=(1, 1), dec_channels=(8, 16), dec_layers=(1, 1)
    )
    model = SparseUNet(config).train()
    states = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        start = {k: v.clone() for k, v in model.state_dict().items()}
        model(POINT.but(feat=POINT.feat[:, : config.in_channels], cache={})).feat.sum().backward()
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        model.load_state_dict(start)
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_nothing_is_kept_of_what_lies_before_the_first_adapter():
    model = adapt(Segmentation(tiny(), 4), METHODS["gem"](stages=[2])).train()
    backbone = model.get_base_model().backbone
    _, found = kept(lambda: backbone(POINT.but(cache={})))
    floats = [t for t in found if t.is_floating_point() and t.ndim]
    assert floats
    assert not any(len(t) == len(POINT) for t in floats)  # full resolution: stage 0
    frozen = {p.data_ptr() for s in (0, 1) for p in backbone.enc[s].parameters()}
    assert not any(t.data_ptr() in frozen for t in floats)


@pytest.mark.parametrize("kind", [SubMConv3d, DownConv3d])
def test_a_frozen_convolution_keeps_no_input(kind):
    torch.manual_seed(0)
    conv = kind(9, 8)
    feat = POINT.feat.clone().requires_grad_()
    for trained in (True, False):
        conv.requires_grad_(trained)
        _, found = kept(lambda: conv(POINT.but(feat=feat)))
        assert any(t.shape == feat.shape for t in found) == trained


def test_blocks_of_rows_give_the_numbers_of_all_rows():
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 6)
    feat = torch.randn(1500, 8)
    with torch.no_grad():
        torch.testing.assert_close(by_rows(layer, feat, 1 << 17), layer(feat))
        assert no_graph(feat, layer)
    assert not no_graph(feat, layer)
    assert no_graph(feat, layer.requires_grad_(False))
    assert not no_graph(feat.requires_grad_(), layer)
