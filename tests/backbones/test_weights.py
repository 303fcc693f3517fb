import json

import pytest
import torch
from torch import nn

from pointadapt.backbones.ptv3_weights import rename_official
from pointadapt.backbones.weights import BACKBONES, load_backbone, save_backbone
from pointadapt.errors import UserError
from scenes import cloud

OFFICIAL = dict(
    in_channels=9,
    order=["z", "hilbert"],
    stride=[2],
    enc_depths=[1, 1],
    enc_channels=[12, 24],
    enc_num_head=[1, 2],
    enc_patch_size=[32, 32],
    enc_mode=True,
    enable_flash=True,
)


def official_state(stages=((12, None), (24, 12)), in_channels=9):
    """A state dict with the official key names of a two-stage Sonata."""
    state = {}

    def put(name, *shape):
        state[name] = torch.randn(shape) * 0.1

    def linear(name, out, width):
        put(f"{name}.weight", out, width)
        put(f"{name}.bias", out)

    def norm(name, width):
        put(f"{name}.weight", width)
        put(f"{name}.bias", width)

    linear("embedding.stem.linear", 12, in_channels)
    norm("embedding.stem.norm", 12)
    for s, (width, below) in enumerate(stages):
        if below:
            linear(f"enc.enc{s}.down.proj", width, below)
            norm(f"enc.enc{s}.down.norm.0", width)
        block = f"enc.enc{s}.block0"
        put(f"{block}.cpe.0.weight", width, 3, 3, 3, width)
        put(f"{block}.cpe.0.bias", width)
        linear(f"{block}.cpe.1", width, width)
        norm(f"{block}.cpe.2", width)
        norm(f"{block}.norm1.0", width)
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2.0", width)
        linear(f"{block}.mlp.0.fc1", 4 * width, width)
        linear(f"{block}.mlp.0.fc2", width, 4 * width)
    return state


@pytest.fixture
def checkpoint(tmp_path):
    def write(state=None, config=OFFICIAL, prefix="", **more):
        state = official_state() if state is None else state
        content = {"state_dict": {prefix + k: v for k, v in state.items()}, **more}
        if config is not None:
            content["config"] = config
        torch.save(content, tmp_path / "model.pth")
        return tmp_path / "model.pth"

    return write


def test_official_file(checkpoint):
    state = official_state()
    model = load_backbone(checkpoint(state))
    assert model.config.window_layout == "flash" and model.config.generation == "m2"
    assert torch.equal(model.enc[1].blocks[0].ffn.mlp.fc1.weight, state["enc.enc1.block0.mlp.0.fc1.weight"])
    assert model.dense(cloud(100, 9)).shape[1] == 36
    assert not model.training


@pytest.mark.parametrize("prefix", ["module.backbone.", "backbone.", "module.student.backbone.", "module."])
def test_training_checkpoints(checkpoint, prefix):
    expected = load_backbone(checkpoint(state := official_state())).state_dict()
    extra = {"epoch": 3, "optimizer": {"x": torch.zeros(1)}}
    path = checkpoint(state, config=None, prefix=prefix, **extra)
    got = load_backbone(path, config=OFFICIAL).state_dict()
    assert all(torch.equal(got[k], v) for k, v in expected.items())


def test_student_is_taken_not_teacher(checkpoint):
    student, teacher = official_state(), official_state()
    both = {f"student.backbone.{k}": v for k, v in student.items()}
    both |= {f"teacher.backbone.{k}": v for k, v in teacher.items()}
    model = load_backbone(checkpoint(both))
    assert torch.equal(model.embedding.linear.weight, student["embedding.stem.linear.weight"])


def test_hub_folder(tmp_path):
    from safetensors.torch import save_file

    save_file(official_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL))
    assert load_backbone(tmp_path).config.enc_channels == (12, 24)


def test_own_format_round_trip(tmp_path):
    model = load_backbone("nano", weights=None)
    save_backbone(model, tmp_path / "mine.safetensors", made="here")
    again = load_backbone(tmp_path / "mine.safetensors")
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["mine.safetensors"]


def test_missing_unknown_and_misshapen_keys_are_named(checkpoint):
    state = official_state()
    del state["enc.enc1.block0.attn.qkv.bias"]
    state["enc.enc1.block7.attn.qkv.bias"] = torch.zeros(3)
    state["embedding.stem.linear.weight"] = torch.zeros(12, 6)
    with pytest.raises(UserError) as error:
        load_backbone(checkpoint(state))
    for part in ("1 missing keys", "enc.1.blocks.0.mix.attn.qkv.bias", "1 unknown keys", "(12, 6), should be (12, 9)"):
        assert part in str(error.value)


