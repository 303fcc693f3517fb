import pytest
import torch
import torch.nn.functional as F

from pointadapt.backbones.object_weights import build_objects
from pointadapt.backbones.point_vit import PointViTConfig
from pointadapt.backbones.weights import load_backbone
from pointadapt.errors import UserError
from pointadapt.methods import METHODS, adapt, load_adapted
from pointadapt.point import Point, collate
from pointadapt.tasks.parts import PartSegmentation, thirds

SMALL = dict(groups=10, group_size=6, channels=24, depth=3, heads=2, embed_channels=24, embed_hidden=(8, 16, 24))
CATEGORIES = {"chair": (0, 1, 2), "lamp": (3, 4), "mug": (5, 6)}
FAMILIES = {
    "vit": PointViTConfig(**SMALL, cls_tokens=0),
    "with cls": PointViTConfig(**SMALL),
    "recon": PointViTConfig(**SMALL, family="recon", cls_tokens=3),
    "gpt": PointViTConfig(**SMALL, family="gpt", qkv_bias=True),
}


def model_of(name: str = "vit", categories=CATEGORIES, **more) -> PartSegmentation:
    torch.manual_seed(0)
    backbone = build_objects(FAMILIES[name])
    model = PartSegmentation(backbone, 7, categories, **more)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def shapes(*sizes: int, category=None) -> Point:
    draw = torch.Generator().manual_seed(0)
    coords = [torch.randn(size, 3, generator=draw) for size in sizes]
    point = collate([Point(c, c, torch.tensor([len(c)])) for c in coords])
    category = torch.arange(len(sizes)) % 3 if category is None else torch.tensor(category)
    return point.but(extra={"category": category})


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sizes", [(50, 50, 50), (30, 80, 12)])
def test_a_shape_alone_is_as_in_a_batch(name, sizes):
    model = model_of(name)
    point = shapes(*sizes)
    together = model(point)
    assert together.shape == (sum(sizes), 7)
    for one, category, part in zip(point.split(), (0, 1, 2), together.split(list(sizes)), strict=True):
        alone = model(one.but(extra={"category": torch.tensor([category])}))
        torch.testing.assert_close(alone, part, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_order_of_points_moves_their_rows_alone():
    model, point = model_of(), shapes(60)
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    mixed = Point(point.coord[rows], point.coord[rows], point.offset, extra=point.extra)
    torch.testing.assert_close(model(mixed), model(point)[rows], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_head_is_the_published_one_written_out():
    """Concatenate first, multiply then: what the head does in a cheaper order."""
    model, point = model_of(), shapes(40, 55)
    head = model.head
    found = model(point)
    tapped = model.backbone.taps(point, (0, 1, 2))
    feat = torch.cat([t.part("patch") for t in tapped], 2)
    label = head.label(F.one_hot(point.extra["category"], 3).float())
    whole = torch.cat([feat.amax(1), feat.mean(1), label], 1)
    expected = []
    for row, coord in enumerate(point.coord.split([40, 55])):
        distance = torch.cdist(coord, tapped[-1].center[row], compute_mode="donot_use_mm_for_euclid_dist").square()
        near, index = distance.topk(3, largest=False)
        weight = 1 / (near + 1e-8)
        spread = (feat[row][index] * (weight / weight.sum(1, keepdim=True))[..., None]).sum(1)
        x = F.relu(head.enter_norm(head.enter(torch.cat([coord, spread], 1))))
        x = torch.cat([head.point(x), whole[row].expand(len(coord), -1)], 1)
        expected.append(head.out(F.relu(head.join_norm(head.join(x)))))
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_taps_are_the_ends_of_equal_thirds():
    assert thirds(12) == [3, 7, 11] and thirds(24) == [7, 15, 23] and thirds(4) == [0, 2, 3] and thirds(1) == [0]
    assert model_of(taps=(2, 0)).taps == (0, 2)
    assert model_of(taps=(2,)).head.enter.in_features == model_of(taps=(2, 2)).head.enter.in_features == 27
    for taps in ((3,), (-1, 2), ()):
        with pytest.raises(UserError, match=r"taps must name blocks of the backbone, 0\.\.2"):
            model_of(taps=taps)


def test_without_categories_there_is_no_label():
    model = model_of(categories=None)
    assert not hasattr(model.head, "label")
    point = shapes(40).but(extra={})
    with torch.no_grad():
        assert torch.equal(model.predict(point), model(point).argmax(1))


def test_size_without_label_is_that_of_the_indoor_head():
    """The last layers read 1024 + 2304 = 3328 channels, of 13 classes."""
    with torch.device("meta"):
        model = PartSegmentation(build_objects(PointViTConfig(cls_tokens=0)), 13, None)
    assert model.head.join.in_features == 3328 and model.head.out[3].out_features == 13


def test_recon_reads_its_global_tokens_too():
    with torch.device("meta"):
        config = load_backbone("recon", weights=None).config
        model = PartSegmentation(build_objects(config), 50, {str(n): () for n in range(16)})
    assert model.head.join.in_features == 3776


@torch.no_grad()
def test_a_method_may_leave_the_summary():
    model = model_of(read=["extra prompts", "max"])
    wide = 3 * 24

    def leave(module, inputs, out):
        return out.but(extra={**out.extra, "prompts": torch.full((2, wide), 3.0)})

    model.backbone.blocks[2].register_forward_hook(leave)
    seen = []
    model.head.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[3]))
    model(shapes(30, 40))
    assert seen[0].shape == (2, 2 * wide) and (seen[0][:, :wide] == 3).all()


