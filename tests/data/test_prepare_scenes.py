"""Raw ScanNet, S3DIS, nuScenes and SemanticKITTI, written here as their downloads are, become what init reads."""

import json

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from pointadapt import cli
from pointadapt.data import prepare_scenes
from pointadapt.data.benchmark_init import init_benchmark
from pointadapt.data.benchmarks import find_benchmark
from pointadapt.data.prepare import prepare
from pointadapt.data.scans import DataSet
from pointadapt.errors import UserError
from scene_layouts import write_semantickitti

#: raw_category -> (id, nyu40id), as the official table has them.
TABLE = {"wall": (1, 1), "office chair": (5, 5), "clock": (56, 40), "shelf": (8, 15), "nameless": ("", "")}


def write_scan(folder, labelled=True):
    """A square of two triangles on the floor, one standing on its edge, and a vertex of no triangle."""
    folder.mkdir(parents=True)
    coord = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 2), (5, 5, 5)]
    vertex = np.array(
        [(*c, i, 2 * i, 255, 255) for i, c in enumerate(coord)],
        [(a, "f4") for a in "xyz"] + [(c, "u1") for c in ("red", "green", "blue", "alpha")],
    )
    face = np.array([([0, 1, 2],), ([0, 2, 3],), ([0, 4, 1],)], [("vertex_indices", "i4", (3,))])
    elements = [PlyElement.describe(vertex, "vertex"), PlyElement.describe(face, "face")]
    PlyData(elements).write(str(folder / f"{folder.name}_vh_clean_2.ply"))
    if labelled:
        segments = {"segIndices": [7, 7, 9, 9, 4, 3]}
        (folder / f"{folder.name}_vh_clean_2.0.010000.segs.json").write_text(json.dumps(segments))
        groups = [
            {"id": 0, "label": "wall", "segments": [7]},
            {"id": 1, "label": "clock", "segments": [9]},
            {"id": 2, "label": "no such thing", "segments": [3]},
        ]
        (folder / f"{folder.name}.aggregation.json").write_text(json.dumps({"segGroups": groups}))


def write_scannet(folder):
    for name in ("scene0000_00", "scene0001_00", "scene0011_00"):
        write_scan(folder / "scans" / name)
    write_scan(folder / "scans_test" / "scene0707_00", labelled=False)
    rows = ["id\traw_category\tcategory\tcount\tnyu40id"]
    rows += [f"{raw}\t{name}\t{name}\t9\t{nyu}" for name, (raw, nyu) in TABLE.items()]
    (folder / "scannetv2-labels.combined.tsv").write_text("\n".join(rows) + "\n")
    lists = {"train": "scene0000_00\nscene0001_00\nscene0002_00\n", "val": "scene0011_00\n", "test": "scene0707_00\n"}
    for split, names in lists.items():
        (folder / f"scannetv2_{split}.txt").write_text(names)
    return folder


def test_scannet(tmp_path):
    raw, out = write_scannet(tmp_path / "raw"), tmp_path / "out"
    seen = []
    done = prepare("scannet", raw, out, show=lambda n, of: seen.append((n, of)))
    assert (done.written, done.skipped, done.failed) == (4, 0, ()) and seen[-1] == (4, 4)
    assert "1 listed scenes are not here, such as scene0002_00" in done.notes[0]
    assert "no such thing stand in no row" in done.notes[1]
    scan = {file.stem: np.load(file) for file in (out / "train/scene0000_00").glob("*.npy")}
    assert scan["segment20"].tolist() == [0, 0, -1, -1, -1, -1]  # a clock is none of the 20
    names = json.loads((prepare_scenes.Path(prepare_scenes.__file__).parent / "benchmarks.json").read_text())
    clock = names["scannet200"]["raw_id"].index(56)
    assert scan["segment200"].tolist() == [0, 0, clock, clock, -1, -1]
    assert scan["instance"].tolist() == [0, 0, 1, 1, -1, 2]
    assert scan["coord"].dtype == np.float32 and scan["color"].tolist()[3] == [3, 6, 255]
    up, side = np.array([0, 0, 1.0]), np.array([0, 1.0, 0])
    mixed = (2 * up * 0.5 + side * 1.0) / np.linalg.norm(2 * up * 0.5 + side * 1.0)  # by area: 1/2 + 1/2, and 1
    np.testing.assert_allclose(scan["normal"][[2, 4, 5, 0]], [up, side, [0, 0, 0], mixed], atol=1e-6)
    assert {f.name for f in (out / "test/scene0707_00").iterdir()} == {"coord.npy", "color.npy", "normal.npy"}


