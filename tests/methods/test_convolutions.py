"""Methods on a network of convolutions: where their adapters stand, LoRA of a convolution against its formula."""

import pytest
import torch
from torch import nn

from contracts import batch, cloud, tiny
from pointadapt.errors import UserError
from pointadapt.methods import METHODS, adapt
from pointadapt.methods.convlora import ConvLoraConfig
from pointadapt.methods.gem import ContextAdapter, GEMConfig, SpatialAdapter
from pointadapt.ops.sparse_conv import neighbors, subm_conv

BLOCKS = [f"backbone.enc.{s}.blocks.{b}" for s, b in ((0, 0), (0, 1), (1, 0))]


def names(method: str, **options) -> list[str]:
    return sorted(adapt(tiny("unet"), METHODS[method](**options)).base_model.targeted_module_names)


def test_one_slot_stands_for_another():
    assert names("adapter") == names("houlsby") == names("adaptformer") == [f"{b}.mix" for b in BLOCKS]
    assert names("adaptformer", reads="normed") == [f"{b}.mix.convs" for b in BLOCKS]
    assert names("gem") == sorted(f"{b}.mix{end}" for b in BLOCKS for end in ("", ".convs"))
    assert names("convlora") == sorted(f"{b}.mix.convs.conv{n}" for b in BLOCKS for n in (1, 2))
    # blocks that keep their width can be adapted in the decoder, too
    assert set(names("gem", targets="all", use_ca=False)) - set(names("gem", use_ca=False)) == {
        "backbone.dec.0.blocks.1.mix.convs"
    }


def test_gem_adds_both_adapters_to_the_residual_branch():
    torch.manual_seed(0)
    model = adapt(tiny("unet"), GEMConfig(rank=4)).eval()
    block = model.get_base_model().backbone.enc[0].blocks[0]
    spatial, context = block.mix.base_layer.convs.adapters["default"], block.mix.adapters["default"]
    assert isinstance(spatial, SpatialAdapter) and isinstance(context, ContextAdapter)
    for adapter in (spatial, context):
        nn.init.normal_(adapter.up.weight)
    point = cloud(50, 1, 16)
    with torch.no_grad():
        out = block(point)
        convs = block.mix.base_layer.convs.base_layer(point).feat

        def zero(x):
            return x.but(feat=torch.zeros_like(x.feat))

        expected = (point.feat + convs + spatial(zero, point).feat + context(zero, point).feat).relu()
    torch.testing.assert_close(out.feat, expected, atol=1e-5, rtol=1e-5)
    assert out.extra["gem.default"].shape == (1, 4, 4)  # the latents go on to the next block


def test_low_rank_convolution_is_a_low_rank_change_of_the_weight():
    model = adapt(tiny("unet"), ConvLoraConfig(r=2, lora_alpha=6)).eval()
    layer = model.get_base_model().backbone.enc[0].blocks[0].mix.convs.conv2
    adapter, frozen = layer.adapters["default"], layer.base_layer
    nn.init.normal_(adapter.b)
    assert sum(p.numel() for p in adapter.parameters()) == 2 * (27 * 16 + 16)
    delta = adapter.deltas(frozen)["weight"]
    assert torch.linalg.matrix_rank(delta.flatten(1)) == 2
    torch.testing.assert_close(delta.flatten(1), 3 * adapter.b @ adapter.a.flatten(1))
    point = cloud(50, 1, 16)
    with torch.no_grad():
        expected = subm_conv(point.feat, frozen.weight + delta, None, neighbors(point))
        torch.testing.assert_close(layer(point), expected, atol=1e-5, rtol=1e-5)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="r must be at least 1"):
        ConvLoraConfig(r=0)
    with pytest.raises(UserError, match="on Linear layers use method lora"):
        adapt(tiny("m2"), ConvLoraConfig())
    assert adapt(tiny("unet"), ConvLoraConfig(stages=[1]))(batch()).isfinite().all()
