"""pointmae_cls*, pointbert_cls*: the plain ViTs, classification."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from parity.objects import Fixture, close, fill, gradients, rename
from pointadapt.backbones.point_vit import RENAMED, PointViT, PointViTConfig
from pointadapt.methods.sites import bare
from pointadapt.point import Point
from pointadapt.tasks.classification import Classification


def config_of(fixture: Fixture) -> PointViTConfig:
    c = fixture.config
    return PointViTConfig(
        groups=c["num_group"],
        group_size=c["group_size"],
        channels=c["trans_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        embed_channels=c["encoder_dims"],
        sampling="released",
    )


def name(key: str) -> str | None:
    if key.startswith("cls_head_finetune."):
        return key.replace("cls_head_finetune.", "head.layers.")
    return f"backbone.{rename(key, RENAMED)}"


def front_and_blocks(model: nn.Module, fixture: Fixture, point: Point | None = None) -> tuple[list, torch.Tensor]:
    """Run the model: (errors of centres, groups, tokens, block outputs, norm and logits; the logits).

    point  the fixture's clouds when something was put into their cache
    """
    backbone = model.backbone
    seen: dict[str, torch.Tensor] = {}

    def keep(**values: torch.Tensor) -> None:
        for key, value in values.items():
            seen.setdefault(key, value)  # PointLoRA embeds a second time

    hooks = [
        backbone.tokenizer.embed.register_forward_hook(lambda m, i, o: keep(tokens=o, neighborhood=i[0])),
        backbone.tokenizer.register_forward_hook(lambda m, i, o: seen.update(center=o.center)),
        bare(backbone.final_norm).register_forward_hook(lambda m, i, o: seen.update(norm_out=o)),
    ]
    for index, block in enumerate(backbone.blocks):
        hooks.append(block.register_forward_hook(lambda m, i, o, n=f"block{index}": seen.update({n: o.feat})))
    logits = model(fixture.point if point is None else point)
    for hook in hooks:
        hook.remove()
    found = []
    for key, ours in seen.items():
        theirs = fixture.data.get(f"mid.{key}")
        if theirs is None:
            continue
        if key == "neighborhood":  # the order inside a group is free
            ours, theirs = (x.sort(2).values for x in (ours, theirs))
        found.append(close(f"mid.{key}", ours, theirs))
    found.append(close("out.logits", logits, fixture.data["out.logits"]))
    return found, logits


def check(path: Path) -> list[tuple[str, float, float]]:
    fixture = Fixture.read(path)
    classes = fixture.data["out.logits"].shape[1]
    kind = "mlp2" if path.name.startswith("pointbert") else "mlp3"
    model = Classification(PointViT(config_of(fixture)), classes, head=kind).eval()
    names = fill(model, fixture.state, name)
    results, logits = front_and_blocks(model, fixture)
    F.cross_entropy(logits, fixture.data["in.labels"].long()).backward()
    return results + gradients(model, names, fixture.notes)
