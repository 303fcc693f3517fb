"""GAPrompt: what of the published parameters it trains, the shifted cloud, the shape vector, who depends on whom."""

import pytest
import torch
from torch import nn

from contracts import cloud
from methods.objects import clouds, net, official, parts, small, sonata
from pointadapt.errors import UserError
from pointadapt.methods import adapt
from pointadapt.methods.gaprompt import (
    GAPromptConfig,
    Levels,
    ShiftNet,
    embedded,
    interpolation,
    with_points,
)
from pointadapt.methods.pointpeft import neighborhoods
from pointadapt.ops.neighbors import group
from pointadapt.point import collate

#: Published trainable parameters by part at official size (128 groups); what has no counterpart here is in UNUSED.
PUBLISHED = {
    ".points": 15,
    ".places": 30,
    ".prompts": 46_080,
    ".shift.": 25_371,
    ".shape.": 8_192 + 16 + 6_144 + 384,
    "default.norm.": 9_216,
    "default.down.": 73_728 + 192,
    "default.up.": 73_728 + 4_608,
    "default.neighbor_norm.": 9_216,
    ".cls.": 768,
    ".head.": 365_839,
}
#: Prompts of blocks that use none; a learned scale that nothing reads.
UNUSED = {".prompts": 6 * 10 * 384, "scale": 4_608 + 12}


def test_counts_on_point_mae():
    model = official(GAPromptConfig(), groups=128)
    found = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(found.values()) == 628_147 - sum(UNUSED.values()) == 600_487
    for mark, count in PUBLISHED.items():
        assert sum(n for name, n in found.items() if mark in name) == count - UNUSED.get(mark, 0), mark
    assert sum(PUBLISHED.values()) + UNUSED["scale"] == 628_147


def test_shift_net_layers_are_the_published_ones():
    net = ShiftNet(0.0)
    linear = [tuple(m.weight.shape) for m in net.modules() if isinstance(m, nn.Linear)]
    assert linear == [(64, 27), (32, 64), (64, 32), (64, 64), (32, 64), (8, 32)] + [
        (64, 72), (32, 64), (32, 59), (32, 32), (64, 32), (3, 64)
    ]  # fmt: skip


def test_embedding():
    x = torch.tensor([[0.1, 0.2, 0.3]])
    out = embedded(x)[0]
    assert out.shape == (27,) and torch.equal(out[:3], x[0])
    torch.testing.assert_close(out[3:9], torch.cat([x[0].sin(), x[0].cos()]))
    torch.testing.assert_close(out[-6:-3], (8 * x[0]).sin())


def test_interpolation_of_known_points():
    known, at, feat = torch.randn(2, 40, 3), torch.randn(2, 9, 3), torch.randn(2, 40, 5)
    assert torch.equal(interpolation(known, known, 1) @ feat, feat)
    weight = interpolation(at, known)
    assert ((weight > 0).sum(2) == 32).all()  # the nearest alone
    torch.testing.assert_close(weight.sum(2), torch.ones(2, 9))
    distance = torch.cdist(at, known)
    near = distance <= distance.kthvalue(32, 2, keepdim=True).values
    torch.testing.assert_close(weight, (near / (distance**2 + 1e-4)) / (near / (distance**2 + 1e-4)).sum(2, True))


def test_levels_hold_rows_of_their_own_cloud():
    point = collate([cloud(40, 1), cloud(25, 2), cloud(60, 3)])
    tokenizer = net().tokenizer
    levels = Levels.of(point, tokenizer)
    assert levels.row.shape == (3, 12, 8) and levels.coarse.index.shape == (3, 6, 4) and len(levels.down) == 3
    for b, (low, high) in enumerate([(0, 40), (40, 65), (65, 125)]):
        assert levels.row[b].min() >= low and levels.row[b].max() < high
    assert Levels.of(point, tokenizer) is levels


