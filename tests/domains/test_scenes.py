"""Scenes: lists of scans and of labels, scores of groups of classes, of several labels per point, of folds."""

import json

import numpy as np
import pytest
import torch
import yaml

from pointadapt import cli
from pointadapt.compare.arms import Arm
from pointadapt.compare.grid import Cell
from pointadapt.data.labels import keep_points, listed_points, listed_scans
from pointadapt.data.loader import ScanDataset, thin
from pointadapt.data.scans import DataSet
from pointadapt.domains.domain import Asked, open_domain
from pointadapt.errors import UserError
from pointadapt.evaluate import evaluate, pool
from pointadapt.metrics import confusion_matrix, group_scores, scores, top_k_confusion
from pointadapt.train import train
from scene_layouts import write_semantickitti
from tiny_runs import ByColor, scan, tiny_run, write_backbone, write_scans

CPU = torch.device("cpu")


def changed(folder, **changes):
    file = folder / "dataset.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))
    return folder


# --- splits ---------------------------------------------------------------------------------------------------------


def test_folders_and_lists_are_splits(tmp_path):
    for place in ("a", "b"):
        write_scans(tmp_path / place, train=2, val=0, test=0)
    (tmp_path / "val.json").write_text(json.dumps(["c/train0.ply"]))
    np.save(tmp_path / "apart.npy", np.full(900, 20))
    (tmp_path / "test.txt").write_text("d/train0.ply\tapart.npy\n\n")
    for place in ("c", "d"):
        write_scans(tmp_path / place, train=1, val=0, test=0)
    content = yaml.safe_load((tmp_path / "a/dataset.yaml").read_text())
    splits = {"train": ["a", "b/train1.ply"], "val": ["val.json"], "test": ["test.txt"]}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({**content, "splits": splits}))
    dataset = DataSet.open(tmp_path)
    assert dataset.scans("train") == ("a/train0.ply", "a/train1.ply", "b/train1.ply")
    assert dataset.as_dict()["splits"] == splits
    assert (dataset.read(dataset.paths("test")[0])["segment"] == 1).all()
    assert len(set(dataset.read(dataset.paths("val")[0])["segment"].tolist())) > 1
    run = tiny_run(tmp_path / "run", data=tmp_path, epochs=4, batch_size=2)
    assert open_domain(run).run.steps == 6
    cached = ScanDataset(dataset, "test", train=False, cache=tmp_path / "cache")
    np.save(tmp_path / "apart.npy", np.full(900, 30))
    assert (cached[0]["segment"] == 1).all()
    assert (ScanDataset(dataset, "test", train=False, cache=tmp_path / "cache")[0]["segment"] == 2).all()


