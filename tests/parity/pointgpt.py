"""pointgpt_s_full*: PointGPT-S at its official size, classification. Its generator is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from parity.objects import Fixture, fill, gradients
from parity.pointmae import config_of, front_and_blocks
from pointadapt.backbones.point_gpt import PointGPT
from pointadapt.tasks.classification import Classification


def name(key: str) -> str | None:
    if key.startswith("blocks.cls_head_finetune."):
        return key.replace("blocks.cls_head_finetune.", "head.layers.")
    ours = PointGPT.from_official({key: torch.zeros(1)})
    return f"backbone.{next(iter(ours))}" if ours else None


def check(path: Path) -> list[tuple[str, float, float]]:
    fixture = Fixture.read(path)
    config = replace(config_of(fixture), family="gpt", qkv_bias=True)
    model = Classification(PointGPT(config), fixture.data["out.logits"].shape[1]).eval()
    names = fill(model, fixture.state, name)
    for key in [k for k in fixture.data if k.startswith("mid.block")]:
        fixture.data[key] = fixture.data[key].transpose(0, 1)  # stored [T, B, C]
    results, logits = front_and_blocks(model, fixture)
    F.cross_entropy(logits, fixture.data["in.labels"].long()).backward()
    return results + gradients(model, names, fixture.notes)
