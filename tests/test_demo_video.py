"""The demo on videos: its clips are reversed in pairs, it trains, reports and draws."""

import numpy as np
import pytest

from pointadapt import cli
from pointadapt.analysis.report import Result
from pointadapt.data.synthetic_video import clip
from pointadapt.data.videos import VideoItems, VideoSet
from pointadapt.demo_video import Size, direction, write_reversed
from pointadapt.errors import UserError


def test_clips(tmp_path):
    size = Size(pairs=2, train=8, test=4, frames=4, points=32)
    dataset = VideoSet.open(write_reversed(tmp_path / "a", size))
    assert dataset.names == ["move right", "move left", "rise", "fall"]
    items = {split: VideoItems(dataset, split, train=False) for split in ("train", "test")}
    assert items["train"].targets.tolist() == [0, 1, 2, 3] * 2 and len(items["test"].clips) == 4
    raw = [np.load(write_reversed(tmp_path / name, size, seed) / "train.npz")["points"] for name, seed in
           (("b", 0), ("c", 1))]  # fmt: skip
    again = np.load(tmp_path / "a" / "train.npz")["points"]
    assert np.array_equal(raw[0], again) and not np.allclose(raw[1], again)
    assert not any(
        np.allclose(again[i], test) for test in np.load(tmp_path / "a" / "test.npz")["points"] for i in range(8)
    )
    assert np.array_equal(clip(5, 1, 4, 32), clip(5, 0, 4, 32)[::-1])
    with pytest.raises(UserError, match="there are 6 motions"):
        Size(pairs=7)


def test_right_direction():
    blind = [[5, 5, 0, 0], [5, 5, 0, 0], [0, 0, 5, 5], [0, 0, 5, 5]]
    assert direction(Result("blind", confusion=blind)) == 0.5
    assert direction(Result("sees", confusion=(np.eye(4) * 9).tolist())) == 1
    assert direction(Result("other", confusion=[[0, 0, 9, 0], [0, 0, 9, 0], [9, 0, 0, 0], [9, 0, 0, 0]])) == 0


def test_the_command(tmp_path, capsys):
    arguments = f"demo --video --out {tmp_path} --steps 1 --clips 4 --pairs 1".split()
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "per-frame probe" in said and "PointATA" in said and "2 timelines" in said
    assert "Right direction" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "predicted" / "tables" / "clip_1.npz.png").is_file()
