"""Few-shot episodes and shares of labels: stratified, deterministic, nested, readable back from a yaml."""

from collections import Counter

import numpy as np
import pytest

from pointadapt.data.episodes import few_shot, subset
from pointadapt.data.object_set import ObjectSet
from pointadapt.data.objects import ObjectItems
from pointadapt.errors import UserError
from shapes import stack


@pytest.fixture
def dataset(tmp_path):
    for split, each in (("train", 20), ("test", 22)):
        np.savez(tmp_path / f"{split}.npz", xyz=stack(7 * each, 70), label=np.repeat(np.arange(7), each))
    content = {"task": "classification", "classes": list("abcdefg"), "points": 64, "holdout": 0.1}
    return ObjectSet.from_dict({**content, "splits": {s: [f"{s}.npz"] for s in ("train", "test")}}, tmp_path)


def targets(dataset, split):
    return Counter(item.target for item in dataset.items(split))


def test_episode(dataset):
    episode = few_shot(dataset, 5, 3, 4)
    learned, asked = targets(episode, "train"), targets(episode, "test")
    assert (
        len(learned) == 5
        and set(learned.values()) == {3}
        and set(asked.values()) == {20}
        and set(learned) == set(asked)
    )
    assert episode == few_shot(dataset, 5, 3, 4) and episode.items("val") == [] and episode.classes == dataset.classes
    again = ObjectSet.from_dict(episode.as_dict(), dataset.folder)
    assert again == episode and len(ObjectItems(again, "train")) == 15


def test_folds_differ(dataset):
    folds = [few_shot(dataset, 5, 3, fold) for fold in range(10)]
    assert len({fold.splits["train"] for fold in folds}) == 10
    assert len({tuple(sorted(targets(fold, "train"))) for fold in folds}) > 3


@pytest.mark.parametrize(
    "way, shot, fold, said", [(5, 3, 10, "no fold 10"), (8, 1, 0, "no 8-way"), (5, 21, 0, "21-shot")]
)
def test_impossible_episodes(dataset, way, shot, fold, said):
    with pytest.raises(UserError, match=said):
        few_shot(dataset, way, shot, fold)


def test_share_of_labels(dataset):
    whole = {item.name for item in dataset.items("train")}
    small, large = (subset(dataset, share, 1) for share in (0.05, 0.2))
    assert set(targets(small, "train").values()) == {1} and set(targets(large, "train").values()) == {4}
    assert {i.name for i in small.items("train")} < {i.name for i in large.items("train")} < whole
    assert [i.name for i in large.items("val")] == [i.name for i in dataset.items("val")]  # the same held-out shapes
    assert large.splits["test"] == dataset.splits["test"] and targets(subset(dataset, 1.0), "train").total() == len(
        whole
    )
    assert subset(dataset, 0.2, 2).splits["train"] != large.splits["train"]
    for share in (0, 1.5):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            subset(dataset, share)
