"""Stochastic depth: whole rows, the mean kept, rates that rise with depth."""

import pytest
import torch

from pointadapt.backbones.drop_path import DropPath, rising


@pytest.mark.parametrize("shape", [(4000, 3), (4000, 2, 3)])  # points; sequences of tokens
def test_rows_are_dropped_whole_and_the_others_make_up_for_them(shape):
    torch.manual_seed(0)
    layer, feat = DropPath(0.25).train(), torch.rand(shape) + 1
    out = layer(feat)
    kept = (out != 0).flatten(1).any(1)
    assert kept.float().mean() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(out[kept], feat[kept] / 0.75)
    assert not torch.equal((layer(feat) != 0).flatten(1).any(1), kept)  # drawn anew
    assert layer.eval()(feat) is feat and DropPath(0.0).train()(feat) is feat


def test_rates_rise_from_nothing_to_the_last():
    assert rising(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rising(0.3, 1) == [0]
