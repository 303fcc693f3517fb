"""How the keys and kwargs of published PTv3 checkpoints (Sonata, Concerto, Utonia, Pointcept) become ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from torch import Tensor

from pointadapt.backbones.ptv3 import PTv3Config
from pointadapt.errors import UserError


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples, the frozen config has no lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def backbone_entries(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bare official keys out of a training checkpoint: ``module.``, then student, else the segmentor's backbone."""
    bare = {k.removeprefix("module."): v for k, v in tensors.items()}
    for prefix in ("student.backbone.", "backbone."):
        found = {k.removeprefix(prefix): v for k, v in bare.items() if k.startswith(prefix)}
        if found:
            return found
    return {k: v for k, v in bare.items() if k.split(".")[0] in ("embedding", "enc", "dec")}


#: Official constructor arguments that change nothing here: precision, bookkeeping, training-time augmentation.
WITHOUT_EFFECT = {
    "enable_flash", "upcast_attention", "upcast_softmax", "traceable", "freeze_encoder", "enc_mode", "cls_mode",
    "shift_coords", "jitter_coords", "rescale_coords", "type", "pdnorm_only", "model_type",
}  # fmt: skip
ESSENTIAL = ("order", "stride", "enc_depths", "enc_channels", "enc_num_head", "enc_patch_size")


def config_from_official(official: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PTv3Config:
    """Architecture from the official kwargs; the generation and rotary positions are read off the weights.

    Raises UserError for kwargs that are missing or unknown.
    """
    known = {f.name for f in fields(PTv3Config)} - {"generation", "window_layout", "compat"}
    if missing := [k for k in ESSENTIAL if k not in official]:
        raise UserError(f"the checkpoint's config lacks {', '.join(missing)}")
    if unknown := sorted(official.keys() - known - WITHOUT_EFFECT):
        raise UserError(f"the checkpoint's config has unknown entries: {', '.join(unknown)}")
    chosen = with_tuples({k: v for k, v in official.items() if k in known})
    if isinstance(chosen.get("order"), str):
        chosen["order"] = (chosen["order"],)
    if official.get("enc_mode") or official.get("cls_mode"):
        chosen = {k: v for k, v in chosen.items() if k not in ("dec_depths", "dec_channels", "dec_num_head")}
        chosen.pop("dec_patch_size", None)
    rotary = any(k.endswith("rope.inv_freq") for k in tensors)
    chosen["rope_base"] = chosen.get("rope_base") or 10.0 if rotary else None
    chosen["dec_rope_enable"] = any(k.startswith("dec.") and k.endswith("rope.inv_freq") for k in tensors)
    generation: Literal["m1", "m2"] = "m1" if "embedding.stem.conv.weight" in tensors else "m2"
    stem = tensors.get("embedding.stem.conv.weight", tensors.get("embedding.stem.linear.weight"))
    if stem is not None:
        chosen.setdefault("in_channels", stem.shape[-1])
    return PTv3Config(**chosen, generation=generation)


def rename_official(tensors: Mapping[str, Tensor], pre_norm: bool) -> dict[str, Tensor]:
    """Official keys to ours, e.g. ``enc.enc0.block1.mlp.0.fc1.weight`` -> ``enc.0.blocks.1.ffn.mlp.fc1.weight``."""
    rules = [
        (r"^embedding\.stem\.", "embedding."),
        (r"^(enc|dec)\.(?:enc|dec)(\d+)\.", r"\1.\2."),
        (r"\.block(\d+)\.", r".blocks.\1."),
        (r"\.down\.norm\.0\.", ".down.norm."),
        (r"\.up\.proj\.0\.", ".up.proj."),
        (r"\.up\.proj\.1\.", ".up.norm."),
        (r"\.up\.proj_skip\.0\.", ".up.skip_proj."),
        (r"\.up\.proj_skip\.1\.", ".up.skip_norm."),
        (r"\.cpe\.0\.", ".cpe.conv."),
        (r"\.cpe\.1\.", ".cpe.linear."),
        (r"\.cpe\.2\.", ".cpe.norm."),
        (r"\.attn\.", ".mix.attn."),
        (r"\.mlp\.0\.", ".ffn.mlp."),
        (r"\.ls1\.0\.", ".mix.scale."),
        (r"\.ls2\.0\.", ".ffn.scale."),
        (r"\.norm1\.0\.", ".mix.norm." if pre_norm else ".norm1."),
        (r"\.norm2\.0\.", ".ffn.norm." if pre_norm else ".norm2."),
    ]
    renamed = {}
    for key, value in tensors.items():
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        renamed[key] = value
    return renamed