def test_scannet_goes_on_and_is_read(tmp_path):
    raw, out = write_scannet(tmp_path / "raw"), tmp_path / "out"
    broken = raw / "scans/scene0001_00/scene0001_00_vh_clean_2.ply"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    first = prepare("scannet", raw, out)
    assert first.written == 3 and "scene0001_00 is damaged" in first.failed[0]
    assert not (out / "train/scene0001_00").exists() and not list(out.rglob(".*"))
    broken.write_bytes(whole)
    second = prepare("scannet", raw, out, workers=2)
    assert (second.written, second.skipped, second.failed) == (1, 3, ())
    (file,) = init_benchmark(out, find_benchmark(out, "scannet"))
    assert len(DataSet.open(file).paths("train")) == 2
    assert prepare("scannet", raw, out, overwrite=True).written == 4


def test_what_scannet_lacks(tmp_path):
    raw = write_scannet(tmp_path / "raw")
    with pytest.raises(UserError, match=f"no scannetv2-labels.combined.tsv here; give {raw}"):
        prepare("scannet", raw / "scans", tmp_path / "out")
    (raw / "scannetv2_val.txt").unlink()
    with pytest.raises(UserError, match="no scannetv2_val.txt, the official list"):
        prepare("scannet", raw, tmp_path / "out")
    lists = {file: file.read_text() for file in raw.glob("scannetv2_*.txt")}
    for file in (*lists, raw / "scannetv2_val.txt"):
        file.write_text("")
    with pytest.raises(UserError, match="the official lists of scenes name no scene"):
        prepare("scannet", raw, tmp_path / "out")
    for file, text in lists.items():
        file.write_text(text)
    (raw / "scannetv2_val.txt").write_text("scene0011_00\n")
    (raw / "scans/scene0011_00/scene0011_00.aggregation.json").unlink()
    assert "scene0011_00.aggregation.json: no such file" in prepare("scannet", raw, tmp_path / "out").failed[0]
    table = raw / "scannetv2-labels.combined.tsv"
    table.write_text("id\tname\n1\twall\n")
    prepare_scenes.label_table.cache_clear()
    with pytest.raises(UserError, match="it must have the columns id, raw_category and nyu40id"):
        prepare("scannet", raw, tmp_path / "other")
    table.write_bytes(b"id\traw_category\tnyu40id\n1\tcaf\xe9\t1\n")
    with pytest.raises(UserError, match="it must have the columns"):
        prepare("scannet", raw, tmp_path / "other")
    prepare_scenes.label_table.cache_clear()


def write_s3dis(folder, areas=range(1, 7)):
    rows = {"ceiling_1": 3, "chair_2": 2, "stairs_1": 1, "clutter_4": 2}
    for area in areas:
        place = folder / f"Area_{area}" / "office_1" / "Annotations"
        place.mkdir(parents=True)
        for number, (name, count) in enumerate(rows.items()):
            lines = [f"{number}.5 {row}.25 -1.0 {10 * number} 20 255\n" for row in range(count)]
            (place / f"{name}.txt").write_text("".join(lines))
        (folder / f"Area_{area}" / "office_1" / "office_1.txt").write_text("0 0 0 0 0 0\n")
    return folder


