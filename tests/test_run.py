"""Run: defaults, checks, JSON round trip, and the model it describes."""

import json

import pytest
import torch

from pointadapt.data.scans import DataSet
from pointadapt.domains.domain import remembered_domain
from pointadapt.domains.models import build_model
from pointadapt.errors import UserError
from pointadapt.files import write_text
from pointadapt.methods import METHODS
from pointadapt.run import Run
from tiny_runs import scenes, tiny_run


def test_json_round_trip(tmp_path):
    run = tiny_run(tmp_path, cache=tmp_path / "cache", seed=7)
    run.save(DataSet.open(run.data))
    assert Run.load(run.folder) == run
    content = json.loads((run.folder / "run.json").read_text())
    assert content["run"]["seed"] == 7 and content["run"]["options"] == {"rank": 4}
    assert content["made"]["torch"] == torch.__version__.split("+")[0] or content["made"]["torch"] == torch.__version__
    assert {"git", "python", "peft", "accelerate", "date"} <= content["made"].keys()
    dataset = remembered_domain(run).dataset
    assert dataset.names == ["ground", "wall", "box"] and dataset.raw_ids.tolist() == [10, 20, 30]
    assert dataset.ignore == (99,) and dataset.grid_size == 0.1


def test_a_moved_folder_loads(tmp_path):
    run = tiny_run(tmp_path)
    run.save(DataSet.open(run.data))
    run.folder.rename(tmp_path / "elsewhere")
    assert Run.load(tmp_path / "elsewhere").folder == tmp_path / "elsewhere"


def test_default_folder():
    assert str(Run("some/scans", backbone="w/sonata.pth", method="lora").out) == "runs/scans-sonata-lora"


@pytest.mark.parametrize(
    "setting",
    [
        {"steps": 0},
        {"batch_size": 3, "grad_accum": 2},
        {"lr": -1.0},
        {"head_lr": float("nan")},
        {"mix3d": 1.5},
        {"tta": 14},
        {"tile": 0},
        {"seed": -1},
    ],
    ids=lambda s: next(iter(s)),
)
def test_settings_that_make_no_sense(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        Run("scans", **setting)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        Run.load(tmp_path)
    for text in ("{", "[]", '{"run": {}}', '{"run": {"data": "x", "colour": 3}, "dataset": {}}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(UserError, match=r"run\.json (cannot be read as a run: .{9}|has settings)"):
            Run.load(tmp_path)


def test_methods_by_object_and_by_name(tmp_path):
    by_object = tiny_run(tmp_path, method=METHODS["gem"](rank=4), options={})
    assert (by_object.method, by_object.options) == ("gem", {"rank": 4})
    lora = tiny_run(tmp_path, method=METHODS["lora"](r=2))
    assert (lora.method, lora.options) == ("lora", {"r": 2})
    houlsby = tiny_run(tmp_path, method=METHODS["houlsby"]())
    assert (houlsby.method, houlsby.options) == ("houlsby", {})
    with pytest.raises(UserError, match="unknown method 'gemm'"):
        build_model(scenes(tiny_run(tmp_path, method="gemm"), ["a", "b"]))
    with pytest.raises(UserError, match="no option 'ranks'"):
        build_model(scenes(tiny_run(tmp_path, options={"ranks": 4}), ["a", "b"]))


def test_the_model_depends_on_the_seed_alone(tmp_path):
    def weights(seed):
        torch.rand(1)  # whatever the global generator is up to
        return build_model(scenes(tiny_run(tmp_path, seed=seed), ["a", "b", "c"])).state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)
    before = torch.get_rng_state()
    build_model(scenes(tiny_run(tmp_path), ["a", "b"]))
    assert torch.equal(before, torch.get_rng_state()), "building a model moved the global generator"


@pytest.mark.parametrize("drop_path", [False, True])
def test_drop_path(tmp_path, drop_path):
    model = build_model(scenes(tiny_run(tmp_path, drop_path=drop_path), ["a", "b"]))
    rates = [module.rate for module in model.modules() if hasattr(module, "rate")]
    assert rates and any(rates) == drop_path


def test_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "deep" / "file.txt"
    write_text(file, "one")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\ud800")
    assert file.read_text() == "one" and [f.name for f in file.parent.iterdir()] == ["file.txt"]
