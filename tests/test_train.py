"""Training: what it changes and what it must not, resuming after a kill, accumulation, processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pointadapt.analysis.describe import works_on
from pointadapt.checkpoint import Progress, trained_state
from pointadapt.domains.domain import open_domain
from pointadapt.domains.models import build_model, load_model
from pointadapt.errors import UserError
from pointadapt.methods import METHODS
from pointadapt.run import Run
from pointadapt.train import Batches, check_trained, judge, make_accelerator, model_seed, train
from run_folders import PATHS, adapter, rows, same, train_and_kill
from tiny_objects import object_run
from tiny_runs import scenes, tiny_run, write_scans


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run, and what train returned."""
    run = tiny_run(tmp_path_factory.mktemp("finished"), steps=40, eval_every=10)
    return run, train(run)


def test_it_learns(finished):
    run, result = finished
    assert result["val"]["miou"] > 0.8
    losses = [row["loss"] for row in rows(run) if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]


def test_memory_is_read_where_the_process_trains(tmp_path, monkeypatch):
    """With accelerate that is a GPU of its own, which is the current one only once the Accelerator is made."""
    asked: list[torch.device] = []
    second = SimpleNamespace(device=torch.device("cuda:1"), num_processes=1)
    monkeypatch.setattr(sys.modules["pointadapt.train"], "Accelerator", lambda **_: second)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: asked.append(device))
    make_accelerator(tiny_run(tmp_path))
    assert asked == [second.device]


def test_result_and_files(finished):
    run, result = finished
    assert json.loads((run.folder / "result.json").read_text()) == result
    found = {str(f.relative_to(run.folder)) for f in run.folder.rglob("*") if f.is_file()}
    assert {"run.json", "metrics.jsonl", "state/state.pt"} <= found
    for which in ("best", "last"):
        assert f"adapter/{which}/adapter_model.safetensors" in found
    assert any(name.startswith("tensorboard/events") for name in found)
    assert not [name for name in found if "tmp" in name]
    counts = result["parameters"]
    head = 48 * 3 + 3
    assert counts["trained"] - counts["trained_without_head"] == head
    assert counts["trained"] == sum(v.numel() for k, v in adapter(run).items() if not k.endswith("fingerprint"))
    assert result["seconds"] > 0 and result["peak_memory"] > 1e6
    assert [row["step"] for row in rows(run) if "miou" in row] == [10, 20, 30, 40]


def test_best_is_the_best_validation(finished):
    run, result = finished
    scores = {row["step"]: row["miou"] for row in rows(run) if "miou" in row}
    assert result["best_step"] == max(scores, key=lambda step: (scores[step], -step))
    assert result["val"]["miou"] == max(scores.values())


def test_frozen_weights_do_not_move(finished):
    run, _ = finished
    before = build_model(open_domain(run))
    after = load_model(open_domain(run), "last")
    changed = set(trained_state(before))
    state = before.state_dict()
    for name, value in after.state_dict().items():
        if name not in changed and "modules_to_save" not in name:
            assert torch.equal(value, state[name]), name


def test_the_same_twice(finished, tmp_path):
    run, _ = finished
    again = Run.load(run.folder)
    again.out, again.steps, again.eval_every = tmp_path / "again", 10, 5
    first = train(again)
    again.out = tmp_path / "once more"
    second = train(again)
    assert first["val"] == second["val"]
    again.out = tmp_path / "again"
    one = adapter(again)
    again.out = tmp_path / "once more"
    assert same(one, adapter(again))


@pytest.mark.parametrize("method", ["gem", "full"])
def test_killed_and_resumed_is_as_never_interrupted(tmp_path, method):
    """SIGKILL in the middle of a step, resume in a new process's place: same metrics, weights equal bit by bit."""
    settings = {"steps": 12, "eval_every": 3, "method": method, "drop_path": True, "mix3d": 0.5}
    whole = tiny_run(tmp_path / "whole", **settings)
    train(whole)
    killed = tiny_run(tmp_path / "killed", **settings)
    train_and_kill(f"tiny_run(Path({str(tmp_path / 'killed')!r}), **{settings!r})", pause=0.05)
    assert not (killed.folder / "result.json").exists()
    state = torch.load(killed.folder / "state" / "state.pt", weights_only=True)
    assert 6 <= state["progress"]["step"] < 12
    result = train(killed, resume=True)
    assert rows(killed) == rows(whole)
    for which in ("best", "last"):
        assert same(adapter(killed, which), adapter(whole, which))
    assert result["steps"] == 12 and result["val"] == json.loads((whole.folder / "result.json").read_text())["val"]


