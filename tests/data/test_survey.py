"""init: a folder of scans is looked at, and the dataset.yaml proposed for it can be used at once."""

import os

import laspy
import numpy as np
import pytest

from pointadapt.data.scans import DataSet
from pointadapt.data.survey import find_scans, init_dataset, report, suggest_grid, survey
from pointadapt.errors import UserError


def write_laz(path, classes, num=400, seed=0, size=60.0, returns=(1, 2)):
    rng = np.random.default_rng(seed)
    las = laspy.LasData(laspy.LasHeader(version="1.4", point_format=6))
    las.header.scales, las.header.offsets = [0.01] * 3, [770_000, 6_270_000, 0]
    x, y = rng.uniform(0, size, (2, num))
    las.x, las.y, las.z = 770_000 + x, 6_270_000 + y, rng.uniform(0, 5, num)
    las.classification = rng.choice(classes, num)
    las.intensity = rng.integers(100, 1500, num)
    las.return_number, las.number_of_returns = (np.full(num, value) for value in returns)
    path.parent.mkdir(exist_ok=True)
    las.write(path)


def write_npz(path, labels=None, num=200, spacing=0.01, **more):
    side = int(np.ceil(np.sqrt(num)))
    coord = np.stack(np.meshgrid(np.arange(side), np.arange(side), [0.0]), -1).reshape(-1, 3)[:num] * spacing
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, coord=coord, **({} if labels is None else {"label": np.resize(labels, num)}), **more)


def test_airborne_folder(tmp_path):
    for i in range(5):
        write_laz(tmp_path / f"tile_{i}.laz", [1, 2, 5, 6, 7] if i != 3 else [2, 5, 6, 64], seed=i)
    files = survey(tmp_path)
    path = init_dataset(tmp_path, files)
    dataset = DataSet.open(path)
    assert dataset.classes == {2: "ground", 5: "high vegetation", 6: "building", 64: "perennial structure"}
    assert dataset.ignore == (1, 7) and dataset.label_field == "classification"
    assert set(dataset.color) == {"intensity", "return_number", "number_of_returns"}
    assert dataset.normals == "estimate" and dataset.transform == "aerial"
    assert dataset.voxel == pytest.approx(0.02)
    assert "tile_3.laz" in dataset.splits["train"]  # the only one with class 64
    assert len(dataset.splits["train"]) == 4 and len(dataset.splits["val"]) == 1
    text = path.read_text()
    assert "\ncolor: {intensity: " in text and "1 unassigned, 7 low noise" in text
    facts = report(dataset, files)
    assert facts["points"] == 2000 and sum(count for _, count in facts["classes"].values()) < 2000
    assert [file["split"] for file in facts["files"]].count("val") == 1 and facts["warnings"] == []
    for split in ("train", "val"):
        for scan in dataset.paths(split):
            dataset.read(scan)


def test_returns_that_no_file_tells_are_no_colour(tmp_path):
    for number in range(3):
        write_laz(tmp_path / f"{number}.laz", [2, 6], seed=number, returns=(0, 0))
    init_dataset(tmp_path, survey(tmp_path))
    assert list(DataSet.open(tmp_path).color) == ["intensity"]


def test_echoes_take_the_place_of_colour(tmp_path):
    write_laz(tmp_path / "a.laz", [2, 6])
    path = init_dataset(tmp_path)
    assert list(DataSet.open(path).color) == ["intensity", "return_number", "number_of_returns"]
    assert DataSet.open(path).read(tmp_path / "a.laz")["color"].max() == 255


def test_chosen_classes_and_sizes(tmp_path):
    write_laz(tmp_path / "a.laz", [2, 3, 6, 64])
    write_laz(tmp_path / "b.laz", [2, 3, 6, 64], seed=1)
    dataset = DataSet.open(init_dataset(tmp_path, classes=[6, 2], grid_size=0.5, scale=0.1, val=0.5))
    assert dataset.classes == {6: "building", 2: "ground"} and dataset.ignore == (3, 64)
    assert (dataset.grid_size, dataset.scale) == (0.5, 0.1)
    dataset = DataSet.open(init_dataset(tmp_path, classes={2: "soil: wet #1", 64: "yes"}, overwrite=True))
    assert dataset.names == ["soil: wet #1", "yes"]


