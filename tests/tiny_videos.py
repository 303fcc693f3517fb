"""Small videos in files, a small PointViT and a Run on both, so that training takes seconds."""

from pathlib import Path
from typing import Any

import torch

from moving import action_set, write_actions
from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.backbones.weights import save_backbone
from pointadapt.run import Run

CONFIG = PointViTConfig(
    groups=6, group_size=4, channels=24, depth=2, heads=2, embed_channels=24, embed_hidden=(8, 16, 32)
)


def write_backbone(file: Path, seed: int = 0) -> Path:
    """A checkpoint of a two-block PointViT with random weights, large enough for frames to differ in its output."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = PointViT(CONFIG)
        for parameter in backbone.parameters():
            if parameter.ndim == 2:
                torch.nn.init.xavier_normal_(parameter)
        save_backbone(backbone, file)
    return file


def video_run(folder: Path, **changes: Any) -> Run:
    """A run on videos that move left or right in ``folder / "videos"`` (written where missing) into "run"."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "videos").exists():
        write_actions(folder / "videos", train=4, test=2, ending=".ply")
        action_set(folder / "videos")
    if not (folder / "tiny.safetensors").exists():
        write_backbone(folder / "tiny.safetensors")
    settings: dict[str, Any] = {
        "data": folder / "videos",
        "out": folder / "run",
        "backbone": str(folder / "tiny.safetensors"),
        "method": "pointata",
        "options": {"rank": 8},
        "steps": 6,
        "batch_size": 4,
        "eval_every": 2,
        "lr": 1e-2,
        "head_lr": 1e-2,
        "threads": 1,
    }
    return Run(**{**settings, **changes})
