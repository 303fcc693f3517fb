"""The grid that several processes share: its cells, its claims, and what its results belong to."""

import errno
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pointadapt.compare import claim, record
from pointadapt.compare import compare as module
from pointadapt.compare.arms import Arm
from pointadapt.compare.claim import CLAIM, claimed, take
from pointadapt.compare.compare import costs_of
from pointadapt.compare.cost import Cost
from pointadapt.compare.grid import Cell, Grid, work
from pointadapt.compare.record import fingerprint, joined
from pointadapt.compare.tables import rows_of
from pointadapt.data.scans import DataSet
from pointadapt.errors import Diverged, UserError
from tiny_runs import tiny_run, write_scans


def grid_of(folder: Path, **changes) -> Grid:
    settings = {"data": folder / "scans", "backbone": "nano", "steps": 8, **changes}
    return Grid(folder / "grid", [Arm("gem", "gem"), Arm("linear", "linear")], ["50%", "100%"], 2, settings)


@pytest.fixture
def grid(tmp_path) -> Grid:
    """One that was begun, on scans of its own."""
    write_scans(tmp_path / "scans")
    begun = grid_of(tmp_path)
    begun.open()
    return begun


def test_every_cell_runs_once_with_the_rate_its_trials_chose(grid, tmp_path):
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


def test_a_trial_is_shorter_in_epochs_too(tmp_path):
    write_scans(tmp_path / "scans")
    grid = grid_of(tmp_path, epochs=12)
    assert [grid.run_of(Cell(grid.arms[0], "50%", 0, factor), 1.0).epochs for factor in (None, 3.0)] == [12, 3]


def test_a_claim_holds_until_its_process_shows_no_life(tmp_path):
    file = tmp_path / "cell.claim"
    with claimed(file) as mine:
        assert mine and not take(file)
        with claimed(file) as second:
            assert not second
    assert not file.exists()
    mine = take(file)
    owner = json.loads(file.read_text())
    asleep = (time.time() - CLAIM - 1,) * 2
    os.utime(file, asleep)
    assert not take(file)  # the process is there, however long it slept
    file.write_text(json.dumps({**owner, "place": "elsewhere", "token": "other"}))
    assert not take(file) and not mine.held()
    os.utime(file, asleep)
    assert take(file)
    for gone in ({"pid": 2**22 + 1}, {"started": 0.0}):  # no such process; its number is another's by now
        file.write_text(json.dumps({**owner, **gone}))
        assert take(file)


def test_a_claim_that_was_lost_is_neither_kept_fresh_nor_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "BEAT", 0.01)
    file = tmp_path / "cell.claim"
    with claimed(file) as mine:
        content = file.read_text()
        file.unlink()
        time.sleep(0.1)
        assert not file.exists() and not mine.held()
        file.write_text(content)  # a network's folder is back
        old = time.time() - 100
        os.utime(file, (old, old))
        time.sleep(0.1)
        assert mine.held() and file.stat().st_mtime > old + 50
        file.write_text("{}")
        os.utime(file, (old, old))
        time.sleep(0.1)
        assert file.stat().st_mtime == pytest.approx(old)
    assert file.read_text() == "{}"


def test_a_process_whose_cell_was_taken_over_leaves_it_to_the_other(tmp_path):
    write_scans(tmp_path / "scans")
    grid = grid_of(tmp_path)
    grid.factors = [1.0]
    grid.open()
    found, stolen = {"score": 0.5, "scores": {"miou": 0.5}, "seconds": 1.0}, []

    def do(run, cell):
        file = grid.file(cell).with_suffix(".claim")
        if len(stolen) < 2:
            stolen.append(cell.key)
            file.write_text("{}")
            run.folder.mkdir(parents=True)
            grid.file(cell).write_text(json.dumps({"factor": 1.0, **found, "by": "another"}))
            if len(stolen) == 2:
                raise FileNotFoundError("the other has removed the run's folder")
        return found

    work(grid, do, told=lambda text: None)
    for cell in grid.cells():
        assert ("by" in grid.result(cell)) == (cell.key in stolen)
        assert (grid.out / "runs" / cell.key).exists() == (cell.key in stolen)