def test_resume_refuses_other_settings(finished):
    run, _ = finished
    other = Run.load(run.folder)
    other.lr = 1e-3
    with pytest.raises(UserError, match=r"lr 0.01 -> 0.001"):
        train(other, resume=True)
    other = Run.load(run.folder)
    other.num_workers = other.threads = 1  # what the machine at hand offers
    assert train(other, resume=True)["steps"] == 40


def test_resume_refuses_another_data_set(finished, tmp_path):
    run, _ = finished
    other = Run.load(run.folder)
    other.data = write_scans(tmp_path / "other", train=5)
    with pytest.raises(UserError, match="another data set"):
        train(other, resume=True)


def test_existing_folders(finished, tmp_path):
    run, _ = finished
    with pytest.raises(UserError, match="--resume .* --overwrite"):
        train(run)
    with pytest.raises(UserError, match="no saved state"):
        train(tiny_run(tmp_path), resume=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        train(tiny_run(tmp_path, out=tmp_path / "file"))
    mine = tmp_path / "run" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    short = tiny_run(tmp_path, steps=1)
    train(short)
    train(short, overwrite=True)
    assert mine.read_text() == "mine"


def test_accumulated_parts_hold_the_crops_of_the_whole_step(tmp_path):
    crops = {}
    for parts in (1, 2):
        run = tiny_run(tmp_path, grad_accum=parts)
        made = Batches(open_domain(run), make_accelerator(run))
        batches = list(made.loader(start=3))
        assert len(batches) == 3 * parts
        crops[parts] = torch.cat([batch["point"].coord for batch in batches])
    assert torch.equal(crops[1], crops[2])
    assert train(tiny_run(tmp_path, grad_accum=2, steps=2))["steps"] == 2


def test_a_full_gpu_ends_training_with_what_takes_less(tmp_path, monkeypatch):
    def full(groups):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(sys.modules["pointadapt.train"], "make_optimizer", full)
    with pytest.raises(UserError, match="memory is full: lower points or batch_size"):
        train(tiny_run(tmp_path))


def test_accumulated_gradients_are_the_whole_step_s(tmp_path, monkeypatch):
    """Weights after plain gradient descent, which unlike AdamW shows a sum taken for a mean."""
    trainer = sys.modules["pointadapt.train"]
    monkeypatch.setattr(trainer, "make_optimizer", lambda groups: torch.optim.SGD(groups))
    found, settings = [], {"method": "linear", "head": "linear", "batch_size": 4, "steps": 3, "select": "last"}
    for parts in (1, 2):
        run = object_run(tmp_path, grad_accum=parts, out=tmp_path / f"parts{parts}", **settings)
        train(run)
        found.append(adapter(run))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-5)
    (name,) = [name for name in found[0] if name.endswith("head.layers.1.weight")]
    start = build_model(open_domain(run)).get_base_model().head.modules_to_save["default"].layers[1].weight
    assert (found[0][name] - start).abs().max() > 1e-3


