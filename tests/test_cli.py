"""The command line from outside: help, the whole path, and one line with exit code 2 for whatever a user can mend."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from pointadapt import cli
from pointadapt.data.synthetic import write_ply
from pointadapt.run import Run
from run_folders import refused
from tiny_runs import scan, write_backbone, write_scans

SRC = str(Path(__file__).parent.parent / "src")
COMMANDS = ("init", "adapt", "evaluate", "predict", "info", "methods", "backbones", "demo")


def outside(*arguments, **options) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": SRC, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    command = [sys.executable, "-m", "pointadapt.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, **options)


def flags(folder: Path) -> list[str]:
    """Flags of a very short run with the tiny backbone."""
    write_backbone(folder / "tiny.safetensors")
    text = f"--backbone {folder}/tiny.safetensors --steps 2 --eval-every 1 --points 300 --threads 1"
    return text.split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder made by the command line."""
    folder = tmp_path_factory.mktemp("trained")
    write_scans(folder / "scans")
    arguments = ["adapt", str(folder / "scans"), "--out", str(folder / "run"), *flags(folder), "--method.rank", "4"]
    assert cli.main(arguments) == 0
    return folder


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_is_fast():
    began = time.perf_counter()
    done = outside("--help")
    assert time.perf_counter() - began < 5  # half a second on a quiet machine; torch alone would be 3 s
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: pointadapt" in text and len(text) > 200 and "(default: None)" not in text


def test_help_shows_the_methods_options(capsys):
    for method, option in (("gem", "--method.num-latents"), ("lora", "--method.lora-alpha")):
        with pytest.raises(SystemExit):
            cli.main(["adapt", "--method", method, "--help"])
        text = capsys.readouterr().out
        assert option in text and f"{method}(" not in text and "(default: None)" not in text


def test_options_of_a_method_that_was_not_named(tmp_path, capsys):
    """They are those of the default method, which depends on the data."""
    assert "--method.r is no option of gem" in refused(capsys, "adapt", "scans", "--method.r=2")
    assert cli.parse(["adapt", "scans", "--method.no-use-ca"]).settings().options == {"use_ca": False}
    (tmp_path / "dataset.yaml").write_text("task: classification\n")
    assert "--method.rank is no option of lora" in refused(capsys, "adapt", tmp_path, "--method.rank", "2")
    late = refused(capsys, "adapt", "--method.rank", "2", tmp_path)
    assert f"{tmp_path} is for method lora" in late and "--method NAME" in late


def test_every_setting_has_help():
    import dataclasses

    for made in (Run, cli.Init, cli.Evaluate, cli.Predict, cli.Info, cli.Methods, cli.Demo):
        for f in dataclasses.fields(made):
            assert len(f.metadata.get("help", "")) > 5, f"{made.__name__}.{f.name}"


def test_wrong_flags():
    for arguments in (["adapt", "scans", "--stepss", "3"], ["adapt", "scans", "--steps", "many"], ["fly"], []):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2


def test_flags_become_a_run():
    command = cli.parse(
        [
            "adapt",
            "scans",
            "--method",
            "gem",
            "--method.rank",
            "7",
            "--method.share",
            "none",
            "--lr",
            "3e-3",
            "--drop-path",
        ]
    )
    run = command.settings()
    assert (run.method, run.options, run.lr, run.drop_path) == ("gem", {"rank": 7, "share": "none"}, 3e-3, True)
    assert cli.parse(["adapt", "scans", "--method.rank", "7"]).settings().options == {"rank": 7}
    assert cli.parse(["adapt", "scans", "--method", "lora"]).settings().method == "lora"
    assert cli.parse(["adapt", "scans"]).settings() == Run("scans")


# --- the whole path --------------------------------------------------------------------------------------------------


