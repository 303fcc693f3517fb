"""Comparisons: arms, the grid that several processes share, statistics, outputs."""

import csv
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest

from pointadapt.backbones.weights import load_backbone
from pointadapt.cli import main
from pointadapt.compare import compare as module
from pointadapt.compare.arms import Arm, choose_arms
from pointadapt.compare.compare import compare, train_and_score
from pointadapt.compare.grid import CLAIM, Cell, Grid, claimed, take, work
from pointadapt.compare.page import decades
from pointadapt.compare.stats import paired
from pointadapt.domains.domain import open_domain
from pointadapt.errors import UserError
from tiny_objects import object_run
from tiny_runs import tiny_run, write_backbone, write_scans


def test_arms():
    arm = Arm.parse("random:gem[rank=8,share=qk,stages=[0,1]]")
    assert (arm.method, arm.weights) == ("gem", "random")
    assert arm.options == {"rank": 8, "share": "qk", "stages": [0, 1]}
    named = Arm.parse("trunk alone = random:gem[rank=8]")
    assert (named.name, named.method, named.weights, named.options) == ("trunk alone", "gem", "random", {"rank": 8})
    assert named.slug == "trunk_alone"
    assert "/" not in arm.slug and arm.slug != Arm.parse("gem[rank=8]").slug
    for text, words in (("gem[rank]", "needs a value"), ("nothing", "unknown method"), ("gem[x=1]", "no option")):
        with pytest.raises(UserError, match=words):
            Arm.parse(text)


def test_all_leaves_out_what_cannot_work_and_says_why():
    arms, refused = choose_arms(["all"], load_backbone("nano", weights=None))
    names = [arm.name for arm in arms]
    assert names[:2] == ["linear", "bitfit"] and "gem" in names and "decoder" not in names
    assert "dec" in refused["decoder"]
    foundation = load_backbone("bert", weights=None)
    assert [arm.name for arm in choose_arms(["all"], foundation)[0]] == ["appt"]
    with pytest.raises(UserError, match="cannot work"):
        choose_arms(["decoder"], load_backbone("nano", weights=None))
    with pytest.raises(UserError, match="twice"):
        choose_arms(["gem", "all"], load_backbone("nano", weights=None))


def test_paired_differences_are_student_s():
    a, b = {0: 70.0, 1: 72.0, 2: 75.0}, {0: 69.0, 1: 70.0, 2: 72.0, 3: 1.0}
    found = paired(a, b)
    differences = np.array([1.0, 2.0, 3.0])
    assert found.seeds == 3 and found.mean == pytest.approx(2)
    assert found.half == pytest.approx(4.302653 * differences.std(ddof=1) / math.sqrt(3), rel=1e-6)
    assert not found.is_clear
    assert paired({0: 9.0, 1: 9.1}, {0: 1.0, 1: 1.0}).is_clear
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert paired({0: 3.0}, {0: 1.0}).half is None


def grid_of(folder: Path, **changes) -> Grid:
    settings = {"data": folder / "scans", "backbone": "nano", "steps": 8, **changes}
    return Grid(folder / "grid", [Arm("gem", "gem"), Arm("linear", "linear")], ["50%", "100%"], 2, settings)


def test_every_cell_runs_once_with_the_rate_its_trials_chose(tmp_path):
    write_scans(tmp_path / "scans")
    grid = grid_of(tmp_path)
    grid.open()
    seen = []

    def do(run, cell):
        seen.append((cell.key, run.lr, run.steps, run.labels))
        return {"score": -abs(cell.factor - 3) if cell.is_trial else 0.5, "scores": {"miou": 0.5}, "seconds": 1.0}

    base = grid.run_of(Cell(grid.arms[0], "50%", 0), 1.0).lr
    work(grid, do, told=lambda text: None)
    assert len(seen) == 2 * 2 * 3 + 2 * 2 * 2 == len({key for key, *_ in seen})
    finals = [entry for entry in seen if "trial" not in entry[0]]
    assert all(lr == pytest.approx(3 * base) and steps == 8 for _, lr, steps, _ in finals)
    assert {steps for key, _, steps, _ in seen if "trial" in key} == {2}
    assert {labels for *_, labels in seen} == {"50%", "100%"}
    work(grid, do, told=lambda text: None)  # nothing is left
    assert len(seen) == 20 and not list((tmp_path / "grid" / "cells").glob("*.claim"))


def test_a_claim_holds_until_its_process_shows_no_life(tmp_path):
    file = tmp_path / "cell.claim"
    with claimed(file) as mine:
        assert mine and not take(file)
        with claimed(file) as second:
            assert not second
    assert not file.exists()
    file.write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere"}))
    assert not take(file)
    os.utime(file, (time.time() - CLAIM - 1,) * 2)
    assert take(file)
    file.unlink()
    import socket

    file.write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}))
    assert take(file)  # that process is gone


def test_another_comparison_in_the_folder_is_refused(tmp_path):
    write_scans(tmp_path / "scans")
    grid_of(tmp_path).open()
    grid_of(tmp_path).open()
    with pytest.raises(UserError, match="other settings .*steps"):
        grid_of(tmp_path, steps=9).open()


