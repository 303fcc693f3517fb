"""pointgst*: Point-MAE with PointGST's adapters, on the stored graph bases; and our bases against the stored ones."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.objects import Fixture, close, fill, gradients
from parity.pointmae import config_of, front_and_blocks
from parity.pointmae import name as plain_name
from pointadapt.backbones.point_vit import PointViT
from pointadapt.methods import adapt
from pointadapt.methods.pointgst import (
    Graphs,
    PointGSTConfig,
    Settings,
    chunks,
    morton_order,
    released_laplacian,
)
from pointadapt.ops.neighbors import group
from pointadapt.tasks.classification import Classification

PARTS = {"norm_ly1": "norms.0", "norm_ly2": "norms.1", "adapt1": "mix", "down": "down", "up": "up"}


def name(key: str) -> str:
    """Official parameter name -> ours in the adapted model."""
    match = re.fullmatch(r"blocks\.blocks\.(\d+)\.gft_adapter\.(\w+)\.(\w+)", key)
    if match:
        block, part, kind = match.groups()
        return f"base_model.model.backbone.blocks.{block}.ffn.pointgst_adapter.default.{PARTS[part]}.{kind}"
    ours = plain_name(key)
    assert ours is not None
    for trained in ("head", "backbone.cls"):
        ours = re.sub(rf"^{re.escape(trained)}\.", f"{trained}.modules_to_save.default.", ours)
    ours = re.sub(r"^(backbone\.blocks\.\d+\.ffn)\.", r"\1.base_layer.", ours)
    return f"base_model.model.{ours}"


def stored_graphs(basis: Tensor, order: Tensor) -> Graphs:
    """Stored bases [B, (n,) L, L] over rows ``order`` [B, G]."""
    batch, groups = order.shape
    rows = (torch.arange(batch)[:, None] * groups + order).flatten()
    index, position, _ = chunks(rows, [groups] * batch, basis.shape[-1])
    return Graphs(index, position, basis.flatten(0, -3))


def are_eigenvectors(title: str, coord: Tensor, vectors: Tensor) -> tuple[str, float, float]:
    """How far stored vectors [P, L, L] are from eigenvectors of our Laplacian of the same nodes, smooth ones first."""
    spectrum = vectors.mT @ released_laplacian(coord) @ vectors
    values = spectrum.diagonal(dim1=1, dim2=2)
    mixed = (spectrum - torch.diag_embed(values)).abs().max()
    return title, float(torch.maximum(mixed, -values.diff().min())), 1e-5


def check(path: Path) -> list[tuple[str, float, float]]:
    fixture = Fixture.read(path)
    data, rank, local = fixture.data, fixture.config["rank"], fixture.config["local"]
    vit = config_of(fixture)
    model = Classification(PointViT(vit), data["out.logits"].shape[1])
    adapted = adapt(model, PointGSTConfig(rank=rank, graphs=[0, local], compat="released")).eval()
    names = fill(adapted, fixture.state, name)
    adapted.requires_grad_(True)
    point = fixture.point

    center = group(point, vit.groups, vit.group_size, "released").center
    whole = torch.arange(vit.groups).expand(len(center), -1)
    graphs = stored_graphs(data["mid.U"], whole), stored_graphs(data["mid.sub_U"], data["mid.idx_sort"])
    point.cache[Settings((0, local), released=True)] = (center, graphs)
    nodes = center.flatten(0, 1)
    wrong = (morton_order(center, released=True) != data["mid.idx_sort"]).sum()
    results = [
        ("mid.idx_sort (wrong places)", float(wrong), 0.0),
        are_eigenvectors("mid.U (on our Laplacian)", nodes[graphs[0].index], graphs[0].basis),
        are_eigenvectors("mid.sub_U (on our Laplacian)", nodes[graphs[1].index], graphs[1].basis),
    ]
    adapter = model.backbone.blocks[0].ffn.adapters["default"]
    pcsa_in: list[Tensor] = []
    adapter.register_forward_hook(lambda m, args, out: pcsa_in.extend([args[1].feat, m.branch(args[1])]))
    found, logits = front_and_blocks(model, fixture, point)
    results += [
        close(f"mid.pcsa0_{end}", ours, data[f"mid.pcsa0_{end}"])
        for end, ours in zip(("in", "out"), pcsa_in[:2], strict=True)
    ]
    F.cross_entropy(logits, data["in.labels"].long()).backward()
    return results + found + gradients(adapted, names, fixture.notes)
