"""Parameter groups by what a parameter is, never by the word "block" in its name; the schedule's figures."""

import pytest
import torch
from torch import nn

from pointadapt.optim import kind_of, make_optimizer, make_schedule, parameter_groups

PREFIX = "base_model.model."


@pytest.mark.parametrize(
    "name, fresh, kind",
    [
        ("head.modules_to_save.default.weight", (), "head"),
        ("backbone.enc.0.blocks.0.cpe.gem_adapter.default.up.weight", (), "adapters"),
        ("backbone.enc.0.blocks.1.mix.attn.qkv.lora_A.default.weight", (), "adapters"),
        ("backbone.dec.modules_to_save.default.0.blocks.0.ffn.mlp.fc1.weight", (), "backbone"),
        ("backbone.dec.modules_to_save.default.0.blocks.0.ffn.mlp.fc1.weight", ("dec",), "head"),
        ("backbone.modules_to_save.default.dec.0.up.proj.weight", ("dec",), "head"),
        ("backbone.modules_to_save.default.enc.0.blocks.0.ffn.mlp.fc1.weight", ("dec",), "backbone"),
    ],
)
def test_kind(name, fresh, kind):
    assert kind_of(PREFIX + name, fresh) == kind


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.body.requires_grad_(False)
        self.body_adapter = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.gem_shared = nn.ParameterDict({"start": nn.Parameter(torch.zeros(2, 4))})
        self.head = nn.ModuleDict({"modules_to_save": nn.ModuleDict({"default": nn.Linear(4, 3)})})


def groups(**changes):
    rates = {"lr": 1e-3, "head_lr": 2e-3, "backbone_lr": 1e-4, "weight_decay": 0.02, **changes}
    return parameter_groups(Toy(), **rates)


def test_groups():
    found = {g["name"]: g for g in groups()}
    assert set(found) == {"head", "head (no decay)", "adapters", "adapters (no decay)"}
    assert [tuple(p.shape) for p in found["adapters"]["params"]] == [(4, 4)]
    assert found["adapters"]["lr"] == 1e-3 and found["head"]["lr"] == found["head (no decay)"]["lr"] == 2e-3
    # bias, norm weight, norm bias and the shared latent tokens
    no_decay = [tuple(p.shape) for p in found["adapters (no decay)"]["params"]]
    assert sorted(no_decay) == [(2, 4), (4,), (4,), (4,)]
    assert {g["weight_decay"] for g in found.values() if "no decay" in g["name"]} == {0.0}
    trained = sum(p.numel() for g in found.values() for p in g["params"])
    assert trained == sum(p.numel() for p in Toy().parameters() if p.requires_grad)


def test_schedule():
    optimizer = make_optimizer(groups())
    schedule = make_schedule(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        schedule.step() if len(rates) < 100 else None
    head, _, adapters, _ = zip(*rates, strict=True)
    assert head[0] == pytest.approx(2e-4) and max(head) == pytest.approx(2e-3) and head[-1] == pytest.approx(2e-7)
    assert head.index(max(head)) == 4  # the end of 5 % of warm-up
    assert adapters[50] == pytest.approx(head[50] / 2)


@pytest.mark.parametrize("steps", [1, 2, 3, 21])
def test_short_schedules(steps):
    optimizer = make_optimizer(groups())
    schedule = make_schedule(optimizer, steps)
    rates = [schedule.get_last_lr()[0]]
    for _ in range(steps):  # the training loop also steps it behind the last update
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert rates[0] == pytest.approx(2e-4) and max(rates) == pytest.approx(2e-3)
    assert rates[steps - 1] == pytest.approx(2e-7) or steps < 3
