"""Recipes: each row is a Run whose model can be built, with the paper's figures beside; one is run on tiny data."""

import importlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from pointadapt.analysis.matrix import BACKBONES
from pointadapt.data.benchmark_init import init_benchmark
from pointadapt.data.benchmarks import find_benchmark
from pointadapt.errors import UserError
from pointadapt.evaluate import pool
from pointadapt.methods import adapt
from pointadapt.run import method_config
from published_tables import FEW_LABELS, PUBLISHED, WEIGHTS, rows
from scene_layouts import write_s3dis
from tiny_runs import write_backbone

FOLDER = Path(__file__).parent.parent / "recipes"
SHARED = ("recipe", "gem_paper", "pointtpa_paper")
NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in SHARED)


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """Recipes import what they share as they do when run: from their own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in (*NAMES, *SHARED):
            del sys.modules[name]


def test_the_page_lists_them_by_table():
    page = (FOLDER.parent / "docs" / "benchmarks.md").read_text()
    listed = {}
    for names, table in re.findall(r"^\| (`.*\.py`) \| (.*) \|$", page, re.MULTILINE):
        listed |= {name: table for name in re.findall(r"`(\w+)\.py`", names)}
    assert sorted(listed) == NAMES
    for name, table in listed.items():
        paper, _, number = importlib.import_module(name).RECIPE.source.split(", ")
        assert f"{paper}, {number}" == table


FROZEN = 108_461_328


@cache
def weights(method: str, options: str, decoder: bool) -> tuple[int, int]:
    """(trained weights, those of the head) on Sonata-base with a head for 20 classes, as the tables count them."""
    with torch.device("meta"):
        task = BACKBONES["Sonata-base with new decoder" if decoder else "Sonata-base"]()
        model = adapt(task, method_config(method, json.loads(options)))
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    return sum(trained.values()), sum(count for name, count in trained.items() if ".head." in name)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_a_run_that_can_be_built(name, tmp_path):
    module = importlib.import_module(name)
    assert module.RECIPE.guessed and f"recipes/{name}.py" in module.__doc__
    for row, about in module.RECIPE.rows.items():
        run = module.RECIPE.run(row, tmp_path)
        assert run.backbone == "sonata" and run.tta == 13 and run.drop_path
        trained, _ = weights(run.method, json.dumps(run.options), run.decoder)
        assert trained > 0
        told = module.RECIPE.told(row, {"miou": 0.5, "macc": 0.5, "allacc": 0.5})
        assert about.here is None and told.count("not yet reproduced here") == len(about.paper) > 0
        assert all(f"{key:7} paper {value:.1f}" in told for key, value in about.paper.items())


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_those_of_the_paper(name):
    found = {row: about.paper for row, about in importlib.import_module(name).RECIPE.rows.items()}
    if name == "scannet_few_labels_gem":
        labels = ("1%", "5%", "10%", "20%", "20pts", "50pts", "100pts", "200pts")
        table = {
            f"{row}-{n}": [v] for row, values in rows(FEW_LABELS).items() for n, v in zip(labels, values, strict=True)
        }
    else:
        table = rows(PUBLISHED[name])
    keys = ("miou", "macc", "allacc")
    printed = {
        row: {key: float(value) for key, value in zip(keys, values, strict=False) if value != "-"}
        for row, values in table.items()
    }
    assert found == printed


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, table in WEIGHTS.items() for row in rows(table)])
def test_numbers_of_weights_are_the_printed_ones(name, row, tmp_path):
    run = importlib.import_module(name).RECIPE.run(row, tmp_path)
    trained, head = weights(run.method, json.dumps(run.options), run.decoder)
    (printed,) = rows(WEIGHTS[name])[row]
    share = (trained - head) / (FROZEN + trained - head)
    value = trained / 1e6 if printed.endswith("M") else 100 * share
    digits = len(printed[:-1].partition(".")[2])
    assert f"{value:.{digits}f}" == printed[:-1]


def test_published_settings(tmp_path):
    gem = importlib.import_module("scannet_gem").RECIPE.run("gem", tmp_path)
    assert (gem.epochs, gem.batch_size, gem.points, gem.lr, gem.mix3d) == (100, 24, 102_400, 2e-3, 0.8)
    tpa = importlib.import_module("scannet_pointtpa").RECIPE.run("pointtpa", tmp_path)
    assert (tpa.steps, tpa.batch_size, tpa.lr, tpa.head_lr, tpa.weight_decay) == (240_200, 4, 1e-4, 1e-3, 0.01)
    few = importlib.import_module("scannet_few_labels_gem").RECIPE
    assert few.run("gem-20pts", tmp_path).labels == "20pts"
    decoder = importlib.import_module("scannet_decoder_gem").RECIPE
    assert [decoder.run(row, tmp_path).epochs for row in ("gem", "full", "full-rerun")] == [100, 800, 100]


def test_what_changes_a_result_is_in_the_folder_s_name(tmp_path):
    recipe = importlib.import_module("scannet_gem").RECIPE
    asked = ({}, {"seed": 1}, {"labels": "10%"}, {"labels": str(tmp_path / "lists" / "1.txt")})
    assert [recipe.run("gem", tmp_path, **changes).folder.name for changes in asked] == [
        "GEM-on-ScanNet-gem", "GEM-on-ScanNet-gem-seed1", "GEM-on-ScanNet-gem-10pc", "GEM-on-ScanNet-gem-1.txt",
    ]  # fmt: skip


def test_folds_of_s3dis(tmp_path):
    module = importlib.import_module("s3dis_6fold_gem")
    runs = module.runs("gem", tmp_path / "s3dis", out=tmp_path / "out", seed=3)
    assert [run.data.name for run in runs] == [f"Area_{i}.yaml" for i in range(1, 7)]
    assert len({run.folder for run in runs}) == 6 and {run.seed for run in runs} == {3}


def test_one_from_end_to_end(tmp_path, capsys):
    """The 6-fold recipe on six tiny rooms with a tiny backbone: init, six runs, pooled scores, and resumed for free."""
    data = write_s3dis(tmp_path / "s3dis")
    init_benchmark(data, find_benchmark(data, "s3dis", "6fold"), grid_size=0.2)
    module = importlib.import_module("s3dis_6fold_gem")
    small = {
        "backbone": str(write_backbone(tmp_path / "tiny.safetensors")), "epochs": None, "steps": 2, "batch_size": 2,
        "points": 300, "tta": 1, "eval_every": 2, "num_workers": 0, "precision": "no", "threads": 1, "mix3d": 0.0,
    }  # fmt: skip
    runs = module.runs("gem", data, out=tmp_path / "out", **small)
    for run in runs:
        module.RECIPE.score(run, resume=True)
    pooled = pool([run.folder for run in runs])
    assert pooled["points"] == 6 * 400
    before = (runs[0].folder / "result.json").stat().st_mtime_ns
    module.RECIPE.score(runs[0], resume=True)
    assert (runs[0].folder / "result.json").stat().st_mtime_ns == before
    print(module.RECIPE.told("gem", pooled))
    assert "paper 77.9" in capsys.readouterr().out
    for name, changes in (("gem", {"seed": 1}), ("gem", {"labels": "20%"}), ("lora", {})):
        (other, *_) = module.runs(name, data, out=tmp_path / "out", **{**small, **changes})
        with pytest.raises(UserError, match="was started with other settings"):
            module.RECIPE.score(other, resume=True)
    with pytest.raises(UserError, match=r"Area_1\.yaml does not have the classes of ScanNet v2.*--layout scannet"):
        importlib.import_module("scannet_gem").RECIPE.score(runs[0], resume=True)


def test_what_the_user_can_mend_is_one_sentence(tmp_path):
    for name in ("scannet_gem", "s3dis_6fold_gem"):
        command = [sys.executable, str(FOLDER / f"{name}.py"), str(tmp_path / "nowhere")]
        source = {"PYTHONPATH": str(FOLDER.parent / "src")}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **source})
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr, done.stderr
        assert "not yet reproduced here" in done.stdout and "note: " in done.stdout


def test_the_command_line_of_six_folds(tmp_path, monkeypatch):
    """--labels and --precision reach its runs, as those of any recipe."""
    module, recipe = importlib.import_module("s3dis_6fold_gem"), importlib.import_module("recipe")
    monkeypatch.setattr(sys, "argv", ["recipe", str(tmp_path), "--labels", "10%", "--precision", "no", "--seed", "2"])
    given, changes = recipe.begin(module.RECIPE, module.__doc__)
    runs = module.runs(given.method, given.data, **changes)
    assert {(run.labels, run.precision, run.seed) for run in runs} == {("10%", "no", 2)} and len(runs) == 6
