"""Published scene benchmarks: small folders in the exact layouts are found, read, split and scored as published."""

import json

import numpy as np
import pytest
import yaml

from pointadapt import cli
from pointadapt.data.benchmark_init import init_benchmark
from pointadapt.data.benchmarks import BENCHMARKS, CHUNKS, facts, find_benchmark, part_of
from pointadapt.data.io import read_scan, write_labels
from pointadapt.data.loader import ScanDataset
from pointadapt.data.presets import TRAIN_TRANSFORMS, eval_transform
from pointadapt.data.scans import DataSet
from pointadapt.errors import UserError
from pointadapt.run import Run
from scene_layouts import (
    POINTS,
    WRITERS,
    frame,
    ids,
    pointcept,
    write_nuscenes,
    write_s3dis,
    write_scannet,
    write_scannetpp,
    write_semantickitti,
    write_structured3d,
)

CLASSES = {
    "scannet": 20, "scannet200": 200, "scannetpp": 100, "structured3d": 25, "s3dis": 13, "semantickitti": 19,
    "nuscenes": 16,
}  # fmt: skip


def opened(folder, name, **options):
    (file,) = init_benchmark(folder, find_benchmark(folder, name), **options)
    return DataSet.open(file)


def test_every_benchmark_is_written_here():
    assert set(WRITERS) == set(BENCHMARKS) == set(CLASSES)


@pytest.mark.parametrize("name", WRITERS)
def test_found_opened_and_prepared(tmp_path, name):
    folder = WRITERS[name](tmp_path / "data")
    dataset = opened(folder, name)
    assert len(dataset.names) == CLASSES[name] and dataset.names == facts(name)["names"]
    train = ScanDataset(dataset, "train", TRAIN_TRANSFORMS[dataset.transform](dataset.voxel, 300))
    assert train[0]["feat"].shape[1] == 9 and np.isfinite(train[0]["feat"]).all()
    held_out = ScanDataset(dataset, "val", eval_transform(dataset.voxel))
    assert len(held_out[0]["origin_segment"]) == POINTS and (held_out[0]["origin_segment"] >= 0).sum() > 50
    assert dataset.voxel == pytest.approx(0.02) and len(str(dataset.scale)) <= 4
    again = DataSet.from_dict(json.loads(json.dumps(dataset.as_dict())), folder)
    assert again == dataset and again.paths("val") == dataset.paths("val")


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "scannet200"])
def test_seen_from_the_folder_alone(tmp_path, name):
    folder = WRITERS[name](tmp_path / "data")
    assert find_benchmark(folder).title.startswith(BENCHMARKS[name].title)


def test_other_scans_are_no_benchmark(tmp_path):
    pointcept(tmp_path / "train" / "kitchen", segment=ids(3))
    np.savez(tmp_path / "a.npz", coord=np.zeros((4, 3)))
    assert find_benchmark(tmp_path) is None


def test_labels_of_scannet_by_layout(tmp_path):
    folder = write_scannet(tmp_path)
    for name, field in {"scannet": "segment20", "scannet200": "segment200"}.items():
        dataset = opened(folder, name, overwrite=True)
        sample = dataset.read(folder / "val/scene0011_00")
        np.testing.assert_array_equal(sample["segment"], np.load(folder / "val/scene0011_00" / f"{field}.npy"))
        np.testing.assert_allclose(sample["normal"], np.load(folder / "val/scene0011_00/normal.npy"))
        assert [len(dataset.paths(split)) for split in ("train", "val", "test")] == [2, 1, 0]
    assert {group: len(names) for group, names in dataset.groups.items()} == {"head": 66, "common": 68, "tail": 66}
    assert sorted(sum(dataset.groups.values(), ())) == sorted(dataset.names)


def test_scannetpp_keeps_all_labels_for_scoring_and_learns_the_first(tmp_path):
    folder = write_scannetpp(tmp_path)
    dataset = opened(folder, "scannetpp")
    assert dataset.top_k == 3 and dataset.splits["train"] == (CHUNKS,)
    written = np.load(folder / "val/7b6477cb95/segment.npy")
    sample = ScanDataset(dataset, "val", cache=tmp_path / "cache")[0]
    np.testing.assert_array_equal(np.c_[sample["segment"], sample["more_segments"]], written)
    assert "more_segments" not in ScanDataset(dataset, "train")[0]
    whole = tmp_path / "whole"
    (folder / CHUNKS).rename(folder / "train")
    assert find_benchmark(folder, "scannetpp").notes[-1].startswith("train/ holds whole scenes") and not whole.exists()


