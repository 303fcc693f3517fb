"""What the tests on point videos share: a small network, clips, adapted models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.backbones.recon import ReCon
from pointadapt.data.synthetic_video import clips
from pointadapt.methods import adapt
from pointadapt.methods.core import AdapterLayer
from pointadapt.methods.pointata import PointATAConfig
from pointadapt.point import Point, collate
from pointadapt.tasks.video import VideoClassification

SMALL = dict(groups=16, group_size=8, channels=48, depth=2, heads=3, embed_channels=48, embed_hidden=(16, 32, 64))
FRAMES, POINTS = 6, 128


def net(family: type[PointViT] = PointViT, **changes) -> PointViT:
    torch.manual_seed(0)
    tokens = {"cls_tokens": 3} if family is ReCon else {}
    made = family(PointViTConfig(**{**SMALL, "drop_path": 0.0, **tokens, **changes}))
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return made.eval()


def task(family: type[PointViT] = PointViT, **options) -> VideoClassification:
    return VideoClassification(net(family), 12, **options).eval()


def video(count: int = 2, frames: int = FRAMES, points: int = POINTS, seed: int = 0) -> Point:
    coord = torch.from_numpy(clips(seed, count, frames, points)[0]).flatten(0, 2)
    return packed(coord.view(count * frames, points, 3), frames)


def packed(clouds, frames: int) -> Point:
    clouds = list(clouds)
    point = collate([Point(c, c, torch.tensor([len(c)])) for c in clouds])
    return point.but(extra={"frames": frames})


def adapted(family: type[PointViT] = PointViT, **options):
    torch.manual_seed(1)
    return adapt(task(family), PointATAConfig(**{"rank": 8, **options})).eval()


def stirred(model, std: float = 0.1, seed: int = 2):
    """Every weight that is trained, and the held PAE, away from its start."""
    draw = torch.Generator().manual_seed(seed)
    values = [p for p in model.parameters() if p.requires_grad]
    values += [b for n, b in model.named_buffers() if ".pae." in n and b.dtype.is_floating_point]
    for value in values:
        value.data += std * torch.randn(value.shape, generator=draw)
    return model


def logits(model, point) -> Tensor:
    with torch.no_grad():
        return model(point)


def adapters(model, kind) -> list:
    layers = [m for m in model.modules() if isinstance(m, AdapterLayer)]
    return [a for layer in layers for a in layer.adapters.values() if isinstance(a, kind)]
