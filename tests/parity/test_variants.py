"""Every variant of the official networks, with random weights, against the slow reference of this folder.

Each case is written as a fixture of the official code would be, and goes through the program that compares fixtures.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity import backbone as checker
from parity import check as program
from parity.reference import Reference, curve_codes, neighbours
from pointadapt.backbones.ptv3_weights import config_from_official

CURVES = ["hilbert", "z-trans", "hilbert-trans", "z"]
CONDITIONS = ["ScanNet", "S3DIS", "Structured3D"]
BASE = dict(order=CURVES, stride=[2, 2], enc_depths=[2, 1, 1], enc_channels=[12, 16, 24], enc_num_head=[2, 2, 4])
BASE |= dict(enc_patch_size=[48] * 3, mlp_ratio=2, in_channels=6, drop_path=0.3)
ENCODER = BASE | dict(enc_mode=True)
DECODER = BASE | dict(enc_mode=False, dec_depths=[2, 1], dec_channels=[12, 16], dec_num_head=[2, 4])
DECODER |= dict(dec_patch_size=[48] * 2)
ROPE = dict(enc_channels=[12, 24, 36], enc_num_head=[2, 2, 2], rope_base=10, jitter_coords=1.1, rescale_coords=1.2)
ROPE |= dict(shift_coords=None)
DEEP = ENCODER | dict(stride=[2, 2, 2], enc_depths=[1, 1, 1, 1], enc_channels=[12, 12, 16, 16])
DEEP |= dict(enc_num_head=[2] * 4, enc_patch_size=[32] * 4)
PROMPTED = DECODER | dict(pdnorm_bn=True, pdnorm_ln=True, pdnorm_conditions=CONDITIONS)
IGNORED = dict(enable_flash=False, upcast_attention=True, upcast_softmax=True, traceable=True, freeze_encoder=True)
IGNORED |= dict(attn_drop=0.1, proj_drop=0.1, qkv_bias=True, qk_scale=None, layer_scale=None, pre_norm=True)


def case(config, variant="ptv3m2", shuffle=False, extra=None, notes="", side=15, **inputs):
    """side: largest grid coordinate; inputs: mask, context"""
    return SimpleNamespace(
        config=config, variant=variant, shuffle=shuffle, extra=extra or {}, notes=notes, side=side, inputs=inputs
    )


CASES = {
    "m1_decoder": case(DECODER, "ptv3m1"),
    "m1_stride4": case(DECODER | dict(stride=[4, 2]), "ptv3m1"),
    "m1_stride8_encoder": case(ENCODER | dict(stride=[2, 8], order="hilbert"), "ptv3m1", side=11),
    "m1_shuffled": case(DECODER, "ptv3m1", shuffle=True),
    "m1_rpe": case(DECODER | dict(enable_rpe=True, enable_flash=False), "ptv3m1", notes="RPE needs flash off"),
    "m1_rpe_128": case(ENCODER | dict(enable_rpe=True, enc_patch_size=[128] * 3), "ptv3m1", shuffle=True, side=30),
    "m1_post_norm": case(DECODER | dict(pre_norm=False), "ptv3m1"),
    "m1_flash": case(DECODER | dict(enable_flash=True), "ptv3m1", shuffle=True),
    "m1_pdnorm": case(PROMPTED | IGNORED, "ptv3m1", extra={"condition": ["S3DIS"]}),
    "m1_pdnorm_bn_only": case(PROMPTED | dict(pdnorm_ln=False), "ptv3m1", extra={"condition": ["Structured3D"]}),
    "m1_pdnorm_plain": case(PROMPTED | dict(pdnorm_affine=False), "ptv3m1", extra={"condition": "ScanNet"}),
    "m1_pdnorm_adaptive": case(
        PROMPTED | dict(pdnorm_adaptive=True), "ptv3m1", extra={"condition": ["S3DIS"]}, context=True
    ),
    "m1_pdnorm_shared": case(
        PROMPTED | dict(pdnorm_adaptive=True, pdnorm_decouple=False),
        "ptv3m1", extra={"condition": ["other"]}, context=True,
    ),
    "legacy_decoder": case(DECODER | dict(enc_depths=[2, 2, 2]), "ptv3m1_legacy"),
    "legacy_shuffled": case(DECODER | dict(stride=[4, 2]), "ptv3m1_legacy", shuffle=True, side=14),
    "legacy_encoder": case(BASE | dict(cls_mode=True, enc_depths=[3, 2, 2]), "ptv3m1_legacy"),
    "legacy_post_norm": case(DECODER | dict(pre_norm=False, cls_mode=False), "ptv3m1_legacy"),
    "sonata_decoder": case(DECODER | IGNORED, "sonata"),
    "m2_decoder_shuffled": case(DECODER | dict(layer_scale=1e-5, mask_token=True), shuffle=True, mask=True),
    "m2_masked": case(ENCODER | dict(mask_token=True, layer_scale=0.1, qk_scale=0.3), "concerto", mask=True),
    "m2_stride3": case(ENCODER | dict(stride=[3, 2], qkv_bias=False), "sonata", shuffle=True, side=17),
    "m2_stride4": case(DECODER | dict(stride=[2, 4], mlp_ratio=1.5, order=["hilbert"]), side=14),
    "m2_post_norm": case(ENCODER | dict(pre_norm=False, layer_scale=1.0), "sonata"),
    "m2_flash": case(ENCODER, "sonata", extra={"enable_flash": True}),
    "m2_flash_in_prose": case(DECODER, "concerto", notes="flash layout: K is fixed"),
    "m2_layout_unsaid": case(ENCODER, "sonata", shuffle=True),
    "m2_four_levels": case(DEEP, "sonata", shuffle=True, notes="non-flash rule", side=31),
    "m2_top_unshuffled": case(DEEP | dict(shuffle_orders=False), shuffle=True),
    "utonia_encoder": case(ENCODER | ROPE | dict(mask_token=True), "utonia", shuffle=True, mask=True, side=14),
    "m3_decoder": case(DECODER | ROPE | dict(dec_channels=[12, 24], dec_num_head=[2, 2]), "ptv3m3"),
    "m3_decoder_unturned": case(DECODER | ROPE | dict(dec_rope_enable=False), "ptv3m3", shuffle=True),
    "m3_base_10000": case(ENCODER | ROPE | dict(rope_base=10000, enable_flash=True), "ptv3m3"),
}  # fmt: skip


def official_weights(config, variant, random):
    """A state dict as the official class of this configuration would save it, every entry random."""
    classic = variant.startswith("ptv3m1")
    out = {}

    def draw(*shape):
        return torch.randn(shape, generator=random)

    def linear(key, inside, outside, bias=True):
        out[f"{key}.weight"] = draw(outside, inside) * 1.2 * inside**-0.5
        if bias:
            out[f"{key}.bias"] = 0.2 * draw(outside)

    def conv(key, inside, outside, size, bias):
        out[f"{key}.weight"] = draw(outside, size, size, size, inside) * 0.3 * inside**-0.5
        if bias:
            out[f"{key}.bias"] = 0.2 * draw(outside)

    def norm(key, channels, place):
        batch_norm = classic and place != "block"
        prompted = config.get("pdnorm_bn" if batch_norm else "pdnorm_ln", False)
        decoupled = prompted and config.get("pdnorm_decouple", True)
        inner = [f"{key}.norm.{i}" for i in range(len(CONDITIONS))] if decoupled else [f"{key}.norm"]
        for name in inner if prompted else [key]:
            if not prompted or config.get("pdnorm_affine", True):
                out[f"{name}.weight"] = 1 + 0.3 * draw(channels)
                out[f"{name}.bias"] = 0.3 * draw(channels)
            if batch_norm:
                out[f"{name}.running_mean"] = 0.3 * draw(channels)
                out[f"{name}.running_var"] = 0.5 + draw(channels).square()
                out[f"{name}.num_batches_tracked"] = torch.tensor(5)
        if prompted and config.get("pdnorm_adaptive"):
            linear(f"{key}.modulation.1", 256, 2 * channels)

    def block(key, channels, heads, patch, rope):
        conv(f"{key}.cpe.0", channels, channels, 3, bias=True)
        linear(f"{key}.cpe.1", channels, channels)
        for name in ("cpe.2", "norm1.0", "norm2.0"):
            norm(f"{key}.{name}", channels, "block")
        if config.get("layer_scale"):
            out[f"{key}.ls1.0.gamma"], out[f"{key}.ls2.0.gamma"] = draw(channels), draw(channels)
        linear(f"{key}.attn.qkv", channels, 3 * channels, config.get("qkv_bias", True))
        linear(f"{key}.attn.proj", channels, channels)
        if config.get("enable_rpe"):
            bound = {48: 11, 128: 15}[patch]
            out[f"{key}.attn.rpe.rpe_table"] = draw(3 * (2 * bound + 1), heads)
        if rope:
            third = channels // heads // 3
            out[f"{key}.attn.rope.inv_freq"] = config["rope_base"] ** -(torch.arange(0, third, 2) / third)
        linear(f"{key}.mlp.0.fc1", channels, int(channels * config["mlp_ratio"]))
        linear(f"{key}.mlp.0.fc2", int(channels * config["mlp_ratio"]), channels)

    widths, rope = config["enc_channels"], "rope_base" in config
    if config.get("mask_token"):
        out["embedding.mask_token"] = draw(1, widths[0])
    if classic:
        conv("embedding.stem.conv", config["in_channels"], widths[0], 5, bias=False)
    else:
        linear("embedding.stem.linear", config["in_channels"], widths[0])
    norm("embedding.stem.norm", widths[0], "stem")
    for s, depth in enumerate(config["enc_depths"]):
        if s:
            linear(f"enc.enc{s}.down.proj", widths[s - 1], widths[s])
            norm(f"enc.enc{s}.down.norm.0", widths[s], "pool")
        for i in range(depth):
            block(f"enc.enc{s}.block{i}", widths[s], config["enc_num_head"][s], config["enc_patch_size"][s], rope)
    if config.get("enc_mode") or config.get("cls_mode"):
        return out
    below = [*config["dec_channels"][1:], widths[-1]]
    for s, depth in enumerate(config["dec_depths"]):
        width = config["dec_channels"][s]
        for name, inside in (("proj", below[s]), ("proj_skip", widths[s])):
            linear(f"dec.dec{s}.up.{name}.0", inside, width)
            norm(f"dec.dec{s}.up.{name}.1", width, "pool")
        for i in range(depth):
            turned = rope and config.get("dec_rope_enable", True)
            block(f"dec.dec{s}.block{i}", width, config["dec_num_head"][s], config["dec_patch_size"][s], turned)
    return out


def surfaces(count, side, random):
    """Voxels [n, 3] of a floor, a wall and a tilted sheet, the largest coordinate being ``side``."""
    u = (torch.rand(count, 2, generator=random) * (side + 1)).long()
    floor, wall, sheet = u.chunk(3)
    cells = [
        torch.stack([floor[:, 0], floor[:, 1], 0 * floor[:, 0]], 1),
        torch.stack([wall[:, 0], 0 * wall[:, 0], wall[:, 1]], 1),
        torch.stack([sheet[:, 0], sheet[:, 1], (sheet[:, 0] + sheet[:, 1]) // 2], 1),
        torch.tensor([[side, side, 0]]),
    ]
    cells = torch.cat(cells).unique(dim=0)
    return cells[torch.randperm(len(cells), generator=random)]


def write(path, case, seed=3):
    """A fixture file with the reference's outputs."""
    random = torch.Generator().manual_seed(seed)
    weights = official_weights(case.config, case.variant, random)
    # The second cloud gets smaller than a window after pooling, so that the two window layouts differ.
    clouds = [surfaces(220, case.side, random), surfaces(75, case.side - 3, random)]
    grid, counts = torch.cat(clouds), torch.tensor([len(cloud) for cloud in clouds])
    inputs = {
        "coord": (grid + torch.rand(grid.shape, generator=random)) * 0.25 - 1,
        "grid_coord": grid,
        "feat": torch.randn(len(grid), case.config["in_channels"], generator=random),
        "offset": counts.cumsum(0),
    }
    if "mask" in case.inputs:
        inputs["mask"] = torch.rand(len(grid), generator=random) < 0.3
    if "context" in case.inputs:
        inputs["context"] = torch.randn(1, 256, generator=random)
    curves = 1 if isinstance(case.config["order"], str) else len(case.config["order"])
    levels = len(case.config["enc_depths"]) - (not case.config.get("shuffle_orders", True))
    perms = [torch.randperm(curves, generator=random) for _ in range(levels)] if case.shuffle else []
    condition = case.extra.get("condition")
    said = json.dumps([case.config, case.extra, case.notes])
    outputs = Reference(
        case.config,
        weights,
        flash='"enable_flash": true' in said or "flash layout" in said or "unsaid" in path.stem,
        legacy="legacy" in case.variant,
        perms=perms,
        condition=condition[0] if isinstance(condition, list) else condition,
        context=inputs.get("context"),
    )(inputs["coord"], grid, torch.arange(2).repeat_interleave(counts), inputs["feat"], inputs.get("mask"))
    tensors = {f"in.{k}": v for k, v in inputs.items()} | {f"sd.{k}": v for k, v in weights.items()}
    tensors |= {f"out.{k}": v.float() if v.is_floating_point() else v for k, v in outputs.items()}
    tensors |= {f"perm.{i}": perm for i, perm in enumerate(perms)}
    about = dict(variant=case.variant, config=json.dumps(case.config), extra=json.dumps(case.extra))
    about |= dict(notes=case.notes, shuffle="4" if case.shuffle else "None", scenes=json.dumps(counts.tolist()))
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path, about)


