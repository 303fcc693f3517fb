"""PointLoRA: counts, what learns from what, selection at two scales, scenes."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from contracts import batch, cloud, logits, tiny, train
from pointadapt.backbones.point_gpt import PointGPT
from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.backbones.recon import ReCon
from pointadapt.errors import UserError
from pointadapt.methods import adapt
from pointadapt.methods.pointlora import PointLoRAConfig, Selection, TokenMLPs, scaled_groups
from pointadapt.ops.neighbors import group
from pointadapt.point import Point, collate
from pointadapt.tasks.classification import Classification, readout
from pointadapt.tasks.parts import PartSegmentation

#: Published trainable parameters by part, official size.
PUBLISHED = {
    ".qkv.pointlora_adapter": 36_864 + 110_592,
    ".proj.pointlora_adapter": 36_864 + 36_864,
    ".patch.": 24_992,
    ".selected.": 24_992,
    ".from384to384.": 24_992,
    ".from384to1152.": 12_320 + 38_016,
    ".scorer.": 74_113,
    ".pos.pointlora_adapter": 50_048,
    ".first.pointlora_adapter": 33_792,
    ".cls.": 768,
    ".head.": 267_535,
}


def small(family=PointViT, **changes):
    torch.manual_seed(0)
    sizes = dict(groups=12, group_size=8, channels=32, depth=3, heads=2, embed_channels=32, embed_hidden=(8, 16, 32))
    config = PointViTConfig(**{**sizes, "cls_tokens": 3 if family is ReCon else 1, **changes})
    return Classification(family(config), 4).eval()


def test_counts_on_point_mae():
    with torch.device("meta"):
        model = adapt(Classification(PointViT(PointViTConfig()), 15), PointLoRAConfig())
    found = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(found.values()) == 772_752
    for mark, count in PUBLISHED.items():
        assert sum(n for name, n in found.items() if mark in name) == count, mark
    assert sum(PUBLISHED.values()) == 772_752


def test_counts_on_a_scene_backbone():
    model = adapt(tiny("m2"), PointLoRAConfig(r=3, hidden=5))
    found = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad and ".head." not in n}
    widths = [16, 32]
    low_rank = sum(2 * (3 * (c + 3 * c) + 3 * 2 * c) for c in widths)  # two blocks a stage
    shared = sum((5 * c + 5) + (5 * 3 * c + 3 * c) + (5 * c + 5) + (5 * c + c) for c in widths)
    assert sum(found.values()) == low_rank + shared
    assert model.peft_config["default"].read is None


def test_selected_tokens_are_the_best_of_both_scales():
    model = small()
    adapted = adapt(model, PointLoRAConfig(select=[5, 3])).eval()
    coord = torch.randn(4 * 80, 3, generator=torch.Generator().manual_seed(0))
    point = Point(coord, coord, torch.arange(1, 5) * 80)
    selection = model.backbone.tokenizer.adapters["default"]
    fine, coarse = selection.both_scales(model.backbone.tokenizer.base_layer(point), point)
    assert (fine.count("patch"), coarse.count("patch")) == (12, 6)
    tokens = model.backbone.tokenizer(point)
    assert tokens.layout == (("patch", 12), ("selected", 8))
    for scale, rows in ((fine, slice(12, 17)), (coarse, slice(17, 20))):
        score = selection.scorer(scale.feat).squeeze(-1)
        best = score.argsort(1, descending=True)[:, : rows.stop - rows.start]
        for b in range(4):
            torch.testing.assert_close(tokens.feat[b, rows], scale.feat[b, best[b]])
            torch.testing.assert_close(tokens.pos[b, rows], scale.pos[b, best[b]])
    p1, p2 = (selection.scorer(s.feat).squeeze(-1).sigmoid() for s in (fine, coarse))
    entropy = [(p * p.log() + (1 - p) * (1 - p).log()).mean() for p in (p1, p2)]
    adapted(point)
    torch.testing.assert_close(model.auxiliary, 0.004 * (entropy[0] + 0.6 * entropy[1]))


def test_scorer_learns_from_its_own_loss_alone():
    model = small()
    adapted = adapt(model, PointLoRAConfig())
    point, label = batch(model), torch.arange(4)
    out = adapted(point)
    scorer = list(model.backbone.tokenizer.adapters["default"].scorer.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(out, label), scorer, retain_graph=True)
    assert not any(g.any() for g in gradients)
    model.loss(out, label).backward()
    assert all(p.grad.abs().sum() > 0 for p in scorer)


def test_token_mlps_see_tokens_with_their_positions():
    model = small()
    adapt(model, PointLoRAConfig())
    layer = model.backbone.blocks[0].adapters["default"]
    assert isinstance(layer, TokenMLPs)
    tokens = model.backbone.enter(batch(model))
    seen = []
    out = layer(lambda t: seen.append(t) or t, tokens)
    placed = tokens.feat + tokens.pos
    expected = placed.clone()
    for part in ("patch", "selected"):
        rows = tokens.rows(part)
        expected[:, rows] += layer.shared()[part](placed[:, rows])
    torch.testing.assert_close(seen[0].feat, expected)
    assert seen[0].pos is None and out.pos is tokens.pos  # added once in this block, and again in the next


def test_head_reads_the_maximum_over_groups_and_selected_tokens():
    model = small()
    adapted = adapt(model, PointLoRAConfig()).eval()
    tokens = model.backbone(batch(model))
    expected = torch.cat([tokens.part("cls").flatten(1), tokens.feat[:, 1:].amax(1)], 1)
    assert torch.equal(readout(tokens, model.read), expected)
    with adapted.disable_adapter():
        assert adapted(batch(model)).isfinite().all()


def test_small_clouds_have_coarse_groups_of_all_their_points():
    point = collate([cloud(12, 1), cloud(60, 2)])
    found = scaled_groups(point, 6, 16, "clean")
    assert found.coord.shape == (2, 6, 16, 3)
    assert torch.equal(found.coord[1:], group(cloud(60, 2), 6, 16).coord)
    assert all(len(set(rows.tolist())) == 12 for rows in found.index[0])
    assert scaled_groups(cloud(60, 2), 6, 16, "clean").coord.shape == (1, 6, 16, 3)


def test_frozen_gate_weighs_the_shared_mlp():
    model = small()
    adapt(model, PointLoRAConfig())
    layer = model.backbone.blocks[0].mix.attn.qkv
    x = torch.randn(2, 5, 32)
    adapter = layer.adapters["default"]
    shared = adapter.shared()[adapter.key](x)
    one = layer(x)
    adapter.gate = 0.0
    torch.testing.assert_close(one - layer(x), shared)
    torch.nn.init.normal_(adapter.b)
    torch.testing.assert_close(layer(x) - layer.base_layer(x), x @ adapter.a.T @ adapter.b.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", [ReCon, PointGPT])
def test_other_transformers(family):
    model = small(family)
    adapted = adapt(model, PointLoRAConfig())
    train(adapted, 2)
    point = batch(model)
    together = logits(adapted.eval(), point)
    for one, row in zip(point.split(), together, strict=True):
        torch.testing.assert_close(logits(adapted, one)[0], row, atol=1e-5, rtol=1e-5)
    assert model.backbone(point).layout[-1] == ("selected", 18)  # 12 of 12 groups and 6 of 6


def test_part_segmentation_reads_as_without_a_method():
    sizes = small().backbone.config
    task = PartSegmentation(PointViT(replace(sizes, cls_tokens=0)), 5, None)
    read = task.read
    model, point = adapt(task, PointLoRAConfig()), batch(small())
    task.loss(model(point), torch.randint(0, 5, (len(point),))).backward()
    assert task.read == read and all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_batchnorm_of_the_trained_half_learns_and_is_saved(tmp_path):
    model = adapt(small(), PointLoRAConfig())
    train(model, 2)
    first = model.get_base_model().backbone.tokenizer.embed.first
    assert not torch.equal(first.adapters["default"].copy[1].running_mean, first.base_layer[1].running_mean)
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    assert any(
        "first.pointlora_adapter.copy.1.running_mean" in k for k in load_file(tmp_path / "adapter_model.safetensors")
    )
    assert json.loads((tmp_path / "adapter_config.json").read_text())["select"] == [32, 8]


@pytest.mark.parametrize(
    "options", [{"r": 0}, {"select": [3]}, {"select": [0, 2]}, {"scales": [64, 32]}, {"scales": [0, 1, 2, 3]}], ids=str
)
def test_wrong_options_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        PointLoRAConfig(**options)


def test_selection_is_a_part_of_the_tokenizer_without_owning_it():
    model = adapt(small(), PointLoRAConfig())
    selection = next(m for m in model.modules() if isinstance(m, Selection))
    assert {name.split(".")[0] for name, _ in selection.named_parameters()} == {"scorer"}
