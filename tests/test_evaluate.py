"""Evaluation: on original points, deterministic, the same in tiles, votes that add up."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from pointadapt.data.loader import ScanDataset
from pointadapt.data.scans import DataSet
from pointadapt.data.transforms import Sample
from pointadapt.domains.domain import Asked, open_domain
from pointadapt.domains.models import load_model
from pointadapt.domains.scenes import Scenes, vote
from pointadapt.errors import UserError
from pointadapt.evaluate import evaluate
from pointadapt.run import Run
from pointadapt.train import train
from tiny_runs import CLASSES, ByColor, tiny_run, write_scans

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = tiny_run(tmp_path_factory.mktemp("run"), steps=30, eval_every=30)
    train(made)
    return made


def test_scores_are_on_all_original_points(run):
    result = evaluate(run, "test")
    scan = DataSet.open(run.data).read(run.data / "test4.ply")
    assert result["points"] == (scan["segment"] >= 0).sum()
    assert sum(map(sum, result["confusion"])) == result["points"]
    hits = np.diag(result["confusion"]).sum()
    assert result["allacc"] == pytest.approx(hits / result["points"])
    assert 0.7 < result["miou"] <= 1


def test_files(run):
    result = evaluate(run, "test")
    assert json.loads((run.folder / "evaluation.json").read_text()) == result
    page = (run.folder / "report.html").read_text()
    assert "ground" in page and "test4.ply" in page
    assert not list(run.folder.glob("*.part")) and not list(run.folder.glob("*.tmp"))


@pytest.mark.parametrize("tta", [0, 1, 13])
def test_twice_the_same_bit_by_bit(run, tta):
    model = load_model(open_domain(run))
    sample = DataSet.open(run.data).read(run.data / "val3.ply")
    once, again = (vote(model, sample, 0.1, run, CPU, tta) for _ in range(2))
    assert torch.equal(once, again)
    assert once.shape == (900, 3) and torch.allclose(once.sum(1), torch.ones(900), atol=1e-5)


def test_one_pass_agrees_with_the_model_on_voxels(run):
    """Points of one voxel get one answer, different voxels their own."""
    model = ByColor()
    sample = DataSet.open(run.data).read(run.data / "val3.ply")
    found = vote(model, sample, 0.1, run, CPU, 0)
    voxels = np.floor(sample["coord"] / 0.1).astype(int)
    assert len(found.unique(dim=0)) <= len(np.unique(voxels, axis=0)) * 2
    exact = vote(model, sample, 1e-4, run, CPU, 0).argmax(1)  # every point its own voxel
    shade = torch.from_numpy(sample["color"]).mean(1, keepdim=True)
    assert torch.equal(exact, (shade - torch.tensor([60.0, 120.0, 200.0])).abs().argmin(1))


def test_fragments_see_every_point(run):
    """With fragments each point is asked for itself: the model by colour is then exact at any voxel size."""
    sample = DataSet.open(run.data).read(run.data / "val3.ply")
    shade = torch.from_numpy(sample["color"]).mean(1, keepdim=True)
    wanted = (shade - torch.tensor([60.0, 120.0, 200.0])).abs().argmin(1)
    coarse = vote(ByColor(), sample, 0.5, run, CPU, 1).argmax(1)
    assert (coarse == wanted).float().mean() > 0.6  # votes of a voxel's repeats add up, so not all
    single = vote(ByColor(), sample, 0.5, run, CPU, 0).argmax(1)
    assert (coarse == wanted).float().mean() > (single == wanted).float().mean() + 0.1


def test_views_are_a_mean(run):
    """A model that only sees heights does not mind the four turns: their votes equal one."""

    class ByHeight(nn.Module):
        def forward(self, point):
            height = point.coord[:, 2:]
            return torch.cat([-height, height, 0 * height], 1)

    sample: Sample = DataSet.open(run.data).read(run.data / "val3.ply")
    one, four = (vote(ByHeight(), sample, 0.001, run, CPU, views) for views in (1, 4))
    assert torch.allclose(one, four, atol=1e-5)
    nine = vote(ByHeight(), sample, 0.001, run, CPU, 9)  # turns at scales 1, 0.95 and the first at 1.05
    assert not torch.allclose(one, nine, atol=1e-4) and torch.allclose(one, nine, atol=5e-2)


def test_tiles_score_every_point_once(run, tmp_path):
    dataset = DataSet.open(write_scans(tmp_path / "scans", grid_size=0.01))
    whole = ScanDataset(dataset, "val", train=False)
    tiled = ScanDataset(dataset, "val", train=False, limit=300)
    assert len(whole) == 1 and len(tiled) > 4
    domain = Scenes(run, dataset)
    found = [domain.evaluate(ByColor(), scans, CPU, Asked()) for scans in (whole, tiled)]
    counts = [torch.tensor(one.details["confusion"]) for one in found]
    assert counts[0].sum() == counts[1].sum() == (whole[0]["segment"] >= 0).sum()
    # Voxels begin at each tile's own corner, so few points share theirs with others: nearly the same answers.
    assert (counts[0] - counts[1]).abs().sum() < 0.02 * counts[0].sum()


def test_a_class_that_is_nowhere_counts_as_asked(run, tmp_path):
    dataset = DataSet.open(write_scans(tmp_path / "scans", classes={**CLASSES, 40: "tree"}))
    domain, scans = Scenes(run, dataset), ScanDataset(dataset, "val", train=False)
    without, zero = (domain.evaluate(ByColor(), scans, CPU, Asked(absent=a)) for a in ("exclude", "zero"))
    assert without.scores["iou"][3] is None and zero.scores["iou"][3] == 0
    assert zero.scores["miou"] == pytest.approx(without.scores["miou"] * 3 / 4)
    assert evaluate(run, "val", absent="zero")["absent"] == "zero" and evaluate(run, "val")["absent"] == "exclude"


def test_what_is_asked_reaches_the_domain(run, monkeypatch):
    told, load, score = {}, load_model, Scenes.evaluate

    def loaded(domain, checkpoint="best"):
        told["checkpoint"] = checkpoint
        return load(domain, checkpoint)

    def scored(self, model, items, device, asked, shown=0):
        told.update(views=asked.views, absent=asked.absent, split=items.split)
        return score(self, model, items, device, Asked(), shown)

    monkeypatch.setattr(sys.modules["pointadapt.evaluate"], "load_model", loaded)
    monkeypatch.setattr(Scenes, "evaluate", scored)
    evaluate(run, "val", "last", tta=3, absent="zero")
    assert told == {"checkpoint": "last", "views": 3, "absent": "zero", "split": "val"}
    evaluate(dataclasses.replace(run, tta=2))  # the run's own, where nothing is said
    assert told == {"checkpoint": "best", "views": 2, "absent": "exclude", "split": "test"}


def test_default_split_and_checkpoint(run, tmp_path):
    assert evaluate(run)["split"] == "test"
    assert evaluate(run.folder, checkpoint="last")["checkpoint"] == "last"
    write_scans(tmp_path / "scans", test=0)
    short = tiny_run(tmp_path, steps=1)
    train(short)
    assert evaluate(short)["split"] == "val"
    with pytest.raises(UserError, match="'test' lists no scans"):
        evaluate(short, "test")


def test_bad_runs(run, tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        evaluate(tmp_path)
    other = Run.load(run.folder)
    file = write_scans(tmp_path / "scans") / "dataset.yaml"
    other.data = tmp_path / "scans"
    content = yaml.safe_load(file.read_text())
    content["classes"] = {10: "ground", 20: "wall and box", 30: "wall and box"}
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="other classes"):
        evaluate(other)
