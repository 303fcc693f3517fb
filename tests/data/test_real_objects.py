"""Real shapes, where POINTADAPT_REAL_DATA names a folder with them (see CONTRIBUTING)."""

import os
from pathlib import Path

import numpy as np
import pytest

from pointadapt.data.object_folders import find_objects
from pointadapt.data.object_set import ObjectSet
from pointadapt.data.object_survey import init_objects, shapes_by_class
from pointadapt.data.objects import ObjectItems, collate_objects

ROOT = Path(os.environ.get("POINTADAPT_REAL_DATA", "nowhere"))
MODELNET10 = sorted(ROOT.glob("08_*/*.npz"))
CAP = sorted(ROOT.glob("09_*/*.npz"))

pytestmark = pytest.mark.data


def linked(folder, files):
    for file in files:
        (folder / file.name).symlink_to(file)
    return ObjectSet.open(init_objects(folder, find_objects(folder)))


@pytest.mark.skipif(not MODELNET10, reason="POINTADAPT_REAL_DATA has no ModelNet10")
def test_modelnet10(tmp_path):
    dataset = linked(tmp_path, MODELNET10)
    counts = shapes_by_class(dataset)
    assert list(counts["train"].values()) == [106, 515, 889, 200, 200, 465, 200, 680, 392, 344]
    assert list(counts["test"].values()) == [50, 100, 100, 86, 86, 100, 86, 100, 100, 100]
    test = ObjectItems(dataset, "test")
    assert len(test) == 908 and len(dataset.items("train")) == 3991
    batch = collate_objects([test[i] for i in range(0, 908, 100)])
    assert batch["point"].counts == [1024] * 10
    beds = np.concatenate([test[i]["coord"] for i in np.flatnonzero(test.targets == 1)])
    assert beds.std(0).argmin() == 1  # beds lie flat: y is up


@pytest.mark.skipif(not CAP, reason="POINTADAPT_REAL_DATA has no caps")
def test_caps(tmp_path):
    dataset = linked(tmp_path, CAP)
    assert shapes_by_class(dataset) == {"train": {"Cap": 5}, "test": {"Cap": 11}}
    items = ObjectItems(dataset, "test")
    batch = collate_objects([items[i] for i in range(11)])
    assert batch["point"].counts == [2048] * 11 and set(batch["segment"].tolist()) == {6, 7}
    assert batch["point"].extra["category"].tolist() == [2] * 11
