"""Raw depth frames become clouds: exact geometry, resumed and atomic, several processes, damaged files told apart."""

import numpy as np
import pytest
from PIL import Image

from pointadapt.data.prepare_video import prepare_videos, unproject, write_video
from pointadapt.data.video_folders import find_videos
from pointadapt.data.videos import VideoItems
from pointadapt.errors import UserError


def depth_frames(seed=0, frames=3, height=6, width=8):
    rng = np.random.default_rng(seed)
    depth = rng.integers(1000, 3000, (frames, height, width)).astype(np.uint32)
    depth[rng.random(depth.shape) < 0.4] = 0
    return depth


def write_bin(path, depth):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames, height, width = depth.shape
    path.write_bytes(np.array([frames, width, height], "<u4").tobytes() + depth.astype("<u4").tobytes())
    return path


def write_pictures(folder, depth):
    folder.mkdir(parents=True)
    for number, picture in enumerate(depth, 1):
        Image.fromarray(picture.astype(np.uint16)).save(folder / f"Depth-{number:08d}.png")
    return folder


def test_unproject():
    depth = np.zeros((4, 6), np.uint32)
    depth[2, 3], depth[0, 5], depth[3, 0] = 280, 560, 28
    assert unproject(depth).tolist() == [[4, -4, 560], [0, 0, 280], [np.float32(-0.3), np.float32(0.1), 28]]
    assert unproject(np.zeros((4, 6))).shape == (0, 3)


def write_msr(folder):
    for subject in (1, 6):
        for action in (1, 2):
            write_bin(folder / f"a{action:02d}_s{subject:02d}_e01_sdepth.bin", depth_frames(10 * subject + action))
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_msr(tmp_path, workers):
    write_msr(tmp_path / "raw" / "Depth")
    seen = []
    done = prepare_videos(tmp_path / "raw", tmp_path / "out", workers=workers, show=lambda *at: seen.append(at))
    assert (done.kind, done.written, done.skipped, done.empty, done.failed) == ("msr", 4, 0, 0, ())
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with np.load(tmp_path / "out" / "a02_s06_e01_sdepth.npz", allow_pickle=True) as file:  # as published loaders do
        clouds = file["point_clouds"]
    depth = depth_frames(62)
    assert len(clouds) == 3 and all(np.array_equal(a, unproject(b)) for a, b in zip(clouds, depth, strict=True))
    assert len(clouds[0]) == (depth[0] > 0).sum() and clouds[0].dtype == np.float32
    layout = find_videos(tmp_path / "out", frames=2)
    items = VideoItems(layout.dataset, "test")
    assert layout.title == "MSR-Action3D" and items.targets.tolist() == [0, 1]
    assert len(items) == 4 and items[2]["counts"].tolist() == [len(clouds[0]), len(clouds[1])]


def test_ntu(tmp_path):
    depth = depth_frames()
    write_pictures(tmp_path / "raw" / "S001C001P003R001A007", depth)
    write_pictures(tmp_path / "raw" / "S001C002P001R001A007", depth)
    done = prepare_videos(tmp_path / "raw", tmp_path / "out")
    assert (done.kind, done.written) == ("ntu", 2)
    layout = find_videos(tmp_path / "out", frames=2)
    assert layout.title == "NTU RGB+D 60 (cross-subject)" and layout.dataset.scale == 100
    items = VideoItems(layout.dataset, "test")
    assert items.targets.tolist() == [6]
    coord = items.frame(0, 0)["coord"][np.argsort(items.frame(0, 0)["index"])]
    assert np.allclose(coord, unproject(depth[0]) / 65535 * [1, -1, -1], atol=1e-7)