def test_s3dis(tmp_path):
    raw, out = write_s3dis(tmp_path / "Stanford3dDataset_v1.2"), tmp_path / "out"
    mended = raw / "Area_5/office_1/Annotations/ceiling_1.txt"
    mended.write_bytes(mended.read_bytes().replace(b"0 20 255", b"0\x1020 255", 1))
    done = prepare("s3dis", raw, out)
    assert done.written == 6 and "Area_5/office_1: a stray character in ceiling_1.txt" in done.notes[0]
    scan = {file.stem: np.load(file) for file in (out / "Area_5/office_1").glob("*.npy")}
    assert scan["segment"].tolist() == [0, 0, 0, 8, 8, 12, 12, 12]  # stairs are clutter
    assert scan["instance"].tolist() == [0, 0, 0, 1, 1, 2, 2, 3]
    assert scan["coord"][1].tolist() == [0.5, 1.25, -1.0] and scan["color"][3].tolist() == [10, 20, 255]
    (file,) = init_benchmark(out, find_benchmark(out))
    sample = DataSet.open(file).read(out / "Area_5/office_1")
    assert sample["segment"].tolist() == scan["segment"].tolist() and sample["normal"].any()
    for wrong in (tmp_path, raw / "Area_1"):
        with pytest.raises(UserError, match=f"no rooms of S3DIS here; give {raw}"):
            prepare("s3dis", wrong, tmp_path / "other")
    with pytest.raises(UserError, match="chair_2.txt is a file: name a folder"):
        prepare("s3dis", raw, raw / "Area_1/office_1/Annotations/chair_2.txt")
    (raw / "Area_1/office_1/Annotations/chair_2.txt").write_text("1 2 3 4 5\n")
    failed = prepare("s3dis", raw, tmp_path / "again").failed
    assert len(failed) == 1 and "5 numbers are no lines of six, x y z r g b" in failed[0]


def write_nuscenes(folder, version="v1.0-trainval"):
    scenes = {"t0": "scene-0001", "v0": "scene-0003"}
    if version == "v1.0-mini":
        scenes = {"t0": "scene-0061", "v0": "scene-0103"}
    tables = {
        "scene": [{"token": token, "name": name} for token, name in scenes.items()],
        "sample": [{"token": f"sample-{token}", "scene_token": token} for token in scenes],
        "sample_data": [], "lidarseg": [],
        "category": [{"token": "c", "name": "vehicle.car", "index": 17}, {"token": "d", "name": "noise", "index": 0}],
    }  # fmt: skip
    for token in scenes:
        for kind, key in (("LIDAR_TOP", True), ("CAM_FRONT", False)):
            name = f"samples/{kind}/{token}" + (".pcd.bin" if key else ".jpg")
            row = {
                "token": f"{kind}-{token}",
                "sample_token": f"sample-{token}",
                "filename": name,
                "is_key_frame": True,
            }
            tables["sample_data"].append(row)
        label = f"lidarseg/{version}/LIDAR_TOP-{token}_lidarseg.bin"
        tables["lidarseg"].append({"token": "x", "sample_data_token": f"LIDAR_TOP-{token}", "filename": label})
        for file in (folder / f"samples/LIDAR_TOP/{token}.pcd.bin", folder / label):
            file.parent.mkdir(parents=True, exist_ok=True)
        np.random.default_rng(0).random((50, 5)).astype(np.float32).tofile(
            folder / f"samples/LIDAR_TOP/{token}.pcd.bin"
        )
        np.full(50, 17, np.uint8).tofile(folder / label)
    (folder / version).mkdir()
    for name, rows in tables.items():
        (folder / version / f"{name}.json").write_text(json.dumps(rows, indent=0))
    return folder


