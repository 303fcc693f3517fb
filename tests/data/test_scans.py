"""dataset.yaml: what it says is checked, and a scan comes out the way it says."""

import json

import numpy as np
import pytest
import yaml

from pointadapt.data.io import read_scan
from pointadapt.data.scans import UP, DataSet
from pointadapt.errors import UserError

GEO = np.array([770_512.25, 6_277_501.75, 41.5])


def write_scan(path, num=300, seed=0, labels=(2, 3, 6), **more):
    rng = np.random.default_rng(seed)
    coord = (rng.random((num, 3)) * [8, 6, 3]).round(2) + GEO
    made = {"coord": coord, "label": rng.choice(labels, num), "intensity": rng.integers(0, 2000, num), **more}
    np.savez(path, **made)
    return made


def write_yaml(folder, **changes):
    content = {
        "classes": {2: "ground", 3: "vegetation", 6: "building"},
        "ignore": [1],
        "splits": {"train": ["a.npz"], "val": ["b.npz"]},
        **changes,
    }
    content = {k: v for k, v in content.items() if v is not ...}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


@pytest.fixture
def folder(tmp_path):
    write_scan(tmp_path / "a.npz")
    write_scan(tmp_path / "b.npz", seed=1)
    return write_yaml(tmp_path)


def test_opens_and_says_what_is_in_it(folder):
    for path in (folder, folder / "dataset.yaml", str(folder)):
        dataset = DataSet.open(path)
        assert dataset.names == ["ground", "vegetation", "building"] and dataset.raw_ids.tolist() == [2, 3, 6]
        assert dataset.paths("train") == [folder / "a.npz"] and dataset.paths("test") == []
        assert dataset.voxel == 0.02 and dataset.color == "rgb" and dataset.normals == "estimate"


def test_survives_json(folder):
    dataset = DataSet.open(write_yaml(folder, color={"intensity": 2000, "label": 5, "x": 1}, label_field="label"))
    again = DataSet.from_dict(json.loads(json.dumps(dataset.as_dict())), folder)
    assert again == dataset


def test_ids_of_one_name_are_one_class(folder):
    dataset = DataSet.open(write_yaml(folder, classes={2: "ground", 3: "green", 4: "green", 6: "building"}))
    assert dataset.names == ["ground", "green", "building"] and dataset.raw_ids.tolist() == [2, 3, 6]
    np.testing.assert_array_equal(dataset.index(np.array([6, 4, 3, 2, 1, -1])), [2, 1, 1, 0, -1, -1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class": {1: "a"}}, r"unknown key 'class'; did you mean 'classes'"),
        ({"gridsize": 1}, r"unknown key 'gridsize'; did you mean 'grid_size'"),
        ({"zzz": 1}, r"unknown key 'zzz'; the keys are classes, ignore"),
        ({"classes": ...}, r"'classes' is missing"),
        ({"classes": {}}, r"`classes` must be lines"),
        ({"classes": {"two": "ground"}}, r"`classes` must be whole numbers.*'two'"),
        ({"classes": {2.5: "ground"}}, r"whole numbers"),
        ({"ignore": 1}, r"`ignore` must be a list"),
        ({"ignore": [2]}, r"label id 2 is both in `classes` and in `ignore`"),
        ({"splits": {"training": ["a.npz"]}}, r"`splits` must be lists of paths under train, val, test"),
        ({"splits": {"train": "a.npz"}}, r"`splits.train` must be a list"),
        ({"splits": {"train": ["c.npz"]}}, r"splits.train lists .*c.npz, which does not exist"),
        ({"splits": {"train": ["a.npz"], "test": ["a.npz"]}}, r"a.npz is listed twice"),
        ({"grid_size": 0}, r"`grid_size` must be a number above 0, not 0"),
        ({"grid_size": "wide"}, r"`grid_size`"),
        ({"scale": True}, r"`scale`"),
        ({"scale": float("inf")}, r"`scale`"),
        ({"color": "blue"}, r"`color` must be rgb, none, or one or three fields"),
        ({"color": {"intensity": 1, "b": 1}}, r"`color`"),
        ({"color": {"intensity": 0, "b": 1, "c": 1}}, r"`color.intensity` must be a number above 0"),
        ({"normals": "yes"}, r"`normals` must be one of file, estimate, none"),
        ({"up": "w"}, r"`up` must be one of z, y, -y"),
        ({"transform": "moon"}, r"`transform` must be one of indoor, s3dis, outdoor, aerial"),
        ({"label_field": 3}, r"`label_field`"),
    ],
)
def test_mistakes_are_named(folder, changes, message):
    write_yaml(folder, **changes)
    with pytest.raises(UserError, match=message) as caught:
        DataSet.open(folder)
    assert str(folder / "dataset.yaml") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["classes: [", "- a\n- b", "", "\x00"])
def test_no_valid_yaml(folder, text):
    (folder / "dataset.yaml").write_text(text)
    with pytest.raises(UserError, match=r"dataset.yaml: "):
        DataSet.open(folder)


def test_no_yaml_at_all(tmp_path):
    with pytest.raises(UserError, match=r"no dataset.yaml here; write one with: pointadapt init"):
        DataSet.open(tmp_path)


