import math

import pytest
import torch
import torch.nn.functional as F

from pointadapt.backbones.object_weights import build_objects
from pointadapt.backbones.point_vit import PointViTConfig
from pointadapt.backbones.weights import load_backbone
from pointadapt.errors import UserError
from pointadapt.methods import adapt
from pointadapt.methods.adapters import LinearConfig
from pointadapt.point import Point, collate
from pointadapt.tasks.classification import Classification, readout
from pointadapt.tokens import Tokens

SMALL = PointViTConfig(
    groups=10, group_size=6, channels=24, depth=2, heads=2, embed_channels=24, embed_hidden=(8, 16, 24)
)


def backbone(seed: int = 0):
    torch.manual_seed(seed)
    return build_objects(SMALL).eval()


def clouds(*sizes: int) -> Point:
    draw = torch.Generator().manual_seed(0)
    coords = [torch.randn(size, 3, generator=draw) for size in sizes]
    return collate([Point(c, c, torch.tensor([len(c)])) for c in coords])


def tokens() -> Tokens:
    feat = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    vector = torch.ones(2, 4)
    return Tokens(feat, (("cls", 1), ("prompt", 2), ("patch", 3)), extra={"shape": vector})


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("cls", lambda x: x[:, 0]),
        ("prompt", lambda x: x[:, 1:3].flatten(1)),
        ("max patch", lambda x: x[:, 3:].amax(1)),
        ("mean prompt", lambda x: x[:, 1:3].mean(1)),
        ("max", lambda x: x.amax(1)),
        ("mean", lambda x: x.mean(1)),
        ("max+mean", lambda x: x.amax(1) + x.mean(1)),
        ("extra shape", lambda x: torch.ones(2, 4)),
    ],
)
def test_readout_of_tokens(part, expected):
    found = readout(tokens(), [part])
    assert torch.equal(found, expected(tokens().feat))
    assert torch.equal(readout(tokens(), ["cls", part])[:, 4:], found)


def test_readout_of_points():
    point = clouds(3, 5)
    expected = torch.cat([point.feat[3:].amax(0), point.feat[3:].mean(0)])
    torch.testing.assert_close(readout(point, ["max", "mean"])[1], expected)


def test_one_row_a_cloud_of_either_kind_of_backbone():
    point = clouds(40, 70, 25)
    with torch.no_grad():
        assert Classification(backbone(), ["a", "b", "c"]).eval()(point).shape == (3, 3)
    scenes = load_backbone("nano", weights=None)
    model = Classification(scenes, 5).eval()
    feat = torch.randn(len(point), 9)
    with torch.no_grad():
        assert model(point.but(feat=feat, coord=point.coord, grid_size=0.1)).shape == (3, 5)


@pytest.mark.parametrize(
    ("head", "parameters"),
    [("mlp3", 256 * 48 + 256 * 257 + 1024 + 256 + 771), ("mlp2", 256 * 49 + 771), ("linear", 147)],
)
def test_head_sizes(head, parameters):
    """256 (k C + 1) + 2 x 512 + 256 x 257 + n x 257 for k parts and n classes."""
    model = Classification(backbone(), 3, head=head)
    assert sum(p.numel() for p in model.head.parameters()) == parameters


def test_unknown_head_and_too_few_classes_are_refused():
    with pytest.raises(UserError, match="mlp3, mlp2, linear"):
        Classification(backbone(), 3, head="mlp4")
    with pytest.raises(UserError, match="two classes"):
        Classification(backbone(), ["one"])


def test_smoothing_and_auxiliary_losses():
    model = Classification(backbone(), 4, smoothing=0.2)
    logits, label = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    plain = F.cross_entropy(logits, label, label_smoothing=0.2)
    assert torch.equal(model.loss(logits, label), plain)

    def leave(module, inputs, out):
        return out.but(extra={**out.extra, "losses": {"one": out.feat.sum() * 0 + 2, "other": torch.tensor(1.0)}})

    handle = model.backbone.register_forward_hook(leave)
    point, target = clouds(40, 50), torch.tensor([0, 1])
    logits = model(point)
    both = model.loss(logits, target)
    torch.testing.assert_close(both, F.cross_entropy(logits, target, label_smoothing=0.2) + 3)
    torch.testing.assert_close(model.loss(logits, target), both - 3)  # of the last forward pass alone
    with torch.no_grad():
        model(point)
    assert model.auxiliary is None
    handle.remove()


@pytest.mark.parametrize(("smoothing", "least"), [(0.2, 0.587), (0.2 * 4 / 3, 0.720)])
def test_smoothing_is_spread_over_all_classes_and_the_published_form_is_its_conversion(smoothing, least):
    """The least loss there is, for 4 classes: 0.720 where 0.2 goes to the other three, as published."""
    model, label = Classification(backbone(), 4, smoothing=smoothing), torch.tensor([0, 3])
    target = F.one_hot(label, 4) * (1 - smoothing) + smoothing / 4
    assert float(model.loss(target.log(), label)) == pytest.approx(least, abs=1e-3)
    assert float(model.loss(torch.full((2, 4), 7.0), label)) == pytest.approx(math.log(4))


def test_other_parts_to_read_make_a_new_head():
    model = Classification(backbone(), 3)
    first = model.head
    model.read_from(["cls", "max patch"])
    assert model.head is first
    model.read_from(["cls", "max patch", "mean patch"])
    assert model.head is not first and model.head.layers[0].in_features == 72
    adapt(model, LinearConfig())
    with pytest.raises(UserError, match="head reads cls, the adapters already there read cls, max patch, mean patch"):
        model.read_from(["cls"])


def test_a_head_knows_its_backbone():
    saved = Classification(backbone(), 3).state_dict()
    with pytest.raises(UserError, match="trained on other backbone weights"):
        Classification(backbone(1), 3).load_state_dict(saved)


def test_class_tokens_are_trained_with_the_head_and_no_other_part():
    model = adapt(Classification(backbone(), 3), LinearConfig())
    trained = {
        name.split(".modules_to_save")[0].split(".")[-1] for name, p in model.named_parameters() if p.requires_grad
    }
    assert trained == {"head", "cls"}


def test_published_count_of_the_linear_probe():
    """Head only ("MLP-3"): 268,303 = 267,535 of the head + 768 of the class token and its position."""
    model = adapt(Classification(build_objects(PointViTConfig()), 15), LinearConfig())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 268_303
