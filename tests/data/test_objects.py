"""ObjectItems and batches: seeded, order-free in evaluation, cached, whatever the sizes of shapes."""

import os

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pointadapt.data.corruptions import corrupt
from pointadapt.data.object_set import ObjectSet
from pointadapt.data.objects import ObjectItems, collate_objects
from pointadapt.data.transforms import Compose
from shapes import class_folders, cloud, stack


def make(tmp_path, coord, label=None, **more):
    np.savez(tmp_path / "a.npz", xyz=coord, label=np.arange(len(coord)) % 2 if label is None else label)
    content = {"task": "classification", "classes": ["a", "b"], "splits": {"train": ["a.npz"]}, "points": 64, **more}
    return ObjectSet.from_dict(content, tmp_path, tmp_path / "dataset.yaml")


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in ("coord", "index"))


def test_training_draws_anew_each_epoch_and_the_same_again(tmp_path):
    dataset = make(tmp_path, stack(3))
    items = ObjectItems(dataset, "train", seed=5)
    first = items[1]
    assert first["coord"].shape == (64, 3) and first["coord"].dtype == np.float32 and first["label"] == 1
    assert (
        first["name"] == "a.npz#1" and same(first, items[1]) and same(first, ObjectItems(dataset, "train", seed=5)[1])
    )
    items.set_epoch(1)
    assert not same(first, items[1]) and not same(first, ObjectItems(dataset, "train", seed=6)[1])
    assert len(ObjectItems(dataset, "train", repeat=3)) == 9
    with pytest.raises(IndexError):
        items[3]


def test_training_draws_from_the_published_pool(tmp_path):
    items = ObjectItems(make(tmp_path, stack(1)), "train")
    assert len(items.shape(0)["coord"]) == 75  # 64 * 75 / 64, as 1200 for 1024
    seen = set()
    for epoch in range(40):
        items.set_epoch(epoch)
        seen.update(items[0]["index"].tolist())
    assert seen == set(items.shape(0)["index"].tolist())


def test_evaluation_does_not_depend_on_the_order_of_points(tmp_path):
    coord = stack(2)
    shuffled = np.random.default_rng(0).permutation(200)
    items = ObjectItems(make(tmp_path, coord), "train", train=False)
    (tmp_path / "b").mkdir()
    again = ObjectItems(make(tmp_path / "b", coord[:, shuffled]), "train", train=False)
    for i in range(2):
        assert np.array_equal(items[i]["coord"], again[i]["coord"]) and len(items[i]["coord"]) == 64
        assert np.array_equal(coord[i][items[i]["index"]], coord[i][shuffled][again[i]["index"]])
    items.set_epoch(3)
    assert np.array_equal(items[0]["coord"], again[0]["coord"])


def test_shapes_of_any_size_side_by_side(tmp_path):
    """A shape's points do not depend on the shapes it is thinned with; small ones are taken whole."""
    sizes = [30, 64, 70, 75, 200, 90]
    ptr = np.cumsum([0, *sizes])
    coord = np.concatenate([cloud(i, n) for i, n in enumerate(sizes)])
    np.savez(tmp_path / "a.npz", xyz=coord, shape_ptr=ptr, label=[0, 1, 0, 1, 0, 1])
    content = {"task": "classification", "classes": ["a", "b"], "splits": {"test": ["a.npz"]}, "points": 64}
    items = ObjectItems(ObjectSet.from_dict(content, tmp_path), "test")
    assert [len(s["coord"]) for s in items] == [30, 64, 64, 64, 64, 64]
    for i in range(6):
        alone = ObjectItems(ObjectSet.from_dict({**content, "splits": {"test": [f"a.npz#{i}"]}}, tmp_path), "test")
        assert same(alone[0], items[i]) and alone[0]["name"] == items[i]["name"]
        assert len(set(items[i]["index"].tolist())) == len(items[i]["index"])


def test_batches():
    samples = [{"coord": cloud(i, n), "label": i, "name": str(i), "index": np.arange(n)} for i, n in enumerate((5, 9))]
    batch = collate_objects(samples)
    point = batch["point"]
    assert (
        point.offset.tolist() == [5, 14] and torch.equal(point.feat, point.coord) and point.coord.dtype == torch.float32
    )
    assert batch["label"].tolist() == [0, 1] and batch["name"] == ["0", "1"] and "segment" not in batch
    assert torch.equal(point.coord[5:], torch.from_numpy(samples[1]["coord"])) and len(batch["index"][1]) == 9
    parts = [{"coord": cloud(0, 5), "segment": np.arange(5), "category": 2, "name": "x"}]
    batch = collate_objects(parts)
    assert batch["segment"].tolist() == [0, 1, 2, 3, 4] and batch["point"].extra["category"].tolist() == [2]
    with pytest.raises(ValueError, match="at least one"):
        collate_objects([])


