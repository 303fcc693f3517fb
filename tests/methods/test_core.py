"""The glue itself: names that would lose weights, nested targets, plain PyTorch backbones, registration."""

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftType
from torch import nn

from contracts import Case, assert_same, batch, cloud, frozen_state, logits, tiny, train
from pointadapt.errors import UserError
from pointadapt.methods import METHODS, adapt, load_adapted, options
from pointadapt.methods.adapters import BitFitConfig, BottleneckConfig, LinearConfig
from pointadapt.methods.core import Adapter, AdapterConfig, AdapterLayer, keep_still, peft_method
from pointadapt.methods.gem import GEMConfig
from pointadapt.methods.sites import make_sites, matches, width


@peft_method("nested")
@dataclass
class NestedConfig(AdapterConfig):
    """Scales a branch and a Linear inside of it at once, and shares one factor."""

    target_modules: list[str] | str | None = field(default_factory=lambda: ["mix", "qkv"])

    def shared(self, sites):
        return nn.ParameterDict({"factor": nn.Parameter(torch.zeros(1))})

    def adapter(self, frozen, site, shared):
        return Scale(shared)


class Scale(Adapter):
    def __init__(self, shared) -> None:
        super().__init__()
        self.shared, self.own = shared, nn.Parameter(torch.zeros(1))

    def forward(self, base, value):
        out, factor = base(value), 1 + self.own + self.shared()["factor"]
        return out * factor if isinstance(out, torch.Tensor) else out.but(feat=out.feat * factor)


def test_nested_targets_both_act_and_reload(tmp_path):
    model = adapt(tiny(), NestedConfig())
    layers = [n for n, m in model.named_modules() if isinstance(m, AdapterLayer)]
    assert any(n.endswith("mix") for n in layers) and any(n.endswith("mix.base_layer.attn.qkv") for n in layers)
    train(model, 3)
    expected = logits(model.eval(), batch())
    assert all(p.abs().sum() > 0 for n, p in model.named_parameters() if n.endswith(".own"))
    model.add_adapter("site-b", NestedConfig())  # the second one finds the inner modules too
    assert sum(n.endswith("site-b.own") for n, _ in model.named_parameters()) == len(layers)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapted(tiny(), tmp_path, "other"), batch()), expected)
    bare = model.unload()
    assert_same(frozen_state(bare.backbone), frozen_state(tiny().backbone))


def test_two_active_adapters_compose():
    model = peft.get_peft_model(tiny().backbone, NestedConfig())
    model.add_adapter("site-b", NestedConfig())
    model.base_model.set_adapter(["default", "site-b"])
    for name, value in model.named_parameters():
        if "qkv.nested_adapter" in name:
            value.data.fill_(1.0)
    attn = model.get_base_model().enc[0].blocks[0].mix.attn
    x = torch.randn(5, 16)
    torch.testing.assert_close(attn.qkv(x), 4 * attn.qkv.base_layer(x))  # each of them doubles


@pytest.mark.parametrize("name", ["attn", "up", "head", "a.b", "modules_to_save"])
def test_adapter_names_that_would_lose_weights_are_refused(name):
    model = tiny()
    before = frozen_state(model)
    with pytest.raises(UserError, match="adapter name"):
        adapt(model, GEMConfig(rank=2), adapter_name=name)
    assert_same(frozen_state(model), before)
    if name != "up":  # LoRA's adapters hold no module of that name
        with pytest.raises(UserError, match="adapter name"):
            adapt(tiny(), METHODS["lora"](), adapter_name=name)


def test_a_prefix_in_a_module_name_is_refused():
    model = tiny()
    model.backbone.gem_net = nn.Linear(1, 1)
    with pytest.raises(UserError, match="prefix 'gem_'"):
        adapt(model, GEMConfig(rank=2))


def test_modules_to_save_must_be_full_names():
    with pytest.raises(UserError, match="does not have"):
        adapt(tiny(), GEMConfig(rank=2, modules_to_save=["haed"]))
    model = tiny()
    model.overhead = nn.Linear(1, 1)
    with pytest.raises(UserError, match="also matches 'overhead'"):
        adapt(model, GEMConfig(rank=2))
    with pytest.raises(UserError, match="head is not trained"):
        adapt(tiny(), GEMConfig(rank=2, modules_to_save=["backbone.embedding"]))
    model = adapt(tiny(), GEMConfig(rank=2, modules_to_save=["head", "backbone.embedding"]))
    assert any("embedding.modules_to_save" in n for n, p in model.named_parameters() if p.requires_grad)


