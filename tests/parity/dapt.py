"""dapt*: Point-MAE with DAPT's scales, dynamic adapters and internal prompts."""

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
from pointadapt.methods.dapt import DAPTConfig
from pointadapt.tasks.classification import Classification

ADAPTER = "dapt_adapter.default"
BLOCK = "base_model.model.backbone.blocks.{}"
#: gamma_1, gamma_2 (, gamma_3) of the whole model, of blocks, of their attention, of their MLP -> where ours are.
SCALES = {
    "": (f"tokenizer.{ADAPTER}", f"final_norm.{ADAPTER}"),
    "block": (
        f"base_layer.mix.norm.{ADAPTER}",
        f"base_layer.ffn.norm.{ADAPTER}",
        f"{ADAPTER}.tfts",
    ),
    "attn": (f"base_layer.mix.attn.qkv.{ADAPTER}", f"base_layer.mix.attn.proj.{ADAPTER}"),
    "mlp": (f"base_layer.ffn.mlp.base_layer.fc1.{ADAPTER}", f"base_layer.ffn.mlp.base_layer.fc2.{ADAPTER}"),
}
PARTS = {"adapter_layer_norm_before": "norm", "scale": "scale", "down_proj": "down", "up_proj": "up"}


def read_of(config: dict) -> list[str]:
    parts = [(config["prompt_token"], "prompt"), (config["patch_token"], "patch")]
    first = ["cls"] if config["class_token"] == "use" else []
    return first + [f"{how} {what}" for how, what in parts if how in ("mean", "max")]


def make(fixture: Fixture) -> PeftModel:
    c = fixture.config
    config = DAPTConfig(rank=c["rank"], dropout=c["drop_adapter_rate"], read=read_of(c))
    return adapt(Classification(PointViT(config_of(fixture)), c["cls_dim"]), config).eval()


def namer(adapted: PeftModel) -> Callable[[str], str | None]:
    """official parameter name -> ours in the adapted model."""
    own = own_names(adapted)

    def name(key: str) -> str | None:
        if match := re.fullmatch(r"(?:blocks\.blocks\.(\d+)\.)?(?:(attn|mlp)\.)?tfts_(gamma|beta)_(\d)", key):
            block, inside, what, number = match.groups()
            level = inside or ("block" if block else "")
            root = BLOCK.format(block) if block else "base_model.model.backbone"
            return f"{root}.{SCALES[level][int(number) - 1]}.{'scale' if what == 'gamma' else 'shift'}"
        if match := re.fullmatch(r"blocks\.blocks\.(\d+)\.Adapter_MLP\.(\w+)\.(\w+)", key):
            block, part, what = match.groups()
            return f"{BLOCK.format(block)}.base_layer.ffn.mlp.{ADAPTER}.{PARTS[part]}.{what}"
        return own[plain_name(key) or ""]

    return name


def check(path: Path) -> list[tuple[str, float, float]]:
    fixture = Fixture.read(path)
    adapted = make(fixture)
    names = fill(adapted, fixture.state, namer(adapted))
    adapted.requires_grad_(True)
    model = adapted.get_base_model()
    seen: dict[str, torch.Tensor] = {}
    first = model.backbone.blocks[0].ffn.mlp.adapters["default"]
    first.norm.register_forward_hook(lambda m, i, o: seen.update(adapter_in=i[0]))
    model.backbone.blocks[0].ffn.register_forward_hook(
        lambda m, i, o: seen.update(adapter_out=o.extra["dapt.default.delta"])
    )
    results, logits = front_and_blocks(model, fixture)
    results.append(close("mid.adapter0_in", seen["adapter_in"], fixture.data["mid.adapter0_in"]))
    results.append(close("mid.adapter0_out", seen["adapter_out"], fixture.data["mid.adapter0_out"]))
    F.cross_entropy(logits, fixture.data["in.labels"].long()).backward()
    return results + gradients(adapted, names, fixture.notes)
