"""Small labelled scans, a small pretrained backbone and a Run on both, so that training takes seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from pointadapt.backbones.ptv3 import PTv3, PTv3Config
from pointadapt.backbones.weights import save_backbone
from pointadapt.data.scans import DataSet
from pointadapt.data.synthetic import write_ply
from pointadapt.domains.scenes import Scenes
from pointadapt.point import Point
from pointadapt.run import Run

CLASSES = {10: "ground", 20: "wall", 30: "box"}
CONFIG = PTv3Config(
    stride=(2,),
    enc_depths=(1, 1),
    enc_channels=(16, 32),
    enc_num_head=(1, 2),
    enc_patch_size=(64, 64),
    drop_path=0.1,
)


def scan(seed: int, points: int = 900, size: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(coord [N, 3], color [N, 3] uint8, raw label [N]): ground, a wall, a box; a few points are unlabelled (99)."""
    rng = np.random.default_rng(seed)
    label = rng.choice([10, 20, 30, 99], points, p=[0.4, 0.3, 0.28, 0.02])
    at = rng.uniform(0, 1, (points, 3))
    ground, wall, box = at * [size, size, 0.02], at * [0.02, size, 1], 0.7 + at * [0.5, 0.5, 0.4]
    coord = np.select([label[:, None] == 20, label[:, None] == 30], [wall, box], ground).astype(np.float32)
    shade = np.select([label == 10, label == 20, label == 30], [60, 120, 200], 20)
    color = np.clip(shade[:, None] + rng.normal(0, 20, (points, 3)), 0, 255).astype(np.uint8)
    return coord, color, label


class ByColor(nn.Module):
    """A model of the tiny scans that needs no training: it knows a class by its brightness."""

    def forward(self, point: Point) -> Tensor:
        shade = 255 * point.feat[:, 3:6].mean(1, keepdim=True)
        return -((shade - torch.tensor([60.0, 120.0, 200.0])) ** 2) / 100


def write_scans(folder: Path, train: int = 3, val: int = 1, test: int = 1, **changes: Any) -> Path:
    """A data set of tiny scans; ``changes`` go into its dataset.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[str]] = {}
    for number, split in enumerate(["train"] * train + ["val"] * val + ["test"] * test):
        name = f"{split}{number}.ply"
        write_ply(folder / name, *scan(number))
        splits.setdefault(split, []).append(name)
    content = {"classes": CLASSES, "ignore": [99], "splits": splits, "grid_size": 0.1, "normals": "none", **changes}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    return folder


def write_backbone(file: Path, seed: int = 0) -> Path:
    """A checkpoint of a two-stage PTv3 with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_backbone(PTv3(CONFIG), file)
    return file


def tiny_run(folder: Path, **changes: Any) -> Run:
    """A run on scans in ``folder / "scans"`` (written where missing) into ``folder / "run"``."""
    if not (folder / "scans").exists():
        write_scans(folder / "scans")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tiny.safetensors").exists():
        write_backbone(folder / "tiny.safetensors")
    settings: dict[str, Any] = {
        "data": folder / "scans",
        "out": folder / "run",
        "backbone": str(folder / "tiny.safetensors"),
        "options": {"rank": 4},
        "steps": 6,
        "points": 400,
        "eval_every": 2,
        "lr": 1e-2,
        "head_lr": 1e-2,
        "threads": 1,
    }
    settings.update(changes)
    if settings.get("method", "gem") != "gem" and "options" not in changes:
        settings["options"] = {}
    return Run(**settings)


def scenes(run: Run, names: list[str]) -> Scenes:
    """The run on scans with classes of these names."""
    return Scenes(run, DataSet(run.data, dict(enumerate(names))))
