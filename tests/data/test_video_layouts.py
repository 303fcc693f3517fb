"""init on every layout of videos that is known, each written in its exact form, found, described and read back."""

import numpy as np
import pytest
import yaml

from moving import CLASSES, moving, ragged, write_actions, write_frame, write_npz, write_video
from pointadapt.data.object_folders import find_objects
from pointadapt.data.video_classes import MSR_ACTION3D, NTU, NTU120_SUBJECTS, RADHAR, SYNTHIA
from pointadapt.data.video_folders import find_videos
from pointadapt.data.video_set import VideoSet
from pointadapt.data.video_survey import init_videos, video_warnings, videos_by_class
from pointadapt.data.videos import VideoItems, collate_videos
from pointadapt.errors import UserError
from shapes import class_folders, write_h5


def opened(folder, **choices):
    """The data set after a round through dataset.yaml."""
    layout = find_videos(folder, **choices)
    assert layout is not None
    dataset = VideoSet.open(init_videos(folder, layout, overwrite=True))
    assert dataset == VideoSet.from_dict(layout.dataset.as_dict(), folder)
    return dataset, layout


def counts(dataset):
    return {split: dict(count) for split, count in videos_by_class(dataset).items()}


# --- MSR-Action3D ---------------------------------------------------------------------------------------------------


def write_msr(folder, subjects=range(1, 11), actions=(1, 20), lengths=(30,)):
    for subject in subjects:
        for action in actions:
            for example, length in enumerate(lengths, 1):
                frames = [300 * frame + [0, 0, 1500] for frame in moving(action % 2, subject, length, 30)]
                name = f"a{action:02d}_s{subject:02d}_e{example:02d}_sdepth.npz"
                write_npz(folder / name, point_clouds=ragged(frames))


@pytest.mark.parametrize("place", ["", "processed_data"])
def test_msr_action3d(tmp_path, place):
    write_msr(tmp_path / place, lengths=(30, 10))
    dataset, layout = opened(tmp_path)
    assert layout.title == "MSR-Action3D" and dataset.classes == MSR_ACTION3D
    wanted = dict.fromkeys((MSR_ACTION3D[0], MSR_ACTION3D[19]), 10)
    assert counts(dataset) == {"train": wanted, "test": wanted}
    people = {split: {v.name.split("_s")[1][:2] for v in dataset.videos(split)} for split in ("train", "test")}
    assert people == {"train": {f"{i:02d}" for i in range(1, 6)}, "test": {f"{i:02d}" for i in range(6, 11)}}
    assert "10 of 20 videos of test are shorter than 24 frames and are left out" in video_warnings(layout)
    items = VideoItems(dataset, "test")
    assert len(items.videos) == 10 and len(items.dropped) == 10 and len(items) == 10 * (30 - 23)
    sample = items[0]
    assert sample["label"] == 0 and sample["counts"][0] == 30
    stored = moving(1, 6, 30, 30)[0]
    back = (sample["coord"][:30] / sample["scale"] + sample["center"])[np.argsort(sample["index"][:30])]
    assert np.allclose(back, (300 * stored + [0, 0, 1500]) * [1, -1, -1], atol=0.1)  # y up
    repo = VideoSet.from_dict({**dataset.as_dict(), "normalize": "repo", "up": "y"}, tmp_path)
    clip = VideoItems(repo, "test")[0]
    assert np.allclose(clip["coord"][:30][np.argsort(clip["index"][:30])], stored + [0, 0, 5], atol=1e-4)  # / 300


def test_msr_frames_of_equal_size_are_dense(tmp_path):
    for subject, rows in ((1, (5, 5)), (6, (5, 7))):
        frames = [np.zeros((n, 3), np.float32) for n in rows]
        clouds = np.stack(frames) if len(set(rows)) == 1 else ragged(frames)
        write_npz(tmp_path / f"a01_s{subject:02d}_e01_sdepth.npz", point_clouds=clouds)
    dataset, _ = opened(tmp_path, frames=2)
    assert [VideoItems(dataset, split)[0]["counts"].tolist() for split in ("train", "test")] == [[5, 5], [5, 7]]


