"""Fewer labels to learn from: a share of the training items, or a number of labelled points per scan."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from pointadapt.data.episodes import subset
from pointadapt.data.object_set import ObjectSet
from pointadapt.data.scans import DataSet
from pointadapt.errors import UserError

ALL = "100%"


def parse_labels(text: str) -> tuple[float, int | None]:
    """(share of the training items in (0, 1], labelled points per scan or None) of "10%" or "200pts".

    Raises UserError for any other text.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|pts)\s*", text)
    if not found or not 0 < float(found[1]) <= (100 if found[2] == "%" else 1e9):
        raise UserError(
            f"labels is {text!r}; write a share of the training items such as 10%, or points per scan: 200pts"
        )
    return (float(found[1]) / 100, None) if found[2] == "%" else (1.0, int(float(found[1])))


def fewer_items(dataset: Any, share: float, seed: int) -> Any:
    """The data set with a share of its training items, at least one (of each class of objects); val and test stay.

    Which ones depends on the seed, so that runs with several seeds show what the choice does; a smaller share with
    the same seed is part of a larger one.
    """
    if share == 1:
        return dataset
    if isinstance(dataset, ObjectSet):
        return subset(dataset, share, seed)
    assert isinstance(dataset, DataSet)
    scans = dataset.splits.get("train", ())
    order = np.random.default_rng([seed, 41]).permutation(len(scans))
    kept = sorted(order[: max(1, round(share * len(scans)))].tolist())
    return replace(dataset, splits={**dataset.splits, "train": tuple(scans[i] for i in kept)})


def keep_labels(segment: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A copy of labels [N] in which ``count`` random ones of those that are not -1 are left."""
    labelled = np.flatnonzero(segment >= 0)
    kept = np.random.default_rng([seed, 43]).permutation(labelled)[:count]
    fewer = np.full_like(segment, -1)
    fewer[kept] = segment[kept]
    return fewer
