"""Small folders in the exact layouts of the published scene benchmarks."""

import pickle

import numpy as np

from pointadapt.data.benchmarks import CHUNKS, facts

POINTS = 400


def pointcept(folder, seed=0, **arrays):
    """A scan in Pointcept's layout: float32 coord, uint8 color, float32 normal and what is given."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    normal = rng.standard_normal((POINTS, 3)).astype(np.float32)
    made = {
        "coord": (rng.random((POINTS, 3)) * [3, 2, 1]).astype(np.float32),
        "color": rng.integers(1, 256, (POINTS, 3)).astype(np.uint8),
        "normal": normal / np.linalg.norm(normal, axis=1, keepdims=True),
        "instance": rng.integers(-1, 5, POINTS),
        **arrays,
    }
    for name, values in made.items():
        np.save(folder / f"{name}.npy", values)
    return made


def ids(classes, seed=0, shape=POINTS, dtype=np.int64):
    return np.random.default_rng(seed).integers(-1, classes, shape).astype(dtype)


def write_scannet(folder):
    for seed, name in enumerate(("train/scene0000_00", "train/scene0000_01", "val/scene0011_00")):
        pointcept(folder / name, seed, segment20=ids(20, seed), segment200=ids(200, seed))
    pointcept(folder / "test/scene0707_00")
    return folder


def write_scannetpp(folder):
    for seed, name in enumerate((f"{CHUNKS}/0a5c013435_0", f"{CHUNKS}/0a5c013435_1", "val/7b6477cb95")):
        segment = ids(100, seed, (POINTS, 3), np.int16)
        segment[:, 0] = np.abs(segment[:, 0])
        pointcept(folder / name, seed, segment=segment, instance=segment)
    return folder


def write_s3dis(folder, areas=range(1, 7)):
    for area in areas:
        pointcept(folder / f"Area_{area}" / "office_1", area, segment=np.abs(ids(13, area, (POINTS, 1), np.int16)))
    return folder


def write_structured3d(folder):
    for seed, name in enumerate(("train/scene_00000/room_485142", "val/scene_03000/room_0", "test/scene_03250/room_1")):
        pointcept(folder / name, seed, segment=ids(25, seed, dtype=np.int16))
    return folder


def frame(file, width, seed=0, top=1.0):
    rng = np.random.default_rng(seed)
    values = rng.random((POINTS, width)).astype(np.float32) * ([20, 20, 2, top, 32][:width])
    file.parent.mkdir(parents=True, exist_ok=True)
    values.astype(np.float32).tofile(file)
    return values.astype(np.float32)


def write_semantickitti(folder, base="dataset/sequences"):
    raw = [raw for names in facts("semantickitti")["raw"].values() for raw in names] + facts("semantickitti")["ignore"]
    for seed, (sequence, number) in enumerate((("00", 0), ("00", 1), ("10", 0), ("08", 0), ("11", 0))):
        frame(folder / base / sequence / "velodyne" / f"{number:06d}.bin", 4, seed)
        if sequence != "11":
            rng = np.random.default_rng(seed)
            label = rng.choice(raw, POINTS).astype(np.uint32) | (rng.integers(0, 99, POINTS).astype(np.uint32) << 16)
            place = folder / base / sequence / "labels"
            place.mkdir(exist_ok=True)
            label.tofile(place / f"{number:06d}.label")
    return folder


def write_nuscenes(folder):
    """Pointcept's: raw/ as downloaded and an index of it."""
    (folder / "info").mkdir(parents=True)
    for split, count in {"train": 2, "val": 1}.items():
        infos = []
        for number in range(count):
            name = f"samples/LIDAR_TOP/{split}{number}.pcd.bin"
            label = f"lidarseg/v1.0-trainval/{split}{number}_lidarseg.bin"
            frame(folder / "raw" / name, 5, number, top=255)
            file = folder / "raw" / label
            file.parent.mkdir(parents=True, exist_ok=True)
            np.random.default_rng(number).integers(0, 32, POINTS).astype(np.uint8).tofile(file)
            infos.append({"lidar_path": name, "gt_segment_path": label, "sweeps": [], "ref_from_car": np.eye(4)})
        with open(folder / "info" / f"nuscenes_infos_10sweeps_{split}.pkl", "wb") as stream:
            pickle.dump(infos, stream)
    return folder


WRITERS = {
    "scannet": write_scannet,
    "scannet200": write_scannet,
    "scannetpp": write_scannetpp,
    "structured3d": write_structured3d,
    "s3dis": write_s3dis,
    "semantickitti": write_semantickitti,
    "nuscenes": write_nuscenes,
}
