"""PointTPA: parity with the released module, its counts, and what must hold whatever its weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from contracts import batch, cloud, logits, on_a_curve, tiny, train, zero
from methods.objects import sonata, trained
from parity.pointtpa import check
from pointadapt.errors import UserError
from pointadapt.methods import adapt
from pointadapt.methods.pointtpa import DynamicDown, Gate, Grouping, PatchAdapter, PointTPAConfig
from pointadapt.point import Point, collate

FIXTURES = Path(__file__).parents[1] / "fixtures"
STAGES = [(48, 4, 200), (96, 4, 100), (192, 2, 50), (384, 2, 20), (512, 2, 10)]


def dynamic(channels=6, experts=3, size=5, **options) -> PatchAdapter:
    torch.manual_seed(0)
    grouping = Grouping(size, options.pop("mode", "num"), options.pop("rule", "clean"))
    adapter = PatchAdapter(channels, 8, experts, grouping, temperature=1.0, **options)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    return adapter


@pytest.mark.parametrize("name", ["pointtpa_static_public", "pointtpa_dynamic_public"])
def test_parity_with_the_released_module(name):
    for tensor, error, tolerance in check(FIXTURES / f"{name}.safetensors"):
        assert error <= tolerance, tensor


def test_counts_on_sonata_base():  # 2
    model = sonata(PointTPAConfig())
    assert trained(model, "pointtpa_") == 1_152_904 and trained(model) == 1_177_564
    assert sum(p.requires_grad for p in model.parameters()) == 19 * 6 + 5 * 9 + 2
    assert trained(sonata(PointTPAConfig(), 13)) == 1_168_933
    assert trained(sonata(PointTPAConfig(dynamic="none")), "pointtpa_") == 938_448
    assert trained(sonata(PointTPAConfig(experts=[2])), "pointtpa_") == 1_134_130
    assert trained(sonata(PointTPAConfig(gate="uniform")), "pointtpa_") == 1_152_904 - 116_600


def test_counts_of_the_modules():
    with torch.device("meta"):
        for (channels, experts, groups), count in zip(STAGES, [16596, 33768, 47076, 112452, 166276], strict=True):
            module = PatchAdapter(channels, 64, experts, Grouping(groups))
            assert sum(p.numel() for p in module.parameters()) == count
            static = PatchAdapter(channels, 64, None, Grouping(groups))
            assert sum(p.numel() for p in static.parameters()) == 131 * channels + 64


def test_last_block_of_each_stage_is_dynamic():
    def dynamic_blocks(config):
        return [
            name.removeprefix("base_model.model.backbone.enc.").removesuffix(".ffn.pointtpa_adapter.default")
            for name, module in sonata(config).named_modules()
            if isinstance(module, PatchAdapter) and isinstance(module.down, DynamicDown)
        ]

    last = ["0.blocks.2", "1.blocks.2", "2.blocks.2", "3.blocks.11", "4.blocks.2"]
    assert dynamic_blocks(PointTPAConfig()) == last
    assert dynamic_blocks(PointTPAConfig(stages=[3])) == ["3.blocks.11"]
    assert dynamic_blocks(PointTPAConfig(dynamic=["0.1", "3.4"])) == ["0.blocks.1", "3.blocks.4"]
    assert len(dynamic_blocks(PointTPAConfig(dynamic="all"))) == 24
    assert dynamic_blocks(PointTPAConfig(target_modules=[r"blocks\.[01]\.ffn"])) == []  # none is the last
    pattern = r"enc\.3\.blocks\.\d+\.ffn"
    for options in ({"stages": [3]}, {"target_modules": [pattern]}, {"target_modules": [pattern], "stages": [3]}):
        late = sonata(PointTPAConfig(**options))
        adapter = late.get_submodule("base_model.model.backbone.enc.3.blocks.11.ffn.pointtpa_adapter.default")
        assert (adapter.grouping.size, adapter.down.experts) == (20, 2)  # settings stay those of the stage


@pytest.mark.parametrize(("counts", "size"), [([10], 3), ([7, 20], 4), ([3, 0, 9], 5), ([1], 200), ([1000], 7)])
def test_clean_patches_are_the_even_cuts(counts, size):
    total = sum(counts)
    order = torch.cat([torch.randperm(n) + sum(counts[:i]) for i, n in enumerate(counts)])
    patches = Grouping(size).cut(order, order.argsort(), counts)
    expected, taken, start = torch.empty(total, dtype=torch.long), 0, 0
    for n in counts:
        parts = min(size, n)
        for g in range(parts):
            low, high = g * n // parts, (g + 1) * n // parts
            assert high > low
            expected[order[start + low : start + high]] = taken + g
        taken, start = taken + parts, start + n
    assert torch.equal(patches.group, expected)
    assert torch.equal(patches.lengths, torch.bincount(expected))
    assert torch.equal(patches.divisor, patches.lengths.float())


@pytest.mark.parametrize(("mode", "size"), [("num", 5), ("length", 8)])
def test_random_patches_have_the_clean_sizes_and_no_stretch_of_the_curve(mode, size):
    counts = [40, 60]
    curve = torch.cat([torch.randperm(n) + sum(counts[:i]) for i, n in enumerate(counts)])
    clean, mixed = (Grouping(size, mode, rule).cut(curve, curve.argsort(), counts) for rule in ("clean", "random"))
    assert torch.equal(mixed.lengths, clean.lengths) and torch.equal(mixed.divisor, clean.divisor)
    assert torch.equal(mixed.lengths, torch.bincount(mixed.group))
    assert torch.equal(mixed.group[mixed.order], mixed.group.sort().values)  # sorted by patch, as the gate sums them
    place = curve.argsort()
    for patch, length in enumerate(clean.lengths.tolist()):
        for patches, is_stretch in ((clean, True), (mixed, False)):
            where = place[patches.group == patch]
            assert (where < 40).all() or (where >= 40).all()
            assert (where.max() - where.min() + 1 == length) == is_stretch
        rows = (mixed.group == patch).nonzero()
        assert rows.max() - rows.min() + 1 > length  # nor of the rows as given


def test_length_mode_and_official_rule():
    order = torch.arange(17)
    clean = Grouping(5, "length").cut(order, order, [7, 10])
    assert clean.lengths.tolist() == [5, 2, 5, 5] and clean.divisor.tolist() == [5, 2, 5, 5]
    official = Grouping(5, "length", "official").cut(order, order, [7, 10])
    assert official.lengths.tolist() == [5, 2, 5, 5] and official.divisor.tolist() == [5, 5, 5, 5]
    num = Grouping(4, "num", "official").cut(order, order, [7, 10])  # ceil(10 / 4) = 3 points a patch for both
    assert num.lengths.tolist() == [3, 3, 1, 3, 3, 3, 1] and set(num.divisor.tolist()) == {3}


def reference(adapter: PatchAdapter, feat, order, counts, groups):
    """The released computation, literally: zero padding to the longest scene, per-patch weights, grouped products."""
    normed = adapter.norm(feat)[order]
    scenes = normed.split(counts)
    longest = max(counts)
    length = -(-longest // groups)
    padded = torch.zeros(len(counts), groups * length, feat.shape[1])
    for b, scene in enumerate(scenes):
        padded[b, : len(scene)] = scene
    chunks = padded.view(len(counts) * groups, length, -1)
    gate = adapter.down.gate
    hidden = (chunks.mean(1) @ gate.fc1.T).relu() @ gate.fc2.T + gate.bias
    mixture = (hidden / gate.temperature).softmax(1)
    weight = torch.einsum("gk,kmc->gmc", mixture, adapter.down.weight)
    bias = mixture @ adapter.down.bias
    out = (chunks @ weight.transpose(1, 2) + bias[:, None]).view(len(counts), groups * length, -1)
    out = torch.cat([out[b, :n] for b, n in enumerate(counts)])
    return adapter.up(out.relu())[order.argsort()]


@pytest.mark.parametrize("counts", [[40], [13, 40], [40, 13, 1]])
def test_official_grouping_against_the_released_computation(counts):  # 3, 8
    adapter = dynamic(rule="official")
    feat = torch.randn(sum(counts), 6)
    order = torch.cat([torch.randperm(n) + sum(counts[:i]) for i, n in enumerate(counts)])
    patches = adapter.grouping.cut(order, order.argsort(), counts)
    torch.testing.assert_close(
        adapter.branch(feat, patches), reference(adapter, feat, order, counts, 5), atol=1e-5, rtol=1e-5
    )


def test_mixture_of_outputs_is_the_mixture_of_weights():  # 3: against an explicit loop over patches
    adapter, point = dynamic(), on_a_curve(collate([cloud(33, 1, 6), cloud(50, 2, 6)]))
    feat, patches = adapter.norm(point.feat), adapter.grouping(point, "z")
    expected = torch.empty(len(feat), 8)
    for g, mixture in enumerate(adapter.down.coefficients(feat, patches)):
        rows = patches.group == g
        weight = sum(a * w for a, w in zip(mixture, adapter.down.weight, strict=True))
        bias = sum(a * b for a, b in zip(mixture, adapter.down.bias, strict=True))
        expected[rows] = nn.functional.linear(feat[rows], weight, bias)
    torch.testing.assert_close(adapter.down(feat, patches), expected, atol=1e-5, rtol=1e-5)


def test_equal_experts_make_a_static_module():  # 4
    point = on_a_curve(cloud(40, 1, 6))
    adapter = dynamic()
    adapter.down.weight.data[:] = adapter.down.weight[0]
    adapter.down.bias.data[:] = adapter.down.bias[0]
    feat = adapter.norm(point.feat)
    static = adapter.up(nn.functional.linear(feat, adapter.down.weight[0], adapter.down.bias[0]).relu())
    torch.testing.assert_close(adapter(zero, point).feat, static, atol=1e-5, rtol=1e-5)
    single = dynamic(experts=1)
    patches = single.grouping(point, "z")
    assert torch.equal(single.down.coefficients(feat, patches), torch.ones(5, 1))


def test_alpha_scales_what_is_added():
    point = on_a_curve(cloud(40, 1, 6))
    torch.testing.assert_close(dynamic(alpha=0.5)(zero, point).feat, 0.5 * dynamic()(zero, point).feat)


def test_gate_rows():  # 4, 5
    adapter, point = dynamic(), on_a_curve(cloud(40, 1, 6))
    feat, patches = adapter.norm(point.feat), adapter.grouping(point, "z")
    rows = adapter.down.coefficients(feat, patches)
    torch.testing.assert_close(rows.sum(1), torch.ones(5))
    assert (rows > 0).all() and (rows < 1).all()
    out = adapter.branch(point.feat, patches)
    order = torch.tensor([2, 0, 1])
    for values in (adapter.down.weight, adapter.down.bias, adapter.down.gate.fc2, adapter.down.gate.bias):
        values.data = values[order].clone()
    torch.testing.assert_close(adapter.branch(point.feat, patches), out, atol=1e-5, rtol=1e-5)
    for values in (adapter.down.gate.fc2, adapter.down.gate.bias):
        nn.init.zeros_(values)
    assert torch.equal(adapter.down.coefficients(feat, patches), torch.full((5, 3), 1 / 3))


def test_a_uniform_gate_mixes_all_patches_alike_before_and_after_training():
    model, point = adapt(tiny(), PointTPAConfig(mid=8, gate="uniform")).eval(), batch()
    mixtures = [m for m in model.modules() if isinstance(m, DynamicDown)]
    seen = []
    for down in mixtures:
        down.register_forward_hook(lambda down, args, out: seen.append(down.coefficients(*args)))
    for steps in (0, 3):
        train(model, steps)
        seen.clear()
        logits(model.eval(), point)
        assert len(seen) == len(mixtures) > 0
        assert all(len(rows) > 1 and torch.equal(rows, torch.full_like(rows, 1 / rows.shape[1])) for rows in seen)


def test_one_group_and_one_point_groups():  # 6
    point = on_a_curve(cloud(40, 1, 6))
    whole = dynamic(size=1)
    assert len(whole.down.coefficients(whole.norm(point.feat), whole.grouping(point, "z"))) == 1
    own = dynamic(size=1, mode="length")
    feat = own.norm(point.feat)
    rows = own.down.coefficients(feat, own.grouping(point, "z"))[own.grouping(point, "z").group]
    torch.testing.assert_close(rows, own.down.gate(feat))


def test_reach_of_one_point():  # 7
    adapter, point = dynamic(), on_a_curve(collate([cloud(43, 1, 6), cloud(50, 2, 6)]))
    feat = point.feat.clone()
    feat[17, 0] += 1
    change = (adapter(zero, point.but(feat=feat)).feat - adapter(zero, point).feat).abs().amax(1) > 0
    group = adapter.grouping(point, "z").group
    assert torch.equal(change, group == group[17])


def test_patches_follow_the_curve_of_the_block():
    point = cloud(200, 1, 6)
    adapter = dynamic()
    one, other = (adapter(zero, on_a_curve(point, curve)).feat for curve in ("z", "hilbert"))
    assert not torch.equal(one, other)
    static = PatchAdapter(6, 8, None, Grouping(5))
    nn.init.normal_(static.up.weight)
    one, other = (static(zero, on_a_curve(point, curve)).feat for curve in ("z", "hilbert"))
    assert torch.equal(one, other)  # 9


def test_point_order_does_not_matter():  # 14
    adapter, point = dynamic(), on_a_curve(cloud(60, 1, 6))
    shuffle = torch.randperm(60)
    moved = point.but(
        coord=point.coord[shuffle], feat=point.feat[shuffle], grid_coord=point.grid_coord[shuffle], cache={}
    )
    torch.testing.assert_close(adapter(zero, moved).feat, adapter(zero, point).feat[shuffle], atol=1e-6, rtol=1e-6)


def test_batch_mates_matter_only_in_official_grouping():  # 12
    one, mate = cloud(40, 1, 6), cloud(150, 2, 6)
    for rule in ("clean", "random", "official"):
        adapter = dynamic(rule=rule)
        alone = adapter(zero, on_a_curve(one)).feat
        together = adapter(zero, on_a_curve(collate([one, mate]))).feat[:40]
        same = torch.allclose(alone, together, atol=1e-5)
        assert same == (rule != "official"), rule


def test_empty_scenes():
    adapter = dynamic()
    one = cloud(30, 1, 6)
    holes = one.but(offset=torch.tensor([0, 30, 30]))
    torch.testing.assert_close(adapter(zero, on_a_curve(holes)).feat, adapter(zero, on_a_curve(one)).feat)
    nothing = Point(torch.zeros(0, 3), torch.zeros(0, 6), torch.tensor([0]), torch.zeros(0, 3, dtype=torch.long))
    for rule in ("clean", "official", "random"):
        adapter = dynamic(rule=rule)
        patches = adapter.grouping.cut(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), [0])
        assert adapter.branch(nothing.feat, patches).shape == (0, 6)


def test_gradients_at_the_start():  # 10
    point = batch()
    model = adapt(tiny(), PointTPAConfig(mid=8)).eval()
    model(point).square().mean().backward()
    for name, parameter in model.named_parameters():
        if "pointtpa_" in name:
            assert (parameter.grad.abs().sum() > 0) == (".up." in name), name
    train(model, 1)
    model.eval().zero_grad()
    model(point).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "pointtpa_" in n)


def test_initialisation():
    torch.manual_seed(0)
    module = PatchAdapter(384, 64, 4, Grouping(20))
    assert module.down.weight.std().item() == pytest.approx((2 / 384) ** 0.5, rel=0.02)
    gate = Gate(384, 4, 4.0)
    assert gate.fc1.shape == (97, 384) and gate.fc2.shape == (4, 97)
    assert gate.fc1.std().item() == pytest.approx((2 / 97) ** 0.5, rel=0.02)
    assert gate.fc2.std().item() == pytest.approx((2 / 4) ** 0.5, rel=0.1)
    assert not module.up.weight.any()
    official = PatchAdapter(384, 64, None, Grouping(20), init="official")
    assert official.up.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert official.down.weight.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"gate": "uniform"},
        {"gate": "random"},
        {"gate_init": "zero"},
        {"grouping": "official"},
        {"grouping": "random"},
        {"dynamic": "all", "mode": "length", "groups": [30]},
        {"dynamic": "none"},
        {"groups": [1]},
    ],
    ids=str,
)
def test_every_option_trains_and_starts_as_identity(options):
    point = batch()
    model = adapt(tiny(), PointTPAConfig(mid=8, **options)).eval()
    assert torch.equal(logits(model, point), logits(tiny(), point))
    gates = {k: v.clone() for k, v in model.state_dict().items() if ".gate." in k}
    train(model, 3)
    changed = logits(model.eval(), point)
    assert changed.isfinite().all() and not torch.equal(changed, logits(tiny(), point))
    if options.get("gate") == "random":
        assert gates and all(torch.equal(model.state_dict()[k], v) for k, v in gates.items())


def test_official_start_is_no_identity():
    model = adapt(tiny(), PointTPAConfig(init="official")).eval()
    assert not torch.equal(logits(model, batch()), logits(tiny(), batch()))


@pytest.mark.parametrize("options", [{"mid": 0}, {"groups": []}, {"gate": "soft"}, {"dynamic": "first"}], ids=str)
def test_wrong_options_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        PointTPAConfig(**options)


def test_patches_are_cut_without_asking_the_device():
    """Meta stands for a GPU: what would wait for values fails on it."""
    order = torch.arange(11, device="meta")
    for mode in ("num", "length"):
        assert Grouping(3, mode).cut(order, order, [5, 6]).group.is_meta