def test_unknown_label_ids_are_named_with_their_file(folder):
    write_scan(folder / "a.npz", labels=(2, 3, 64))
    dataset = DataSet.open(folder)
    with pytest.raises(
        UserError, match=r"a.npz: label id 64 is neither in `classes` nor in `ignore` of .*dataset.yaml"
    ):
        dataset.read(folder / "a.npz")
    assert "segment" not in dataset.read(folder / "a.npz", labels=False)


def test_files_without_labels(folder):
    np.savez(folder / "a.npz", coord=np.random.default_rng(0).random((30, 3)))
    with pytest.raises(UserError, match=r"a.npz: no label field known by name.*label_field"):
        DataSet.open(folder).read(folder / "a.npz")
    with pytest.raises(UserError, match=r"a.npz: no field 'code'"):
        DataSet.open(write_yaml(folder, label_field="code")).read(folder / "a.npz")


def test_prepared_scan(folder):
    made = write_scan(folder / "a.npz")
    dataset = DataSet.open(write_yaml(folder, grid_size=0.5, scale=0.04))
    out = dataset.read(folder / "a.npz")
    assert dataset.voxel == pytest.approx(0.02) and out["name"] == "a.npz"
    np.testing.assert_allclose(out["coord"], (made["coord"] - made["coord"].min(0)) * 0.04, atol=1e-6)
    assert {k: out[k].dtype for k in ("coord", "color", "normal")} == dict.fromkeys(
        ("coord", "color", "normal"), np.float32
    )
    assert not out["color"].any()  # no colour in the file: zeros
    np.testing.assert_allclose(np.linalg.norm(out["normal"], axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(dataset.raw_ids[out["segment"]], made["label"])


def test_rows_of_a_scan(folder):
    dataset, scan = DataSet.open(write_yaml(folder, normals="none")), read_scan(folder / "a.npz")
    rows = np.array([5, 9, 200])
    out = dataset.prepare(scan, rows, labels=True)
    np.testing.assert_allclose(out["coord"], scan.coord[rows] - scan.coord[rows].min(0), atol=1e-5)
    np.testing.assert_array_equal(out["segment"], dataset.index(scan.label)[rows])
    before = scan.coord.copy()
    dataset.prepare(scan)
    np.testing.assert_array_equal(scan.coord, before)


def test_colour_sources(folder):
    rgb = np.random.default_rng(2).integers(1, 256, (300, 3)).astype(np.uint8)
    made = write_scan(folder / "a.npz", color=rgb, echo=np.arange(300))
    np.testing.assert_array_equal(DataSet.open(folder).read(folder / "a.npz")["color"], rgb)
    assert not DataSet.open(write_yaml(folder, color="none")).read(folder / "a.npz")["color"].any()
    fields = {"intensity": 1000, "echo": 299, "missing": 5}
    with pytest.raises(UserError, match=r"a.npz: no field 'missing'.*it has intensity, echo"):
        DataSet.open(write_yaml(folder, color=fields)).read(folder / "a.npz")
    fields = {"echo": 299, "intensity": 1000, "label": 6}
    with pytest.raises(UserError, match="no field 'label'"):  # the answer is no input
        DataSet.open(write_yaml(folder, color=fields)).read(folder / "a.npz")
    write_scan(folder / "a.npz", echo=np.arange(300), other=np.full(300, -1.0))
    color = DataSet.open(write_yaml(folder, color={"echo": 299, "intensity": 1000, "other": 6})).read(folder / "a.npz")
    np.testing.assert_allclose(color["color"][:, 0], np.arange(300) * 255 / 299, atol=0.51)
    np.testing.assert_allclose(color["color"][:, 1], np.clip(made["intensity"] * 0.255, 0, 255), atol=0.51)
    assert not color["color"][:, 2].any()


def test_normal_sources(folder):
    given = np.tile(np.float32([0, 1, 0]), (300, 1))
    write_scan(folder / "a.npz", normal=given)
    read = {kind: DataSet.open(write_yaml(folder, normals=kind)).read(folder / "a.npz") for kind in ("file", "none")}
    np.testing.assert_array_equal(read["file"]["normal"], given)
    assert not read["none"]["normal"].any()
    assert (DataSet.open(write_yaml(folder, normals="estimate")).read(folder / "a.npz")["normal"] != given).any()
    write_scan(folder / "a.npz")  # "file" falls back on an estimate
    assert DataSet.open(write_yaml(folder, normals="file")).read(folder / "a.npz")["normal"].any()


@pytest.mark.parametrize(("up", "upward"), [("z", (0, 0, 1)), ("y", (0, 1, 0)), ("-y", (0, -1, 0))])
def test_up_axis(folder, up, upward):
    assert np.linalg.det(UP[up]) == pytest.approx(1)
    np.testing.assert_array_equal(UP[up] @ upward, [0, 0, 1])
    coord = np.array([[0.0, 0, 0], upward, [1, 0, 0]])
    np.savez(folder / "a.npz", coord=coord, label=[2, 2, 2], normal=np.tile(np.float32(upward), (3, 1)))
    out = DataSet.open(write_yaml(folder, up=up, normals="file")).read(folder / "a.npz")
    np.testing.assert_array_equal(out["coord"][1] - out["coord"][0], [0, 0, 1])
    np.testing.assert_array_equal(out["normal"][0], [0, 0, 1])