def test_shift_and_shape_of_a_cloud_are_its_own():
    torch.manual_seed(0)
    shifted, tokenizer = ShiftNet(0.0).eval(), net().tokenizer
    sizes = [40, 25, 60]
    parts = [cloud(n, i) for i, n in enumerate(sizes)]
    whole = collate(parts)
    shift, coarse = shifted(whole, Levels.of(whole, tokenizer))
    for one, own, shape in zip(parts, shift.split(sizes), coarse, strict=True):
        alone, summary = shifted(one, Levels.of(one, tokenizer))
        torch.testing.assert_close(alone, own, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(summary[0], shape, atol=1e-5, rtol=1e-5)


def test_learned_points_are_in_every_cloud():
    point = collate([cloud(40, 1), cloud(25, 2)])
    more = torch.tensor([[9.0, 9, 9], [8, 8, 8]], requires_grad=True)
    out = with_points(point, point.coord, more)
    assert out.counts == [42, 27]
    for own, old in zip(out.coord.split([42, 27]), point.coord.split([40, 25]), strict=True):
        assert torch.equal(own[:-2], old) and torch.equal(own[-2:], more)
    group(out, 4, 8).coord.square().sum().backward()
    assert more.grad.abs().sum() > 0  # the grouping passes gradients to coordinates


def test_tokens_come_from_the_shifted_cloud_and_keep_the_original():
    model = small()
    adapt(model, GAPromptConfig(shift=0.8)).eval()
    point = clouds()
    tokens = model.backbone.tokenizer(point)
    prompter = model.backbone.tokenizer.adapters["default"]
    shift, coarse = prompter.shift(point, Levels.of(point, model.backbone.tokenizer))
    shifted = with_points(point, point.coord + 0.8 * shift * point.coord, 5 * prompter.points)
    expected = group(shifted, 12, 8)
    torch.testing.assert_close(tokens.center, expected.center)
    assert tokens.point is point
    torch.testing.assert_close(tokens.extra["shape"], prompter.shape(coarse.flatten(1)))


def test_prompts_carry_shape_and_place_and_leave_no_tokens():
    model = small(depth=4)
    adapt(model, GAPromptConfig(prompts=3)).eval()
    seen = []
    for block in model.backbone.blocks:
        block.base_layer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    out = model.backbone(clouds())
    name = "prompt of default"
    assert [tokens.count(name) for tokens in seen] == [3, 3, 0, 0] and not out.count(name)
    shape = out.extra["gaprompt.default"]
    own = model.backbone.blocks[1].adapters["default"].prompts
    expected = own[None] + 0.5 * shape.vector[:, None] + shape.places
    torch.testing.assert_close(seen[1].part(name), expected)
    places = model.backbone.tokenizer.adapters["default"].places
    torch.testing.assert_close(shape.places, model.backbone.tokenizer.base_layer.pos(places))


@pytest.mark.parametrize("index", [0, 3])  # with prompts and the shape's vector, and without
def test_what_follows_a_block_against_its_formula(index):
    """Neighbourhoods spread over the groups, then s up(quick gelu(down(norm(.))))."""
    model, seen = small(depth=4), {}
    adapt(model, GAPromptConfig(scale=0.3, spread=0.4)).eval()
    layer = model.backbone.blocks[index]
    adapter = layer.adapters["default"]
    layer.base_layer.register_forward_hook(lambda m, args, out: seen.update(base=out))
    layer.register_forward_hook(lambda m, args, out: seen.update(out=out))
    with torch.no_grad():
        shape = model.backbone(clouds()).extra["gaprompt.default"]
        tokens = seen["base"].drop("prompt of default")
        nodes = tokens.part("patch")
        around = neighborhoods(tokens, shape.neighbors).summed_up(nodes, adapter.neighbor_norm)
        plain = tokens.with_part("patch", nodes + 0.4 * around).feat
        hidden = adapter.down(adapter.norm(plain + 0.5 * shape.vector[:, None] if index == 0 else plain))
        expected = plain + 0.3 * adapter.up(hidden / (1 + (-1.702 * hidden).exp()))
    torch.testing.assert_close(seen["out"].feat, expected, atol=1e-5, rtol=1e-5)


def test_part_segmentation_reads_as_without_a_method():
    task = parts(cls_tokens=0)
    read = task.read
    model, point = adapt(task, GAPromptConfig()), clouds()
    out = model(point)
    task.loss(out, torch.randint(0, 5, (len(point),))).backward()
    assert out.shape == (len(point), 5) and task.read == read
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_scenes_are_refused():
    with pytest.raises(UserError, match="tokenizer"):
        sonata(GAPromptConfig())


@pytest.mark.parametrize(
    "options", [{"prompts": 0}, {"rank": 0}, {"points": 0}, {"target_modules": ["block"]}], ids=str
)
def test_wrong_options_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        GAPromptConfig(**options)
