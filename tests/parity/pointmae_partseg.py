"""pointmae_partseg_full*: Point-MAE's part segmentation on ShapeNetPart at its official size."""

from __future__ import annotations

from pathlib import Path

import torch

from parity.objects import Fixture, close, fill, rename
from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.point import Point
from pointadapt.tasks.parts import RENAMED, PartSegmentation


def name(key: str) -> str:
    ours = rename(key, RENAMED)
    return ours if ours != key else f"backbone.{next(iter(PointViT.from_official({key: torch.zeros(1)})))}"


def make(fixture: Fixture) -> tuple[PartSegmentation, Point]:
    """(our model without weights, the stored clouds with their categories)."""
    c = {"num_group": 128, "group_size": 32, "trans_dim": 384, "depth": 12, "num_heads": 6, **fixture.config}
    one_hot = fixture.data["in.cls_onehot"]
    config = PointViTConfig(
        groups=c["num_group"],
        group_size=c["group_size"],
        channels=c["trans_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        cls_tokens=0,
        sampling="released",
    )
    parts = fixture.data["out.log_probs"].shape[-1]
    categories = {str(n): () for n in range(one_hot.shape[-1])}
    point = fixture.point
    point.extra["category"] = one_hot.flatten(0, -2).argmax(-1)
    return PartSegmentation(PointViT(config), parts, categories).eval(), point


def check(path: Path) -> list[tuple[str, float, float]]:
    fixture = Fixture.read(path)
    model, point = make(fixture)
    fill(model, fixture.state, name)
    return compare(model, fixture, point)


def compare(model: torch.nn.Module, fixture: Fixture, point: Point) -> list[tuple[str, float, float]]:
    """Errors of centres, features of the first points and log-probabilities."""
    task = model.get_base_model() if hasattr(model, "get_base_model") else model
    seen: dict[str, torch.Tensor] = {}
    head = task.head
    hooks = [
        task.backbone.tokenizer.register_forward_hook(lambda m, i, o: seen.update(center=o.center)),
        [m for n, m in head.named_modules() if n.endswith("point")][-1].register_forward_hook(  # the trained one's
            lambda m, i, o: seen.update(point=o)
        ),
    ]
    with torch.no_grad():
        logits = model(point)
    for hook in hooks:
        hook.remove()
    stored = fixture.data["mid.fp_out_first16pts"]
    first = seen["point"].view(point.num_clouds, -1, stored.shape[1])[:, : stored.shape[2]].transpose(1, 2)
    log_probs = fixture.data["out.log_probs"]
    return [
        close("mid.center", seen["center"], fixture.data["mid.center"]),
        close("mid.fp_out_first16pts", first, stored),
        close("out.log_probs", logits.log_softmax(-1).view_as(log_probs), log_probs),
    ]