def test_order_and_draws_follow_the_seed(tmp_path):
    first, again, other = (
        Batches(open_domain(run), make_accelerator(run)) for run in (tiny_run(tmp_path, seed=s) for s in (0, 0, 1))
    )
    orders = [[tuple(made.order(epoch)) for epoch in range(9)] for made in (first, again, other)]
    assert orders[0] == orders[1] != orders[2] and len(set(orders[0])) > 1 < len(set(orders[2]))
    other.items = again.items = first.items  # which the seed has thinned
    number = next(n for n in range(27) if orders[0][n // 3][n % 3] == orders[2][n // 3][n % 3])
    coords = [made.sample(number)["coord"].tobytes() for made in (first, again, other)]
    assert coords[0] == coords[1] != coords[2]


def test_every_forward_pass_has_a_seed_of_its_own(tmp_path):
    runs = [tiny_run(tmp_path, seed=seed) for seed in (0, 1)]
    passes = [(run, step, part, rank) for run in runs for step in range(3) for part in range(2) for rank in range(2)]
    seeds = [model_seed(*one) for one in passes]
    assert len(set(seeds)) == len(passes) and seeds == [model_seed(*one) for one in passes]


def test_the_first_of_equal_scores_is_the_best(tmp_path):
    run, now = tiny_run(tmp_path), Progress()
    for step, miou in enumerate((0.4, 0.6, 0.6, 0.5), 1):
        now.step, now.scores = step, {"miou": miou}
        judge(now, run)
    assert now.best_step == 2 and now.best == {"miou": 0.6}
    run.select = "last"
    judge(now, run)
    assert now.best_step == 4 and now.best == {"miou": 0.5}


def test_every_scan_once_per_epoch_and_the_same_with_workers(tmp_path):
    run = tiny_run(tmp_path, batch_size=3, steps=4)
    batches = list(Batches(open_domain(run), make_accelerator(run)).loader(start=0))
    assert [sorted(batch["name"]) for batch in batches] == [["train0.ply", "train1.ply", "train2.ply"]] * 4
    assert not torch.equal(batches[0]["point"].coord[:100], batches[1]["point"].coord[:100])
    run.num_workers = 2
    parallel = list(Batches(open_domain(run), make_accelerator(run)).loader(start=2))
    for one, other in zip(batches[2:], parallel, strict=True):
        assert torch.equal(one["point"].feat, other["point"].feat) and one["name"] == other["name"]


@pytest.mark.parametrize("method", [m for m, c in sorted(METHODS.items()) if "points" in works_on(c)])
def test_every_method_trains(tmp_path, method):
    run = tiny_run(tmp_path, method=method, options={}, steps=2, decoder=method == "decoder")
    result = train(run)
    assert result["loss"] > 0
    load_model(open_domain(run))


def test_bf16_on_the_cpu(tmp_path):
    result = train(tiny_run(tmp_path, precision="bf16", steps=4))
    assert result["val"]["points"] > 0
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        train(tiny_run(tmp_path, precision="fp16"), overwrite=True)


def test_checkpointing_is_the_same_run(finished, tmp_path):
    plain, _ = finished
    other = tiny_run(tmp_path, steps=40, eval_every=10, checkpointing=True)
    assert train(other)["steps"] == 40
    assert rows(plain) == rows(other) and same(adapter(plain), adapter(other))


def test_without_validation_scans(tmp_path):
    write_scans(tmp_path / "scans", val=0)
    result = train(tiny_run(tmp_path, steps=3))
    assert result["val"] is None and result["best_step"] == 3


def test_divergence_is_told(tmp_path):
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step"):
        train(tiny_run(tmp_path, lr=1e30, head_lr=1e30, clip=1e30, steps=20))


def test_optimiser_holds_what_is_trained(tmp_path):
    model = build_model(scenes(tiny_run(tmp_path), ["a", "b"]))
    parameters = [p for p in model.parameters() if p.requires_grad]
    check_trained(model, [{"name": "head", "params": parameters}])
    frozen = next(p for p in model.parameters() if not p.requires_grad)
    for wrong in (parameters[1:], [*parameters, frozen], [*parameters, parameters[0]]):
        with pytest.raises(RuntimeError, match="optimiser"):
            check_trained(model, [{"name": "head", "params": wrong}])
    with pytest.raises(RuntimeError, match="head is not trainable"):
        check_trained(model, [{"name": "adapters", "params": parameters}])


PROCESSES = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from tiny_objects import object_run
from tiny_runs import tiny_run
from pointadapt.train import train
result = train({run})
assert result["processes"] == 2, result
"""


def train_in_two(folder: Path, run: str) -> None:
    """Train ``run``, an expression, on two processes: gloo on the CPU."""
    script = folder / "script.py"
    script.write_text(PROCESSES.format(path=PATHS, run=run))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Half a batch each, gradients averaged, one set of files, scores over all scans."""
    one = tiny_run(tmp_path / "one", steps=6, eval_every=3)
    write_scans(one.data, val=3)
    train(one)
    two = tiny_run(tmp_path / "two", steps=6, eval_every=3)
    write_scans(two.data, val=3)
    train_in_two(tmp_path, f"tiny_run(Path({str(tmp_path / 'two')!r}), steps=6, eval_every=3)")
    assert [row["step"] for row in rows(two)] == [row["step"] for row in rows(one)]
    for a, b in zip(rows(one), rows(two), strict=True):
        if "miou" in a:
            assert a["points"] == b["points"] and abs(a["miou"] - b["miou"]) < 0.3
    assert adapter(one).keys() == adapter(two).keys()


@pytest.mark.slow
def test_two_processes_train_a_loss_beside_the_output(tmp_path):
    """PointLoRA's scorer learns from its own loss, which does not pass through the logits."""
    run = object_run(tmp_path, method="pointlora", steps=2)
    train_in_two(tmp_path, f"object_run(Path({str(tmp_path)!r}), method='pointlora', steps=2)")
    assert any(".scorer." in key for key in adapter(run))