@pytest.mark.parametrize("name", CASES)
def test_variant_agrees_with_the_reference(name, tmp_path):
    path = tmp_path / f"bb_{name}.safetensors"
    write(path, CASES[name])
    results = program.check(path)
    stages = len(CASES[name].config["enc_depths"])
    assert len(results) > 7 + 6 * stages
    assert all(("flash windows" in tensor) == (name == "m2_layout_unsaid") for tensor, *_ in results)
    assert [(tensor, error) for tensor, error, tolerance in results if not error <= tolerance] == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("m1_decoder", {"variant": "ptv3m1_legacy"}),
        ("legacy_decoder", {"variant": "ptv3m1"}),
        ("m2_masked", {"config": {"qk_scale": None}}),
        ("m1_flash", {"config": {"enable_flash": False}}),
        ("m1_pdnorm", {"extra": '{"condition": ["ScanNet"]}'}),
    ],
)
def test_a_wrong_description_is_noticed(name, change, tmp_path):
    path = tmp_path / f"bb_{name}.safetensors"
    write(path, CASES[name])
    tensors, (_, about) = load_file(path), checker.read(path)
    config = json.loads(about["config"]) | change.get("config", {})
    save_file(tensors, path, about | change | {"config": json.dumps(config)})
    assert any(not error <= tolerance for _, error, tolerance in program.check(path))


