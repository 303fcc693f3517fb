"""Part segmentation: training, published scores, labelled files."""

import json

import numpy as np
import pytest
import torch
from plyfile import PlyData

from pointadapt.data.synthetic import write_ply
from pointadapt.domains.domain import Asked, open_domain
from pointadapt.domains.models import load_model
from pointadapt.domains.parts import write_columns
from pointadapt.errors import UserError
from pointadapt.evaluate import evaluate
from pointadapt.metrics import part_scores, shape_miou
from pointadapt.predict import predict
from pointadapt.train import train
from tiny_objects import object_run, write_off, write_parts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder / "shapes")
    made = object_run(folder, steps=60, eval_every=20, batch_size=6)
    train(made)
    return made


def test_shape_miou_by_hand():
    truth, found = torch.tensor([0, 0, 1, 1, -1]), torch.tensor([0, 1, 1, 1, 0])
    assert shape_miou(found, truth, [0, 1]) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert shape_miou(found, truth, [0, 1, 2]) == pytest.approx((1 / 2 + 2 / 3 + 1) / 3), "an absent part counts 1"


def test_instance_and_class_means_by_hand():
    """Three shapes of one category, one of another, none of a third."""
    counts = torch.eye(4, dtype=torch.int64)
    found, by_category = part_scores(counts, torch.tensor([1.5, 1.0, 0.0]), torch.tensor([3.0, 1.0, 0.0]))
    assert found["instance_miou"] == 2.5 / 4 and found["class_miou"] == 0.75 and found["shapes"] == 4
    assert by_category == [0.5, 1.0, None]


def test_it_learns_and_scores(run):
    result = evaluate(run)
    assert result["kind"] == "parts" and result["instance_miou"] > 0.7 and result["shapes"] == 4
    assert set(result["categories"]) == {"mushroom", "tin"}
    assert result["class_miou"] == pytest.approx(np.mean(list(result["categories"].values())))
    confusion = np.array(result["confusion"])
    assert confusion.sum() == result["points"] == 4 * 96
    assert confusion[:2, 2:].sum() == confusion[2:, :2].sum() == 0, "a part of another category was predicted"
    content = json.loads((run.folder / "run.json").read_text())["run"]
    assert (content["transform"], content["lr"], content["head"]) == ("parts", 1e-2, "mlp3")
    assert "instance mIoU" in (run.folder / "report.html").read_text()


def test_votes(run):
    domain = open_domain(run)
    model, sample = load_model(domain), domain.items("test")[0]
    one, several = (domain.vote(model, [sample], torch.device("cpu"), views)[0] for views in (0, 5))
    assert one.shape == several.shape == (96, 4) and not torch.allclose(one, several, atol=1e-4)
    again = domain.vote(model, [sample], torch.device("cpu"), 5)[0]
    assert torch.equal(several, again) and torch.allclose(several.sum(1), torch.ones(96))
    found = domain.evaluate(model, domain.items("test"), torch.device("cpu"), Asked(views=2), shown=1)
    assert len(found.scenes) == 1 and found.scores["instance_miou"] > 0.5


def test_labelled_files(run, tmp_path):
    source = run.data / "test" / "tin" / "tin_0.ply"
    (target,) = predict(run, source, tmp_path / "out.ply", quiet=True)
    old, new = PlyData.read(source)["vertex"], PlyData.read(target)["vertex"]
    assert (old["x"] == new["x"]).all() and set(np.unique(new["class"])) <= {2, 3}
    assert (new["class"] == old["label"]).mean() > 0.8
    assert ((new["confidence"] >= 0.5 - 1e-6) & (new["confidence"] <= 1)).all()
    folder = predict(run, run.data / "test", tmp_path / "all", quiet=True)
    assert len(folder) == 4 and (tmp_path / "all" / "tin" / "tin_0.ply").read_bytes() == target.read_bytes()


def test_the_category_must_be_known(run, tmp_path):
    vertex = PlyData.read(run.data / "test" / "tin" / "tin_0.ply")["vertex"]
    coord = np.stack([vertex[name] for name in "xyz"], 1)
    write_ply(tmp_path / "thing.ply", coord, np.zeros((len(coord), 3), np.uint8), np.zeros(len(coord), np.int32))
    with pytest.raises(UserError, match="no folder of a category; say what it is with --category"):
        predict(run, tmp_path / "thing.ply")
    with pytest.raises(UserError, match="category 'lamp' is unknown"):
        predict(run, tmp_path / "thing.ply", category="lamp")
    (target,) = predict(run, tmp_path / "thing.ply", category="mushroom", quiet=True)
    assert set(np.unique(PlyData.read(target)["vertex"]["class"])) <= {0, 1}


@pytest.mark.parametrize(
    "changes, message",
    [({"head": "linear"}, "published head"), ({"smoothing": 0.1}, "smoothing is for classification")],
)
def test_settings_for_classification(tmp_path, changes, message):
    write_parts(tmp_path / "shapes", train=1, test=1)
    with pytest.raises(UserError, match=message):
        train(object_run(tmp_path, **changes))


def test_no_corruption(run):
    with pytest.raises(UserError, match="corruptions are for classification"):
        evaluate(run, corruption="jitter")


def test_text_files(run, tmp_path):
    vertex = PlyData.read(run.data / "test" / "tin" / "tin_0.ply")["vertex"]
    coord = np.stack([vertex[name] for name in "xyz"], 1)
    source = tmp_path / "tin" / "one.txt"
    source.parent.mkdir()
    np.savetxt(source, coord, fmt="%.6f")
    (target,) = predict(run, source, quiet=True)
    assert target == tmp_path / "tin" / "one_labelled.txt"
    values = np.loadtxt(target)
    assert np.array_equal(values[:, :3], np.loadtxt(source)) and set(values[:, 3]) <= {2.0, 3.0}
    assert (values[:, 3] == vertex["label"]).mean() > 0.8 and (values[:, 4] <= 1).all()
    (tmp_path / "tin" / "table.csv").write_text("x,y,z\n" + "".join(f"{x},{y},{z}\n" for x, y, z in coord))
    (target,) = predict(run, tmp_path / "tin" / "table.csv", quiet=True)
    assert target.read_text().startswith("x,y,z,part,confidence\n") and len(target.read_text().splitlines()) == 241


def test_comments_in_text_files_move_no_label(tmp_path):
    (tmp_path / "a.txt").write_text("x y z\n1 2 3\n# between\n4 5 6 # the last\n# end\n")
    write_columns(tmp_path / "a.txt", tmp_path / "b.txt", np.array([7, 8]), np.array([0.5, 1.0]))
    assert (tmp_path / "b.txt").read_text().splitlines() == [
        "x y z part confidence", "1 2 3 7 0.500000", "# between", "4 5 6 8 1.000000 # the last", "# end"
    ]  # fmt: skip


def test_files_without_points_to_label(run, tmp_path):
    write_off(tmp_path / "box.off")
    np.savez(tmp_path / "many.npz", xyz=np.zeros((2, 50, 3)))
    with pytest.raises(UserError, match="a mesh has no points"):
        predict(run, tmp_path / "box.off", category="tin")
    with pytest.raises(UserError, match="it holds many shapes"):
        predict(run, tmp_path / "many.npz", category="tin")
    with pytest.raises(UserError, match="no shapes in this folder"):
        (tmp_path / "empty").mkdir()
        predict(run, tmp_path / "empty", category="tin")