def test_compare_trains_resumes_and_reports(tmp_path, monkeypatch):
    write_scans(tmp_path / "scans", train=4)
    tiny = write_backbone(tmp_path / "tiny.safetensors")
    settings = {"backbone": str(tiny), "steps": 4, "points": 300, "eval_every": 4, "threads": 1}
    asked = {"methods": ["linear", "gem[rank=4]"], "seeds": 2, "labels": ["25%", "50pts"], "factors": [1.0]}
    done = []

    def counted(run, cell):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(cell.key)
        return train_and_score(run, cell)

    monkeypatch.setattr(module, "train_and_score", counted)
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path / "scans", tmp_path / "out", **asked, **settings)
    done.clear()
    result = compare(tmp_path / "scans", tmp_path / "out", **asked, **settings)
    assert len(done) == 3 and result["finished"] == result["runs"] == 8
    with open(tmp_path / "out" / "compare.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["labels"], row["method"]) for row in rows] == [
        (share, arm) for share in ("25%", "50pts") for arm in ("linear", "gem[rank=4]")
    ]
    gem = rows[1]
    assert int(gem["trained"]) > int(rows[0]["trained"]) and float(gem["train_step_seconds"]) > 0
    assert int(gem["train_memory_bytes"]) > int(gem["inference_memory_bytes"]) > 0
    assert 0 < float(gem["miou_mean"]) <= 100 and gem["seeds"] == "2"
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "50pts of the labels" in page and "paired differences" in page and "<svg" in page
    table = (tmp_path / "out" / "compare.tex").read_text()
    assert r"\textbf" in table and table.count(r"\\") == 3
    lines = (tmp_path / "out" / "compare.md").read_text().splitlines()
    assert len(lines) == 4 and lines[2].startswith("| linear |") and "**" in lines[2] + lines[3]
    assert not list((tmp_path / "out" / "runs").iterdir())


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (900, 2e6, [1e3, 1e4, 1e5, 1e6]),
        (9e3, 3e5, [1e4, 2e4, 5e4, 1e5, 2e5]),
        (126, 195, [150, 175]),
        (129, 136, [130, 132.5, 135]),
    ],
)
def test_a_chart_has_ticks_however_close_its_costs_are(low, high, expected):
    assert decades(math.log10(low), math.log10(high)) == pytest.approx(expected)


def test_compare_says_what_is_missing(tmp_path):
    run = tiny_run(tmp_path)
    write_scans(tmp_path / "no-val", val=0)
    write_scans(tmp_path / "no-test", test=0)
    with pytest.raises(UserError, match="no validation data"):
        compare(tmp_path / "no-val", tmp_path / "out", ["linear"], backbone=run.backbone)
    with pytest.raises(UserError, match="no test split"):
        compare(tmp_path / "no-test", tmp_path / "out", ["linear"], backbone=run.backbone)
    with pytest.raises(UserError, match="labels is 'some'"):
        compare(tmp_path / "scans", tmp_path / "out", ["linear"], labels=["some"], backbone=run.backbone)


@pytest.mark.parametrize("data", [["rooms"], ["--data", "rooms"], ["--data=rooms"]])
def test_the_command_takes_data_by_place_and_by_name_and_the_recipe_s_rates(data, monkeypatch):
    asked = {}

    def noted(folder, out, methods, *more, **settings):
        asked.update(settings, data=str(folder), methods=methods)
        return {"finished": 0, "runs": 0}

    monkeypatch.setattr(module, "compare", noted)
    flags = ["--backbone", "nano", "--methods", "gem[rank=8,share=qk],linear", "--lr", "1e-3", "--precision", "bf16"]
    assert main(["compare", *data, *flags]) == 0
    assert {**asked, "data": "rooms"} == asked and asked["methods"] == ["gem[rank=8,share=qk]", "linear"]
    assert (asked["lr"], asked["precision"]) == (1e-3, "bf16") and "head_lr" not in asked


def test_shapes_without_a_val_split_have_a_share_held_out_for_the_trials(tmp_path, monkeypatch):
    run = object_run(tmp_path)
    seen = {}
    monkeypatch.setattr(module, "write_outputs", lambda grid: {})

    def looked_at(grid, do):
        for cell in grid.cells():
            asked = grid.run_of(cell, 1.0)
            asked.select = "val" if cell.is_trial else asked.select  # as train_and_score does
            dataset = open_domain(asked).dataset
            seen.setdefault(cell.is_trial, (len(dataset.items("train")), len(dataset.items("val"))))

    monkeypatch.setattr(module, "work", looked_at)
    compare(run.data, tmp_path / "out", ["linear"], seeds=1, backbone=run.backbone)
    trained, held = seen[True]
    assert held > 0 and seen[False] == (trained + held, 0)
    with pytest.raises(UserError, match="no validation data"):
        compare(run.data, tmp_path / "none", ["linear"], backbone=run.backbone, val_share=0.0)
