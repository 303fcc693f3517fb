"""Parts of a data set to learn from: few-shot episodes, and a share of the labels."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from pointadapt.data.object_files import Item
from pointadapt.data.object_set import ObjectSet, draw
from pointadapt.errors import UserError

#: Folds of the published protocol, and test shapes of each class of an episode.
FOLDS = 10
QUERIES = 20


def few_shot(dataset: ObjectSet, way: int, shot: int, fold: int) -> ObjectSet:
    """One of ten episodes: ``way`` classes, ``shot`` shapes of each to learn from, 20 of each to test on.

    The draw depends on (way, shot, fold) and the shapes' names alone. ``classes`` stay those of the whole data set, as
    in the published protocol, whose heads keep 40 outputs. For the published draw list its pickles in ``splits``:
    ``train: [5way_10shot/0.pkl#train]``.
    Raises UserError when classes or shapes are too few, or the fold is not 0 to 9.
    """
    if not 0 <= fold < FOLDS:
        raise UserError(f"there is no fold {fold} of a few-shot episode; there are 0 to {FOLDS - 1}")
    test = "test" if dataset.sources("test") else "val"
    pools = {"train": by_target(dataset.items("train")), "test": by_target(dataset.items(test))}
    fit = [
        target
        for target, items in pools["train"].items()
        if len(items) >= shot and len(pools["test"].get(target, ())) >= QUERIES
    ]
    if way < 2 or shot < 1 or len(fit) < way:
        raise UserError(
            f"{dataset.file}: no {way}-way {shot}-shot episode: {len(fit)} classes have {shot} shapes in train and "
            f"{QUERIES} in {test}"
        )
    rng = np.random.default_rng([way, shot, fold, zlib.crc32(b"episode")])
    chosen = sorted(rng.permutation(sorted(fit))[:way].tolist())
    seed = int(rng.integers(2**31))
    splits = {
        split: tuple(item.name for target in chosen for item in lowest(pools[split][target], count, seed))
        for split, count in (("train", shot), ("test", QUERIES))
    }
    return replace(dataset, splits=splits, holdout=0.0)


def subset(dataset: ObjectSet, share: float, seed: int = 0) -> ObjectSet:
    """The data set with a ``share`` of train's shapes of each class, at least one; val and test stay.

    A smaller share with the same seed is part of a larger one. Raises UserError for a share that is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"share is {share}; it must be above 0 and at most 1")
    kept: set[str] = set()
    items = dataset.items("train")
    for same in by_target(items).values():
        kept.update(item.name for item in lowest(same, max(round(share * len(same)), 1), seed))
    val = tuple(item.name for item in dataset.items("val"))
    splits = {**dataset.splits, "train": tuple(item.name for item in items if item.name in kept), "val": val}
    return replace(dataset, splits=splits, holdout=0.0)


def by_target(items: list[Item]) -> dict[int, list[Item]]:
    found: dict[int, list[Item]] = {}
    for item in items:
        found.setdefault(item.target, []).append(item)
    return dict(sorted(found.items()))


def lowest(items: list[Item], count: int, seed: int) -> list[Item]:
    """``count`` items at random, by the hash of seed and name."""
    return sorted(items, key=lambda item: draw(item.name, seed))[:count]
