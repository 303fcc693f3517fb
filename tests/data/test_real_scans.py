"""Real scans, where POINTADAPT_REAL_DATA names a folder with them (see CONTRIBUTING): read, prepared, written back."""

import os
from pathlib import Path

import laspy
import numpy as np
import pytest

from pointadapt.data.benchmark_init import init_benchmark
from pointadapt.data.benchmarks import find_benchmark
from pointadapt.data.io import read_scan, write_labels
from pointadapt.data.loader import ScanDataset
from pointadapt.data.presets import eval_transform, outdoor_train
from pointadapt.data.scans import DataSet
from pointadapt.data.survey import init_dataset

ROOT = Path(os.environ.get("POINTADAPT_REAL_DATA", "nowhere"))
IGN = sorted(ROOT.glob("04_*/*.laz"))
KITTI = sorted(ROOT.glob("06_*/*_points.npy"))

pytestmark = pytest.mark.data


@pytest.mark.skipif(not IGN, reason="POINTADAPT_REAL_DATA has no IGN tiles")
def test_airborne_tiles(tmp_path):
    for path in IGN:
        (tmp_path / path.name).symlink_to(path)
    dataset = DataSet.open(init_dataset(tmp_path, classes=[2, 3, 4, 5, 6]))
    assert dataset.names[0] == "ground" and 0.2 <= dataset.grid_size <= 0.5 and dataset.transform == "aerial"
    assert set(dataset.ignore) == {1, 64}
    train = ScanDataset(dataset, "train", outdoor_train(dataset.voxel, 4000))
    sample = train[0]
    assert len(sample["feat"]) == 4000 and np.isfinite(sample["feat"]).all() and (sample["segment"] >= 0).mean() > 0.8
    ground = sample["segment"] == 0
    assert sample["normal"][ground, 2].mean() > 0.9  # flat, and up
    held_out = ScanDataset(dataset, "val", eval_transform(dataset.voxel))
    assert len(held_out[0]["origin_segment"]) == len(read_scan(dataset.paths("val")[0]))


@pytest.mark.skipif(not IGN, reason="POINTADAPT_REAL_DATA has no IGN tiles")
def test_airborne_tile_written_back(tmp_path):
    scan = read_scan(IGN[0])
    assert scan.color is None and scan.coord[:, 1].min() > 6e6  # RGB fields full of zeros; Lambert 93
    assert set(scan.extras) == {"intensity", "return_number", "number_of_returns"}
    classes = np.where(scan.label == 2, 2, 6)
    write_labels(IGN[0], tmp_path / "out.laz", classes, np.full(len(scan), 0.75))
    old, new = laspy.read(IGN[0]), laspy.read(tmp_path / "out.laz")
    np.testing.assert_array_equal(new.classification, classes)
    assert (np.asarray(new.confidence) == 0.75).all()
    for name in old.point_format.dimension_names:
        if name != "classification":
            np.testing.assert_array_equal(new[name], old[name], err_msg=name)
    crs = [[v.string for v in las.header.vlrs if type(v).__name__ == "WktCoordinateSystemVlr"] for las in (old, new)]
    assert crs[0] == crs[1] != []


@pytest.mark.skipif(not KITTI, reason="POINTADAPT_REAL_DATA has no SemanticKITTI frames")
def test_frames_with_labels_beside_them(tmp_path):
    scan = read_scan(KITTI[0])
    assert len(scan) > 50_000 and set(np.unique(scan.label)) <= set(range(20))
    for path in KITTI:
        for file in (path, path.with_name(path.name.replace("points", "labels"))):
            (tmp_path / file.name).symlink_to(file)
    dataset = DataSet.open(init_dataset(tmp_path))
    assert len(dataset.paths("train")) == len(KITTI) - 1
    assert ScanDataset(dataset, "val", eval_transform(dataset.voxel))[0]["feat"].shape[1] == 9


@pytest.mark.skipif(not KITTI, reason="POINTADAPT_REAL_DATA has no SemanticKITTI frames")
def test_frames_in_their_official_layout(tmp_path):
    """The frames lie in the data folder as arrays with learned classes 0..19: written back as .bin and .label."""
    inverse = np.array([0, 10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81], np.uint32)
    for number, path in enumerate(KITTI):
        place = tmp_path / "sequences" / ("08" if number == 0 else "00")
        for folder in ("velodyne", "labels"):
            (place / folder).mkdir(parents=True, exist_ok=True)
        coord = np.load(path)
        np.c_[coord, np.full(len(coord), 0.5)].astype(np.float32).tofile(place / "velodyne" / f"{number:06d}.bin")
        label = np.load(path.with_name(path.name.replace("points", "labels"))).ravel()
        (inverse[label] | (7 << 16)).astype(np.uint32).tofile(place / "labels" / f"{number:06d}.label")
    (file,) = init_benchmark(tmp_path, find_benchmark(tmp_path))
    dataset = DataSet.open(file)
    assert len(dataset.paths("train")) == len(KITTI) - 1
    held_out = ScanDataset(dataset, "val", eval_transform(dataset.voxel))[0]
    label = np.load(KITTI[0].with_name(KITTI[0].name.replace("points", "labels"))).ravel()
    np.testing.assert_array_equal(held_out["origin_segment"], label - 1)
    road = held_out["segment"] == dataset.names.index("road")
    assert road.sum() > 500 and held_out["normal"][road, 2].mean() > 0.9 and (held_out["color"] == 128 / 255).all()
    assert len(ScanDataset(dataset, "train", outdoor_train(dataset.voxel, 4000))[0]["feat"]) == 4000