def test_raw_files_are_sent_to_prepare(tmp_path):
    (tmp_path / "a01_s01_e01_sdepth.bin").write_bytes(b"")
    with pytest.raises(UserError, match="raw depth frames of MSR-Action3D; make clouds of them first with: pointadapt"):
        find_videos(tmp_path)
    (tmp_path / "ntu" / "S001C001P001R001A001").mkdir(parents=True)
    with pytest.raises(UserError, match="depth pictures of NTU RGB.D; make clouds of them first"):
        find_videos(tmp_path / "ntu")


# --- NTU ------------------------------------------------------------------------------------------------------------


def write_ntu(folder, names):
    for name in names:
        write_npz(folder / f"{name}.npz", data=ragged(moving(0, 0, 50, 10)))


def test_ntu60(tmp_path):
    names = [f"S001C{c:03d}P{p:03d}R001A{a:03d}" for c in (1, 2, 3) for p in (1, 2, 3, 40) for a in (1, 60)]
    write_ntu(tmp_path, names)
    subject, layout = opened(tmp_path)
    assert layout.title == "NTU RGB+D 60 (cross-subject)" and subject.classes == NTU[:60] and subject.step == 2
    found = {split: {v.name[8:12] for v in subject.videos(split)} for split in ("train", "test")}
    assert found == {"train": {"P001", "P002"}, "test": {"P003", "P040"}}
    view, _ = opened(tmp_path, variant="cross-view")
    assert counts(view) == {"train": {NTU[0]: 8, NTU[59]: 8}, "test": {NTU[0]: 4, NTU[59]: 4}}
    assert {v.name[4:8] for v in view.videos("test")} == {"C001"}
    items = VideoItems(view, "test")
    assert len(items) == 8 * 2 and items[1]["frames"].tolist() == list(range(2, 50, 2))  # 50 - 2 * 23 starts, every 2nd
    with pytest.raises(UserError, match="there is no variant 'cross-setup' here"):
        find_videos(tmp_path, variant="cross-setup")


def test_ntu120(tmp_path):
    write_ntu(tmp_path, [f"S{s:03d}C001P{p:03d}R001A{a:03d}" for s in (1, 32) for p in (1, 103, 106) for a in (5, 120)])
    subject, layout = opened(tmp_path)
    assert layout.title == "NTU RGB+D 120 (cross-subject)" and len(subject.classes) == 120
    found = {split: {v.name[8:12] for v in subject.videos(split)} for split in ("train", "test")}
    assert found == {"train": {"P001", "P103"}, "test": {"P106"}}
    setup, _ = opened(tmp_path, variant="cross-setup")
    assert {split: {v.name[:4] for v in setup.videos(split)} for split in ("train", "test")} == {
        "train": {"S032"},
        "test": {"S001"},
    }
    assert len(NTU120_SUBJECTS) == len(set(NTU120_SUBJECTS)) == 53


# --- HOI4D ----------------------------------------------------------------------------------------------------------


def hoi4d_actions(count, seed, frames=12, points=20):
    rng = np.random.default_rng(seed)
    pcd = rng.standard_normal((count, frames, points, 3)).astype(np.float32)
    return {"pcd": pcd, "center": pcd.mean(2), "label": rng.integers(0, 19, (count, frames))}


