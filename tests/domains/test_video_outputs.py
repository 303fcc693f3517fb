"""What predictions of videos read and write: never each other, every frame, and all that can be read."""

import numpy as np
import pytest

from moving import action_set, moving, write_actions, write_frame, write_video
from pointadapt import cli
from pointadapt.analysis.timeline import draw_timeline
from pointadapt.errors import UserError
from pointadapt.evaluate import evaluate
from pointadapt.predict import predict
from pointadapt.run import Run
from pointadapt.train import train
from run_folders import table
from tiny_videos import flags, video_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on videos of two actions."""
    run = video_run(tmp_path_factory.mktemp("trained"), steps=1)
    train(run)
    return run


def write_set(folder, task):
    """A data set of the task: videos with labels per video, frame or point."""
    if task == "action":
        write_actions(folder, 2, 1, ending=".ply")
        return action_set(folder)
    for split, count in (("train", 2), ("test", 1)):
        for seed in range(count):
            for number, coord in enumerate(moving(0, seed)):
                label = (coord[:, 2] > 0).astype(int) if task == "video_segmentation" else None
                write_frame(folder / split / f"v{seed}" / f"f_{number}.ply", coord, label)
            if task == "action_segmentation":
                (folder / split / f"v{seed}" / "labels.txt").write_text("0\n0\n0\n1\n1\n1\n")
    return action_set(folder, task=task, points=12)


@pytest.mark.parametrize("task", ["action", "action_segmentation", "video_segmentation"])
def test_predictions_are_no_data(tmp_path, capsys, task):
    dataset = write_set(tmp_path / "videos", task)
    run = video_run(tmp_path, data=tmp_path / "videos", steps=1, val_share=0.0, select="last")
    train(run)
    before = evaluate(run)
    video = dataset.videos("test")[0].path
    for _ in range(2):
        assert predict(run, video, overwrite=True, quiet=True)[0].is_relative_to(video.parent)
        files = predict(run, video.parent, overwrite=True, quiet=True)
        assert files and not any("v0_labelled" in file.as_posix() for file in files)
        assert evaluate(run) == before
    assert f"{video.parent}: left out as made by predict: v0_labelled" in capsys.readouterr().err


def test_a_bad_video_does_not_stop_the_others(trained, tmp_path):
    source, out = tmp_path / "many", tmp_path / "out"
    for name in ("good", "torn", "better", "hollow"):
        write_video(source / name, moving(0), ".ply")
    write_video(source / "short", moving(0)[:1], ".ply")
    (source / "torn" / "frame_3.ply").unlink()
    write_frame(source / "hollow" / "frame_2.ply", np.zeros((0, 3)))
    with pytest.raises(UserError, match="^3 of 5 videos were not labelled: .*has no points.*; .*one frame.*missing"):
        predict(trained, source, out, quiet=True)
    assert sorted(file.name for file in out.glob("*.csv")) == ["better.csv", "good.csv", "predictions.csv"]
    assert [row["video"] for row in table(out / "predictions.csv")] == ["better", "good"]


def test_gaps_are_accepted_where_prediction_is_told(trained, tmp_path, capsys):
    source, out = write_video(tmp_path / "torn", moving(0, frames=9), ".ply"), tmp_path / "p.csv"
    (source / "frame_3.ply").unlink()
    write_frame(source / "frame_6.ply", np.zeros((0, 3)))
    arguments = ["predict", str(trained.folder), str(source), "--out", str(out)]
    assert cli.main(arguments) == 2
    assert "(in prediction: --gaps) to take them as neighbours" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*arguments, "--gaps"]) == 0
    assert table(out)[-1]["last_frame"] == "7"
    (source / "frame_3.ply").write_bytes((source / "frame_2.ply").read_bytes())
    with pytest.raises(UserError, match=r"frame 6 of .* has no points; take it out, or .* \(in prediction: --gaps\)"):
        predict(trained, source, tmp_path / "q.csv", quiet=True)


def test_a_missing_frame_does_not_stop_adapt_without_a_yaml(tmp_path, capsys):
    videos = write_actions(tmp_path / "videos", 2, 1)
    (videos / "train" / "left" / "v0" / "frame_2.npy").unlink()
    assert cli.main(["adapt", str(videos), "--out", str(tmp_path / "run"), *flags(tmp_path)]) == 0
    assert "note: a frame is missing between" in capsys.readouterr().err
    assert Run.load(tmp_path / "run").kind == "action"


@pytest.mark.parametrize("frames", [4, 5, 13, 33])
def test_the_end_of_a_video_is_seen(trained, tmp_path, frames):
    source = write_video(tmp_path / "long", moving(0, frames=frames), ".ply")
    predict(trained, source, tmp_path / "p.csv", quiet=True)
    shown = [(int(row["first_frame"]), int(row["last_frame"])) for row in table(tmp_path / "p.csv")]
    assert {frame for first, last in shown for frame in range(first, last + 1)} == set(range(frames))


def test_frames_that_nothing_saw_are_blank(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    spans = []
    monkeypatch.setattr(Axes, "axvspan", lambda self, start, end, **more: spans.append((start, end)))
    known = np.array([[0.9, 0.1]] * 3 + [[0, 0]] * 2 + [[0.2, 0.8]] * 2 + [[0, 0]])
    draw_timeline(tmp_path / "t.png", known, ["a", "b"])
    assert spans == [(0, 3), (5, 7)]
