"""DAPT: counts, the adapter and its prompt against their formulas, scenes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from contracts import batch, logits, tiny, train
from methods.objects import FAMILIES, alone, clouds, official, parts, published_names, small, sonata, trained
from parity import dapt
from pointadapt.backbones.ptv3 import PTv3, PTv3Config
from pointadapt.errors import UserError
from pointadapt.methods import adapt
from pointadapt.methods.core import AdapterLayer
from pointadapt.methods.dapt import CloudPrompt, DAPTConfig, DynamicAdapter, PromptedAttention, TokenPrompt
from pointadapt.ops.segment import segment_mean
from pointadapt.tasks.segmentation import Segmentation
from pointadapt.tokens import Tokens

SONATA_CHANNELS = 3 * 48 + 3 * 96 + 3 * 192 + 12 * 384 + 3 * 512


def shaken(model: nn.Module) -> nn.Module:
    """Every adapter away from its start."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "dapt_adapter" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def test_a_head_that_reads_prompts_needs_them():
    with pytest.raises(UserError, match="makes no prompts, which its head reads: add block"):
        official(DAPTConfig(target_modules=["mlp"]))
    assert trained(official(DAPTConfig(target_modules=["mlp"], prompts=False)), "dapt_adapter") > 0


def test_counts_at_official_size():
    model = official(DAPTConfig())
    assert (trained(model), trained(model, ".head.")) == (1_087_771, 365_839)
    assert trained(model, "dapt_adapter") == 721_164
    assert trained(official(DAPTConfig(rank=72, read=["cls", "max patch"]))) == 721_164 + 12 * (16 * 384 + 8) + 268_303
    assert trained(official(DAPTConfig(prompts=False)), "dapt_adapter") == 721_164 - 12 * 2 * 384


def test_counts_on_sonata_base():
    model = sonata(DAPTConfig())
    assert trained(model, "dapt_adapter") == 1_117_272 == (2 * 64 + 28) * SONATA_CHANNELS + 24 * (64 + 1)
    assert trained(model) == 1_141_932  # published: 1.14 M
    assert trained(sonata(DAPTConfig(prompts=False)), "dapt_adapter") == 1_117_272 - 2 * SONATA_CHANNELS


def test_trains_what_the_release_trains():
    ours, published = published_names("dapt", ("cls", "tfts", "Adapter"), dapt.make, dapt.namer)
    assert ours == published


