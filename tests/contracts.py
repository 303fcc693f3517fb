"""What every method keeps, whatever it is: one body of checks, run over all of METHODS.

The test is tests/methods/test_contract.py. A check is a function of a :class:`Case`; ``CHECKS`` lists them.
"""

from __future__ import annotations

import copy
import functools
import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone
from pointadapt.backbones.point_gpt import PointGPT
from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.backbones.ptv3 import PTv3, PTv3Config
from pointadapt.backbones.recon import ReCon
from pointadapt.backbones.sparse_unet import SparseUNet, SparseUNetConfig
from pointadapt.errors import UserError
from pointadapt.methods import METHODS, adapt, load_adapted
from pointadapt.methods.core import AdapterLayer
from pointadapt.methods.from_peft import OF_PEFT
from pointadapt.point import Point, collate
from pointadapt.tasks.classification import Classification
from pointadapt.tasks.segmentation import Segmentation
from pointadapt.tasks.video import VideoClassification

SMALL = dict(stride=(2,), enc_depths=(2, 2), enc_channels=(16, 32), enc_num_head=(1, 2), enc_patch_size=(32, 32))
DECODER = dict(dec_depths=(1,), dec_channels=(16,), dec_num_head=(1,), dec_patch_size=(32,))

#: encoder of Sonata's kind with layer scale; classic PTv3: BatchNorm, convolution stem, decoder; Point-MAE; SparseUNet;
#: ReCon with its three class tokens; PointGPT
BACKBONES: dict[str, Any] = {
    "m2": PTv3Config(**SMALL, layer_scale=0.5),
    "m1": PTv3Config(**SMALL, **DECODER, generation="m1"),
    "vit": PointViTConfig(
        groups=12, group_size=8, channels=32, depth=3, heads=2, embed_channels=32, embed_hidden=(8, 16, 32)
    ),
    "unet": SparseUNetConfig(
        base_channels=12, enc_channels=(16, 24), enc_layers=(2, 1), dec_channels=(16, 20), dec_layers=(2, 1)
    ),
}
BACKBONES |= {
    "recon": replace(BACKBONES["vit"], cls_tokens=3),
    "gpt": BACKBONES["vit"],
    "video": BACKBONES["vit"],  # under a task on clips of frames
}
#: Methods that are held against clips as well: those that look through time, and their baselines.
ON_VIDEO = ("pointata", "st-adapter", "linear", "full")
NETWORK: dict[str, type[Backbone]] = {
    **{"m2": PTv3, "m1": PTv3, "unet": SparseUNet},
    **{"vit": PointViT, "recon": ReCon, "gpt": PointGPT, "video": PointViT},
}
KIND = {name: NETWORK[name].kind for name in BACKBONES}
#: How parameters of peft's own methods are called.
OF_PEFT_NAMES = (".lora_", ".vera_lambda_", ".randlora_")
#: Random matrices that they keep in their files, once for all layers.
RANDOM = ("base_model.vera_", "base_model.randlora_")


def tiny(backbone: str = "m2", classes: int = 4, seed: int = 0) -> Segmentation | Classification | VideoClassification:
    """A small random model, the same for the same seed, every weight away from its initial zeros and ones."""
    torch.manual_seed(seed)
    net = NETWORK[backbone](BACKBONES[backbone])
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    on_tokens = VideoClassification if backbone == "video" else Classification
    task = on_tokens if isinstance(net, PointViT) else Segmentation
    return task(net, classes).eval()


def cloud(points: int, seed: int, channels: int = 9) -> Point:
    """One cloud of ``points`` distinct voxels around a bumpy surface."""
    draw = torch.Generator().manual_seed(seed)
    side = int(points**0.5) + 2
    cells = torch.randperm(side * side, generator=draw)[:points]
    x, y = cells // side, cells % side
    z = (3 + 2 * torch.sin(x / 3) + torch.cos(y / 2)).round().long()
    grid = torch.stack([x, y, z], 1)
    feat = torch.randn(points, channels, generator=draw)
    return Point(grid * 0.02, feat, torch.tensor([points]), grid, grid_size=0.02)


def batch(task: nn.Module | None = None) -> Point:
    """Two clouds; four for a classification, whose head has BatchNorm; two clips of three frames for videos."""
    if isinstance(task, VideoClassification):
        frames = [cloud(size, seed) for seed, size in enumerate((60, 90, 70, 60, 100, 80), 1)]
        return collate(frames).but(extra={"frames": 3})
    sizes = (90, 140, 60, 100) if isinstance(task, Classification) else (90, 140)
    return collate([cloud(size, seed) for seed, size in enumerate(sizes, 1)])


def zero(x: Any) -> Any:
    """A frozen branch (of a Point or of Tokens) that adds nothing: what is left is the adapter's own."""
    return x.but(feat=torch.zeros_like(x.feat))