@pytest.mark.parametrize(
    "splits, message",
    [
        ({"train": ["none.txt"]}, "none.txt, which does not exist"),
        ({"train": ["empty"]}, "empty, which holds no scans"),
        ({"train": ["empty.txt"]}, "this list of scans is empty"),
        ({"train": ["bad.json"]}, "an array of paths"),
        ({"train": ["worse.json"]}, "worse.json: no valid JSON"),
        ({"train": ["gone.txt"]}, "gone.ply, which does not exist"),
        ({"train": ["."], "val": ["train0.ply"]}, "listed twice"),
    ],
)
def test_lists_that_are_wrong(tmp_path, splits, message):
    write_scans(tmp_path, train=1, val=0, test=0)
    (tmp_path / "empty").mkdir()
    files = {"empty.txt": "\n", "bad.json": "{}", "worse.json": "[", "gone.txt": "gone.ply\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        DataSet.open(changed(tmp_path, splits=splits))


# --- lists of labels ------------------------------------------------------------------------------------------------


def test_listed_scans_are_the_training_split(tmp_path):
    write_scans(tmp_path / "scans", train=3)
    file = tmp_path / "10.txt"
    file.write_text("train2\ntrain0.ply\n")
    run = tiny_run(tmp_path, labels=str(file), epochs=3)
    domain = open_domain(run)
    assert [path.name for path in domain.dataset.paths("train")] == ["train2.ply", "train0.ply"]
    assert len(domain.items("train", train=True)) == 2 and domain.run.steps == 3
    assert len(domain.dataset.paths("val")) == 1
    file.write_text("train7\n")
    with pytest.raises(UserError, match="lists 'train7', which is no training scan"):
        listed_scans(DataSet.open(tmp_path / "scans"), str(file))


@pytest.mark.parametrize("kind", [".json", ".npz", ""])
def test_listed_points_are_the_only_labels(tmp_path, kind):
    write_scans(tmp_path / "scans", train=2)
    rows = {f"train{i}": np.random.default_rng(i).permutation(900)[:20] for i in range(2)}
    file = tmp_path / f"points20{kind}"
    if kind == ".json":
        file.write_text(json.dumps({name: r.tolist() for name, r in rows.items()}))
    elif kind == ".npz":
        np.savez(file, **rows)
    else:
        torch.save(rows, file)
    run = tiny_run(tmp_path, labels=str(file), cache=tmp_path / "cache", steps=1, eval_every=1)
    domain = open_domain(run)
    items = domain.items("train", train=True)
    for index in range(2):
        _, _, raw = scan(index)
        wanted = (raw[rows[f"train{index}"]] != 99).sum()
        assert (items[index]["segment"] >= 0).sum() == wanted  # none was thinned out
    assert (domain.items("val")[0]["segment"] >= 0).sum() > 800
    train(run)
    other = tiny_run(tmp_path, labels="100%", cache=tmp_path / "cache")
    assert (open_domain(other).items("train", train=True)[0]["segment"] >= 0).sum() > 500


def test_lists_of_points_that_are_wrong(tmp_path):
    write_scans(tmp_path / "scans", train=2)
    file = tmp_path / "points.json"
    file.write_text(json.dumps({"train0": [1, 2]}))
    with pytest.raises(UserError, match="has none for the training scan .*train1.ply"):
        open_domain(tiny_run(tmp_path, labels=str(file))).items("train", train=True)
    file.write_text("[1, 2]")
    with pytest.raises(UserError, match="not readable as point indices"):
        listed_points(str(file))
    with pytest.raises(UserError, match="goes to 9, but it has 4 points"):
        keep_points(np.zeros(4, np.int64), np.array([2, 9]), "a.ply")
    with pytest.raises(UserError, match="write a share .* or a file"):
        open_domain(tiny_run(tmp_path, labels=str(tmp_path / "missing.txt")))


@pytest.mark.parametrize("listed", [True, False])
def test_few_labels_reach_the_model(tmp_path, listed):
    write_scans(tmp_path / "scans", train=1)
    labels = "20pts"
    if listed:
        labels = str(tmp_path / "points.json")
        rows = np.flatnonzero(scan(0)[2] != 99)[::40]
        (tmp_path / "points.json").write_text(json.dumps({"train0": rows.tolist()}))
    domain = open_domain(tiny_run(tmp_path, labels=labels, points=5000))
    items = domain.items("train", train=True)
    samples = [domain.draw(items, 0, np.random.default_rng(seed)) for seed in range(20)]
    known = [(sample["segment"] >= 0).sum() for sample in samples]
    assert max(known) <= (len(rows) if listed else 20) and np.mean(known) > 18  # two may fall into one voxel


def test_thinning_prefers_labelled_points():
    rng = np.random.default_rng(0)
    segment = np.full(1000, -1)
    segment[::50] = 1
    sample = {"coord": rng.random((1000, 3)).astype(np.float32), "segment": segment}
    thinned = thin(sample, 0.5, rng, labelled_first=True)
    cell = [tuple(c) for c in np.floor(thinned["coord"] / 0.5).astype(int)]
    known = {c for c, label in zip(cell, thinned["segment"], strict=True) if label >= 0}
    assert len(known) >= 5 and all(
        (label >= 0) == (c in known) for c, label in zip(cell, thinned["segment"], strict=True)
    )
    assert (thin(sample, 0.5, rng)["segment"] >= 0).mean() < 0.3


# --- scores ---------------------------------------------------------------------------------------------------------


def test_groups_of_classes():
    found = group_scores([0.5, None, 0.1, 0.3], list("abcd"), {"head": ["a", "d"], "tail": ["b", "c"], "none": ["b"]})
    assert found == {"mIoU head": 0.4, "mIoU tail": 0.1, "mIoU none": None}


def test_top_k_with_several_labels():
    probability = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.2, 0.0]])
    labels = torch.tensor([[1, 2, -1], [3, -1, -1], [0, 2, -1], [-1, 0, -1]])
    assert top_k_confusion(probability, labels, 1).nonzero().tolist() == [[0, 3], [1, 0], [3, 0]]
    second = top_k_confusion(probability, labels, 2)
    assert second.nonzero().tolist() == [[1, 1], [2, 2], [3, 0]]  # the last point has no label of its own
    assert torch.equal(top_k_confusion(probability, labels, 4).diag(), torch.tensor([0, 1, 1, 1]))
    draw = torch.Generator().manual_seed(0)
    probability, label = torch.rand(500, 6, generator=draw), torch.randint(-1, 6, (500,), generator=draw)
    plain = confusion_matrix(probability.argmax(1), label, 6)
    assert torch.equal(top_k_confusion(probability, label[:, None], 1), plain)
    assert top_k_confusion(probability, label[:, None], 6).trace() == (label >= 0).sum()


