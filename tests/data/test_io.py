"""Every format is read, written back with its labels, and refused with one clear sentence when it is damaged."""

import os
import resource
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import laspy
import numpy as np
import pytest
from plyfile import PlyData, PlyElement
from pypcd4 import Encoding, PointCloud

from pointadapt.data.io import FORMATS, format_of, is_output, is_scan, left_out, read_scan, write_labels
from pointadapt.errors import UserError

CORNER = np.array([770_512.25, 6_277_501.75, 41.5])  # Lambert 93: float32 is good to half a metre here
FLOAT32_FORMATS = {"pcd", "pcd_ascii", "pcd_compressed", "folder"}


def cloud(num=200, seed=0):
    rng = np.random.default_rng(seed)
    coord = (rng.random((num, 3)) * [30, 30, 8]).round(2)
    return {
        "coord": coord,
        "color": rng.integers(0, 256, (num, 3)).astype(np.uint8),
        "intensity": rng.integers(1, 4000, num).astype(np.uint16),
        "label": rng.integers(0, 7, num).astype(np.uint8),
    }


def table(made, real="f8"):
    fields = [*((a, real) for a in "xyz"), *((c, "u1") for c in ("red", "green", "blue")), ("intensity", "u2")]
    out = np.empty(len(made["coord"]), [*fields, ("label", "u1")])
    for axis, name in enumerate("xyz"):
        out[name] = made["coord"][:, axis]
    for axis, name in enumerate(("red", "green", "blue")):
        out[name] = made["color"][:, axis]
    out["intensity"], out["label"] = made["intensity"], made["label"]
    return out


def write_ply(path, made, text=False):
    faces = np.array([([0, 1, 2],)], [("vertex_indices", "i4", (3,))])
    vertex = PlyElement.describe(table(made), "vertex", comments=["from a test"])
    PlyData([vertex, PlyElement.describe(faces, "face")], text, comments=["surveyed by hand"]).write(str(path))


def write_pcd(path, made, encoding=Encoding.BINARY):
    data = table(made, "f4")
    packed = PointCloud.encode_rgb(made["color"])  # three bytes in a float, which pypcd4 cannot write as text
    packed = packed.view(np.uint32) if encoding == Encoding.ASCII else packed
    columns = [data["x"], data["y"], data["z"], packed, data["intensity"], data["label"]]
    names = ("x", "y", "z", "rgb", "intensity", "label")
    types = (np.float32, np.float32, np.float32, packed.dtype, np.uint16, np.uint8)
    PointCloud.from_points(columns, names, types).save(path, encoding)


def write_las(path, made, version="1.4", point_format=7, shade=257):
    header = laspy.LasHeader(version=version, point_format=point_format)
    header.scales, header.offsets = [0.01] * 3, np.floor(made["coord"].min(0))
    header.add_extra_dims([laspy.ExtraBytesParams("amplitude", np.float32)])
    las = laspy.LasData(header)
    las.x, las.y, las.z = made["coord"].T
    las.red, las.green, las.blue = made["color"].T.astype(np.uint16) * shade
    las.intensity, las.classification = made["intensity"], made["label"]
    las.return_number = np.arange(len(las.x)) % 3 + 1
    las.number_of_returns = np.full(len(las.x), 3)
    las.gps_time = np.linspace(0, 1, len(las.x))
    las.withheld = np.arange(len(las.x)) % 2
    las.amplitude = np.linspace(0, 9, len(las.x))
    las.write(path)


def write_e57(path, made):
    import pye57

    with pye57.E57(str(path), "w") as file:
        half = len(made["coord"]) // 2
        for rows in (slice(0, half), slice(half, None)):
            xyz, rgb = made["coord"][rows], made["color"][rows]
            fields = {f"cartesian{a}": xyz[:, i] - xyz.mean(0)[i] for i, a in enumerate("XYZ")}
            fields |= {f"color{c}": rgb[:, i] for i, c in enumerate(("Red", "Green", "Blue"))}
            fields["intensity"] = made["intensity"][rows].astype(np.float32)
            file.write_scan_raw(fields, translation=xyz.mean(0), rotation=np.array([1.0, 0, 0, 0]))


