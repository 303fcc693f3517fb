"""Pretrain the bundled "nano-mae" backbone, a small Point-MAE, on procedural objects.

    OMP_NUM_THREADS=1 python scripts/pretrain_nano_mae.py --work nano_mae

Masked autoencoding (Pang et al., ECCV 2022): the encoder sees 40 % of the groups, a small decoder predicts the points
of the others from their positions (Chamfer distance). Beside it a linear head tells the class of the procedural objects
from the same visible tokens; decoder and head are thrown away. Half of the shapes are free compositions, which have no
class. Resumes from WORK/state.pt when it is there; the shapes are made anew from the seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.backbone import fingerprint
from pointadapt.backbones.point_vit import Block, PointViT, PointViTConfig, PositionMLP
from pointadapt.backbones.weights import save_backbone
from pointadapt.data.object_set import UP
from pointadapt.data.synthetic_shapes import SHAPE_CLASSES, compositions, shapes
from pointadapt.ops.neighbors import gather, group_stack
from pointadapt.tokens import Tokens

CONFIG = PointViTConfig(channels=192, depth=4, heads=6, embed_channels=192, embed_hidden=(64, 128, 128))
MASKED = 0.6  # share of the groups
NO_CLASS = -1
WARM_UP = 100  # steps
SCALE = 100.0  # brings the Chamfer distance of groups of a unit sphere to about 1


class Decoder(nn.Module):
    """Predicts the points of the masked groups from the visible tokens and all centres."""

    def __init__(self, config: PointViTConfig, channels: int, depth: int) -> None:
        super().__init__()
        inner = PointViTConfig(channels=channels, depth=depth, heads=4)
        self.enter = nn.Linear(config.channels, channels)
        self.mask = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos = PositionMLP(channels)
        self.blocks = nn.ModuleList(Block(inner, 0.0) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 3 * config.group_size)
        nn.init.trunc_normal_(self.mask, std=0.02)

    def forward(self, feat: Tensor, seen: Tensor, hidden: Tensor) -> Tensor:
        """feat [B, V, C] of the centres ``seen`` [B, V, 3]; ``hidden`` [B, M, 3] -> [B, M, K, 3] relative points."""
        masked = hidden.shape[1]
        feat = torch.cat([self.enter(feat), self.mask.expand(len(feat), masked, -1)], 1)
        tokens = Tokens(feat, (("patch", feat.shape[1]),), self.pos(torch.cat([seen, hidden], 1)))
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens.feat[:, -masked:])).unflatten(-1, (-1, 3))


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance to the nearest point of the other group, both ways; a, b [..., K, 3]."""
    distance = sum((a[..., :, None, axis] - b[..., None, :, axis]).square() for axis in range(3))
    return distance.amin(-1).mean() + distance.amin(-2).mean()


