"""Stage 1 of PointATA: the embedder learns to bring clips to where shapes are, and nothing else changes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pointadapt.align import Align, align, align_model, clustered, source_features
from pointadapt.align_samples import clip_tokens, observe, observe_pyramid, place, pyramid_of
from pointadapt.analysis.transport import Source, Transport, neighbour_accuracy
from pointadapt.data.synthetic_shapes import SHAPE_CLASSES, shapes
from pointadapt.errors import UserError
from pointadapt.methods import METHODS, adapt, load_adapted
from pointadapt.methods.pae import PAE
from pointadapt.ops.frames import group_labels
from pointadapt.tasks.video_segmentation import VideoSegmentation
from small_videos import FRAMES, adapted, logits, net, packed, stirred, task, video

WIDTH = 32
QUICK = Align(epochs=14, steps=10, subset=120, source_batch=128, lr=3e-3)


def toy(seed: int = 0):
    """Samples of 5 classes [100, 4, 3, D] away from a source of 6 classes [240, D]."""
    draw = torch.Generator().manual_seed(seed)
    source_labels, labels = torch.arange(240) % 6, torch.arange(100) % 5
    source = torch.randn(6, WIDTH, generator=draw)[source_labels] + 0.3 * torch.randn(240, WIDTH, generator=draw)
    centers = 1.5 + 0.7 * torch.randn(5, 1, 1, WIDTH, generator=draw)
    samples = centers[labels] + 0.3 * torch.randn(100, 4, 3, WIDTH, generator=draw)
    return samples, labels, source, source_labels


def fresh() -> PAE:
    torch.manual_seed(0)
    return PAE(WIDTH)


def test_the_distance_falls_and_the_classes_stay_apart():
    samples, labels, *source = toy()
    pae, logged = fresh(), []
    found = align(pae, samples, labels, *source, QUICK, logged.append)
    assert found.distance[-1] < 0.3 * found.distance[0]
    smooth = np.convolve(found.distance, np.ones(5) / 5, "valid")
    assert (np.diff(smooth) <= 0).all()
    assert not found.scrambled and found.neighbours[1] >= found.neighbours[0] - 0.02
    assert [row["epoch"] for row in logged] == list(range(1, len(found.distance)))
    assert [row["distance"] for row in logged] == found.distance[1:]
    assert logged[-1]["lr"] == pytest.approx(QUICK.last_lr) and logged[6]["lr"] == pytest.approx(QUICK.lr / 2, rel=0.01)
    # what it reports is the distance of those features, in units of the source
    with torch.no_grad():
        feature = pae(samples).mean(1)
    whole = Source.of(*source, QUICK.transport)
    assert found.distance[-1] == pytest.approx(float(whole.batch(120, 0).distance(feature, labels)), rel=1e-5)
    assert found.neighbours[1] == neighbour_accuracy(feature, labels)
    assert all(torch.equal(pae.state_dict()[k], v) for k, v in found.state.items())


def test_it_depends_on_its_seed_alone():
    samples, labels, *source = toy()
    short = Align(epochs=2, steps=3, subset=60, source_batch=64)
    torch.manual_seed(1)
    first = align(fresh(), samples, labels, *source, short)
    torch.randn(7)
    again = align(fresh(), samples, labels, *source, short)
    assert first.distance == again.distance and len(first.batches) == 2 and first.batches == again.batches
    assert min(first.batches) > 0 and all(torch.equal(first.state[k], again.state[k]) for k in first.state)
    other = align(fresh(), samples, labels, *source, Align(epochs=2, steps=3, subset=60, source_batch=64, seed=1))
    assert other.distance != first.distance


def test_a_step_may_look_at_some_tokens():
    samples, labels, *source = toy()
    short = dict(epochs=3, steps=5, subset=60, source_batch=64)
    part = align(fresh(), samples, labels, *source, Align(**short, tokens=2))
    every = align(fresh(), samples, labels, *source, Align(**short))
    assert part.distance[0] == every.distance[0] and part.distance[-1] < 0.9 * part.distance[0]
    assert part.distance[1:] != every.distance[1:]
    assert align(fresh(), samples, labels, *source, Align(**short, tokens=4)).distance == every.distance
    with pytest.raises(UserError, match="tokens"):
        Align(tokens=0)


def test_it_stops_when_nothing_changes():
    samples, labels, *source = toy()
    still = Align(epochs=9, steps=1, subset=60, source_batch=64, lr=1e-9, last_lr=1e-9)
    found = align(fresh(), samples, labels, *source, still)
    assert found.stopped and len(found.distance) == 1 + still.patience
    assert found.as_dict()["epochs"] == 5 and "state" not in found.as_dict()


def test_the_classwise_objective_does_not_vanish_for_equal_sets():
    _, _, features, labels = toy()
    source = Source.of(features, labels, Transport(min_count=2))
    assert float(source.distance(features, labels)) == 0
    assert float(source.classwise(features, labels)) > 1
    samples, own, *_ = toy()
    found = align(fresh(), samples, own, features, labels, Align("classwise", epochs=3, steps=5, source_batch=64))
    assert found.distance[-1] < found.distance[0]


def test_clusters_in_place_of_labels():
    """Found again where they are plain; the check of the classes goes on with the labels themselves."""
    samples, labels, *source = toy()
    found = clustered(samples.mean((1, 2)), 5, 0)
    assert [len(np.unique(found[labels.numpy() == y])) for y in range(5)] == [1] * 5 and len(np.unique(found)) == 5
    assert len(np.unique(clustered(torch.ones(6, 3), 4, 0))) == 1
    short = dict(epochs=1, steps=2, subset=60, source_batch=64)
    told = align(fresh(), samples, torch.arange(100), *source, Align(**short, clusters=5))
    assert told.neighbours == (0, 0)  # every sample is a class of its own
    own = align(fresh(), samples, labels, *source, Align(**short))
    assert align(fresh(), samples, labels, *source, Align(**short, clusters=5)).neighbours == own.neighbours
    with pytest.raises(UserError, match="clusters"):
        Align(clusters=1)


@pytest.mark.parametrize("options", [{}, {"pae": "replace"}, {"train_pae": True}, {"stride": 2}], ids=str)
def test_stage_one_of_a_model(options, tmp_path):
    model = adapted(**options)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    clips = [(video(12, seed=s), torch.arange(12)) for s in (1, 2)]
    features, names = source_features(model, limit=48)
    assert features.shape == (48, 48) and names[:16] == list(SHAPE_CLASSES)
    start = logits(model, video())
    found = align_model(
        model, clips, features, names, how=Align(epochs=3, steps=4, lr=5e-5, source_batch=48, subset=48)
    )
    assert found.distance[-1] < found.distance[0]
    after = model.state_dict()
    changed = {k for k, v in before.items() if not torch.equal(after[k], v)}
    assert changed and all(".pae." in k for k in changed)
    assert not torch.equal(logits(model, video()), start)
    # the tokens of the model are the embedder's, also after a reload
    adapter, base, _ = clip_tokens(model)
    samples, labels = observe(model, clips)
    assert labels.tolist() == [*range(12)] * 2
    with torch.no_grad():
        tokens = model.get_base_model().backbone.tokenizer(clips[0][0]).feat
        mean = adapter.pae(samples[:12]).mean(1)
    torch.testing.assert_close(tokens.unflatten(0, (12, -1)).flatten(1, 2).mean(1), mean)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapted(task(), tmp_path), video()), logits(model, video()))
    place(
        model, {k: before[f"base_model.model.backbone.tokenizer.pointata_adapter.default.pae.{k}"] for k in found.state}
    )
    assert torch.equal(logits(model, video()), start)


def test_samples_are_clips_frames_or_tokens():
    model, point = adapted(), video(2)
    clips, labels = observe(model, [(point, torch.tensor([3, -1]))])
    assert clips.shape == (1, FRAMES * 16, 3, 48) and labels.tolist() == [3]
    frame_labels = torch.arange(12).view(2, FRAMES)
    frames, labels = observe(model, [(point, frame_labels)], "frame")
    assert torch.equal(labels, torch.arange(12)) and torch.equal(frames[:FRAMES].flatten(0, 1), clips[0])
    every_other, labels = observe(adapted(stride=2), [(point, frame_labels)], "frame")
    assert labels.tolist() == [0, 2, 4, 6, 8, 10] and every_other.shape[1:] == (16, 3, 48)
    halves = (point.coord[:, 2] > point.coord[:, 2].median()).long()
    tokens, labels = observe(model, [(point, halves)], "token")
    assert tokens.shape[1:] == (1, 3, 48) and set(labels.tolist()) == {0, 1} and 150 < len(labels) < 12 * 16
    with pytest.raises(UserError, match="12 labels"):
        observe(model, [(point, frame_labels.flatten())])
    with pytest.raises(UserError, match="no labelled clips"):
        observe(model, [(point, torch.tensor([-1, -1]))])


def test_the_label_of_a_group_is_its_majority():
    """8 points at each of 16 places, far apart: every place is one group."""
    places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0), torch.zeros(1)) * 10
    cloud = (places[:, None] + 0.1 * torch.randn(16, 8, 3, generator=torch.Generator().manual_seed(0))).flatten(0, 1)
    model = adapted()
    adapter, base, _ = clip_tokens(model)
    point = packed([cloud], 1)
    out, *_ = adapter.observe(base, point)
    label = torch.zeros(16, 8, dtype=torch.long)
    label[0], label[1] = torch.tensor([1] * 5 + [0] * 3), torch.tensor([1] * 4 + [0] * 4)
    label[2], label[3] = torch.tensor([-1] * 5 + [2] * 3), torch.tensor([-1] * 4 + [2] * 4)
    found = group_labels(point, out.center, 8, label.flatten())[0]
    by_place = {int((places - c).norm(dim=1).argmin()): int(v) for c, v in zip(out.center[0], found, strict=True)}
    assert [by_place[i] for i in range(5)] == [1, -1, -1, 2, 0]


def test_stage_one_of_a_pyramid():
    """Its tokens are the samples; nothing but the pyramid changes, and the model's tokens are what was aligned."""
    torch.manual_seed(0)
    plain = VideoSegmentation(net(), 3, head="slim", points=256)
    model = adapt(plain, METHODS["pointata"](rank=8)).eval()
    with pytest.raises(UserError, match="no labelled clips"):
        observe_pyramid(model, [(video(1, 3, 256), torch.full((768,), -1))])

    def third(point):  # classes by height
        order = point.coord[:, 2].argsort().argsort()
        return order * 3 // len(order)

    clips = [(point, third(point)) for point in (video(2, 3, 256, seed) for seed in (1, 2))]
    samples, labels = observe_pyramid(model, clips)
    assert len(samples.clips) == 4 and samples.place[:, 0].unique().tolist() == [0, 1, 2, 3]
    assert len(samples) == len(labels) > 12 and set(labels.tolist()) <= {0, 1, 2}
    samples.at_once = 2
    drawn = samples.draw(labels.numpy(), 9, 0)
    assert len(samples.place[drawn, 0].unique()) == 2
    rows = torch.tensor([len(samples) - 1, 0, 5])
    with torch.no_grad():
        found = samples.features(pyramid_of(model), rows)
        for row, feature in zip(samples.place[rows], found, strict=True):
            tokens = pyramid_of(model)(samples.clips[row[0]]).extra["patches"].feat
            torch.testing.assert_close(feature, tokens.flatten(0, 1)[row[1]], atol=1e-5, rtol=1e-5)
    draw = torch.Generator().manual_seed(0)
    source = 0.3 + 0.1 * torch.randn(60, 48, generator=draw), torch.arange(60) % 3
    before = {k: v.clone() for k, v in model.state_dict().items()}
    how = Align(epochs=4, steps=5, lr=2e-2, source_batch=40, subset=40, per_class=32)
    told = align_model(model, clips, *source, "token", how)
    assert told.distance[-1] < 0.5 * told.distance[0]
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(".pyramid.modules_to_save.default." in k for k in changed)
    assert all(torch.equal(pyramid_of(model).state_dict()[k], v) for k, v in told.state.items())
    assert all(p.grad is None for p in model.parameters())  # none is left for the first step of training
    place(
        model, {k.partition(".default.")[2]: v for k, v in before.items() if ".pyramid.modules_to_save.default." in k}
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_source_is_seen_by_the_frozen_tokenizer(tmp_path):
    model = stirred(adapted())
    found, names = source_features(model, limit=30, seed=4)
    plain, _ = source_features(net(), limit=30, seed=4)
    assert torch.equal(found, plain)
    coord, label = shapes(4, 30)
    assert names == [SHAPE_CLASSES[y] for y in label]
    x, y, z = torch.from_numpy(coord[7]).T
    one = net().tokenizer(packed([torch.stack([x, z, -y], 1)], 1))  # z up in the shapes, y up in the model
    torch.testing.assert_close(found[7], one.part("patch").detach().mean((0, 1)))
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for i in range(3):
            np.save(tmp_path / kind / f"{i}.npy", coord[i])
    (tmp_path / "dataset.yaml").write_text(
        "task: classification\nclasses: [a, b]\npoints: 128\nsplits: {train: ['.']}\n"
    )
    found, names = source_features(model, tmp_path)
    assert found.shape == (6, 48) and sorted(set(names)) == ["a", "b"]


def test_refusals():
    plain = adapt(task(), METHODS["linear"]())
    with pytest.raises(UserError, match="nothing to align"):
        observe(plain, [(video(), torch.tensor([0, 1]))])
    with pytest.raises(UserError, match="nothing to align"):
        clip_tokens(adapted(pae="none"))
    samples, labels, *source = toy()
    with pytest.raises(UserError, match="99 entries for 100 samples"):
        align(fresh(), samples, labels[:99], *source)
    with pytest.raises(UserError, match="no class of at least 2"):
        align(fresh(), samples[:3], labels[:3], *source, QUICK)
    with pytest.raises(UserError, match="objective"):
        Align(objective="half")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="epochs"):
        Align(epochs=0)
    pae = fresh()
    twin = copy.deepcopy(pae)
    align(pae, samples, labels, *source, Align(epochs=1, steps=1, subset=50, source_batch=50))
    assert not torch.equal(pae.up.weight, twin.up.weight)