def test_loss_and_restriction():
    model = model_of()
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    segment = torch.tensor([0, 1, -1, 3, 5, 6])
    kept = segment >= 0
    expected = F.nll_loss(logits.log_softmax(1)[kept], segment[kept])
    torch.testing.assert_close(model.loss(logits, segment), expected)
    assert model.loss(logits, torch.full((6,), -1)) == 0
    restricted = model.restrict(logits, torch.tensor([0, 0, 1, 1, 2, 2]))
    for row, own in enumerate([(0, 1, 2)] * 2 + [(3, 4)] * 2 + [(5, 6)] * 2):
        assert restricted[row].isfinite().nonzero().flatten().tolist() == list(own)
        assert torch.equal(restricted[row, list(own)], logits[row, list(own)])
    with torch.no_grad():
        found = model.predict(shapes(30, 40, 20)).split([30, 40, 20])
    for parts, own in zip(found, CATEGORIES.values(), strict=True):
        assert set(parts.tolist()) <= set(own)


def test_what_a_user_gets_wrong():
    with pytest.raises(UserError, match="use pa.Segmentation"):
        PartSegmentation(load_backbone("nano", weights=None), 7, CATEGORIES)
    with pytest.raises(UserError, match=r"name the parts \[7\], there are only 0..6"):
        model_of(categories={"chair": (6, 7)})
    with pytest.raises(UserError, match="must give the category of every cloud"):
        model_of()(shapes(30).but(extra={}))
    with pytest.raises(UserError, match="index into chair, lamp, mug"):
        model_of()(shapes(30, 40, category=[1]))


@pytest.mark.parametrize("name", ["lora", "adapter"])
def test_adapters_train_save_and_load(tmp_path, name):
    torch.manual_seed(0)
    model = adapt(model_of(), METHODS[name]())
    task, point = model.get_base_model(), shapes(40, 50)
    frozen = {k: v.clone() for k, v in task.backbone.state_dict().items() if "adapter" not in k and "lora" not in k}
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = task.loss(model(point), (point.coord[:, 0] > 0).long())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    state = task.backbone.state_dict()
    assert all(torch.equal(state[k], v) for k, v in frozen.items())
    model.eval().save_pretrained(tmp_path)
    again = load_adapted(model_of(), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(point), model(point))
    with pytest.raises(UserError, match="already there read max, mean"):
        task.read_from(["max"])


def test_a_new_head_is_made_where_the_backbone_is():
    model = model_of().to("meta")  # in place of a GPU
    model.read_from(["mean"])
    assert all(p.is_meta for p in model.head.parameters())
