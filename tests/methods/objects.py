"""What the tests of methods share: networks of official size, small models and clouds of groups of points, and the
published trained names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from parity.objects import Fixture
from pointadapt.backbones.point_gpt import PointGPT
from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.backbones.ptv3 import PTv3, PTv3Config
from pointadapt.backbones.recon import ReCon
from pointadapt.methods import adapt
from pointadapt.point import Point
from pointadapt.tasks.classification import Classification
from pointadapt.tasks.parts import PartSegmentation
from pointadapt.tasks.segmentation import Segmentation

FAMILIES = (PointViT, ReCon, PointGPT)
SIZES = dict(groups=12, group_size=8, channels=32, depth=3, heads=2, embed_channels=32, embed_hidden=(8, 16, 32))


def net(family: type[PointViT] = PointViT, **changes) -> PointViT:
    torch.manual_seed(0)
    tokens = {"cls_tokens": 3} if family is ReCon else {}
    made = family(PointViTConfig(**{**SIZES, **tokens, **changes}))
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def small(family: type[PointViT] = PointViT, **changes) -> Classification:
    return Classification(net(family, **changes), 4).eval()


def parts(**changes) -> PartSegmentation:
    return PartSegmentation(net(**changes), 5, {"a": (0, 1), "b": (2, 3, 4)}).eval()


def clouds(*sizes: int) -> Point:
    sizes = sizes or (60, 80, 50)
    coord = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(1))
    category = torch.arange(len(sizes)) % 2
    return Point(coord, coord, torch.tensor(sizes).cumsum(0), extra={"category": category})


def alone(point: Point, index: int) -> Point:
    """One cloud of a batch, with its category."""
    return point.split()[index].but(extra={"category": point.extra["category"][index : index + 1]})


def official(config, classes: int = 15, groups: int = 64) -> PeftModel:
    """Point-MAE at its official size with a published number of classes, without values."""
    with torch.device("meta"):
        return adapt(Classification(PointViT(PointViTConfig(groups=groups)), classes), config)


def sonata(config, classes: int = 20, **net) -> PeftModel:
    """Sonata-base at its official size, without values."""
    with torch.device("meta"):
        return adapt(Segmentation(PTv3(PTv3Config(**net)), classes), config)


def trained(model: nn.Module, what: str = "") -> int:
    """Numbers that are trained, of parameters with ``what`` in their names."""
    return sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and what in n)


def published_names(fixture: str, filters: tuple[str, ...], make: Callable, namer: Callable) -> tuple[set, set]:
    """(names trained here, ours of those that the released name filter trains) on a stored run's model."""
    stored = Fixture.read(Path(__file__).parents[1] / "fixtures" / f"{fixture}_public1.safetensors")
    adapted = make(stored)
    name = namer(adapted)
    weights = [
        k for k in stored.notes["keys"] if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    wanted = {name(k) for k in weights if any(mark in k for mark in filters)} - {None}
    return {n for n, p in adapted.named_parameters() if p.requires_grad}, wanted