def test_hoi4d_action_segmentation(tmp_path):
    first, second, test = (hoi4d_actions(n, n) for n in (3, 2, 1))
    for name, arrays in (("train1", first), ("train2", second), ("test1", test)):
        write_h5(tmp_path / f"{name}.h5", **arrays)
    dataset, layout = opened(tmp_path)
    assert layout.title == "HOI4D action segmentation" and len(dataset.classes) == 19 and dataset.frames == 12
    assert counts(dataset) == {"train": {"videos": 5}, "test": {"videos": 1}}
    items = VideoItems(dataset, "train", train=False)
    batch = collate_videos([items[i] for i in range(5)])
    assert batch["frame_label"].tolist() == [*first["label"].tolist(), *second["label"].tolist()]
    assert batch["video"] == [*(f"train1.h5#{i}" for i in range(3)), "train2.h5#0", "train2.h5#1"]
    assert batch["point"].counts == [20] * 60
    repo = VideoSet.from_dict({**dataset.as_dict(), "normalize": "repo", "up": "y"}, tmp_path)
    sample = VideoItems(repo, "test")[0]
    frame = sample["coord"][20:40][np.argsort(sample["index"][20:40])]
    assert np.allclose(frame, test["pcd"][0, 1] - test["center"][0, 0], atol=1e-5)  # the first frame's centre
    with pytest.raises(UserError, match="this is HOI4D action segmentation, a data set for action_segmentation, not"):
        find_videos(tmp_path, task="action")


def test_hoi4d_private_test_labels(tmp_path):
    test = hoi4d_actions(2, 0)
    write_h5(tmp_path / "train1.h5", **hoi4d_actions(4, 1))
    write_h5(tmp_path / "test1.h5", pcd=test["pcd"])
    dataset, layout = opened(tmp_path)
    assert any("the labels of test are private" in note for note in layout.notes)
    with pytest.raises(UserError, match="no label per frame of test1.h5#0"):
        VideoItems(dataset, "test")[0]
    held = VideoSet.from_dict({**dataset.as_dict(), "holdout": 0.25}, tmp_path)
    assert [len(held.videos(split)) for split in ("train", "val")] == [3, 1]


def test_hoi4d_semantic_segmentation(tmp_path):
    rng = np.random.default_rng(0)
    pcd = rng.standard_normal((2, 9, 30, 3)).astype(np.float32)
    semantic = rng.choice([0, 1, 2, 5, 48], (2, 9, 30))
    for split in ("train", "test"):
        write_h5(tmp_path / f"{split}1.h5", pcd=pcd, semantic=semantic, center=pcd.mean(2), rgb=pcd)
    dataset, layout = opened(tmp_path)
    assert layout.title == "HOI4D semantic segmentation" and dataset.names[:2] == ["chair", "table"]
    items = VideoItems(dataset, "test")
    assert len(items) == 2 * 3  # every third frame starts a clip: 100 of 300
    sample = items[1]
    frames = np.repeat(sample["frames"], sample["counts"])
    names = np.array([*dataset.classes, "ignored"])[sample["segment"]]
    raw = semantic[0][frames, sample["index"]]
    wanted = {0: "ignored", 1: "ignored", 2: "chair", 5: "ground", 48: "scissors"}
    assert names.tolist() == [wanted[int(one)] for one in raw]


# --- Synthia4D ------------------------------------------------------------------------------------------------------


def write_synthia(folder, high=16):
    rng = np.random.default_rng(0)
    for sequence, frames in (("01-DAWN", 4), ("02-FALL", 3), ("05-FOG", 3), ("06-SPRING", 3), ("06-SUNSET", 2)):
        for number in range(frames):
            pc = rng.uniform(-25, 25, (60, 3)).astype(np.float32)
            write_npz(
                folder / f"SYNTHIA-SEQS-{sequence}-{number:06d}.npz",
                pc=pc,
                rgb=rng.random((60, 3)).astype(np.float32),
                semantic=rng.integers(0, high, 60).astype(np.int32),
                center=rng.standard_normal(3),
            )


