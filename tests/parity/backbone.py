"""bb_<model>_*: whole networks of the PTv3 family against the official code, stage by stage.

The official state dict goes through the same loader as a checkpoint file, ``compat="official"``.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from pointadapt.backbones.ptv3 import PTv3, upcast
from pointadapt.backbones.weights import config_from_official, fill, rename_official
from pointadapt.ops.order import cloud_code, curve_order
from pointadapt.point import Point


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


def load(path: Path) -> tuple[PTv3, dict[str, Tensor], dict[str, str]]:
    """(network with the fixture's weights, its tensors, its metadata)"""
    data, about = read(path)
    official = json.loads(about["config"])
    weights = {k.removeprefix("sd."): v for k, v in data.items() if k.startswith("sd.")}
    config = config_from_official(official, weights)
    config = replace(
        config,
        compat="official",
        window_layout="flash" if is_flash(official, about, path) else "shrink",
        legacy="legacy" in about["variant"] or config.legacy,
        mask_token="embedding.mask_token" in weights,
    )
    backbone = PTv3(config).eval()
    fill(backbone, rename_official(weights, config.pre_norm), path)
    return backbone, data, about


def is_flash(official: dict, about: dict[str, str], path: Path) -> bool:
    """Whether windows are those of the flash path: said by the config, else by the fixture's description."""
    if "enable_flash" in official:
        return bool(official["enable_flash"])
    said = " ".join([path.stem, about["variant"], about.get("extra", ""), about.get("notes", "")]).lower()
    return "flash" in re.sub(r"\b(non|no|without)[-_ ]flash", "", said)


def draws(data: dict[str, Tensor], about: dict[str, str], first: int):
    """Permutations of the levels from ``first`` on: those recorded, else drawn from the seed, else none."""
    if any(k.startswith("perm.") for k in data):
        level = iter(range(first, 99))
        return lambda num: data.get(f"perm.{next(level)}", torch.arange(num))
    if about.get("shuffle", "None") != "None":
        torch.manual_seed(int(about["shuffle"]))
        return torch.randperm
    return torch.arange


def watch(backbone: PTv3) -> dict[str, Point]:
    """Collects what passes the places that fixtures record; filled by the next forward."""
    seen: dict[str, Point] = {}

    def keep(name: str):
        return lambda module, args, output: seen.__setitem__(name, output)

    backbone.embedding.register_forward_hook(keep("embedding"))
    for s, stage in enumerate(backbone.enc):
        if len(stage.blocks):
            stage.blocks[-1].register_forward_hook(keep(f"enc{s}"))
        elif stage.down is not None:
            stage.down.register_forward_hook(keep(f"enc{s}"))
    if len(backbone.enc[0].blocks):
        block = backbone.enc[0].blocks[0]
        block.cpe.register_forward_hook(keep("enc0.block0.cpe"))
        block.mix.attn.register_forward_hook(keep("enc0.block0.attn"))
        block.ffn.mlp.register_forward_hook(keep("enc0.block0.mlp"))
        norm = block.mix.norm if backbone.config.pre_norm else block.norm1
        norm.register_forward_hook(keep("enc0.block0.norm1"))
        block.register_forward_hook(keep("enc0.block0.out"))
    for s, stage in enumerate(backbone.dec):
        stage.up.register_forward_hook(keep(f"dec{s}.up"))
        if len(stage.blocks):
            stage.blocks[-1].register_forward_hook(keep(f"dec{s}"))
    return seen


def check(path: Path) -> list[tuple[str, float, float]]:
    backbone, data, about = load(path)
    extra = json.loads(about.get("extra") or "{}")
    condition = extra.get("condition")
    backbone.draw = draws(data, about, first=0 if backbone.config.shuffle_orders else 1)
    seen = watch(backbone)
    point = Point(
        coord=data["in.coord"],
        feat=data["in.feat"],
        offset=data["in.offset"],
        grid_coord=data.get("in.grid_coord"),
        grid_size=extra.get("grid_size"),
        mask=data.get("in.mask"),
        condition=condition[0] if isinstance(condition, list) else condition,
        extra={"context": data["in.context"]} if "in.context" in data else {},
    )
    with torch.inference_mode():
        final = backbone(point)
    outputs: dict[str, Tensor] = {"final": final.feat}
    if not backbone.dec:
        outputs["upcast_all"], outputs["upcast_2"] = upcast(final), upcast(final, 2)
    for name, value in seen.items():
        outputs[name if "block0" in name else f"{name}.feat"] = value.feat if isinstance(value, Point) else value
        if name.startswith("enc") and "block0" not in name:
            outputs |= {f"{name}.coord": value.coord, f"{name}.grid_coord": value.grid_coord}
            outputs[f"{name}.batch"] = value.batch
            outputs[f"{name}.order"] = torch.stack([curve_order(value, c)[0] for c in value.curves])
            outputs[f"{name}.code"] = torch.stack([cloud_code(value, c) for c in value.curves])
            if value.pooling_inverse is not None:
                outputs[f"{name}.pooling_inverse"] = value.pooling_inverse
    expected = {k.removeprefix("out."): v for k, v in data.items() if k.startswith("out.")}
    variant = about["variant"]
    scale = float(expected["final"].abs().max())
    base = 1e-4 if variant == "ptv3m1_legacy" or path.name.startswith("bb_ptv3_dec") else 5e-5
    tolerance = max(base, 5e-6 * scale)
    results = []
    for name, theirs in sorted(expected.items()):
        if name not in outputs:
            results.append((f"{name} (not produced)", float("inf"), tolerance))
        elif outputs[name].shape != theirs.shape:
            results.append((f"{name} {tuple(outputs[name].shape)}", float("inf"), tolerance))
        elif theirs.is_floating_point():
            results.append((name, float((outputs[name] - theirs).abs().max()), tolerance))
        else:
            results.append((name, float((outputs[name] != theirs).sum()), 0.0))
    return results
