"""AdaptFormer, and the one adapter per block that is compared with it."""

import pytest
import torch
from torch import nn

from contracts import logits
from methods.objects import clouds, official, small, sonata, trained
from pointadapt.errors import UserError
from pointadapt.methods import adapt
from pointadapt.methods.adapters import BottleneckConfig
from pointadapt.methods.adaptformer import AdaptFormerConfig
from pointadapt.tokens import Tokens


def test_counts():
    assert trained(official(AdaptFormerConfig()), "adaptformer_adapter") == 12 * 49_600
    assert trained(official(AdaptFormerConfig(learn_scale=True)), "adaptformer_adapter") == 12 * 49_601
    assert trained(sonata(AdaptFormerConfig())) == 924_144 + 24_660
    sequential = BottleneckConfig(placement="houlsby", target_modules=["ffn"], norm=False)
    assert trained(official(sequential), "bottleneck_adapter") == 12 * 49_600


@pytest.mark.parametrize("reads", ["stream", "normed"])
@pytest.mark.parametrize("learn_scale", [False, True])
def test_is_its_formula(reads, learn_scale):
    plain = small()
    ffn = plain.backbone.blocks[1].ffn
    expected = logits(plain, clouds())
    tokens = Tokens(torch.randn(2, 5, 32), (("patch", 5),))
    without, normed = ffn(tokens).feat, ffn.norm(tokens.feat)
    model = adapt(plain, AdaptFormerConfig(mid=4, scale=0.5, reads=reads, learn_scale=learn_scale)).eval()
    assert torch.equal(logits(model, clouds()), expected)
    layer = plain.backbone.blocks[1].ffn
    adapter = (layer if reads == "stream" else layer.mlp).adapters["default"]
    for linear in (adapter.down, adapter.up):
        nn.init.normal_(linear.weight)
        nn.init.normal_(linear.bias)
    x = tokens.feat if reads == "stream" else normed
    delta = (x @ adapter.down.weight.T + adapter.down.bias).clamp(min=0) @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(layer(tokens).feat, without + 0.5 * delta)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="mid must be at least 1"):
        AdaptFormerConfig(mid=0)
    with pytest.raises(UserError, match="reads must be one of"):
        AdaptFormerConfig(reads="both")
    for targets in (["ffn"], ["mlp", "ffn"]):
        with pytest.raises(UserError, match="reads='normed' contradicts .*ffn: leave one of the two out"):
            adapt(small(), AdaptFormerConfig(reads="normed", target_modules=targets))
    adapt(small(), AdaptFormerConfig(reads="normed", target_modules=["mlp"]))