def test_existing_yaml_is_kept(tmp_path):
    write_laz(tmp_path / "a.laz", [2, 6])
    (tmp_path / "dataset.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"dataset.yaml exists already"):
        init_dataset(tmp_path)
    assert (tmp_path / "dataset.yaml").read_text() == "mine"
    init_dataset(tmp_path, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["a.laz", "dataset.yaml"]


def test_indoor_folder_with_split_folders(tmp_path):
    color = np.full((200, 3), 90, np.uint8)
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        for i in range(count):
            write_npz(tmp_path / split / f"room{i}.npz", [0, 1, 2], color=color)
    dataset = DataSet.open(init_dataset(tmp_path))
    assert dataset.splits == {
        "train": ("train/room0.npz", "train/room1.npz"),
        "val": ("val/room0.npz",),
        "test": ("test/room0.npz",),
    }
    assert dataset.names == ["class 0", "class 1", "class 2"]
    assert (dataset.grid_size, dataset.scale, dataset.color, dataset.transform) == (0.02, 1.0, "rgb", "indoor")


def test_unlabelled_files_are_in_no_split(tmp_path):
    for i in range(3):
        write_npz(tmp_path / f"{i}.npz", [4, 5])
    write_npz(tmp_path / "new.npz")
    splits = DataSet.open(init_dataset(tmp_path)).splits
    assert sorted(sum(splits.values(), ())) == ["0.npz", "1.npz", "2.npz"]


def test_negative_ids_are_ignored(tmp_path):
    for i in range(3):
        write_npz(tmp_path / f"{i}.npz", [4, 5, -100, -1])
    dataset = DataSet.open(init_dataset(tmp_path))
    assert dataset.ignore == (-100,)
    assert set(dataset.read(tmp_path / "0.npz")["segment"]) == {0, 1, -1}


def test_one_file_is_for_training_with_a_warning(tmp_path):
    write_npz(tmp_path / "only.npz", [4, 5])
    files = survey(tmp_path)
    dataset = DataSet.open(init_dataset(tmp_path, files))
    assert dataset.splits == {"train": ("only.npz",), "val": (), "test": ()}
    assert "only one labelled file" in report(dataset, files)["warnings"][0]


def test_splits_are_deterministic_and_cover_classes(tmp_path):
    for i in range(12):
        write_npz(tmp_path / f"{i:02d}.npz", [1, 2, 3] if i in (2, 7) else [1, 2])
    first = DataSet.open(init_dataset(tmp_path)).splits
    assert first == DataSet.open(init_dataset(tmp_path, overwrite=True)).splits
    assert len(first["val"]) == 2 and len({"02.npz", "07.npz"} & set(first["val"])) == 1


@pytest.mark.parametrize("rare", range(6))
def test_a_class_of_one_file_is_learned(tmp_path, rare):
    for i in range(6):
        write_npz(tmp_path / f"{i}.npz", [1, 2, 3] if i == rare else [1, 2])
    assert f"{rare}.npz" in DataSet.open(init_dataset(tmp_path)).splits["train"]


@pytest.mark.parametrize("labels", [None, [-1], [0]])
def test_nothing_to_learn_from(tmp_path, labels):
    if labels == [0]:
        write_laz(tmp_path / "a.laz", [0, 1])
    else:
        write_npz(tmp_path / "a.npz", labels)
    with pytest.raises(UserError, match=r"no labelled points to learn from"):
        init_dataset(tmp_path)
    assert not (tmp_path / "dataset.yaml").exists()


@pytest.mark.parametrize("place", ["left", "train/left", "left/train"])
def test_one_class_alone(tmp_path, place):
    write_npz(tmp_path / place / "v0" / "0.npz")
    with pytest.raises(UserError, match="all are of one class, left, .* or add a folder of another class$"):
        init_dataset(tmp_path)


def test_predictions_are_no_scans(tmp_path):
    for name in ("a", "a_labelled", "deep/b", "deep/b_labelled", "b_labelled", "c", "c_labelled/c"):
        write_npz(tmp_path / f"{name}.npz", [1, 2])
    assert [path.name for path in find_scans(tmp_path)] == ["a.npz", "b_labelled.npz", "c.npz", "b.npz"]
    assert DataSet.open(init_dataset(tmp_path)).paths("train")


def test_finds_scans_of_all_kinds(tmp_path):
    write_npz(tmp_path / "b.npz")
    write_npz(tmp_path / "deep" / "er" / "a.npz")
    (tmp_path / "room").mkdir()
    np.save(tmp_path / "room" / "coord.npy", np.zeros((3, 3)))
    np.save(tmp_path / "room" / "color.npy", np.zeros((3, 3)))
    np.save(tmp_path / "f_points.npy", np.zeros((3, 3)))
    np.save(tmp_path / "f_labels.npy", np.zeros(3))
    write_npz(tmp_path / ".hidden" / "c.npz")
    (tmp_path / "notes.txt").write_text("x")
    found = [path.relative_to(tmp_path).as_posix() for path in find_scans(tmp_path)]
    assert found == ["b.npz", "deep/er/a.npz", "f_points.npy", "room"]


def test_no_scans(tmp_path):
    with pytest.raises(UserError, match="no scans in it .* and no shapes"):
        init_dataset(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        init_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize(("spacing", "grid"), [(0.01, 0.02), (0.14, 0.25), (0.3, 0.5), (0.004, 0.01), (1.2, 2.5)])
def test_suggested_grid_follows_the_spacing(tmp_path, spacing, grid):
    write_npz(tmp_path / "a.npz", [1], spacing=spacing)
    assert suggest_grid(survey(tmp_path)) == pytest.approx(grid)


@pytest.mark.parametrize(("name", "value"), [("grid_size", -1.0), ("scale", 0.0), ("val", 1.0), ("val", -0.1)])
def test_senseless_numbers_write_nothing(tmp_path, name, value):
    write_laz(tmp_path / "a.laz", [2, 6])
    with pytest.raises(UserError, match=f"{name} is {value}"):
        init_dataset(tmp_path, **{name: value})
    assert not (tmp_path / "dataset.yaml").exists()


def test_rooms_are_no_finer_than_the_backbone_knows(tmp_path):
    from pointadapt.data.synthetic import write_rooms

    write_rooms(tmp_path, 1, "a")
    for indoor_grid, expected in ((0.02, 0.05), (0.08, 0.08)):
        dataset = DataSet.open(init_dataset(tmp_path, overwrite=True, indoor_grid=indoor_grid))
        assert dataset.grid_size == expected and dataset.voxel == pytest.approx(0.02)
