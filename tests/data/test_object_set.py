"""dataset.yaml of objects: every key checked with one sentence, both kinds told apart, shapes told what is wrong."""

import numpy as np
import pytest
import yaml

from pointadapt.data.object_files import in_two_splits
from pointadapt.data.object_set import UP, ObjectSet
from pointadapt.data.objects import ObjectItems
from pointadapt.data.open import dataset_from_dict, open_dataset
from pointadapt.data.scans import DataSet
from pointadapt.errors import UserError
from shapes import class_folders, cloud, stack, write_h5, write_json, write_pickle, write_txt

GOOD = {"task": "classification", "classes": ["cup", "vase"]}
PARTS = {"task": "parts", "classes": ["a", "b", "c"], "categories": {"cup": [0, 1], "vase": [2]}}


def from_dict(content, **more):
    return ObjectSet.from_dict({**content, **more}, "folder", "f.yaml")


def test_round_trip():
    full = from_dict(
        PARTS,
        folders={"0274": "cup"},
        splits={"train": ["a.npz", "b"], "val": None},
        tests={"noise_1": ["c.npz"]},
        holdout=0.25,
        points=512,
        up="-z",
        normalize=False,
        label_field="part",
        transform="parts",
    )
    assert full.splits == {"train": ("a.npz", "b"), "val": ()} and full.names == ["a", "b", "c"]
    assert full.targets == ("cup", "vase") and full.aliases == {"cup": 0, "vase": 1, "0274": 0}
    again = yaml.safe_load(yaml.safe_dump(full.as_dict()))
    assert ObjectSet.from_dict(again, "folder") == full and set(again) == set(full.as_dict())
    assert from_dict({**GOOD, "classes": {0: "cup", 1: "vase"}}).classes == ("cup", "vase")


@pytest.mark.parametrize(
    "content, said",
    [
        ([1], "it must hold keys such as task and classes, not list"),
        ({**GOOD, "clases": []}, "unknown key 'clases'; did you mean 'classes'"),
        ({**GOOD, "zzz": 1}, "unknown key 'zzz'; the keys are task, classes, categories"),
        ({"task": "classification"}, "the key 'classes' is missing"),
        ({"classes": ["a", "b"]}, "the key 'task' is missing"),
        ({**GOOD, "task": "detection"}, "`task` must be one of classification, parts; scenes have no such line"),
        ({**GOOD, "classes": ["a"]}, "`classes` must be a list of at least two names"),
        ({**GOOD, "classes": {3: "a", 4: "b"}}, "`classes` must be a list of at least two names"),
        ({**GOOD, "classes": ["a", "b", "a"]}, "`classes` names 'a' twice"),
        ({**GOOD, "splits": ["a"]}, "`splits` must be lists of paths under train, val, test"),
        ({**GOOD, "splits": {"dev": ["a"]}}, "`splits` must be lists of paths under train, val, test"),
        ({**GOOD, "splits": {"train": "a"}}, "`splits.train` must be a list of paths"),
        ({**GOOD, "splits": {"train": ["a"], "test": ["a"]}}, "a is listed twice in `splits`"),
        ({**GOOD, "tests": {"val": ["a"]}}, "`tests.val` belongs under `splits`"),
        ({**GOOD, "tests": {"noise": "a"}}, "`tests.noise` must be a list of paths"),
        ({**GOOD, "holdout": 1}, "`holdout` must be a share"),
        ({**GOOD, "holdout": True}, "`holdout` must be a share"),
        ({**GOOD, "points": 0}, "`points` must be a whole number of points above 0"),
        ({**GOOD, "points": 10.5}, "`points` must be a whole number of points above 0"),
        ({**GOOD, "up": "w"}, "`up` must be one of y, z, x, -y, -z"),
        ({**GOOD, "up": ["y"]}, "`up` must be one of"),
        ({**GOOD, "normalize": 1}, "`normalize` must be true or false"),
        ({**GOOD, "transform": "indoor"}, "`transform` must be one of scale_translate, rotate"),
        ({**GOOD, "label_field": 3}, "`label_field` must be the name of a field"),
        ({**GOOD, "folders": ["a"]}, "`folders` must be lines of"),
        ({**GOOD, "folders": {"0274": "jar"}}, "`folders.0274` is 'jar', which is none of cup, vase"),
        ({**GOOD, "categories": {"cup": [0]}}, "`categories` is for `task: parts`"),
        ({**PARTS, "categories": {}}, "`task: parts` needs `categories`"),
        (
            {**PARTS, "categories": {"cup": [0, 1]}},
            "`categories` must name each of the 3 parts",
        ),
        (
            {**PARTS, "categories": {"cup": [0, 1], "vase": [1, 2]}},
            "`categories` must name each of the 3 parts",
        ),
        ({**PARTS, "categories": {"cup": 0}}, "`categories` must be lines of"),
        ({**PARTS, "categories": {"cup": ["x"]}}, "`categories.cup` must be whole numbers"),
    ],
)
def test_each_key_is_checked(content, said):
    with pytest.raises(UserError, match=f"^f.yaml: {said}"):
        ObjectSet.from_dict(content, "folder", "f.yaml")


