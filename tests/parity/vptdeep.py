"""vptdeep*: Point-MAE with new prompts before every block."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch.nn.functional as F
from peft import PeftModel

from parity.objects import Fixture, fill, gradients, own_names
from parity.pointmae import config_of, front_and_blocks
from parity.pointmae import name as plain_name
from pointadapt.backbones.point_vit import PointViT
from pointadapt.methods import adapt
from pointadapt.methods.prompts import VPTConfig
from pointadapt.tasks.classification import Classification


def make(fixture: Fixture) -> PeftModel:
    count = fixture.config["prompt_nums"]
    model = Classification(PointViT(config_of(fixture)), fixture.config["cls_dim"])
    return adapt(model, VPTConfig(n=count)).eval()


def namer(adapted: PeftModel) -> Callable[[str], str | None]:
    """official parameter name -> ours in the adapted model."""
    own = own_names(adapted)

    def name(key: str) -> str | None:
        if match := re.fullmatch(r"cls_prompt_(pos_)?list\.(\d+)", key):
            part = "pos" if match[1] else "token"
            return f"base_model.model.backbone.blocks.{match[2]}.vpt_adapter.default.{part}"
        return own[plain_name(key) or ""]

    return name


def check(path: Path) -> list[tuple[str, float, float]]:
    fixture = Fixture.read(path)
    adapted = make(fixture)
    names = fill(adapted, fixture.state, namer(adapted))
    adapted.requires_grad_(True)
    results, logits = front_and_blocks(adapted.get_base_model(), fixture)
    F.cross_entropy(logits, fixture.data["in.labels"].long()).backward()
    return results + gradients(adapted, names, fixture.notes)
