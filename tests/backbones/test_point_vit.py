"""Networks over groups of points: Point-MAE's kind, ReCon, PointGPT."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch

from pointadapt.backbones.object_weights import build_objects
from pointadapt.backbones.point_gpt import SinePosition, chain
from pointadapt.backbones.point_vit import PointViTConfig
from pointadapt.backbones.weights import BACKBONES
from pointadapt.errors import UserError
from pointadapt.point import Point, collate
from pointadapt.tasks.classification import Classification
from pointadapt.tasks.parts import PartSegmentation

SMALL = PointViTConfig(
    groups=12, group_size=8, channels=24, depth=3, heads=2, embed_channels=24, embed_hidden=(8, 16, 24)
)
FAMILIES = {
    "vit": SMALL,
    "bert": replace(SMALL, embed_channels=16),
    "recon": replace(SMALL, family="recon", cls_tokens=3),
    "recon-as-vit": replace(SMALL, family="recon-as-vit"),
    "gpt": replace(SMALL, family="gpt", qkv_bias=True),
    "gpt-large": replace(SMALL, family="gpt", qkv_bias=True, embed_hidden=(8, 12, 16, 24)),
}
FIXTURES = Path(__file__).parents[1] / "fixtures"


def net(name: str):
    torch.manual_seed(0)
    made = build_objects(FAMILIES[name])
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


def cloud(points: int, seed: int = 0) -> Point:
    coord = torch.randn(points, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1.0, 0.5, 0.2])
    return Point(coord, coord, torch.tensor([points]))


@pytest.fixture(params=FAMILIES)
def backbone(request):
    return net(request.param)


@torch.no_grad()
def test_order_of_points_changes_nothing(backbone):
    point = cloud(150)
    rows = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    shuffled = Point(point.coord[rows], point.coord[rows], point.offset)
    assert torch.equal(backbone(point).feat, backbone(shuffled).feat)


@torch.no_grad()
def test_released_sampling_depends_on_it():
    backbone = build_objects(replace(SMALL, sampling="released")).eval()
    point = cloud(150)
    turned = Point(point.coord.flip(0), point.coord.flip(0), point.offset)
    assert not torch.allclose(backbone(point).center, backbone(turned).center)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(80, 80, 80), (60, 200, 12)])
def test_a_cloud_alone_is_as_in_a_batch(backbone, sizes):
    clouds = [cloud(size, seed) for seed, size in enumerate(sizes)]
    together = backbone(collate(clouds)).feat
    for row, one in enumerate(clouds):
        torch.testing.assert_close(backbone(one).feat[0], together[row], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_and_taps(backbone):
    point = cloud(100)
    tokens = backbone(point)
    front = {"vit": (("cls", 1),), "recon": (("cls", 3),), "gpt": (("sos", 1), ("cls", 1))}
    assert tokens.layout == (*front.get(backbone.config.family, (("cls", 1),)), ("patch", 12))
    assert tokens.center.shape == (1, 12, 3) and tokens.feat.shape[2] == backbone.out_channels
    first, last = backbone.taps(point, (0, 2))
    assert torch.equal(last.feat, tokens.feat) and not torch.equal(first.feat, last.feat)


def test_every_slot_is_found_once_a_block(backbone):
    from pointadapt.methods.sites import matches

    names = [name for name, _ in backbone.named_modules()]
    for slot in backbone.slots:
        expected = 1 if slot in ("tokenizer", "embed", "pos", "final_norm") else backbone.depth
        assert sum(matches(name, slot, backbone.slots) for name in names) == expected, slot


@torch.no_grad()
def test_inserted_tokens_take_part(backbone):
    """A prompt at either end, with no other help from the method, changes what comes out at the patches."""
    point = cloud(100)
    plain = backbone.enter(point)
    channels = backbone.out_channels
    prompt = torch.randn(1, 2, channels, generator=torch.Generator().manual_seed(0))
    for where in ({}, {"before": "patch"}):
        tokens = plain.insert("prompt", prompt, **where)
        without = plain
        for block in backbone.blocks:
            tokens, without = block(tokens), block(without)
        assert tokens.count("prompt") == 2
        assert (tokens.part("patch") - without.part("patch")).abs().amin(2).gt(0).all()


@torch.no_grad()
def test_prefixes_are_seen_by_every_patch(backbone):
    tokens = backbone.enter(cloud(100))
    attn = backbone.blocks[0].mix.attn
    draw = torch.Generator().manual_seed(0)
    prompt = tuple(torch.randn(3, backbone.out_channels, generator=draw) for _ in range(2))
    difference = attn(tokens, prompt=prompt).part("patch") - attn(tokens).part("patch")
    assert difference.abs().amax(2).gt(1e-4).all()


def test_too_few_points_is_said(backbone):
    with pytest.raises(UserError, match="cloud of 11 points cannot be cut into 12 groups of 8"):
        backbone(cloud(11))


@torch.no_grad()
def test_frozen_weights_give_the_bits_of_trainable_ones(backbone):
    point = collate([cloud(60), cloud(70)])
    before = backbone(point).feat
    assert torch.equal(backbone.requires_grad_(False)(point).feat, before)


def test_batchnorm_of_frozen_parts_stays_still():
    backbone = net("vit")
    backbone.requires_grad_(False).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone(cloud(100))
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_see_shapes_once_batchnorm_is_settled(family):
    torch.manual_seed(0)
    tokenizer = build_objects(FAMILIES[family]).eval().tokenizer
    ball = torch.nn.functional.normalize(torch.randn(1024, 3), dim=1)
    point = Point(ball, ball, torch.tensor([1024]))

    def spread():
        feat = tokenizer(point).part("patch").detach()
        return float(feat.std(1).mean())

    before, weights = spread(), {k: v.clone() for k, v in tokenizer.named_parameters()}
    tokenizer.settle()
    assert spread() > 10 * before
    assert all(torch.equal(v, weights[k]) for k, v in tokenizer.named_parameters())
    norms = [m for m in tokenizer.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert norms and not any(m.training for m in norms) and {m.momentum for m in norms} == {0.1}
    seen = []
    norms[0].register_forward_hook(lambda m, i, out: seen.append(out.detach().flatten(0, -2)))
    tokenizer(point)
    assert 0.3 < float(seen[0].var(0).mean()) < 3 and float(seen[0].mean(0).abs().max()) < 1


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="multiple of heads"):
        replace(SMALL, heads=5)


# ------------------------------------------------------------------------------------------------------- PointGPT


def test_chain_goes_to_the_nearest_that_is_left():
    center = torch.tensor([[[0.0, 0, 0], [5, 0, 0], [1, 0, 0], [-1.5, 0, 0], [2.2, 0, 0]]])
    assert chain(center)[0].tolist() == [0, 2, 4, 1, 3]


def test_sine_positions():
    position = SinePosition(16)(torch.tensor([[[0.25, 0.0, 0.5]]]))[0, 0]
    wave = [1, 0] * 2 + [0, 1] * 2 + [0, -1] * 2
    torch.testing.assert_close(position, torch.tensor([*wave, 0, 0, 0, 0], dtype=torch.float32), atol=1e-6, rtol=0)


@torch.no_grad()
def test_pointgpt_is_causal_and_its_cls_the_same_for_all():
    backbone = net("gpt")
    one, other = backbone(cloud(100, 0)), backbone(cloud(100, 1))
    assert torch.equal(one.part("cls"), other.part("cls"))
    tokens = backbone.enter(cloud(100))
    changed = tokens.but(feat=torch.cat([tokens.feat[:, :8], 1 + tokens.feat[:, 8:]], 1))
    before, after = backbone.blocks[0](tokens).feat, backbone.blocks[0](changed).feat
    assert torch.equal(before[:, :8], after[:, :8]) and not torch.equal(before[:, 8:], after[:, 8:])


@torch.no_grad()
def test_pointgpt_crosses_two_positions():
    backbone = net("gpt")
    tokens = backbone.enter(cloud(100))
    assert torch.equal(tokens.part("sos")[0], backbone.start.token[0])
    assert torch.equal(tokens.pos[0, 0], backbone.cls.pos[0, 0])
    assert torch.equal(tokens.pos[0, 1], backbone.start.pos[0, 0])


# ---------------------------------------------------------------------------------------------------------- ReCon


@torch.no_grad()
def test_recon_patches_never_see_the_global_tokens():
    backbone = net("recon")
    tokens = backbone.enter(cloud(100))
    changed = tokens.with_part("cls", 1 + tokens.part("cls"))
    for block in backbone.blocks:
        tokens, changed = block(tokens), block(changed)
    assert torch.equal(tokens.part("patch"), changed.part("patch"))
    assert not torch.allclose(tokens.part("cls"), changed.part("cls"))


# --------------------------------------------------------------------------------------------------------- counts


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


def on_meta(name: str, **changes):
    with torch.device("meta"):
        return build_objects(replace(BACKBONES[name].config, **changes))


@pytest.mark.parametrize(
    ("name", "millions"), [("point-mae", 22.09), ("act", 22.09), ("recon", 43.57), ("recon-as-vit", 22.09)]
)
def test_published_sizes(name, millions):
    with torch.device("meta"):
        model = Classification(build_objects(BACKBONES[name].config), 15)
    assert round(count(model) / 1e6, 2) == millions


def test_size_of_pointgpt_is_the_published_one_less_the_generator():
    notes = json.loads((FIXTURES / "pointgpt_s_full_public1.json").read_text())
    sizes = {key: prod(shape) for key, shape in notes["keys"].items()}
    weights = {k: n for k, n in sizes.items() if not k.endswith(("running_mean", "running_var", "batches_tracked"))}
    assert sum(weights.values()) == 29_232_335  # 29.23 M
    aside = ("generator_blocks.", "blocks.increase_dim.", "norm.")
    kept = sum(n for k, n in weights.items() if not k.startswith(aside))
    with torch.device("meta"):
        model = Classification(build_objects(BACKBONES["pointgpt-s"].config), 15)
    assert count(model) == kept == 22_058_639


def test_size_of_the_large_pointgpt():
    assert 300e6 < count(on_meta("pointgpt-l")) < 360.5e6  # that includes the generator


def test_size_of_part_segmentation():
    with torch.device("meta"):
        backbone = build_objects(PointViTConfig(cls_tokens=0))
        model = PartSegmentation(backbone, 50, {f"category {n}": (n,) for n in range(16)})
    assert count(model) == 27_063_730  # 27.06 M