@pytest.mark.parametrize("place", ["", "processed_pc"])
def test_synthia4d(tmp_path, place):
    write_synthia(tmp_path / place)
    dataset, layout = opened(tmp_path)
    assert layout.title == "Synthia4D" and dataset.names == list(SYNTHIA.values()) and len(dataset.names) == 12
    assert counts(dataset) == {"train": {"videos": 2}, "val": {"videos": 1}, "test": {"videos": 2}}
    assert [v.length for v in dataset.videos("train")] == [4, 3]
    published = [12, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -1, -1, 11]  # raw -> label, 12 = void
    assert dataset.indices(np.arange(16)).tolist() == [-1 if i in (-1, 12) else i for i in published]
    items = VideoItems(dataset, "train", train=False)
    assert [items[i]["frames"].tolist() for i in range(3)] == [[0, 1, 2], [1, 2, 3], [0, 1, 2]]
    assert items[0]["counts"].tolist() == [60] * 3 and items[0]["segment"].max() == 11
    with np.load(dataset.videos("train")[0].files[1]) as frame:  # colours stay with their points
        rows = items[0]["index"][60:120]
        assert np.abs(items[0]["color"][60:120] - frame["rgb"][rows]).max() <= 0.5 / 255 + 1e-6
    padded = VideoItems(dataset, "test")[1]
    assert padded["frames"].tolist() == [0, 1, -1] and (padded["segment"][120:] == -1).all()
    halves = VideoSet.from_dict({**dataset.as_dict(), "halves": 1.0}, tmp_path)
    assert len(VideoItems(halves, "train", train=False)) == 6


def test_synthia4d_with_mapped_labels(tmp_path):
    write_synthia(tmp_path, high=13)
    dataset, layout = opened(tmp_path, variant="mapped")
    assert dataset.indices(np.arange(13)).tolist() == [*range(12), -1] and layout.variants == ("raw", "mapped")
    assert VideoItems(dataset, "val")[0]["segment"].max() == 11


# --- SHREC'17 -------------------------------------------------------------------------------------------------------


def write_shrec(folder):
    rng = np.random.default_rng(0)
    for split, subjects in (("train", (1, 2)), ("test", (3,))):
        lines = []
        for subject in subjects:
            for gesture, finger in ((1, 1), (1, 2), (14, 1)):
                place = folder / f"gesture_{gesture}/finger_{finger}/subject_{subject}/essai_1"
                place.mkdir(parents=True)
                np.save(place / "pts.npy", rng.standard_normal((32, 256, 8)).astype(np.float32))
                lines.append(f"{gesture} {finger} {subject} 1 {gesture} {2 * gesture - 2 + finger} 70")
        (folder / f"{split}_gestures.txt").write_text("\n".join(lines) + "\n")


def test_shrec17(tmp_path):
    write_shrec(tmp_path)
    dataset, layout = opened(tmp_path)
    assert layout.title == "SHREC'17 (14 gestures)" and len(dataset.classes) == 14
    assert counts(dataset) == {"train": {"grab": 4, "shake": 2}, "test": {"grab": 2, "shake": 1}}
    more, _ = opened(tmp_path, variant="28")
    assert counts(more)["test"] == {"grab, one finger": 1, "grab, hand": 1, "shake, one finger": 1}
    assert len(more.classes) == 28 and VideoItems(more, "test").targets.tolist() == [0, 1, 26]
    raw = np.load(tmp_path / "gesture_1/finger_1/subject_3/essai_1/pts.npy")
    plain = VideoSet.from_dict({**dataset.as_dict(), "normalize": "repo", "up": "y"}, tmp_path)
    sample = VideoItems(plain, "test")[0]
    assert sample["counts"].tolist() == [128] * 32
    assert np.array_equal(sample["coord"][:128], raw[0][sample["index"][:128]][:, 4:7])
    wide = VideoSet.from_dict({**dataset.as_dict(), "columns": [0, 1, 9]}, tmp_path)
    with pytest.raises(UserError, match=r"shape \[256, 8\]; .* columns \[0, 1, 9\] are asked for"):
        VideoItems(wide, "test")[0]


