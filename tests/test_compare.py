"""Comparisons: arms, what they are scored and measured on, the command from end to end."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pointadapt.cli import main
from pointadapt.compare import compare as module
from pointadapt.compare import cost
from pointadapt.compare.arms import Arm, choose_arms
from pointadapt.compare.compare import compare, train_and_score
from pointadapt.compare.cost import Entry, benches, measure
from pointadapt.compare.grid import Grid
from pointadapt.domains.domain import open_domain
from pointadapt.domains.scenes import Scenes
from pointadapt.errors import UserError
from tiny_objects import object_run, write_shapes
from tiny_runs import tiny_run, write_backbone, write_scans

CPU = torch.device("cpu")


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


def test_all_leaves_out_what_cannot_work_and_says_why(tmp_path):
    nano = open_domain(tiny_run(tmp_path, backbone="nano", weights="random"))
    arms, refused = choose_arms(["all"], nano)
    names = [arm.name for arm in arms]
    assert names[:2] == ["linear", "bitfit"] and "gem" in names and "decoder" not in names
    assert "--decoder" in refused["decoder"]
    foundation = object_run(tmp_path, backbone="bert", weights="random", method="appt")
    assert [arm.name for arm in choose_arms(["all"], open_domain(foundation))[0]] == ["appt"]
    with pytest.raises(UserError, match="decoder: .*--decoder"):
        choose_arms(["decoder"], nano)
    with pytest.raises(UserError, match="twice"):
        choose_arms(["gem", "all"], nano)


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("pointtpa[groups=1]", "groups .* list"),
        ("pointtpa[experts=4]", "experts .* list"),
        ("pointgst[graphs=16]", "graphs .* list"),
        ("gem[stages=3]", "stages .* list"),
        ("gem[stages=[7]]", "stages"),
        ("gem[rank=abc]", "rank is .* whole number|rank of .* whole number"),
        ("gem[rank=4.5]", "whole number"),
        ("gem[rank=true]", "whole number"),
        ("gem[dropout=NaN]", "a number"),
        ("gem[use_sa=1]", "true or false"),
        ("gem[share=q]", "one of kv, qk, none"),
        ("gem[dropout=2]", "below 1"),
        ("gem[use_sa=false,use_ca=false]", "method linear"),
        ("dapt[rank=x]", "whole number"),
        ("lora[r=0]", "at least 1"),
        ("lora[lora_dropout=1.5]", "below 1"),
        ('lora[target_modules=["nope"]]', "slots are: .*qkv"),
        ("lora[target_modules=nope]", "slots are: .*qkv"),
        ('lora[target_modules=["norm1"]]', "slots are: .*qkv"),
        ("pointtpa[temperature=0]", "above 0"),
        ('pointtpa[dynamic=["9.9"]]', "one of '0.0', '1.0'"),
    ],
)
def test_options_that_make_no_sense_are_told_with_their_arm(arm, words, tmp_path):
    with pytest.raises(UserError, match=f"^{re.escape(arm)}: .*({words})"):
        choose_arms(["linear", arm], open_domain(tiny_run(tmp_path)))


def test_options_that_peft_knows_pass(tmp_path):
    asked = ["lora[target_modules=qkv]", "lora[init_lora_weights=pissa_niter_4,layers_to_transform=0]"]
    assert len(choose_arms(asked[:1], open_domain(tiny_run(tmp_path)))[0]) == 1
    assert Arm.parse(asked[1]).options["layers_to_transform"] == 0


def test_training_that_diverges_is_a_finished_cell(tmp_path):
    run = tiny_run(tmp_path)
    settings = {"backbone": run.backbone, "points": 400, "threads": 1, "clip": 1e30}
    compare(
        run.data, tmp_path / "out", ["linear"], 1, factors=[1.0], steps=20, lr=1e30, head_lr=1e30, **settings
    )  # fmt: skip
    (cell,) = (tmp_path / "out" / "cells").glob("*.json")
    assert "the loss is" in json.loads(cell.read_text())["diverged"]
    assert "| linear | diverged |" in (tmp_path / "out" / "compare.md").read_text()
    assert "diverged" in (tmp_path / "out" / "compare.html").read_text()


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
    assert table.count(r"\\") == 3 and r"mIoU, 25\%" in table
    lines = (tmp_path / "out" / "compare.md").read_text().splitlines()
    assert len(lines) == 6 and lines[2].startswith("| linear |") and lines[5].startswith("Bold")
    with open(tmp_path / "out" / "compare_paired.csv") as stream:
        pairs = [row for row in csv.DictReader(stream) if row["score"] == "miou"]
    assert [(row["labels"], row["method"], row["other"], row["seeds"]) for row in pairs] == [
        (share, "linear", "gem[rank=4]", "2") for share in ("25%", "50pts")
    ]
    assert not list((tmp_path / "out" / "runs").iterdir())


def test_compare_says_what_is_missing(tmp_path):
    run = tiny_run(tmp_path)
    write_scans(tmp_path / "no-val", val=0)
    write_scans(tmp_path / "no-test", test=0)
    write_scans(tmp_path / "neither", val=0, test=0)
    write_scans(tmp_path / "one", train=1, val=0)
    with pytest.raises(UserError, match="no validation data .*--factors 1"):
        compare(tmp_path / "one", tmp_path / "out", ["linear"], backbone=run.backbone)
    with pytest.raises(UserError, match="no validation data .* with 25%"):
        compare(tmp_path / "no-val", tmp_path / "out", ["linear"], labels=["25%"], backbone=run.backbone)
    with pytest.raises(UserError, match="no validation data .* list a test split, so that val is free .*--factors 1"):
        compare(tmp_path / "no-test", tmp_path / "out", ["linear"], labels=["25%"], backbone=run.backbone)
    with pytest.raises(UserError, match="no test split and no val"):
        compare(tmp_path / "neither", tmp_path / "out", ["linear"], backbone=run.backbone)
    with pytest.raises(UserError, match="no test split, .*--select last"):
        compare(tmp_path / "no-test", tmp_path / "out", ["linear"], backbone=run.backbone, select="val")
    with pytest.raises(UserError, match="labels is 'some'"):
        compare(tmp_path / "scans", tmp_path / "out", ["linear"], labels=["some"], backbone=run.backbone)
    for wrong, words in (
        ({"factors": []}, "factors"), ({"factors": [0.0]}, "factors"), ({"factors": [1.0, -3.0]}, "factors"),
        ({"trial_share": 0.0}, "trial_share"), ({"trial_share": 1.5}, "trial_share"),
        ({"labels": []}, "labels is empty"), ({"report_only": True}, "no comparison to report on"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            compare(tmp_path / "scans", tmp_path / "out", ["linear"], backbone=run.backbone, **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [["--factors", ""], ["--labels", ""], ["--factors", "0"], ["--trial-share", "2"]])
def test_the_command_refuses_numbers_that_make_no_sense(flags, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", str(write_scans(tmp_path / "scans")), "--out", str(out), *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not out.exists()


def test_a_grid_without_finished_runs_reports_nothing(tmp_path, capsys):
    run = tiny_run(tmp_path)
    common = [
        "compare",
        str(run.data),
        "--out",
        str(tmp_path / "out"),
        "--methods",
        "linear",
        "--backbone",
        run.backbone,
    ]
    settings = {"select": "last", "backbone": run.backbone, "data": run.data}
    Grid(tmp_path / "out", [Arm("linear", "linear")], ["100%"], 3, settings).open()
    assert main([*common, "--report-only"]) == 0
    assert "0 of 3 runs are finished; there is nothing to report yet" in capsys.readouterr().out
    assert not (tmp_path / "out" / "cost.json").exists()


def test_without_a_test_split_val_is_scored_and_rates_are_chosen_on_a_share_of_train(tmp_path, monkeypatch):
    run = tiny_run(tmp_path)
    data = write_scans(tmp_path / "benchmark", train=4, val=2, test=0)
    seen = []

    def looked_at(run, cell):
        dataset = open_domain(run).dataset
        seen.append((cell.is_trial, sorted(dataset.scans("train")), sorted(dataset.scans("val"))))
        return train_and_score(run, cell)

    monkeypatch.setattr(module, "train_and_score", looked_at)
    settings = {"backbone": run.backbone, "steps": 4, "points": 300, "threads": 1}
    compare(data, tmp_path / "out", ["linear"], seeds=2, factors=[1.0, 3.0], **settings)
    listed = [f"train{i}.ply" for i in range(4)], ["val4.ply", "val5.ply"]
    assert [finals for is_trial, *finals in seen if not is_trial] == [list(listed)] * 2
    for trained, held in [trials for is_trial, *trials in seen if is_trial]:
        assert len(held) == 1 and sorted(trained + held) == listed[0]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "val split" in page and "10% of the training items" in page


def test_shapes_without_a_test_split_keep_val_out_of_the_trials(tmp_path):
    run = object_run(tmp_path)
    (run.data / "dataset.yaml").unlink()
    for yaml, val in (("", 2), ("holdout: 0.34\n", 0)):
        data = write_shapes(tmp_path / f"val{val}", val=val, test=0, yaml=yaml)
        scored = open_domain(replace(run, data=data, select="last")).dataset
        trial = open_domain(replace(run, data=data, holdout=True)).dataset
        names = {split: {item.name for item in trial.items(split)} for split in ("train", "val")}
        assert names["val"] and names["train"] | names["val"] == {item.name for item in scored.items("train")}
        assert not (names["train"] | names["val"]) & {item.name for item in scored.items("val")}


def test_shares_say_how_many_scans_they_leave(tmp_path, capsys):
    run = tiny_run(tmp_path)
    settings = {"backbone": run.backbone, "steps": 2, "points": 300, "threads": 1}
    compare(run.data, tmp_path / "out", ["linear"], 1, ["1%", "10%", "100%"], factors=[1.0], **settings)
    told = "1% and 10% of the labels are the same here: 1 of 3 training items."
    page = (tmp_path / "out" / "compare.html").read_text()
    assert told in capsys.readouterr().out and told in page
    assert "1% of the labels: 1 of 3 scans" in page and "100% of the labels: 3 of 3 scans" in page
    with open(tmp_path / "out" / "compare.csv") as stream:
        assert [row["train_items"] for row in csv.DictReader(stream)] == ["1", "1", "3"]


def test_single_crops_a_step_are_enough_for_every_method_on_scenes(tmp_path):
    """Only a head sees one row an item; BatchNorm elsewhere, as in IDPT's generator, sees many of a crop."""
    run = tiny_run(tmp_path)
    settings = {"backbone": run.backbone, "steps": 1, "points": 300, "threads": 1, "batch_size": 1}
    assert compare(run.data, tmp_path / "out", ["idpt"], 1, factors=[1.0], **settings)["finished"] == 1
    with pytest.raises(UserError, match="^linear--100pc--seed0: mix3d is 0.5"):
        compare(run.data, tmp_path / "mixed", ["linear"], 1, factors=[1.0], mix3d=0.5, **settings)