def test_equal_trials_leave_the_recipe_s_rate(grid, tmp_path):
    work(grid, lambda run, cell: {"score": 0.5, "scores": {"miou": 0.5}, "seconds": 1.0}, told=lambda text: None)
    assert {grid.factor(cell) for cell in grid.cells() if not cell.is_trial} == {1.0}
    notes = " ".join(module.notes_on(grid, tiny_run(tmp_path), rows_of(grid, {})))
    assert "4 of 4 had several best ones" in notes and "lowest or highest" not in notes


def test_processes_that_begin_at_once_agree_on_the_settings(tmp_path):
    write_scans(tmp_path / "scans")
    grid = grid_of(tmp_path)
    with claimed(grid.out / "grid.claim"), ThreadPoolExecutor(1) as pool:
        begun = pool.submit(grid.open)
        time.sleep(0.3)
        assert not (grid.out / "grid.json").exists()
        first = grid_of(tmp_path, steps=9).describe()
        joined(grid.out / "grid.json", first, True)
        (grid.out / "grid.claim").unlink()
        with pytest.raises(UserError, match="steps 9 -> 8"):
            begun.result()


def test_a_report_adds_nothing_to_the_grid(grid):
    before = (grid.out / "grid.json").read_text()
    replace(grid, arms=[Arm("gme", "gem", {"rank": 8})]).open(to_run=False)
    assert (grid.out / "grid.json").read_text() == before
    other = replace(grid, arms=[Arm("mine", "gem", {"rank": 8}), Arm("gem[rank=4]", "gem", {"rank": 4})])
    assert module.names_of(other) == ["mine is gem[rank=8].", "The folder also holds gem, linear, not asked for here."]


def test_a_void_claim_that_another_process_took_over_in_between_is_left_to_it(tmp_path, monkeypatch):
    file = tmp_path / "cell.claim"
    file.write_text("{}")
    os.utime(file, (time.time() - CLAIM - 1,) * 2)
    rename, taken = os.rename, []

    def overtaken(source, target):
        if not taken:
            taken.append(None)
            taken[0] = take(file)  # all of it between the look at the claim and the rename
        rename(source, target)

    monkeypatch.setattr(claim.os, "rename", overtaken)
    assert not take(file) and taken[0].held()
    assert json.loads(file.read_text())["pid"] == os.getpid() and len(list(tmp_path.iterdir())) == 1


def test_a_diverged_trial_is_the_worst_and_the_grid_goes_on(grid, tmp_path):
    told = []

    def do(run, cell):
        if cell.arm.name == "linear" or cell.factor == 3:
            raise Diverged("the loss is nan at step 4")
        return {"score": 0.0, "scores": {"miou": 0.5}, "seconds": 1.0}

    work(grid, do, told=told.append)
    found = grid.trials(grid.arms[0], "50%")
    assert "nan" in found[3.0]["diverged"] and grid.factor(Cell(grid.arms[0], "50%", 0)) != 3
    assert grid.factor(Cell(grid.arms[1], "50%", 0)) == 0.3
    assert any("diverged" in line for line in told)
    gem, linear = [row for row in rows_of(grid, {}) if row.labels == "50%"]
    assert (gem.diverged, linear.diverged, linear.mean("miou")) == (0, 2, None)
    note = "All trials of linear with 50% of the labels diverged"
    assert any(note in line for line in module.notes_on(grid, tiny_run(tmp_path), []))


def test_a_file_that_is_no_result_is_named(grid):
    cell = grid.cells()[0]
    for content, told in (("{", "no valid JSON"), ("[]", "no result of a run"), ('{"score": 1}', "no result of a run")):
        grid.file(cell).write_text(content)
        with pytest.raises(UserError, match=f"{cell.key}.json: .*{told}.*delete it and start the same command again"):
            grid.result(cell)
    for content in ("[]", '{"grid": []}'):
        (grid.out / "grid.json").write_text(content)
        with pytest.raises(UserError, match="grid.json: it does not describe a comparison; put back"):
            grid.open()