def test_shrec17_whatever_its_arrays_are_called(tmp_path):
    write_shrec(tmp_path)
    for array in tmp_path.rglob("pts.npy"):
        array.rename(array.with_name("pts_label.npy"))
    dataset, _ = opened(tmp_path)
    assert counts(dataset) == {"train": {"grab": 4, "shake": 2}, "test": {"grab": 2, "shake": 1}}
    assert len(VideoItems(dataset, "test")[0]["counts"]) == 32


# --- packed and other array files -----------------------------------------------------------------------------------


def packed(seed, videos=5, frames=30, classes=RADHAR, **more):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 9, videos * frames)
    xyz = rng.uniform(0, 3, (sizes.sum(), 3)).astype(np.float32)
    ptr = np.arange(videos + 1) * frames
    return {
        "xyz": xyz,
        "velocity": xyz[:, 0],
        "frame_start": np.cumsum(sizes) - sizes,
        "seq_frame_ptr": ptr.astype(np.int32),
        "label": np.arange(videos, dtype=np.int8) % len(classes),
        "name": np.array([f"take_{i}" for i in range(videos)]),
        "classes": np.array(classes),
        **more,
    }


def test_radhar(tmp_path):
    arrays = packed(0)
    arrays["xyz"][3] = [55, 0, 0]
    write_npz(tmp_path / "radhar_train.npz", **arrays)
    write_npz(tmp_path / "radhar_test.npz", **packed(1, 3))
    dataset, layout = opened(tmp_path)
    assert layout.title == "RadHAR" and dataset.classes == RADHAR and dataset.box["x"] == (0, 6) and dataset.merge == 5
    assert counts(dataset)["train"] == dict.fromkeys(RADHAR, 1)
    items = VideoItems(dataset, "train", train=False)
    start = [*arrays["frame_start"], len(arrays["xyz"])]
    assert len(items.frame(0, 0)["coord"]) == start[5] - 1  # the outlier is out
    assert len(items.frame(4, 5)["coord"]) == len(arrays["xyz"]) - start[145]
    assert items[0]["frames"].tolist() == [0, 1, 2, 3, 4, 5] + [-1] * 18


def test_frames_that_fill_no_group_are_told(tmp_path):
    write_npz(tmp_path / "radhar_train.npz", **packed(0))
    write_npz(tmp_path / "radhar_test.npz", **packed(1, 3, frames=32))
    _, layout = opened(tmp_path)
    told = [note for note in video_warnings(layout) if "merge" in note and "leaves out" in note]
    assert told == ["`merge: 5` leaves out the last frames of 3 of 3 videos of test, which fill no group"]


def test_packed_classes_are_looked_up_by_name(tmp_path):
    write_npz(tmp_path / "train.npz", **packed(0, 4, classes=("b", "a")))
    dataset, layout = opened(tmp_path)
    assert layout.title == "array files of videos" and dataset.classes == ("b", "a") and dataset.holdout == 0.2
    other = VideoSet.from_dict({**dataset.as_dict(), "classes": ["a", "b"], "holdout": 0.0}, tmp_path)
    assert [v.target for v in other.videos("train")] == [1, 0, 1, 0]
    strange = VideoSet.from_dict({**dataset.as_dict(), "classes": ["a", "c"], "holdout": 0.0}, tmp_path)
    with pytest.raises(UserError, match="train.npz#0: unknown label 'b'"):
        strange.videos("train")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seq_frame_ptr": np.array([0, 30, 20])}, "`seq_frame_ptr` must rise from 0 to the 150 frames"),
        ({"frame_start": np.array([5, 3])}, "`frame_start` must rise from 0"),
        ({"label": np.array([0, 1, 2, 3, 7])}, "a label is out of range of its 5 classes"),
    ],
)
def test_bad_packed_files(tmp_path, change, message):
    write_npz(tmp_path / "train.npz", **{**packed(0), **change})
    dataset = VideoSet.from_dict(
        {"task": "action", "classes": list(RADHAR), "splits": {"train": ["train.npz"]}}, tmp_path
    )
    with pytest.raises(UserError, match=f"train.npz: {message}"):
        dataset.videos("train")