def test_init_adapt_evaluate_predict(tmp_path, capsys):
    scans = write_scans(tmp_path / "scans")
    (scans / "dataset.yaml").unlink()
    assert cli.main(["init", str(scans)]) == 0
    assert (scans / "dataset.yaml").is_file()
    out = str(tmp_path / "run")
    assert cli.main(["adapt", str(scans), "--out", out, *flags(tmp_path), "--method", "linear"]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert cli.main(["evaluate", out]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert cli.main(["predict", out, str(scans / "test4.ply"), "--out", str(tmp_path / "labelled.ply")]) == 0
    assert (tmp_path / "labelled.ply").is_file()


def test_adapt_alone_looks_at_the_scans_itself(tmp_path, capsys):
    scans = write_scans(tmp_path / "scans")
    (scans / "dataset.yaml").unlink()
    assert cli.main(["adapt", str(scans), "--out", str(tmp_path / "run"), *flags(tmp_path)]) == 0
    assert "wrote" in capsys.readouterr().out and (scans / "dataset.yaml").is_file()


def test_adapt_says_what_a_new_data_set_lacks(tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    write_ply(tmp_path / "scans" / "only.ply", *scan(1))
    assert cli.main(["adapt", str(tmp_path / "scans"), "--out", str(tmp_path / "run"), *flags(tmp_path)]) == 0
    assert "note: only one labelled file" in capsys.readouterr().err


def test_resume_keeps_the_runs_settings(trained, capsys):
    scans, out = str(trained / "scans"), str(trained / "run")
    assert cli.main(["adapt", scans, "--out", out, "--resume"]) == 0
    assert "settings" in refused(capsys, "adapt", scans, "--out", out, "--resume", "--steps", "9")
    assert "--overwrite" in refused(capsys, "adapt", scans, "--out", out)


def test_info(trained, tmp_path, capsys):
    wanted = {
        trained / "scans" / "train0.ply": "900",
        trained / "scans": "ground",
        trained / "scans" / "dataset.yaml": "ground",
        trained / "run": "rank",
        trained / "run" / "adapter" / "best": "gem",
        trained / "tiny.safetensors": "enc_depths",
    }
    for path, word in wanted.items():
        assert cli.main(["info", str(path)]) == 0
        assert word in capsys.readouterr().out, path
    (tmp_path / "text.txt").write_text("hello")
    for path in (tmp_path / "text.txt", tmp_path / "nothing", tmp_path):
        assert str(path) in refused(capsys, "info", path)


def test_lists(capsys):
    assert cli.main(["methods"]) == 0 and "pointtpa" in capsys.readouterr().out
    assert cli.main(["methods", "gem"]) == 0 and "--method.rank" in capsys.readouterr().out
    assert cli.main(["backbones"]) == 0 and "sonata" in capsys.readouterr().out
    assert "unknown method" in refused(capsys, "methods", "magic")


# --- what a user can mend --------------------------------------------------------------------------------------------


def damage(folder: Path, kind: str) -> str:
    """Spoil a data set; returns what the message must name."""
    file, yaml_file = folder / "train1.ply", folder / "dataset.yaml"
    content = yaml.safe_load(yaml_file.read_text())
    coord, color, label = scan(1)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-500])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "nan":
        coord[5, 0] = np.nan
        write_ply(file, coord, color, label)
    elif kind == "inf":
        coord[5, 2] = np.inf
        write_ply(file, coord, color, label)
    elif kind == "unknown label":
        label[7] = 77
        write_ply(file, coord, color, label)
        return "77"
    elif kind == "nothing labelled":
        for name in content["splits"]["train"]:
            write_ply(folder / name, coord, color, np.full(len(coord), 99))
        return "labelled"
    elif kind == "missing":
        file.unlink()
    elif kind == "yaml key":
        yaml_file.write_text(yaml.safe_dump({**content, "clases": {}}))
        return "clases"
    elif kind == "no yaml syntax":
        yaml_file.write_text("classes: [1, 2")
        return "dataset.yaml"
    elif kind == "one class":
        yaml_file.write_text(yaml.safe_dump({**content, "classes": {10: "ground"}, "ignore": [20, 30, 99]}))
        return "two classes"
    return file.name


DAMAGES = ("truncated", "empty", "nan", "inf", "unknown label", "nothing labelled", "missing", "yaml key")


@pytest.mark.parametrize("kind", [*DAMAGES, "no yaml syntax", "one class"])
def test_bad_data_sets(tmp_path, capsys, kind):
    scans = write_scans(tmp_path / "scans")
    named = damage(scans, kind)
    before = sorted(tmp_path.rglob("*"))
    arguments = ["adapt", scans, "--out", tmp_path / "run", *flags(tmp_path)]
    assert named in refused(capsys, *arguments)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "tiny.safetensors"]), "something was half-written"