def write_folder(path, made):
    path.mkdir()
    np.save(path / "coord.npy", made["coord"].astype(np.float32))
    np.save(path / "color.npy", made["color"])
    np.save(path / "strength.npy", made["intensity"].astype(np.float32)[:, None])
    np.save(path / "segment20.npy", made["label"].astype(np.int64))
    np.save(path / "pose.npy", np.eye(4, dtype=np.float32))


def write_array(path, made):
    np.save(path, np.concatenate([made["coord"], made["color"], made["label"][:, None]], 1))


def write_npz(path, made):
    np.savez_compressed(
        path, coord=made["coord"], color=made["color"], intensity=made["intensity"], label=made["label"]
    )


MAKERS = {
    "ply": ("scan.ply", write_ply),
    "ply_text": ("scan.ply", lambda path, made: write_ply(path, made, text=True)),
    "pcd": ("scan.pcd", write_pcd),
    "pcd_ascii": ("scan.pcd", lambda path, made: write_pcd(path, made, Encoding.ASCII)),
    "pcd_compressed": ("scan.pcd", lambda path, made: write_pcd(path, made, Encoding.BINARY_COMPRESSED)),
    "las": ("scan.las", lambda path, made: write_las(path, made, "1.2", 3)),
    "laz": ("scan.laz", write_las),
    "e57": ("scan.e57", write_e57),
    "npy": ("scan.npy", write_array),
    "npy_fields": ("scan.npy", lambda path, made: np.save(path, table(made))),
    "npz": ("scan.npz", write_npz),
    "folder": ("scan", write_folder),
}


def make(kind, folder, made=None):
    if kind == "e57":
        pytest.importorskip("pye57")
    name, writer = MAKERS[kind]
    made = cloud() if made is None else made
    writer(folder / name, made)
    return folder / name, made