def test_a_refused_adapt_leaves_the_model_as_it_was():
    """Whatever is wrong: names, a head that stays frozen, a target found late, a method that asked for a new head."""
    for config, task, message in (
        (GEMConfig(rank=2, modules_to_save=["haed"]), tiny(), "does not have"),
        (GEMConfig(rank=2, modules_to_save=["backbone.embedding"]), tiny(), "head is not trained"),
        (METHODS["lora"](target_modules=["qkv", "ffn"]), tiny(), "slots are"),
        (METHODS["idpt"](layer=-1, target_modules=["nowhere"]), tiny("vit"), "nowhere"),
    ):
        expected = logits(task, batch(task))
        modules, parts = dict(task.named_modules()), dict(vars(task))
        flags = {name: p.requires_grad for name, p in task.named_parameters()}
        with pytest.raises(UserError, match=message):
            adapt(task, config)
        assert {name: id(m) for name, m in task.named_modules()} == {name: id(m) for name, m in modules.items()}
        assert vars(task) == parts and {name: p.requires_grad for name, p in task.named_parameters()} == flags
        assert torch.equal(logits(task, batch(task)), expected)


def test_a_failing_config_leaves_the_model_as_it_was():
    class Broken(NestedConfig):
        def adapter(self, frozen, site, shared):
            raise RuntimeError("no adapter today")

    model = tiny()
    with pytest.raises(RuntimeError, match="no adapter today"):
        adapt(model, Broken())
    assert not any(isinstance(m, AdapterLayer) for m in model.modules())
    assert torch.equal(logits(model, batch()), logits(tiny(), batch()))


def test_adapt_copies_the_config_and_refuses_twice():
    config = GEMConfig(rank=2)
    model = adapt(tiny(), config)
    assert config.modules_to_save is None and model.peft_config["default"] is not config
    with pytest.raises(UserError, match="add_adapter"):
        adapt(model, config)


def test_bare_backbones_and_get_peft_model(tmp_path):
    net = tiny().backbone
    model = peft.get_peft_model(net, GEMConfig(rank=2))
    assert all("gem_" in n for n, p in model.named_parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny().backbone, tmp_path)
    point = batch()
    with torch.no_grad():
        assert torch.equal(again(point).feat, model.eval()(point).feat)
    probe = peft.get_peft_model(tiny(), LinearConfig())  # a method without adapters fills modules_to_save itself
    assert {n for n, p in probe.named_parameters() if p.requires_grad} == {
        f"base_model.model.head.modules_to_save.default.{n}" for n in ("weight", "bias")
    }


def test_batch_norm_of_a_plain_network_stays_still():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = peft.get_peft_model(net, BitFitConfig())
    assert not net[1].base_layer.training
    model.train()
    assert not net[1].base_layer.training
    before = net[1].base_layer.running_mean.clone()
    model(torch.randn(8, 4))
    assert torch.equal(net[1].base_layer.running_mean, before)
    free = nn.BatchNorm1d(4)
    keep_still(free)
    assert free.training


def test_a_truncated_adapter_file_is_an_error(tmp_path):
    from safetensors.torch import load_file, save_file

    adapt(tiny(), GEMConfig(rank=2)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    gone = next(k for k in state if "gem_adapter" in k)
    save_file({k: v for k, v in state.items() if k != gone}, file)
    with pytest.raises(UserError, match="1 tensors missing"):
        load_adapted(tiny(), tmp_path)
    save_file({**state, "base_model.model.backbone.gem_adapter.more": state[gone].clone()}, file)
    with pytest.raises(UserError, match="1 unknown"):
        load_adapted(tiny(), tmp_path)


DAMAGED = {
    "adapter_config.json": (b"", b'{"peft_type": "GE', b"[]", b"{}", b"\xff\xfe", b'{"peft_type": "NOPE"}'),
    "adapter_model.safetensors": (b"", b"abc" * 99),
}


@pytest.mark.parametrize("method", ["gem", "lora"])
def test_a_damaged_adapter_is_named_in_one_sentence_and_changes_nothing(tmp_path, method):
    """By whichever door it comes in."""
    adapt(tiny(), METHODS[method]()).save_pretrained(tmp_path)
    model = adapt(tiny(), METHODS[method]()).eval()
    expected = logits(model, batch())
    for name, contents in DAMAGED.items():
        whole = (tmp_path / name).read_bytes()
        for content in (*contents, whole[:-10]):
            (tmp_path / name).write_bytes(content)
            for load in (lambda: load_adapted(tiny(), tmp_path), lambda: model.load_adapter(tmp_path, "site-b")):
                with pytest.raises(UserError, match=f"{name} is damaged .*: use another checkpoint"):
                    load()
        (tmp_path / name).write_bytes(whole)
    assert list(model.peft_config) == ["default"] and torch.equal(logits(model, batch()), expected)


@pytest.mark.parametrize("method", ["gem", "lora"])
def test_an_adapter_that_does_not_fit_is_left_out_again(tmp_path, method):
    from safetensors.torch import load_file, save_file

    adapt(tiny(), METHODS[method]()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    model = adapt(tiny(), METHODS[method]()).eval()
    expected, names = logits(model, batch()), list(model.state_dict())
    inner = next(k for k in state if "lora_A" in k or "gem_adapter" in k)
    for changed in (
        {k: v for k, v in state.items() if not k.endswith("head.weight")},
        {k: v for k, v in state.items() if k != inner},
        {**state, inner: torch.ones(3, 7)},
    ):
        save_file(changed, file)
        for load in (lambda: load_adapted(tiny(), tmp_path), lambda: model.load_adapter(tmp_path, "site-b")):
            with pytest.raises(UserError, match="does not fit this model"):
                load()
        assert list(model.state_dict()) == names and torch.equal(logits(model, batch()), expected)
    save_file(state, file)
    model.load_adapter(tmp_path, "site-b")


def test_adapter_of_another_size_is_an_error(tmp_path):
    adapt(tiny(), GEMConfig(rank=2)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "rank": 3}))
    with pytest.raises(UserError, match="size mismatch"):
        load_adapted(tiny(), tmp_path)


