"""Semantic segmentation of dense frames: a pyramid of convolutions around the frozen transformer."""

from __future__ import annotations

import pytest
import torch

from pointadapt.backbones.frame_pyramid import NEIGHBORS, WINDOWS, FramePyramid
from pointadapt.backbones.point_gpt import PointGPT
from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.backbones.recon import ReCon
from pointadapt.errors import UserError
from pointadapt.methods import METHODS, adapt, load_adapted
from pointadapt.methods.pointata import PVA, ClipTokens, PointATAConfig
from pointadapt.ops.neighbors import gather
from pointadapt.point import Point
from pointadapt.tasks.video_segmentation import VideoSegmentation
from small_videos import adapters, logits, net, packed, stirred, video

POINTS, CLASSES = 512, 5


def task(family: type[PointViT] = PointViT, head: str = "slim", **options) -> VideoSegmentation:
    torch.manual_seed(3)
    return VideoSegmentation(net(family), CLASSES, head=head, points=POINTS, **options).eval()  # type: ignore[arg-type]


def adapted(method: str = "pointata", **options):
    torch.manual_seed(4)
    return adapt(task(**options), METHODS[method](rank=8)).eval()


def size(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("head", "encoder", "decoder"), [("pyramid", 1_070_432, 594_828), ("slim", 643_808, 201_164)])
def test_counts_on_point_mae(head, encoder, decoder):
    """1.07 M and 0.59 M, slim 0.64 M and 0.20 M, of encoder and decoder."""
    with torch.device("meta"):
        backbone = PointViT(PointViTConfig())
        model = VideoSegmentation(backbone, 12, head=head)
        assert backbone.pyramid.sizes == (4096, 1024, 256, 128)
        adapted = adapt(model, PointATAConfig())
    assert size(backbone.pyramid.modules_to_save.default) == encoder
    assert size(model.head.modules_to_save.default) == decoder
    found = adapted.peft_config["default"].counts(adapted, "default")
    assert (found["stage 1"], found["adapters"], found["head"], found["pyramid"]) == (0, 506_496, decoder, encoder)
    assert found["total"] == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", [PointViT, ReCon, PointGPT])
def test_every_point_gets_its_logits_whatever_the_order(family):
    model, point = task(family), video(2, 3, POINTS)
    found = logits(model, point)
    assert found.shape == (len(point), CLASSES) and found.isfinite().all()
    draw = torch.Generator().manual_seed(1)
    order = [torch.randperm(POINTS, generator=draw) for _ in range(point.num_clouds)]
    shuffled = packed([c.coord[rows] for c, rows in zip(point.split(), order, strict=True)], 3)
    expected = torch.cat([f[rows] for f, rows in zip(found.split(POINTS), order, strict=True)])
    torch.testing.assert_close(logits(model, shuffled), expected, atol=1e-5, rtol=1e-5)
    one = packed([c.coord for c in point.split()[3:]], 3)
    torch.testing.assert_close(logits(model, one), found[3 * POINTS :], atol=1e-5, rtol=1e-5)


def test_the_same_clouds_as_clips_of_another_length():
    model, point = task(), video(1, 2, POINTS)
    logits(model, point)  # the clouds remember what is near
    single = point.but(extra={"frames": 1})
    assert torch.equal(logits(model, single), logits(model, single.but(cache={})))


def test_frames_of_unequal_size():
    model, (first, second, third) = task(), (c.coord for c in video(1, 3, POINTS).split())
    even = logits(model, packed([first, second, third], 3)).split(POINTS)
    uneven = logits(model, packed([first, second, third, second[:200]], 4)).split([POINTS, POINTS, POINTS, 200])
    torch.testing.assert_close(uneven[0], even[0], atol=1e-5, rtol=1e-5)  # the fourth frame is too far to be seen
    torch.testing.assert_close(uneven[1], even[1], atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="a frame of 100 points has no 128 anchors"):
        logits(model, packed([first, second[:100]], 2))
    third[7, 1] = torch.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        logits(model, packed([first, second, third], 3))


def test_a_level_is_the_maximum_over_neighbours_and_frames():
    torch.manual_seed(0)
    pyramid = FramePyramid(POINTS, 48, "slim").eval()
    point = video(1, 3, POINTS)
    first, second, third = pyramid(point).extra["levels"]
    assert [level.center.shape[1] for level in (first, second, third)] == [128, 32, 8]
    assert WINDOWS == (1, 1, 3, 1)
    convolution, frame, anchor = pyramid.levels[2], 1, 5
    values = []
    for offset in (-1, 0, 1):
        way = second.center[frame + offset] - third.center[frame, anchor]
        near = way.norm(dim=1).argsort()[:NEIGHBORS]
        place = torch.cat([way[near], torch.full((len(near), 1), float(offset))], 1)
        brought = convolution.bring(second.feat[frame + offset])[near]
        values.append(convolution.mlp(convolution.place(place) + brought).amax(0))
    torch.testing.assert_close(third.feat[frame, anchor], torch.stack(values).amax(0))
    assert torch.equal(first.center[:, :32], second.center)
    last = pyramid(point).extra["patches"].feat
    assert last.shape == (3, 4, 48) and (last < 0).any()