def test_permutations_are_drawn_from_the_seed_where_none_are_recorded(tmp_path):
    path = tmp_path / "bb_seed.safetensors"
    write(path, CASES["m2_decoder_shuffled"])
    data, about = checker.read(path)
    torch.manual_seed(4)
    want = [torch.randperm(4) for _ in range(3)]
    draw = checker.draws({k: v for k, v in data.items() if not k.startswith("perm.")}, about, 3)
    assert [draw(4).tolist() for _ in range(3)] == [perm.tolist() for perm in want]


@pytest.mark.parametrize(
    ("config", "extra", "notes", "expected"),
    [
        ({}, {}, "", ["shrink", "flash"]),
        ({}, {}, "K shrinks for the whole batch (non-flash rule)", ["shrink", "flash"]),
        ({}, {}, "flash off: K shrinks", ["shrink", "flash"]),
        ({}, {}, "enable_flash=False", ["shrink", "flash"]),
        ({}, {}, "flash-attn stand-in, K fixed", ["flash", "shrink"]),
        ({}, {"flash_layout": True}, "", ["flash"]),
        ({}, {"enable_flash": False}, "", ["shrink"]),
        ({"enable_flash": True}, {}, "", ["flash"]),
        ({"enable_rpe": True}, {}, "flash", ["shrink"]),
        ({"upcast_softmax": True}, {}, "", ["shrink"]),
    ],
)
def test_window_layout_is_read_from_the_metadata(config, extra, notes, expected, tmp_path):
    about = {"variant": "sonata", "extra": json.dumps(extra), "notes": notes}
    assert checker.layouts(config, about, tmp_path / "bb_x.safetensors") == expected