@pytest.mark.parametrize("kind", ["truncated", "empty", "nan", "inf"])
def test_bad_scans_to_predict(trained, tmp_path, capsys, kind):
    write_scans(tmp_path)
    named = damage(tmp_path, kind)
    before = sorted(tmp_path.rglob("*"))
    assert named in refused(capsys, "predict", trained / "run", tmp_path / "train1.ply")
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_arguments(trained, tmp_path, capsys):
    scans = trained / "scans"
    base = ["adapt", scans, "--out", tmp_path / "run"]
    tiny = ["--backbone", trained / "tiny.safetensors"]
    cases = {
        "unknown backbone 'sonatta'": [*base, "--backbone", "sonatta"],
        "no checkpoint file": [*base, "--backbone", tmp_path / "missing.pth"],
        "unknown method 'gemm'": [*base, *tiny, "--method", "gemm"],
        "method 'gemm'": [*base, *tiny, "--method", "gemm", "--method.rank", "3"],
        "rank": [*base, *tiny, "--method.rank", "0"],
        "transform 'underwater'": [*base, *tiny, "--transform", "underwater"],
        "steps is 0": [*base, *tiny, "--steps", "0"],
        "no dataset.yaml": ["info", tmp_path],
        "there is no folder": ["adapt", tmp_path / "nowhere", "--out", tmp_path / "run"],
        "test4.ply is a scan: give the folder": ["adapt", scans / "test4.ply", "--out", tmp_path / "run"],
        "is no run folder": ["predict", scans, scans / "test4.ply"],
        "there is no scan": ["predict", trained / "run", tmp_path / "new.laz"],
        "tta is 99": ["predict", trained / "run", scans / "test4.ply", "--tta", "99"],
    }
    for message, arguments in cases.items():
        assert message in refused(capsys, *arguments), arguments
    assert not (tmp_path / "run").exists()


def copy_of(trained: Path, folder: Path) -> Path:
    shutil.copytree(trained / "run", folder / "run")
    return folder / "run"


def test_adapter_of_another_backbone(trained, tmp_path, capsys):
    run = copy_of(trained, tmp_path)
    write_backbone(tmp_path / "other.safetensors", seed=1)
    content = json.loads((run / "run.json").read_text())
    content["run"]["backbone"] = str(tmp_path / "other.safetensors")
    (run / "run.json").write_text(json.dumps(content))
    line = refused(capsys, "predict", run, trained / "scans" / "test4.ply", "--out", tmp_path / "out.ply")
    assert "other backbone weights" in line and not (tmp_path / "out.ply").exists()


def test_wrong_number_of_classes(trained, tmp_path, capsys):
    run = copy_of(trained, tmp_path)
    content = json.loads((run / "run.json").read_text())
    content["dataset"]["classes"]["40"] = "roof"
    (run / "run.json").write_text(json.dumps(content))
    line = refused(capsys, "predict", run, trained / "scans" / "test4.ply", "--out", tmp_path / "out.ply")
    assert "3 classes" in line and not (tmp_path / "out.ply").exists()