def test_dense_arrays_with_many_videos(tmp_path):
    data = np.random.default_rng(0).standard_normal((4, 6, 10, 3)).astype(np.float32)
    write_npz(tmp_path / "clips_train.npz", data=data, label=np.array([0, 2, 1, 0]))
    write_h5(tmp_path / "clips_test.h5", data=data[:2], label=np.array([1, 1]))
    dataset, layout = opened(tmp_path)
    assert dataset.classes == ("class 0", "class 1", "class 2") and dataset.frames == 6
    assert any("name no classes" in note for note in layout.notes)
    assert VideoItems(dataset, "train").targets.tolist() == [0, 2, 1, 0]
    one = VideoSet.from_dict({**dataset.as_dict(), "splits": {"test": ["clips_train.npz#2"]}}, tmp_path)
    sample = VideoItems(one, "test")[0]
    assert sample["label"] == 1 and sample["video"] == "clips_train.npz#2"
    with pytest.raises(UserError, match="there is no video 9 in it"):
        VideoSet.from_dict({**one.as_dict(), "splits": {"test": ["clips_train.npz#9"]}}, tmp_path).videos("test")


# --- plain folders --------------------------------------------------------------------------------------------------


def test_folders_named_after_classes(tmp_path):
    write_actions(tmp_path, 3, 2, frames=8)
    dataset, layout = opened(tmp_path)
    assert dataset.task == "action" and dataset.classes == CLASSES and dataset.frames == 8 and dataset.holdout == 0
    assert counts(dataset) == {"train": dict.fromkeys(CLASSES, 3), "test": dict.fromkeys(CLASSES, 2)}
    up, val = video_warnings(layout)
    assert up == "which axis is up cannot be seen from the files: check `up`"
    assert val.startswith("no val split: adapt holds out a tenth of train by itself")
    chosen, told = opened(tmp_path, up="-y", points=7, frames=5, val=0.3)
    assert (chosen.up, chosen.points, chosen.frames, chosen.holdout) == ("-y", 7, 5, 0.3) and told.notes == ()


def test_class_first_and_no_split(tmp_path):
    for split in ("train", "testing"):
        for label, name in enumerate(CLASSES):
            write_video(tmp_path / "a" / name / split / "v0", moving(label))
    dataset, _ = opened(tmp_path / "a")
    assert counts(dataset) == {"train": dict.fromkeys(CLASSES, 1), "test": dict.fromkeys(CLASSES, 1)}
    for label, name in enumerate(CLASSES):
        for seed in range(5):
            write_npz(tmp_path / "b" / name / f"v{seed}.npz", point_clouds=ragged(moving(label, seed)))
    dataset, _ = opened(tmp_path / "b")
    assert counts(dataset) == {"train": dict.fromkeys(CLASSES, 4), "val": dict.fromkeys(CLASSES, 1)}


def test_a_missing_frame_is_told_and_allowed_for(tmp_path):
    write_actions(tmp_path, 2, 1)
    (tmp_path / "train/left/v1/frame_2.npy").unlink()
    dataset, layout = opened(tmp_path)
    assert dataset.gaps and [len(video.files) for video in dataset.videos("train")] == [6, 5, 6, 6]
    (note,) = [note for note in layout.notes if "missing" in note]
    assert "v1/frame_1.npy and frame_3.npy: `gaps: true` takes them as neighbours" in note
    assert "gaps: true" in init_videos(tmp_path, layout, overwrite=True).read_text()


