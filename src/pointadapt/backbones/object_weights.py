"""How published checkpoints of Point-MAE, Point-BERT, ACT, ReCon and PointGPT become ours.

The renaming rules themselves stand beside the models (``from_official``); here: which part of a training checkpoint
is the encoder, which family it is, and the sizes that its shapes tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from pointadapt.backbones.point_gpt import PointGPT
from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.backbones.ptv3_weights import with_tuples
from pointadapt.backbones.recon import ReCon, ReConAsViT
from pointadapt.errors import UserError

FAMILIES: dict[str, type[PointViT]] = {"vit": PointViT, "recon": ReCon, "recon-as-vit": ReConAsViT, "gpt": PointGPT}

#: Where the encoder is in a training checkpoint; the first prefix that is there. Fine-tuned ones have none.
PREFIXES = ("MAE_encoder.", "ACT_encoder.", "transformer_q.", "transformer_k.", "GPT_Transformer.", "base_model.", "")
#: First parts of the encoder's own keys. All else is decoders, heads, tokenizers, teachers, generators.
ENCODER = {
    "cls_token", "cls_pos", "img_token", "img_pos", "text_token", "text_pos", "sos_pos",
    "encoder", "reduce_dim", "pos_embed", "blocks", "norm",
}  # fmt: skip
#: Channels -> attention heads, which no shape tells, and blocks of the published networks.
PUBLISHED = {384: (6, 12), 768: (12, 12), 1024: (16, 24)}
#: Names in the published yaml files -> ours.
OFFICIAL = {
    "trans_dim": "channels",
    "embed_dim": "channels",
    "num_heads": "heads",
    "num_group": "groups",
    "encoder_dims": "embed_channels",
    "drop_path_rate": "drop_path",
}


def build_objects(config: PointViTConfig) -> PointViT:
    """The network of the config's family, with random weights. Raises UserError where the two do not fit."""
    try:
        return FAMILIES[config.family](config)
    except ValueError as error:
        raise UserError(str(error)) from error


def is_object_checkpoint(keys: Iterable[str]) -> bool:
    """Whether these are keys of a network over groups of points, published or ours."""
    return any(re.search(r"encoder\.first_conv\.|blocks\.(blocks|layers)\.\d|^tokenizer\.embed\.", key) for key in keys)


def changed(config: PointViTConfig, settings: Mapping[str, Any]) -> PointViTConfig:
    """``config`` with settings under our names or those of the published yaml files. Raises UserError for others."""
    named = {OFFICIAL.get(key, key): value for key, value in settings.items()}
    known = {f.name for f in fields(PointViTConfig)}
    if unknown := sorted(named.keys() - known):
        raise UserError(f"config has unknown entries: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    try:
        return replace(config, **with_tuples(named))
    except ValueError as error:
        raise UserError(f"config does not fit: {error}") from error


def read_object(
    tensors: Mapping[str, Tensor], config: PointViTConfig | None, settings: Mapping[str, Any], origin: Any
) -> tuple[PointViTConfig, dict[str, Tensor]]:
    """(architecture, state dict in our key names) of the tensors of a checkpoint.

    config    the architecture; None: read off the weights, with 64 groups of 32 points, which no weight depends on
    settings  what to change about it
    Raises UserError where the weights do not tell it.
    """
    is_ours = any(key.startswith("tokenizer.embed.") for key in tensors)  # our own names, saved by torch
    if is_ours:
        state, family = dict(tensors), family_of(tensors)
        if config is not None:
            family = config.family
    else:
        bare = encoder_entries(tensors)
        family = config.family if config is not None else settings.get("family", family_of(bare))
        if family not in FAMILIES:
            raise UserError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
        state = FAMILIES[family].from_official(bare)
    for key in [k for k in state if k.endswith(".running_mean")]:
        state.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.zeros((), dtype=torch.long))
    if config is None:
        config = sizes(state, family, settings, origin)
        if not is_ours and not {"heads", "num_heads", "depth"} & settings.keys():
            check_depth(config, origin)
    config = changed(config, settings)
    if not config.cls_tokens:
        state = {k: v for k, v in state.items() if not k.startswith("cls.")}
    return config, state


def encoder_entries(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bare official keys: without ``module.`` anywhere and without the family's prefix."""
    bare = {key.replace("module.", ""): value for key, value in tensors.items()}
    for prefix in PREFIXES:
        found = {k.removeprefix(prefix): v for k, v in bare.items() if k.startswith(prefix)}
        found = {k: v for k, v in found.items() if k.split(".")[0] in ENCODER}
        if any(k.startswith(("blocks.", "encoder.")) for k in found):
            return found
    return {}


def family_of(keys: Iterable[str]) -> str:
    """The family that keys belong to, official or ours."""
    keys = list(keys)
    if any("contrast" in key for key in keys):
        return "recon"
    return "gpt" if any(key.startswith(("blocks.layers.", "sos_pos", "start.")) for key in keys) else "vit"


def sizes(state: Mapping[str, Tensor], family: str, settings: Mapping[str, Any], origin: Any) -> PointViTConfig:
    """The architecture that the shapes in a state dict of our key names tell. Raises UserError."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    blocks = {int(m[1]) for key in shapes if (m := re.match(r"blocks\.(\d+)\.", key))}
    first = r"tokenizer\.embed\.first\.\d+\.weight"
    hidden = [shapes[key][0] for key in sorted(shapes) if re.fullmatch(first, key) and len(shapes[key]) == 2]
    needed = ["blocks.0.mix.attn.qkv.weight", "blocks.0.ffn.mlp.fc1.weight", "tokenizer.embed.second.0.weight"]
    needed.append("tokenizer.embed.second.3.weight")
    if missing := [key for key in needed if key not in shapes]:
        raise UserError(f"{origin} lacks {', '.join(missing)}: download it again, or name its model with config=")
    channels = shapes[needed[0]][1]
    if channels not in PUBLISHED and not {"heads", "num_heads"} & settings.keys():
        raise UserError(
            f"{origin} does not say how many attention heads its {channels} channels are divided into: "
            'give config={"heads": ...}, or the name of its model'
        )
    return PointViTConfig(
        family=family,  # type: ignore[arg-type]
        channels=channels,
        depth=1 + max(blocks),
        heads=PUBLISHED.get(channels, (1, 0))[0],
        embed_channels=shapes[needed[3]][0],
        embed_hidden=(*hidden, shapes[needed[2]][0]),
        cls_tokens=shapes["cls.token"][1] if "cls.token" in shapes else 3 if family == "recon" else 1,
        mlp_ratio=shapes[needed[1]][0] / channels,
        qkv_bias="blocks.0.mix.attn.qkv.bias" in shapes,
        drop_path=0.2 if family == "recon" else 0.1,
    )


def check_depth(config: PointViTConfig, origin: Any) -> None:
    """Raises UserError for fewer blocks than the published network of this width has: the last ones leave no gap."""
    depth = PUBLISHED[config.channels][1]
    if config.depth < depth:
        raise UserError(
            f"{origin} has {config.depth} blocks of {config.channels} channels, the published network has {depth}: "
            f'download it again, or give config={{"depth": {config.depth}}} if it was made so'
        )