def test_peft_types_behave_as_enum_members():
    for method in ("gem", "pointtpa", "adapter", "bitfit", "linear", "decoder", "full"):
        member = PeftType(method.upper())
        assert member == method.upper() and member is getattr(PeftType, method.upper()) and member in set(PeftType)
        assert pickle.loads(pickle.dumps(member)) is member and json.dumps(member) == f'"{method.upper()}"'


def test_every_option_has_a_help_text():
    for name, config in METHODS.items():
        fields = {f.name: f for f in options(config)}
        assert "targets" in fields and not {"peft_type", "auto_mapping", "inference_mode"} & set(fields), name
        assert all(len(f.metadata["help"]) > 10 for f in fields.values())
    assert {"rank", "num_latents", "share"} <= {f.name for f in options(GEMConfig)}
    assert {"r", "lora_alpha", "use_dora"} <= {f.name for f in options(METHODS["lora"])}


def test_status_and_layers_are_readable():
    model = adapt(tiny(), GEMConfig(rank=2))
    status = model.get_model_status()
    assert status.enabled is True and status.active_adapters == ["default"] and status.peft_types == {"default": "GEM"}
    assert model.get_base_model().backbone.enc[0].blocks[0].cpe.channels == 16


def test_sites_know_their_place():
    names = ["enc.0.blocks.0.cpe", "enc.0.blocks.0.mix.attn", "enc.0.blocks.1.cpe", "enc.2.blocks.0.cpe", "embedding"]
    wanted = [(n, n.rpartition(".")[2]) for n in names]
    sites = make_sites(wanted, names)
    assert [(s.stage, s.block, s.blocks) for s in sites] == [
        (0, 0, 2),
        (0, 0, 2),
        (0, 1, 2),
        (1, 0, 1),
        (None, None, 1),
    ]
    assert make_sites(wanted[1:2] + wanted[3:], names) == sites[1:2] + sites[3:]  # what is wanted does not matter
    assert [s.is_block for s in make_sites([("enc.0.blocks.1", "block"), *wanted], names)] == [True, *[False] * 5]
    assert matches("enc.0.blocks.1.mix.attn", "attn", {"attn": r"mix\.attn"})
    assert not matches("enc.0.blocks.1.other_attn", "attn", {})
    with pytest.raises(UserError, match="channels"):
        width(nn.Linear(2, 2))


def test_models_pickled_elsewhere_load_in_a_fresh_process(tmp_path):
    case = Case("gem", "m2", tmp_path)
    model = case.trained()
    (tmp_path / "model.pkl").write_bytes(pickle.dumps((model, batch(), logits(model, batch()))))
    code = (
        "import pickle, sys, torch\n"
        f"model, point, expected = pickle.load(open({str(tmp_path / 'model.pkl')!r}, 'rb'))\n"
        "torch.set_grad_enabled(False)\n"
        "sys.exit(0 if torch.allclose(model(point), expected, atol=1e-6) else 1)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": f"{root / 'src'}", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0


def test_dropped_points_leave_parallel_adapters_alone():
    """A(h) of PointTPA and the parallel bottleneck is outside drop path; DropPath acts on the frozen branch alone."""
    model = adapt(tiny(), BottleneckConfig(mid=2)).eval()
    layer = model.get_base_model().backbone.enc[1].blocks[1].ffn
    adapter = layer.adapters["default"]
    nn.init.ones_(adapter.up.bias)
    layer.base_layer.drop_path.rate = 0.999999
    layer.base_layer.drop_path.train()
    point = cloud(50, 1, 32)
    with torch.no_grad():
        assert torch.equal(layer(point).feat, torch.ones(50, 32))
