"""Features of a frozen backbone, computed once and kept: the same training as with features computed anew."""

import numpy as np
import pytest
import torch

from pointadapt.domains.domain import open_domain
from pointadapt.domains.models import build_model
from pointadapt.errors import UserError
from pointadapt.ops.levels import Levels
from pointadapt.point import collate
from pointadapt.tasks.segmentation import Segmentation
from pointadapt.train import DRAW, KeptBatches, make_accelerator, train
from run_folders import adapter, same
from scenes import cloud, tiny
from tiny_runs import tiny_run


@pytest.mark.parametrize("decoder", [False, True])
def test_levels_are_the_dense_features(decoder):
    changes = dict(dec_depths=(1, 1), dec_channels=(16, 24), dec_num_head=(2, 2), dec_patch_size=(32, 32))
    model = Segmentation(tiny(**(changes if decoder else {})), 5).eval()
    clouds = [cloud(300, 20), cloud(60, 9, seed=1), cloud(1, 3)]
    with torch.no_grad():
        together = model.frozen(collate(clouds))
        packed = Levels.pack([model.frozen(c) for c in clouds])
        dense = model.backbone.dense(collate(clouds))
        assert torch.equal(together.dense(), dense)
        torch.testing.assert_close(packed.dense(), dense, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(packed), model(collate(clouds)), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(together.inverse, packed.inverse, strict=True)) or not decoder
    model.train()
    model.dropout.p = 0.5
    assert not torch.equal(model(packed), model(packed))


def test_the_head_learns_from_levels_as_from_points():
    model, point = Segmentation(tiny(), 5).eval(), collate([cloud(300, 20), cloud(60, 9, seed=1)])
    grads = []
    for given in (point, model.frozen(point).to("cpu")):
        weight = torch.arange(5.0)
        (model(given) * weight).square().sum().backward()
        grads.append(model.head.weight.grad)
        model.zero_grad()
    torch.testing.assert_close(grads[0], grads[1], atol=1e-3, rtol=1e-4)


def test_kept_or_computed_anew_is_the_same_run(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, method="linear", cache_features=2, batch_size=2, steps=12, eval_every=6)
    passes = []
    compute = KeptBatches.compute
    monkeypatch.setattr(KeptBatches, "compute", lambda self, *key: passes.append(key) or compute(self, *key))
    train(run)
    kept = adapter(run)
    assert len(passes) == len(set(passes)) == 2 * 3  # views x items, in eight epochs

    def anew(self, number):
        epoch, place = divmod(number, len(self.items))
        return self.compute(int(self.order(epoch)[place]), epoch % 2)

    monkeypatch.setattr(KeptBatches, "features", anew)
    train(run, overwrite=True)
    assert len(passes) > 6 + 12
    assert same(kept, adapter(run))


def test_kept_features_give_the_loss_of_the_whole_model(tmp_path):
    run = tiny_run(tmp_path, method="linear", cache_features=1, batch_size=2)
    domain = open_domain(run)
    model = build_model(domain)
    task = model.get_base_model()
    made = KeptBatches(domain, make_accelerator(run), task)
    batch = made[0]
    rngs = [np.random.default_rng([run.seed, DRAW, int(made.order(0)[i]), 0]) for i in range(2)]
    samples = [domain.draw(made.items, int(made.order(0)[i]), rngs[i]) for i in range(2)]
    whole = domain.collate(samples, np.random.default_rng(0))
    assert torch.equal(whole["segment"], batch["segment"])
    model.eval()
    with torch.no_grad():
        logits = [model(given) for given in (batch["point"], whole["point"])]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_more_than_a_head_cannot_be_kept(tmp_path):
    with pytest.raises(UserError, match="method gem trains more than the head"):
        train(tiny_run(tmp_path, cache_features=1))
    with pytest.raises(UserError, match="mix3d"):
        train(tiny_run(tmp_path, method="linear", cache_features=1, mix3d=0.5))