def test_inputs_may_say_batch_voxel_size_and_context_otherwise():
    data = {"in.coord": torch.rand(5, 3), "in.feat": torch.rand(5, 2), "in.batch": torch.tensor([0, 0, 1, 1, 1])}
    point = checker.given(data, {"grid_size": 0.1, "condition": "S3DIS", "context": [0.5] * 256})
    assert point.offset.tolist() == [2, 5]
    assert point.grid_size == 0.1 and point.condition == "S3DIS"
    assert point.extra["context"].shape == (1, 256)


def test_config_takes_every_official_argument_and_reads_the_rest_off_the_weights():
    official = dict(CASES["m3_decoder_unturned"].config | IGNORED, order="z", type="PT-v3m3")
    del official["in_channels"]
    weights = official_weights(CASES["m3_decoder_unturned"].config, "ptv3m3", torch.Generator())
    config = config_from_official(official, weights)
    assert (config.in_channels, config.order, config.generation) == (6, ("z",), "m2")
    assert config.rope_base == 10 and not config.dec_rope_enable


def test_convolutions_of_any_kernel_and_curves_of_any_depth(tmp_path):
    random = torch.Generator().manual_seed(5)
    cells = torch.cat([torch.nn.functional.pad(surfaces(60, 7, random), (1, 0), value=b) for b in range(3)])
    indices = cells[torch.randperm(len(cells), generator=random)].int()
    tensors = {"indices": indices}
    for size, inside, outside in ((1, 3, 2), (3, 2, 5), (7, 4, 3)):
        x, bias = torch.randn(len(indices), inside, generator=random), torch.randn(outside, generator=random)
        weight = torch.randn(outside, size, size, size, inside, generator=random)
        y = torch.zeros(len(x), outside) + bias
        taps = neighbours(indices[:, 1:].long(), indices[:, 0].long(), size)
        for tap, (rows, others) in zip(weight.flatten(1, 3).unbind(1), taps, strict=True):
            y[rows] += x[others] @ tap.T
        tensors |= {f"k{size}.weight": weight, f"k{size}.bias": bias, f"k{size}.x": x, f"k{size}.y": y}
    save_file(tensors, tmp_path / "bb_submconv_other.safetensors")
    tensors = {}
    for depth in (2, 7, 14):
        grid = torch.randint(0, 2**depth, (40, 3), generator=random)
        batch = torch.randint(0, 5, (40,), generator=random)
        tensors |= {f"d{depth}.grid_coord": grid.int(), f"d{depth}.batch": batch.int()}
        for curve, row in zip(CURVES, curve_codes(grid, batch, depth, CURVES), strict=True):
            tensors[f"d{depth}.code.{curve}"] = torch.tensor(row)
    save_file(tensors, tmp_path / "bb_serialization_other.safetensors")
    for name, count in (("submconv", 3), ("serialization", 12)):
        results = program.check(tmp_path / f"bb_{name}_other.safetensors")
        assert len(results) == count
        assert [result for result in results if not result[1] <= result[2]] == []
