"""Clips of videos: which frames and points they show, labels, normalisation, bounded memory, packing, bad input."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from moving import CLASSES, action_set, moving, ragged, write_actions, write_frame, write_npz, write_video
from pointadapt.data import video_files
from pointadapt.data.video_folders import leaves
from pointadapt.data.videos import VideoItems, VideoSet, clip_starts, collate_videos, videos_at
from pointadapt.errors import UserError


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert np.array_equal(a[key], b[key]), key


# --- which clips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [3, 6, 7, 24, 47, 50])
@pytest.mark.parametrize("frames, step", [(4, 1), (4, 2), (24, 2)])
def test_number_of_clips_is_the_published_one(length, frames, step):
    published = max(0, length - step * (frames - 1))
    starts = clip_starts(length, frames, step, 1)
    assert starts == (list(range(published)) if published else [0])


@pytest.mark.parametrize("length", range(2, 30))
@pytest.mark.parametrize("frames, step, stride", [(4, 1, 0), (4, 1, 1), (4, 1, 9), (4, 3, 0), (5, 2, 3)])
def test_segmentation_covers_every_frame(length, frames, step, stride):
    starts = clip_starts(length, frames, step, stride, cover=True)
    shown = {s + step * t for s in starts for t in range(frames)}
    assert set(range(length)) <= shown and len(set(starts)) == len(starts)
    if length >= step * frames:
        assert max(shown) == length - 1
    if stride == 0 and length % frames == 0 and step == 1:
        assert starts == list(range(0, length, frames))


def test_evaluation_shows_all_clips_of_each_video_in_order(tmp_path):
    write_actions(tmp_path, 1, 2, frames=7)
    items = VideoItems(action_set(tmp_path, stride=1), "test")
    assert len(items) == 4 * 4 and len(items.videos) == 4
    assert [items[i]["name"] for i in range(5)] == [*(f"test/left/v0@{s}" for s in range(4)), "test/left/v1@0"]
    assert [items[i]["frames"].tolist() for i in (0, 3)] == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert [items[i]["label"] for i in range(16)] == [0] * 8 + [1] * 8 and items.targets.tolist() == [0, 0, 1, 1]
    assert [clip.video for clip in items.clips] == sorted(clip.video for clip in items.clips)
    assert len(VideoItems(action_set(tmp_path, step=2, stride=1), "test")) == 4 * 1  # one clip reaches over all seven
    whole = VideoItems(action_set(tmp_path), "test")  # one clip behind the other, the last one pulled back
    assert [whole[i]["frames"].tolist() for i in (0, 1)] == [[0, 1, 2, 3], [3, 4, 5, 6]] and len(whole) == 4 * 2


def test_evaluation_is_the_same_every_time_and_knows_no_order_in_files(tmp_path):
    write_actions(tmp_path / "a", 1, 1)
    write_actions(tmp_path / "b", 1, 1)
    for path in (tmp_path / "b").rglob("*.npy"):
        np.save(path, np.load(path)[::-1])
    a, b = (VideoItems(action_set(tmp_path / name), "test", seed=3) for name in "ab")
    again = VideoItems(action_set(tmp_path / "a"), "test", seed=3)
    again.set_epoch(5)
    for i in range(len(a)):
        same(a[i], again[i])
        assert np.array_equal(a[i]["coord"], b[i]["coord"]) and not np.array_equal(a[i]["index"], b[i]["index"])
    assert not np.array_equal(VideoItems(action_set(tmp_path / "a"), "test", seed=4)[0]["coord"], a[0]["coord"])


def test_a_frame_shows_the_same_points_in_every_clip(tmp_path):
    write_actions(tmp_path, 1, 1, frames=5)
    dataset = action_set(tmp_path, stride=1, normalize="repo", points=7)
    first, second = (VideoItems(dataset, "test")[i] for i in (0, 1))
    assert np.array_equal(first["coord"][7:], second["coord"][:-7])  # frames 1 to 3


def test_training_draws_clips_by_seed_epoch_and_index(tmp_path):
    write_actions(tmp_path, 3, 1, frames=30)
    dataset = action_set(tmp_path)
    items, again = VideoItems(dataset, "train"), VideoItems(dataset, "train")
    assert len(items) == 6 and len(VideoItems(dataset, "train", repeat=3)) == 18
    same(items[2], again[2])
    starts = set()
    for epoch in range(30):
        items.set_epoch(epoch)
        starts.add(int(items[2]["frames"][0]))
    assert len(starts) > 12 and min(starts) < 5 and max(starts) > 20
    short = VideoItems(action_set(tmp_path, frames=29), "train")  # starts at 0 or 1, its last frame is seen
    assert {int(short.draw(0, np.random.default_rng(seed))["frames"][0]) for seed in range(12)} == {0, 1}
    again.set_epoch(29)
    same(items[2], again[2])
    assert items[2]["counts"].tolist() == [16] * 4 and items[2]["label"] == 0
    with pytest.raises(IndexError):
        items[6]


def test_workers_give_the_same_clips(tmp_path):
    write_actions(tmp_path, 2, 1)
    items = VideoItems(action_set(tmp_path), "train")
    loader = DataLoader(items, batch_size=2, collate_fn=collate_videos, num_workers=1)
    items.set_epoch(3)
    batches = list(loader)
    alone = [collate_videos([items[i] for i in pair]) for pair in ((0, 1), (2, 3))]
    assert all(torch.equal(a["point"].coord, b["point"].coord) for a, b in zip(batches, alone, strict=True))


def test_train_and_test_share_no_video(tmp_path):
    write_actions(tmp_path)
    dataset = action_set(tmp_path)
    assert not {v.name for v in dataset.videos("train")} & {v.name for v in dataset.videos("test")}
    assert len(dataset.paths("train")) == 6


@pytest.mark.parametrize("train", [["."], ["train", "test/left/v0"], ["*/left"], ["list.txt"]])
@pytest.mark.parametrize("more", [{}, {"holdout": 0.5}])
def test_a_video_in_two_splits_is_refused(tmp_path, train, more):
    write_actions(tmp_path, 2, 1)
    (tmp_path / "list.txt").write_text("train/right/v0\ntest/left/v0\n")
    dataset = action_set(tmp_path, splits={"train": train, "test": ["test"]}, **more)
    said = "dataset.yaml: the video test/left/v0 is both in train and in test of `splits`; take it out of one"
    for split in ("train", "test"):
        with pytest.raises(UserError, match=said):
            dataset.videos(split)
    assert action_set(tmp_path, splits={"train": ["nowhere"], "test": ["test"]}).videos("test")


# --- short videos ---------------------------------------------------------------------------------------------------


def test_short_videos_are_padded_or_dropped_but_never_silently(tmp_path):
    write_actions(tmp_path, 1, 1, frames=6)
    write_video(tmp_path / "test" / "left" / "short", moving(0, 5, 3))
    padded = VideoItems(action_set(tmp_path, frames=5), "test")
    sample = padded[0]
    assert sample["video"] == "test/left/short" and sample["frames"].tolist() == [0, 1, 2, -1, -1]
    ends = np.cumsum(sample["counts"])
    assert np.array_equal(sample["coord"][ends[1] : ends[2]], sample["coord"][ends[3] : ends[4]])
    assert padded.notes == ["1 of 3 videos are shorter than 5 frames; their last one repeats."] and not padded.dropped
    dropped = VideoItems(action_set(tmp_path, frames=5, short_video="drop"), "test")
    assert [v.name for v in dropped.dropped] == ["test/left/short"] and len(dropped.videos) == 2
    assert "1 of 3 videos are shorter than 5 frames and were left out (test/left/short)" in dropped.notes[0]
    assert VideoItems(action_set(tmp_path, frames=3), "test").notes == []
    with pytest.raises(UserError, match="all 3 videos of 'test' are shorter than the 12 frames"):
        VideoItems(action_set(tmp_path, frames=12, short_video="drop"), "test")


# --- points ---------------------------------------------------------------------------------------------------------


def test_clip_sphere_keeps_motion_and_forgets_place_and_size(tmp_path):
    for name, change in (("a", lambda x: x), ("b", lambda x: 4 * x + 70)):
        write_video(tmp_path / name / "test" / "left" / "v", [change(frame) for frame in moving(0)])
        write_video(tmp_path / name / "test" / "right" / "v", moving(1))
    a, b = (VideoItems(action_set(tmp_path / name, frames=6, points=50), "test")[0] for name in "ab")
    assert np.allclose(a["coord"], b["coord"], atol=1e-5)
    assert abs(np.linalg.norm(a["coord"], axis=1).max() - 1) < 1e-6 and np.abs(a["coord"].mean(0)).max() < 1e-6
    frames = np.split(a["coord"], np.cumsum(a["counts"])[:-1])
    centers = [frame[:, 0].mean() for frame in frames]
    assert centers == sorted(centers, reverse=True) and centers[0] - centers[-1] > 0.5  # not centred frame by frame
    back = b["coord"] / b["scale"] + b["center"]
    real = 4 * np.concatenate(moving(0))[np.lexsort(np.concatenate(moving(0)).T)] + 70
    assert np.allclose(back[np.lexsort(back.T)], real, atol=1e-3)


def test_repo_normalisation_is_the_factor_alone(tmp_path):
    write_actions(tmp_path, 1, 1)
    raw, scaled = (VideoItems(action_set(tmp_path, normalize="repo", scale=s), "test")[0] for s in (1, 1 / 300))
    assert np.allclose(raw["coord"] / 300, scaled["coord"])
    frame = moving(0, 100)[0]
    assert np.array_equal(raw["coord"][:16], frame[raw["index"][:16]])


def test_box_up_and_points(tmp_path):
    frames = [np.array([[1, 2, 3], [9, 0, 0], [1, 2, -9], [0, 0, 1.0]], np.float32)] * 4
    for name in CLASSES:
        write_video(tmp_path / "test" / name / "v", frames)
    items = VideoItems(action_set(tmp_path, box={"x": [0, 6], "z": [-4, 4]}, up="z", normalize="repo"), "test")
    sample = items[0]
    assert sample["counts"].tolist() == [2] * 4 and set(sample["index"][:2].tolist()) == {0, 3}
    assert {tuple(row) for row in sample["coord"][:2].tolist()} == {(1, 3, -2), (0, 1, 0)}
    assert items.frame(0, 0)["coord"].shape == (2, 3)


def test_few_points_are_repeated_for_the_model(tmp_path):
    write_actions(tmp_path, 1, 1)
    sample = VideoItems(action_set(tmp_path, points=10), "test", need=25)[0]
    assert sample["counts"].tolist() == [25] * 4
    assert (sample["index"][:10] >= 0).all() and (sample["index"][10:25] == -1).all()
    assert np.array_equal(sample["coord"][:10], sample["coord"][10:20])


def test_frames_are_merged(tmp_path):
    write_actions(tmp_path, 1, 1, frames=9)
    dataset = action_set(tmp_path, merge=2, frames=4, points=100)
    items = VideoItems(dataset, "test")
    sizes = [len(frame) for frame in moving(0, 100, 9)]
    assert items.length(0) == 4 and items[0]["counts"].tolist() == [sizes[2 * i] + sizes[2 * i + 1] for i in range(4)]
    assert sorted(items[0]["index"][: sizes[0] + sizes[1]].tolist()) == list(range(sizes[0] + sizes[1]))
    with pytest.raises(UserError, match="joining 5 frames leaves 1 of the 9 frames of test/left/v0; lower `merge`"):
        VideoItems(action_set(tmp_path, merge=5), "test")


def test_geo_coordinates_keep_their_millimetres(tmp_path):
    rng = np.random.default_rng(0)
    local = [rng.uniform(0, 1, (30, 3)) for _ in range(4)]
    for name in CLASSES:
        for number, frame in enumerate(local):
            path = tmp_path / "test" / name / "v" / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, frame + [652_000, 6_860_000, 40])
    sample = VideoItems(action_set(tmp_path, points=99), "test")[0]
    found = sample["coord"][:30][np.argsort(sample["index"][:30])] / sample["scale"]
    assert np.allclose(found - found[0], local[0] - local[0][0], atol=1e-4)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".ply", ".pcd", ".npy", ".txt"])
def test_frames_of_every_format_in_natural_order(tmp_path, ending):
    write_actions(tmp_path, 1, 1, frames=12, ending=ending)
    dataset = action_set(tmp_path, frames=12, points=50, normalize="repo")
    video = dataset.videos("test")[0]
    assert [path.stem for path in video.files] == [f"frame_{i}" for i in range(12)]
    sample = VideoItems(dataset, "test")[0]
    for number, frame in enumerate(np.split(sample["coord"], np.cumsum(sample["counts"])[:-1])):
        order = np.argsort(sample["index"][sample["counts"][:number].sum() :][: len(frame)])
        assert np.allclose(frame[order], moving(0, 100, 12)[number], atol=1e-4)


def test_long_videos_are_read_frame_by_frame(tmp_path, monkeypatch):
    for name in CLASSES:
        write_video(tmp_path / "test" / name / "v", moving(0, 0, 60, 50))
    read = []
    real = video_files.read_shape
    monkeypatch.setattr(video_files, "read_shape", lambda path, **more: read.append(path.name) or real(path, **more))
    items = VideoItems(action_set(tmp_path, frames=4, stride=2), "test", memory=5000)
    assert read == []
    items[10]
    assert read == [f"frame_{i}.npy" for i in range(20, 24)]
    for i in range(len(items)):
        items[i]
        assert items._frames.size <= 5000 and len(items._frames.held) <= 4
    read.clear()
    generous = VideoItems(action_set(tmp_path, frames=4, stride=2), "test")
    for i in range(len(generous)):
        generous[i]
    assert len(read) == 2 * 60  # overlapping clips read a frame once


# --- a label per frame, per point ------------------------------------------------------------------------------------


def segmented(folder, file, text, task="action_segmentation", **keys):
    write_video(folder / "train" / "v0", moving(0, 0, 10))
    if text is not None:
        path = folder / "train" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return action_set(folder, task=task, classes=["rest", "walk"], splits={"train": ["train"]}, **keys)


LABELS = [0] * 4 + [1] * 5 + [-1]
NAMES = ["rest"] * 4 + ["walk"] * 5 + [""]


@pytest.mark.parametrize(
    "file, text",
    [
        ("v0/labels.csv", "label\n" + "\n".join(NAMES[:-1]) + "\n-1\n"),
        ("v0/labels.csv", "time,label,frame\n" + "\n".join(f"{i},{n},frame_{i}.npy" for i, n in enumerate(NAMES))),
        ("v0/labels.csv", "\n".join(f"frame_{i},{n}" for i, n in reversed(list(enumerate(NAMES))))),
        ("v0/labels.txt", "\n".join(map(str, LABELS))),
        ("v0_labels.csv", "\n".join(f"{i},{n}" for i, n in enumerate(NAMES))),
        ("v0/labels.yaml", "[rest, rest, rest, rest, walk, walk, walk, walk, walk, null]"),
        ("v0/labels.yaml", "- [0, 3, rest]\n- [4, 8, 1]\n"),
    ],
)
def test_labels_of_frames(tmp_path, file, text):
    dataset = segmented(tmp_path, file, text, frames=4, stride=4)
    items = VideoItems(dataset, "train", train=False)
    assert [items[i]["frames"].tolist()[0] for i in range(len(items))] == [0, 4, 6]
    for i in range(3):
        sample = items[i]
        assert sample["frame_label"].tolist() == [LABELS[f] for f in sample["frames"]]
    assert items.frame_label(0).tolist() == LABELS and "label" not in items[0]


def test_padded_frames_have_no_label(tmp_path):
    items = VideoItems(segmented(tmp_path, "v0/labels.txt", "1\n" * 10, frames=12), "train", train=False)
    assert items[0]["frame_label"].tolist() == [1] * 10 + [-1, -1] and len(items) == 1
    merged = VideoItems(
        segmented(tmp_path, "v0/labels.txt", "0 0 1 1 1 0 1 1 0 0".replace(" ", "\n"), merge=3), "train"
    )
    assert merged.frame_label(0).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("v0/x.md", None, r"no label per frame of train/v0; write one a line into .*v0/labels.csv"),
        ("v0/labels.txt", "0\n" * 9, "labels.txt: 9 labels for the 10 frames of train/v0"),
        ("v0/labels.txt", "0\n" * 9 + "run\n", "labels.txt: unknown label 'run': it is none of rest, walk; add it"),
        ("v0/labels.csv", "frame_0,0\n", "labels.csv: no label for frame frame_1.npy of train/v0"),
        (
            "v0/labels.csv",
            "".join(f"frame_{i},0\n" for i in range(11)),
            "a label for frame frame_10, which is not in train/v0",
        ),
        ("v0/labels.yaml", "- [0, 10, rest]\n", r"\[0, 10, 'rest'\] is no run"),
        ("v0/labels.yaml", "rest: 3", "it must hold a list of labels"),
        ("v0/labels.yaml", "[", "labels.yaml: no valid YAML"),
        ("v0/labels.csv", "frame,label\n0,rest\n1\n", "labels.csv: the line '1' has too few columns"),
    ],
)
def test_bad_labels_of_frames(tmp_path, file, text, message):
    dataset = segmented(tmp_path, file, text)
    with pytest.raises(UserError, match=message):
        VideoItems(dataset, "train").frame_label(0)


def test_labels_of_frames_as_spreadsheets_save_them(tmp_path):
    dataset = segmented(tmp_path, "v0/labels.csv", "\ufefflabel\n" + "walk\n" * 10)
    assert VideoItems(dataset, "train").frame_label(0).tolist() == [1] * 10
    (tmp_path / "train/v0/labels.csv").write_text("label\nGehör\n", encoding="latin-1")
    with pytest.raises(UserError, match="labels.csv: no text in UTF-8"):
        VideoItems(dataset, "train").frame_label(0)


def test_a_frame_of_another_kind_is_not_taken_for_an_empty_one(tmp_path):
    write_actions(tmp_path, 1, 1, ending=".ply")
    header = "ply\nformat ascii 1.0\nelement face 0\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "test/left/v0/frame_2.ply").write_text(header)
    refused(tmp_path, "frame_2.ply: a PLY file without an element 'vertex'", empty_frames="repeat")


def test_labels_of_points(tmp_path):
    rng = np.random.default_rng(0)
    labels = [rng.choice([0, 4, 9], 20) for _ in range(5)]
    coords = [rng.standard_normal((20, 3)).astype(np.float32) for _ in range(5)]
    for number in range(5):
        write_frame(tmp_path / "v" / f"{number:03d}.ply", coords[number], labels[number])
    keys = {"task": "video_segmentation", "classes": ["road", "car"], "splits": {"train": ["v"]}, "frames": 3}
    dataset = action_set(tmp_path, **keys, ids={4: "road", 9: "car"}, ignore=[0], points=20)
    items = VideoItems(dataset, "train", train=False)
    seen = {}
    for i in range(len(items)):
        sample = items[i]
        of_frame = np.repeat(sample["frames"], sample["counts"])
        seen |= {(int(f), int(r)): int(s) for f, r, s in zip(of_frame, sample["index"], sample["segment"], strict=True)}
    wanted = {0: -1, 4: 0, 9: 1}
    assert seen == {(f, r): wanted[int(labels[f][r])] for f in range(5) for r in range(20)}
    few = VideoItems(dataset, "train", train=False, need=30)[0]
    assert few["counts"].tolist() == [30] * 3 and (few["segment"][20:30] == -1).all()
    short = VideoItems(action_set(tmp_path, **{**keys, "frames": 7}, ids={4: "road", 9: "car"}, ignore=[0]), "train")[0]
    assert (short["segment"][np.repeat(short["frames"], short["counts"]) == -1] == -1).all()
    with pytest.raises(UserError, match=r"v \(frame 0 of v\): unknown label '0'"):
        VideoItems(action_set(tmp_path, **keys, ids={4: "road", 9: "car"}), "train", train=False)[0]
    write_frame(tmp_path / "v" / "002.ply", coords[2])
    with pytest.raises(UserError, match="no label of each point in frame 2 of v; set `label_field`"):
        VideoItems(dataset, "train", train=False)[0]


def test_colours_of_points(tmp_path):
    """Read from PLY and from arrays, in 0..1 or 0..255; beside the coordinates, and only where they are asked for."""
    rng = np.random.default_rng(0)
    coord, label = rng.standard_normal((4, 20, 3)).astype(np.float32), rng.integers(0, 2, (4, 20))
    color = rng.integers(1, 256, (4, 20, 3)).astype(np.uint8)
    head = "ply\nformat ascii 1.0\nelement vertex 20\n" + "".join(f"property float {a}\n" for a in "xyz")
    head += "".join(f"property uchar {c}\n" for c in ("red", "green", "blue")) + "property int label\nend_header\n"
    (tmp_path / "v").mkdir()
    for number in range(4):
        rows = [
            " ".join(map(str, (*xyz.tolist(), *rgb.tolist(), y)))
            for xyz, rgb, y in zip(coord[number], color[number], label[number], strict=True)
        ]
        (tmp_path / "v" / f"{number}.ply").write_text(head + "\n".join(rows) + "\n")
    write_npz(tmp_path / "bytes.npz", points=coord, rgb=color, semantic=label)
    write_npz(tmp_path / "floats.npz", points=coord, rgb=color / np.float32(255), semantic=label)
    write_npz(tmp_path / "none.npz", points=coord, semantic=label)
    write_npz(tmp_path / "wrong.npz", points=coord, rgb=color[..., :2], semantic=label)
    keys = {"task": "video_segmentation", "classes": ["a", "b"], "points": 20, "color": True}
    for source in ("v", "bytes.npz", "floats.npz"):
        sample = VideoItems(action_set(tmp_path, **keys, splits={"train": [source]}), "train", train=False)[0]
        of_frame = np.repeat(sample["frames"], sample["counts"])
        np.testing.assert_allclose(sample["color"], color[of_frame, sample["index"]] / 255, atol=1e-6)
        point = collate_videos([sample])["point"]
        assert torch.equal(point.feat, torch.cat([point.coord, torch.from_numpy(sample["color"])], 1))
    plain = action_set(tmp_path, **{**keys, "color": False}, splits={"train": ["bytes.npz"]})
    assert collate_videos([VideoItems(plain, "train")[0]])["point"].feat.shape[1] == 3
    for source, message in {
        "none.npz": "no colours in frame 0 of none.npz; set `color: false`",
        "wrong.npz": r"colours of shape \[20, 2\] for 20 points",
    }.items():
        with pytest.raises(UserError, match=message):
            VideoItems(action_set(tmp_path, **keys, splits={"train": [source]}), "train", train=False)[0]


def test_halves_score_every_point_once(tmp_path):
    rng = np.random.default_rng(1)
    for number in range(4):
        pc = rng.uniform(-5, 5, (40, 3)).astype(np.float32) + [100, 0, 200]
        write_npz(tmp_path / f"S-{number:06d}.npz", pc=pc, semantic=np.ones(40, int), center=np.array([100, 0, 200.0]))
    keys = {"task": "video_segmentation", "classes": ["a", "b"], "splits": {"train": ["S-*.npz"]}}
    dataset = action_set(tmp_path, **keys, frames=2, points=100, halves=1.0, up="-y", normalize="repo")
    items = VideoItems(dataset, "train", train=False)
    assert [items[i]["name"] for i in range(4)] == ["S@0a", "S@0b", "S@2a", "S@2b"]
    for start in (0, 2):
        above, below = items[start], items[start + 1]
        assert (above["segment"] >= 0).sum() + (below["segment"] >= 0).sum() == 80
        for sample, sign in ((above, -1), (below, 1)):  # the files' z is the model's -z
            z = sign * sample["coord"][:, 2]
            assert (z > -1).all() and (sample["segment"][z < 0] == -1).all() and (sample["segment"][z > 0] == 1).all()
    assert {VideoItems(dataset, "train").draw(0, np.random.default_rng(i))["name"][-1] for i in range(9)} == {"a", "b"}
    write_npz(tmp_path / "S-000001.npz", pc=pc, semantic=np.ones(40, int))
    with pytest.raises(UserError, match="`halves` cuts at a stored centre, which frames of S lack"):
        VideoItems(dataset, "train", train=False)[0]


# --- packing --------------------------------------------------------------------------------------------------------


def test_collate(tmp_path):
    write_actions(tmp_path, 1, 2)
    items = VideoItems(action_set(tmp_path, points=100, stride=4), "test")
    samples = [items[i] for i in (0, 3)]
    batch = collate_videos(samples)
    point = batch["point"]
    assert (
        point.num_clouds == 8
        and point.extra["frames"] == 4
        and point.extra["time"].tolist() == [0, 0.25, 0.5, 0.75] * 2
    )
    assert point.counts == [*samples[0]["counts"], *samples[1]["counts"]] and point.feat is point.coord
    assert point.coord.dtype == torch.float32 and point.offset.dtype == torch.int64
    assert batch["label"].tolist() == [0, 1] and batch["frames"].tolist() == [[0, 1, 2, 3]] * 2
    assert batch["video"] == ["test/left/v0", "test/right/v1"] and batch["name"][0] == "test/left/v0@0"
    assert torch.equal(point.coord[: point.offset[3]], torch.from_numpy(samples[0]["coord"]))
    with pytest.raises(ValueError, match="same number of frames"):
        collate_videos([samples[0], VideoItems(action_set(tmp_path, frames=3), "test")[0]])
    with pytest.raises(ValueError, match="at least one"):
        collate_videos([])


def test_videos_to_predict_need_no_labels(tmp_path):
    write_actions(tmp_path, 1, 1)
    dataset = action_set(tmp_path, stride=1)
    place = write_video(tmp_path / "elsewhere" / "new", moving(1))
    for path in (place, place.parent):
        items = VideoItems(dataset, videos_at(dataset, path))
        assert len(items) == 3 and "label" not in items[0] and not items.train
        assert collate_videos([items[0]])["video"] == ["elsewhere/new"] and items.targets.tolist() == [-1]
    frames = action_set(tmp_path, task="action_segmentation", frames=5)
    assert "frame_label" not in VideoItems(frames, videos_at(frames, place))[0]
    with pytest.raises(UserError, match="there is no video .*nowhere"):
        videos_at(dataset, tmp_path / "nowhere")


def test_a_video_to_predict_keeps_its_problem_to_itself(tmp_path):
    write_actions(tmp_path, 1, 1)
    dataset, place = action_set(tmp_path), tmp_path / "new"
    write_video(place / "good", moving(1))
    write_video(place / "short", moving(1)[:1])
    (write_video(place / "torn", moving(1)) / "frame_3.npy").unlink()
    (place / "bad.npz").write_bytes(b"x")
    write_npz(place / "other.npz", data=ragged(moving(0)), label=np.array("jump"))  # labels do not matter here
    found = {video.path.name: video for video in videos_at(dataset, place)}
    bad = {name: video.problem for name, video in found.items() if video.problem}
    assert len(found) == 5 and sorted(bad) == ["bad.npz", "short", "torn"]
    assert "not readable as NPZ" in bad["bad.npz"] and "a video of one frame" in bad["short"]
    for name, problem in bad.items():
        with pytest.raises(UserError) as caught:
            VideoItems(dataset, [found[name]])
        assert str(caught.value) == problem


# --- bad input: one sentence each ------------------------------------------------------------------------------------


def refused(folder, message, **keys):
    with pytest.raises(UserError, match=message) as caught:
        VideoItems(action_set(folder, **keys), "test", need=1)[0]
    assert "\n" not in str(caught.value)


def test_missing_frame(tmp_path):
    write_actions(tmp_path, 1, 1)
    (tmp_path / "test/left/v0/frame_3.npy").unlink()
    refused(tmp_path, "v0: a frame is missing between frame_2.npy and frame_4.npy; add it, or set `gaps: true` in")
    assert len(VideoItems(action_set(tmp_path, gaps=True), "test").videos[0].files) == 5
    for path in sorted((tmp_path / "test/left/v0").iterdir()):
        path.rename(path.with_name(f"{path.stem}0.npy"))  # 0, 10, 20, 40, 50
    refused(tmp_path, "missing between frame_20.npy and frame_40.npy")


def test_names_that_are_times_are_no_numbers(tmp_path):
    write_actions(tmp_path, 1, 1)
    for path, time in zip(sorted((tmp_path / "test/left/v0").iterdir()), (17, 50, 86, 117, 151, 180), strict=True):
        path.rename(path.with_name(f"{1700000000 + time}.npy"))
    assert VideoItems(action_set(tmp_path), "test").videos[0].length == 6


@pytest.mark.parametrize("names", [(0.0, 0.5, 0.25, 1.0, 10.5, 2.75), (1e9 + 0.5, 1e9 + 0.125, 1e9, 2e9, 3e9, 4e9)])
def test_names_that_are_decimal_times(tmp_path, names):
    write_actions(tmp_path, 1, 1)
    place = tmp_path / "test/left/v0"
    for path, time in zip(sorted(place.iterdir()), names, strict=True):
        path.rename(path.with_name(f"{time}.npy"))
    assert [float(path.stem) for path in VideoItems(action_set(tmp_path), "test").videos[0].files] == sorted(names)


def test_number_of_the_camera_is_no_number_of_the_frame(tmp_path):
    write_actions(tmp_path, 1, 1, frames=12)
    for path in (tmp_path / "test/left/v0").iterdir():
        path.rename(path.with_name(f"{path.stem}_camera2.npy"))
    assert [path.stem for path in VideoItems(action_set(tmp_path), "test").videos[0].files][9:11] == [
        "frame_9_camera2", "frame_10_camera2",
    ]  # fmt: skip
    (tmp_path / "test/left/v0/frame_10_camera2.npy").unlink()
    refused(tmp_path, "missing between frame_9_camera2.npy and frame_11_camera2.npy")


def test_text_beside_frames_is_no_frame(tmp_path):
    write_actions(tmp_path, 1, 1)
    (tmp_path / "test/left/v0/times.txt").write_text("0 0.1 0.2\n")
    assert VideoItems(action_set(tmp_path), "test").videos[0].length == 6


@pytest.mark.parametrize("sources", [["test"], ["test/*"], ["test/*/*"]])
def test_text_beside_folders_of_videos_is_no_frame(tmp_path, sources):
    write_actions(tmp_path, 1, 1)
    for place in ("", "left/"):
        (tmp_path / f"test/{place}README.txt").write_text("Recorded in May.\n")
        (tmp_path / f"test/{place}people.csv").write_text("name,age\n")
    assert len(VideoItems(action_set(tmp_path, splits={"test": sources}), "test").videos) == 2
    assert {video.name.count("/") for video in leaves(tmp_path, tmp_path)} == {2}


def test_number_twice(tmp_path):
    write_actions(tmp_path, 1, 1)
    write_frame(tmp_path / "test/left/v0/frame_02.npy", moving(0)[0])
    refused(tmp_path, "this frame has the same number as frame_0?2.npy")


def test_one_frame(tmp_path):
    write_actions(tmp_path, 1, 1)
    write_video(tmp_path / "test/left/v1", moving(0)[:1])
    refused(tmp_path, r"v1: a video of one frame shows no motion \(test/left/v1\); add frames or take it out")


@pytest.mark.parametrize("ending", [".npy", ".ply"])
def test_frame_without_points(tmp_path, ending):
    write_actions(tmp_path, 1, 1, ending=ending)
    write_frame(tmp_path / f"test/left/v0/frame_2{ending}", np.zeros((0, 3), np.float32))
    refused(tmp_path, "v0: frame 2 of test/left/v0 has no points; take it out, or set `empty_frames: repeat`")
    items = VideoItems(action_set(tmp_path, empty_frames="repeat", normalize="repo"), "test")
    sample, ends = items[0], np.cumsum(items[0]["counts"])
    one, two = sample["coord"][ends[0] : ends[1]], sample["coord"][ends[1] : ends[2]]
    assert set(map(tuple, two)) <= set(map(tuple, items.frame(0, 1)["coord"])) and len(one) == len(two)
    assert (sample["index"][ends[1] : ends[2]] == -1).all()
    refused(tmp_path, "frame 0 of test/left/v0 has no points within `box`", box={"x": [50, 60]})
    refused(tmp_path, "no frame of test/left/v0 has points within `box`", box={"x": [50, 60]}, empty_frames="repeat")


def test_unknown_label(tmp_path):
    write_actions(tmp_path, 1, 1)
    write_video(tmp_path / "test/up/v0", moving(0))
    refused(
        tmp_path, r"up/v0: unknown label: it lies in no folder of a known class \(left, right\); name the folder in"
    )
    items = VideoItems(action_set(tmp_path, folders={"up": "right"}), "test")
    assert items.targets.tolist() == [0, 1, 1]


def test_wrong_shapes_and_values(tmp_path):
    write_actions(tmp_path, 1, 1)
    path = tmp_path / "test/left/v0/frame_1.npy"
    np.save(path, np.zeros((5, 2), np.float32))
    refused(tmp_path, r"frame_1.npy: .*\(5, 2\)")
    np.save(path, np.full((5, 3), np.nan, np.float32))
    refused(tmp_path, "frame_1.npy: 5 of 5 points have NaN or infinite coordinates")
    path.write_bytes(b"")
    refused(tmp_path, r"frame_1.npy: the file is empty \(0 bytes\)")
    (path.parent / "frame_0.npy").write_bytes(b"x")
    refused(tmp_path, "frame_0.npy: not readable as NPY, so damaged or truncated")


def test_missing_sources(tmp_path):
    write_actions(tmp_path, 1, 1)
    refused(tmp_path, "nowhere: no such file or folder, which .*dataset.yaml lists", splits={"test": ["nowhere"]})
    refused(tmp_path, r"nothing fits the pattern x\*.npz", splits={"test": ["x*.npz"]})
    refused(tmp_path, "the split 'test' lists no videos", splits={"train": ["train"]})
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "empty: no videos here", splits={"test": ["empty"]})


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"point_clouds": ragged([np.zeros((4, 3)), np.zeros((4, 2))])}, r"frame 1 is an array of shape \[4, 2\]"),
        ({"point_clouds": ragged([np.zeros((4, 3)), None])}, r"frame 1 is an array of shape \[\]"),
        ({"point_clouds": ragged([np.zeros((4, 3))])}, "a video of one frame"),
        ({"data": np.zeros((0, 4, 3))}, "a video of no frame"),
    ],
)
def test_bad_array_files(tmp_path, arrays, message):
    for name in CLASSES:
        write_npz(tmp_path / "test" / name / "v.npz", **arrays)
    refused(tmp_path, message)


def test_pickles_that_run_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    for name in CLASSES:
        write_npz(tmp_path / "test" / name / "v.npz", point_clouds=ragged([Evil(), Evil()]))
        np.save(tmp_path / f"{name}.npy", ragged([Evil(), Evil()]))
    said = "this file is refused: it names builtins.print; only NumPy arrays"
    refused(tmp_path, f"v.npz: {said}")
    refused(tmp_path, f"left.npy: {said}", splits={"test": ["left.npy"]})


def test_damaged_array_file(tmp_path):
    for name in CLASSES:
        path = write_npz(tmp_path / "test" / name / "v.npz", point_clouds=ragged(moving(0)))
        content = bytearray(path.read_bytes())
        content[60:90] = bytes(30)
        path.write_bytes(content)
    refused(tmp_path, "v.npz")


def test_video_set_is_public_here():
    assert VideoSet.__module__ == "pointadapt.data.video_set"


def test_labels_within_array_files(tmp_path):
    write_npz(tmp_path / "one.npz", data=ragged(moving(0)), label=np.array([0, 0, 1, 1, 1, 0]))
    np.save(tmp_path / "two.npy", np.stack([frame[:10] for frame in moving(1)]))
    (tmp_path / "two_labels.csv").write_text("walk\n" * 6)
    keys = {"task": "action_segmentation", "classes": ["rest", "walk"], "splits": {"train": ["one.npz", "two.npy"]}}
    items = VideoItems(action_set(tmp_path, **keys, frames=6), "train", train=False)
    assert [items[i]["frame_label"].tolist() for i in (0, 1)] == [[0, 0, 1, 1, 1, 0], [1] * 6]
    for name in ("label", "labels", "y"):
        write_npz(tmp_path / f"by_{name}_.npz", data=ragged(moving(0)), **{name: np.array(1)})
    keys = {"classes": ["rest", "walk"], "splits": {"train": ["by_*_.npz"]}}
    assert VideoItems(action_set(tmp_path, **keys), "train").targets.tolist() == [1, 1, 1]


def test_frames_of_different_sizes_in_one_npy(tmp_path):
    np.save(tmp_path / "v.npy", ragged(moving(0)))
    dataset = action_set(tmp_path, task="action_segmentation", splits={"train": ["v.npy"]}, points=50, frames=6)
    (video,) = dataset.videos("train")
    sample = VideoItems(dataset, [video])[0]
    assert sample["counts"].tolist() == [len(frame) for frame in moving(0)]


def test_labels_of_points_in_packed_and_dense_files(tmp_path):
    rng = np.random.default_rng(0)
    xyz, segment = rng.standard_normal((40, 3)), rng.integers(0, 2, 40)
    start = np.arange(8) * 5
    arrays = {"frame_start": start, "seq_frame_ptr": np.array([0, 4, 8]), "frame_label": np.arange(8) % 2}
    write_npz(tmp_path / "packed.npz", xyz=xyz, segment=segment, **arrays)
    keys = {"classes": ["a", "b"], "splits": {"train": ["packed.npz"]}}
    points = VideoItems(action_set(tmp_path, task="video_segmentation", **keys), "train", train=False)
    sample = points[1]
    assert np.array_equal(sample["segment"], segment[20 + 5 * sample["frames"].repeat(5) + sample["index"]])
    frames = VideoItems(action_set(tmp_path, task="action_segmentation", **keys), "train", train=False)
    assert frames[0]["frame_label"].tolist() == [0, 1, 0, 1]
    write_npz(tmp_path / "dense.npz", pcd=xyz.reshape(2, 4, 5, 3), semantic=segment.reshape(2, 4, 5))
    keys["splits"] = {"train": ["dense.npz"]}
    dense = VideoItems(action_set(tmp_path, task="video_segmentation", **keys), "train", train=False)
    assert np.array_equal(dense[1]["segment"], sample["segment"].astype(int)[order(sample, dense[1])])
    write_npz(tmp_path / "dense.npz", pcd=xyz.reshape(2, 4, 5, 3), semantic=segment.reshape(2, 4, 5)[:, :, :3])
    with pytest.raises(UserError, match="dense.npz: frame 0 has 3 labels for 5 points"):
        VideoItems(action_set(tmp_path, task="video_segmentation", **keys), "train", train=False)[0]


def order(a, b):
    """Rows of sample a in the order of b."""
    key = {(int(f), int(i)): row for row, (f, i) in enumerate(zip(a["frames"].repeat(5), a["index"], strict=True))}
    return [key[int(f), int(i)] for f, i in zip(b["frames"].repeat(5), b["index"], strict=True)]


def test_hdf5_is_read_in_worker_processes(tmp_path):
    from shapes import write_h5

    pcd = np.random.default_rng(0).standard_normal((4, 6, 9, 3)).astype(np.float32)
    write_h5(tmp_path / "train.h5", pcd=pcd, label=np.zeros((4, 6), int))
    keys = {"task": "action_segmentation", "classes": ["a", "b"], "splits": {"train": ["train.h5"]}}
    items = VideoItems(action_set(tmp_path, **keys), "train")
    wanted = [items[i]["coord"] for i in range(4)]  # opened here first, then in the workers
    loader = DataLoader(items, batch_size=1, collate_fn=collate_videos, num_workers=2)
    assert all(np.array_equal(b["point"].coord.numpy(), w) for b, w in zip(loader, wanted, strict=True))