def test_both_kinds_open_by_their_task(tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "s").mkdir()
    (tmp_path / "o" / "dataset.yaml").write_text(yaml.safe_dump(GOOD))
    (tmp_path / "s" / "dataset.yaml").write_text("classes: {0: floor, 1: wall}\n")
    assert isinstance(open_dataset(tmp_path / "o"), ObjectSet)
    assert isinstance(open_dataset(tmp_path / "o" / "dataset.yaml"), ObjectSet)
    assert isinstance(open_dataset(tmp_path / "s"), DataSet)
    assert isinstance(dataset_from_dict(GOOD, tmp_path), ObjectSet)
    assert isinstance(dataset_from_dict({"classes": ["a"]}, tmp_path), DataSet)
    with pytest.raises(UserError, match="`task: classification` makes it a data set of single objects"):
        DataSet.open(tmp_path / "o")
    with pytest.raises(UserError, match="unknown key 'grid_size'"):
        dataset_from_dict({**GOOD, "grid_size": 1}, tmp_path)
    for kind in (open_dataset, ObjectSet.open):
        with pytest.raises(UserError, match="there is no folder .*nowhere"):
            kind(tmp_path / "nowhere")
        with pytest.raises(UserError, match="no dataset.yaml here; write one with: pointadapt init"):
            kind(tmp_path)
    (tmp_path / "dataset.yaml").write_text("a: [")
    with pytest.raises(UserError, match="no valid YAML"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({**GOOD, "splits": {"test": ["gone.npz#3"]}}))
    with pytest.raises(UserError, match="the split test lists gone.npz#3, which does not exist"):
        open_dataset(tmp_path)


def test_no_shape_is_in_two_splits_by_whatever_path(tmp_path):
    class_folders(tmp_path, {"a/cup": 2, "a/vase": 2, "b/cup": 2, "b/vase": 2})
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "c" / "cup").mkdir(parents=True)
    (tmp_path / "c" / "cup" / "own").with_suffix(".xyz").symlink_to(sorted((tmp_path / "a" / "cup").iterdir())[0])
    inside = sorted((tmp_path / "a" / "cup").iterdir())[0].relative_to(tmp_path).as_posix()
    for train, test in (("a", "./a"), ("a", "link"), ("a", "b/../a"), ("a", inside), ("a", "c"), (".", "b")):
        dataset = ObjectSet.from_dict({**GOOD, "splits": {"train": [train], "test": [test]}}, tmp_path)
        for split in ("train", "test"):
            with pytest.raises(UserError, match="is both in train and in test of `splits`; take it out of one"):
                dataset.items(split)
    dataset = ObjectSet.from_dict({**GOOD, "splits": {"train": ["a", "a/cup"], "val": [], "test": ["b"]}}, tmp_path)
    assert len(dataset.items("test")) == 4
    write_pickle(tmp_path / "all.pkl", stack(4))
    for train, test, refused in (("#0", "#1", 0), ("#1", "#1", 1), ("", "#1", 1), ("#1", "#10", 0)):
        found = in_two_splits(
            ObjectSet.from_dict(
                {**GOOD, "splits": {"train": [f"all.pkl{train}"], "test": [f"./all.pkl{test}"]}}, tmp_path
            )
        )
        assert (found is not None) == refused


@pytest.mark.parametrize("up", UP)
def test_up_becomes_y_without_mirroring(up):
    assert np.linalg.det(UP[up]) == pytest.approx(1)
    axis = np.zeros(3)
    axis["xyz".index(up[-1])] = -1 if up[0] == "-" else 1
    assert (UP[up] @ axis).tolist() == [0, 1, 0]


