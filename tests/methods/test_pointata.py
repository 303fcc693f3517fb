"""PointATA: what must hold of the model whatever its weights, on small random networks."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pointadapt as pa
from moving import action_set, write_video
from pointadapt.backbones.point_gpt import PointGPT
from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.backbones.recon import ReCon
from pointadapt.data.videos import VideoItems, collate_videos
from pointadapt.errors import UserError
from pointadapt.methods import adapt, load_adapted
from pointadapt.methods.core import options as options_of
from pointadapt.methods.pae import OFFSETS, PAE, sincos, tube_of
from pointadapt.methods.pointata import PVA, SCE, ClipTokens, PointATAConfig
from pointadapt.ops.frames import anchor_frames, neighbour_rows, take_clouds, times, tracks
from pointadapt.tasks.video import VideoClassification
from small_videos import FRAMES, POINTS, adapted, adapters, logits, net, packed, stirred, task, video


def official(config, head="mlp", classes=20):
    with torch.device("meta"):
        return adapt(VideoClassification(PointViT(PointViTConfig()), classes, head=head), config)


# ------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("rank", "count"), [(16, 156_288), (32, 314_112), (48, 478_080), (64, 648_192), (96, 1_006_848), (128, 1_390_080)]
)
def test_pva_counts_on_point_mae(rank, count):
    model = official(PointATAConfig(rank=rank))
    assert sum(p.numel() for a in adapters(model, PVA) for p in a.parameters()) == count
    assert count == 12 * (2 * 384 * rank + rank + 384 + 4 * rank + rank * rank + rank)


def test_counts_by_stage(capsys):
    model = official(PointATAConfig())
    config = model.peft_config["default"]
    assert config.counts(model, "default") == pytest.approx(
        {
            "stage 1": 149_152,
            "adapters": 478_080 + 2_688 + 768 + 24_960,
            "head": 203_540,
            "total": 149_152 + 506_496 + 203_540,
            "% of backbone": 100 * 859_188 / 21_825_792,
        }
    )
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 506_496 + 203_540
    model.print_trainable_parameters()
    said = capsys.readouterr().out
    assert "stage 1: 149,152 || adapters: 506,496 || head: 203,540 || total: 859,188 || % of backbone: 3.94" in said
    assert sum(p.numel() for p in official(PointATAConfig(), "linear").base_model.model.head.parameters()) == 2 * 15_380
    learning = official(PointATAConfig(train_pae=True))
    assert learning.peft_config["default"].counts(learning, "default")["stage 1"] == 149_152
    assert sum(p.numel() for p in learning.parameters() if p.requires_grad) == 859_188


@pytest.mark.parametrize(
    ("options", "stage1", "adapters"),
    [
        ({"pae": "replace"}, 494_592, 506_496),
        ({"pae": "none"}, 0, 506_496),
        ({"sce": "none"}, 149_152, 506_496 - 2_688),
        ({"sce": "global"}, 149_152, 506_496),
        ({"time": False}, 149_152, 506_496 - 24_960),
        ({"kernel": 5}, 149_152, 506_496 + 12 * 2 * 48),
    ],
)
def test_counts_of_the_options(options, stage1, adapters):
    model = official(PointATAConfig(**options))
    found = model.peft_config["default"].counts(model, "default")
    assert (found["stage 1"], found["adapters"]) == (stage1, adapters)


def test_sce_count():
    assert sum(p.numel() for p in SCE(48, "knn", 8).parameters()) == 2_688
    assert sum(p.numel() for p in PAE(384).parameters()) == 149_152


# ------------------------------------------------------------------------------------------------- frames and tokens


@pytest.mark.parametrize(
    ("frames", "stride", "padding", "count"),
    [(24, 2, (1, 0), 12), (16, 2, (1, 0), 8), (150, 1, (1, 1), 150), (1, 1, (1, 1), 1)],
)
def test_anchor_frames(frames, stride, padding, count):
    found = anchor_frames(frames, stride, padding)
    assert found == list(range(0, frames, stride)) and len(found) == count


@pytest.mark.parametrize(("frames", "stride", "padding"), [(5, 2, (1, 0)), (2, 2, (0, 0)), (4, 2, (3, 2))])
def test_frames_that_do_not_divide(frames, stride, padding):
    with pytest.raises(UserError, match="cannot be cut into windows of 3"):
        anchor_frames(frames, stride, padding)


def test_neighbours_stay_within_the_clip():
    assert neighbour_rows(6, 3, 1).tolist() == [1, 2, 2, 4, 5, 5]
    assert neighbour_rows(6, 3, -1).tolist() == [0, 0, 1, 3, 3, 4]
    with pytest.raises(UserError, match="no multiple"):
        logits(adapted(), video().but(extra={"frames": 5}))


def test_frames_are_seen_at_their_share_of_the_clip_or_when_they_say():
    point = packed([torch.randn(4, 3)] * 6, 3)
    torch.testing.assert_close(times(point), torch.tensor([0, 1 / 3, 2 / 3] * 2))
    told = torch.tensor([0, 0.5, 0.9, 0, 0.1, 0.2])
    assert torch.equal(times(point.but(extra={"frames": 3, "time": told})), told)
    turns = torch.tensor([0.5, 32.0])  # half a turn to 32 turns over the clip
    angle = 2 * torch.pi * told[:, None] * turns
    torch.testing.assert_close(sincos(told, 4), torch.cat([angle.sin(), angle.cos()], 1), atol=1e-4, rtol=0)


def test_clouds_are_taken_with_all_that_belongs_to_them():
    clouds = [torch.randn(n, 3) for n in (5, 0, 3, 4)]
    point = packed(clouds, 2).but(extra={"frames": 2, "time": torch.arange(4.0), "name": "x"})
    found = take_clouds(point, torch.tensor([3, 1, 0]))
    assert found.counts == [4, 0, 5] and found.extra["time"].tolist() == [3, 1, 0] and found.extra["name"] == "x"
    assert torch.equal(found.coord, torch.cat([clouds[3], clouds[0]])) and torch.equal(found.feat, found.coord)


@pytest.mark.parametrize("family", [PointViT, ReCon, PointGPT])
@pytest.mark.parametrize("stride", [1, 2])
def test_tokens_are_at_first_those_of_the_frozen_tokenizer(family, stride):
    plain, point = net(family), video()
    model = adapted(family, stride=stride)
    tokenizer = model.get_base_model().backbone.tokenizer
    found = tokenizer(point)
    expected = plain.tokenizer(point)
    assert torch.equal(found.feat, expected.feat[::stride]) and torch.equal(found.pos, expected.pos[::stride])
    assert torch.equal(found.center, expected.center[::stride])
    assert found.extra["frames"] == FRAMES // stride
    if stride == 1:
        assert torch.equal(logits(model, point), logits(task(family), point))


def test_a_clip_without_motion_has_none():
    frame = torch.randn(POINTS, 3)
    point = packed([frame] * FRAMES, FRAMES)
    model = stirred(adapted())
    (tokens,) = adapters(model, ClipTokens)
    base = model.get_base_model().backbone.tokenizer.base_layer
    _, seen, _ = tokens.observe(base, point)
    assert torch.equal(seen[:, :, 1], seen[:, :, 0]) and torch.equal(seen[:, :, 2], seen[:, :, 0])
    nn.init.zeros_(tokens.pae.up.weight)  # the correction, which looks at tokens however they came about
    motion = tokens.pae(seen) - seen[:, :, 0]
    torch.testing.assert_close(motion, motion[:1, :1].expand_as(motion), atol=1e-5, rtol=1e-5)
    assert motion.abs().amax() > 1e-3  # trained biases
    moving = tokens.observe(base, video())[1]
    assert (moving[:, :, 1] - moving[:, :, 0]).abs().amax() > 1e-3


def test_motion_is_seen_at_the_same_anchor():
    """Each group is the K nearest of the neighbouring frame to this frame's anchor."""
    point = video(1)
    center = net().tokenizer(point).center
    clouds = torch.arange(FRAMES)
    for offset, found in zip(OFFSETS, tube_of(point, center, clouds, FRAMES, 8), strict=True):
        for t in (0, 3, 5):
            cloud = point.split()[min(max(t + offset, 0), FRAMES - 1)].coord
            apart = (center[t, 4] - cloud).norm(dim=1).sort().values[:8]
            torch.testing.assert_close(found[t, 4].norm(dim=1).sort().values, apart)