def test_dynamic_adapter_is_its_formula():
    config = DAPTConfig(rank=3)
    adapter = shaken(DynamicAdapter(8, config)).eval()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    feat = torch.randn(2, 5, 8)
    out = adapter(lambda x: x.but(feat=2 * x.feat), Tokens(feat, (("patch", 5),)))
    z = F.layer_norm(feat, (8,), adapter.norm.weight, adapter.norm.bias)
    strength = (z @ adapter.scale.weight.T + adapter.scale.bias).clamp(min=0)
    assert (strength == 0).any() and (strength > 0).any()
    up = F.gelu(z @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T
    delta = strength * up + strength * adapter.up.bias
    torch.testing.assert_close(out.feat, 2 * feat + delta)
    torch.testing.assert_close(out.extra["dapt.default.delta"], delta)


def test_starts():
    clean, released = (DynamicAdapter(16, DAPTConfig(start=start)) for start in ("clean", "released"))
    feat = torch.randn(4, 7, 16)
    assert (clean.scale(clean.norm(feat)) == 1).all()
    assert not released.scale.bias.any() and released.scale.weight.std() > 0.05
    for adapter in (clean, released):
        assert not adapter.delta(feat).any()
    model = adapt(small(), DAPTConfig(spread=0))
    scales = [p for n, p in model.named_parameters() if n.endswith(("tfts.scale", "qkv.dapt_adapter.default.scale"))]
    assert len(scales) == 6 and all((s == 1).all() for s in scales)


def test_every_block_puts_one_prompt_behind_the_class_token():
    model = shaken(adapt(small(), DAPTConfig())).eval()
    backbone, point = model.get_base_model().backbone, clouds()
    entered, *left = backbone.enter(point), *backbone.stages(point)
    assert [tokens.count("prompt") for tokens in left] == [1, 2, 3]
    assert left[-1].layout == (("cls", 1), ("prompt", 3), ("patch", 12))
    assert not any(key.startswith("dapt") for key in left[-1].extra)
    block = backbone.blocks[1]
    assert isinstance(block.adapters["default"], TokenPrompt)
    inner = block.base_layer(left[0])
    tfts = block.adapters["default"].tfts
    prompt = F.gelu(inner.extra["dapt.default.delta"]).mean(1) * tfts.scale + tfts.shift
    torch.testing.assert_close(left[1].feat[:, 1], prompt)  # the newest stands first
    torch.testing.assert_close(left[1].feat[:, 2:], inner.feat[:, 1:])
    assert entered.pos is not None and all(tokens.pos is None for tokens in left)  # positions are added once
    first = backbone.blocks[0].base_layer(entered)
    torch.testing.assert_close(left[0].part("patch"), first.part("patch"))


def test_what_the_head_reads():
    read = {
        "default": (DAPTConfig(), ("cls", "mean prompt", "max patch")),
        "two": (DAPTConfig(read=["cls", "max patch"]), ("cls", "max patch")),
        "none": (DAPTConfig(prompts=False), ("cls", "max patch")),
    }
    for config, expected in read.values():
        assert adapt(small(), config).get_base_model().read == expected
    model = adapt(parts(), DAPTConfig())
    assert model.get_base_model().read == ("max", "mean")
    assert adapt(tiny("m2"), DAPTConfig()).peft_config["default"].read is None


@pytest.mark.parametrize("family", FAMILIES)
def test_works_in_every_family(family):
    model = shaken(adapt(small(family), DAPTConfig(dropout=0.0))).train()
    point = clouds()
    model.get_base_model().loss(model(point), torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    together = logits(model.eval(), point)
    for index, one in enumerate(point.split()):
        torch.testing.assert_close(logits(model, one)[0], together[index], atol=1e-5, rtol=1e-5)
    names = [name for name, _ in model.get_base_model().backbone(point).layout]
    assert names == [*(["sos"] if family is FAMILIES[2] else []), "cls", "prompt", "patch"]


@pytest.mark.parametrize("cls_tokens", [0, 1])
def test_part_segmentation(cls_tokens):
    model = shaken(adapt(parts(cls_tokens=cls_tokens), DAPTConfig())).eval()
    point = clouds()
    together = logits(model, point).split(point.counts)
    for index in range(3):
        torch.testing.assert_close(logits(model, alone(point, index)), together[index], atol=1e-5, rtol=1e-5)


def blocks_of(model) -> list[nn.Module]:
    return [block for stage in model.get_base_model().backbone.enc for block in stage.blocks]


def test_a_scene_s_prompts_are_keys_and_values_of_later_blocks():
    model = shaken(adapt(tiny("m2"), DAPTConfig())).eval()
    first, second = blocks_of(model)[:2]
    point = batch()
    seen = {}
    first.register_forward_hook(lambda m, i, o: seen.update(first=o))
    second.base_layer.register_forward_hook(lambda m, i, o: seen.update(inner=o))
    second.register_forward_hook(lambda m, i, o: seen.update(second=o))
    second.mix.attn.base_layer.register_forward_pre_hook(
        lambda m, args, kwargs: seen.update(prompt=kwargs["prompt"]), with_kwargs=True
    )
    with torch.no_grad():
        out = model.get_base_model().backbone(point)
    assert not any(key.startswith("dapt") for key in out.extra)
    (prompt,) = seen["first"].extra["dapt.default.prompts"]
    assert prompt.shape == (2, 16)
    mix = second.mix
    normed = F.layer_norm(prompt, (16,), mix.norm.base_layer.weight, mix.norm.base_layer.bias)
    normed = normed * mix.norm.adapters["default"].scale + mix.norm.adapters["default"].shift
    _, key, value = mix.attn.qkv(normed).chunk(3, -1)
    torch.testing.assert_close(seen["prompt"][0], key[:, None])
    torch.testing.assert_close(seen["prompt"][1], value[:, None])
    tfts = second.adapters["default"].tfts
    delta = F.gelu(seen["inner"].extra["dapt.default.delta"])
    own = segment_mean(delta, point.batch, 2) * tfts.scale + tfts.shift
    expected = seen["inner"].feat + own[point.batch]  # the stage's last block: there is no attention to read it
    torch.testing.assert_close(seen["second"].feat, expected)


def test_a_stage_s_prompts_are_its_own():
    torch.manual_seed(0)
    shape = dict(enc_channels=(16, 32), enc_num_head=(1, 2), enc_patch_size=(32, 32), stride=(2,))
    net = PTv3(PTv3Config(**shape, enc_depths=(3, 1)))
    model = shaken(adapt(Segmentation(net, 4), DAPTConfig())).eval()
    counts = []
    for block in blocks_of(model):
        block.mix.attn.base_layer.register_forward_pre_hook(
            lambda m, args, kwargs: counts.append(kwargs["prompt"][0].shape[1] if kwargs else 0), with_kwargs=True
        )
    point = batch()
    together = logits(model, point).split(point.counts)
    assert counts == [0, 1, 2, 0]
    for one, part in zip(point.split(), together, strict=True):
        torch.testing.assert_close(logits(model, one), part, atol=1e-5, rtol=1e-5)


def test_prompts_can_be_left_out_on_scenes():
    model = adapt(tiny("m2"), DAPTConfig(prompts=False))
    kinds = [type(a) for m in model.modules() if isinstance(m, AdapterLayer) for a in m.adapters.values()]
    assert DynamicAdapter in kinds and not {CloudPrompt, PromptedAttention} & set(kinds)
    train(model, 1)
    assert model(batch()).isfinite().all()


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="rank must be at least 1"):
        DAPTConfig(rank=0)
    with pytest.raises(UserError, match="start must be one of"):
        DAPTConfig(start="kaiming")
    with pytest.raises(UserError, match="put mlp beside block"):
        DAPTConfig(target_modules=["block", "norm1"])
