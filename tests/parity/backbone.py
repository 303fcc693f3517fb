"""bb_<model>_*: whole networks of the PTv3 family against the official code, stage by stage.

The official state dict goes through the same loader as a checkpoint file, ``compat="official"``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from pointadapt.backbones.ptv3 import PTv3, upcast
from pointadapt.backbones.ptv3_weights import config_from_official, rename_official
from pointadapt.backbones.weights import fill
from pointadapt.ops.order import cloud_code, curve_order
from pointadapt.point import Point


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


def load(
    path: Path, layout: Literal["flash", "shrink"] | None = None
) -> tuple[PTv3, dict[str, Tensor], dict[str, str]]:
    """(network with the fixture's weights, its tensors, its metadata); ``layout``: windows other than it says."""
    data, about = read(path)
    official = json.loads(about["config"])
    weights = {k.removeprefix("sd."): v for k, v in data.items() if k.startswith("sd.")}
    config = config_from_official(official, weights)
    config = replace(
        config,
        compat="official",
        window_layout=layout or layouts(official, about, path)[0],
        legacy="legacy" in about["variant"] or config.legacy,
        mask_token="embedding.mask_token" in weights,
    )
    backbone = PTv3(config).eval()
    fill(backbone, rename_official(weights, config.pre_norm), path)
    return backbone, data, about


def layouts(official: dict[str, Any], about: dict[str, str], path: Path) -> list[Literal["flash", "shrink"]]:
    """The window layouts that the fixture may have been made with, likeliest first; one if the metadata says it.

    Relative positions and upcasting exclude the flash path officially. Prose counts only as a hint.
    """
    said = {**official, **json.loads(about.get("extra") or "{}")}
    for key, value in said.items():
        if "flash" in key.lower() and value is not None:
            is_flash = value.lower() in ("true", "1", "yes", "on", "flash") if isinstance(value, str) else bool(value)
            return ["flash"] if is_flash else ["shrink"]
    if any(official.get(key) for key in ("enable_rpe", "upcast_attention", "upcast_softmax")):
        return ["shrink"]
    prose = " ".join([path.stem, about["variant"], about.get("extra", ""), about.get("notes", "")]).lower()
    denied = r"\b(non|no|not|without)[-_ ](enable_)?flash|flash([-_ ]attn)?[-_ =:]*(off|false|disabled)"
    return ["flash", "shrink"] if "flash" in re.sub(denied, "", prose) else ["shrink", "flash"]


def draws(data: dict[str, Tensor], about: dict[str, str], levels: int) -> Callable[[int], Tensor]:
    """Permutations of the next ``levels`` levels: those recorded, else drawn from the seed, else none."""
    recorded = [data[k] for k in sorted((k for k in data if k.startswith("perm.")), key=lambda k: int(k[5:]))]
    if recorded:  # an unshuffled top may be recorded or not: the poolings are the last ones
        following = iter(recorded[-levels:])
        return lambda num: next(following)
    if about.get("shuffle", "None").lower() not in ("none", "null", "false", ""):
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
        (stage.blocks[-1] if len(stage.blocks) else stage.up).register_forward_hook(keep(f"dec{s}"))
    return seen


def given(data: dict[str, Tensor], extra: dict[str, Any]) -> Point:
    """The fixture's input."""
    condition, grid_size = extra.get("condition"), data.get("in.grid_size", extra.get("grid_size"))
    context = data.get("in.context", extra.get("context"))
    offset, mask = data.get("in.offset"), data.get("in.mask")
    return Point(
        coord=data["in.coord"].float(),
        feat=data["in.feat"].float(),
        offset=torch.bincount(data["in.batch"].long()).cumsum(0) if offset is None else offset.long(),
        grid_coord=data.get("in.grid_coord"),
        grid_size=None if grid_size is None else float(grid_size),
        mask=None if mask is None else mask.bool(),
        condition=condition[0] if isinstance(condition, list) else condition,
        extra={} if context is None else {"context": torch.as_tensor(context).float().reshape(-1, 256)},
    )


def produce(backbone: PTv3, point: Point) -> dict[str, Tensor]:
    """Everything that fixtures record, by their names without ``out.``."""
    seen = watch(backbone)
    with torch.inference_mode():
        final = backbone(point)
    outputs: dict[str, Tensor] = {"final": final.feat}
    if not backbone.dec:
        outputs["upcast_all"] = upcast(final)
        outputs |= {f"upcast_{levels}": upcast(final, levels) for levels in range(len(backbone.enc))}
    for name, value in seen.items():
        outputs[name if "block0" in name else f"{name}.feat"] = value.feat if isinstance(value, Point) else value
        if name.startswith("enc") and "block0" not in name:
            outputs |= {f"{name}.coord": value.coord, f"{name}.grid_coord": value.grid_coord}
            outputs[f"{name}.batch"] = value.batch
            outputs[f"{name}.order"] = torch.stack([curve_order(value, c)[0] for c in value.curves])
            outputs[f"{name}.code"] = torch.stack([cloud_code(value, c) for c in value.curves])
            if value.pooling_inverse is not None:
                outputs[f"{name}.pooling_inverse"] = value.pooling_inverse
    return outputs


def check(path: Path) -> list[tuple[str, float, float]]:
    data, about = read(path)
    candidates = layouts(json.loads(about["config"]), about, path)
    for layout in candidates:
        results = compare(path, layout)
        if all(error <= tolerance for _, error, tolerance in results):
            if layout != candidates[0]:  # the file does not say it: the outputs do
                results = [(f"{name} ({layout} windows)", *rest) for name, *rest in results]
            return results
    return compare(path, candidates[0])


def compare(path: Path, layout: Literal["flash", "shrink"]) -> list[tuple[str, float, float]]:
    backbone, data, about = load(path, layout)
    levels = len(backbone.enc) - (0 if backbone.config.shuffle_orders else 1)
    backbone.draw = draws(data, about, levels)
    outputs = produce(backbone, given(data, json.loads(about.get("extra") or "{}")))
    expected = {k.removeprefix("out."): v for k, v in data.items() if k.startswith("out.")}
    scale = float(expected["final"].abs().max())
    base = 1e-4 if "legacy" in about["variant"] or path.name.startswith("bb_ptv3_dec") else 5e-5
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
