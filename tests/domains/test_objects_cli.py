"""The command line on folders of shapes: init, adapt, evaluate, predict, info, and what a user can mend."""

import json
from pathlib import Path

import numpy as np
import pytest

from pointadapt import cli
from pointadapt.run import Run
from run_folders import refused
from tiny_objects import flags, shape, write_parts, write_shape, write_shapes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write_shapes(folder / "shapes")
    arguments = ["adapt", folder / "shapes", "--out", folder / "run", *flags(folder), "--method.r", "2"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return folder


@pytest.mark.parametrize("first", ["init", "adapt"])
def test_init_adapt_evaluate_predict(tmp_path, capsys, first):
    shapes = write_shapes(tmp_path / "shapes", yaml=None)
    out = str(tmp_path / "run")
    if first == "init":
        assert cli.main(["init", str(shapes), "--points", "64"]) == 0
        assert "task: classification" in capsys.readouterr().out
    assert cli.main(["adapt", str(shapes), "--out", out, *flags(tmp_path, points=64)]) == 0
    assert "OA" in capsys.readouterr().out
    assert Run.load(out).kind == "classification" and Run.load(out).method == "lora"
    assert cli.main(["evaluate", out, "--tta", "2", "--corruption", "jitter", "--severity", "1"]) == 0
    text = capsys.readouterr().out
    assert "mAcc" in text and "jitter at severity 1" in " ".join(text.split())
    assert cli.main(["predict", out, str(shapes / "test"), "--out", str(tmp_path / "p.csv"), "--probabilities"]) == 0
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert len(lines) == 7 and lines[0] == "file,class,confidence,ball,box,pole"


def test_options_belong_to_the_kinds_own_method(trained):
    run = Run.load(trained / "run")
    assert (run.method, run.options) == ("lora", {"r": 2})
    parsed = cli.parse(["adapt", str(trained / "shapes"), "--method", "houlsby"]).settings()
    assert parsed == Run(trained / "shapes", method="houlsby")


def test_resume_keeps_the_runs_settings(trained, capsys):
    shapes, out = trained / "shapes", trained / "run"
    assert cli.main(["adapt", str(shapes), "--out", str(out), "--resume"]) == 0
    assert "lr 0.0005 -> 0.1" in refused(capsys, "adapt", shapes, "--out", out, "--resume", "--lr", "0.1")


def test_info_and_lists(trained, capsys):
    for path, word in {
        trained / "shapes": "scale_translate",
        trained / "run": "classification",
        trained / "run" / "adapter" / "best": "lora",
        trained / "tiny.safetensors": "groups",
        trained / "shapes" / "train" / "box" / "box_1.off": "4,096",
    }.items():
        assert cli.main(["info", str(path)]) == 0
        assert word in capsys.readouterr().out, path
    assert cli.main(["methods"]) == 0
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "points, tokens" in rows["lora"] and "tokens" not in rows["gem"]
    assert cli.main(["backbones"]) == 0
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "points" in rows["sonata"] and "tokens" in rows["point-mae"]


def test_parts(tmp_path, capsys):
    shapes = write_parts(tmp_path / "shapes")
    out = str(tmp_path / "run")
    assert cli.main(["adapt", str(shapes), "--out", out, *flags(tmp_path)]) == 0
    assert "instance mIoU" in capsys.readouterr().out
    assert cli.main(["evaluate", out]) == 0
    assert "class mIoU" in capsys.readouterr().out
    source = shapes / "test" / "tin" / "tin_0.ply"
    assert cli.main(["predict", out, str(source), "--out", str(tmp_path / "tin.ply"), "--category", "mushroom"]) == 0
    assert (tmp_path / "tin.ply").is_file()


# --- what a user can mend --------------------------------------------------------------------------------------------


def damage(folder: Path, kind: str) -> str:
    """Spoil a data set; returns what the message must name."""
    file = folder / "train" / "ball" / "ball_1.ply"
    coord = shape("ball", 1)
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[:-300])
    elif kind == "few points":
        write_shape(file, coord[:11])
    elif kind == "nan":
        coord[5, 0] = np.nan
        write_shape(file, coord)
    elif kind == "one place":
        write_shape(file, np.full_like(coord, 0.5))
        return f"{file}: all 200 points are at the same place"
    elif kind == "unknown class":
        write_shape(folder / "train" / "cone" / "cone_0.ply", coord)
        return "cone_0.ply: it lies in no folder of a known class"
    elif kind == "damaged mesh":
        (folder / "train" / "box" / "box_1.off").write_text("OFF\n8 6 0\n1 2\n")
        return "box_1.off"
    elif kind == "nothing":
        text = (folder / "dataset.yaml").read_text()
        (folder / "dataset.yaml").write_text(text.replace("train: [train]", "train: []"))
        return "lists no shapes"
    return file.name