def test_areas_of_s3dis(tmp_path, capsys):
    folder = write_s3dis(tmp_path / "s3dis")
    dataset = opened(folder, "s3dis")
    assert dataset.splits == {"train": ("Area_1", "Area_2", "Area_3", "Area_4", "Area_6"), "val": ("Area_5",)}
    assert dataset.transform == "s3dis" and len(dataset.paths("train")) == 5
    assert cli.main(["init", str(folder), "--layout", "s3dis", "--variant", "6fold"]) == 0
    assert "pool" in capsys.readouterr().err
    tested = []
    for area in range(1, 7):
        fold = DataSet.open(folder / f"Area_{area}.yaml")
        tested += fold.paths("val")
        assert fold.file.name == f"Area_{area}.yaml" and Run(fold.file).folder.name == f"s3dis-Area_{area}-nano-gem"
        assert len(fold.paths("train")) == 5 and not set(fold.paths("train")) & set(fold.paths("val"))
    assert len(set(tested)) == 6
    (files,) = init_benchmark(folder, find_benchmark(folder, "s3dis", "Area_2"), overwrite=True)
    assert DataSet.open(files).splits["val"] == ("Area_2",)


def test_frames_of_semantickitti(tmp_path):
    folder = write_semantickitti(tmp_path)
    found = find_benchmark(folder)
    assert any("03, 04, 05" in note for note in found.notes)
    dataset = opened(folder, "semantickitti")
    assert [p.parent.parent.name for p in dataset.paths("train")] == ["00", "00", "10"]
    path = dataset.paths("val")[0]
    raw = np.fromfile(path.parent.parent / "labels" / "000000.label", np.uint32) & 0xFFFF
    official = {int(k): v for k, v in LEARNING_MAP.items()}
    np.testing.assert_array_equal(dataset.read(path)["segment"], [official[r] - 1 for r in raw.tolist()])
    assert dataset.raw_ids.tolist() == [10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]
    remission = np.fromfile(path, np.float32).reshape(-1, 4)[:, 3]
    np.testing.assert_allclose(dataset.read(path)["color"], np.repeat(remission[:, None] * 255, 3, 1), atol=0.51)
    assert opened(write_semantickitti(tmp_path / "flat", "sequences"), "semantickitti").names == dataset.names


#: Official learning map of a few raw ids that share a class, and of ignored ones; the others follow from raw_ids.
LEARNING_MAP = {
    "0": 0, "1": 0, "10": 1, "11": 2, "13": 5, "15": 3, "16": 5, "18": 4, "20": 5, "30": 6, "31": 7, "32": 8, "40": 9,
    "44": 10, "48": 11, "49": 12, "50": 13, "51": 14, "52": 0, "60": 9, "70": 15, "71": 16, "72": 17, "80": 18,
    "81": 19, "99": 0, "252": 1, "253": 7, "254": 6, "255": 8, "256": 5, "257": 5, "258": 4, "259": 5,
}  # fmt: skip


def test_frames_of_nuscenes(tmp_path):
    folder = write_nuscenes(tmp_path)
    dataset = opened(folder, "nuscenes")
    (path,) = dataset.paths("val")
    scan = read_scan(path)
    assert scan.label is None and set(scan.extras) == {"intensity", "ring"} and len(scan) == POINTS
    raw = np.fromfile(folder / "raw/lidarseg/v1.0-trainval/val0_lidarseg.bin", np.uint8)
    segment = dataset.read(path)["segment"]
    assert (segment[raw == 17] == 3).all() and (segment[raw == 30] == 15).all() and (segment[raw == 31] == -1).all()
    assert (segment[raw == 0] == -1).all() and sorted(set(segment.tolist())) == list(range(-1, 16))
    intensity = np.fromfile(path, np.float32).reshape(-1, 5)[:, 3]
    assert intensity.max() > 200  # of 255
    np.testing.assert_allclose(dataset.read(path)["color"], np.repeat(intensity[:, None], 3, 1), atol=0.51)
    raw[:7].tofile(folder / "raw/lidarseg/v1.0-trainval/val0_lidarseg.bin")
    with pytest.raises(UserError, match="7 labels for the 400 points"):
        dataset.read(path)


def test_splits_of_structured3d(tmp_path):
    folder = write_structured3d(tmp_path)
    assert opened(folder, "structured3d").splits == {split: (split,) for split in ("train", "val", "test")}
    (folder / "test/scene_03250/room_1/segment.npy").unlink()
    assert list(find_benchmark(folder).datasets["dataset.yaml"].splits) == ["train", "val"]


def test_predictions_of_frames_are_label_files(tmp_path):
    path = tmp_path / "velodyne" / "000000.bin"
    frame(path, 4)
    classes = np.random.default_rng(0).choice([10, 40, 70], POINTS)
    write_labels(path, tmp_path / "out.label", classes, np.ones(POINTS))
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out.label", np.uint32), classes)
    with pytest.raises(UserError, match="call it out.label"):
        write_labels(path, tmp_path / "out.bin", classes, np.ones(POINTS))
    path.write_bytes(b"123456")
    with pytest.raises(UserError, match="no multiple of 4 float32"):
        read_scan(path)