def test_workers_give_the_same_as_none(tmp_path):
    items = ObjectItems(make(tmp_path, stack(4)), "train")
    loader = DataLoader(items, 2, collate_fn=collate_objects, num_workers=1)
    for epoch in range(2):
        items.set_epoch(epoch)
        got = torch.cat([batch["point"].coord for batch in loader])
        assert torch.equal(got, collate_objects([items[i] for i in range(4)])["point"].coord)


def test_cache_is_found_again_and_renewed(tmp_path):
    dataset, cache = make(tmp_path, stack(3)), tmp_path / "cache"
    plain = ObjectItems(dataset, "train", train=False)
    for _ in range(2):
        cached = ObjectItems(dataset, "train", train=False, cache=cache)
        assert all(same(cached[i], plain[i]) for i in range(3)) and len(list(cache.iterdir())) == 1
    assert isinstance(cached.packed["coord"], np.memmap)
    ObjectItems(dataset, "train", train=True, cache=cache)  # the same shapes
    assert len(list(cache.iterdir())) == 1
    changed = make(tmp_path, stack(3, seed=9))
    again = ObjectItems(changed, "train", train=False, cache=cache)
    assert not same(again[0], plain[0]) and len(list(cache.iterdir())) == 2


def test_cache_notices_new_parts_in_a_second_array(tmp_path):
    dataset = ObjectSet(tmp_path, "parts", ("a", "b"), {"thing": (0, 1)}, {}, {"train": ("thing/1.npy",)}, points=64)
    (tmp_path / "thing").mkdir()
    np.save(tmp_path / "thing" / "1.npy", cloud(0, 50))
    for part in (0, 1):
        np.save(tmp_path / "thing" / "1_labels.npy", np.full(50, part))
        os.utime(tmp_path / "thing" / "1_labels.npy", (2e9 + part, 2e9 + part))
        assert (ObjectItems(dataset, "train", cache=tmp_path / "cache")[0]["segment"] == part).all()


def test_corrupted_items(tmp_path):
    dataset = make(tmp_path, stack(2), splits={"test": ["a.npz"]})
    clean = ObjectItems(dataset, "test")
    rough = ObjectItems(dataset, "test", corruption=("dropout_global", 5))
    assert len(rough[0]["coord"]) == 16 and "index" not in rough[0] and rough[0]["label"] == clean[0]["label"]
    assert np.array_equal(rough[1]["coord"], rough[1]["coord"])
    kept = {tuple(row) for row in clean[0]["coord"].tolist()}
    assert {tuple(row) for row in rough[0]["coord"].tolist()} < kept
    noisy = ObjectItems(dataset, "test", corruption=("jitter", 1))
    steps = [noisy[i]["coord"] - clean[i]["coord"] for i in range(2)]
    assert not np.allclose(*steps)  # a draw of its own for each shape
    assert not np.array_equal(noisy[0]["coord"], corrupt(clean[0]["coord"], "jitter", 1, 0))


def test_own_transform_and_targets(tmp_path):
    items = ObjectItems(make(tmp_path, stack(3)), "train", transform=Compose([]))
    assert len(items[0]["coord"]) == 75 and items.targets.tolist() == [0, 1, 0]


def test_held_out_share(tmp_path):
    class_folders(tmp_path, {"a": 10, "b": 1})
    content = {"task": "classification", "classes": ["a", "b"], "splits": {"train": ["a", "b"]}, "holdout": 0.3}
    dataset = ObjectSet.from_dict(content, tmp_path)
    train, val = ([item.name for item in dataset.items(split)] for split in ("train", "val"))
    assert len(train) == 8 and len(val) == 3 and "b/s0.npy" in train and not set(train) & set(val)
    listed = ObjectSet.from_dict({**content, "splits": {"train": ["a"], "val": ["b"]}}, tmp_path)
    assert len(listed.items("train")) == 10  # val is listed: nothing is taken from train
