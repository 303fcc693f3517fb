"""Classification of shapes: training, choice of the step, scores, votes, corruption, tables; resume after a kill."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from pointadapt.analysis.describe import works_on
from pointadapt.backbones.weights import ASSETS
from pointadapt.checkpoint import trained_state
from pointadapt.data.object_set import ObjectSet
from pointadapt.domains.domain import Asked, open_domain
from pointadapt.domains.models import build_model, load_model
from pointadapt.errors import UserError
from pointadapt.evaluate import evaluate
from pointadapt.methods import METHODS
from pointadapt.predict import predict
from pointadapt.run import Run
from pointadapt.train import Batches, make_accelerator, train
from run_folders import adapter, rows, same, table, train_and_kill
from tiny_objects import CLASSES, object_run, shape, write_parts, write_shape, write_shapes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    run = object_run(folder, steps=80, eval_every=20)
    return run, train(run)


# --- settings --------------------------------------------------------------------------------------------------------


def test_defaults_are_the_kinds_own(tmp_path):
    write_shapes(tmp_path / "shapes")
    run = Run(tmp_path / "shapes")
    assert (run.kind, run.batch_size, run.lr, run.weight_decay, run.clip) == ("classification", 32, 5e-4, 0.05, 10.0)
    assert (run.schedule, run.head, run.dropout, run.smoothing) == ("cosine", "mlp3", 0.5, 0.0)
    assert Run(tmp_path / "shapes", head="linear").dropout == 0.0
    scenes = Run("scans")
    assert (scenes.kind, scenes.batch_size, scenes.lr, scenes.head, scenes.schedule) == (
        *("scenes", 2, 2e-3, "linear", "onecycle"),
    )
    assert Run(tmp_path / "shapes", batch_size=3).batch_size == 3


@pytest.mark.skipif(not (ASSETS / "nano-mae.safetensors").is_file(), reason="its weights are not bundled")
def test_the_bundled_backbone_is_the_default(tmp_path):
    write_shapes(tmp_path / "shapes")
    run = Run(tmp_path / "shapes", tmp_path / "run", steps=1, batch_size=2, points=128, select="last")
    assert (run.backbone, run.method) == ("nano-mae", "lora")
    assert train(run)["steps"] == 1


def test_run_json_names_what_was_resolved(finished):
    run, _ = finished
    content = json.loads((run.folder / "run.json").read_text())
    assert content["run"]["transform"] == "scale_translate" and content["run"]["kind"] == "classification"
    assert content["run"]["weight_decay"] == 0.05 and content["dataset"]["holdout"] == 0.1
    assert Run.load(run.folder).transform == "scale_translate"


def test_epochs_become_steps(tmp_path):
    run = object_run(tmp_path, epochs=4, batch_size=5)
    assert open_domain(run).run.steps == 12  # 15 of 18 shapes are not held out, so an epoch is 3 steps
    assert open_domain(dataclasses.replace(run, val_share=0.0)).run.steps == 15


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"head": "huge"}, "head is 'huge'"),
        ({"select": "train"}, "select is 'train'"),
        ({"smoothing": 1.5}, "smoothing is 1.5"),
        ({"epochs": 0}, "epochs is 0"),
        ({"mix3d": 0.5}, "mix3d merges crops"),
        ({"transform": "indoor"}, "transform 'indoor' is unknown"),
        ({"batch_size": 6, "grad_accum": 6}, "BatchNorm is trained here"),
        ({"method": "gem"}, "method 'gem' cannot work on PointViT: it needs voxel neighbourhoods"),
        ({"points": 8}, "shapes of 8 points are too few .* needs at least 12"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_make_no_sense(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(object_run(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_a_linear_head_learns_from_single_shapes(tmp_path):
    assert train(object_run(tmp_path, head="linear", batch_size=2, grad_accum=2, steps=2))["steps"] == 2


def test_a_run_belongs_to_its_kind(tmp_path):
    run = Run(tmp_path / "shapes", tmp_path / "run")  # made before the data: taken for scenes
    write_shapes(tmp_path / "shapes")
    with pytest.raises(UserError, match="holds classification, this run is for scenes"):
        train(run)


# --- what is learned from, and what chooses the step -----------------------------------------------------------------


def test_a_stratified_tenth_is_held_out(finished):
    run, _ = finished
    dataset = open_domain(run).dataset
    held, learned = dataset.items("val"), dataset.items("train")
    assert sorted(item.target for item in held) == [0, 1, 2] and len(learned) == 15
    assert not {item.name for item in held} & {item.name for item in learned}
    assert len(open_domain(dataclasses.replace(run, select="last")).dataset.items("train")) == 18


def test_an_own_validation_split_stays(tmp_path):
    write_shapes(tmp_path / "shapes", val=2)
    domain = open_domain(object_run(tmp_path))
    assert len(domain.dataset.items("val")) == 6 and len(domain.dataset.items("train")) == 18


@pytest.mark.parametrize("select", ["val", "last", "test"])
def test_selection_is_told(tmp_path, select):
    run = object_run(tmp_path, select=select, steps=4)
    result = train(run)
    splits = {row["split"] for row in rows(run) if "split" in row}
    assert splits == {"val": {"val"}, "last": set(), "test": {"test"}}[select]
    if select == "last":
        assert result["best_step"] == 4 and same(adapter(run, "best"), adapter(run, "last"))
    words = {"val": "on validation data", "last": "the last step", "test": "on the test split itself"}[select]
    found = evaluate(run)
    assert words in found["selection"]
    page = (run.folder / "report.html").read_text()
    assert words in page and "scale_translate" in page and ("Test OA" in page) == (select == "test")
    assert "adapter/last is the last step" in evaluate(run, checkpoint="last")["selection"]


def test_select_test_needs_one(tmp_path):
    write_shapes(tmp_path / "shapes", test=0)
    with pytest.raises(UserError, match="lists no test split"):
        train(object_run(tmp_path, select="test"))


def test_every_shape_once_per_epoch_and_no_partial_batch(tmp_path):
    run = object_run(tmp_path, batch_size=5, steps=6, val_share=0.0)
    batches = list(Batches(open_domain(run), make_accelerator(run)).loader(start=0))
    names = [name for batch in batches for name in batch["name"]]
    assert all(len(batch["label"]) == 5 for batch in batches)
    assert len(set(names[:18])) == 18 and len(set(names)) == 18
    run.num_workers = 1
    again = list(Batches(open_domain(run), make_accelerator(run)).loader(start=4))
    for one, other in zip(batches[4:], again, strict=True):
        assert torch.equal(one["point"].coord, other["point"].coord) and one["name"] == other["name"]


def test_it_learns_and_frozen_weights_stay(finished):
    run, result = finished
    assert result["val"]["oa"] >= 2 / 3 and result["kind"] == "classification"
    losses = [row["loss"] for row in rows(run) if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    domain = open_domain(run)
    before, after = build_model(domain), load_model(domain, "last")
    changed, state = set(trained_state(before)), before.state_dict()
    for name, value in after.state_dict().items():
        if name not in changed and "modules_to_save" not in name:
            assert torch.equal(value, state[name]), name


TOKENS = [method for method, config in sorted(METHODS.items()) if "tokens" in works_on(config) and method != "decoder"]


@pytest.mark.parametrize("method", TOKENS)
def test_every_method_trains_and_loads(tmp_path, method):
    run = object_run(tmp_path, method=method, steps=2)
    assert train(run)["loss"] > 0
    load_model(open_domain(run))


@pytest.mark.parametrize("method", TOKENS)
def test_every_method_segments_parts(tmp_path, method):
    write_parts(tmp_path / "shapes", train=3, test=1)
    run = object_run(tmp_path, method=method, steps=2, select="last", batch_size=2)
    assert train(run)["loss"] > 0
    assert evaluate(run)["shapes"] == 2


def test_groups_are_the_run_s_own(tmp_path):
    run = object_run(tmp_path, method="linear", steps=2, groups=20)
    assert train(run)["loss"] > 0
    assert load_model(open_domain(run)).get_base_model().backbone.config.groups == 20
    with pytest.raises(UserError, match="fewer|few"):
        train(object_run(tmp_path, method="linear", groups=4000, out=tmp_path / "too-many"))
    with pytest.raises(UserError, match="'sonata' cuts no shapes"):
        train(object_run(tmp_path, method="linear", groups=20, architecture="sonata", out=tmp_path / "scenes"))


def test_killed_and_resumed_is_as_never_interrupted(tmp_path):
    """SIGKILL in the middle of a step: the resumed run has the same metrics and weights, bit by bit, BatchNorm too."""
    settings = {"steps": 12, "eval_every": 3, "drop_path": True, "smoothing": 0.1}
    whole = object_run(tmp_path / "whole", **settings)
    train(whole)
    killed = object_run(tmp_path / "killed", **settings)
    train_and_kill(f"object_run(Path({str(tmp_path / 'killed')!r}), **{settings!r})", pause=0.01)
    assert not (killed.folder / "result.json").exists()
    assert train(killed, resume=True)["steps"] == 12
    assert rows(killed) == rows(whole)
    for which in ("best", "last"):
        assert same(adapter(killed, which), adapter(whole, which))
    assert any("running_mean" in name for name in adapter(whole))


def test_resume_refuses_other_settings(finished):
    run, _ = finished
    with pytest.raises(UserError, match=r"transform scale_translate -> rotate"):
        train(dataclasses.replace(run, transform="rotate"), resume=True)
    assert train(run, resume=True)["steps"] == 80


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_agree_with_the_predictions(finished, tmp_path):
    run, _ = finished
    result = evaluate(run)
    (file,) = predict(run, run.data / "test", tmp_path / "table.csv", quiet=True)
    lines = table(file)
    right = [line["file"].split("/")[0] == line["class"] for line in lines]
    assert result["oa"] == sum(right) / 6 and result["shapes"] == 6 and result["split"] == "test"
    assert result["macc"] == pytest.approx(np.mean(result["accuracy"]))
    assert np.array(result["confusion"]).sum() == 6 and result["oa"] > 0.5
    assert json.loads((run.folder / "evaluation.json").read_text()) == result
    page = (run.folder / "report.html").read_text()
    assert "<th>OA" in page and "Accuracy per class" in page and "mIoU" not in page


def test_wrong_shapes_are_shown(finished):
    run, _ = finished
    domain = open_domain(run)

    class Always(torch.nn.Module):
        def forward(self, point):
            return torch.tensor([[0.0, 1.0, 0.0]]).repeat(point.num_clouds, 1)

    found = domain.evaluate(Always(), domain.items("test"), CPU, Asked(), shown=3)
    assert len(found.scenes) == 3 and all("taken for box" in scene["name"] for scene in found.scenes)
    assert found.scores["accuracy"] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("views", [0, 1, 10])
def test_twice_the_same_bit_by_bit(finished, views):
    domain = open_domain(finished[0])
    model, items = load_model(domain), domain.items("test")
    samples = [items.shape(0), items.shape(3)]
    once, again = (domain.probabilities(model, samples, CPU, Asked(views)) for _ in range(2))
    assert torch.equal(once, again) and torch.allclose(once.sum(1), torch.ones(2))
    alone = domain.probabilities(model, samples[1:], CPU, Asked(views))
    assert torch.allclose(once[1:], alone, atol=1e-6)


def test_votes_average_logits_of_different_views(finished):
    domain = open_domain(finished[0])
    sample = domain.items("test").shape(0)
    views = domain.views(sample, 3)
    assert len({view["coord"].tobytes() for view in views}) == 3

    class ByWidth(torch.nn.Module):
        def forward(self, point):
            width = torch.stack([cloud.coord[:, 0].amax() for cloud in point.split()])
            return torch.stack([width, 0 * width], 1)

    mean = np.mean([view["coord"][:, 0].max() for view in views])
    expected = torch.tensor([mean, 0.0]).softmax(0)
    assert torch.allclose(domain.probabilities(ByWidth(), [sample], CPU, Asked(3))[0], expected.float(), atol=1e-6)


def test_corruption(finished):
    run, _ = finished
    result = evaluate(run, corruption="dropout_global", severity=1)
    assert result["corruption"] == {"name": "dropout_global", "severity": 1} and result["shapes"] == 6
    assert "dropout_global at severity 1" in (run.folder / "report.html").read_text()
    domain = open_domain(run)
    (seen,) = domain.views(domain.items("test").shape(0), 0, ("dropout_global", 1))
    assert len(seen["coord"]) == 48
    with pytest.raises(UserError, match="no corruption 'rust'"):
        evaluate(run, corruption="rust")
    evaluate(run)


# --- prediction ------------------------------------------------------------------------------------------------------


def test_table(finished, tmp_path):
    run, _ = finished
    source = tmp_path / "new"
    for name in CLASSES:
        write_shape(source / "deep" / f"{name}.ply", shape(name, 99))
        write_shape(source / f"{name}.npy", shape(name, 98))
    (table,) = predict(run.folder, source, quiet=True, probabilities=True)
    assert table == tmp_path / "new_labelled" / "predictions.csv"
    lines = table.read_text().splitlines()
    assert lines[0] == "file,class,confidence,ball,box,pole"
    assert [line.split(",")[0] for line in lines[1:]] == sorted(
        [f"{name}.npy" for name in CLASSES] + [f"deep/{name}.ply" for name in CLASSES]
    )
    for line in lines[1:]:
        _, found, confidence, *probability = line.split(",")
        assert max(probability, key=float) == confidence and CLASSES[probability.index(confidence)] == found
    before = table.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        predict(run, source)
    predict(run, source, overwrite=True, quiet=True, probabilities=True)
    assert table.read_bytes() == before
    (alone,) = predict(run, source / "deep" / "box.ply", quiet=True, probabilities=True)
    assert alone == source / "deep" / "box_labelled.csv"
    assert alone.read_text().splitlines()[1] == next(line for line in lines if "deep/box" in line)[len("deep/") :]


def test_the_order_of_points_does_not_matter(finished, tmp_path):
    coord = shape("ball", 5)
    write_shape(tmp_path / "a.ply", coord)
    write_shape(tmp_path / "b.ply", coord[np.random.default_rng(0).permutation(len(coord))])
    (table,) = predict(finished[0], tmp_path, tmp_path.with_name(f"{tmp_path.name}_out"), quiet=True)
    first, second = (line.split(",", 1)[1] for line in table.read_text().splitlines()[1:])
    assert first == second


def test_array_files_hold_many_shapes(finished, tmp_path):
    coord = np.stack([shape("ball", 1), shape("pole", 1)])
    np.savez(tmp_path / "many.npz", data=coord)
    (table,) = predict(finished[0], tmp_path / "many.npz", quiet=True)
    lines = table.read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["many.npz#0", "many.npz#1"]


def test_bad_shapes_are_told_after_the_others_are_done(finished, tmp_path):
    run, _ = finished
    source = tmp_path / "new"
    write_shape(source / "good.ply", shape("ball", 1))
    write_shape(source / "few.ply", shape("ball", 1)[:11])
    (source / "empty.off").write_bytes(b"")
    broken = shape("box", 1)
    broken[3, 1] = np.nan
    write_shape(source / "nan.ply", broken)
    words = r"3 of 4 shapes were not labelled: .*empty\.off.*few\.ply.*nan\.ply.*others are in .*out\.csv"
    with pytest.raises(UserError, match=words):
        predict(run, source, tmp_path / "out.csv", quiet=True)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert len(lines) == 2 and lines[1].startswith("good.ply,")
    with pytest.raises(UserError, match=r"few\.ply: 11 points, the model needs at least 12"):
        predict(run, source / "few.ply", tmp_path / "few.csv", quiet=True)
    assert not (tmp_path / "few.csv").exists()


def test_outputs_that_are_refused(finished, tmp_path):
    run, _ = finished
    write_shape(tmp_path / "one.ply", shape("ball", 1))
    write_shape(tmp_path / "shapes" / "one.ply", shape("ball", 1))
    np.savetxt(tmp_path / "table.csv", shape("ball", 1), delimiter=",")
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.csv").mkdir()
    for source, out, message in (
        ("one.ply", "file", "is the name of a file: give --out a folder, or a name in .csv"),
        ("one.ply", "q.off", "is the name of a file: give --out a folder, or a name in .csv"),
        ("one.ply", "file/q.csv", "is a file, so"),
        ("shapes", "shapes", "lies in the source"),
        ("shapes", "shapes/deep/q.csv", "lies in the source"),
        ("table.csv", "table.csv", "is the input itself"),
        ("nothing.ply", None, "there is no shape"),
        ("file", None, "unknown format"),
        ("folder.csv", None, "no shapes in this folder"),
    ):
        with pytest.raises(UserError, match=message):
            predict(run, tmp_path / source, tmp_path / out if out else None)
    (table,) = predict(run, tmp_path / "one.ply", tmp_path / "folder.csv", quiet=True)
    assert table == tmp_path / "folder.csv" / "predictions.csv"
    with pytest.raises(UserError, match="category is not for classification"):
        predict(run, tmp_path / "one.ply", category="chair")


def test_the_data_may_be_gone_when_predicting(finished, tmp_path):
    run = Run.load(finished[0].folder)
    run.data, run.out = tmp_path / "gone", tmp_path / "moved"
    run.epochs = 3
    run.save(ObjectSet.open(finished[0].data))
    (tmp_path / "moved" / "adapter").symlink_to(finished[0].folder / "adapter")
    write_shape(tmp_path / "one.ply", shape("ball", 1))
    assert predict(tmp_path / "moved", tmp_path / "one.ply", quiet=True)[0].exists()


def test_backbones_over_points_classify_too(tmp_path):
    from tiny_runs import write_backbone

    backbone = write_backbone(tmp_path / "ptv3.safetensors")
    run = object_run(tmp_path, backbone=str(backbone), method="gem", options={"rank": 2}, steps=2)
    assert train(run)["steps"] == 2 and evaluate(run)["shapes"] == 6