def content(path):
    """Bytes of a file, or of all files of a folder."""
    return path.read_bytes() if path.is_file() else {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("kind", MAKERS)
def test_reads(kind, tmp_path):
    path, made = make(kind, tmp_path)
    scan = read_scan(path)
    assert scan.coord.dtype == np.float64 and scan.path == path
    np.testing.assert_allclose(scan.coord, made["coord"], atol=2e-6, rtol=0)
    np.testing.assert_array_equal(scan.color, made["color"])
    assert scan.color.dtype == np.uint8
    if kind != "npy":
        np.testing.assert_allclose(scan.extras["intensity"], made["intensity"])
    if kind == "e57":
        assert scan.label is None
    else:
        assert scan.label.dtype == np.int64
        np.testing.assert_array_equal(scan.label, made["label"])


@pytest.mark.parametrize("kind", MAKERS)
def test_writes_labels_and_keeps_the_rest(kind, tmp_path):
    path, made = make(kind, tmp_path)
    before, num = content(path), len(made["coord"])
    classes = np.arange(num) % 5 + 2
    confidence = np.linspace(0, 1, num, dtype=np.float32)
    target = tmp_path / "out" / path.name
    write_labels(path, target, classes, confidence)
    assert content(path) == before
    assert os.listdir(target.parent) == [target.name]  # no temporary left
    if kind == "npy":  # columns have no names
        out = np.load(target)
        np.testing.assert_allclose(out, np.column_stack([np.load(path), classes, confidence]))
        return
    old, new = read_scan(path), read_scan(target, "classification" if kind in ("las", "laz") else "class")
    np.testing.assert_array_equal(new.label, classes)
    given = laspy.read(target).confidence if kind in ("las", "laz") else new.extras["confidence"]
    np.testing.assert_allclose(given, confidence)
    np.testing.assert_array_equal(new.coord, old.coord)
    np.testing.assert_array_equal(new.color, old.color)
    for name, values in old.extras.items():
        np.testing.assert_array_equal(new.extras[name], values)
    write_labels(path, target, classes[::-1], confidence)  # an earlier output is replaced
    again = read_scan(target, new.label_field)
    np.testing.assert_array_equal(again.label, classes[::-1])
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("kind", [k for k in MAKERS if k != "npy"])
def test_labelled_file_can_be_labelled_again(kind, tmp_path):
    path, made = make(kind, tmp_path)
    num = len(made["coord"])
    first, second = tmp_path / f"first{path.suffix}", tmp_path / f"second{path.suffix}"
    write_labels(path, first, np.full(num, 2), np.zeros(num))
    write_labels(first, second, np.full(num, 3), np.ones(num))
    scan = read_scan(second, "classification" if kind in ("las", "laz") else "class")
    assert (scan.label == 3).all()
    names = laspy.read(second).point_format.dimension_names if kind in ("las", "laz") else scan.extras
    assert [name for name in names if "confidence" in name] == ["confidence"]


@pytest.mark.parametrize("kind", [k for k in MAKERS if k not in FLOAT32_FORMATS])
def test_geo_coordinates_keep_centimetres(kind, tmp_path):
    made = cloud()
    made["coord"] = made["coord"] + CORNER
    path, _ = make(kind, tmp_path, made)
    atol = 1e-5 if kind == "e57" else 1e-8
    np.testing.assert_allclose(read_scan(path).coord, made["coord"], atol=atol, rtol=0)


def test_ply_keeps_header_faces_and_text(tmp_path):
    for text in (False, True):
        path, target = tmp_path / f"{text}.ply", tmp_path / f"{text}_out.ply"
        write_ply(path, cloud(), text)
        write_labels(path, target, np.arange(200), np.zeros(200))
        out = PlyData.read(str(target))
        assert out.text is text and out.comments == ["surveyed by hand"] and out["vertex"].comments == ["from a test"]
        assert out["face"]["vertex_indices"][0].tolist() == [0, 1, 2]
        assert [p.name for p in out["vertex"].properties][-3:] == ["label", "class", "confidence"]


@pytest.mark.parametrize(
    ("version", "point_format", "ending"), [("1.2", 1, ".las"), ("1.2", 3, ".laz"), ("1.4", 8, ".laz")]
)
def test_las_keeps_every_dimension(version, point_format, ending, tmp_path):
    path, target = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    made = cloud()
    if point_format in (2, 3, 8):
        write_las(path, made, version, point_format)
    else:
        las = laspy.LasData(laspy.LasHeader(version=version, point_format=point_format))
        las.x, las.y, las.z = made["coord"].T
        las.classification = made["label"]
        las.write(path)
    write_labels(path, target, np.full(200, 6), np.full(200, 0.5))
    old, new = laspy.read(path), laspy.read(target)
    for name in old.point_format.dimension_names:
        if name != "classification":
            np.testing.assert_array_equal(new[name], old[name], err_msg=name)
    assert new.header.version == old.header.version and new.point_format.id == point_format
    np.testing.assert_array_equal(new.header.mins, old.header.mins)
    assert new.header.are_points_compressed == (ending == ".laz")


def test_las_ids_that_do_not_fit_go_into_an_extra_dimension(tmp_path):
    path, target = tmp_path / "a.las", tmp_path / "b.las"
    write_las(path, cloud(), "1.2", 3)  # five bits of class
    write_labels(path, target, np.full(200, 64), np.zeros(200))
    out = laspy.read(target)
    assert (out["class"] == 64).all()
    np.testing.assert_array_equal(out.classification, laspy.read(path).classification)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_las_chunks_join(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr("pointadapt.data.formats.las.CHUNK", chunk)
    made = cloud(50)
    write_las(tmp_path / "a.laz", made)
    scan = read_scan(tmp_path / "a.laz")
    np.testing.assert_allclose(scan.coord, made["coord"], atol=1e-9)
    write_labels(tmp_path / "a.laz", tmp_path / "b.laz", made["label"][::-1], np.zeros(50))
    np.testing.assert_array_equal(read_scan(tmp_path / "b.laz").label, made["label"][::-1])


@pytest.mark.parametrize("shade", [257, 256, 1])
def test_las_colour_in_16_or_8_bits(shade, tmp_path):
    made = cloud()
    write_las(tmp_path / "a.las", made, shade=shade)
    np.testing.assert_array_equal(read_scan(tmp_path / "a.las").color, made["color"])


def test_colour_of_zeros_is_none_and_of_ones_is_scaled(tmp_path):
    made = cloud()
    write_las(tmp_path / "a.las", made, shade=0)
    assert read_scan(tmp_path / "a.las").color is None
    np.savez(tmp_path / "b.npz", coord=made["coord"], color=made["color"] / 255)
    np.testing.assert_array_equal(read_scan(tmp_path / "b.npz").color, made["color"])


def test_label_field_by_name(tmp_path):
    made = cloud(10)
    base = {"coord": made["coord"], "scalar_Label": made["label"].astype(np.float32), "kind": made["label"] + 1}
    np.savez(tmp_path / "a.npz", **base)
    assert read_scan(tmp_path / "a.npz").label_field == "scalar_Label"
    np.testing.assert_array_equal(read_scan(tmp_path / "a.npz", "kind").label, made["label"] + 1)
    with pytest.raises(UserError, match=r"a.npz: no field 'nope'.*scalar_Label"):
        read_scan(tmp_path / "a.npz", "nope")
    base["scalar_Label"][3] = np.nan  # CloudCompare's way to say: none
    np.savez(tmp_path / "b.npz", **base)
    assert read_scan(tmp_path / "b.npz").label[3] == -1
    base["scalar_Label"][4] = 0.5
    np.savez(tmp_path / "c.npz", **base)
    np.savez(tmp_path / "endless.npz", coord=np.ones((2, 3)), label=[1, np.inf])
    with pytest.raises(UserError, match="infinite values"):
        read_scan(tmp_path / "endless.npz")
    with pytest.raises(UserError, match="fractions"):
        read_scan(tmp_path / "c.npz")


@pytest.mark.parametrize("name", ["color", "normal", "label"])
def test_values_of_other_points_are_refused(name, tmp_path):
    np.savez(tmp_path / "a.npz", coord=np.ones((5, 3)), **{name: np.ones(4 if name == "label" else (4, 3))})
    with pytest.raises(UserError, match="a.npz: 4 .*s for 5 points"):
        read_scan(tmp_path / "a.npz")


@pytest.mark.parametrize("label", [3, [3]])
def test_a_label_of_the_whole_file_is_none_of_its_points(label, tmp_path):
    np.savez(tmp_path / "a.npz", coord=np.ones((5, 3)), label=np.array(label))
    assert read_scan(tmp_path / "a.npz").label is None


def test_own_label_goes_before_an_added_prediction(tmp_path):
    made = cloud()
    write_ply(tmp_path / "a.ply", made)
    write_labels(tmp_path / "a.ply", tmp_path / "b.ply", np.full(200, 9), np.zeros(200))
    np.testing.assert_array_equal(read_scan(tmp_path / "b.ply").label, made["label"])


def test_labels_in_a_second_array(tmp_path):
    made = cloud()
    np.save(tmp_path / "f_points.npy", made["coord"].astype(np.float32))
    np.save(tmp_path / "f_labels.npy", made["label"][:, None])
    np.testing.assert_array_equal(read_scan(tmp_path / "f_points.npy").label, made["label"])
    np.save(tmp_path / "f_labels.npy", made["label"][:9])
    with pytest.raises(UserError, match="9 labels for the 200 points"):
        read_scan(tmp_path / "f_points.npy")


def test_e57_poses_invalid_points_and_extensions(tmp_path):
    pye57 = pytest.importorskip("pye57")
    rng = np.random.default_rng(0)
    local, state = rng.random((40, 3)), (np.arange(40) % 4 == 0).astype(np.int8)
    turn = np.array([np.cos(np.pi / 4), 0, 0, np.sin(np.pi / 4)])  # 90 degrees around z
    with pye57.E57(str(tmp_path / "a.e57"), "w") as file:
        for shift in ([10.0, 20, 30], [0.0, 0, 5]):
            fields = {f"cartesian{a}": local[:, i] for i, a in enumerate("XYZ")} | {"cartesianInvalidState": state}
            file.write_scan_raw(fields, rotation=turn, translation=np.array(shift))
    scan = read_scan(tmp_path / "a.e57")
    good = local[state == 0]
    turned = np.stack([-good[:, 1], good[:, 0], good[:, 2]], 1)
    np.testing.assert_allclose(scan.coord, np.concatenate([turned + [10, 20, 30], turned + [0, 0, 5]]), atol=1e-6)
    classes = np.arange(len(scan))
    write_labels(tmp_path / "a.e57", tmp_path / "b.e57", classes, np.full(len(scan), 0.25))
    out = read_scan(tmp_path / "b.e57")
    np.testing.assert_array_equal(out.label, classes)
    np.testing.assert_array_equal(out.coord, scan.coord)
    np.testing.assert_array_equal(out.extras["confidence"], np.full(len(scan), 0.25))
    with pye57.E57(str(tmp_path / "b.e57")) as file:  # as a program sees it that does not know the two fields
        raw = file.read_scan_raw(0, ignore_unsupported_fields=True)
        np.testing.assert_array_equal(raw["cartesianInvalidState"], state)
        assert file.scan_count == 2 and file.get_header(0).has_pose()


@pytest.mark.parametrize("kind", MAKERS)
def test_nan_and_infinite_coordinates(kind, tmp_path):
    if kind in ("las", "laz", "e57"):
        pytest.skip("integers, or checked by the writer")
    made = cloud()
    made["coord"][[3, 7], [0, 2]] = np.nan, np.inf
    path, _ = make(kind, tmp_path, made)
    with pytest.raises(UserError, match=rf"{path.name}: 2 of 200 points have NaN or infinite"):
        read_scan(path)


@pytest.mark.parametrize("kind", [k for k in MAKERS if k != "folder"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.97])
def test_truncated_files(kind, share, tmp_path):
    path, _ = make(kind, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=str(path.name)) as caught:
        read_scan(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(UserError):
        write_labels(path, tmp_path / f"out{path.suffix}", np.zeros(200, int), np.zeros(200))
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["las", "pcd", "ply"])
def test_truncated_between_two_points(kind, tmp_path):
    path, _ = make(kind, tmp_path)
    record = {"las": 38, "pcd": 19, "ply": 30}[kind]
    path.write_bytes(path.read_bytes()[: -5 * record - (13 if kind == "ply" else 0)])  # 13: the face behind them
    with pytest.raises(UserError, match=path.name):
        read_scan(path)


@pytest.mark.parametrize("ending", [e for e in FORMATS if e != ".e57"])
def test_files_of_another_kind(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"once upon a time there was a text file\n" * 50)
    with pytest.raises(UserError, match=path.name):
        read_scan(path)


def test_files_that_are_not_there_or_not_known(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_scan(tmp_path / "a.laz")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UserError, match=r"unknown format '.docx'; supported are .*\.laz"):
        read_scan(tmp_path / "a.docx")
    with pytest.raises(UserError, match=r"without coord.npy"):
        read_scan(tmp_path)
    np.save(tmp_path / "flat.npy", np.zeros(12))
    with pytest.raises(UserError, match="shape"):
        read_scan(tmp_path / "flat.npy")
    np.savez(tmp_path / "odd.npz", stuff=np.zeros((4, 3)))
    with pytest.raises(UserError, match=r"no coordinates among its fields \(stuff\)"):
        read_scan(tmp_path / "odd.npz")
    np.savez(tmp_path / "none.npz", coord=np.zeros((0, 3)))
    with pytest.raises(UserError, match="no points"):
        read_scan(tmp_path / "none.npz")


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.las"
    path.write_text("unread")
    monkeypatch.setattr(format_of(path), "read", forbidden)
    with pytest.raises(UserError, match=r"a\.las: you have no permission to read it"):
        read_scan(path)


def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
    """NumPy says "200 requested and 0 written", E57 "write() failed"."""

    def fail(*arguments):
        raise OSError("200 requested and 0 written")

    path, _ = make("npy", tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("pointadapt.data.formats.npy.write", fail)
    with pytest.raises(UserError, match=r"200 requested"):
        write_labels(path, tmp_path / "out.npy", np.zeros(200, int), np.zeros(200))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(UserError, match=r"out.npy: cannot be written \(No space left on device\)"):
        write_labels(path, tmp_path / "out.npy", np.zeros(200, int), np.zeros(200))
    assert sorted(tmp_path.iterdir()) == before


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"a.npy"):
        read_scan(tmp_path / "a.npy")


def test_output_never_touches_the_input(tmp_path):
    write_ply(tmp_path / "a.ply", cloud())
    before = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "link.ply").symlink_to(tmp_path / "a.ply")
    for target in ("a.ply", "link.ply", "./sub/../a.ply"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="overwrite its own input"):
            write_labels(tmp_path / "a.ply", tmp_path / target, np.zeros(200), np.zeros(200))
    with pytest.raises(UserError, match=r"has the format of the input; call it b.ply"):
        write_labels(tmp_path / "a.ply", tmp_path / "b.laz", np.zeros(200), np.zeros(200))
    assert (tmp_path / "a.ply").read_bytes() == before


def test_a_folder_that_is_no_scan_is_not_replaced(tmp_path):
    write_folder(tmp_path / "scan", cloud())
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists already"):
        write_labels(tmp_path / "scan", tmp_path / "thesis", np.zeros(200), np.zeros(200))
    assert (tmp_path / "thesis" / "chapter1.txt").exists()


@pytest.fixture
def full_disk():
    """No file may grow beyond 20 kB: writes beyond fail as on a full disk (OSError)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", MAKERS)
def test_full_disk(kind, tmp_path, request):
    path, made = make(kind, tmp_path, cloud(20_000))
    target = tmp_path / "out" / path.name
    target.parent.mkdir()
    request.getfixturevalue("full_disk")
    with pytest.raises(UserError, match=r"cannot be written .*nothing was left behind"):
        write_labels(path, target, made["label"], np.random.default_rng(0).random(20_000))
    assert list(target.parent.iterdir()) == []


def test_e57_without_its_library(tmp_path, monkeypatch):
    (tmp_path / "a.e57").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pye57", None)
    monkeypatch.delitem(sys.modules, "pointadapt.data.formats.e57", raising=False)
    with pytest.raises(UserError, match=r"pip install pointadapt\[e57\]"):
        read_scan(tmp_path / "a.e57")


def test_is_scan(tmp_path):
    write_folder(tmp_path / "scan", cloud())
    assert is_scan(tmp_path / "scan") and is_scan(Path("A.LAZ"))
    assert not is_scan(tmp_path) and not is_scan(Path("notes.txt")) and not is_scan(Path("f_labels.npy"))
    shutil.rmtree(tmp_path / "scan")


@pytest.mark.parametrize(
    "output, source",
    [
        ("a_labelled.laz", "a.laz"),
        ("take.two_labelled.csv", "take.two/"),
        ("a_labelled.csv", "a.off"),
        ("a_labelled/", "a/"),
        ("a_labelled/", "a.npz"),
        ("many.npz_labelled/", "many.npz"),
        ("a_labelled_labelled/", "a_labelled/"),
    ],
)
def test_an_output_lies_beside_its_source(tmp_path, output, source):
    def make(name):
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()

    make(output)
    assert not is_output(tmp_path / output) and left_out(tmp_path) == ""  # a user's own
    make(source)
    assert is_output(tmp_path / output) and not is_output(tmp_path / source)
    assert left_out(tmp_path) == (
        f"{tmp_path}: left out as made by predict: {output.rstrip('/')}; rename what is your own data"
    )


@pytest.mark.parametrize("name", ["a_labelled.ply", "a_labelled_2.ply", "a_labelled", "labelled.ply", "_labelled.ply"])
def test_what_only_looks_like_an_output(tmp_path, name):
    for other in ("a.jpg", "a_2.ply", "a.las", ".ply", name):
        (tmp_path / other).touch()
    assert not is_output(tmp_path / name)


def test_las_keeps_vlrs_and_evlrs_but_no_octree(tmp_path):
    path, target = tmp_path / "a.laz", tmp_path / "b.laz"
    write_las(path, cloud())
    las = laspy.read(path)
    las.vlrs.extend([laspy.VLR("mine", 7, "note", b"abc"), laspy.VLR("copc", 1, "copc info", bytes(160))])
    las.evlrs = laspy.vlrs.vlrlist.VLRList([laspy.VLR("mine", 8, "long", b"x" * 100_000)])
    las.write(path)
    write_labels(path, target, np.full(200, 5), np.zeros(200))
    out = laspy.read(target)
    assert [v.record_data for v in out.vlrs if v.user_id == "mine"] == [b"abc"]
    assert not [v for v in out.vlrs if v.user_id == "copc"]
    assert [v.record_data for v in out.evlrs] == [b"x" * 100_000]
    assert (out.classification == 5).all() and len(out) == 200


@pytest.mark.parametrize("target", ["note.txt/out.ply", f"{'n' * 250}.ply"])
def test_a_place_where_nothing_can_be_written(tmp_path, target):
    write_ply(tmp_path / "a.ply", cloud())
    (tmp_path / "note.txt").write_text("a file, no folder")
    with pytest.raises(UserError, match="cannot be written .*; nothing was left behind"):
        write_labels(tmp_path / "a.ply", tmp_path / target, np.zeros(200, int), np.zeros(200))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ply", "note.txt"]


def test_coordinates_that_stand_for_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", coord=np.array([[1.0, 2, 3], [3.4e38, 0, 0], [4e6, 5e6, 100]]))
    with pytest.raises(UserError, match="a.npz: 1 of 3 points have .* beyond 1e"):
        read_scan(tmp_path / "a.npz")
