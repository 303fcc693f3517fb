"""Distances of folders through a backbone: which model and which data set are nearer, and what chance leaves."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pointadapt.analysis.distance import (
    Features,
    distance,
    distance_between_features,
    distance_table,
    draw_label_distances,
    embedder,
)
from pointadapt.analysis.folder_features import folder_features
from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.errors import UserError


def cloud_of(kind, rng, points=80):
    """A rod, a plate or a ball: [points, 3]."""
    coord = rng.standard_normal((points, 3))
    if kind == "ball":
        return coord / np.linalg.norm(coord, axis=1, keepdims=True)
    return coord * {"rod": (1, 0.05, 0.05), "plate": (1, 1, 0.05)}[kind]


def folder(path, kinds, per_class=8, seed=0, squeeze=1.0):
    """A folder of shapes in one array file, with its dataset.yaml."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(kinds)), per_class)
    coord = np.stack([cloud_of(kinds[y], rng) * (1, squeeze, 1) for y in labels]).astype(np.float32)
    path.mkdir()
    np.savez(path / "a.npz", xyz=coord, label=labels)
    content = {"task": "classification", "classes": list(kinds), "splits": {"train": ["a.npz"]}, "points": 64}
    (path / "dataset.yaml").write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return PointViT(PointViTConfig(groups=8, group_size=8, channels=24, depth=2, heads=2, embed_channels=24))


def blobs(shift=0.0, seed=0, count=80, dim=5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=count)
    feats = 4 * np.eye(dim)[labels] + 0.5 * rng.standard_normal((count, dim)) + shift
    return Features(torch.from_numpy(feats), [f"class {y}" for y in labels])


def test_the_floor_is_what_chance_leaves():
    same, moved = (distance_between_features(blobs(), blobs(shift, seed=1)) for shift in (0.0, 3.0))
    assert same.relative < 1.5 * same.floor and moved.relative > 5 * moved.floor and same.floor == moved.floor
    assert same.sizes == (40, 40) and same.neighbours > 0.95
    assert moved == distance_between_features(blobs(), blobs(3.0, seed=1))
    scaled = distance_between_features(blobs()._replace(features=blobs().features * 100), Features(
        blobs(3.0, seed=1).features * 100, blobs(3.0, seed=1).labels))  # fmt: skip
    assert scaled.relative == pytest.approx(moved.relative, rel=1e-6)
    with pytest.raises(UserError, match="at least four"):
        distance_between_features(blobs(count=3), blobs())


def test_the_table_is_ordered_and_takes_a_source_for_each_model():
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    extractors = {
        "blind": lambda data: Features(data.features * 0 + torch.randn(len(data.features), 5), data.labels),
        "near": lambda data: Features(data.features @ torch.from_numpy(turn), data.labels),
    }
    torch.manual_seed(0)
    rows = distance_table(extractors, blobs(), blobs(2.0, seed=1))
    assert [row.name for row in rows] == ["blind", "near"]  # it sees no difference, for it sees nothing:
    assert rows[0].neighbours < 0.5 < rows[1].neighbours
    own = {"near": blobs(2.0, seed=2), "blind": blobs()}
    by_name = {row.name: row for row in distance_table(extractors, own, blobs(2.0, seed=1))}
    assert by_name["near"].relative < 0.3 * rows[1].relative


def test_features_of_a_folder(tmp_path, backbone):
    place = folder(tmp_path / "a", ["rod", "plate"])
    backbone.train()
    found = folder_features(backbone, place, limit=6)
    assert found.features.shape == (6, 24) and sorted(found.labels) == ["plate"] * 3 + ["rod"] * 3
    assert backbone.training and not found.features.requires_grad
    again = embedder(backbone, limit=6)(place)
    assert torch.equal(found.features, again.features)
    assert not torch.allclose(found.features, folder_features(backbone, place, limit=6, at="output").features)


def test_a_nearer_folder_is_nearer(tmp_path, backbone):
    a = folder(tmp_path / "a", ["rod", "plate", "ball"], per_class=12)
    same = folder(tmp_path / "same", ["rod", "plate", "ball"], seed=1)
    other = folder(tmp_path / "other", ["plate", "ball"], seed=1, squeeze=0.2)
    near = distance(a, same, backbone, picture=tmp_path / "labels.png")
    far = distance(a, other, backbone)
    assert near.relative < 0.5 * far.relative and near == distance(a, same, backbone)
    with Image.open(tmp_path / "labels.png") as image:
        assert image.width > 300


def test_pictures_show_each_pair(tmp_path):
    table = np.full((3, 2), 9.0)
    table[2, 0] = table[0, 1] = 0.0
    file = draw_label_distances(tmp_path / "sub" / "a.png", table, ["p", "q", "r"], ["x", "y"])
    with Image.open(file) as opened:
        image = np.asarray(opened.convert("RGB")).astype(int)
    frame = (np.abs(image - [0xD5, 0x5E, 0x00]).sum(2) < 30).sum()
    assert frame > 200 and not list(file.parent.glob(".*"))
    with pytest.raises(UserError, match="table is 3 x 2"):
        draw_label_distances(file, table, ["p"], ["x", "y"])
    draw_label_distances(tmp_path / "big.png", np.ones((30, 26)), range(30), range(26))


def test_what_has_no_distance_is_said(tmp_path, backbone):
    place = folder(tmp_path / "a", ["rod", "plate"])
    with pytest.raises(UserError, match="lists no shapes"):
        folder_features(backbone, place, split="test")
    with pytest.raises(UserError, match="there is no folder"):
        folder_features(backbone, tmp_path / "nowhere")