def test_what_a_user_gets_wrong(checkpoint, tmp_path):
    cases = {
        "sonnata": "unknown backbone",
        str(tmp_path / "nothing.pth"): "no checkpoint file",
        "./no/where": "no checkpoint file ./no/where",
        str(tmp_path): "neither model.safetensors",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            load_backbone(name)
    with pytest.raises(UserError, match="does not say its architecture"):
        load_backbone(checkpoint(config=None))
    with pytest.raises(UserError, match="lacks stride"):
        load_backbone(checkpoint(config={k: v for k, v in OFFICIAL.items() if k != "stride"}))
    with pytest.raises(UserError, match="unknown entries: wings"):
        load_backbone(checkpoint(config={**OFFICIAL, "wings": 2}))
    with pytest.raises(UserError, match="no backbone weights"):
        load_backbone(checkpoint({"seg_head.weight": torch.zeros(2)}))
    with pytest.raises(UserError, match="weights=None needs"):
        load_backbone("somewhere", weights=None)
    with pytest.raises(UserError, match="compat must be one of clean, official, not 'offical'"):
        load_backbone("nano", compat="offical")
    for config in ({"drop_path": 0.5}, BACKBONES["nano"].config):
        with pytest.raises(UserError, match="says its own architecture"):
            load_backbone("nano", config=config)
    for config in ({"drop_path": 0.5}, "sonata"):
        with pytest.raises(UserError, match="takes no config"):
            load_backbone("nano", weights=None, config=config)
    for name, content in {"cut.pth": b"PK\3\4 not a zip", "cut.safetensors": b"\1\0"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="not a readable"):
            load_backbone(tmp_path / name)


def test_code_in_a_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": nn.Linear(2, 2)}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="plain tensors"):
        load_backbone(tmp_path / "evil.pth")


def test_hub_names_go_to_the_hub(checkpoint, monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def fake(repo, file):
        asked.append((repo, file))
        return str(checkpoint())

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    assert load_backbone("some/repo/model.pth").config.enc_channels == (12, 24)
    assert asked == [("some/repo", "model.pth")]

    def offline(repo, file):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match="facebook/sonata"):
        load_backbone("sonata")


def test_new_decoder_on_an_encoder(checkpoint):
    model = load_backbone(checkpoint(), decoder=dict(dec_depths=(1,), dec_channels=(16,), dec_num_head=(2,)))
    assert model.fresh == ["dec"] and model.dense(cloud(100, 9)).shape[1] == 16
    assert load_backbone("sonata", weights=None, decoder=True).dense_channels == 64


@pytest.mark.parametrize(
    ("name", "count"),
    [("sonata", 108_461_376), ("sonata-small", 38_648_992), ("concerto-large", 207_667_456), ("utonia", 137_253_744)],
)
def test_parameter_counts(name, count):
    from pointadapt.backbones.ptv3 import PTv3

    with torch.device("meta"):
        model = PTv3(BACKBONES[name].config)
    # The rotary frequencies are buffers with a state-dict key, counted nowhere.
    assert sum(p.numel() for p in model.parameters()) == count


def test_rename_covers_prompt_driven_norms():
    keys = {
        "embedding.stem.norm.norm.2.running_mean": "embedding.norm.norm.2.running_mean",
        "enc.enc1.down.norm.0.norm.1.weight": "enc.1.down.norm.norm.1.weight",
        "dec.dec0.block3.cpe.2.norm.1.weight": "dec.0.blocks.3.cpe.norm.norm.1.weight",
        "dec.dec0.up.proj_skip.1.norm.0.bias": "dec.0.up.skip_norm.norm.0.bias",
        "enc.enc0.block0.norm1.0.norm.0.bias": "enc.0.blocks.0.mix.norm.norm.0.bias",
        "enc.enc0.block0.attn.rope.inv_freq": "enc.0.blocks.0.mix.attn.rope.inv_freq",
    }
    assert list(rename_official({k: torch.zeros(1) for k in keys}, pre_norm=True)) == list(keys.values())
    assert list(rename_official({"enc.enc0.block0.norm2.0.bias": torch.zeros(1)}, False)) == [
        "enc.0.blocks.0.norm2.bias"
    ]


def test_own_state_dict_saved_by_torch(tmp_path):
    model = load_backbone("nano", weights=None)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "mine.pth")
    again = load_backbone(tmp_path / "mine.pth", config="nano")
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
