"""bfloat16 and torch.compile: the same network, within the precision of the type, with gradients."""

import shutil

import pytest
import torch

from pointadapt.methods import METHODS, adapt
from pointadapt.point import collate
from pointadapt.tasks.segmentation import Segmentation
from scenes import cloud, tiny

POINT = collate([cloud(300, 20), cloud(60, 9, seed=1)])


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


@pytest.mark.parametrize("method", ["gem", "pointtpa"])
def test_autocast_to_bfloat16(method):
    model = adapt(Segmentation(tiny(), 4), METHODS[method]())
    found = {}
    for precise in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            logits = model(POINT.but(cache={}))
        logits.float().square().mean().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)
        found[precise] = logits.detach(), torch.cat([g.flatten() for g in grads])
        model.zero_grad()
    assert found[False][0].dtype == torch.bfloat16
    assert 0 < close(found[False][0], found[True][0]) < 0.03
    assert close(found[False][1], found[True][1]) < 0.05


def test_weights_in_bfloat16():
    model = tiny()
    with torch.no_grad():
        precise = model.dense(POINT.but(cache={}))
        half = model.bfloat16().dense(POINT.but(feat=POINT.feat.bfloat16(), cache={}))
    assert half.dtype == torch.bfloat16 and 0 < close(half, precise) < 0.03


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_parts_give_the_same_numbers():
    """torch.compile works module by module: coordinates decide shapes, so the graph around them is broken up."""
    model = tiny()
    with torch.no_grad():
        plain = model.dense(POINT.but(cache={}))
        for stage in model.enc:
            for block in stage.blocks:
                block.ffn.mlp.rows = torch.compile(block.ffn.mlp.rows, dynamic=True)
        assert close(model.dense(POINT.but(cache={})), plain) < 1e-5
    torch._dynamo.reset()
    whole = torch.compile(tiny(), backend="eager")
    with torch.no_grad():
        assert close(whole(POINT.but(cache={})).feat, tiny()(POINT.but(cache={})).feat) < 1e-5
