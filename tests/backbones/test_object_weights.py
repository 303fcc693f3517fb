"""Published layouts of object-level checkpoints, each written as a small file, read back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pointadapt.backbones.object_weights import PUBLISHED, build_objects
from pointadapt.backbones.point_vit import PointViTConfig
from pointadapt.backbones.weights import BACKBONES, load_backbone, save_backbone
from pointadapt.errors import UserError
from pointadapt.point import Point

C, DEPTH = 24, 2
GIVEN = {"heads": 2, "groups": 10, "group_size": 6}
LAYERS = {"vit": "blocks.blocks", "recon": "blocks.blocks", "gpt": "blocks.layers"}


def official(family="vit", embed=C, tokens=True, hidden=(8, 16), wide=12) -> dict[str, torch.Tensor]:
    """The encoder's state dict under its official keys, small."""
    draw = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def put(key, *shape):
        state[key] = torch.randn(shape, generator=draw) * 0.1

    def linear(key, out, width, bias=True):
        put(f"{key}.weight", out, width)
        if bias:
            put(f"{key}.bias", out)

    def conv(key, out, width):
        put(f"{key}.weight", out, width, 1)
        put(f"{key}.bias", out)

    def norm(key, width, batch=False):
        put(f"{key}.weight", width)
        put(f"{key}.bias", width)
        if batch:
            put(f"{key}.running_mean", width)
            state[f"{key}.running_var"] = torch.rand(width, generator=draw) + 0.5
            state[f"{key}.num_batches_tracked"] = torch.tensor(3)

    def small_pointnet(key, widths, width):
        for n, out in enumerate(widths):
            if n:
                norm(f"{key}.{3 * n - 2}", width, batch=True)
            conv(f"{key}.{3 * n}", out, width)
            width = out

    small_pointnet("encoder.first_conv", hidden, 3)
    small_pointnet("encoder.second_conv", (wide, embed), 2 * hidden[-1])
    if embed != C:
        linear("reduce_dim", C, embed)
    names = {"vit": ["cls"], "recon": ["cls", "img", "text"], "gpt": ["cls"]}[family]
    for name in names if tokens else []:
        put(f"{name}_token", 1, 1, C)
        put(f"{name}_pos", 1, 1, C)
    norm("norm", C)
    if family == "gpt":
        put("sos_pos", 1, 1, C)
        put("blocks.sos", C)
        norm("blocks.ln_f", C)
        linear("blocks.increase_dim.0", 18, C)
    else:
        linear("pos_embed.0", 128, 3)
        linear("pos_embed.2", C, 128)
    for i in range(DEPTH):
        block = f"{LAYERS[family]}.{i}"
        if family == "gpt":
            norm(f"{block}.ln_1", C)
            norm(f"{block}.ln_2", C)
            put(f"{block}.attn.in_proj_weight", 3 * C, C)
            put(f"{block}.attn.in_proj_bias", 3 * C)
            linear(f"{block}.attn.out_proj", C, C)
            linear(f"{block}.mlp.0", 4 * C, C)
            linear(f"{block}.mlp.2", C, 4 * C)
            continue
        for way in ["", "_contrast"] if family == "recon" else [""]:
            norm(f"{block}.norm1{way}", C)
            norm(f"{block}.norm2{way}", C)
            linear(f"{block}.mlp{way}.fc1", 4 * C, C)
            linear(f"{block}.mlp{way}.fc2", C, 4 * C)
            linear(f"{block}.attn{way}.proj", C, C)
        linear(f"{block}.attn.qkv", 3 * C, C, bias=False)
        if family == "recon":
            linear(f"{block}.attn_contrast.q", C, C, bias=False)
            linear(f"{block}.attn_contrast.kv", 2 * C, C, bias=False)
    return state