@pytest.mark.parametrize("version", ["v1.0-trainval", "v1.0-mini"])
@pytest.mark.parametrize("apart", [True, False])
def test_nuscenes(tmp_path, version, apart):
    raw = write_nuscenes(tmp_path / "raw", version)
    out = tmp_path / "out" if apart else raw
    done = prepare("nuscenes", raw, out)
    assert done.written == 2 and done.notes == ("train 1, val 1 frames",)
    assert prepare("nuscenes", raw, out).skipped == 2
    (file,) = init_benchmark(out, find_benchmark(out))
    dataset = DataSet.open(file)
    assert [path.name for path in dataset.paths("val")] == ["v0.pcd.bin"]
    assert (dataset.read(dataset.paths("train")[0])["segment"] == 3).all()
    assert apart == (out / "nuscenes_val.txt").read_text().startswith("/")


def test_what_nuscenes_lacks(tmp_path):
    raw = write_nuscenes(tmp_path / "raw")
    frame = (raw / "samples/LIDAR_TOP/t0.pcd.bin").read_bytes()
    (raw / "samples/LIDAR_TOP/t0.pcd.bin").unlink()
    assert "1 frames or labels are not here, and a split without" in prepare("nuscenes", raw, tmp_path / "out").notes[1]
    (raw / "samples/LIDAR_TOP/t0.pcd.bin").write_bytes(frame)
    done = prepare("nuscenes", raw, tmp_path / "out")  # what was unpacked later is listed then
    assert (done.written, done.skipped, done.notes) == (1, 1, ("train 1, val 1 frames",))
    with pytest.raises(UserError, match="give the folder with samples/"):
        prepare("nuscenes", raw / "samples", tmp_path / "out")
    (raw / "v1.0-trainval/sample.json").write_text("[]")
    with pytest.raises(UserError, match="its tables are damaged, 'sample-.0' is missing; unpack"):
        prepare("nuscenes", raw, tmp_path / "out")
    rows = [{"token": "c", "name": "vehicle.truck", "index": 17}]
    (raw / "v1.0-trainval/category.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="raw id 17 is vehicle.truck, expected vehicle.car"):
        prepare("nuscenes", raw, tmp_path / "other")


def test_large_tables_are_read_in_pieces(tmp_path):
    rows = [{"token": f"{i:06d}", "text": "x" * 50 + '[{",'} for i in range(30_000)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert list(prepare_scenes.records(tmp_path / "rows.json")) == rows
    (tmp_path / "rows.json").write_text(json.dumps(rows)[:-20])
    with pytest.raises(UserError, match="cut off"):
        list(prepare_scenes.records(tmp_path / "rows.json"))


@pytest.mark.parametrize("apart", [True, False])
def test_semantickitti_is_read_where_it_lies(tmp_path, apart, capsys):
    raw = write_semantickitti(tmp_path / "raw")
    out = tmp_path / "out" if apart else raw
    assert cli.main(["prepare", "semantickitti", str(raw), str(out)]) == 0
    said = capsys.readouterr()
    assert "wrote 1 dataset.yaml" in said.out and f"pointadapt info {out}" in said.out
    assert "none was copied" in said.err and "sequences 01, 02, 03" in said.err
    dataset, wanted = DataSet.open(out), find_benchmark(raw, "semantickitti").datasets["dataset.yaml"]
    assert dataset.classes == wanted.classes and dataset.transform == "outdoor"
    for split in ("train", "val"):
        assert [p.resolve() for p in dataset.paths(split)] == [p.resolve() for p in wanted.paths(split)]
    assert (dataset.read(dataset.paths("val")[0])["segment"] >= 0).any()
    if apart:
        assert [file.name for file in out.iterdir()] == ["dataset.yaml"]
    assert prepare("semantickitti", raw, out).skipped == 1
    assert prepare("semantickitti", raw, out, overwrite=True).written == 1


def test_what_semantickitti_lacks(tmp_path):
    raw = write_semantickitti(tmp_path / "raw")
    with pytest.raises(UserError, match=f"not laid out as SemanticKITTI.*give {raw}"):
        prepare("semantickitti", raw.parent, tmp_path / "out")
    for file in (raw / "dataset/sequences/10/labels").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"10/labels: no \.label files"):
        prepare("semantickitti", raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()