def test_any_other_error_ends_the_grid(grid, tmp_path):
    def do(run, cell):
        raise UserError("no such file")

    with pytest.raises(UserError, match="^gem--50pc--trial-x0.3: no such file"):
        work(grid, do, told=lambda text: None)
    assert not list((tmp_path / "grid" / "cells").iterdir())

    def full(run, cell):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as found:  # whose cure the command line knows
        work(grid, full, told=lambda text: None)
    assert found.value.errno == errno.ENOSPC


def test_another_comparison_in_the_folder_is_refused(tmp_path):
    write_scans(tmp_path / "scans")
    grid_of(tmp_path).open()
    grid_of(tmp_path).open()
    with pytest.raises(UserError, match="other settings .*steps 8 -> 9"):
        grid_of(tmp_path, steps=9).open()
    with pytest.raises(UserError, match="other settings .*lr 0.002 -> 0.1"):  # the recipe's own, not given before
        grid_of(tmp_path, lr=0.1).open()
    with pytest.raises(UserError, match="other settings .*steps 8 -> 300"):  # given before
        replace(grid_of(tmp_path), settings={"data": tmp_path / "scans", "backbone": "nano"}).open()


def test_one_name_means_one_arm(grid):
    replace(grid, arms=[Arm("mine", "gem", {"rank": 8})]).open()
    with pytest.raises(UserError, match=r"mine gem\[rank=8\] -> gem\[rank=64\]"):
        replace(grid, arms=[Arm("mine", "gem", {"rank": 64})]).open()
    replace(grid, arms=[Arm("GEM + SA", "gem")]).open()
    with pytest.raises(UserError, match="'GEM . SA' and 'GEM / SA' would share"):
        replace(grid, arms=[Arm("GEM / SA", "gem")]).open()
    assert set(json.loads((grid.out / "grid.json").read_text())["arms"]) == {"gem", "linear", "mine", "GEM + SA"}


def test_results_belong_to_their_data_wherever_it_lies(tmp_path):
    grids = []
    for name in ("here", "moved"):
        write_scans(tmp_path / name / "scans", train=2)
        grid = grid_of(tmp_path / name)
        data = fingerprint(DataSet.open(grid.settings["data"]), tmp_path / f"{name}.json")
        grids.append(replace(grid, out=tmp_path / "grid", data=data))
    grids[0].open()
    grids[1].open()
    (tmp_path / "moved" / "scans" / "train0.ply").write_bytes(
        (tmp_path / "here" / "scans" / "test3.ply").read_bytes()[:-9]
    )
    with pytest.raises(UserError, match="on other data .*train 2 files"):
        replace(grids[1], data=fingerprint(DataSet.open(tmp_path / "moved" / "scans"), tmp_path / "moved.json")).open()


def test_results_belong_to_the_labels_even_where_sizes_are_the_same(tmp_path):
    write_scans(tmp_path / "scans", train=2)
    known, file = tmp_path / "hashes.json", tmp_path / "scans" / "train1.ply"
    before = fingerprint(DataSet.open(tmp_path / "scans"), known)
    assert fingerprint(DataSet.open(tmp_path / "scans"), known) == before
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(0, 0))
    after = fingerprint(DataSet.open(tmp_path / "scans"), known)
    assert [key for key in before if before[key] != after[key]] == ["content of train"]
    stored = json.loads(known.read_text())
    stored[str(file.resolve())][-1] = "remembered"
    known.write_text(json.dumps(stored))
    assert fingerprint(DataSet.open(tmp_path / "scans"), known) != after  # what is unchanged is not read again
    known.write_text("[]")
    with pytest.raises(UserError, match="hashes.json: it holds no hashes; delete it"):
        fingerprint(DataSet.open(tmp_path / "scans"), known)


def test_results_belong_to_the_content_of_files_that_are_named(tmp_path):
    write_scans(tmp_path / "scans")
    names = tmp_path / "few.txt"
    names.write_text("train0")
    grid = replace(grid_of(tmp_path), labels=[str(names)])
    grid.open()
    names.write_text("train1")
    with pytest.raises(UserError, match=r"few\.txt"):
        grid.open()


