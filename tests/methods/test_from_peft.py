"""peft's methods under this package's names: the same numbers as peft's own, slot names, small files."""

import peft
import pytest
import torch

from contracts import batch, logits, tiny, train
from pointadapt.errors import UserError
from pointadapt.methods import adapt
from pointadapt.methods.from_peft import LoraConfig, RandLoraConfig, VeraConfig

PAIRS = [
    (VeraConfig(r=8), peft.VeraConfig(r=8, target_modules=["qkv"])),
    (RandLoraConfig(r=3, randlora_alpha=60), peft.RandLoraConfig(r=3, randlora_alpha=60, target_modules=["qkv"])),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["vera", "randlora"])
def test_computes_what_peft_computes(ours, theirs):
    model = adapt(tiny(), ours)
    train(model, 3)
    twin = adapt(tiny(), theirs)
    state = {k: v for k, v in model.state_dict().items()}
    twin.load_state_dict(state, strict=True)
    point = batch()
    assert torch.equal(logits(model.eval(), point), logits(twin.eval(), point))
    assert not torch.equal(logits(model, point), logits(tiny(), point))


def test_a_layer_s_matrices_are_cut_from_the_shared_ones():
    model = adapt(tiny(), VeraConfig(r=8, target_modules=["qkv", "fc2"]))
    shared_a, shared_b = model.base_model.vera_A["default"], model.base_model.vera_B["default"]
    assert shared_a.shape == (8, 4 * 32) and shared_b.shape == (3 * 32, 8)
    layer = model.get_base_model().backbone.enc[0].blocks[0].mix.attn.qkv
    torch.nn.init.normal_(layer.vera_lambda_b["default"])
    x = torch.randn(5, 16)
    scaled = (x @ shared_a[:, :16].T) * layer.vera_lambda_d["default"]
    expected = layer.base_layer(x) + layer.vera_lambda_b["default"] * (scaled @ shared_b[:48].T)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("config", [LoraConfig, VeraConfig, RandLoraConfig])
def test_slots_and_settings(config):
    model = adapt(tiny("m1"), config(target_modules=["proj"]))
    assert all(name.endswith("mix.attn.proj") and ".enc." in name for name in model.targeted_module_names)
    model = adapt(tiny("m1"), config(targets="all"))
    assert any(".dec." in name for name in model.targeted_module_names)
    with pytest.raises(UserError, match="targets must be one of"):
        config(targets="decoder")
    if config is not LoraConfig:
        with pytest.raises(UserError, match="r must be at least 1"):
            config(r=0)
    with pytest.raises(UserError, match="slots"):
        adapt(tiny(), config(target_modules=["qkv"], modules_to_save=["head", "backbone.enc"]))


def test_files_hold_the_shared_matrices_once(tmp_path):
    sizes = {}
    for name, config in (("ours", PAIRS[1][0]), ("peft", PAIRS[1][1])):
        adapt(tiny(), config).save_pretrained(tmp_path / name)
        sizes[name] = (tmp_path / name / "adapter_model.safetensors").stat().st_size
    shared = 2 * (3 * 32 + 96 * 11 * 3)  # bfloat16: A [r, 1, 32], B [96, ceil(32 / r), r]
    assert sizes["peft"] - sizes["ours"] > 4 * shared