def test_interrupted_work_goes_on(tmp_path):
    raw, out = write_msr(tmp_path / "raw"), tmp_path / "out"

    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        prepare_videos(raw, out, show=stop)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert len(before) == 2
    seen = []
    done = prepare_videos(raw, out, show=lambda *at: seen.append(at))
    assert (done.written, done.skipped) == (2, 2) and seen == [(3, 4), (4, 4)]
    assert all((out / name).stat().st_mtime_ns == time for name, time in before.items())
    assert prepare_videos(raw, out, overwrite=True).written == 4
    assert sorted(path.suffix for path in out.iterdir()) == [".npz"] * 4


def test_outputs_are_whole_or_absent(tmp_path, monkeypatch):
    def full(stream, **arrays):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UserError, match="cannot write .*v.npz: No space left on device"):
        write_video(tmp_path / "v.npz", [np.zeros((2, 3))])
    assert list(tmp_path.iterdir()) == []


def test_frames_of_equal_size_stay_a_list(tmp_path):
    write_video(tmp_path / "v.npz", [np.zeros((2, 3)), np.ones((2, 3))])
    with np.load(tmp_path / "v.npz", allow_pickle=True) as file:
        assert file["point_clouds"].shape == (2,)


def test_empty_frames_stay_and_are_counted(tmp_path):
    depth = depth_frames()
    depth[1] = 0
    write_bin(tmp_path / "a01_s01_e01_sdepth.bin", depth)
    done = prepare_videos(tmp_path, tmp_path / "out")
    assert done.empty == 1
    layout = find_videos(tmp_path / "out", frames=2)
    with pytest.raises(UserError, match="frame 1 of a01_s01_e01_sdepth.npz has no points; take it out, or set"):
        VideoItems(layout.dataset, "train", train=False)[0]


def test_damaged_videos_are_named_and_the_others_done(tmp_path):
    raw = write_msr(tmp_path / "raw")
    (raw / "a01_s01_e01_sdepth.bin").write_bytes((raw / "a01_s01_e01_sdepth.bin").read_bytes()[:-4])
    (raw / "a02_s01_e01_sdepth.bin").write_bytes(b"x")
    write_bin(raw / "a01_s06_e01_sdepth.bin", depth_frames(frames=1))
    done = prepare_videos(raw, tmp_path / "out")
    assert done.written == 1 and [path.name for path in (tmp_path / "out").iterdir()] == ["a02_s06_e01_sdepth.npz"]
    short, single, stub = done.failed
    assert "3 frames of 8 x 6 need 588 bytes, the file has 584, so it is truncated or damaged; copy it again" in short
    assert "a video of 1 frames shows no motion" in single and "1 bytes are no depth video" in stub


def test_bad_pictures(tmp_path):
    folders = {
        name: tmp_path / "raw" / f"S001C001P00{i}R001A001" for i, name in enumerate(("gap", "one", "rgb", "bad"))
    }
    for folder in folders.values():
        write_pictures(folder, depth_frames(frames=5))
    (folders["gap"] / "Depth-00000003.png").unlink()
    for number in range(2, 6):
        (folders["one"] / f"Depth-{number:08d}.png").unlink()
    Image.new("RGB", (8, 6)).save(folders["rgb"] / "Depth-00000002.png")
    (folders["bad"] / "Depth-00000002.png").write_bytes(b"no picture")
    done = prepare_videos(tmp_path / "raw", tmp_path / "out")
    gap, one, rgb, bad = done.failed
    assert "a frame is missing between Depth-00000002.png and Depth-00000004.png" in gap
    assert "1 depth pictures; a video has two at least" in one
    assert "a picture of mode RGB; depth is a 16-bit grey PNG" in rgb and "not readable as PNG, so damaged" in bad


def test_nothing_to_prepare(tmp_path):
    with pytest.raises(UserError, match="no raw videos here; prepare knows"):
        prepare_videos(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="there is no folder"):
        prepare_videos(tmp_path / "nowhere", tmp_path / "out")
    for place in ("a", "b"):
        write_bin(tmp_path / place / "a01_s01_e01_sdepth.bin", depth_frames())
    with pytest.raises(UserError, match="two videos are called a01_s01_e01_sdepth.bin"):
        prepare_videos(tmp_path, tmp_path / "out")
