"""The model that a run describes: as training starts from it, and with the trained adapter."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from pointadapt.backbones.drop_path import DropPath
from pointadapt.backbones.foundation import NoTokenizer
from pointadapt.backbones.point_vit import PointViTConfig
from pointadapt.backbones.weights import BACKBONES, load_backbone
from pointadapt.domains.domain import Domain
from pointadapt.errors import UserError
from pointadapt.methods.core import adapt, load_adapted
from pointadapt.run import Run, method_config


def build_task(domain: Domain) -> Any:
    """The unadapted task model. A random backbone is the same one for the same seed."""
    run = domain.run
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        backbone = load_backbone(
            run.backbone,
            weights=None if run.weights == "random" else "default",
            compat=run.compat,
            decoder=run.decoder or None,
            config=architecture(run),
        )
        tokenizer: Any = getattr(backbone, "tokenizer", None)
        if run.weights == "random" and hasattr(tokenizer, "settle"):
            tokenizer.settle()  # else a control on random weights would be one on BatchNorm's start
        backbone.checkpointing = run.checkpointing
        if not run.drop_path:
            for module in backbone.modules():
                if isinstance(module, DropPath):
                    module.rate = 0.0
        return domain.task(backbone)


def architecture(run: Run) -> Any:
    """``load_backbone``'s config: the named architecture, with the run's own number of groups."""
    if run.groups is None:
        return run.architecture
    if run.architecture is None:
        return {"groups": run.groups}
    named = BACKBONES.get(run.architecture)
    if named is None or not isinstance(named.config, PointViTConfig):
        raise UserError(f"groups is {run.groups}, but {run.architecture!r} cuts no shapes into groups: leave it out")
    return replace(named.config, groups=run.groups)


def copied(task: Any) -> Any:
    """The task in modules of its own, with the same weights: several adapted models hold what is frozen once."""
    return copy.deepcopy(task, {id(weight): weight for weight in task.parameters()})


def build_model(domain: Domain) -> Any:
    """The PeftModel that training starts from; all that is new in it depends on the seed alone."""
    return adapted(build_task(domain), domain.run)


def adapted(task: Any, run: Run) -> Any:
    """The task model, changed in place, with the run's method.

    Raises UserError where the method cannot work on the backbone, or does not teach a foundation model to read points.
    """
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        model = adapt(task, method_config(run.method, run.options))
    tokenizer = getattr(task.backbone, "tokenizer", None)
    if isinstance(tokenizer, NoTokenizer):  # left in place: found before a file is written
        raise UserError(
            f"method {run.method!r} cannot work on {run.backbone}, which knows no point clouds: use method appt"
        )
    return model


def load_model(domain: Domain, checkpoint: str = "best") -> Any:
    """The PeftModel with the trained adapter ``adapter/best`` or ``adapter/last`` of a run folder, in eval mode."""
    run = domain.run
    folder = run.folder / "adapter" / checkpoint
    if not folder.is_dir():
        raise UserError(f"{run.folder} has no trained adapter yet ({folder} is missing): finish pointadapt adapt first")
    return load_adapted(build_task(domain), folder).eval()
