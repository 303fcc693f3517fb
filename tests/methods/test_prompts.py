"""VPT and prefix tuning: counts, where prompts stand, who sees them, the attention by hand."""

import pytest
import torch
from torch import nn

from contracts import cloud, logits, tiny
from methods.objects import FAMILIES, clouds, official, published_names, small, sonata, trained
from parity import vptdeep
from pointadapt.backbones.point_gpt import PointGPT
from pointadapt.errors import UserError
from pointadapt.methods import adapt
from pointadapt.methods.prompts import DeepPrompts, PrefixConfig, VPTConfig, joined
from pointadapt.tokens import Tokens


def test_counts_at_official_size():
    assert trained(official(VPTConfig())) == 360_463
    assert trained(official(VPTConfig(n=20)), "vpt_adapter") == 2 * 20 * 384 * 12
    assert trained(official(VPTConfig(deep=False)), "vpt_adapter") == 3_840
    assert trained(official(PrefixConfig()), "prefix_adapter") == 92_160
    assert trained(sonata(PrefixConfig(n=4))) == 57_216 + 24_660


def test_trains_what_the_release_trains():
    ours, published = published_names("vptdeep", ("cls",), vptdeep.make, vptdeep.namer)
    assert ours == published


def test_every_block_sees_its_own_prompts_only():
    adapter = DeepPrompts(6, 2)
    feat, pos = torch.randn(3, 5, 6), torch.randn(1, 5, 6).expand(3, -1, -1)
    tokens = Tokens(feat, (("cls", 1), ("patch", 4)), pos)
    seen = adapter(lambda x: x, tokens)
    assert seen.layout == (("cls", 1), ("patch", 4), ("prompt", 2))
    assert torch.equal(seen.part("prompt"), adapter.token.expand(3, -1, -1))
    assert torch.equal(seen.pos[:, -2:], adapter.pos.expand(3, -1, -1))
    again = adapter(lambda x: x, seen.with_part("prompt", torch.full((3, 2, 6), 9.0)))
    assert torch.equal(again.feat, seen.feat) and torch.equal(again.pos, seen.pos)
    unplaced = adapter(lambda x: x, tokens.but(pos=None))  # where positions are in the features already
    torch.testing.assert_close(unplaced.part("prompt")[0], (adapter.token + adapter.pos)[0])


def test_shallow_prompts_go_through_all_blocks():
    model = adapt(small(), VPTConfig(deep=False, n=4)).eval()
    out = model.get_base_model().backbone(clouds())
    assert out.layout == (("cls", 1), ("prompt", 4), ("patch", 12))
    assert len({n for n, _ in model.named_parameters() if "vpt_adapter" in n}) == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "config", [VPTConfig(n=3), VPTConfig(n=3, deep=False), PrefixConfig(n=3)], ids=lambda c: c.method
)
def test_all_groups_see_prompts_in_every_family(family, config):
    model = adapt(small(family), config).eval()
    backbone, point = model.get_base_model().backbone, clouds()
    with torch.no_grad():
        before = backbone(point)
        for name, parameter in model.named_parameters():
            if f"{config.method}_adapter" in name:
                parameter += torch.randn_like(parameter)
        after = backbone(point)
    assert (before.part("patch") - after.part("patch")).abs().amax((0, 2)).min() > 1e-3
    for index, one in enumerate(point.split()):
        torch.testing.assert_close(logits(model, one)[0], logits(model, point)[index], atol=1e-5, rtol=1e-5)


def test_pointgpt_reads_prompts_with_the_first_token_though_it_is_causal():
    model = adapt(small(PointGPT), VPTConfig(n=3)).eval()
    backbone = model.get_base_model().backbone
    with torch.no_grad():
        before = backbone(clouds()).part("sos")
        backbone.blocks[0].adapters["default"].token.normal_()
        assert not torch.allclose(backbone(clouds()).part("sos"), before)


def test_prefix_is_attention_over_more_keys():
    model = adapt(small(), PrefixConfig(n=3)).eval()
    layer = model.get_base_model().backbone.blocks[1].mix.attn
    adapter, attn = layer.adapters["default"], layer.base_layer
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    feat = torch.randn(2, 5, 32)
    query, key, value = attn.qkv(feat).chunk(3, -1)
    key, value = (torch.cat([p.expand(2, -1, -1), x], 1) for p, x in ((adapter.key, key), (adapter.value, value)))
    outs = []
    for q, k, v in zip(query.chunk(2, -1), key.chunk(2, -1), value.chunk(2, -1), strict=True):
        outs.append((q @ k.transpose(1, 2) / 4).softmax(-1) @ v)
    tokens = Tokens(feat, (("patch", 5),))
    torch.testing.assert_close(layer(tokens).feat, attn.proj(torch.cat(outs, -1)))
    more = (torch.randn(2, 32), torch.randn(2, 32))  # an adapter above gives prompts of its own
    joint = tuple(torch.cat([a, b]) for a, b in zip(more, (adapter.key, adapter.value), strict=True))
    torch.testing.assert_close(layer(tokens, prompt=more).feat, attn(tokens, prompt=joint).feat)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="n must be at least 1"):
        PrefixConfig(n=0)
    with pytest.raises(UserError, match="points are pooled between them"):
        adapt(tiny("m2"), VPTConfig(deep=False))


def test_prompts_of_scenes_are_tokens_of_every_window():
    """A window of points with the prompts behind them, through the frozen attention, is what the points get."""
    model = adapt(tiny("m2"), VPTConfig(n=3)).eval()
    assert sum(p.numel() for n, p in model.named_parameters() if "vpt_" in n) == 2 * 3 * (16 + 32)
    layer = model.get_base_model().backbone.enc[0].blocks[1].mix.attn
    adapter, attn = layer.adapters["default"], layer.base_layer
    nn.init.normal_(adapter.token)
    point = cloud(20, 3, 16).but(extra={"curve": "z"})  # fewer than a window
    rows = torch.cat([point.feat, adapter.token])
    query, key, value = attn.qkv(rows).chunk(3, -1)
    heads = [
        (q @ k.T / q.shape[1] ** 0.5).softmax(-1) @ v
        for q, k, v in zip(*(x.chunk(attn.heads, -1) for x in (query, key, value)), strict=True)
    ]
    torch.testing.assert_close(layer(point).feat, attn.proj(torch.cat(heads, -1))[:20], atol=1e-5, rtol=1e-5)


def test_prompts_for_all_and_for_each_cloud_are_joined():
    for_all, for_each = (torch.randn(3, 8),) * 2, (torch.randn(2, 1, 8),) * 2
    for given, own in ((for_all, for_each), (for_each, for_all)):
        key, value = joined(given, own)
        assert key.shape == (2, 4, 8) and torch.equal(key, value)
        assert torch.equal(key[1, :3] if given is for_all else key[1, 1:], for_all[0])
    assert joined(None, for_all) is for_all