def on_a_curve(point: Point, curve: str = "z") -> Point:
    """The point as blocks get it that sort their windows along ``curve``."""
    return point.but(extra={"curve": curve})


def features(backbone: nn.Module, point: Point) -> Tensor:
    """What a task reads of a backbone."""
    with torch.no_grad():
        return backbone(point).feat if isinstance(backbone, PointViT) else backbone.dense(point)


@dataclass
class Case:
    """One method on one backbone, with a folder to write to."""

    method: str
    backbone: str
    folder: Path

    def plain(self) -> Segmentation | Classification | VideoClassification:
        return tiny(self.backbone)

    def batch(self) -> Point:
        return batch(self.plain())

    @property
    def config(self) -> type:
        return METHODS[self.method]

    @property
    def is_identity(self) -> bool:
        """Whether the untrained adapter changes nothing."""
        return getattr(self.config, "identity", True)

    @property
    def merges(self) -> bool:
        """Whether every adapter can be added to the frozen weights; LoRA and fully trained modules can."""
        layers = [m for m in self.adapted().modules() if isinstance(m, AdapterLayer)]
        return all(a.deltas(layer.base_layer) is not None for layer in layers for a in layer.adapters.values())

    @property
    def reads_its_own(self) -> bool:
        """Whether the head reads what only the adapter makes."""
        return bool(getattr(self.config(), "read", None))

    def adapted(self) -> PeftModel:
        torch.manual_seed(1)
        return adapt(self.plain(), METHODS[self.method]()).eval()

    def trained(self) -> PeftModel:
        return copy.deepcopy(trained(self.method, self.backbone))


@functools.cache
def trained(method: str, backbone: str) -> PeftModel:
    model = Case(method, backbone, Path()).adapted()
    train(model, 3)
    return model.eval()


def logits(model: nn.Module, point: Point) -> Tensor:
    with torch.no_grad():
        return model(point)


def train(model: PeftModel, steps: int, seed: int = 0) -> None:
    """A few steps of AdamW in train mode, with point dropping and all."""
    torch.manual_seed(seed)
    model.train()
    task = model.get_base_model()
    point = batch(task)
    rows = len(point) if isinstance(task, Segmentation) else point.num_clouds // point.extra.get("frames", 1)
    segment = torch.randint(0, 4, (rows,))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model(point), segment).backward()
        optimizer.step()