def test_frozen_weights_are_held_once_while_costs_are_measured(tmp_path):
    run = tiny_run(tmp_path, method="linear", options={})
    entries = benches([(Arm(name, name), replace(run, method=name)) for name in ("linear", "gem", "full")], CPU)
    found = [entry.model.get_base_model().backbone for entry in entries.values()]
    found[2] = found[2].original_module  # beside the copy that is trained
    assert len({next(backbone.parameters()).data_ptr() for backbone in found}) == 1


def test_final_runs_are_not_validated(tmp_path, monkeypatch):
    run = tiny_run(tmp_path)
    scored = []
    evaluate = Scenes.evaluate

    def counted(self, model, items, *more):
        scored.append(items.split)
        return evaluate(self, model, items, *more)

    monkeypatch.setattr(Scenes, "evaluate", counted)
    settings = {"backbone": run.backbone, "steps": 4, "points": 300, "threads": 1, "eval_every": 2}
    compare(run.data, tmp_path / "out", ["linear"], 1, factors=[1.0], **settings)
    assert scored == ["test"]
    compare(run.data, tmp_path / "best", ["linear"], 1, factors=[1.0], select="val", **settings)
    assert scored[1:] == ["val", "val", "test"]


def test_costs_are_measured_in_the_precision_and_threads_of_the_runs(tmp_path, monkeypatch, capfd):
    run = tiny_run(tmp_path, precision="bf16", batch_size=4, grad_accum=2)
    seen, forward, clouds = set(), cost.forward, set()

    def looked_at(entry: Entry):
        out = forward(entry)
        seen.add(out.dtype)
        clouds.add(len(entry.batch["point"].offset))
        return out

    monkeypatch.setattr(cost, "forward", looked_at)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (found,) = measure([(Arm("gem", "gem"), run)], rounds=1).values()
        assert torch.get_num_threads() == found.threads == 1
    finally:
        torch.set_num_threads(before)
    assert seen == {torch.bfloat16} and clouds == {2}
    assert "profiler" not in "".join(capfd.readouterr())


