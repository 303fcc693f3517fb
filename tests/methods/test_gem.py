"""GEM: what must hold whatever its weights, beyond what the contract suite holds already."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from contracts import batch, cloud, logits, tiny, train, zero
from methods.objects import sonata, trained
from pointadapt.errors import UserError
from pointadapt.methods import adapt, load_adapted
from pointadapt.methods.core import Shared
from pointadapt.methods.gem import ContextAdapter, GEMConfig, SpatialAdapter
from pointadapt.point import Point, collate

SONATA = (48, 96, 192, 384, 512), (3, 3, 3, 12, 3)


def spatial(channels=6, **options) -> SpatialAdapter:
    adapter = SpatialAdapter(channels, GEMConfig(**{"rank": 5, "init": "small", **options}))
    nn.init.normal_(adapter.up.weight)
    return adapter


def context(channels=6, **options) -> ContextAdapter:
    config = GEMConfig(**{"rank": 5, "init": "small", "latent_sharing": "block", **options})
    adapter = ContextAdapter(channels, config, "start", True, None)
    nn.init.normal_(adapter.up.weight)
    return adapter


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1_815_152),
        ({"up_bias": False}, 1_808_000),
        ({"share": "qk"}, 1_815_152),
        ({"share": "none", "up_bias": False}, 2_036_864),
        ({"use_ca": False}, 1_121_280),
        ({"use_sa": False, "up_bias": False}, 686_720),
        ({"use_sa": False}, 693_872),
        ({"latent_sharing": "stage"}, 1_815_152 + 640 - 128),
        ({"latent_sharing": "block"}, 1_815_152 + 3072 - 128),
    ],
    ids=str,
)
def test_counts_on_sonata_base(options, count):
    model = sonata(GEMConfig(**options))
    assert trained(model, "gem_") == count
    assert trained(model) == count + 24_660
    backbone = [p for n, p in model.named_parameters() if ".backbone." in n and not p.requires_grad]
    assert sum(p.numel() for p in backbone) == 108_461_328


@pytest.mark.parametrize("share", ["kv", "qk", "none"])
@pytest.mark.parametrize(("rank", "latents", "kernel"), [(1, 1, 3), (7, 3, 5), (2, 9, 1)])
def test_count_formula(share, rank, latents, kernel):
    widths, depths = SONATA
    config = GEMConfig(rank=rank, num_latents=latents, kernel_size=kernel, share=share, sa_bias=True)
    d_all = sum(w * d for w, d in zip(widths, depths, strict=True))
    p = 4 if share == "none" else 3
    sa = 2 * rank * d_all + 24 * kernel**3 * rank**2 + d_all + 24 * 2 * rank
    ca = p * rank * d_all + d_all
    assert trained(sonata(config), "gem_") == sa + ca + latents * rank


def test_encoder_only_unless_asked():
    decoder = dict(
        dec_depths=(2, 2, 2, 2), dec_channels=(64, 96, 192, 384), dec_num_head=(4, 6, 12, 24), dec_patch_size=(64,) * 4
    )
    assert trained(sonata(GEMConfig(), **decoder), "gem_") == 1_815_152
    everywhere = trained(sonata(GEMConfig(targets="all"), **decoder), "gem_")
    d_dec = 2 * (64 + 96 + 192 + 384)
    assert everywhere == 1_815_152 + 5 * 32 * d_dec + d_dec + 8 * 27 * 32**2
    late = trained(sonata(GEMConfig(stages=[4])), "gem_")
    assert late == 3 * (5 * 32 * 512 + 512 + 27 * 32**2) + 128


def test_latents_start_once_however_their_blocks_are_named():
    for targets in (["attn"], [r"enc\.0\..*attn", r"enc\.1\..*attn"], [r"enc\.1\..*attn", "attn"], ["cpe", "attn"]):
        for sharing, starts in (("global", [1, 0, 0, 0]), ("stage", [1, 0, 1, 0]), ("block", [1, 1, 1, 1])):
            model = adapt(tiny(), GEMConfig(rank=2, target_modules=targets, latent_sharing=sharing))
            assert [m.starts for m in model.modules() if isinstance(m, ContextAdapter)] == starts
    late = adapt(tiny(), GEMConfig(rank=2, target_modules=[r"enc\.1\..*attn"], latent_sharing="stage"))
    assert list(late.base_model.store["default"]) == ["stage1"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"use_ca": False, "target_modules": ["cpe", "attn"]}, "use_ca=False contradicts .*attn: leave one"),
        ({"use_sa": False, "target_modules": ["cpe", "attn"]}, "use_sa=False contradicts .*cpe: leave one"),
        ({"context_slot": "mix", "target_modules": ["attn"]}, "context_slot='mix' contradicts .*attn: leave one"),
    ],
)
def test_options_that_contradict_the_targets_are_refused(options, told):
    with pytest.raises(UserError, match=told):
        adapt(tiny(), GEMConfig(rank=2, **options))


@pytest.mark.parametrize("options", [{"use_ca": False}, {"use_sa": False}, {"context_slot": "mix"}], ids=str)
@pytest.mark.parametrize("backbone", ["m2", "unet"])
def test_files_with_the_targets_that_options_made_load(options, backbone, tmp_path):
    model = adapt(tiny(backbone), GEMConfig(rank=2, **options)).eval()
    train(model, 1)
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapted(tiny(backbone), tmp_path), batch()), logits(model, batch()))


def test_gradients_at_the_start(tmp_path):
    torch.manual_seed(0)
    model = adapt(tiny(), GEMConfig(rank=4)).eval()
    point = batch()
    model(point).square().mean().backward()
    for name, parameter in model.named_parameters():
        if "gem_" in name:
            assert (parameter.grad.abs().sum() > 0) == (".up." in name), name
    train(model, 1)
    model.eval().zero_grad()
    model(point).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "gem_" in n)


def settled(**options):
    """An adapted model after a few steps, in eval mode."""
    torch.manual_seed(0)
    model = adapt(tiny(), GEMConfig(**{"rank": 6, **options}))
    train(model, 3)
    return model.eval()


def test_point_order_does_not_matter():
    model, point = settled(), cloud(150, 1)
    shuffle = torch.randperm(150)
    moved = Point(point.coord[shuffle], point.feat[shuffle], point.offset, point.grid_coord[shuffle])
    torch.testing.assert_close(logits(model, moved), logits(model, point)[shuffle], atol=1e-5, rtol=1e-5)


def test_nothing_is_left_of_a_forward_pass():
    model, point = settled(), batch()
    start = model.base_model.gem_shared["default"]["start"].clone()
    first = logits(model, point)
    with pytest.raises(ValueError, match="negative"):
        model(point.but(grid_coord=-point.grid_coord))
    assert torch.equal(logits(model, point), first)
    assert torch.equal(model.base_model.gem_shared["default"]["start"], start)
    backbone = model.get_base_model().backbone
    with torch.no_grad():  # a Point that has been through the network carries latents: they do not count again
        deep = backbone(point)
        assert "gem.default" in deep.extra
        assert torch.equal(backbone(point.but(extra=deep.extra)).feat, deep.feat)


def test_latents_travel_through_all_blocks():
    """Global latents make late blocks depend on how early ones read; banks per block do not."""
    for sharing, depends in (("global", True), ("stage", False), ("block", False)):
        model, point = settled(latent_sharing=sharing, use_sa=False), batch()
        blocks = model.get_base_model().backbone.enc[0].blocks
        last = model.get_base_model().backbone.enc[1].blocks[0].mix.attn
        seen: list[torch.Tensor] = []
        hook = last.adapters["default"].register_forward_hook(
            lambda m, a, out, seen=seen: seen.append(out.extra["gem.default"])
        )
        for block in blocks:  # so that features do not carry the change along
            nn.init.zeros_(block.mix.attn.adapters["default"].up.weight)
            nn.init.zeros_(block.mix.attn.adapters["default"].up.bias)
        logits(model, point)
        blocks[0].mix.attn.adapters["default"].read.weight.data *= 3
        logits(model, point)
        hook.remove()
        assert torch.equal(seen[0], seen[1]) != depends, sharing


def test_permuting_latents_changes_nothing_but_their_order():
    adapter, feat = context(num_latents=4), torch.randn(30, 6)
    state = torch.randn(2, 4, 5)
    order = torch.tensor([2, 0, 3, 1])
    out, read = adapter.attend(feat, [10, 20], state)
    moved, moved_read = adapter.attend(feat, [10, 20], state[:, order])
    torch.testing.assert_close(moved, out, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(moved_read, read[:, order], atol=1e-6, rtol=1e-6)


def test_context_is_a_set_function():
    adapter, feat, state = context(), torch.randn(12, 6), torch.randn(1, 4, 5)
    out, read = adapter.attend(feat, [12], state)
    twice, read_twice = adapter.attend(torch.cat([feat, feat]), [24], state)
    torch.testing.assert_close(read_twice, read, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(twice[:12], out, atol=1e-6, rtol=1e-6)


def test_reading_is_an_average():
    adapter, feat, state = context(share="none"), torch.randn(40, 6), torch.randn(1, 4, 5)
    _, read = adapter.attend(feat, [40], state)
    value = adapter.read(feat)[:, 10:]
    assert (read <= value.amax(0) + 1e-6).all() and (read >= value.amin(0) - 1e-6).all()
    torch.testing.assert_close(adapter.softmax(torch.randn(3, 7) * 30, 1).sum(1), torch.ones(3))


def test_attention_against_the_formula():
    for share, cut in (("kv", (0, 1, 1)), ("qk", (0, 0, 1)), ("none", (0, 1, 2))):
        adapter, feat, state = context(share=share, ca_scale="none"), torch.randn(9, 6), torch.randn(1, 4, 5)
        parts = adapter.read(feat).split(5, 1)
        q, k, v = (parts[i] for i in cut)
        read = torch.softmax(state[0] @ k.T, 1) @ v
        expected = adapter.up(torch.softmax(q @ read.T, 1) @ read)
        out, found = adapter.attend(feat, [9], state)
        torch.testing.assert_close(found[0], read)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    "options",
    [{"step2": "updated"}, {"step2_norm": "points"}, {"step2_norm": "sigmoid"}, {"norm_latents": True}],
    ids=str,
)
def test_options_of_attention_against_the_formula(options):
    adapter, feat, state = context(**options), torch.randn(9, 6), torch.randn(1, 4, 5)
    q, k = adapter.read(feat).split(5, 1)
    latents = nn.functional.layer_norm(state[0], (5,)) if "norm_latents" in options else state[0]
    read = torch.softmax(5**-0.5 * latents @ k.T, 1) @ k
    source = latents + read if "step2" in options else read
    logit = 5**-0.5 * q @ source.T
    weight = {None: logit.softmax(1), "points": logit.softmax(0), "sigmoid": logit.sigmoid()}
    out, found = adapter.attend(feat, [9], state)
    torch.testing.assert_close(found[0], read)
    torch.testing.assert_close(out, adapter.up(weight[options.get("step2_norm")] @ source))


@pytest.mark.parametrize("update", [True, False])
def test_the_next_block_gets_the_latents_and_what_they_read(update):
    adapter, point = context(latent_update=update), collate([cloud(20, 1, 6), cloud(30, 2, 6)])
    start = adapter.latents.expand(2, -1, -1)
    _, read = adapter.attend(point.feat, point.counts, start)
    (state,) = adapter(zero, point).extra.values()
    assert torch.equal(state, start + read if update else start)


@pytest.mark.parametrize("make", [spatial, context], ids=["sa", "ca"])
def test_alpha_scales_what_is_added(make):
    whole, half, point = make(), make(alpha=0.5), cloud(40, 1, 6)
    half.load_state_dict(whole.state_dict())
    torch.testing.assert_close(half(zero, point).feat, 0.5 * whole(zero, point).feat)


@pytest.mark.parametrize("latents", [1, 3, 40])  # fewer than the rank, and more than points
@pytest.mark.parametrize("up_bias", [True, False])
def test_no_way_round_the_products_changes_the_result(latents, up_bias):
    adapter = context(num_latents=latents, up_bias=up_bias).double()
    feat, state = torch.randn(30, 6).double(), torch.randn(1, latents, 5).double()
    q, k = adapter.read(feat).split(5, 1)
    read = torch.softmax(5**-0.5 * state[0] @ k.T, 1) @ k
    expected = adapter.up(torch.softmax(5**-0.5 * q @ read.T, 1) @ read)
    out, found = adapter.attend(feat, [30], state)
    torch.testing.assert_close(found[0], read)
    torch.testing.assert_close(out, expected)


def test_few_latents_make_nothing_of_rank_for_every_point():
    adapter, made = context(channels=32, rank=8), []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default:
                made.append(tuple(out.shape))
            return out

    with Sizes(), torch.no_grad():
        adapter.attend(torch.randn(500, 32), [500], torch.randn(1, 4, 8))
    assert made and not {(500, 8), (500, 16), (8, 500)} & set(made)


def test_one_latent_is_one_vector_per_scene():
    adapter = context(num_latents=1)
    point = collate([cloud(20, 1, 6), cloud(30, 2, 6)])
    out = adapter(zero, point).feat
    first, second = out.split([20, 30])
    for scene in (first, second):
        torch.testing.assert_close(scene, scene[:1].expand_as(scene), atol=1e-6, rtol=1e-6)
    assert (first[0] - second[0]).abs().max() > 1e-2
    out.square().sum().backward()
    assert not adapter.read.weight.grad[:5].any() and adapter.read.weight.grad[5:].any()


def test_reach_of_one_point():
    sa, ca = spatial(), context()
    point = collate([cloud(80, 1, 6), cloud(60, 2, 6)])
    feat = point.feat.clone()
    feat[17] += 1
    near = ((point.grid_coord - point.grid_coord[17]).abs().amax(1) <= 1) & (point.batch == 0)
    change = (sa(zero, point.but(feat=feat)).feat - sa(zero, point).feat).abs().amax(1) > 0
    assert change[17] and not (change & ~near).any()
    change = (ca(zero, point.but(feat=feat)).feat - ca(zero, point).feat).abs().amax(1) > 0
    assert torch.equal(change, point.batch == 0)


def test_scenes_do_not_meet():
    clouds = [cloud(50, 1, 6), cloud(70, 2, 6)]
    for adapter in (spatial(), context()):
        for order in (clouds, clouds[::-1]):
            together = adapter(zero, collate(order)).feat.split([len(c) for c in order])
            for one, part in zip(order, together, strict=True):
                torch.testing.assert_close(adapter(zero, one).feat, part, atol=1e-6, rtol=1e-6)


def test_empty_and_one_point_scenes():
    one, rest = cloud(1, 3), cloud(40, 4)
    pair = collate([one, rest])
    holes = pair.but(offset=torch.tensor([0, 1, 1, 41]))
    model = settled()
    assert torch.equal(logits(model, holes), logits(model, pair))
    adapter = context()
    state = torch.randn(3, 4, 5)
    _, read = adapter.attend(torch.randn(7, 6), [7, 0, 0], state)
    assert not read[1:].any() and read[0].any()


@pytest.mark.parametrize("kernel", [3, 5])
def test_spatial_adapter_is_a_dense_convolution_on_a_full_grid(kernel):
    sa = spatial(kernel_size=kernel, sa_bias=True)
    nn.init.normal_(sa.bias)
    side = 6
    grid = torch.cartesian_prod(*[torch.arange(side)] * 3)
    point = Point(grid.float(), torch.randn(side**3, 6), torch.tensor([side**3]), grid)
    hidden = sa.down(point.feat).T.reshape(1, 5, side, side, side)
    dense = nn.functional.conv3d(hidden, sa.weight.permute(0, 4, 1, 2, 3), sa.bias, padding=kernel // 2)
    expected = sa.up(dense.reshape(5, -1).T.relu())
    torch.testing.assert_close(sa(zero, point).feat, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [spatial, context], ids=["sa", "ca"])
def test_gradients_in_float64(make):
    options = {"sa_act": "gelu"} if make is spatial else {}
    adapter = make(channels=3, rank=2, **options).double()
    point = collate([cloud(6, 1, 3), cloud(5, 2, 3)])
    point = point.but(feat=point.feat.double())
    parameters = [p.detach().requires_grad_() for p in adapter.parameters()]

    def run(feat, *values):
        named = dict(zip([n for n, _ in adapter.named_parameters()], values, strict=True))
        return torch.func.functional_call(adapter, named, (zero, point.but(feat=feat))).feat

    assert torch.autograd.gradcheck(run, (point.feat.requires_grad_(), *parameters), atol=1e-6)


def test_activation_checkpointing_gives_the_same_gradients():
    model, point = settled(), batch()
    block = model.get_base_model().backbone.enc[1].blocks[1]
    wanted = [p for n, p in model.named_parameters() if p.requires_grad]
    expected = torch.autograd.grad(model(point).square().sum(), wanted)
    plain = block.forward
    block.forward = lambda p: torch.utils.checkpoint.checkpoint(plain, p, use_reentrant=False)
    found = torch.autograd.grad(model(point).square().sum(), wanted)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_zeroing_up_restores_the_frozen_model():
    model, point = settled(), batch()
    for name, parameter in model.named_parameters():
        if "gem_" in name and ".up." in name:
            parameter.data.zero_()
    model.get_base_model().head.modules_to_save["default"].load_state_dict(tiny().head.state_dict())
    assert torch.equal(logits(model, point), logits(tiny(), point))


def test_translation_of_voxels():
    point = cloud(90, 1, 6)
    for adapter in (spatial(), context()):
        moved = point.but(grid_coord=point.grid_coord + torch.tensor([5, 0, 11]))
        assert torch.equal(adapter(zero, moved).feat, adapter(zero, point).feat)


@pytest.mark.parametrize(
    "options",
    [
        {"step2": "updated"},
        {"step2_norm": "points"},
        {"step2_norm": "sigmoid"},
        {"norm_latents": True},
        {"latent_update": False},
        {"context_slot": "mix"},
        {"sa_act": "none", "sa_bias": True, "dropout": 0.1, "alpha": 0.5},
        {"rank_sa": 3, "rank_ca": 5},
        {"target_modules": ["cpe"], "stages": [1]},
    ],
    ids=str,
)
def test_every_option_trains_and_starts_as_identity(options):
    point = batch()
    model = adapt(tiny(), GEMConfig(rank=4, **options)).eval()
    assert torch.equal(logits(model, point), logits(tiny(), point))
    train(model, 3)
    changed = logits(model.eval(), point)
    assert changed.isfinite().all() and not torch.equal(changed, logits(tiny(), point))
    small = adapt(tiny(), GEMConfig(rank=4, init="small", **options)).eval()
    assert not torch.equal(logits(small, point), logits(tiny(), point))


def test_no_alike_latents_at_the_start():
    """Latents of std 1 read different things; with 0.02 all read the mean."""
    torch.manual_seed(0)
    feat = nn.functional.layer_norm(torch.randn(500, 48), (48,))
    alike = {}
    for std in (1.0, 0.02):
        adapter = context(channels=48, rank=32, latent_init_std=std)
        _, read = adapter.attend(feat, [500], adapter.latents[None])
        state = nn.functional.normalize(adapter.latents + read[0], dim=1)
        alike[std] = (state @ state.T)[~torch.eye(4, dtype=bool)].abs().mean().item()
    assert alike[1.0] < 0.5 < alike[0.02]


@pytest.mark.parametrize(
    "options",
    [
        {"share": "vk"},
        {"rank": 0},
        {"kernel_size": 4},
        {"kernel_size": -1},
        {"targets": "decoder"},
        {"num_latents": 0},
    ],
    ids=str,
)
def test_wrong_options_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        GEMConfig(**options)


def test_shared_is_a_reference_not_a_copy():
    store = nn.ModuleDict({"a": nn.Linear(1, 1)})
    assert Shared(store, "a")() is store["a"]
