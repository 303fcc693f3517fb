"""Pretrain the bundled "nano" backbone on procedural scans: rooms of style "a" and airborne tiles.

    python scripts/pretrain_nano.py --work nano --steps 6000 --out src/pointadapt/assets/nano.safetensors

Supervised: one linear head per domain on the concatenated levels; the heads are thrown away. Each step takes crops
of one domain, rooms and tiles in turn. Resumes from WORK/state.pt when it is there. Rooms of style "b", on which the
demo adapts and tests, are never seen.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pointadapt.backbones.backbone import fingerprint
from pointadapt.backbones.weights import load_backbone, save_backbone
from pointadapt.data.loader import ScanDataset, collate_batch
from pointadapt.data.presets import indoor_train, outdoor_train
from pointadapt.data.scans import DataSet
from pointadapt.data.synthetic import write_rooms
from pointadapt.data.synthetic_aerial import write_tiles
from pointadapt.data.transforms import Compose, Sample
from pointadapt.metrics import confusion_matrix, scores
from pointadapt.tasks.segmentation import segmentation_loss

VALIDATION = 8  # scans of each domain that are scored, not trained on
CLEAR_COLOR = 0.2  # share of crops without colour: scanners without a camera are common


@dataclass(frozen=True)
class Domain:
    """One kind of training scene."""

    name: str
    train: ScanDataset
    val: ScanDataset
    classes: int


def clear_color(sample: Sample, rng: np.random.Generator) -> Sample:
    """Sometimes the model gets no colour at all, as from files that have none."""
    return {**sample, "color": np.zeros_like(sample["color"])} if rng.random() < CLEAR_COLOR else sample


def make_domains(work: Path, rooms: int, tiles: int, points: int) -> list[Domain]:
    domains = []
    for name, write, number, presets in (
        ("rooms", write_rooms, rooms, indoor_train),
        ("tiles", write_tiles, tiles, outdoor_train),
    ):
        folder = work / name
        if not (folder / "dataset.yaml").is_file():
            write(folder, number, val=VALIDATION)
        data = DataSet.open(folder)
        grid = data.voxel
        train = ScanDataset(
            data, "train", Compose([clear_color, presets(grid, points)]), cache=work / "cache", limit=200_000
        )
        val = ScanDataset(data, "val", presets(grid, 4 * points), train=True, cache=work / "cache", limit=200_000)
        domains.append(Domain(name, train, val, len(data.classes)))
    return domains


def score(model: nn.Module, head: nn.Module, domain: Domain) -> float:
    """mIoU on augmented validation crops, one pass."""
    model.eval()
    confusion = torch.zeros(domain.classes, domain.classes, dtype=torch.long)
    with torch.inference_mode():
        for index in range(len(domain.val)):
            batch = collate_batch([domain.val[index]])
            confusion += confusion_matrix(head(model.dense(batch["point"])).argmax(1), batch["segment"], domain.classes)
    model.train()
    return scores(confusion).miou


def save_atomically(content: dict, path: Path) -> None:
    torch.save(content, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for scans, cache and state")
    parser.add_argument("--out", type=Path, default=Path("src/pointadapt/assets/nano.safetensors"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rooms", type=int, default=300)
    parser.add_argument("--tiles", type=int, default=100)
    parser.add_argument("--points", type=int, default=8192, help="voxels of a crop")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    domains = make_domains(args.work, args.rooms, args.tiles, args.points)
    backbone = load_backbone("nano", weights=None)
    heads = nn.ModuleDict({d.name: nn.Linear(backbone.dense_channels, d.classes) for d in domains})
    for head in heads.values():
        nn.init.trunc_normal_(head.weight, std=0.02)
    parts = nn.ModuleDict({"backbone": backbone, "heads": heads})
    decayed = [p for p in parts.parameters() if p.ndim > 1]
    plain = [p for p in parts.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.steps, pct_start=0.05, div_factor=10, final_div_factor=1000
    )
    first, state_file = 0, args.work / "state.pt"
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        parts.load_state_dict(state["parts"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        first = state["step"]
        print(f"resumed at step {first}", flush=True)

    parts.train()
    began, losses = time.time(), dict.fromkeys(heads, 0.0)
    for step in range(first, args.steps):
        domain = domains[step % len(domains)]
        rng = np.random.default_rng([args.seed, step])
        picks = rng.integers(len(domain.train), size=args.batch)
        domain.train.set_epoch(step)
        batch = collate_batch([domain.train[int(i)] for i in picks])
        logits = heads[domain.name](backbone.dense(batch["point"]))
        loss = segmentation_loss(logits, batch["segment"])
        loss.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        old = losses[domain.name]
        losses[domain.name] = loss.item() if not old else 0.98 * old + 0.02 * loss.item()
        done = step + 1
        if done % 50 == 0:
            pace = (time.time() - began) / (done - first)
            print(f"{done}/{args.steps} {pace:.2f} s/step", {k: round(v, 3) for k, v in losses.items()}, flush=True)
        if done % 500 == 0 or done == args.steps:
            print(f"{done} mIoU", {d.name: round(score(backbone, heads[d.name], d), 4) for d in domains}, flush=True)
        if done % 200 == 0 or done == args.steps:
            content = {"parts": parts.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            save_atomically({**content, "schedule": schedule.state_dict(), "rng": torch.get_rng_state()}, state_file)

    made = json.dumps({k: v for k, v in vars(args).items() if isinstance(v, int | float)})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_backbone(backbone, args.out, made=made, licence="Apache-2.0")
    print(args.out, fingerprint(backbone.state_dict()), flush=True)


if __name__ == "__main__":
    main()
