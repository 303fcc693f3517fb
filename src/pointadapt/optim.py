"""What is trained and how fast: explicit parameter groups, AdamW, one-cycle or cosine schedule.

The official recipes sort parameters by whether their NAME contains "block", which silently gives every adapter a tenth
of the head's learning rate. Here the groups say what they are: head, adapters, backbone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Literal

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

ALIGNED = 0.1  #: of the adapters' rate, for an embedder that is aligned already (chosen here)


def kind_of(name: str, fresh: Iterable[str] = ()) -> str:
    """ "head", "adapters", "aligned" or "backbone": the group of the trained parameter ``name`` of an adapted model.

    peft keeps a fully trained module under ``<module>.modules_to_save.<adapter>``. A ``fresh`` child of the backbone
    (a decoder that no checkpoint filled) starts from nothing like the head, and learns as fast. "aligned" is an
    embedder that Stage 1 of PointATA has trained already and Stage 2 goes on with.
    """
    path = re.sub(r"\.modules_to_save\.[^.]+", "", name)
    if path == name:
        return "aligned" if re.search(r"_adapter\.[^.]+\.pae\.", name) else "adapters"
    _, backbone, child = path.partition(".backbone.")
    return "backbone" if backbone and not child.startswith(tuple(f"{f}." for f in fresh)) else "head"


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay acts on it: not on biases, norms, scales (1-D), tokens that adapters share (latents, which
    no layer calls its weight) and class tokens; their positions decay, as published."""
    is_shared_token = "_shared." in name and not name.endswith(".weight")
    return parameter.ndim > 1 and not is_shared_token and not name.endswith(".token")


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    head_lr: float,
    backbone_lr: float,
    weight_decay: float,
    fresh: Iterable[str] = (),
) -> list[dict]:
    """Groups of what has ``requires_grad``, each with name, params, lr and weight_decay; empty ones are left out."""
    fresh = tuple(fresh)
    rates = {"head": head_lr, "adapters": lr, "backbone": backbone_lr, "aligned": ALIGNED * lr}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (kind, decay): [] for kind in rates for decay in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[kind_of(name, fresh), decays(name, parameter)].append(parameter)
    return [
        {
            "name": kind if decay else f"{kind} (no decay)",
            "params": params,
            "lr": rates[kind],
            "weight_decay": weight_decay if decay else 0.0,
        }
        for (kind, decay), params in groups.items()
        if params
    ]


def make_optimizer(groups: list[dict]) -> AdamW:
    return AdamW(groups, betas=(0.9, 0.999))


def make_schedule(
    optimizer: Optimizer, steps: int, course: Literal["onecycle", "cosine"] = "onecycle", warmup: float = 0.05
) -> LRScheduler:
    """The learning rates over ``steps`` optimiser steps, up to the groups' own ones and down again.

    onecycle  cosine, from peak/10 to peak/10/1000; AdamW's beta1 moves too, .95 -> .85 -> .95 (GEM's, PointTPA's)
    cosine    linear from 1e-6, then cosine to 1e-6 (the object methods'; per step here, per epoch there)
    warmup    share of the steps in which the rates rise
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    if course == "cosine":
        return LambdaLR(optimizer, [cosine(peak, steps, warmup) for peak in peaks])
    total = max(steps, 3)
    return OneCycleLR(
        optimizer,
        max_lr=peaks,
        total_steps=total,
        pct_start=min(max(warmup, 2 / total), 1 - 1 / total),  # its arithmetic divides by the length of each part
        anneal_strategy="cos",
        div_factor=10,
        final_div_factor=1000,
    )


def cosine(peak: float, steps: int, warmup: float, low: float = 1e-6) -> Callable[[int], float]:
    """Factor on ``peak`` at each step: linear from ``low`` in the first ``warmup * steps``, then cosine to ``low``."""
    rise = round(warmup * steps)

    def factor(step: int) -> float:
        if peak <= low:
            return 1.0
        if step < rise:
            return (low + (peak - low) * step / rise) / peak
        share = min((step - rise) / max(steps - rise, 1), 1.0)
        return (low + (peak - low) * 0.5 * (1 + math.cos(math.pi * share))) / peak

    return factor
