"""Small shapes in files, a small PointViT and a Run on both, so that training takes seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.backbones.weights import save_backbone
from pointadapt.data.synthetic import write_ply
from pointadapt.run import Run

CLASSES = ("ball", "box", "pole")
CONFIG = PointViTConfig(
    groups=12, group_size=8, channels=24, depth=2, heads=2, embed_channels=24, embed_hidden=(8, 16, 32)
)
BOX = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def shape(name: str, seed: int, points: int = 200) -> np.ndarray:
    """[N, 3] float32 points on the surface of a ball, a box or a pole."""
    rng = np.random.default_rng([seed, CLASSES.index(name)])
    if name == "box":
        coord = rng.uniform(-1, 1, (points, 3))
        coord[np.arange(points), rng.integers(0, 3, points)] = rng.choice([-1, 1], points)
        return (coord * rng.uniform(0.8, 1.2, 3)).astype(np.float32)
    coord = rng.standard_normal((points, 3))
    coord /= np.linalg.norm(coord, axis=1, keepdims=True)
    return (coord * ([1, 1, 1] if name == "ball" else [0.1, 1, 0.1])).astype(np.float32)


def write_off(file: Path, scale: tuple[float, float, float] = (1, 1, 1)) -> None:
    """A box as a mesh of quadrilaterals."""
    corners = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    lines = ["OFF", f"8 {len(BOX)} 0"]
    lines += [" ".join(f"{v * s:g}" for v, s in zip(corner, scale, strict=True)) for corner in corners]
    lines += [" ".join(map(str, (4, *face))) for face in BOX]
    file.write_text("\n".join(lines) + "\n")


def write_shape(file: Path, coord: np.ndarray) -> None:
    """A PLY or NPY file of points."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, coord)
    else:
        header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(coord)}"]
        header += [f"property float {axis}" for axis in "xyz"] + ["end_header", ""]
        file.write_bytes("\n".join(header).encode() + coord.astype("<f4").tobytes())


def write_shapes(folder: Path, train: int = 6, val: int = 0, test: int = 2, yaml: str | None = "") -> Path:
    """Folders train/CLASS, val/CLASS, test/CLASS of PLY clouds (boxes: every other one a mesh in OFF) and, unless
    ``yaml`` is None, a dataset.yaml with its lines added."""
    seed = 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        for name in CLASSES:
            for number in range(count):
                seed += 1
                file = folder / split / name / f"{name}_{number}.ply"
                if name == "box" and number % 2:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_off(file.with_suffix(".off"), (1, 1 + seed % 3 / 10, 1))
                else:
                    write_shape(file, shape(name, seed))
    if yaml is not None:
        splits = "".join(f"  {split}: [{split}]\n" for split in ("train", "val", "test") if (folder / split).is_dir())
        lines = f"task: classification\nclasses: [{', '.join(CLASSES)}]\npoints: 64\nsplits:\n{splits}{yaml}"
        (folder / "dataset.yaml").write_text(lines)
    return folder


def write_backbone(file: Path, seed: int = 0, config: PointViTConfig = CONFIG) -> Path:
    """A checkpoint of a PointViT with random weights, large enough for shapes (or frames) to differ in its output."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = PointViT(config)
        for parameter in backbone.parameters():
            if parameter.ndim == 2:
                torch.nn.init.xavier_normal_(parameter)
        save_backbone(backbone, file)
    return file


def object_run(folder: Path, **changes: Any) -> Run:
    """A run on shapes in ``folder / "shapes"`` (written where missing) into ``folder / "run"``."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "shapes").exists():
        write_shapes(folder / "shapes")
    if not (folder / "tiny.safetensors").exists():
        write_backbone(folder / "tiny.safetensors")
    settings: dict[str, Any] = {
        "data": folder / "shapes",
        "out": folder / "run",
        "backbone": str(folder / "tiny.safetensors"),
        "method": "houlsby",
        "steps": 6,
        "batch_size": 6,
        "eval_every": 2,
        "lr": 1e-2,
        "head_lr": 1e-2,
        "threads": 1,
    }
    return Run(**{**settings, **changes})


PARTS = ("cap", "stem", "lid", "side")


def write_parts(folder: Path, train: int = 6, test: int = 2) -> Path:
    """Mushrooms (a ball on a pole: cap, stem) and tins (a box: lid, side), PLY clouds with the part of each point."""
    seed = 0
    for split, count in (("train", train), ("test", test)):
        for category in ("mushroom", "tin"):
            for number in range(count):
                seed += 1
                coord = shape("ball" if category == "mushroom" else "box", seed, 240)
                if category == "mushroom":
                    part = (coord[:, 1] < 0.2).astype(np.int32)
                    coord = np.where(part[:, None] == 1, coord * [0.2, 1, 0.2], coord).astype(np.float32)
                else:
                    part = 2 + (coord[:, 1] < coord[:, 1].max() - 0.1).astype(np.int32)
                file = folder / split / category / f"{category}_{number}.ply"
                file.parent.mkdir(parents=True, exist_ok=True)
                write_ply(file, coord, np.full((len(coord), 3), 90, np.uint8), part)
    (folder / "dataset.yaml").write_text(
        f"task: parts\nclasses: [{', '.join(PARTS)}]\ncategories: {{mushroom: [0, 1], tin: [2, 3]}}\npoints: 96\n"
        "transform: parts\nsplits:\n  train: [train]\n  test: [test]\n"
    )
    return folder


def flags(folder: Path, config: PointViTConfig = CONFIG, **more: object) -> list[str]:
    """Flags of a very short run with the tiny backbone."""
    write_backbone(folder / "tiny.safetensors", config=config)
    given = {
        "backbone": folder / "tiny.safetensors",
        "steps": 2,
        "eval_every": 1,
        "batch_size": 4,
        "threads": 1,
        **more,
    }
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
