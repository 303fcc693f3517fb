"""Small shapes and object data sets in the published layouts, written by the tests that read them."""

import json
import pickle
from pathlib import Path

import numpy as np

CUBE = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
CUBE_FACES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def cloud(seed: int, points: int = 200) -> np.ndarray:
    """[points, 3] float32: a flattened blob of its own."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((points, 3)) * rng.uniform(0.2, 2, 3)).astype(np.float32)


def write_off(path: Path, vertices=CUBE, faces=CUBE_FACES, glued: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = f"{len(vertices)} {len(faces)} 0"
    lines = [f"OFF{counts}"] if glued else ["OFF", counts]
    lines += [" ".join(map(str, vertex)) for vertex in vertices]
    lines += [" ".join(map(str, (len(face), *face))) for face in faces]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_txt(path: Path, values: np.ndarray, delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, values, "%.6f", delimiter)
    return path


def write_h5(path: Path, **arrays) -> Path:
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file.create_dataset(name, data=value)
    return path


def write_pickle(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def stack(count: int, points: int = 200, seed: int = 0) -> np.ndarray:
    """[count, points, 3] float32."""
    return np.stack([cloud(seed + i, points) for i in range(count)])


def class_folders(root: Path, files: dict[str, int], ending: str = ".npy", points: int = 200) -> Path:
    """FOLDER -> number of shapes in it."""
    for number, (folder, count) in enumerate(files.items()):
        place = root / folder
        place.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            coord = cloud(1000 * number + i, points)
            if ending == ".npy":
                np.save(place / f"s{i}.npy", coord)
            else:
                write_txt(place / f"s{i}{ending}", coord, " ")
    return root