@pytest.mark.parametrize(
    "kind", ["empty", "truncated", "few points", "nan", "one place", "unknown class", "damaged mesh", "nothing"]
)
def test_bad_data_sets(tmp_path, capsys, kind):
    shapes = write_shapes(tmp_path / "shapes")
    named = damage(shapes, kind)
    before = sorted(tmp_path.rglob("*"))
    assert named in refused(capsys, "adapt", shapes, "--out", tmp_path / "run", *flags(tmp_path))
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "tiny.safetensors"]), "something was half-written"


@pytest.mark.parametrize("kind", ["empty", "truncated", "few points", "nan", "one place"])
def test_bad_shapes_to_predict(trained, tmp_path, capsys, kind):
    shapes = write_shapes(tmp_path / "shapes", train=3)
    named = damage(shapes, kind)
    folder = shapes / "train" / "ball"
    before = sorted(tmp_path.rglob("*"))
    assert named in refused(capsys, "predict", trained / "run", folder / "ball_1.ply")
    assert sorted(tmp_path.rglob("*")) == before
    line = refused(capsys, "predict", trained / "run", folder, "--out", tmp_path / "out.csv")
    assert "1 of 3 shapes were not labelled" in line and named in line
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


def test_bad_arguments(trained, tmp_path, capsys):
    shapes, run = trained / "shapes", trained / "run"
    base = ["adapt", shapes, "--out", tmp_path / "run", *flags(tmp_path)]
    cases = {
        "cannot work on PointViT: it needs voxel neighbourhoods": [*base, "--method", "gem"],
        "holds a run already": ["adapt", shapes, "--out", run, *flags(tmp_path)],
        "no split 'hard'": ["evaluate", run, "--split", "hard"],
        "no corruption 'rust'": ["evaluate", run, "--corruption", "rust"],
        "severity 9": ["evaluate", run, "--corruption", "jitter", "--severity", "9"],
        "tta is 101": ["evaluate", run, "--tta", "101"],
        "category is not for classification": ["predict", run, shapes / "test", "--category", "chair"],
    }
    for message, arguments in cases.items():
        assert message in refused(capsys, *arguments), arguments
    assert not (tmp_path / "run").exists()


def test_foundation_models_need_appt_before_anything_is_written(trained, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    transformers.BertModel(transformers.BertConfig(**size, vocab_size=110)).save_pretrained(tmp_path / "bert")
    arguments = ["adapt", trained / "shapes", "--out", tmp_path / "run", "--backbone", tmp_path / "bert"]
    assert "use method appt" in refused(capsys, *arguments, "--method", "lora", "--steps", 1)
    assert not (tmp_path / "run").exists()


def test_options_of_shapes_are_refused_for_scans(tmp_path, capsys):
    from pointadapt.train import train
    from tiny_runs import tiny_run

    run = tiny_run(tmp_path, steps=1)
    train(run)
    scan = run.data / "test4.ply"
    assert "probabilities is not for scenes" in refused(capsys, "predict", run.folder, scan, "--probabilities")
    assert "corruptions are for single objects" in refused(capsys, "evaluate", run.folder, "--corruption", "jitter")
    content = json.loads((run.folder / "run.json").read_text())
    for name in ("kind", "head", "schedule", "warmup", "select", "smoothing", "epochs", "val_share", "labels"):
        content["run"].pop(name)
    content["run"]["transform"] = "auto"  # as version 0.1 wrote it
    (run.folder / "run.json").write_text(json.dumps(content))
    assert cli.main(["adapt", str(run.data), "--out", str(run.folder), "--resume"]) == 0
    assert cli.main(["evaluate", str(run.folder)]) == 0
