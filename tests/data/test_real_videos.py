"""Real point videos, where POINTADAPT_REAL_DATA names a folder with them (see CONTRIBUTING)."""

import os
from pathlib import Path

import numpy as np
import pytest

from pointadapt.data.video_folders import find_videos
from pointadapt.data.video_set import VideoSet
from pointadapt.data.video_survey import init_videos, videos_by_class
from pointadapt.data.videos import VideoItems, collate_videos

ROOT = Path(os.environ.get("POINTADAPT_REAL_DATA", "nowhere"))
RADHAR = sorted(ROOT.glob("10_*/radhar_*.npz"))

pytestmark = pytest.mark.data


@pytest.mark.skipif(not RADHAR, reason="POINTADAPT_REAL_DATA has no RadHAR")
def test_radhar(tmp_path):
    for file in RADHAR:
        (tmp_path / file.name).symlink_to(file)
    dataset = VideoSet.open(init_videos(tmp_path, find_videos(tmp_path)))
    counts = videos_by_class(dataset)
    assert list(counts["train"]) == ["boxing", "jack", "jump", "squats", "walk"] == list(dataset.classes)
    assert list(counts["train"].values()) == [23, 26, 24, 27, 31] and list(counts["test"].values()) == [
        13,
        9,
        10,
        9,
        14,
    ]
    train, test = VideoItems(dataset, "train", need=32), VideoItems(dataset, "test", need=32)
    assert len(train) == 131 and len(test.videos) == 55 and not test.dropped
    assert sum(video.length for video in train.videos) == 78_812 and sum(v.length for v in test.videos) == 33_090
    batch = collate_videos([test[i] for i in range(0, len(test), 40)])
    assert min(batch["point"].counts) >= 32 and max(batch["point"].counts) <= 128
    raw = VideoItems(VideoSet.from_dict({**dataset.as_dict(), "box": {}}, tmp_path), "test")
    row = next(i for i, video in enumerate(raw.videos) if has_outlier(raw, i))
    number = next(i for i in range(raw.length(row)) if np.abs(raw.frame(row, i)["coord"]).max() > 10)
    kept = test.frame(row, number)["coord"]
    assert np.abs(kept).max() <= 6 and len(kept) < len(raw.frame(row, number)["coord"])
    tall = np.concatenate([train.frame(row, 30)["coord"] for row in range(20)])
    assert tall[:, 1].min() < -0.3 and tall[:, 2].max() < 4  # y is up: heights around the antenna's


def has_outlier(items, row):
    return any(np.abs(items.frame(row, i)["coord"]).max() > 10 for i in range(items.length(row)))
