"""Small point videos in files, plain folders and published layouts, written by the tests that read them."""

from pathlib import Path

import numpy as np
import yaml

from pointadapt.data.video_set import VideoSet
from shapes import write_txt

CLASSES = ("left", "right")


def moving(label: int, seed: int = 0, frames: int = 6, points: int = 20) -> list[np.ndarray]:
    """Frames [n, 3] float32 of a blob that moves along x, to lower x for label 0; n differs from frame to frame."""
    rng = np.random.default_rng([seed, label])
    body = rng.standard_normal((points, 3)).astype(np.float32)
    way = np.linspace(-3, 3, frames)[:: 1 if label else -1]
    return [
        (body + [at, 0, 0]).astype(np.float32)[rng.permutation(points)[: points - i % 3]] for i, at in enumerate(way)
    ]


def write_frame(path: Path, coord: np.ndarray, label: np.ndarray | None = None) -> Path:
    """A frame as PLY, PCD (ascii), NPY, or TXT, with a label of each point if given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".txt":
        return write_txt(path, coord if label is None else np.column_stack([coord, label]), " ")
    if path.suffix == ".npy":
        np.save(path, coord)
        return path
    values = coord if label is None else np.column_stack([coord, label])
    body = "\n".join(" ".join(f"{v:.6g}" for v in row) for row in values)
    if path.suffix == ".ply":
        names = ["float x", "float y", "float z"] + (["int label"] if label is not None else [])
        head = [
            "ply",
            "format ascii 1.0",
            f"element vertex {len(coord)}",
            *(f"property {n}" for n in names),
            "end_header",
        ]
    else:
        extra = ("label", "4", "I", "1") if label is not None else ("", "", "", "")
        rows = [("FIELDS", "x y z"), ("SIZE", "4 4 4"), ("TYPE", "F F F"), ("COUNT", "1 1 1")]
        head = [
            "VERSION .7",
            *(f"{key} {value} {more}".strip() for (key, value), more in zip(rows, extra, strict=True)),
        ]
        head += [f"WIDTH {len(coord)}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {len(coord)}", "DATA ascii"]
    path.write_text("\n".join([*head, body, ""]))
    return path


def write_video(folder: Path, frames: list[np.ndarray], ending: str = ".npy", first: int = 0) -> Path:
    """Frames 0, 1, ..., 10, ... without leading zeros, so that sorting by text would mix them up."""
    for number, coord in enumerate(frames, first):
        write_frame(folder / f"frame_{number}{ending}", coord)
    return folder


def write_actions(folder: Path, train: int = 3, test: int = 2, frames: int = 6, ending: str = ".npy") -> Path:
    """{train,test}/CLASS/VIDEO/FRAME of both classes."""
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            for seed in range(count):
                seed_of_split = seed + 100 * (split == "test")
                write_video(folder / split / name / f"v{seed}", moving(label, seed_of_split, frames), ending)
    return folder


def action_set(folder: Path, **keys) -> VideoSet:
    """Opened through a dataset.yaml."""
    content = {
        "task": "action",
        "classes": list(CLASSES),
        "splits": {"train": ["train"], "test": ["test"]},
        "frames": 4,
        "points": 16,
        **keys,
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    return VideoSet.open(folder)


def ragged(frames: list[np.ndarray]) -> np.ndarray:
    """An object array, as np.savez makes of a list of frames of different sizes."""
    out = np.empty(len(frames), object)
    for number, frame in enumerate(frames):
        out[number] = frame
    return out


def write_npz(path: Path, **arrays) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path
