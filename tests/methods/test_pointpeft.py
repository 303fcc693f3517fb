"""Point-PEFT: what of the published parameters it trains, neighbourhoods within a cloud, prompts that come and go."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.objects import clouds, official, parts, small, sonata
from pointadapt.errors import UserError
from pointadapt.methods import adapt
from pointadapt.methods.pointpeft import (
    BehindBranch,
    NarrowAttention,
    Neighborhoods,
    PointPEFTConfig,
    QuickBottleneck,
    inverse_distance,
    neighborhoods,
)
from pointadapt.tokens import Tokens


def tokens(groups=12, channels=5, batch=2) -> Tokens:
    draw = torch.Generator().manual_seed(0)
    center = torch.randn(batch, groups, 3, generator=draw)
    return Tokens(torch.randn(batch, groups, channels, generator=draw), (("patch", groups),), center=center)


#: Published trainable parameters by part at official size; what has no counterpart here is in UNUSED.
PUBLISHED = {
    ".places": 30,
    ".prompts": 46_080,
    "norm.pointpeft_adapter.default.delta": 9_216,
    "fc1.": 18_432,
    "fc2.": 4_608,
    "proj.pointpeft_adapter": 4_608,
    ".bottleneck.": 24 * (16 * 384 * 2 + 16 + 384),
    "default.norm.": 9_216,
    "_shared.default.attention.": 20_736 + 6_912 + 384 + 768,
    "final_norm.": 768,
    ".cls.": 768,
    ".head.": 267_535,
}
#: Gates nothing reads; prompts of blocks that use none; adapters of the bank of training features.
UNUSED = {"gates": 12, ".prompts": 6 * 10 * 384, "bank": 36_864 + 96 + 36_864 + 4_608}


def test_counts_on_point_mae():
    model = official(PointPEFTConfig())
    found = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(found.values()) == 773_017 - sum(UNUSED.values()) == 671_533
    for mark, count in PUBLISHED.items():
        assert sum(n for name, n in found.items() if mark in name) == count - UNUSED.get(mark, 0), mark
    assert sum(PUBLISHED.values()) + UNUSED["gates"] + UNUSED["bank"] == 773_017


def test_neighbourhoods_against_loops():
    x, places = tokens(), torch.randn(2, 3)
    found = neighborhoods(x, 4, places)
    assert found.node.shape == (2, 2 + 6) and found.index.shape == (2, 8, 4)
    nodes, norm = torch.randn(2, 14, 5), nn.BatchNorm1d(5).eval()
    summed = found.summed_up(nodes, norm)
    for b in range(2):
        where = torch.cat([places, x.center[b]])
        values, middles = [], []
        for q in found.node[b].tolist():
            nearest = (where - where[q]).norm(dim=1).argsort()[:4]
            assert set(found.index[b, len(values)].tolist()) == set(nearest.tolist())
            values.append(F.gelu(norm(nodes[b, nearest].amax(0)[None])[0]) + 0.3 * nodes[b, q])
            middles.append(where[q])
        for g in range(12):
            weight = torch.stack([1 / ((x.center[b, g] - m).square().sum() + 1e-4) for m in middles])
            expected = (weight / weight.sum()) @ torch.stack(values)
            torch.testing.assert_close(summed[b, g], expected, atol=1e-5, rtol=1e-4)
    assert found.node[0, :2].tolist() == [0, 1] and (found.node[:, 2:] >= 2).all()


def test_neighbourhoods_stay_within_their_cloud():
    x, places = tokens(), torch.randn(2, 3)
    nodes, norm = torch.randn(2, 14, 5), nn.BatchNorm1d(5).eval()
    together = neighborhoods(x, 4, places).summed_up(nodes, norm)
    alone = x.but(feat=x.feat[1:], center=x.center[1:], cache={})
    torch.testing.assert_close(neighborhoods(alone, 4, places).summed_up(nodes[1:], norm), together[1:])
    other = nodes.clone()
    other[0] += 1
    assert torch.equal(neighborhoods(x, 4, places).summed_up(other, norm)[1], together[1])


def test_places_of_prompts_learn_from_distances():
    x, places = tokens(), torch.randn(2, 3, requires_grad=True)
    neighborhoods(x, 4, places).summed_up(torch.randn(2, 14, 5), nn.Identity()).square().sum().backward()
    assert (places.grad.abs().sum(1) > 0).all()


def test_few_and_equal_centres():
    x = tokens(groups=1)
    assert neighborhoods(x, 16).index.shape == (2, 1, 1)
    same = tokens().but(center=torch.zeros(2, 12, 3))
    assert isinstance(found := neighborhoods(same, 4), Neighborhoods)
    torch.testing.assert_close(found.weight, torch.full((2, 12, 6), 1 / 6))
    with pytest.raises(UserError, match="centres"):
        neighborhoods(x.but(center=None), 4)


def test_weights_sum_to_one_and_fall_with_distance():
    weight = inverse_distance(torch.zeros(1, 1, 3), torch.tensor([[[0.1, 0, 0], [0, 1, 0], [0, 0, 2]]]))[0, 0]
    assert weight.sum().item() == pytest.approx(1)
    assert weight[0] / weight[1] == pytest.approx((1 + 1e-4) / (0.01 + 1e-4), rel=1e-4)


def test_narrow_attention_is_softmax_attention():
    torch.manual_seed(0)
    module, x = NarrowAttention(5), torch.randn(2, 3, 4, 5)
    query, key, value = module.qkv(module.norm(x)).chunk(3, -1)
    heads = []
    for h in range(6):
        q, k, v = (part[..., 3 * h : 3 * h + 3] for part in (query, key, value))
        heads.append((q @ k.mT / 18**0.5).softmax(-1) @ v)
    torch.testing.assert_close(module(x), x + module.proj(torch.cat(heads, -1)), atol=1e-5, rtol=1e-5)


def test_quick_bottleneck():
    module, x = QuickBottleneck(6, 3), torch.randn(2, 6)
    hidden = x @ module.down.weight.T
    torch.testing.assert_close(module(x), (hidden / (1 + (-1.702 * hidden).exp())) @ module.up.weight.T)


def test_the_bottleneck_stands_behind_the_branch():
    model = small()
    adapt(model, PointPEFTConfig(scale=0.3)).eval()
    layer = model.backbone.blocks[1].ffn
    adapter, x = layer.adapters["default"], Tokens(torch.randn(2, 5, 32), (("patch", 5),))
    assert isinstance(adapter, BehindBranch)
    base = layer.base_layer(x).feat
    torch.testing.assert_close(layer(x).feat, base + 0.3 * adapter.bottleneck(base))


def test_prompts_are_in_the_first_half_and_leave_no_tokens():
    model = small(depth=4)
    adapt(model, PointPEFTConfig(prompts=3))
    lengths = []
    for block in model.backbone.blocks:
        block.base_layer.register_forward_hook(lambda m, i, o: lengths.append(o.layout))
    out = model.backbone(clouds())
    with_prompts = (("cls", 1), ("prompt of default", 3), ("patch", 12))
    plain = (("cls", 1), ("patch", 12))
    assert lengths == [with_prompts, with_prompts, plain, plain] and out.layout == plain


def test_part_segmentation():
    model = adapt(parts(cls_tokens=0), PointPEFTConfig())
    point = clouds()
    out = model(point)
    model.get_base_model().loss(out, torch.randint(0, 5, (len(point),))).backward()
    assert out.shape == (len(point), 5) and all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_scenes_are_refused():
    with pytest.raises(UserError, match="centres"):
        sonata(PointPEFTConfig())


@pytest.mark.parametrize("options", [{"prompts": 0}, {"rank": 0}, {"neighbors": 0}], ids=str)
def test_wrong_options_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        PointPEFTConfig(**options)
