"""Recipes: each builds Runs that are accepted, with the paper's figures beside; one is run on tiny data."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pointadapt as pa
from pointadapt.data.benchmark_init import init_benchmark
from pointadapt.data.benchmarks import find_benchmark
from pointadapt.evaluate import pool
from pointadapt.methods import METHODS
from pointadapt.run import method_config
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


def test_there_is_one_for_each_table():
    assert len(NAMES) == 11


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_a_run(name, tmp_path):
    module = importlib.import_module(name)
    assert module.RECIPE.rows and module.RECIPE.guessed and f"recipes/{name}.py" in module.__doc__
    for row, about in module.RECIPE.rows.items():
        run = module.RECIPE.run(row, tmp_path)
        assert run.backbone == "sonata" and run.tta == 13 and run.drop_path and run.method in METHODS
        method_config(run.method, run.options)
        assert "points" in getattr(METHODS[run.method], "works_on", ("points",))
        assert all(10 < value < 100 for value in about.paper.values()) and set(about.paper) <= {
            "miou",
            "macc",
            "allacc",
        }
        result = {"miou": 0.5, "macc": 0.5, "allacc": 0.5}
        told = module.RECIPE.told(row, result)
        assert about.here is None and told.count("not yet reproduced here") == len(about.paper)
        assert f"paper {about.paper['miou']:.1f}" in told


def test_published_settings(tmp_path):
    gem = importlib.import_module("scannet_gem").RECIPE.run("gem", tmp_path)
    assert (gem.epochs, gem.batch_size, gem.points, gem.lr, gem.mix3d) == (100, 24, 102_400, 2e-3, 0.8)
    tpa = importlib.import_module("scannet_pointtpa").RECIPE.run("pointtpa", tmp_path)
    assert (tpa.steps, tpa.batch_size, tpa.lr, tpa.head_lr, tpa.weight_decay) == (240_200, 4, 1e-4, 1e-3, 0.01)
    few = importlib.import_module("scannet_few_labels_gem").RECIPE
    assert few.run("gem-20pts", tmp_path).labels == "20pts" and len(few.rows) == 48


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
    recipe = importlib.import_module("recipe")
    small = {
        "backbone": str(write_backbone(tmp_path / "tiny.safetensors")), "epochs": None, "steps": 2, "batch_size": 2,
        "points": 300, "tta": 1, "eval_every": 2, "num_workers": 0, "precision": "no", "threads": 1, "mix3d": 0.0,
    }  # fmt: skip
    runs = module.runs("gem", data, out=tmp_path / "out", **small)
    for run in runs:
        recipe.score(run, resume=True)
    pooled = pool([run.folder for run in runs])
    assert pooled["points"] == 6 * 400
    before = (runs[0].folder / "result.json").stat().st_mtime_ns
    recipe.score(runs[0], resume=True)
    assert (runs[0].folder / "result.json").stat().st_mtime_ns == before
    print(module.RECIPE.told("gem", pooled))
    assert "paper 77.9" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "paper, printed",
    [
        ("gem_paper", {"gem": 1.8, "linear": 0.02, "adapter": 2.8, "lora": 1.9}),
        (
            "pointtpa_paper",
            {
                "pointtpa": 1.18, "linear": 0.02, "adapter": 1.90, "prefix": 0.08, "lora": 0.88, "vera": 0.08,
                "randlora": 0.71, "dapt": 1.14, "pointgst": 1.05,
            },
        ),
    ],
)  # fmt: skip
def test_numbers_of_weights_are_the_printed_ones(paper, printed):
    """In millions, on Sonata-base with a head for 20 classes. LoRA of PointTPA's table has 0.89: no rank gives that."""
    methods = importlib.import_module(paper).METHODS
    for name, millions in printed.items():
        config = method_config(methods[name]["method"], methods[name].get("options", {}))
        model = pa.adapt(pa.Segmentation(pa.load_backbone("sonata", weights=None), 20), config)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
        digits = 1 if millions >= 1 and paper == "gem_paper" else 2
        assert round(trained, digits) == millions, name


def test_what_the_user_can_mend_is_one_sentence(tmp_path):
    for name in ("scannet_gem", "s3dis_6fold_gem"):
        command = [sys.executable, str(FOLDER / f"{name}.py"), str(tmp_path / "nowhere")]
        source = {"PYTHONPATH": str(FOLDER.parent / "src")}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **source})
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
