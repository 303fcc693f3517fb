"""The small baselines: counts, placement, merging; and LoRA's defaults."""

import pytest
import torch
from torch import nn

from contracts import batch, cloud, logits, tiny, train
from methods.objects import official, sonata, trained
from pointadapt.errors import UserError
from pointadapt.methods import METHODS, adapt
from pointadapt.methods.adapters import BitFitConfig, BottleneckConfig, DecoderConfig, FullConfig, LinearConfig
from pointadapt.methods.from_peft import LoraConfig

DECODER = dict(
    dec_depths=(2, 2, 2, 2), dec_channels=(64, 96, 192, 384), dec_num_head=(4, 6, 12, 24), dec_patch_size=(64,) * 4
)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LinearConfig(), 24_660),
        (BitFitConfig(), 102_592 + 24_660),
        (BottleneckConfig(), 938_448 + 24_660),
        (BottleneckConfig(placement="houlsby"), 1_901_556),
        (METHODS["houlsby"](), 1_901_556),
        (LoraConfig(), 228_864 + 24_660),
        (LoraConfig(r=64), 1_830_912 + 24_660),
        (FullConfig(), 108_485_988),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, int) else str(v),
)
def test_counts_on_sonata_base(config, count):
    assert trained(sonata(config)) == count


@pytest.mark.parametrize(("config", "count"), [(LinearConfig(), 268_303), (BitFitConfig(), 307_983)])
def test_counts_on_point_mae(config, count):
    assert trained(official(config)) == count


def test_counts_with_a_decoder():
    assert trained(sonata(DecoderConfig(), **DECODER)) == 16_332_820
    assert trained(sonata(FullConfig(), **DECODER)) == 124_794_148
    head = 64 * 20 + 20
    for config in (BitFitConfig(), LoraConfig(), BottleneckConfig()):  # adapters stay in the encoder
        assert trained(sonata(config, **DECODER)) == trained(sonata(config)) - 24_660 + head
    assert trained(sonata(LoraConfig(targets="all"), **DECODER)) > trained(sonata(LoraConfig(), **DECODER))


def test_decoder_probe_needs_a_decoder():
    with pytest.raises(UserError, match="decoder=True"):
        adapt(tiny("m2"), DecoderConfig())


@pytest.mark.parametrize("placement", ["parallel", "houlsby"])
def test_bottleneck_is_its_formula(placement):
    """base + s up(act(down(norm(x)))): x is the branch's input in parallel, its output in Houlsby's place."""
    model = adapt(tiny(), BottleneckConfig(mid=3, placement=placement, act="gelu", alpha=0.5)).eval()
    layer, point = model.get_base_model().backbone.enc[0].blocks[1].ffn, cloud(30, 1, 16)
    adapter = layer.adapters["default"]
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    base = layer.base_layer(point).feat
    normed = nn.functional.layer_norm(point.feat if placement == "parallel" else base, (16,))
    normed = normed * adapter.norm.weight + adapter.norm.bias
    delta = adapter.up(nn.functional.gelu(adapter.down(normed)))
    torch.testing.assert_close(layer(point).feat, base + 0.5 * delta, atol=1e-5, rtol=1e-5)


def test_bitfit_merges_exactly():
    point = batch()
    model = adapt(tiny("m1"), BitFitConfig())
    train(model, 3)
    expected = logits(model.eval(), point)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, point), expected, atol=1e-5, rtol=1e-5)
    plain = tiny("m1").state_dict()
    moved = {n for n, v in merged.state_dict().items() if not torch.equal(v, plain[n])}
    assert all(n.endswith("bias") or n.startswith("head.") for n in moved)
    assert any(n.startswith("backbone.embedding.norm") for n in moved) and not any(".dec." in n for n in moved)


def test_bitfit_refuses_to_merge_broken_weights():
    model = adapt(tiny(), BitFitConfig())
    next(p for n, p in model.named_parameters() if n.endswith(".delta")).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        model.merge_and_unload(safe_merge=True)


def test_stages_and_patterns_choose_targets():
    def names(**options):
        model = adapt(tiny(), BottleneckConfig(**options))
        return sorted(model.base_model.targeted_module_names)

    both = [f"backbone.enc.{s}.blocks.{b}.ffn" for s in (0, 1) for b in (0, 1)]
    assert names() == both
    assert names(stages=[1]) == both[2:]
    assert names(target_modules=r"enc\.0\.blocks\.1\.ffn") == both[1:2]
    assert names(target_modules=["block"]) == [n.removesuffix(".ffn") for n in both]
    with pytest.raises(UserError, match="slots are: block, cpe"):
        names(target_modules=["fnn"])
    with pytest.raises(UserError, match="stages"):
        names(stages=[9])


def test_lora_takes_slot_names():
    def names(**options):
        return {n.removeprefix("backbone.") for n in adapt(tiny("m1"), LoraConfig(**options)).targeted_module_names}

    blocks = [f"enc.{s}.blocks.{b}" for s in (0, 1) for b in (0, 1)]
    assert names() == {f"{b}.mix.attn.qkv" for b in blocks}
    # "proj" is a slot: poolings have a Linear of that name as well
    assert names(target_modules=["proj"]) == {f"{b}.mix.attn.proj" for b in blocks}
    assert names(targets="all") == {f"{b}.mix.attn.qkv" for b in [*blocks, "dec.0.blocks.0"]}
    with pytest.raises(UserError, match="targets"):
        LoraConfig(targets="decoder")


def test_dora_works():
    model = adapt(tiny(), LoraConfig(use_dora=True, lora_dropout=0.0)).eval()
    torch.testing.assert_close(logits(model, batch()), logits(tiny(), batch()), atol=1e-5, rtol=1e-5)
    assert any("magnitude" in n for n, p in model.named_parameters() if p.requires_grad)