def test_frames_of_unequal_size_give_what_equal_ones_do():
    point = video(1)
    clouds = [c.coord for c in point.split()]
    model = stirred(adapted())
    base = model.get_base_model().backbone.tokenizer
    uneven, even = base(packed([*clouds, clouds[-1][:50]], FRAMES + 1)), base(packed([*clouds, clouds[0]], FRAMES + 1))
    torch.testing.assert_close(uneven.feat[:5], even.feat[:5])
    assert not torch.allclose(uneven.feat[5:], even.feat[5:])


def test_a_frame_without_anchors_may_have_fewer_points_than_a_group():
    model, clouds = stirred(adapted(stride=2)), [c.coord for c in video(1).split()]
    few = packed([clouds[0], clouds[1][:5], *clouds[2:]], FRAMES)
    eight = packed([clouds[0], clouds[1][[0, 1, 2, 3, 4, 0, 1, 2]], *clouds[2:]], FRAMES)
    torch.testing.assert_close(logits(model, few), logits(model, eight), atol=1e-5, rtol=1e-5)


def test_an_embedder_that_is_not_aligned_costs_nothing():
    model, point = adapted(), video()
    (tokens,) = adapters(model, ClipTokens)
    calls = []
    tokens.pae.register_forward_hook(lambda *_: calls.append(1))
    expected = logits(model, point)
    assert not calls and tokens.pae.is_idle
    base = model.get_base_model().backbone.tokenizer.base_layer
    out, seen, _ = tokens.observe(base, point)
    assert torch.equal(tokens.pae(seen), out.feat)  # what was left out would have changed nothing
    tokens.pae.move.bias[0] = 1.0
    calls.clear()
    assert not torch.equal(logits(model, point), expected) and calls == [1]


