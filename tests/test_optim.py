"""Parameter groups by what a parameter is, never by the word "block" in its name; the schedule's figures."""

from collections import Counter

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
        ("backbone.tokenizer.pointata_adapter.default.pae.up.weight", (), "aligned"),
        ("backbone.tokenizer.pointata_adapter.default.time.weight", (), "adapters"),
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


def test_an_aligned_embedder_goes_on_slowly():
    from pointadapt.methods import adapt
    from pointadapt.methods.pointata import PointATAConfig
    from small_videos import task

    model = adapt(task(), PointATAConfig(rank=8, train_pae=True))
    rates = dict(lr=1e-3, head_lr=2e-3, backbone_lr=1e-4, weight_decay=0.05)
    found = {g["name"]: g for g in parameter_groups(model, **rates)}
    names = {"head", "adapters", "aligned", "backbone"}  # the class token is no fresh part here: none was said
    assert {name.split(" ")[0] for name in found} == names
    assert found["aligned"]["lr"] == found["aligned (no decay)"]["lr"] == pytest.approx(1e-4)
    shared = {n: id(p) for n, p in model.named_parameters() if "_shared." in n and p.ndim > 1}
    assert shared and set(shared.values()) <= {id(p) for p in found["adapters"]["params"]}  # SCE's layers decay
    trained = sum(p.numel() for g in found.values() for p in g["params"])
    assert trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_schedule():
    optimizer = make_optimizer(groups())
    schedule = make_schedule(optimizer, 100)
    rates, betas = [], []
    for _ in range(100):
        rates.append([g["lr"] for g in optimizer.param_groups])
        betas.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        schedule.step() if len(rates) < 100 else None
    head, _, adapters, _ = zip(*rates, strict=True)
    assert head[0] == pytest.approx(2e-4) and max(head) == pytest.approx(2e-3) and head[-1] == pytest.approx(2e-7)
    assert head.index(max(head)) == 4  # the end of 5 % of warm-up
    assert adapters[50] == pytest.approx(head[50] / 2)
    assert [betas[0], betas[4], betas[-1]] == pytest.approx([0.95, 0.85, 0.95]) and min(betas) == betas[4]


def test_published_counts_by_group():
    """PointTPA on Sonata-base for 20 classes: one rate for all adapters, whatever their names, and the head's own."""
    from pointadapt.backbones.ptv3 import PTv3, PTv3Config
    from pointadapt.methods import adapt
    from pointadapt.methods.pointtpa import PointTPAConfig
    from pointadapt.tasks.segmentation import Segmentation

    with torch.device("meta"):
        model = adapt(Segmentation(PTv3(PTv3Config()), 20), PointTPAConfig())
    counts: Counter[float] = Counter()
    for group in parameter_groups(model, lr=1e-3, head_lr=1e-2, backbone_lr=0.0, weight_decay=0.02):
        counts[group["lr"]] += sum(p.numel() for p in group["params"])
    assert counts == {1e-3: 1_152_904, 1e-2: 24_660}


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


def test_cosine_from_a_millionth_and_back():
    """The object methods' course: linear warm-up from 1e-6, half-way down a cosine at its middle, 1e-6 at the end."""
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (5e-4, 2e-4, 0.0)])
    schedule = make_schedule(optimizer, 300, "cosine", 1 / 30)
    rates = []
    for _ in range(301):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    first, second, none = zip(*rates, strict=True)
    assert first[0] == pytest.approx(1e-6) and first[5] == pytest.approx((1e-6 + 5e-4) / 2)
    assert first[10] == pytest.approx(5e-4) == max(first) and second[10] == pytest.approx(2e-4)
    assert first[155] == pytest.approx((1e-6 + 5e-4) / 2) and first[300] == pytest.approx(1e-6)
    assert set(none) == {0.0}
    single = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-3}])
    assert make_schedule(single, 1, "cosine", 1.0).get_last_lr() == [pytest.approx(1e-6)]


def test_class_tokens_do_not_decay_and_their_positions_do():
    model = nn.Module()
    model.cls = nn.Module()
    model.cls.token, model.cls.pos = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 1, 4))
    rates = {"lr": 1e-3, "head_lr": 1e-3, "backbone_lr": 1e-3, "weight_decay": 0.05}
    decay = {id(p): group["weight_decay"] for group in parameter_groups(model, **rates) for p in group["params"]}
    assert decay[id(model.cls.token)] == 0.0 and decay[id(model.cls.pos)] == 0.05