#: name: (state, prefix, container, what else the file holds under the same container)
POINT_MAE = {
    "MAE_encoder.mask_token": (1, 1, C),
    "MAE_decoder.blocks.0.norm1.weight": (C,),
    "increase_dim.0.bias": (9,),
}
ACT = {
    "lm_head.weight": (9, C),
    "dvae_tokenizer.encoder.first_conv.0.weight": (8, 3, 1),
    "ACT_encoder.cls_head.bias": (C,),
}
BERT = {"transformer_q.lm_head.bias": (9,), "transformer_k.norm.weight": (C,), "dvae.encoder.x": (3,), "queue": (4, 4)}
LAYOUTS = {
    "Point-MAE": (dict(tokens=False), "MAE_encoder.", "base_model", POINT_MAE),
    "ACT": (dict(), "ACT_encoder.", "base_model", ACT),
    "Point-BERT": (dict(embed=16), "transformer_q.", "base_model", BERT),
    "Point-BERT, teacher alone": (dict(embed=16), "transformer_k.", "model", {}),
    "ReCon": (dict(family="recon"), "MAE_encoder.", "base_model", {"img_proj.weight": (3, 3), "text_encoder.x": (2,)}),
    "PointGPT": (dict(family="gpt"), "GPT_Transformer.", "base_model", {"GPT_Transformer.generator_blocks.sos": (C,)}),
    "PointGPT-B": (dict(family="gpt", hidden=(8, 12, 16)), "GPT_Transformer.", "base_model", {}),
    "fine-tuned": (dict(), "", "base_model", {"cls_head_finetune.0.weight": (256, 2 * C)}),
    "fine-tuned within": (dict(), "base_model.", "state_dict", {"base_model.cls_head_finetune.0.weight": (256, 2 * C)}),
    "part segmentation": (dict(tokens=False), "", "model_state_dict", {"convs1.weight": (9, 9, 1), "bns1.bias": (9,)}),
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def file(state, prefix="", container="base_model", more=(), parallel=True):
        whole = {prefix + k: v for k, v in state.items()} | {k: torch.zeros(shape) for k, shape in dict(more).items()}
        if parallel:
            whole = {f"module.{k}": v for k, v in whole.items()}
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3), "step": 1}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        content = {container: whole, "optimizer": optimizer, "epoch": 3}
        content |= {"metrics": {"acc": np.float64(93.5)}, "best_metrics": {"acc": np.float32(94.0)}}
        torch.save(content, tmp_path / "pretrain.pth")
        return tmp_path / "pretrain.pth"

    return file