class Shapes:
    """All training shapes with their groups, in memory."""

    def __init__(self, seed: int, count: int, points: int) -> None:
        named, label = shapes(seed, count // 2, points)
        free = compositions(seed, count - count // 2, points)
        self.coord = torch.from_numpy(np.concatenate([named, free]))
        self.label = torch.cat([torch.from_numpy(label), torch.full((len(free),), NO_CLASS)])
        found = [group_stack(part, CONFIG.groups, CONFIG.group_size) for part in self.coord.split(256)]
        self.center = torch.cat([f.center for f in found])
        self.index = torch.cat([f.index.to(torch.int16) for f in found])

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """groups [B, G, K, 3], centres [B, G, 3], labels [B]: turned about z, mirrored and scaled at random."""
        rows = torch.from_numpy(rng.integers(len(self.coord), size=size))
        angle = torch.from_numpy(rng.uniform(0, 2 * np.pi, size)).float()
        scale = torch.from_numpy(rng.uniform(0.85, 1.1, size)).float()
        flip = torch.from_numpy(rng.choice([-1.0, 1.0], size)).float()
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(size)
        turn = torch.stack([cos * flip, sin * flip, zero, -sin, cos, zero, zero, zero, zero + 1], 1).view(-1, 3, 3)
        turn *= scale[:, None, None]
        center = self.center[rows]
        coord = gather(self.coord[rows], self.index[rows].long()) - center[:, :, None]
        return (coord.flatten(1, 2) @ turn).view_as(coord), center @ turn, self.label[rows]


def tokenize(backbone: PointViT, coord: Tensor, center: Tensor) -> Tokens:
    """Tokens of chosen groups: what the tokenizer gives for all groups of a cloud."""
    feat = backbone.tokenizer.reduce(backbone.tokenizer.embed(coord))
    return Tokens(feat, (("patch", feat.shape[1]),), backbone.tokenizer.pos(center), center)


def losses(parts: nn.ModuleDict, batch: tuple[Tensor, Tensor, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
    backbone = parts["backbone"]
    coord, center, label = batch
    size, groups = center.shape[:2]
    order = torch.from_numpy(rng.random((size, groups)).argsort(1))
    seen, hidden = order.split([groups - round(MASKED * groups), round(MASKED * groups)], 1)
    flat = coord.flatten(2)
    hidden_coord, seen_coord = (gather(flat, rows).view(size, -1, *coord.shape[2:]) for rows in (hidden, seen))
    with torch.autocast("cpu", torch.bfloat16):
        seen_center = gather(center, seen)
        tokens = backbone.cls(tokenize(backbone, seen_coord, seen_center))
        for block in backbone.blocks:
            tokens = block(tokens)
        tokens = backbone.leave(tokens)
        patch = tokens.part("patch")
        made = parts["decoder"](patch, seen_center, gather(center, hidden))
        logits = parts["head"](torch.cat([tokens.part("cls")[:, 0], patch.amax(1)], 1))
    return {
        "chamfer": SCALE * chamfer(made.float(), hidden_coord),
        "class": F.cross_entropy(logits.float(), label, ignore_index=NO_CLASS),
    }


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: warm-up, constant for half of the steps, then a cosine to (nearly) zero. While it is
    constant a run may be resumed with another number of steps."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    left = min((steps - step) / (0.5 * steps), 1.0)
    return max(0.5 - 0.5 * math.cos(math.pi * left), 0.01)


def y_up(backbone: PointViT) -> PointViT:
    """The same network for shapes with y up, as object data sets give them; here they are made and turned with z up."""
    turn = torch.from_numpy(UP["z"]).float().T
    for linear in (backbone.tokenizer.embed.first[0], backbone.tokenizer.pos[0]):
        linear.weight.data = linear.weight.data @ turn
    return backbone


def save_atomically(content: dict, path: Path) -> None:
    torch.save(content, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the state")
    parser.add_argument("--out", type=Path, default=Path("src/pointadapt/assets/nano-mae.safetensors"))
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--shapes", type=int, default=16_000)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--class-weight", type=float, default=1.0, help="0: masked autoencoding alone")
    parser.add_argument("--keep", type=int, default=0, help="also write the weights every so many steps into WORK")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    began = time.time()
    data = Shapes(args.seed, args.shapes, args.points)
    print(f"{args.shapes} shapes in {time.time() - began:.0f} s", flush=True)
    backbone = PointViT(CONFIG)
    head = nn.Linear(2 * CONFIG.channels, len(SHAPE_CLASSES))
    parts = nn.ModuleDict({"backbone": backbone, "decoder": Decoder(CONFIG, channels=128, depth=2), "head": head})
    decayed = [p for p in parts.parameters() if p.ndim == 2]
    plain = [p for p in parts.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, args.steps))
    first, state_file = 0, args.work / "state.pt"
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        parts.load_state_dict(state["parts"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        first = state["step"]
        print(f"resumed at step {first}", flush=True)

    made = json.dumps({k: v for k, v in vars(args).items() if isinstance(v, int | float)})

    def write(path: Path) -> None:
        save_backbone(y_up(copy.deepcopy(backbone)), path, made=made, licence="Apache-2.0")

    parts.train()
    began, recent = time.time(), []
    for step in range(first, args.steps):
        rng = np.random.default_rng([args.seed, step])
        found = losses(parts, data.batch(rng, args.batch), rng)
        (found["chamfer"] + args.class_weight * found["class"]).backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        recent.append([found["chamfer"].item(), found["class"].item()])
        done = step + 1
        if done % 50 == 0 or done == args.steps:
            pace = (time.time() - began) / (done - first)
            chamfer_mean, class_mean = np.mean(recent, 0)
            recent = []
            print(
                f"{done}/{args.steps} {pace:.2f} s/step chamfer {chamfer_mean:.4f} class {class_mean:.4f}", flush=True
            )
        if args.keep and done % args.keep == 0:
            write(args.work / f"{done}.safetensors")
        if done % 100 == 0 or done == args.steps:
            content = {"parts": parts.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            save_atomically({**content, "schedule": schedule.state_dict(), "rng": torch.get_rng_state()}, state_file)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    write(args.out)
    print(args.out, fingerprint(backbone.state_dict()), flush=True)


if __name__ == "__main__":
    main()