def test_neighbours_within_a_radius():
    torch.manual_seed(0)
    point = video(1, 2, POINTS)
    pyramid = FramePyramid(POINTS, 48, "slim", radius=0.05)
    assert [c.radius for c in pyramid.levels] == [0.05, 0.1, 0.2, 0.4]
    free, near = FramePyramid(POINTS, 48).levels[0], pyramid.levels[0]
    center, clouds = point.coord.view(2, POINTS, 3)[:, :40], torch.arange(2)
    all_of_them, some = free.neighbours(point, center, clouds), near.neighbours(point, center, clouds)
    apart = (point.coord[all_of_them] - center[:, :, None]).norm(dim=-1)
    assert (apart > 0.05).any() and (apart <= 0.05).sum() > 80
    expected = torch.where(apart <= 0.05, all_of_them, all_of_them[..., :1])
    assert torch.equal(some, expected)
    assert torch.equal(some[1] // POINTS, torch.ones_like(some[1]))  # of their own frame
    assert torch.equal(gather(point.coord[None], all_of_them[:1, :, :1])[0, :, 0], center[0])


@pytest.mark.parametrize("method", ["pointata", "st-adapter"])
@pytest.mark.parametrize(("count", "frames", "chunk"), [(1, 13, 4), (3, 3, 5)])
def test_windows_are_exact(method, count, frames, chunk):
    model, point = stirred(adapted(method)), video(count, frames, 200)
    base, expected = model.get_base_model(), None
    assert base.reach + base.own_reach == base.backbone.depth + 1 + (method == "pointata")
    expected = logits(model, point)
    base.chunk = chunk
    with torch.no_grad():
        assert len(list(base.windows(point))) > 1
    torch.testing.assert_close(logits(model, point), expected, atol=1e-5, rtol=1e-5)


def test_blocks_of_frames_change_nothing(monkeypatch):
    model, point = task(), video(1, 3, POINTS)
    expected = logits(model, point)
    for name in ("VALUES", "PAIRS"):
        monkeypatch.setattr(f"pointadapt.backbones.frame_pyramid.{name}", 1)
    torch.testing.assert_close(logits(model, packed([c.coord for c in point.split()], 3)), expected)


@pytest.mark.parametrize("method", ["pointata", "st-adapter", "linear", "lora", "full"])
def test_it_learns_with_the_head_and_is_kept_with_it(method, tmp_path):
    torch.manual_seed(5)
    options = {"rank": 8} if method in ("pointata", "st-adapter") else {}
    model, point = adapt(task(), METHODS[method](**options)), video(1, 3, POINTS)
    target = (point.coord[:, 2] > point.coord[:, 2].median()).long()
    assert not [a for a in adapters(model, ClipTokens) if a.pae is not None]
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    learned = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model.get_base_model().loss(model(point), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    changed = {n for n, p in model.named_parameters() if n in learned and not torch.equal(p, learned[n])}
    assert any(".pyramid." in n for n in changed) and any(".head." in n for n in changed)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    if method == "pointata":  # gradients go through the frozen blocks to the adapters, and on to the pyramid
        assert all((pva.up.weight != 0).any() for pva in adapters(model, PVA))
    model.eval().save_pretrained(tmp_path)
    again = load_adapted(task(), tmp_path).eval()
    assert torch.equal(logits(again, point), logits(model, point))


def test_colours_take_the_place_of_coordinates():
    model, point = task(), video(1, 3, POINTS)
    draw = torch.Generator().manual_seed(0)
    colored = point.but(feat=torch.cat([point.coord, torch.rand(len(point), 3, generator=draw)], 1))
    assert not torch.allclose(logits(model, colored), logits(model, point), atol=1e-4)
    same = point.but(feat=torch.cat([point.coord, point.coord], 1))
    assert torch.equal(logits(model, same), logits(model, point))


def test_refusals():
    with pytest.raises(UserError, match="head must be one of mlp, pyramid, slim"):
        task(head="vit")
    with pytest.raises(UserError, match="at least 128 points, not 100"):
        VideoSegmentation(net(), CLASSES, head="slim", points=100)
    with pytest.raises(UserError, match="has a pyramid already"):
        VideoSegmentation(task().backbone, CLASSES, head="slim", points=POINTS)
    with pytest.raises(UserError, match="cannot read cls: use head mlp"):
        task().read_from(["cls"])
    for method in ("appt", "gaprompt", "pointlora"):
        with pytest.raises(UserError, match="cuts clouds into groups by itself"):
            adapt(task(), METHODS[method]())
    plain = net()
    plain.tokenizer.is_fed = True  # clouds that went through no pyramid are cut as ever
    point: Point = video(1, 2, 64)
    assert torch.equal(plain.tokenizer(point).feat, net().tokenizer(point).feat)