def test_results_belong_to_the_bundled_weights_of_their_version(tmp_path, monkeypatch):
    write_scans(tmp_path / "scans")
    grid_of(tmp_path).open()
    (tmp_path / "nano.safetensors").write_bytes(b"trained anew")
    monkeypatch.setattr(record, "ASSETS", tmp_path)
    with pytest.raises(UserError, match="other files .*nano"):
        grid_of(tmp_path).open()


def test_a_grid_of_an_earlier_version_goes_on(tmp_path):
    write_scans(tmp_path / "scans")
    grid = replace(grid_of(tmp_path), data={"up": "z"})
    before = {"settings": {"select": "val", "backbone": "nano", "steps": 8}, "factors": [0.3, 1.0, 3.0]}
    (tmp_path / "grid").mkdir()
    file = tmp_path / "grid" / "grid.json"
    file.write_text(json.dumps({"grid": {**before, "trial_share": 0.25}, "made": {"date": "then"}}))
    grid.open()
    now = json.loads(file.read_text())
    assert now["made"] == {"date": "then"} and now["arms"] == {"gem": "gem", "linear": "linear"}
    assert now["grid"]["settings"]["lr"] == 2e-3 and now["data"] == {"up": "z"}
    with pytest.raises(UserError, match="select val -> last"):
        grid_of(tmp_path, select="last").open()


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "examples").rglob("grid.json")), ids=str)
def test_published_grids_keep_the_names_of_their_cells(file):
    cells = [json.loads(cell.read_text()) for cell in (file.parent / "cells").glob("*.json")]
    assert cells and "grid" in json.loads(file.read_text())
    for cell in cells:
        arm = Arm(cell["arm"], "linear")
        grid = Grid(file.parent, [arm], [cell["labels"]], 3, {})
        wanted = [Cell(arm, cell["labels"], cell["seed"], factor) for factor in (None, cell["factor"])]
        assert cell in [grid.result(one) for one in wanted]


def test_the_notes_tell_rates_at_the_end_of_those_tried_and_runs_on_several_devices(grid, tmp_path):
    def do(run, cell):
        score = -abs(cell.factor - (3 if cell.arm.name == "gem" else 1)) if cell.is_trial else 0.5
        device = "cpu" if cell.seed == 0 else "another"
        return {"score": score, "scores": {"miou": 0.5}, "seconds": 1.0, "device": device}

    work(grid, do, told=lambda text: None)
    notes = " ".join(module.notes_on(grid, tiny_run(tmp_path), rows_of(grid, {})))
    assert "2 of 4 took the lowest or highest tried" in notes and "made on another, cpu" in notes
    assert "favour high rates" in notes
    grid.trial_share = 1.0
    assert "favour high rates" not in " ".join(module.notes_on(grid, tiny_run(tmp_path), rows_of(grid, {})))


def test_costs_are_measured_by_one_process(tmp_path, monkeypatch):
    grid = grid_of(tmp_path)
    calls = []
    spent = Cost({"total": 1, "trained": 1, "trained_without_head": 1}, 1, 1.0, 1.0, 1, 1, 1)

    def measured(runs):
        calls.append([arm.name for arm, _ in runs])
        return {arm.name: spent for arm, _ in runs}

    def other(seconds):  # another process finishes while this one waits
        (tmp_path / "grid" / "cost.json").write_text(json.dumps({a.name: vars(spent) for a in grid.arms}))

    write_scans(tmp_path / "scans")
    monkeypatch.setattr(module, "measure", measured)
    monkeypatch.setattr(module.time, "sleep", other)
    with claimed(tmp_path / "grid" / "cost.claim"):
        assert set(costs_of(grid)) == {"gem", "linear"} and not calls
    (tmp_path / "grid" / "cost.json").write_text(json.dumps({"linear": 3}))
    assert set(costs_of(grid)) == {"gem", "linear"} and len(calls) == 1
    calls.clear()
    old = {name: {k: v for k, v in vars(spent).items() if k != "threads"} for name in ("gem", "linear")}
    (tmp_path / "grid" / "cost.json").write_text(json.dumps(old))  # measured otherwise, by an earlier version
    costs_of(grid)
    costs_of(replace(grid, arms=grid.arms[:1]))
    assert calls == [["gem", "linear"]]
