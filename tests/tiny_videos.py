"""Small videos in files, a small PointViT and a Run on both, so that training takes seconds."""

from functools import partial
from pathlib import Path
from typing import Any

import tiny_objects
from moving import action_set, write_actions
from pointadapt.backbones.point_vit import PointViTConfig
from pointadapt.run import Run

CONFIG = PointViTConfig(
    groups=6, group_size=4, channels=24, depth=2, heads=2, embed_channels=24, embed_hidden=(8, 16, 32)
)


write_backbone = partial(tiny_objects.write_backbone, config=CONFIG)
flags = partial(tiny_objects.flags, config=CONFIG)


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
