"""pointlora*: Point-MAE with PointLoRA's updates, shared MLPs and selected tokens."""

from __future__ import annotations

import re
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from parity.objects import Fixture, close, fill, gradients
from parity.pointmae import config_of, front_and_blocks
from parity.pointmae import name as plain_name
from pointadapt.backbones.point_vit import PointViT
from pointadapt.methods import adapt
from pointadapt.methods.pointlora import PointLoRAConfig, Selection, shape_key
from pointadapt.tasks.classification import Classification

#: Both scales, the tokens of each and the loss' weight are literals in the released code.
SCALES, SELECT, WEIGHT = [128, 32, 64, 64], [32, 8], 0.004
ADAPTER = "pointlora_adapter.default"


def namer(channels: int):
    """official parameter name -> ours in the adapted model, or None for the gates."""
    shared = {
        "prompt_mlp": "patch",
        "prompt_pos_mlp": "selected",
        "prompt_qkv_mlp": shape_key(channels, 3 * channels),
        "prompt_proj_mlp": shape_key(channels, channels),
    }

    def name(key: str) -> str | None:
        if match := re.fullmatch(r"blocks\.(prompt\w*_mlp)\.(.*)", key):
            return f"base_model.pointlora_shared.default.{shared[match[1]]}.{match[2]}"
        if match := re.fullmatch(r"lora_mask_predictor\.fc([12])\.(.*)", key):
            return f"base_model.model.backbone.tokenizer.{ADAPTER}.scorer.{2 * int(match[1]) - 2}.{match[2]}"
        if match := re.fullmatch(r"blocks\.blocks\.(\d+)\.attn\.(qkv|proj)\.(.*)", key):
            block, layer, rest = match.groups()
            inside = {"lora_A": f"{ADAPTER}.a", "lora_B": f"{ADAPTER}.b"}.get(
                rest, rest.replace("linear", "base_layer")
            )
            if rest == "weight":
                return None
            return f"base_model.model.backbone.blocks.{block}.base_layer.mix.attn.{layer}.{inside}"
        ours = plain_name(key)
        assert ours is not None
        ours = re.sub(r"^(head|backbone\.cls)\.", r"\1.modules_to_save.default.", ours)
        ours = re.sub(r"^(backbone\.tokenizer)\.", r"\1.base_layer.", ours)
        ours = re.sub(r"(\.base_layer\.(pos|embed\.first))\.", rf"\1.{ADAPTER}.copy.", ours)
        ours = re.sub(r"^(backbone\.blocks\.\d+)\.", r"\1.base_layer.", ours)
        return f"base_model.model.{ours}"

    return name


def check(path: Path) -> list[tuple[str, float, float]]:
    fixture = Fixture.read(path)
    data, state = fixture.data, fixture.state
    vit = config_of(fixture)
    config = PointLoRAConfig(
        r=len(state["blocks.blocks.0.attn.qkv.lora_A"]),
        hidden=len(state["blocks.prompt_mlp.0.bias"]),
        select=SELECT,
        scales=SCALES,
        mask_weight=WEIGHT,
    )
    model = Classification(PointViT(vit), data["out.logits"].shape[1])
    adapted = adapt(model, config).eval()
    replaced = r"\.original_module\.|tokenizer\.base_layer\.(pos|embed\.first)\.base_layer\."
    names = fill(adapted, state, namer(vit.channels), replaced)
    for index, block in enumerate(model.backbone.blocks):
        for layer in ("qkv", "proj"):
            gate = state[f"blocks.blocks.{index}.attn.{layer}.weight"]
            getattr(block.mix.attn, layer).adapters["default"].gate = float(gate)
    adapted.requires_grad_(True)

    scores: list[Tensor] = []
    selection = model.backbone.tokenizer.adapters["default"]
    assert isinstance(selection, Selection)
    selection.scorer.register_forward_hook(lambda m, i, o: scores.append(o.squeeze(-1).sigmoid()))
    results, logits = front_and_blocks(model, fixture)
    results += [close(f"mid.mask_prob_{s.shape[1]}", s, data[f"mid.mask_prob_{s.shape[1]}"]) for s in scores]
    assert model.auxiliary is not None
    results.append(close("out.mask_loss", model.auxiliary.view(1) / WEIGHT, data["out.mask_loss"]))
    (F.cross_entropy(logits, data["in.labels"].long()) + model.auxiliary).backward()
    return results + gradients(adapted, names, fixture.notes)
