"""idpt_partseg_full*: IDPT's part segmentation at official size, three light generators."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel

from parity.objects import Fixture, fill, own_names
from parity.pointmae_partseg import compare
from parity.pointmae_partseg import make as plain
from parity.pointmae_partseg import name as plain_name
from pointadapt.methods import adapt
from pointadapt.methods.idpt import IDPTConfig


def namer(adapted: PeftModel) -> Callable[[str], str | None]:
    """official parameter name -> ours in the adapted model; None for a second name of one BatchNorm."""
    own = own_names(adapted)

    def name(key: str) -> str | None:
        if key == "prompt_cls_pos":
            return "base_model.idpt_shared.default.pos"
        if match := re.fullmatch(r"blocks\.dgcnn_cls(\d+)\.conv5\.(\d)\.(.*)", key):
            layer = ("linear", "norm")[int(match[2])]
            return f"base_model.model.backbone.blocks.{match[1]}.idpt_adapter.default.generator.{layer}.{match[3]}"
        return None if ".bn5." in key else own[plain_name(key)]

    return name


def check(path: Path) -> list[tuple[str, float, float]]:
    fixture = Fixture.read(path)
    model, point = plain(fixture)
    adapted = adapt(model, IDPTConfig()).eval()
    fill(adapted, fixture.state, namer(adapted))
    return compare(adapted, fixture, point)
