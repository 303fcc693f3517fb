"""dataset.yaml of videos: every key checked with one sentence, all kinds of data told apart, labels looked up."""

import numpy as np
import pytest
import yaml

from moving import action_set, write_actions
from pointadapt.data.object_set import ObjectSet
from pointadapt.data.open import dataset_from_dict, open_dataset
from pointadapt.data.scans import DataSet
from pointadapt.data.video_set import VideoSet
from pointadapt.errors import UserError

GOOD = {"task": "action", "classes": ["sit", "stand"]}


def from_dict(content, **more):
    return VideoSet.from_dict({**content, **more}, "folder", "f.yaml")


def test_round_trip():
    full = from_dict(
        {"task": "video_segmentation", "classes": ["road", "car"]},
        ids={3: "road", 10: "car", 11: "car"},
        ignore=[0],
        folders={"a": "car"},
        label_field="semantic",
        splits={"train": ["a*.npz"], "val": None},
        holdout=0.25,
        frames=3,
        step=2,
        stride=1,
        merge=2,
        points=64,
        columns=[4, 5, 6],
        box={"x": [0, 6]},
        up="-y",
        normalize="repo",
        scale=0.5,
        short_video="drop",
        empty_frames="repeat",
        gaps=True,
        halves=1,
        transform="synthia",
    )
    assert full.span == 5 and full.names == ["road", "car"] and full.box == {"x": (0.0, 6.0)}
    content = full.as_dict()
    assert VideoSet.from_dict(yaml.safe_load(yaml.safe_dump(content)), "folder") == full
    assert dataset_from_dict(content, "folder") == full


def test_labels_become_indices():
    named = from_dict(GOOD, ids={7: "stand", 3: "sit"}, ignore=[9], folders={"s": "sit"})
    assert [named.index(x) for x in ("sit", "stand", "s", 7, "3", np.int64(9), -1)] == [0, 1, 0, 1, 0, -1, -1]
    assert named.indices(np.array(["stand", "3", "-1"])).tolist() == [1, 0, -1]
    counted = from_dict(GOOD, ignore=[5])
    assert [counted.index(x) for x in (0, 1, 5)] == [0, 1, -1]
    for dataset, label in ((named, 0), (named, "walk"), (counted, 2)):
        with pytest.raises(UserError, match=f"^clip: unknown label '{label}': it is none of sit, stand; add it to"):
            dataset.index(label, "clip")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task": "actions"}, "`task` must be one of action, action_segmentation, video_segmentation"),
        ({"classes": ["sit"]}, "`classes` must be a list of at least two names"),
        ({"ids": {1: "walk"}}, "`ids.1` is 'walk', which is none of sit, stand"),
        ({"ids": {"x": "sit"}}, "`ids` must be whole numbers"),
        ({"ids": {1: "sit"}, "ignore": [1]}, "label id 1 is both in `ids` and in `ignore`"),
        ({"folders": {"a": "walk"}}, "`folders.a` is 'walk'"),
        ({"label_pattern": "A\\d+"}, "`label_pattern` must be a regular expression with one group"),
        ({"label_pattern": "(("}, "`label_pattern` must be a regular expression"),
        ({"splits": {"exam": []}}, "`splits` must be lists of paths under train, val, test"),
        ({"splits": {"train": ["a"], "test": ["a"]}}, "a is listed twice in `splits`; a video learned from"),
        ({"frames": 1}, "`frames` must be a whole number of frames, at least 2"),
        ({"step": 0}, "`step` must be a whole number of frames, at least 1"),
        ({"stride": -1}, "`stride` must be a whole number of frames, at least 0"),
        ({"merge": True}, "`merge` must be a whole number of frames, at least 1"),
        ({"points": 0}, "`points` must be a whole number of points above 0"),
        ({"columns": [0, 1]}, "`columns` must be three different numbers of columns"),
        ({"columns": [0, 1, 1]}, "`columns` must be three different numbers of columns"),
        ({"box": {"t": [0, 1]}}, "`box` must be axes with their limits"),
        ({"box": {"x": [1, 0]}}, r"`box.x` must be \[low, high\]"),
        ({"up": "w"}, "`up` must be one of"),
        ({"normalize": "frame"}, "`normalize` must be one of clip_sphere, repo"),
        ({"scale": 0}, "`scale` must be a number above 0"),
        ({"short_video": "hide"}, "`short_video` must be one of pad_last, drop"),
        ({"empty_frames": "skip"}, "`empty_frames` must be one of refuse, repeat"),
        ({"gaps": "yes"}, "`gaps` must be true or false"),
        ({"halves": 1.0}, "`halves` is for `task: video_segmentation`"),
        ({"color": True}, "`color` is for `task: video_segmentation`"),
        ({"color": "rgb"}, "`color` must be true or false"),
        ({"halves": -1}, "`halves` must be a width of context"),
        ({"transform": "reverse"}, "`transform` must be one of scale,"),
        ({"holdout": 1}, "`holdout` must be a share"),
        ({"frame": 3}, "unknown key 'frame'; did you mean 'frames'"),
    ],
)
def test_every_key_is_checked(change, message):
    with pytest.raises(UserError, match=f"^f.yaml: {message}"):
        from_dict(GOOD, **change)


@pytest.mark.parametrize("key", ["task", "classes"])
def test_needed_keys(key):
    with pytest.raises(UserError, match=f"the key '{key}' is missing; write the file anew"):
        from_dict({k: v for k, v in GOOD.items() if k != key})
    with pytest.raises(UserError, match="it must hold keys such as task and classes, not list"):
        VideoSet.from_dict([], "folder", "f.yaml")


def test_kinds_are_told_apart(tmp_path):
    write_actions(tmp_path, 1, 1)
    assert action_set(tmp_path) == open_dataset(tmp_path) == open_dataset(tmp_path / "dataset.yaml")
    assert isinstance(dataset_from_dict({"classes": {1: "a"}}, "f"), DataSet)
    assert isinstance(dataset_from_dict({"task": "classification", "classes": ["a", "b"]}, "f"), ObjectSet)
    with pytest.raises(UserError, match="`task` must be one of classification, parts, action, .*, not 'detect'"):
        dataset_from_dict({"task": "detect"}, "f")
    with pytest.raises(UserError, match="no dataset.yaml here; write one with: pointadapt init"):
        VideoSet.open(tmp_path / "train")
    with pytest.raises(UserError, match="there is no folder"):
        VideoSet.open(tmp_path / "nowhere")


def test_holdout_is_drawn_by_name_and_class(tmp_path):
    write_actions(tmp_path, 5, 1)
    dataset = action_set(tmp_path, holdout=0.4)
    train, val = dataset.videos("train"), dataset.videos("val")
    assert [v.target for v in val] == [0, 0, 1, 1] and len(train) == 6
    assert not {v.name for v in train} & {v.name for v in val}
    before = {v.name for v in val}
    write_actions(tmp_path, 5, 3)
    assert {v.name for v in dataset.videos("val")} == before
    with pytest.raises(UserError, match="no split 'exam'"):
        dataset.videos("exam")
