"""The command line on shapes: init writes what adapt needs, info shows files and folders."""

import re

import numpy as np
import pytest
import yaml
from plyfile import PlyData, PlyElement

from pointadapt.cli import main
from pointadapt.data.object_set import ObjectSet
from pointadapt.data.open import open_dataset
from pointadapt.data.scans import DataSet
from shapes import class_folders, cloud, write_off, write_txt


def test_init_writes_a_commented_yaml(tmp_path, capsys):
    class_folders(tmp_path, {"cup/train": 3, "vase/train": 2, "vase/test": 1, "cup/test": 1})
    assert main(["init", str(tmp_path)]) == 0
    told = capsys.readouterr()
    text = (tmp_path / "dataset.yaml").read_text()
    assert text in told.out and "pointadapt adapt" in told.out
    assert "  - cup  # 3 to learn from" in text and "How to read the 7 shapes of this folder" in text
    assert "train 5, test 2" in text and yaml.safe_load(text)["splits"]["train"] == ["cup/train", "vase/train"]
    assert "note: which axis is up" in told.err and "note: no val split" in told.err
    assert main(["init", str(tmp_path)]) == 2 and "exists already" in capsys.readouterr().err


def test_init_takes_choices(tmp_path, capsys):
    class_folders(tmp_path, {"cup": 4, "yes": 4})
    flags = ["--up", "y", "--points", "128", "--val", "0.5", "--task", "classification"]
    assert main(["init", str(tmp_path), *flags]) == 0
    dataset = open_dataset(tmp_path)
    assert isinstance(dataset, ObjectSet) and dataset.classes == ("cup", "yes")  # no truth value of YAML
    assert (dataset.up, dataset.points, dataset.holdout) == ("y", 128, 0.5)
    assert "which axis is up" not in capsys.readouterr().err
    assert main(["init", str(tmp_path), "--overwrite", "--variant", "x"]) == 2
    assert "there are no variants" in capsys.readouterr().err


def test_init_refuses_flags_of_the_other_kind(tmp_path, capsys):
    class_folders(tmp_path / "shapes", {"cup": 2, "vase": 2})
    (tmp_path / "scenes").mkdir()
    np.savez(tmp_path / "scenes" / "a.npz", coord=cloud(0), label=np.resize([0, 1], 200))
    for folder, flags, said in (
        ("shapes", ["--grid-size", "0.1"], "--grid-size says nothing about shapes, which .*shapes holds"),
        ("shapes", ["--classes", "1", "2"], "--classes says nothing about shapes"),
        ("scenes", ["--up", "y"], "--up says nothing about scenes"),
    ):
        assert main(["init", str(tmp_path / folder), *flags]) == 2
        assert re.search(said, capsys.readouterr().err)
        assert not (tmp_path / folder / "dataset.yaml").exists()


def test_init_names_the_field_of_parts(tmp_path, capsys):
    for number, name in enumerate(("cup", "vase")):
        vertex = np.zeros(80, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("piece", "i4"), ("label", "i4")])
        vertex["x"], vertex["y"], vertex["z"] = cloud(number, 80).T
        vertex["piece"] = np.resize([2 * number, 2 * number + 1], 80)
        (tmp_path / name).mkdir()
        PlyData([PlyElement.describe(vertex, "vertex")]).write(tmp_path / name / "a.ply")
    assert main(["init", str(tmp_path), "--task", "parts", "--label-field", "piece"]) == 0
    dataset = ObjectSet.open(tmp_path)
    assert dataset.categories == {"cup": (0, 1), "vase": (2, 3)} and dataset.label_field == "piece"
    assert "parts have numbers for names" in capsys.readouterr().err


def test_scenes_are_still_found(tmp_path, capsys):
    for number, name in enumerate(("house", "garden")):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "scan.npz", coord=cloud(number), label=np.resize([0, 1], 200))
    assert main(["init", str(tmp_path)]) == 0 and isinstance(open_dataset(tmp_path), DataSet)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["init", str(empty)]) == 2 and "no scans" in capsys.readouterr().err


@pytest.mark.parametrize(
    "write", [lambda p: write_off(p / "a.off"), lambda p: write_txt(p / "a.xyz", cloud(0, 90), " ")]
)
def test_info_on_a_shape(tmp_path, capsys, write):
    assert main(["info", str(write(tmp_path))]) == 0
    out = capsys.readouterr().out
    assert "points" in out and ("4,096" in out or "90" in out)


def test_info_on_a_data_set(tmp_path, capsys):
    class_folders(tmp_path, {"cup": 4, "vase": 4})
    assert main(["init", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "classification" in out and "vase" in out and "0.2" in out
