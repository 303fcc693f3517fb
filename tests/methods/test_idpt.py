"""IDPT: counts, the generators against their formula, where the prompt stands, part segmentation."""

import pytest
import torch
import torch.nn.functional as F

from contracts import cloud, logits, tiny
from methods.objects import FAMILIES, alone, clouds, official, parts, published_names, small, trained
from parity import idpt
from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.backbones.ptv3 import PTv3, PTv3Config
from pointadapt.errors import UserError
from pointadapt.methods import adapt, load_adapted
from pointadapt.methods.idpt import DGCNN, GENERATORS, READS, Edges, IDPTConfig, feature_neighbors
from pointadapt.ops.order import curve_order
from pointadapt.point import collate
from pointadapt.tasks.parts import PartSegmentation
from pointadapt.tasks.segmentation import Segmentation


def test_counts_at_official_size():
    model = official(IDPTConfig())
    assert trained(model) == 1_696_783
    assert trained(model, ".head.") == 365_839
    assert trained(model, "idpt_adapter") == 9 * 384**2 + 8 * 384
    assert trained(official(IDPTConfig(prompt_pos="trained"))) == 1_696_783 + 384
    light = trained(official(IDPTConfig(module="dgcnn_light")), "idpt_adapter")
    assert light == 384**2 + 2 * 384
    with torch.device("meta"):
        net = PointViT(PointViTConfig(groups=128, cls_tokens=0))
        model = adapt(PartSegmentation(net, 50, {str(n): () for n in range(16)}), IDPTConfig())
    unused = 3 * 2 * 384  # BatchNorms of the release that nothing passes
    assert trained(model) == 5_686_066 - unused
    assert trained(model, "generator") == 3 * light and trained(model, "idpt_shared") == 384


def test_trains_what_the_release_trains():
    ours, published = published_names("idpt", ("cls",), idpt.make, idpt.namer)
    assert ours == published


@pytest.mark.parametrize("training", [True, False])
def test_edges_are_a_layer_on_differences_and_centres(training):
    torch.manual_seed(0)
    layer = Edges(6, 4).train(training)
    torch.nn.init.normal_(layer.norm.weight)  # negative scales: the maximum must stand behind the norm
    x = torch.randn(3, 9, 6)
    distance = (x[:, :, None] - x[:, None]).square().sum(-1)
    index = distance.argsort(-1)[..., :4]
    edges = []
    for b in range(3):
        near, own = x[b][index[b]], x[b][:, None].expand(-1, 4, -1)
        edges.append(torch.cat([near - own, own], -1))
    y = layer.linear(torch.stack(edges))
    y = F.batch_norm(
        y.view(-1, 6),
        None if training else layer.norm.running_mean.clone(),
        None if training else layer.norm.running_var.clone(),
        layer.norm.weight,
        layer.norm.bias,
        training,
    ).view_as(y)
    torch.testing.assert_close(layer(x), F.leaky_relu(y, 0.2).amax(2))


def test_neighbours_are_of_the_same_cloud_and_the_token_itself_is_one():
    x = torch.randn(2, 7, 5)
    index = feature_neighbors(x, 3)
    assert torch.equal(index[..., 0], torch.arange(7).expand(2, -1))
    assert torch.equal(feature_neighbors(x[1:], 3)[0], index[1])