def cloud() -> Point:
    coord = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    return Point(coord, coord, torch.tensor([60]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parallel", [True, False], ids=["module.", "bare"])
def test_published_layouts(write, layout, parallel):
    about, prefix, container, more = LAYOUTS[layout]
    state = official(**about)
    backbone = load_backbone(write(state, prefix, container, more, parallel), config=GIVEN)
    family = about.get("family", "vit")
    assert backbone.config.family == family and backbone.config.depth == DEPTH and backbone.config.groups == 10
    block = f"{LAYERS[family]}.1"
    qkv = state[f"{block}.attn.in_proj_weight" if family == "gpt" else f"{block}.attn.qkv.weight"]
    assert torch.equal(backbone.blocks[1].mix.attn.qkv.weight, qkv)
    assert torch.equal(backbone.tokenizer.embed.first[0].weight, state["encoder.first_conv.0.weight"][:, :, 0])
    assert torch.equal(backbone.tokenizer.embed.second[1].running_var, state["encoder.second_conv.1.running_var"])
    final = state["blocks.ln_f.weight" if family == "gpt" else "norm.weight"]
    assert torch.equal(backbone.final_norm.weight, final)
    if "cls_token" in state:
        assert torch.equal(backbone.cls.token[:, :1], state["cls_token"])
    assert not backbone.training and backbone(cloud()).feat.isfinite().all()


def test_tokens_of_recon_and_pointgpt(write):
    state = official("recon")
    recon = load_backbone(write(state, "MAE_encoder."), config=GIVEN)
    assert torch.equal(recon.cls.token, torch.cat([state[f"{n}_token"] for n in ("cls", "img", "text")], 1))
    assert torch.equal(recon.blocks[0].mix.attn.contrast.kv.weight, state["blocks.blocks.0.attn_contrast.kv.weight"])
    assert torch.equal(recon.blocks[1].norm2_contrast.bias, state["blocks.blocks.1.norm2_contrast.bias"])
    state = official("gpt")
    gpt = load_backbone(write(state, "GPT_Transformer."), config=GIVEN)
    assert torch.equal(gpt.start.token[0, 0], state["blocks.sos"])
    assert torch.equal(gpt.start.pos, state["sos_pos"]) and torch.equal(gpt.cls.pos, state["cls_pos"])


def test_recon_in_a_plain_vit(write):
    state = official("recon")
    backbone = load_backbone(write(state, "MAE_encoder."), config={**GIVEN, "family": "recon-as-vit", "cls_tokens": 1})
    assert backbone(cloud()).layout == (("cls", 1), ("patch", 10))
    assert torch.equal(backbone.cls.token, state["cls_token"])
    assert torch.equal(backbone.blocks[0].mix.norm.weight, state["blocks.blocks.0.norm1.weight"])
    assert not any("contrast" in key for key in backbone.state_dict())
    with pytest.raises(UserError, match="unknown keys .*contrast"):  # never without being asked for it
        load_backbone(write(state, "MAE_encoder."), config={**GIVEN, "family": "vit"})


@pytest.mark.parametrize("layout", ["Point-MAE", "ReCon", "PointGPT"])
def test_a_missing_weight_of_a_block_is_named(write, layout):
    about, prefix, *_ = LAYOUTS[layout]
    state = official(**about)
    gone = next(k for k in state if ".1." in k and k.startswith("blocks.") and k.endswith("bias"))
    del state[gone]
    with pytest.raises(UserError, match=r"1 missing keys \(blocks\.1\."):
        load_backbone(write(state, prefix), config=GIVEN)
    del state[next(k for k in state if k.endswith(("qkv.weight", "in_proj_weight")))]
    with pytest.raises(UserError, match="lacks blocks.0.mix.attn.qkv.weight"):
        load_backbone(write(state, prefix), config=GIVEN)


def test_missing_last_blocks_are_noticed(write, monkeypatch):
    monkeypatch.setitem(PUBLISHED, C, (2, DEPTH + 1))
    path = write(official(), "MAE_encoder.")
    with pytest.raises(UserError, match=f"has {DEPTH} blocks of {C} channels, the published network has {DEPTH + 1}"):
        load_backbone(path)
    assert load_backbone(path, config={"depth": DEPTH}).depth == DEPTH
    own = load_backbone(path, config=GIVEN)
    torch.save(own.state_dict(), path)
    assert load_backbone(path).depth == DEPTH  # under our own names a network of any size
    monkeypatch.setitem(PUBLISHED, C, (2, DEPTH))
    assert load_backbone(write(official(), "MAE_encoder.")).config.heads == 2


def test_without_class_tokens(write):
    """They stay fresh, and none are made where the network has none."""
    path = write(official(tokens=False), "MAE_encoder.")
    assert load_backbone(path, config=GIVEN).fresh == ["cls"]
    for state in (official(tokens=False), official()):
        bare = load_backbone(write(state), config={**GIVEN, "cls_tokens": 0})
        assert bare.fresh == [] and bare(cloud()).layout == (("patch", 10),)


def test_what_the_file_does_not_say(write):
    with pytest.raises(UserError, match="how many attention heads its 24 channels"):
        load_backbone(write(official()))
    published = load_backbone(write(official()), config={"num_heads": 2, "num_group": 16, "group_size": 4})
    assert (published.config.heads, published.config.groups, published.config.group_size) == (2, 16, 4)
    with pytest.raises(UserError, match="unknown entries: wings"):
        load_backbone(write(official()), config={**GIVEN, "wings": 2})
    with pytest.raises(UserError, match="multiple of heads"):
        load_backbone(write(official()), config={**GIVEN, "heads": 5})
    with pytest.raises(UserError, match="PointGPT has 1"):
        load_backbone(write(official("gpt")), config={**GIVEN, "cls_tokens": 0})
    with pytest.raises(UserError, match="family must be one of vit, recon"):
        load_backbone(write(official()), config={**GIVEN, "family": "gtp"})


def test_names_are_for_their_own_files(write):
    with pytest.raises(UserError, match="does not fit this architecture"):
        load_backbone(write(official()), config="point-mae")
    with pytest.raises(UserError, match="holds a network over groups of points, not of points"):
        load_backbone(write(official()), config="sonata")
    with pytest.raises(UserError, match="is no backbone: use one of nano"):
        load_backbone(write(official()), config="point-mea")
    for name in ("point-mae", "recon", "pointgpt-l"):
        with pytest.raises(UserError, match=f"no hosted weights: give a checkpoint file, with config='{name}'"):
            load_backbone(name)
    with pytest.raises(UserError, match="takes no decoder"):
        load_backbone(write(official()), config=GIVEN, decoder=True)


def test_official_compat_samples_as_released(write):
    path = write(official())
    assert load_backbone(path, config=GIVEN).config.sampling == "clean"
    assert load_backbone(path, config=GIVEN, compat="official").tokenizer.sampling == "released"


def test_random_weights_by_name():
    torch.manual_seed(0)
    backbone = load_backbone("nano-mae", weights=None, config={"groups": 16})
    assert backbone.tokenizer.groups == 16 and "random weights" in backbone.name_or_path
    wanted = replace(BACKBONES["nano-mae"].config, groups=17)  # what a run's architecture and groups come to
    assert load_backbone("nano-mae", weights=None, config=wanted).config == wanted
    wanted = {"point-bert": 256, "act": 384, "recon": 384, "pointgpt-b": 768}
    assert all(BACKBONES[name].config.embed_channels == width for name, width in wanted.items())


@pytest.mark.parametrize("family", ["vit", "recon", "gpt"])
def test_own_files(tmp_path, family):
    small = PointViTConfig(family=family, groups=10, group_size=6, channels=C, depth=2, heads=2, embed_channels=C,
                           embed_hidden=(8, 16, 12), qkv_bias=family == "gpt",
                           cls_tokens=3 if family == "recon" else 1)  # fmt: skip
    model = build_objects(small).eval()
    save_backbone(model, tmp_path / "mine.safetensors", made="here")
    again = load_backbone(tmp_path / "mine.safetensors")
    assert again.config == small and type(again) is type(model)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    assert load_backbone(tmp_path / "mine.safetensors", config={"groups": 7}).config == replace(small, groups=7)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "mine.pth")
    third = load_backbone(tmp_path / "mine.pth", config=GIVEN)
    assert type(third) is type(model) and torch.equal(third(cloud()).feat, model(cloud()).feat)


def test_bundled_nano_mae():
    backbone = load_backbone("nano-mae")
    config = BACKBONES["nano-mae"].config
    assert backbone.config == config  # what weights=None gives
    assert load_backbone("nano-mae", config={"groups": 128}).config == replace(config, groups=128)


def test_foundation_names_and_folders(tmp_path, monkeypatch):
    from pointadapt.backbones import weights

    asked = []

    def fake(name_or_path, weights="default", attention="bidirectional"):
        asked.append((name_or_path, weights, attention))

    monkeypatch.setattr(weights, "load_foundation", fake)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    load_backbone("bert", weights=None)
    load_backbone("hf:some/model", config={"attention": "native"})
    load_backbone(tmp_path)
    assert asked == [
        ("bert", None, "bidirectional"),
        ("hf:some/model", "default", "native"),
        (str(tmp_path), "default", "bidirectional"),
    ]
    with pytest.raises(UserError, match="a mapping with any of attention; got"):
        load_backbone("bert", config={"decoder": 1})
    with pytest.raises(UserError, match="bert takes no decoder"):
        load_backbone("bert", decoder=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="no valid JSON"):
        load_backbone(tmp_path)