def test_prepare_depends_on_the_set_of_points_alone():
    coord = cloud(3).astype(np.float64) + 7
    shuffled = np.random.default_rng(0).permutation(200)
    dataset = from_dict(GOOD, up="z")
    first, again = dataset.prepare(coord), dataset.prepare(coord[shuffled])
    assert np.array_equal(first["coord"], again["coord"])
    assert np.array_equal(first["index"], shuffled[again["index"]])
    assert np.linalg.norm(first["coord"], axis=1).max() == pytest.approx(1, abs=1e-6)
    assert np.abs(first["coord"].mean(0)).max() < 1e-6
    assert (np.diff(coord[first["index"], 0]) >= 0).all()


# --- what is wrong with shapes --------------------------------------------------------------------------------------


def opened(folder, splits, **more):
    return ObjectSet.from_dict({**GOOD, "splits": splits, **more}, folder, folder / "dataset.yaml")


def test_unknown_folders_and_files(tmp_path):
    class_folders(tmp_path, {"cup": 1, "jar": 1, "0274/x": 1})
    dataset = opened(tmp_path, {"test": ["cup", "0274"]}, folders={"0274": "vase"})
    assert [item.target for item in dataset.items("test")] == [0, 1]
    for source, said in {
        "jar": "s0.npy: it lies in no folder of a known class .cup, vase.; name the folder in `folders`",
        "gone": "no such file, which .*dataset.yaml lists",
        "empty": "no shapes in this folder",
        "cup/a.docx": "unknown format '.docx'",
    }.items():
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "cup" / "a.docx").write_text("x")
        with pytest.raises(UserError, match=said):
            opened(tmp_path, {"test": [source]}).items("test")
    with pytest.raises(UserError, match="no split 'dev'; there are train, val, test, noise"):
        opened(tmp_path, {}, tests={"noise": []}).items("dev")
    with pytest.raises(UserError, match="the split 'train' lists no shapes"):
        ObjectItems(opened(tmp_path, {}), "train")


def test_sources_in_every_form(tmp_path):
    """Links, folders beside the data set, names with a #, text files with headings: each item is a source again."""
    class_folders(tmp_path / "beside", {"cup": 2})
    class_folders(tmp_path / "set", {"vase": 1})
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "beside")
    (tmp_path / "beside" / "cup" / "round").symlink_to(tmp_path / "beside")  # a circle
    np.save(tmp_path / "set" / "vase" / "a#1.npy", cloud(5))
    (tmp_path / "set" / "no#1").mkdir()
    np.savez(tmp_path / "set" / "no#1" / "x.npz", xyz=stack(2), label=[0, 1])
    assert opened(tmp_path / "set", {"test": ["no#1/x.npz#1"]}).items("test")[0].target == 1
    (tmp_path / "set" / "vase" / "b.txt").write_text("x y z\n" + "1 2 3\n4 5 6\n7 8 9.5\n")
    train = opened(tmp_path / "set", {"train": ["../beside", "vase"]}).items("train")
    test = opened(tmp_path / "set", {"test": ["linked"]}).items("test")
    assert [item.name for item in train] == [
        *("../beside/cup/s0.npy", "../beside/cup/s1.npy"),
        *("vase/a#1.npy", "vase/b.txt", "vase/s0.npy"),
    ]
    assert [item.target for item in train] == [0, 0, 1, 1, 1] and len(test) == 2
    again = opened(tmp_path / "set", {"train": [item.name for item in train]})
    assert again.items("train") == train and len(ObjectItems(again, "train")) == 5
    ObjectSet.open(written(again))


def written(dataset):
    dataset.file.write_text(yaml.safe_dump(dataset.as_dict()))
    return dataset.folder


