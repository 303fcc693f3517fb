"""SSF: counts, what is scaled, merging."""

import pytest
import torch
from torch import nn

from contracts import batch, logits, tiny
from methods.objects import clouds, official, small, sonata, trained
from pointadapt.errors import UserError
from pointadapt.methods import adapt
from pointadapt.methods.ssf import ScaleShift, SSFConfig, out_width
from pointadapt.tokens import Tokens


def test_counts():
    assert trained(official(SSFConfig()), "ssf_adapter") == 12 * 22 * 384 + 4 * 384 == 102_912
    assert trained(sonata(SSFConfig())) == 22 * 7_152 + 24_660


def test_scales_tensors_and_features():
    adapter = ScaleShift(3, 0.5)
    x = torch.randn(2, 4, 3)
    expected = 2 * x * adapter.scale + adapter.shift
    assert torch.equal(adapter(lambda v: 2 * v, x), expected)
    tokens = Tokens(x, (("patch", 4),))
    assert torch.equal(adapter(lambda v: v.but(feat=2 * v.feat), tokens).feat, expected)
    assert adapter(lambda v: v, x.bfloat16()).dtype == torch.bfloat16


def test_starts_at_one_and_zero_or_around_them():
    plain = small()
    expected = logits(plain, clouds())
    assert torch.equal(logits(adapt(plain, SSFConfig()).eval(), clouds()), expected)
    assert not torch.equal(logits(adapt(small(), SSFConfig(spread=0.02)).eval(), clouds()), expected)
    with pytest.raises(UserError, match="spread must be at least 0"):
        SSFConfig(spread=-1)


@pytest.mark.parametrize(
    "frozen", [nn.Linear(3, 5), nn.LayerNorm(5), nn.BatchNorm1d(5).eval()], ids=lambda m: type(m).__name__
)
def test_goes_into_layers_with_a_bias(frozen):
    for parameter in frozen.parameters():
        nn.init.normal_(parameter)
    adapter = ScaleShift(out_width(frozen), 0.5)
    x = torch.randn(4, 3 if isinstance(frozen, nn.Linear) else 5)
    expected = adapter(frozen, x)
    for name, delta in adapter.deltas(frozen).items():
        frozen.get_parameter(name).data += delta
    torch.testing.assert_close(frozen(x), expected)


def test_merging_is_refused_where_there_is_no_bias():
    assert ScaleShift(5, 0).deltas(nn.Linear(3, 5, bias=False)) is None
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        adapt(small(), SSFConfig()).merge_and_unload()
    model = adapt(tiny("m2"), SSFConfig(spread=0.3)).eval()
    expected = logits(model, batch())
    torch.testing.assert_close(logits(model.merge_and_unload(), batch()), expected, atol=1e-4, rtol=1e-4)


def test_a_module_without_a_width_is_an_error():
    with pytest.raises(ValueError, match="how many channels"):
        out_width(nn.Identity())