def test_damaged_run_folders(trained, tmp_path, capsys):
    run, source = copy_of(trained, tmp_path), trained / "scans" / "test4.ply"
    weights = run / "adapter" / "best" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert str(run) in refused(capsys, "predict", run, source, "--out", tmp_path / "out.ply")
    weights.unlink()
    assert "adapter" in refused(capsys, "predict", run, source, "--out", tmp_path / "out.ply")
    state = run / "state" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    assert "state" in refused(capsys, "adapt", trained / "scans", "--out", run, "--resume")


def test_a_run_is_readable_for_whoever_may_read_its_settings(trained):
    modes = {file.stat().st_mode for file in (trained / "run").rglob("*.json")}
    assert {file.stat().st_mode for file in (trained / "run").rglob("*.safetensors")} == modes


def full_disk() -> None:
    """As a disk that takes no file above 20 kB: writing more fails with an OSError."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_full_disk_while_training(trained, tmp_path):
    arguments = ["adapt", trained / "scans", "--out", tmp_path / "run", *flags(tmp_path), "--method", "full"]
    done = outside(*arguments, preexec_fn=full_disk)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("pointadapt:")]
    assert len(lines) == 1 and "cannot write" in lines[0]
    big = [file.name for file in (tmp_path / "run").rglob("*") if "safetensors" in file.name or "state" in file.name]
    assert not [name for name in big if name != "state"], "half-written files were left"


def test_full_disk_while_predicting(trained, tmp_path):
    write_ply(tmp_path / "scan.ply", *scan(1, points=3000))
    done = outside("predict", trained / "run", tmp_path / "scan.ply", preexec_fn=full_disk)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert "scan_labelled.ply" in done.stderr.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["scan.ply"]


def test_unexpected_errors_keep_their_traceback(monkeypatch):
    def broken(self):
        raise RuntimeError("a defect")

    monkeypatch.setattr(cli.Info, "run", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["info", "x"])


def test_info_on_what_is_no_adapter(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is no readable adapter: 'peft_type'" in refused(capsys, "info", tmp_path)


def test_info_on_what_is_no_evaluation(trained, tmp_path, capsys):
    for content in ("{}", "[]", '{"run": "x", "split": "val", "classes": 3}'):
        shutil.copytree(trained / "run", tmp_path / "run", dirs_exist_ok=True)
        (tmp_path / "run" / "evaluation.json").write_text(content)
        assert "evaluation.json is no evaluation of this run" in refused(capsys, "info", tmp_path / "run")


def test_pooling_a_damaged_evaluation(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"run": {}, "dataset": {}}')
    (tmp_path / "evaluation.json").write_text('{"miou": 0.')
    assert "evaluation.json: no valid JSON" in refused(capsys, "pool", tmp_path, tmp_path)


def test_what_the_system_refuses_is_one_line(monkeypatch, capsys):
    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied", "scans/dataset.yaml")

    monkeypatch.setattr(cli.Info, "run", refuse)
    assert "scans/dataset.yaml: Permission denied; see who may read" in refused(capsys, "info", "x")


def test_ctrl_c(monkeypatch, capsys):
    def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Info, "run", stopped)
    assert cli.main(["info", "x"]) == 130
    assert capsys.readouterr().err == "pointadapt: stopped\n"


def test_the_demo(tmp_path, capsys, monkeypatch):
    from pointadapt.demo import demo

    for split in ("TRAIN", "VAL", "TEST"):
        monkeypatch.setattr(f"pointadapt.demo.{split}", 1)
    results = demo(tmp_path, steps=2, weights="random", random=True)
    assert [result.name for result in results] == ["linear probe on random weights", "linear probe", "GEM"]
    text = capsys.readouterr().out
    assert "mIoU" in text and (tmp_path / "report.html").stat().st_size > 100_000
    assert len(list((tmp_path / "labelled").rglob("*.ply"))) == 3