@pytest.mark.parametrize("module", GENERATORS)
def test_generators_make_one_token_that_does_not_depend_on_the_order(module):
    torch.manual_seed(0)
    generator = GENERATORS[module](32, 5).eval()
    x = torch.randn(2, 9, 32)
    prompt = generator(x)
    assert prompt.shape == (2, 1, 32)
    torch.testing.assert_close(generator(x[:, torch.randperm(9)]), prompt, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(generator(x[1:]), prompt[1:])
    model = adapt(small(), IDPTConfig(module=module)).train()
    point = clouds()
    loss = model.get_base_model().loss(model(point), torch.tensor([0, 1, 2]))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("layer", [1, -2])
def test_the_prompt_enters_at_its_layer(layer):
    model = adapt(small(), IDPTConfig(layer=layer)).eval()
    backbone, point = model.get_base_model().backbone, clouds()
    assert [n for n, _ in model.named_modules() if n.endswith(".generator")] == [
        "base_model.model.backbone.blocks.1.idpt_adapter.default.generator"
    ]
    entered, first, second, last = backbone.enter(point), *backbone.stages(point)
    assert entered.layout == first.layout == (("cls", 1), ("patch", 12))
    assert second.layout == last.layout == (("cls", 1), ("prompt", 1), ("patch", 12))
    adapter = backbone.blocks[1].adapters["default"]
    prompt = adapter.generator(first.part("patch"))
    with_it = first.insert("prompt", prompt, adapter.place.pos, before="patch")
    torch.testing.assert_close(backbone.blocks[1].base_layer(with_it).feat, second.feat)


def test_what_the_head_reads():
    for cls_type, read in READS.items():
        model = adapt(small(), IDPTConfig(cls_type=cls_type)).eval().get_base_model()
        assert list(model.read) == read
        assert model.head.modules_to_save["default"].layers[0].in_features == 32 * len(read)
    assert adapt(small(), IDPTConfig(read=["max prompt"])).get_base_model().read == ("max prompt",)


def test_a_frozen_position_is_in_the_file(tmp_path):
    model = adapt(small(), IDPTConfig()).eval()
    assert not any("place" in n for n, p in model.named_parameters())
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    again = load_adapted(small(), tmp_path)
    assert torch.equal(logits(again, clouds()), logits(model, clouds()))
    learned = adapt(small(), IDPTConfig(prompt_pos="trained"))
    assert any("place.pos" in n for n, p in learned.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_works_in_every_family(family):
    model = adapt(small(family), IDPTConfig()).eval()
    point = clouds()
    together = logits(model, point)
    for index, one in enumerate(point.split()):
        torch.testing.assert_close(logits(model, one)[0], together[index], atol=1e-5, rtol=1e-5)
    before = model.get_base_model().backbone(point).part("patch")
    with torch.no_grad():
        model.get_base_model().backbone.blocks[2].adapters["default"].place.pos.normal_()
    after = model.get_base_model().backbone(point).part("patch")
    assert (before - after).abs().amax((0, 2)).min() > 1e-4  # every group sees it, also under PointGPT's mask


def test_part_segmentation_has_a_prompt_for_every_tap(tmp_path):
    model = adapt(parts(), IDPTConfig()).eval()
    task, point = model.get_base_model(), clouds()
    backbone = task.backbone
    expected_prompts, expected_outputs = [], []
    tokens = backbone.enter(point)
    for block in backbone.blocks:  # every block is tapped: depth 3
        adapter = block.adapters["default"]
        prompt = adapter.generator(tokens.part("patch"))
        seen = block.base_layer(tokens.insert("prompt", prompt, adapter.shared().pos, before="patch"))
        expected_prompts.append(backbone.final_norm(prompt)[:, 0])
        expected_outputs.append(backbone.final_norm(seen.part("prompt"))[:, 0])
        tokens = seen.drop("prompt")
    last = backbone.taps(point, task.taps)[-1]
    assert last.layout == (("cls", 1), ("patch", 12))
    torch.testing.assert_close(last.extra["idpt prompts"], torch.cat(expected_prompts, 1))
    torch.testing.assert_close(last.extra["idpt outputs"], torch.cat(expected_outputs, 1))
    together = logits(model, point).split(point.counts)
    for index in range(3):
        torch.testing.assert_close(logits(model, alone(point, index)), together[index], atol=1e-5, rtol=1e-5)
    task.loss(model.train()(point), torch.zeros(len(point), dtype=torch.long)).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapted(parts(), tmp_path), point), logits(model, point))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="layer must be a block"):
        adapt(small(), IDPTConfig(layer=3))
    with pytest.raises(UserError, match="module must be one of"):
        IDPTConfig(module="cnn")
    with pytest.raises(UserError, match="which has 4, not 4"):
        adapt(tiny("m2"), IDPTConfig(layer=4))
    with pytest.raises(UserError, match="no module of PTv3"):  # the last block is in the other stage
        adapt(tiny("m2"), IDPTConfig(stages=[0]))
    assert adapt(tiny("m2"), IDPTConfig(stages=[1])).base_model.targeted_module_names == [
        "backbone.enc.1.blocks.1.mix.attn"
    ]
    with pytest.raises(UserError, match="tokens must be at least 2"):
        IDPTConfig(tokens=1)
    assert DGCNN(8, 50)(torch.randn(2, 4, 8)).shape == (2, 1, 8)  # fewer tokens than neighbours


def test_counts_on_sonata_base():
    """One DGCNN at the last stage's width. The published 2.61 M is the sum with a head for 200 classes, not for 20."""
    with torch.device("meta"):
        model, for_200 = (adapt(Segmentation(PTv3(PTv3Config()), classes), IDPTConfig()) for classes in (20, 200))
    assert trained(model, "idpt_adapter") == 9 * 512**2 + 8 * 512 == 2_363_392
    assert trained(model) == 2_363_392 + 24_660
    assert trained(for_200) == 2_363_392 + 1232 * 200 + 200 == 2_609_992
    assert model.base_model.targeted_module_names == ["backbone.enc.4.blocks.2.mix.attn"]


def test_a_scene_s_prompt_is_made_of_its_points_for_one_block():
    torch.manual_seed(0)
    model = adapt(tiny("m2"), IDPTConfig(layer=1, tokens=8)).eval()
    assert model.base_model.targeted_module_names == ["backbone.enc.0.blocks.1.mix.attn"]
    layer = model.get_base_model().backbone.enc[0].blocks[1].mix.attn
    adapter, attn = layer.adapters["default"], layer.base_layer
    point = collate([cloud(20, 3, 16), cloud(1, 5, 16), cloud(30, 4, 16)]).but(extra={"curve": "hilbert"})
    order = curve_order(point, "hilbert")[0]
    chosen = [[order[s + i * n // 8] for i in range(8)] for s, n in ((0, 20), (20, 1), (21, 30))]
    prompts = adapter.generator(point.feat[torch.tensor(chosen)])  # [3, 1, 16]
    with torch.no_grad():
        _, key, value = attn.qkv(prompts).chunk(3, -1)
        assert torch.equal(layer(point).feat, attn(point, prompt=(key, value)).feat)
        assert not torch.allclose(layer(point).feat, attn(point).feat)
    empty = collate([cloud(20, 3, 16), cloud(0, 1, 16)]).but(extra={"curve": "hilbert"})
    with torch.no_grad():
        torch.testing.assert_close(layer(empty).feat, layer(point).feat[:20], atol=1e-6, rtol=1e-5)
        assert layer(cloud(0, 1, 16).but(extra={"curve": "hilbert"})).feat.shape == (0, 16)