def test_raw_id_that_nobody_knows(tmp_path):
    folder = write_semantickitti(tmp_path)
    dataset = opened(folder, "semantickitti")
    path = dataset.paths("val")[0]
    np.full(POINTS, 77, np.uint32).tofile(path.parent.parent / "labels" / "000000.label")
    with pytest.raises(UserError, match="label id 77 is neither in `classes` nor in `ignore`"):
        dataset.read(path)


@pytest.mark.parametrize(
    "name, spoil, given, message",
    [
        ("scannet", None, "train", "give .*data"),
        ("scannet", None, "..", "give .*data"),
        ("scannet", "val", "", "there is no val/ with scans"),
        ("s3dis", "Area_5", "", "Area_5 is missing.*--variant Area_1"),
        ("structured3d", "train", "", r"not laid out as Structured3D: it needs train/scene_XXXXX"),
        ("semantickitti", "dataset/sequences/08/labels", "", r"08/labels: no \.label files"),
        ("nuscenes", "info", "", "not laid out as nuScenes-lidarseg"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, name, spoil, given, message):
    folder = WRITERS[name](tmp_path / "data")
    if spoil:
        (folder / spoil).rename(tmp_path / "spoiled")
    with pytest.raises(UserError, match=message) as caught:
        find_benchmark(folder / given, name)
    assert "\n" not in str(caught.value)


def test_scans_without_labels_and_with_those_of_others(tmp_path):
    folder = write_scannet(tmp_path / "data")
    scan = next((folder / "train").iterdir())
    (folder / "mine").mkdir()
    assert part_of(folder / "train") == "ScanNet v2" and part_of(folder) is part_of(folder / "mine") is None
    np.save(scan / "segment20.npy", np.zeros(3, np.int16))
    with pytest.raises(UserError, match="segment20.npy: 3 rows for the .* points of coord.npy; export or prepare it"):
        read_scan(scan, "segment20")
    for file in (folder / "train").glob("*/segment*.npy"):
        file.unlink()
    for layout in (None, "scannet"):
        with pytest.raises(UserError, match="segment20.npy: no such file, nor labels in scans beside it"):
            find_benchmark(folder, layout)


def test_a_scan_that_lost_its_points(tmp_path):
    folder = write_scannet(tmp_path / "scannet")
    (folder / "val" / "scene0011_00" / "coord.npy").unlink()
    with pytest.raises(UserError, match="scene0011_00: there is color.npy but no coord.npy"):
        init_benchmark(folder, find_benchmark(folder))


def test_a_frame_of_semantickitti_without_its_labels(tmp_path):
    folder = write_semantickitti(tmp_path / "data")
    (file,) = init_benchmark(folder, find_benchmark(folder))
    path = DataSet.open(file).paths("train")[0]
    label = path.parent.parent / "labels" / f"{path.stem}.label"
    label.unlink()
    with pytest.raises(UserError, match=f"{label}: no such file; unpack the labels"):
        DataSet.open(file).read(path)


def test_unknown_names_and_raw_downloads(tmp_path):
    folder = write_s3dis(tmp_path / "data", areas=(1, 5))
    for layout, variant, message in (
        ("kitti", None, "layout 'kitti' is unknown: use one of scannet"),
        ("s3dis", "Area_7", "variant 'Area_7' is unknown"),
        ("s3dis", "6fold", "Area_2, Area_3, Area_4, Area_6 are missing"),
        ("scannet", "Area_5", "there are no variants of ScanNet"),
        (None, "Area_9", "variant 'Area_9' is unknown"),
    ):
        with pytest.raises(UserError, match=message):
            find_benchmark(folder, layout, variant)
    (tmp_path / "raw" / "v1.0-trainval").mkdir(parents=True)
    (tmp_path / "raw" / "v1.0-trainval" / "lidarseg.json").write_text("[]")
    with pytest.raises(UserError, match="pointadapt prepare nuscenes"):
        find_benchmark(tmp_path / "raw")


def test_init_by_the_command_line(tmp_path, capsys):
    folder = write_scannet(tmp_path)
    assert cli.main(["init", str(folder)]) == 0
    said = capsys.readouterr()
    assert "found ScanNet v2" in said.out and "--layout scannet200" in said.err and "--grid-size 0.08" in said.err
    content = yaml.safe_load((folder / "dataset.yaml").read_text())
    assert content["splits"] == {"train": ["train"], "val": ["val"]} and content["grid_size"] == 0.02
    assert cli.main(["init", str(folder), "--layout", "scannet200"]) == 2
    assert "exists already" in capsys.readouterr().err
    arguments = ["init", str(folder), "--layout", "scannet200", "--grid-size", "0.08", "--overwrite"]
    assert cli.main(arguments) == 0
    dataset = DataSet.open(folder)
    assert dataset.grid_size == 0.08 and dataset.scale == 0.25 and len(dataset.names) == 200
    assert cli.main(["init", str(folder), "--val", "0.5", "--overwrite"]) == 2
    assert "--val says nothing about a benchmark" in capsys.readouterr().err
    assert cli.main(["info", str(folder)]) == 0
