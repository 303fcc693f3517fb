"""idpt_public*, idpt_heldout*: Point-MAE with a prompt generated before one block."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel

from parity.objects import Fixture, close, fill, gradients, own_names
from parity.pointmae import config_of, front_and_blocks
from parity.pointmae import name as plain_name
from pointadapt.backbones.point_vit import PointViT
from pointadapt.methods import adapt
from pointadapt.methods.idpt import IDPTConfig
from pointadapt.tasks.classification import Classification


def make(fixture: Fixture, **options) -> PeftModel:
    c = fixture.config
    config = IDPTConfig(layer=c["prompt_layer"], module=c["prompt_module"], cls_type=c["cls_type"], **options)
    return adapt(Classification(PointViT(config_of(fixture)), c["cls_dim"]), config).eval()


def namer(adapted: PeftModel) -> Callable[[str], str | None]:
    """official parameter name -> ours in the adapted model; None for a second name of one BatchNorm."""
    own = own_names(adapted)
    state = adapted.state_dict()
    generator = next(k for k in state if ".generator." in k).split("generator.")[0]

    light = "" if f"{generator}generator.linear.weight" in state else None  # conv5 is then all there is

    def name(key: str) -> str | None:
        if key == "prompt_pos":
            return f"{generator}place.pos"
        if key.startswith("blocks.cls.bn"):
            return None
        if match := re.fullmatch(r"blocks\.cls\.conv(\d)\.(\d)\.(.*)", key):
            layer = light if light is not None else ("join." if match[1] == "5" else f"edges.{int(match[1]) - 1}.")
            return f"{generator}generator.{layer}{('linear', 'norm')[int(match[2])]}.{match[3]}"
        return own[plain_name(key) or ""]

    return name


def check(path: Path) -> list[tuple[str, float, float]]:
    fixture = Fixture.read(path)
    adapted = make(fixture, prompt_pos="trained")  # its gradient is stored
    names = fill(adapted, fixture.state, namer(adapted))
    adapted.requires_grad_(True)
    model = adapted.get_base_model()
    block = model.backbone.blocks[fixture.config["prompt_layer"]]
    seen: dict[str, torch.Tensor] = {}
    block.adapters["default"].generator.register_forward_hook(lambda m, i, o: seen.update(gen_in=i[0], gen_out=o))
    for key in fixture.notes["grad_norms"]:  # of a BatchNorm with two names the first is listed
        if match := re.fullmatch(r"(blocks\.cls\.)bn(\d)(\..*)", key):
            names[key] = names[f"{match[1]}conv{match[2]}.1{match[3]}"]
    results, logits = front_and_blocks(model, fixture)
    results.append(close("mid.prompt_gen_in", seen["gen_in"].transpose(1, 2), fixture.data["mid.prompt_gen_in"]))
    results.append(close("mid.prompt_gen_out", seen["gen_out"], fixture.data["mid.prompt_gen_out"]))
    F.cross_entropy(logits, fixture.data["in.labels"].long()).backward()
    return results + gradients(adapted, names, fixture.notes)
