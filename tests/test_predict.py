"""Prediction: same file back with class and confidence, any size, input untouched, nothing silently skipped."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import laspy
import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement
from torch import nn

from pointadapt.data.io import read_scan
from pointadapt.data.scan import Scan
from pointadapt.data.scans import DataSet
from pointadapt.data.synthetic import write_ply
from pointadapt.domains import scenes
from pointadapt.domains.domain import remembered_domain
from pointadapt.domains.files import file_jobs
from pointadapt.domains.models import load_model
from pointadapt.domains.scenes import classify
from pointadapt.errors import UserError
from pointadapt.predict import predict
from pointadapt.run import Run
from pointadapt.train import train
from tiny_runs import CLASSES, ByColor, scan, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = tiny_run(tmp_path_factory.mktemp("run"), steps=40, eval_every=40)
    train(made)
    return made


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_ply_round_trip(run, tmp_path):
    source = run.data / "test4.ply"
    before = digest(source)
    (target,) = predict(run.folder, source, tmp_path / "out.ply")
    assert digest(source) == before and target == tmp_path / "out.ply"
    old, new = PlyData.read(source)["vertex"], PlyData.read(target)["vertex"]
    for name in ("x", "y", "z", "red", "label"):
        assert (old[name] == new[name]).all()
    assert set(np.unique(new["class"])) <= set(CLASSES)
    assert ((new["confidence"] > 1 / 3 - 1e-6) & (new["confidence"] <= 1)).all()
    known = old["label"] != 99
    assert (new["class"] == old["label"])[known].mean() > 0.85


def test_laz_far_from_the_origin(run, tmp_path):
    """Coordinates of a national grid give the same classes as the same scan at the origin."""
    coord, color, label = scan(7)
    shift = np.array([914_000.25, 6_457_000.5, 210.0])
    las = laspy.LasData(laspy.LasHeader(point_format=7, version="1.4"))
    step = 0.00117  # hardly a whole number of steps makes a voxel edge, where rounding would decide
    coord = (coord / step).round().astype(np.float32) * np.float32(step)
    las.header.scales, las.header.offsets = [step] * 3, shift
    las.xyz = coord.astype(np.float64) + shift
    las.red, las.green, las.blue = (color.astype(np.uint16) * 256).T
    las.write(tmp_path / "far.laz")
    write_ply(tmp_path / "near.ply", coord, color, label)
    (far,) = predict(run, tmp_path / "far.laz")
    (near,) = predict(run, tmp_path / "near.ply")
    assert far.name == "far_labelled.laz"
    classes = np.asarray(laspy.read(far).classification)
    assert (classes == PlyData.read(near)["vertex"]["class"]).mean() > 0.98
    assert np.abs(laspy.read(far).xyz - las.xyz).max() < 1e-3


@pytest.mark.parametrize("up", ["z", "y"])
def test_tiles_agree_with_one_pass(run, up):
    """Every point of a wide scan gets its own answer, in tiles as in one pass; tiles lie in the horizontal plane."""
    coord, color, label = scan(5, points=4000, size=60.0)
    coord = coord.astype(np.float64)
    wide = Scan(Path("wide.ply"), coord if up == "z" else coord[:, [0, 2, 1]] * [1, 1, -1], color)
    dataset = dataclasses.replace(remembered_domain(run).dataset, up=up)
    answers = []
    for limit in (100_000, 800):
        tiled = dataclasses.replace(run, tile=limit)
        answers.append(classify(ByColor(), dataset, wide, tiled, torch.device("cpu")))
    (one, confidence), (many, _) = answers
    assert (confidence > 1 / 3).all()
    assert (one == many).mean() > 0.99
    assert (one == np.searchsorted([10, 20, 30], label))[label != 99].mean() > 0.9


class ByNeighbours(nn.Module):
    """Looks at the mean brightness of all within two metres, so that it needs what lies around a tile."""

    def forward(self, point):
        near = (torch.cdist(point.coord, point.coord) < 2).float()
        shade = near @ point.feat[:, 3:4] / near.sum(1, keepdim=True) - 0.5
        return 10 * torch.cat([shade, -shade, 0 * shade], 1)


def test_tiles_show_what_lies_around_them(tmp_path):
    rng = np.random.default_rng(0)
    coord, color = rng.uniform(0, [40, 40, 1], (2500, 3)), rng.integers(0, 256, (2500, 1)).repeat(3, 1)
    run, wide = tiny_run(tmp_path), Scan(Path("wide.ply"), coord, color.astype(np.uint8))
    dataset = DataSet.open(run.data)
    one, many = (
        classify(ByNeighbours(), dataset, wide, dataclasses.replace(run, tile=limit), torch.device("cpu"))
        for limit in (100_000, 800)
    )
    assert (one[0] == many[0]).mean() > 0.99 and len(set(one[0].tolist())) > 1
    assert (np.abs(one[1] - many[1]) < 1e-3).mean() > 0.95  # few points share a voxel


def test_folder(run, tmp_path, capsys):
    folder = tmp_path / "scans"
    (folder / "deep").mkdir(parents=True)
    write_ply(folder / "a.ply", *scan(1))
    write_ply(folder / "deep" / "b.ply", *scan(2))
    for name in ("notes.txt", *(f"photo{i}.jpg" for i in range(9))):
        (folder / name).write_text("not a scan")
    written = predict(run, folder)
    out = tmp_path / "scans_labelled"
    assert written == [out / "a.ply", out / "deep" / "b.ply"] and all(file.exists() for file in written)
    told = capsys.readouterr().err
    assert "notes.txt" in told and "photo3.jpg and 5 more" in told and "photo4.jpg" not in told
    with pytest.raises(UserError, match="exists already"):
        predict(run, folder)
    assert predict(run, folder, overwrite=True) == written


def test_a_broken_scan_in_a_folder_is_told_after_the_others_are_done(run, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    write_ply(folder / "a.ply", *scan(1))
    write_ply(folder / "z.ply", *scan(2))
    (folder / "m.ply").write_bytes((folder / "a.ply").read_bytes()[:700])
    with pytest.raises(UserError, match=r"1 of 3 scans were not labelled: .*m\.ply"):
        predict(run, folder)
    assert sorted(file.name for file in (tmp_path / "scans_labelled").iterdir()) == ["a.ply", "z.ply"]


def test_refusals(run, tmp_path):
    source = tmp_path / "scan.ply"
    write_ply(source, *scan(1))
    for out, message in (
        (source, "is the input itself"),
        (tmp_path / "other.laz", "another format"),
        (source / "x.ply", "lies in the source"),
        (tmp_path, "another format"),
    ):
        with pytest.raises(UserError, match=message):
            file_jobs(source, out, overwrite=True)
    with pytest.raises(UserError, match="there is no scan"):
        file_jobs(tmp_path / "nothing.ply", None, overwrite=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no scans"):
        file_jobs(tmp_path / "empty", None, overwrite=False)
    link = tmp_path / "link.ply"
    link.symlink_to(source)
    with pytest.raises(UserError, match="is the input itself"):
        file_jobs(source, link, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, so"):
        file_jobs(source, tmp_path / "file" / "x.ply", overwrite=True)
    for out, message in (
        ("x.ply", "give --out a folder"),
        ("file", "give --out a folder"),
        (".", "lies in the source"),
    ):
        with pytest.raises(UserError, match=message):
            file_jobs(tmp_path, tmp_path / out, overwrite=True)
    assert file_jobs(tmp_path, tmp_path.with_name("site-1.5"), overwrite=False)


def test_the_folder_one_stands_in(run, tmp_path, monkeypatch):
    (tmp_path / "scans").mkdir()
    write_ply(tmp_path / "scans" / "a.ply", *scan(1))
    monkeypatch.chdir(tmp_path / "scans")
    assert predict(run.folder.resolve(), ".", quiet=True) == [tmp_path / "scans_labelled" / "a.ply"]


def test_bad_scans_leave_nothing_behind(run, tmp_path):
    coord, color, label = scan(1)
    coord[3, 1] = np.nan
    write_ply(tmp_path / "nan.ply", coord, color, label)
    (tmp_path / "empty.ply").write_bytes(b"")
    for name in ("nan.ply", "empty.ply"):
        with pytest.raises(UserError, match=name):
            predict(run, tmp_path / name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty.ply", "nan.ply"]


def test_unlabelled_scans_and_one_point(run, tmp_path):
    coord, color, _ = scan(3)
    types = [("x", "f4"), ("y", "f4"), ("z", "f4")]
    for name, rows in (("bare.ply", coord), ("one.ply", coord[:1])):
        vertex = np.array([tuple(row) for row in rows], dtype=types)
        PlyData([PlyElement.describe(vertex, "vertex")]).write(tmp_path / name)
        (target,) = predict(run, tmp_path / name)
        assert len(read_scan(target, "class").label) == len(rows)


def test_what_is_asked_reaches_the_model(run, tmp_path, monkeypatch):
    told, load, ask = [], load_model, scenes.vote

    def loaded(domain, checkpoint="best"):
        told.append(checkpoint)
        return load(domain, checkpoint)

    def asked(*arguments):
        told.append(arguments[-1])
        return ask(*arguments[:-1], 0)

    monkeypatch.setattr(sys.modules["pointadapt.predict"], "load_model", loaded)
    monkeypatch.setattr(scenes, "vote", asked)
    predict(run, run.data / "test4.ply", tmp_path / "a.ply", checkpoint="last", tta=3, quiet=True)
    predict(dataclasses.replace(run, tta=2), run.data / "test4.ply", tmp_path / "b.ply", quiet=True)
    assert told == ["last", 3, "best", 2]


def test_a_scan_that_memory_does_not_suffice_for_leaves_the_others_labelled(run, tmp_path, monkeypatch):
    ask, calls = scenes.vote, []

    def vote(*arguments):
        calls.append(None)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return ask(*arguments)

    monkeypatch.setattr(scenes, "vote", vote)
    source = tmp_path / "scans"
    source.mkdir()
    for name in ("test4.ply", "train0.ply"):
        (source / name).write_bytes((run.data / name).read_bytes())
    with pytest.raises(UserError, match=r"1 of 2 scans .* GPU's memory is full: lower tile in .*run\.json; the others"):
        predict(run, source, tmp_path / "out", quiet=True)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["train0.ply"]


def test_an_unfinished_run(tmp_path):
    started = tiny_run(tmp_path)
    started.save(DataSet.open(started.data))
    with pytest.raises(UserError, match="no trained adapter yet"):
        predict(started, started.data / "test4.ply")


MEMORY = """
import resource, sys
sys.path[:0] = {path!r}
import numpy as np
import torch
from pointadapt.predict import predict
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
predict({run!r}, {source!r}, quiet=True)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_is_bounded(run, tmp_path):
    """200,000 points in tiles: what a pass needs does not grow with the scan; some 100 bytes a point do."""
    rng = np.random.default_rng(0)
    coord = rng.uniform(0, [60, 20, 1], (200_000, 3)).astype(np.float32)
    write_ply(tmp_path / "big.ply", coord, np.zeros((len(coord), 3), np.uint8), np.zeros(len(coord), np.int32))
    path = [str(Path(__file__).parent.parent / "src")]
    tiled = Run.load(run.folder)
    tiled.tile, tiled.out = 20_000, tmp_path / "run"
    tiled.save(remembered_domain(run).dataset)
    (tmp_path / "run" / "adapter").symlink_to(run.folder / "adapter")
    script = MEMORY.format(path=path, run=str(tmp_path / "run"), source=str(tmp_path / "big.ply"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = map(int, done.stdout.split())
    assert (after - before) / 1024 < 300, "MiB on top of the imports"
