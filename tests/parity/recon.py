"""recon_cls*: ReCon's own three-token form, classification."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from parity.objects import GRADIENT, Fixture, fill, gradients
from parity.pointmae import config_of, front_and_blocks
from pointadapt.backbones.recon import ReCon
from pointadapt.tasks.classification import Classification

GLOBAL = ("cls", "img", "text")


def name(key: str) -> str:
    if key.startswith("cls_head_finetune."):
        return key.replace("cls_head_finetune.", "head.layers.")
    return f"backbone.{next(iter(ReCon.from_official({key: torch.zeros(1)})))}"


def check(path: Path) -> list[tuple[str, float, float]]:
    fixture = Fixture.read(path)
    config = replace(config_of(fixture), family="recon", cls_tokens=3)
    model = Classification(ReCon(config), fixture.data["out.logits"].shape[1]).eval()
    state = dict(fixture.state)
    for what in ("token", "pos"):  # one parameter of three rows here
        state[f"cls_{what}"] = torch.cat([state.pop(f"{token}_{what}") for token in GLOBAL], 1)
    names = fill(model, state, name)
    results, logits = front_and_blocks(model, fixture)
    F.cross_entropy(logits, fixture.data["in.labels"].long()).backward()
    norms = dict(fixture.notes["grad_norms"])
    for what in ("token", "pos"):
        del names[f"cls_{what}"]
        gradient = getattr(model.backbone.cls, what).grad[0]
        for row, token in enumerate(GLOBAL):
            theirs = norms[f"{token}_{what}"]
            results.append((f"grad norm {token}_{what}", abs(float(gradient[row].norm()) - theirs), GRADIENT * theirs))
    return results + gradients(model, names, fixture.notes)