def test_replace_starts_as_the_frozen_tokenizer_where_nothing_moves():
    still = packed([torch.randn(POINTS, 3)] * FRAMES, FRAMES)
    model = adapted(pae="replace")
    torch.testing.assert_close(logits(model, still), logits(task(), still))
    assert not torch.allclose(logits(model, video()), logits(task(), video()), atol=1e-4)


# ------------------------------------------------------------------------------------------------- the whole model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"follow": "slot"},
        {"sce": "global"},
        {"sce": "none"},
        {"kernel": 5},
        {"kernel": 1},
        {"pae": "none"},
        {"pae": "none", "time": False},
        {"time": False},
        {"train_pae": True},
        {"target_modules": ["tokenizer", "ffn"]},
        {"target_modules": ["tokenizer", "mix", "ffn"]},
    ],
    ids=str,
)
def test_identity_at_the_start_and_every_option_learns(options):
    point = video()
    model = adapted(**options)
    assert torch.equal(logits(model, point), logits(task(), point))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    base = model.get_base_model()
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = base.loss(model(point), torch.tensor([3, 8]))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not torch.equal(logits(model, point), logits(task(), point))


def test_gradients_reach_all_adapters_in_their_turn():
    """At first W_u alone; then all of the PVA and W_s; then the SCE's gate."""
    model, point = adapted(), video()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)

    def grads() -> dict[str, bool]:
        optimizer.zero_grad()
        model.get_base_model().loss(model(point), torch.tensor([3, 8])).backward()
        found = {n: bool(p.grad.abs().max() > 0) for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        return found

    first, second, third = grads(), grads(), grads()
    pva = [n for n in first if ".mix.pointata_adapter." in n]
    assert {n for n in pva if first[n]} == {n for n in pva if ".up." in n}
    assert all(second[n] for n in pva)
    sce = [n for n in first if ".pointata_shared." in n]
    assert not any(first[n] for n in sce)
    assert {n for n in sce if second[n]} == {n for n in sce if ".out." in n}
    assert all(third[n] for n in sce)


def test_points_of_a_frame_have_no_order():
    point = video()
    model = stirred(adapted())
    draw = torch.Generator().manual_seed(5)
    shuffled = [c.coord[torch.randperm(POINTS, generator=draw)] for c in point.split()]
    torch.testing.assert_close(logits(model, packed(shuffled, FRAMES)), logits(model, point), atol=1e-5, rtol=0)


def test_order_of_frames_matters_only_once_something_is_trained():
    clip = video(1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    turned, backwards = (take_clouds(clip, rows) for rows in (order, torch.arange(FRAMES - 1, -1, -1)))
    model = adapted()
    for other in (turned, backwards):
        torch.testing.assert_close(logits(model, other), logits(model, clip), atol=1e-6, rtol=0)
    for pva in adapters(model, PVA):
        nn.init.normal_(pva.up.weight, std=0.1)
    for other in (turned, backwards):
        assert (logits(model, other) - logits(model, clip)).abs().max() > 1e-4


@pytest.mark.parametrize("follow", ["nearest", "slot"])
def test_tokens_have_no_identity_from_frame_to_frame(follow):
    """Permuting each frame's tokens on its own permutes the adapter's output; plain convolution over slots does not."""
    point = video(1)
    model = stirred(adapted(follow=follow, time=False))
    backbone = model.get_base_model().backbone
    with torch.no_grad():
        tokens = backbone.enter(point)
        draw = torch.Generator().manual_seed(7)
        order = torch.stack([torch.randperm(16, generator=draw) for _ in range(FRAMES)])

        def permuted(value: Tensor) -> Tensor:
            return value.gather(1, order[..., None].expand_as(value))

        other = tokens.with_part("patch", permuted(tokens.part("patch"))).but(center=permuted(tokens.center), pos=None)
        mix = backbone.blocks[0].mix
        found, expected = mix(other).part("patch"), permuted(mix(tokens.but(pos=None)).part("patch"))
    same = torch.allclose(found, expected, atol=1e-5)
    assert same == (follow == "nearest")


def test_a_track_goes_to_the_nearest_anchor_of_the_next_frame():
    point = video(2)
    tokens = net().tokenizer(point)
    before, same, after = tracks(tokens, 3)
    assert torch.equal(same, torch.arange(12 * 16))
    row, slot = 7, 5
    apart = (tokens.center[row, slot] - tokens.center[row + 1]).norm(dim=1)
    assert int(after.view(12, 16)[row, slot]) == (row + 1) * 16 + int(apart.argmin())
    assert torch.equal(before.view(12, 16)[6], torch.arange(6 * 16, 7 * 16))  # a clip's first frame: itself


def test_an_adapter_against_its_formula():
    """z + s (W_u GELU(W_p v + b_p) + b_u), token by token; nearest anchors by comparing all of them."""
    model = stirred(adapted(scale=0.5))
    backbone, pva = model.get_base_model().backbone, adapters(model, PVA)[0]
    sce, mix = pva.sce(), backbone.blocks[0].mix
    with torch.no_grad():
        tokens = backbone.enter(video(1))
        out, center = mix.base_layer(tokens), tokens.center
        u = nn.functional.gelu(pva.down(tokens.part("patch") + out.part("patch")))
        anchors = [(t, g) for t in range(FRAMES) for g in range(center.shape[1])]
        context, v = torch.empty_like(u), torch.empty_like(u)
        for t, g in anchors:
            away = center[t] - center[t, g]
            near = away.norm(dim=1).argsort()[:8]
            rel = torch.cat([away[near], away[near].norm(dim=1, keepdim=True)], 1)
            context[t, g] = (sce.gate(rel).sigmoid() * u[t, near]).amax(0)
        u = u + sce.out(sce.norm(context))
        for t, g in anchors:
            frames = [max(t - 1, 0), t, min(t + 1, FRAMES - 1)]
            tracked = [u[f, (center[f] - center[t, g]).norm(dim=1).argmin()] for f in frames]
            v[t, g] = pva.temporal.bias + sum(w * x for w, x in zip(pva.temporal.weight, tracked, strict=True))
        expected = out.part("patch") + 0.5 * pva.up(nn.functional.gelu(pva.point(v)))
        torch.testing.assert_close(mix(tokens).part("patch"), expected, atol=1e-5, rtol=1e-5)


def test_an_embedder_against_its_formula():
    """f = f0 + m, f + U GELU(V LN(f)), with m = W2 GELU(W1 [f_-1 - f0 ; f_+1 - f0])."""
    pae, seen = PAE(12, 5, 7), torch.randn(4, 3, 12)
    for parameter in pae.parameters():
        nn.init.normal_(parameter)
    here, before, after = seen.unbind(1)
    feat = here + pae.move(nn.functional.gelu(pae.look(torch.cat([before - here, after - here], 1))))
    expected = feat + pae.up(nn.functional.gelu(pae.down(pae.norm(feat))))
    torch.testing.assert_close(pae(seen), expected)


@pytest.mark.parametrize("kernel", [3, 5])
def test_receptive_field(kernel):
    """Blocks x (kernel // 2) frames to each side, and one more where the PAE looks at points."""
    frames, late = 16, 8
    clip = video(1, frames)
    clouds = [c.coord for c in clip.split()]
    clouds[late] = clouds[late] * 0.8
    reach = 2 * (kernel // 2)
    for pae in ("none", "residual"):
        model = stirred(adapted(kernel=kernel, pae=pae)).get_base_model()
        with torch.no_grad():
            changed = (model.frames(packed(clouds, frames)) - model.frames(clip))[0].abs().amax(1) > 0
        wide = reach + (pae == "residual")
        assert {int(t) for t in changed.nonzero()} == set(range(late - wide, late + wide + 1))
        assert model.reach >= wide


def test_clips_do_not_see_each_other():
    model, point = stirred(adapted()), video(3)
    expected = logits(model, point)
    clouds = [c.coord for c in point.split()]
    other = packed([*clouds[:FRAMES], *(c * 0.7 for c in clouds[FRAMES : 2 * FRAMES]), *clouds[2 * FRAMES :]], FRAMES)
    found = logits(model, other)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])
    assert not torch.equal(found[1], expected[1])
    for clip in range(3):
        alone = logits(model, packed(clouds[clip * FRAMES : (clip + 1) * FRAMES], FRAMES))
        torch.testing.assert_close(alone[0], expected[clip], atol=1e-5, rtol=1e-5)


def test_the_same_clouds_as_clips_of_another_length():
    model, point = stirred(adapted()), video(2)
    logits(model, point)  # the clouds remember what is near
    half = point.but(extra={"frames": FRAMES // 2})
    assert torch.equal(logits(model, half), logits(model, half.but(cache={})))


def test_frozen_stays_frozen_over_ten_steps():
    model, point = adapted(), video()
    marks = ("_adapter.", "_shared.", ".modules_to_save.")
    frozen = {n: v.clone() for n, v in model.state_dict().items() if not any(m in n for m in marks)}
    held = {n: v.clone() for n, v in model.named_buffers() if ".pae." in n}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.05)
    model.train()
    for _ in range(10):
        optimizer.zero_grad()
        model.get_base_model().loss(model(point), torch.tensor([3, 8])).backward()
        optimizer.step()
    after = model.state_dict()
    assert frozen and held and all(torch.equal(after[n], v) for n, v in {**frozen, **held}.items())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    given = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    r, d = 8, 48
    pva = 2 * d * r + r + d + 4 * r + r * r + r
    head = 2 * 96 + 96 * 256 + 256 + 256 * 12 + 12
    assert given == 2 * pva + (5 * r + 2 * r + r * r + r) + (64 * d + d) + 2 * d + head


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("count", "frames", "chunk"), [(1, 22, 5), (3, 6, 7), (2, 12, 4), (2, 8, 1)])
def test_long_clips_in_windows_are_exact(stride, count, frames, chunk):
    model, point = stirred(adapted(stride=stride)), video(count, frames)
    base = model.get_base_model()
    expected = logits(model, point)
    runs = []
    base.frames_at_once = lambda part: runs.append(part.num_clouds) or type(base).frames_at_once(base, part)
    base.chunk = chunk
    torch.testing.assert_close(logits(model, point), expected, atol=1e-5, rtol=1e-5)
    assert len(runs) > 1 and max(runs) <= max(chunk, 2) + 2 * (base.reach + stride)


def test_windows_without_adapters_need_no_margin():
    model, point = task(chunk=4), video(1, 10)
    assert model.reach == 0
    whole = task()
    torch.testing.assert_close(logits(model, point), logits(whole, point))


def test_reload(tmp_path, capsys):
    point = video()
    model = stirred(adapted())
    model.save_pretrained(tmp_path)
    again = load_adapted(task(), tmp_path)
    assert torch.equal(logits(again, point), logits(model, point))
    again.print_trainable_parameters()
    assert "stage 1: 18,784" in capsys.readouterr().out
    with pytest.raises(UserError, match="other backbone weights"):
        other = task()
        other.backbone.tokenizer.pos[0].weight.data += 1
        load_adapted(VideoClassification(copy.deepcopy(other.backbone), 12), tmp_path)


def test_refusals():
    from pointadapt.backbones.ptv3 import PTv3, PTv3Config

    small = PTv3Config(
        stride=(2,), enc_depths=(1, 1), enc_channels=(16, 32), enc_num_head=(1, 2), enc_patch_size=(8, 8)
    )
    with pytest.raises(UserError, match="videos need a backbone over groups of points"):
        VideoClassification(PTv3(small), 4)
    with pytest.raises(UserError, match="it needs a tokenizer"):
        adapt(pa.Segmentation(PTv3(small), 4), PointATAConfig())
    named = ({"pae": "big"}, {"sce": "all"}, {"follow": "me"})
    for options in (*named, {"kernel": 2}, {"stride": 3}, {"rank": 0}, {"align_clusters": 1}):
        with pytest.raises(UserError, match=next(iter(options))):
            PointATAConfig(**options)


def test_where_a_clip_is_and_how_large_does_not_matter(tmp_path):
    """Clips are normalised as a whole: the same videos shifted and scaled in their files give the same logits."""
    found = []
    for name, factor, shift in (("here", 1.0, 0.0), ("there", 16.0, 64.0)):  # exact in float32
        frames = [factor * c.coord.numpy() + shift for c in video(1).split()]
        write_video(tmp_path / name / "test" / "left" / "a", frames)
        videos = action_set(tmp_path / name, frames=FRAMES, points=POINTS, splits={"test": ["test"]})
        (clip,) = VideoItems(videos, "test", train=False)
        found.append(logits(stirred(adapted()), collate_videos([clip])["point"]))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_the_page_names_every_inferred_option_and_every_count():
    page = (Path(__file__).parents[2] / "docs" / "pointata.md").read_text()
    inferred = [f.name for f in options_of(PointATAConfig) if "(inferred" in f.metadata["help"]]
    assert len(inferred) > 12 and not [name for name in inferred if f"`{name}`" not in page]
    model = official(PointATAConfig())
    found = model.peft_config["default"].counts(model, "default")
    for count in (found["stage 1"], found["adapters"], found["head"], 478_080, 2_688, 24_960, 494_592):
        assert f"{count:,}" in page