def test_memory_of_training_holds_the_optimizer_s_state(tmp_path):
    (found,) = measure([(Arm("full", "full"), tiny_run(tmp_path, method="full"))], rounds=1).values()
    assert found.train_memory > 3 * 4 * found.parameters["trained"]  # gradients and AdamW's two moments


@pytest.mark.parametrize("data", [["rooms"], ["--data", "rooms"], ["--data=rooms"]])
def test_the_command_takes_data_by_place_and_by_name_and_the_recipe_s_rates(data, monkeypatch):
    asked = {}

    def noted(folder, out, methods, *more, **settings):
        asked.update(settings, data=str(folder), methods=methods)
        return {"finished": 0, "runs": 0, "rows": []}

    monkeypatch.setattr(module, "compare", noted)
    flags = ["--backbone", "nano", "--methods", "gem[rank=8,share=qk],linear", "--lr", "1e-3", "--precision", "bf16"]
    flags += ["--decoder", "--grad-accum", "2", "--mix3d", "0.8", "--cache", "kept", "--eval-every", "50"]
    flags += ["--architecture", "ptv3", "--num-workers", "2"]
    assert main(["compare", *data, *flags]) == 0
    assert {**asked, "data": "rooms"} == asked and asked["methods"] == ["gem[rank=8,share=qk]", "linear"]
    assert (asked["lr"], asked["precision"]) == (1e-3, "bf16") and "head_lr" not in asked
    more = {"decoder": True, "grad_accum": 2, "mix3d": 0.8, "cache": Path("kept"), "eval_every": 50}
    more |= {"architecture": "ptv3", "num_workers": 2}
    assert {**asked, **more} == asked


def test_shapes_without_a_val_split_have_a_share_held_out_for_the_trials(tmp_path, monkeypatch):
    run = object_run(tmp_path)
    seen = {}
    monkeypatch.setattr(module, "write_outputs", lambda grid: {})

    def looked_at(grid, do):
        for cell in grid.cells():
            asked = grid.run_of(cell, 1.0)
            dataset = open_domain(asked).dataset
            seen.setdefault(cell.is_trial, (len(dataset.items("train")), len(dataset.items("val"))))

    monkeypatch.setattr(module, "work", looked_at)
    compare(run.data, tmp_path / "out", ["linear"], seeds=1, backbone=run.backbone)
    trained, held = seen[True]
    assert held > 0 and seen[False] == (trained + held, 0)
    with pytest.raises(UserError, match="no validation data"):
        compare(run.data, tmp_path / "none", ["linear"], backbone=run.backbone, val_share=0.0)
