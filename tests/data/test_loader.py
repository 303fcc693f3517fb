"""Batches: seeded, packed, cut from large scans without losing or doubling a point."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from pointadapt.data import loader
from pointadapt.data.loader import ScanDataset, collate_batch, thin
from pointadapt.data.presets import eval_transform, outdoor_train
from pointadapt.data.scans import DataSet
from pointadapt.errors import UserError


def write(folder, labels=(1, 2), counts=(900, 700), **changes):
    rng = np.random.default_rng(0)
    names = [f"{i}.npz" for i in range(len(counts))]
    for name, num in zip(names, counts, strict=True):
        color = rng.integers(1, 256, (num, 3)).astype(np.uint8)
        np.savez(folder / name, coord=rng.random((num, 3)) * [9, 5, 2], color=color, label=rng.choice(labels, num))
    splits = {"train": names, "val": []}
    content = {"classes": {1: "a", 2: "b"}, "ignore": [7], "grid_size": 0.1, "scale": 0.2, "splits": splits, **changes}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    return DataSet.open(folder)


def equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_items_depend_on_seed_epoch_and_index_alone(tmp_path):
    dataset = write(tmp_path)
    first, second = (ScanDataset(dataset, "train", outdoor_train(dataset.voxel, 100), seed=3) for _ in range(2))
    _ = first[1], first[0]  # what was drawn before does not matter
    equal(first[0], second[0])
    first.set_epoch(5)
    assert (first[0]["coord"] != second[0]["coord"]).any()
    second.set_epoch(5)
    equal(first[0], second[0])
    other = ScanDataset(dataset, "train", outdoor_train(dataset.voxel, 100), seed=4)
    other.set_epoch(5)
    assert (first[0]["coord"] != other[0]["coord"]).any()


def test_workers_see_the_epoch_and_give_the_same(tmp_path):
    dataset = write(tmp_path)
    scans = ScanDataset(dataset, "train", outdoor_train(dataset.voxel, 100))
    batches = torch.utils.data.DataLoader(scans, 2, collate_fn=collate_batch, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        scans.set_epoch(epoch)
        (batch,) = list(batches)
        here = collate_batch([scans[0], scans[1]])
        assert torch.equal(batch["point"].feat, here["point"].feat)


def test_cache_on_disk_gives_the_same_and_is_found_again(tmp_path, monkeypatch):
    dataset = write(tmp_path)
    memory = ScanDataset(dataset, "train", outdoor_train(dataset.voxel, 100))
    disk = ScanDataset(dataset, "train", outdoor_train(dataset.voxel, 100), cache=tmp_path / "cache")
    for index in range(2):
        equal(memory[index], disk[index])
    monkeypatch.setattr(DataSet, "read", lambda *_: pytest.fail("read again in spite of the cache"))
    equal(memory[0], ScanDataset(dataset, "train", outdoor_train(dataset.voxel, 100), cache=tmp_path / "cache")[0])


def test_cache_notices_changed_files_and_settings(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    dataset = write(tmp_path)
    ScanDataset(dataset, "train", cache=cache)
    reads, read = [], DataSet.read
    monkeypatch.setattr(DataSet, "read", lambda self, path: reads.append(path.name) or read(self, path))
    write(tmp_path, counts=(901,))
    ScanDataset(dataset, "train", cache=cache)
    assert reads == ["0.npz"]
    ScanDataset(write(tmp_path, counts=(901,), scale=0.5), "train", cache=cache)
    assert reads == ["0.npz", "0.npz"]
    scaled = DataSet.open(tmp_path)
    for other in ({"seed": 1}, {"train": False}, {"limit": 100}):  # thinned by other draws, not thinned, in tiles
        for _ in range(2):
            ScanDataset(scaled, "train", cache=cache, **other)
    assert len(reads) == 5
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_cache_notices_new_labels_in_a_second_array(tmp_path):
    dataset, rows = write(tmp_path, counts=()), np.random.default_rng(0).random((50, 3))
    dataset = replace(dataset, splits={"train": ("a.npy",)})
    np.save(tmp_path / "a.npy", rows)
    for label in (1, 2):
        np.save(tmp_path / "a_labels.npy", np.full(50, label))
        os.utime(tmp_path / "a_labels.npy", (2e9 + label, 2e9 + label))
        sample = ScanDataset(dataset, "train", cache=tmp_path / "cache")[0]
        assert (sample["segment"] == label - 1).all()


@pytest.mark.parametrize("cache", [None, "cache"])
def test_large_scans_become_tiles_and_every_point_is_scored_once(tmp_path, cache):
    dataset = write(tmp_path, counts=(4000,))
    place = tmp_path / cache if cache else None
    whole = ScanDataset(dataset, "train", train=False, cache=place)
    tiles = ScanDataset(dataset, "train", train=False, limit=1000, cache=place)
    assert len(whole) == 1 and len(tiles) > 2
    scored = sum((np.bincount(item["segment"] + 1, minlength=3) for item in (tiles[i] for i in range(len(tiles)))), 0)
    np.testing.assert_array_equal(scored[1:], np.bincount(whole[0]["segment"] + 1, minlength=3)[1:])
    assert scored[0] > 0  # the margins
    for part in (ScanDataset(dataset, "train", limit=1000)[i] for i in range(3)):
        assert len(part["coord"]) <= 4000 / 2


def test_training_scans_are_thinned_evaluated_ones_are_not(tmp_path):
    dataset = write(tmp_path, counts=(6000,), grid_size=1.0)
    train, val = ScanDataset(dataset, "train"), ScanDataset(dataset, "train", train=False)
    assert len(val[0]["coord"]) == 6000 and len(train[0]["coord"]) < 600
    made = val[0]
    kept = [thin(made, dataset.voxel, np.random.default_rng(s)) for s in range(3)]
    assert len({keep["coord"].tobytes() for keep in kept}) == 3
    for keep in kept:
        cell = np.floor(keep["coord"].astype(float) / dataset.voxel).astype(int)
        _, count = np.unique(cell, axis=0, return_counts=True)
        assert count.max() == loader.KEEP
        assert len(count) == len(np.unique(np.floor(made["coord"].astype(float) / dataset.voxel), axis=0))


def test_as_many_points_of_a_scan_are_labelled_as_asked_however_large_it_is(tmp_path):
    dataset = write(tmp_path)
    whole, cut = (ScanDataset(dataset, "train", points=20, limit=limit) for limit in (500_000, 100))
    assert len(whole) == 2 < len(cut)
    for items in (whole, cut):
        assert sum((items[i]["segment"] >= 0).sum() for i in range(len(items))) == 40
    more, other = (ScanDataset(dataset, "train", points=30, seed=seed)[0]["segment"] for seed in (0, 1))
    assert (more[whole[0]["segment"] >= 0] >= 0).all() and len(other) == len(more) and (other != more).any()


def test_listed_points_belong_to_one_of_several_scans_of_a_name(tmp_path):
    for area in ("Area_1", "Area_2"):
        (tmp_path / area).mkdir()
        write(tmp_path / area, counts=(300,))
    splits = {"train": ("Area_1/0.npz", "Area_2/0.npz")}
    dataset = replace(DataSet.open(tmp_path / "Area_1"), folder=tmp_path, splits=splits)
    rows = {f"Area_{area}/0": np.arange(10 * area) for area in (1, 2)}
    items = ScanDataset(dataset, "train", points=(tmp_path / "points.json", rows))
    assert [(items[i]["segment"] >= 0).sum() for i in range(2)] == [10, 20]
    with pytest.raises(UserError, match=r"points.json lists '0', which may be Area_1/0.npz or Area_2/0.npz"):
        ScanDataset(dataset, "train", points=(tmp_path / "points.json", {"0": np.arange(3)}))


def test_nothing_labelled_or_nothing_listed(tmp_path):
    with pytest.raises(UserError, match=r"dataset.yaml: the split 'val' lists no scans"):
        ScanDataset(write(tmp_path), "val")
    with pytest.raises(UserError, match=r"no scan of the split 'train' has a labelled point"):
        ScanDataset(write(tmp_path, labels=(7, -1)), "train")
    with pytest.raises(UserError, match=r"0.npz: label id 9 is neither"):
        ScanDataset(write(tmp_path, labels=(1, 9)), "train")
    ScanDataset(write(tmp_path, labels=(1,)), "train")  # a class without points is fine


def test_batches_are_packed(tmp_path):
    dataset = write(tmp_path)
    scans = ScanDataset(dataset, "train", eval_transform(dataset.voxel), train=False)
    samples = [scans[0], scans[1]]
    batch = collate_batch(samples, grid_size=dataset.voxel)
    point = batch["point"]
    assert point.counts == [len(s["coord"]) for s in samples] and point.grid_size == dataset.voxel
    assert point.feat.shape == (len(point), 9) and point.feat.dtype == torch.float32
    assert point.grid_coord.dtype == torch.int64 and batch["segment"].dtype == torch.int64
    for cloud, sample, inverse, origin in zip(
        point.split(), samples, batch["inverse"], batch["origin_segment"], strict=True
    ):
        np.testing.assert_array_equal(cloud.coord, sample["coord"])
        assert len(inverse) == len(origin) and int(inverse.max()) == len(cloud) - 1
    assert batch["name"] == ["0.npz", "1.npz"]


def test_mix3d_merges_pairs():
    samples = [{"coord": np.zeros((n, 3), np.float32), "feat": np.zeros((n, 9), np.float32)} for n in (3, 5, 7, 2, 4)]
    rng = np.random.default_rng(0)
    assert collate_batch(samples[:2], 1.0, rng)["point"].counts == [8]
    assert collate_batch(samples[:4], 1.0, rng)["point"].counts == [8, 9]
    assert collate_batch(samples, 1.0, rng)["point"].counts == [8, 9, 4]
    assert collate_batch(samples[:1], 1.0, rng)["point"].counts == [3]
    assert collate_batch(samples)["point"].counts == [3, 5, 7, 2, 4]
    merged = [collate_batch(samples[:2], 0.3, rng)["point"].num_clouds == 1 for _ in range(500)]
    assert np.mean(merged) == pytest.approx(0.3, abs=0.06)


def test_workers_fill_the_cache(tmp_path):
    dataset = write(tmp_path, counts=(900, 700, 800))
    alone = ScanDataset(dataset, "train", cache=tmp_path / "alone")
    shared = ScanDataset(dataset, "train", cache=tmp_path / "shared", workers=2)
    for index in range(3):
        equal(alone[index], shared[index])
    (tmp_path / "1.npz").write_bytes(b"broken")
    with pytest.raises(UserError, match="1.npz: not readable") as caught:
        ScanDataset(dataset, "train", cache=tmp_path / "other", workers=2)
    assert "\n" not in str(caught.value)