def test_lists_of_videos(tmp_path):
    write_actions(tmp_path, 2, 1)
    (tmp_path / "fold.csv").write_text("video,label\ntrain/left/v0,right\ntrain/right/v1,0\n")
    (tmp_path / "rest.txt").write_text("train/left/v1\ntest/right/v0\n")
    keys = {"task": "action", "classes": CLASSES, "splits": {"train": ["fold.csv"], "test": ["rest.txt"]}}
    dataset = VideoSet.from_dict({**keys, "frames": 4}, tmp_path)
    assert [v.target for v in dataset.videos("train")] == [1, 0]
    assert [v.target for v in dataset.videos("test")] == [0, 1]
    (tmp_path / "rest.txt").write_text("train/left/v9\n")
    with pytest.raises(UserError, match="rest.txt: it lists train/left/v9, for which there is nothing"):
        dataset.videos("test")


def test_labels_per_frame_make_action_segmentation(tmp_path):
    for split in ("train", "val"):
        write_video(tmp_path / split / "v0", moving(0))
        (tmp_path / split / "v0" / "labels.csv").write_text("reach\nreach\ngrasp\ngrasp\nlift\n\n-1\n")
    with pytest.raises(UserError, match="5 labels for the 6 frames|6 labels"):
        (tmp_path / "train" / "v0" / "labels.csv").write_text("reach\nreach\ngrasp\ngrasp\nlift\n")
        VideoItems(opened(tmp_path)[0], "train")[0]
    (tmp_path / "train" / "v0" / "labels.csv").write_text("reach\nreach\ngrasp\ngrasp\nlift\n-1\n")
    dataset, _ = opened(tmp_path)
    assert dataset.task == "action_segmentation" and dataset.classes == ("grasp", "lift", "reach")
    assert VideoItems(dataset, "train")[0]["frame_label"].tolist() == [2, 2, 0, 0, 1, -1]
    (tmp_path / "train" / "v0" / "labels.csv").write_text("10\n10\n3\n3\n3\n10\n")
    dataset, _ = opened(tmp_path)
    assert dataset.ids == {3: "class 3", 10: "class 10"}


def test_labels_per_point_must_be_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        write_frame(tmp_path / "train/v0" / f"{number}.ply", rng.random((9, 3)), rng.choice([2, 5], 9))
    assert find_videos(tmp_path) is None
    dataset, _ = opened(tmp_path, task="video_segmentation")
    assert dataset.ids == {2: "class 2", 5: "class 5"} and dataset.frames == 3 and not dataset.color
    assert set(VideoItems(dataset, "train")[0]["segment"].tolist()) == {0, 1}
    write_video(tmp_path / "other/train/v0", moving(0))
    with pytest.raises(UserError, match="no label of each point in frame 0"):
        find_videos(tmp_path / "other", task="video_segmentation")


def test_other_kinds_are_left_alone(tmp_path):
    class_folders(tmp_path / "a", {"train/cup": 3, "train/jug": 3, "test/cup": 2})
    assert find_videos(tmp_path / "a") is None and find_objects(tmp_path / "a") is not None
    for place in ("a", "b"):
        for number in range(3):
            write_frame(tmp_path / "scans/train" / place / "day1" / f"{number}.ply", np.eye(3), np.arange(3))
    assert find_videos(tmp_path / "scans") is None
    write_actions(tmp_path / "b")
    assert find_videos(tmp_path / "b", task="parts") is None and find_videos(tmp_path / "nowhere") is None
    with pytest.raises(UserError, match="no videos for action_segmentation; it needs folders of frames"):
        find_videos(make_empty(tmp_path), "action_segmentation")
    with pytest.raises(UserError, match="there are no variants of folders of videos"):
        find_videos(tmp_path / "b", variant="x")


def make_empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def test_yaml_is_commented_and_never_overwritten(tmp_path):
    write_actions(tmp_path)
    file = init_videos(tmp_path)
    text = file.read_text()
    assert "- left  # 3 to learn from" in text and text.count("\n# ") > 10 and yaml.safe_load(text)["frames"] == 6
    with pytest.raises(UserError, match="exists already"):
        init_videos(tmp_path)
    with pytest.raises(UserError, match="no videos in folders named after classes"):
        init_videos(make_empty(tmp_path))