def test_bad_shapes_are_named(tmp_path):
    class_folders(tmp_path, {"cup": 1})
    bad = cloud(0)
    bad[3] = np.nan
    np.save(tmp_path / "cup" / "nan.npy", bad)
    np.save(tmp_path / "cup" / "none.npy", np.zeros((0, 3), np.float32))
    np.save(tmp_path / "cup" / "flat.npy", np.zeros((9, 2), np.float32))
    write_txt(tmp_path / "cup" / "few.xyz", cloud(0, 20), " ")
    for file, said in {
        "nan.npy": "1 of 200 points have NaN",
        "none.npy": "no points",
        "flat.npy": r"shape \(9, 2\)",
        "few.xyz": "20 points, the model needs at least 64; leave this shape out",
    }.items():
        with pytest.raises(UserError, match=f"{file}: .*{said}"):
            ObjectItems(opened(tmp_path, {"test": [f"cup/{file}"]}), "test", need=64)
    assert len(ObjectItems(opened(tmp_path, {"test": ["cup/few.xyz"]}), "test", need=20)[0]["coord"]) == 20


def test_bad_arrays_are_named(tmp_path):
    np.savez(tmp_path / "range.npz", xyz=stack(2), label=[0, 2])
    np.savez(tmp_path / "count.npz", xyz=stack(2), label=[0])
    np.savez(tmp_path / "fraction.npz", xyz=stack(2), label=[0, 0.5])
    np.savez(tmp_path / "unlabelled.npz", xyz=stack(2))
    np.savez(tmp_path / "classes.npz", xyz=stack(2), label=[0, 1], classes=["cup", "jar"])
    np.savez(tmp_path / "ptr.npz", xyz=cloud(0), shape_ptr=[0, 300], label=[0])
    np.savez(tmp_path / "good.npz", xyz=stack(2), label=[1, 0])
    write_h5(tmp_path / "shape.h5", data=np.zeros((2, 5)), label=[0, 1])
    write_h5(tmp_path / "none.h5", other=[1])
    (tmp_path / "broken.h5").write_bytes(b"no HDF5")
    write_pickle(tmp_path / "split.pkl", {"train": [(cloud(0), 0)]})
    write_pickle(tmp_path / "list.dat", [1, 2, 3])
    write_pickle(tmp_path / "flat.dat", [[np.zeros(4)], [0]])
    write_json(tmp_path / "list.json", {"a": 1})
    for source, said in {
        "range.npz": "label 2 is out of range, there are 2 .0 to 1.",
        "count.npz": "1 labels for 2 shapes",
        "fraction.npz": "they must be whole numbers",
        "unlabelled.npz": "no labels in it or beside it",
        "classes.npz": "its class 'jar' is not in `classes`",
        "ptr.npz": "`shape_ptr` must rise from 0 to the 200 points",
        "good.npz#2": "there is no shape 2, it holds 2",
        "good.npz#train": "#train names a part of a pickle",
        "shape.h5": r"points of shape \[2, 5\]",
        "none.h5": "no array of points",
        "broken.h5": "not readable as H5",
        "split.pkl": "it holds train; name one of them as split.pkl#NAME",
        "list.dat": "a pickle of shapes holds",
        "flat.dat#0": r"#0: an array of shape \[4\]",
        "list.json": "must be a JSON list of names",
    }.items():
        with pytest.raises(UserError, match=f"{source.partition('#')[0]}.*{said}"):
            ObjectItems(opened(tmp_path, {"test": [source]}), "test")
    assert [item.target for item in opened(tmp_path, {"test": ["good.npz#1"]}).items("test")] == [0]


def test_bad_parts_are_named(tmp_path):
    values = np.concatenate([cloud(0), np.resize([0, 5], (200, 1))], 1)
    write_txt(tmp_path / "cup" / "range.txt", values)
    write_txt(tmp_path / "cup" / "unlabelled.txt", values[:, :3])
    np.savez(tmp_path / "range.npz", xyz=stack(1), part=np.full((1, 200), 9))
    np.savez(tmp_path / "shape.npz", xyz=stack(1), part=np.zeros((1, 100)), label=[0])
    np.savez(tmp_path / "unlabelled.npz", xyz=stack(1))
    for source, said in {
        "cup/range.txt": "part 5 is out of range, there are 3 .0 to 2.",
        "cup/unlabelled.txt": "no part of each point in it; set `label_field`",
        "range.npz": "part 9 is out of range",
        "shape.npz": "parts of shape",
        "unlabelled.npz": "no parts of points",
    }.items():
        dataset = ObjectSet.from_dict({**PARTS, "splits": {"test": [source]}}, tmp_path)
        with pytest.raises(UserError, match=said):
            ObjectItems(dataset, "test")