def frozen_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of the plain model inside an adapted one, under their plain names."""
    state = {}
    for name, value in model.state_dict().items():
        marks = ("_adapter.", ".modules_to_save.", *OF_PEFT_NAMES, ".vera_A.", ".vera_B.")
        if not any(mark in name for mark in marks):
            state[name.replace(".base_layer", "").replace(".original_module", "")] = value.clone()
    return state


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def is_wrapped(model: nn.Module) -> bool:
    return any(isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper) for m in model.modules())


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------------------------------------------------- checks


def trains_adapter_and_head_only(case: Case) -> None:
    model = case.adapted()
    names = trainable(model)
    assert any(".head.modules_to_save." in n for n in names)
    marks = ("_adapter.default", "_shared.default", ".modules_to_save.default", *OF_PEFT_NAMES)
    assert all(any(mark in n for mark in marks) for n in names)
    assert {n for n, _ in model.named_parameters() if any(m in n for m in marks)} == names
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert model.get_nb_trainable_parameters()[0] == trained > 0
    model.print_trainable_parameters()


def is_made_where_the_model_is(case: Case) -> None:
    """Adapters and a head that is built anew; a tensor left on the CPU shows as well beside meta as beside a GPU."""
    model = adapt(case.plain().to("meta"), METHODS[case.method]())
    assert not [name for name, value in [*model.named_parameters(), *model.named_buffers()] if not value.is_meta]


def is_identity_at_start(case: Case) -> None:
    if not case.is_identity:
        pytest.skip("the published method is none")
    point = case.batch()
    plain, model = case.plain(), case.adapted()
    assert torch.equal(logits(model, point), logits(plain, point))
    if case.method != "full":  # a fully trained BatchNorm uses the batch's statistics in train mode
        keep_norms(plain.train().backbone)
        for network in (plain, model.train()):
            for module in network.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0  # LoRA's dropout draws random numbers
        torch.manual_seed(3)
        expected = logits(plain, point)
        torch.manual_seed(3)
        if not (case.method == "decoder" and case.backbone in ("m1", "unet")):
            assert torch.equal(logits(model, point), expected)


def keep_norms(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    return model


def frozen_stays_frozen(case: Case) -> None:
    before = {k: v.clone() for k, v in case.plain().state_dict().items()}
    model = case.trained()
    after = frozen_state(model.get_base_model())
    if case.reads_its_own:  # the head was built anew, for the parts that the method reads
        before, after = ({k: v for k, v in s.items() if not k.startswith("head.")} for s in (before, after))
    assert_same(after, before)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def every_trained_tensor_learns(case: Case) -> None:
    model = case.adapted()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    train(model, 3)
    still = [n for n, p in model.named_parameters() if n in before and torch.equal(p, before[n])]
    assert not still


def reloads_bit_by_bit(case: Case) -> None:
    point = case.batch()
    model = case.trained()
    expected = logits(model, point)
    assert not torch.equal(expected, logits(case.plain(), point))
    model.save_pretrained(case.folder)
    assert torch.equal(logits(load_adapted(case.plain(), case.folder), point), expected)
    other = PeftModel.from_pretrained(case.plain(), case.folder, adapter_name="site-b")
    assert torch.equal(logits(other, point), expected)
    lean = PeftModel.from_pretrained(case.plain(), case.folder, low_cpu_mem_usage=True)
    states = [lean.state_dict(), model.state_dict()]
    if case.reads_its_own:  # the untrained head beside the trained one is drawn anew
        states = [{k: v for k, v in state.items() if ".head.original_module." not in k} for state in states]
    assert_same(*states)
    torch.testing.assert_close(logits(lean, point), expected)  # memory-mapped weights: another alignment
    assert not trainable(lean)
    again = load_adapted(case.plain(), case.folder, trainable=True)
    assert trainable(again) == trainable(model)


def file_holds_adapter_and_head_only(case: Case) -> None:
    model = case.trained()
    model.save_pretrained(case.folder)
    fresh = {f"backbone.{name}" for name in model.get_base_model().backbone.fresh}
    state = load_file(case.folder / "adapter_model.safetensors")
    assert state and all("default" not in key for key in state)
    parts = {
        key.removeprefix("base_model.model.").split(".")[0]
        for key in state
        if not any(mark in key for mark in ("_adapter.", "_shared.", *OF_PEFT_NAMES, *RANDOM))
    }
    trains = getattr(case.config, "trains", ())
    assert parts <= ({"head", "backbone"} if fresh or trains else {"head"})
    assert len(state["base_model.model.head.fingerprint"]) == 32
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    own = {n.replace(".modules_to_save.default", "").replace(".default", "") for n, _ in model.named_buffers()}
    buffers = sum(v.numel() for k, v in state.items() if k in own or k.startswith(RANDOM))
    assert sum(v.numel() for v in state.values()) - buffers == trained
    model.save_pretrained(case.folder)  # peft knows the backbone's name by now and must not ask the hub about it
    config = json.loads((case.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "random"


def two_adapters_do_not_touch_each_other(case: Case) -> None:
    point = case.batch()
    model = case.trained()
    first = logits(model, point)
    names = trainable(model)
    second = METHODS[case.method]()
    if case.method in OF_PEFT:
        second = copy.deepcopy(model.peft_config["default"])
    model.add_adapter("site-b", second)
    assert trainable(model) == names
    assert torch.equal(logits(model, point), first)
    model.set_adapter("site-b")
    assert trainable(model) == {n.replace("default", "site-b") for n in names}
    if case.is_identity:
        assert torch.equal(logits(model, point), logits(case.plain(), point))
    train(model, 3, seed=5)
    model.eval()
    third = logits(model, point)
    assert not torch.equal(third, first)
    model.set_adapter("default")
    assert torch.equal(logits(model, point), first)
    model.save_pretrained(case.folder)  # each into a folder of its own
    reloaded = PeftModel.from_pretrained(case.plain(), case.folder)
    reloaded.load_adapter(case.folder / "site-b", "site-b")
    assert torch.equal(logits(reloaded, point), first)
    learning = load_adapted(case.plain(), case.folder, trainable=True)
    learning.load_adapter(case.folder / "site-b", "site-b")
    assert trainable(learning) == names  # a further adapter, loaded for inference, stops nothing
    reloaded.set_adapter("site-b")
    assert torch.equal(logits(reloaded, point), third)


def disabled_is_frozen_model(case: Case) -> None:
    point = case.batch()
    model = case.trained()
    expected, names = logits(model, point), trainable(model)
    with model.disable_adapter():
        assert not trainable(model)
        if not case.reads_its_own:
            assert torch.equal(logits(model, point), logits(case.plain(), point))
    assert torch.equal(logits(model, point), expected)
    assert trainable(model) == names


def delete_leaves_the_others(case: Case) -> None:
    point = case.batch()
    model = case.trained()
    expected = logits(model, point)
    second = METHODS[case.method]()
    if case.method in OF_PEFT:
        second = copy.deepcopy(model.peft_config["default"])
    model.add_adapter("site-b", second)
    if case.method not in OF_PEFT:  # peft deactivates the head when an inactive adapter goes
        model.delete_adapter("site-b")
        assert torch.equal(logits(model, point), expected)
        assert not any("site-b" in key for key in model.state_dict())
        model.add_adapter("site-b", METHODS[case.method]())
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        model.delete_adapter("default")
    assert model.active_adapters == ["site-b"]
    assert not any("default" in key for key in model.state_dict())
    if case.is_identity:
        assert torch.equal(logits(model, point), logits(case.plain(), point))


def merge_works_or_refuses(case: Case) -> None:
    point = case.batch()
    model = case.trained()
    expected = logits(model, point)
    before = frozen_state(model.get_base_model())
    if not case.merges:
        for merge in (model.merge_and_unload, model.merge_adapter):
            with pytest.raises(NotImplementedError, match="cannot be merged"):
                merge()
        assert_same(frozen_state(model.get_base_model()), before)
        assert torch.equal(logits(model, point), expected)
        return
    model.merge_adapter()
    torch.testing.assert_close(logits(model, point), expected, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    if case.method not in OF_PEFT:  # ours restores the bits; LoRA subtracts again
        assert_same(frozen_state(model.get_base_model()), before)
    merged = model.merge_and_unload()
    assert not is_wrapped(merged)
    torch.testing.assert_close(logits(merged, point), expected, atol=1e-4, rtol=1e-4)


def unload_leaves_no_trace(case: Case) -> None:
    point = case.batch()
    model = case.trained()
    plain = case.plain()
    bare = model.unload()
    assert not is_wrapped(bare)
    assert bare.state_dict().keys() == plain.state_dict().keys()
    if not getattr(case.config, "trains", ()):
        for name in plain.backbone.fresh:  # trained with the head, and kept like it
            plain.backbone.get_submodule(name).load_state_dict(bare.backbone.get_submodule(name).state_dict())
        assert torch.equal(features(bare.backbone, point), features(plain.backbone, point))
    adapt(bare, METHODS[case.method]())  # and it can be adapted anew


def deepcopy_and_pickle(case: Case) -> None:
    point = case.batch()
    model = case.trained()
    expected = logits(model, point)
    twin = copy.deepcopy(model)
    train(twin, 2, seed=9)
    assert torch.equal(logits(model, point), expected)
    assert not torch.equal(logits(twin.eval(), point), expected)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(again, point), expected)
    fresh = case.adapted()
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(fresh, point), expected)


def a_cloud_alone_is_as_in_a_batch(case: Case) -> None:
    model = case.trained()
    clouds = [cloud(60, 3), cloud(200, 4), cloud(12 if KIND[case.backbone] == "tokens" else 1, 5), cloud(33, 6)]
    rows = [1] * 4 if KIND[case.backbone] == "tokens" else [len(c) for c in clouds]
    together = logits(model, collate(clouds)).split(rows)
    for one, part in zip(clouds, together, strict=True):
        torch.testing.assert_close(logits(model, one), part, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model, clouds[1]), logits(model, clouds[1]))  # and nothing is left of a pass


def works_in_half_precision(case: Case) -> None:
    point = case.batch()
    model = case.trained()
    expected = logits(model, point)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(point)
        auxiliary = getattr(model.get_base_model(), "auxiliary", None)  # some parts learn from it alone
        (found.float().square().mean() + (0 if auxiliary is None else auxiliary)).backward()
    scale = expected.abs().max()
    assert (found.float() - expected).abs().max() < 0.05 * scale
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def refuses_another_backbone(case: Case) -> None:
    case.trained().save_pretrained(case.folder)
    another_kind = tiny("m1" if KIND[case.backbone] == "voxels" else "unet")
    for other, message in (
        (tiny(case.backbone, seed=7), "trained on other backbone weights"),
        (another_kind, "trained on other backbone weights"),
        (tiny(case.backbone, classes=5), "this adapter"),
    ):
        with pytest.raises(UserError, match=message):
            load_adapted(other, case.folder)
    with pytest.raises(UserError, match="no adapter"):
        load_adapted(case.plain(), case.folder / "nowhere")


CHECKS: list[Callable[[Case], None]] = [
    trains_adapter_and_head_only,
    is_made_where_the_model_is,
    is_identity_at_start,
    frozen_stays_frozen,
    every_trained_tensor_learns,
    reloads_bit_by_bit,
    file_holds_adapter_and_head_only,
    two_adapters_do_not_touch_each_other,
    disabled_is_frozen_model,
    delete_leaves_the_others,
    merge_works_or_refuses,
    unload_leaves_no_trace,
    deepcopy_and_pickle,
    a_cloud_alone_is_as_in_a_batch,
    works_in_half_precision,
    refuses_another_backbone,
]
#: What is checked on ReCon and PointGPT as well, whose masks, streams and tokens are other than Point-MAE's.
CORE: list[Callable[[Case], None]] = [is_identity_at_start, reloads_bit_by_bit, a_cloud_alone_is_as_in_a_batch]