def test_evaluation_tells_groups_and_top_k(tmp_path, capsys):
    write_scans(tmp_path / "scans")
    coord, color, raw = scan(3)
    folder = tmp_path / "scans" / "many"
    folder.mkdir()
    also = np.where(raw == 10, 30, -1)  # all ground is a box as well
    for name, values in {"coord": coord, "color": color, "label": np.stack([raw, also], 1)}.items():
        np.save(folder / f"{name}.npy", values)
    splits = {"train": ["train0.ply"], "val": ["many"], "test": []}
    groups = {"low": ["ground"], "high": ["wall", "box"]}
    changed(tmp_path / "scans", splits=splits, groups=groups, top_k=2)
    domain = open_domain(tiny_run(tmp_path))
    found = domain.evaluate(ByColor(), domain.items("val"), CPU, Asked())
    further = found.details["further"]
    iou = found.scores["iou"]
    assert further["mIoU low"] == iou[0] and further["mIoU high"] == pytest.approx((iou[1] + iou[2]) / 2)
    assert further["mIoU top-2, any label"] >= further["mIoU top-1, any label"] >= found.scores["miou"] - 1e-9
    assert open_domain(tiny_run(tmp_path)).items("train", train=True)[0].keys() & {"more_segments"} == set()
    run = tiny_run(tmp_path, steps=1, eval_every=1)
    train(run)
    assert cli.main(["evaluate", str(run.folder)]) == 0
    said = capsys.readouterr().out
    assert "mIoU low" in said and "mIoU top-2, any label" in said


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"groups": {"head": ["roof"]}}, "`groups` names 'roof'"),
        ({"groups": ["ground"]}, "`groups` must be lists of class names"),
        ({"top_k": 0}, "`top_k` must be"),
        ({"top_k": 9}, "`top_k` is 9, but there are only 3 classes"),
        ({"color": {"intensity": 1, "ring": 2}}, "one or three fields"),
    ],
)
def test_keys_that_are_wrong(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        DataSet.open(changed(write_scans(tmp_path), **changes))


def two_folds(tmp_path):
    """Runs of two folds, trained and scored, each a yaml of its own; names of all scans."""
    write_scans(tmp_path / "scans", train=2, val=1, test=0)
    names = ["train0.ply", "train1.ply", "val2.ply"]
    runs = []
    for number, name in enumerate(names[:2]):
        data = write_fold(tmp_path, number, train=[n for n in names if n != name], val=[name])
        runs.append(tiny_run(tmp_path, data=data, out=tmp_path / f"run{number}", steps=2))
        train(runs[-1])
        evaluate(runs[-1], "val")
    return runs, names


def write_fold(tmp_path, number, **splits):
    content = yaml.safe_load((tmp_path / "scans/dataset.yaml").read_text())
    file = tmp_path / f"scans/fold{number}.yaml"
    file.write_text(yaml.safe_dump({**content, "splits": splits}))
    return file


def test_pooled_folds(tmp_path, capsys):
    folders = [run.folder for run in two_folds(tmp_path)[0]]
    found = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    result = pool(folders)
    confusion = sum(torch.tensor(one["confusion"]) for one in found)
    assert result["miou"] == scores(confusion).miou and result["points"] == int(confusion.sum())
    assert result["further"]["mIoU of the folds, mean"] == pytest.approx(np.mean([one["miou"] for one in found]))
    file = tmp_path / "pooled.json"
    assert cli.main(["pool", *map(str, folders), "--out", str(file)]) == 0
    assert json.loads(file.read_text())["miou"] == result["miou"] and "2 folds" in capsys.readouterr().out


def test_folds_that_do_not_belong_together(tmp_path):
    (first, second), names = two_folds(tmp_path)
    folders = [first.folder, second.folder]

    def refused(folders, message):
        with pytest.raises(UserError, match=message):
            pool(folders)

    refused(folders[:1], "two runs or more")
    refused([folders[0], tmp_path], "has no evaluation.json: score it with")
    refused([folders[0]] * 2, f"both scored .*{names[0]}: a scan counts once")
    evaluation = second.folder / "evaluation.json"
    content = json.loads(evaluation.read_text())
    evaluation.write_text(json.dumps({**content, "classes": content["classes"][::-1]}))
    refused(folders, "differ in classes")
    evaluate(second, "val", absent="zero")
    refused(folders, "differ in absent")
    evaluate(second, "val", checkpoint="last")
    refused(folders, "differ in checkpoint")
    other = tiny_run(tmp_path, data=second.data, out=tmp_path / "other", steps=1, method="linear")
    train(other)
    evaluate(other, "val")
    refused([first.folder, other.folder], "differ in method")
    write_fold(tmp_path, 1, train=names[2:], val=names[1::-1])  # two scans, one of them the other fold's
    evaluate(second, "val")
    refused(folders, f"both scored .*{names[0]}")
    older = {key: value for key, value in json.loads(evaluation.read_text()).items() if key != "scans"}
    evaluation.write_text(json.dumps(older))
    refused(folders, "does not tell which scans")


# --- lidar frames ---------------------------------------------------------------------------------------------------


def test_frames_are_learned_and_labelled(tmp_path, capsys):
    folder = write_semantickitti(tmp_path / "kitti")
    data, run = str(folder), str(tmp_path / "run")
    small = ["--steps", "2", "--points", "300", "--eval-every", "2", "--threads", "1", "--out", run]
    backbone = ["--backbone", str(write_backbone(tmp_path / "tiny.safetensors"))]
    assert cli.main(["adapt", data, *backbone, *small]) == 0  # without init: the layout is seen
    said = capsys.readouterr()
    assert "wrote" in said.out and "03, 04, 05" in said.err  # what init would have noted, too
    assert DataSet.open(folder).grid_size == 0.05
    assert cli.main(["evaluate", run]) == 0
    unlabelled = folder / "dataset/sequences/11/velodyne"
    assert cli.main(["predict", run, str(unlabelled)]) == 0
    found = np.fromfile(unlabelled.with_name("velodyne_labelled") / "000000.label", np.uint32)
    assert len(found) == 400 and set(found.tolist()) <= set(DataSet.open(folder).raw_ids.tolist())
    assert cli.main(["info", str(unlabelled / "000000.bin")]) == 0 and "intensity" in capsys.readouterr().out


def test_lists_of_points_are_for_scenes(tmp_path):
    file = tmp_path / "points.json"
    file.write_text("{}")
    with pytest.raises(UserError, match="lists in files are for scenes"):
        listed_scans(object(), str(file))
    grid_cell = Cell(Arm.parse("gem"), str(file), 0)
    assert "/" not in grid_cell.key and grid_cell.key != Cell(Arm.parse("gem"), "10%", 0).key
