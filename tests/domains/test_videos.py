"""Point videos through the engine: init, adapt, evaluate, predict; resumed runs; Stage 1; what a user can mend."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from moving import CLASSES, action_set, moving, write_actions, write_frame, write_npz, write_video
from pointadapt import cli
from pointadapt.analysis.timeline import bands, bins, draw_timeline, runs
from pointadapt.backbones.weights import load_backbone
from pointadapt.data.io import read_scan
from pointadapt.data.video_set import VideoSet
from pointadapt.domains import alignment
from pointadapt.domains.domain import open_domain
from pointadapt.domains.models import build_model, load_model
from pointadapt.domains.video_outputs import video_jobs, write_ply
from pointadapt.domains.videos import averaged
from pointadapt.errors import UserError
from pointadapt.evaluate import evaluate
from pointadapt.files import write_text
from pointadapt.metrics_video import SegmentScores
from pointadapt.predict import predict
from pointadapt.run import Run
from pointadapt.train import train
from run_folders import refused, table
from tiny_videos import flags, video_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on four training videos of each of two actions."""
    run = video_run(tmp_path_factory.mktemp("trained"), steps=2, eval_every=2)
    train(run)
    return run


# --- the whole path --------------------------------------------------------------------------------------------------


def test_init_adapt_evaluate_predict(tmp_path, capsys):
    videos, out = write_actions(tmp_path / "videos", 3, 2, ending=".ply"), tmp_path / "run"
    assert cli.main(["init", str(videos), "--frames", "4", "--up", "z"]) == 0
    assert "task: action" in capsys.readouterr().out
    assert VideoSet.open(videos).frames == 4
    assert cli.main(["adapt", str(videos), "--out", str(out), *flags(tmp_path), "--method.rank", "8"]) == 0
    assert "video acc." in capsys.readouterr().out
    run = Run.load(out)
    assert (run.kind, run.method, run.head, run.smoothing) == ("action", "pointata", "mlp", 0.1)
    assert cli.main(["evaluate", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 videos" in said and "clip acc." in said
    assert "video acc." in (out / "report.html").read_text()
    assert cli.main(["predict", str(out), str(videos / "test" / "left" / "v0"), "--out", str(tmp_path / "p.csv")]) == 0
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG" and "p.png" in capsys.readouterr().out
    rows = table(tmp_path / "p.csv")  # two clips of four frames cover six
    assert [(row["first_frame"], row["last_frame"]) for row in rows] == [("0", "3"), ("2", "5")]
    assert {row["class"] for row in rows} <= set(CLASSES)
    for path, word in {videos: "clip_sphere", out: "video", out / "adapter" / "best": "pointata"}.items():
        assert cli.main(["info", str(path)]) == 0
        assert word in capsys.readouterr().out


def test_adapt_alone_looks_at_the_folder(tmp_path, capsys):
    videos = write_actions(tmp_path / "videos", 2, 1)
    assert cli.main(["adapt", str(videos), "--out", str(tmp_path / "run"), *flags(tmp_path)]) == 0
    assert "has no dataset.yaml" in capsys.readouterr().out and Run.load(tmp_path / "run").kind == "action"


def test_predictions_of_many_videos(trained, tmp_path):
    files = predict(trained, trained.data / "test", tmp_path / "out", probabilities=True, quiet=True)
    assert sorted(file.relative_to(tmp_path / "out").as_posix() for file in files) == sorted(
        ["predictions.csv", *(f"{c}/v{i}.{end}" for c in CLASSES for i in (0, 1) for end in ("csv", "png"))]
    )
    rows = table(tmp_path / "out" / "predictions.csv")
    assert [row["video"] for row in rows] == [f"{c}/v{i}" for c in CLASSES for i in (0, 1)]
    for row in rows:
        shares = {name: float(row[name]) for name in CLASSES}
        assert max(shares, key=shares.__getitem__) == row["class"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert float(row["confidence"]) == max(shares.values())
    found = evaluate(trained)
    right = np.mean([row["class"] == row["video"].split("/")[0] for row in rows])
    assert found["video_accuracy"] == right and np.sum(found["confusion"]) == found["videos"] == 4


def test_predictions_of_a_file_with_many_videos(trained, tmp_path):
    clips = [moving(label, seed, 5) for label in (0, 1) for seed in (7, 8)]
    points = min(len(frame) for clip in clips for frame in clip)
    array = np.stack([[frame[:points] for frame in clip] for clip in clips])
    source = write_npz(tmp_path / "clips.npz", points=array)
    files = predict(trained, source, tmp_path / "out", quiet=True)
    assert (
        len([file for file in files if file.suffix == ".png"]) == 4 and (tmp_path / "out" / "predictions.csv") in files
    )


def test_a_long_video_is_read_frame_by_frame(trained, tmp_path, monkeypatch):
    """Never more than a batch of clips at once, whatever the length; predicted as the clips are by themselves."""
    from pointadapt.data import videos

    clip = moving(0, 3, 40)
    folder = write_video(tmp_path / "long", clip)
    largest, collate = [], videos.collate_videos

    def watched(samples):
        largest.append(sum(len(sample["counts"]) for sample in samples))
        return collate(samples)

    monkeypatch.setattr("pointadapt.domains.videos.collate_videos", watched)
    predict(trained, folder, tmp_path / "long.csv", quiet=True)
    assert max(largest) == trained.batch_size * 4 and sum(largest) == 40
    rows = table(tmp_path / "long.csv")
    assert [int(row["first_frame"]) for row in rows] == list(range(0, 40, 4))
    write_video(tmp_path / "part", clip[8:12], first=8)
    predict(trained, tmp_path / "part", tmp_path / "part.csv", quiet=True)
    (alone,) = table(tmp_path / "part.csv")
    assert alone["class"] == rows[2]["class"]


def test_short_videos_are_predicted_and_named(tmp_path, capsys):
    run = video_run(tmp_path, steps=1)
    content = yaml.safe_load((run.data / "dataset.yaml").read_text())
    (run.data / "dataset.yaml").write_text(yaml.safe_dump({**content, "short_video": "drop"}))
    write_video(run.data / "test" / "left" / "short", moving(0, 9, 3), ".ply")
    train(run)
    found = evaluate(run)
    assert found["dropped"] == ["test/left/short"] and found["videos"] == 4
    assert found["video_accuracy_all"] == pytest.approx(found["video_accuracy"] * 4 / 5)
    assert "shorter than 4 frames and were left out" in (run.folder / "report.html").read_text()
    assert cli.main(["evaluate", str(run.folder)]) == 0
    assert "left out, shorter than a clip" in (said := capsys.readouterr().out) and "test/left/short" in said
    predict(run, run.data / "test" / "left" / "short", tmp_path / "short.csv", quiet=True)
    assert table(tmp_path / "short.csv")[0]["last_frame"] == "2"


# --- training ---------------------------------------------------------------------------------------------------------


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / name / "adapter_model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Killed(Exception):
    pass


def killed_at(monkeypatch, step: int) -> None:
    """The next training dies right after the state of ``step`` is saved."""
    from pointadapt.checkpoint import save as saved

    def save(out, accelerator, model, optimizer, schedule, now):
        saved(out, accelerator, model, optimizer, schedule, now)
        if now.step == step:
            raise Killed

    monkeypatch.setattr(sys.modules["pointadapt.train"], "save", save)


@pytest.mark.parametrize("align", ["none", "procedural"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch, align):
    monkeypatch.setattr(alignment, "SOURCE", 32)
    options = {"rank": 8, "align": align, "align_epochs": 1, "align_steps": 2}
    whole = video_run(tmp_path, out=tmp_path / "whole", steps=4, options=options)
    train(whole)
    again = video_run(tmp_path, out=tmp_path / "again", steps=4, options=options)
    with monkeypatch.context() as patch:
        killed_at(patch, 2)
        with pytest.raises(Killed):
            train(again)
    result = train(again, resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "again"))
    assert ("align" in result) == (align != "none")


def test_stage_one_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(alignment, "SOURCE", 32)
    options = {"rank": 8, "align": "procedural", "align_epochs": 2, "align_steps": 2}
    run = video_run(tmp_path, steps=2, options=options)
    with monkeypatch.context() as patch:  # killed between the stages
        patch.setattr(sys.modules["pointadapt.train"], "make_accelerator", killed_after_stage_one(patch))
        with pytest.raises(Killed):
            train(run)
    kept = (run.folder / alignment.WEIGHTS).read_bytes()
    assert not (run.folder / "state").exists()
    with monkeypatch.context() as patch:  # and never done again
        patch.setattr(alignment, "align_model", None)
        result = train(run, resume=True)
    assert (run.folder / alignment.WEIGHTS).read_bytes() == kept
    told = json.loads((run.folder / alignment.LOG).read_text())
    assert result["align"] == told and len(told["distance"]) == 3 and told["distance"][-1] < told["distance"][0]
    stored = {key.partition(".pae.")[2]: value for key, value in weights(run.folder).items() if ".pae." in key}
    from safetensors.torch import load

    assert equal(stored, load(kept))
    evaluate(run)
    assert "Stage 1: the distance of" in (run.folder / "report.html").read_text()
    assert cli.main(["info", str(run.folder)]) == 0 and "stage 1" in capsys.readouterr().out


def killed_after_stage_one(patch):
    """make_accelerator, whose ``prepare`` dies."""
    from pointadapt.train import make_accelerator

    def make(run):
        accelerator = make_accelerator(run)

        def prepare(*parts):
            raise Killed

        patch.setattr(accelerator, "prepare", prepare)
        return accelerator

    return make


PROCESSES = """
import sys
sys.path[:0] = {path!r}
import torch
from pathlib import Path
from safetensors.torch import save_file
from pointadapt.domains import alignment
from pointadapt.domains.domain import process
from pointadapt.train import train
from tiny_videos import video_run

alignment.SOURCE = 32
aligned, placed = alignment.align_model, alignment.place

def another_device(*args):
    found = aligned(*args)
    for value in found.state.values():
        value += 1e-3 * process()[0]
    return found

def noted(model, state):
    placed(model, state)
    pae = {{n.split(".pae.")[1]: v.clone() for n, v in model.state_dict().items() if ".pae." in n}}
    save_file(pae, {folder!r} + f"/placed{{process()[0]}}.safetensors")

alignment.align_model, alignment.place = another_device, noted
options = dict(rank=8, align="procedural", align_epochs=1, align_steps=2)
result = train(video_run(Path({folder!r}), steps=2, options=options))
assert result["processes"] == 2 and result["align"]["epochs"] == 1, result
"""


@pytest.mark.slow
def test_stage_one_of_two_processes(tmp_path):
    """Both go on with the first one's embedder, bit by bit, whatever rounding made of the other's."""
    from safetensors.torch import load_file

    video_run(tmp_path)  # writes videos and backbone
    tests = Path(__file__).parent.parent
    script = tmp_path / "script.py"
    script.write_text(PROCESSES.format(path=[str(tests), str(tests.parent / "src")], folder=str(tmp_path)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(tmp_path / f"placed{rank}.safetensors") for rank in (0, 1))
    assert first["up.weight"].any() and equal(first, second)
    assert equal(first, load_file(tmp_path / "run" / alignment.WEIGHTS))
    trained = {key.partition(".pae.")[2]: value for key, value in weights(tmp_path / "run").items() if ".pae." in key}
    assert equal(trained, first)


def test_stage_one_sees_the_training_split_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "SOURCE", 32)
    run = video_run(tmp_path, steps=1, options={"align": "procedural", "align_epochs": 1, "align_steps": 1})
    domain, seen = open_domain(run), set()
    clip = type(domain.items("train")).clip

    def watched(items, index):
        sample = clip(items, index)
        seen.add(sample["video"])
        return sample

    monkeypatch.setattr("pointadapt.data.videos.VideoItems.clip", watched)
    run.folder.mkdir()
    domain.first_stage(build_model(domain), False, True)
    held = {video.name for split in ("val", "test") for video in domain.dataset.videos(split)}
    assert seen == {video.name for video in domain.dataset.videos("train")} and held and not seen & held


def test_fewer_videos_to_learn_from(tmp_path):
    run = video_run(tmp_path, labels="50%", val_share=0.0, select="last")
    some = open_domain(run).items("train", train=True).videos
    assert open_domain(run).train_size() == len(some) == 4  # an epoch is of those
    assert sorted(video.name.split("/")[1] for video in some) == ["left"] * 2 + ["right"] * 2
    everything = open_domain(video_run(tmp_path, labels="100%", val_share=0.0, select="last"))
    assert {video.name for video in some} < {video.name for video in everything.items("train").videos}


def test_a_result_does_not_depend_on_the_batch(trained):
    domain = open_domain(trained)
    model, items = load_model(domain), domain.items("test")
    device = torch.device("cpu")
    from pointadapt.data.videos import collate_videos

    together = domain.logits(model, collate_videos([items.clip(row) for row in range(4)]), device)
    alone = torch.cat([domain.logits(model, collate_videos([items.clip(row)]), device) for row in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert evaluate(trained) == evaluate(trained)


# --- segmentation ----------------------------------------------------------------------------------------------------


def write_frame_actions(folder: Path) -> Path:
    """Videos that go left for six frames, then right for three; a label for each frame."""
    for split, count in (("train", 3), ("test", 2)):
        for seed in range(count):
            video = write_video(folder / split / f"v{seed}", moving(0, seed) + moving(1, seed, 3))
            (video / "labels.csv").write_text("\n".join(["left"] * 6 + ["right"] * 3) + "\n")
    keys = {"task": "action_segmentation", "splits": {"train": ["train"], "test": ["test"]}, "up": "z"}
    action_set(folder, **keys)
    return folder


def write_point_classes(folder: Path, points: int = 20) -> Path:
    """Videos whose points are labelled 3 below and 4 above."""
    for split, count in (("train", 3), ("test", 1)):
        for seed in range(count):
            for number, coord in enumerate(moving(0, seed, points=points)):
                label = (coord[:, 2] > 0).astype(int) + 3
                write_frame(folder / split / f"v{seed}" / f"f_{number}.ply", coord, label)
    keys = {"task": "video_segmentation", "classes": ["low", "high"], "ids": {3: "low", 4: "high"}, "frames": 3}
    action_set(folder, **keys, points=12, up="z")
    return folder


def test_action_segmentation(tmp_path, capsys):
    videos = write_frame_actions(tmp_path / "videos")
    run, out = tmp_path / "run", tmp_path / "p.csv"
    assert cli.main(["adapt", str(videos), "--out", str(run), *flags(tmp_path)]) == 0
    assert "frame acc." in capsys.readouterr().out
    assert cli.main(["evaluate", str(run)]) == 0
    assert "F1@50" in capsys.readouterr().out and "<h2>Timelines</h2>" in (run / "report.html").read_text()
    assert cli.main(["predict", str(run), str(videos / "test" / "v0"), "--out", str(out)]) == 0
    rows = table(out)
    assert [row["file"] for row in rows] == [f"frame_{i}.npy" for i in range(9)]
    assert all(0.5 <= float(row["confidence"]) <= 1 for row in rows) and out.with_suffix(".png").is_file()
    found = json.loads((run / "evaluation.json").read_text())
    predicted = [row["class"] for row in rows]
    files = predict(run, videos / "test", tmp_path / "all", quiet=True)
    predicted += [row["class"] for row in table(tmp_path / "all" / "v1.csv")]
    right = np.mean([p == t for p, t in zip(predicted, (["left"] * 6 + ["right"] * 3) * 2, strict=True)])
    released = SegmentScores(compat=True)
    for first in (0, 9):
        released.add([int(c == "right") for c in predicted[first : first + 9]], [0] * 6 + [1] * 3)
    assert found["f1_released"] == {k: v for k, v in released.scores().items() if "@" in k}
    assert found["frame_accuracy"] == pytest.approx(right) and found["frames"] == 18 and len(files) == 4


def test_semantic_segmentation(tmp_path, capsys):
    videos = write_point_classes(tmp_path / "videos")
    run, out = tmp_path / "run", tmp_path / "labelled"
    assert cli.main(["adapt", str(videos), "--out", str(run), *flags(tmp_path)]) == 0
    assert cli.main(["evaluate", str(run)]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert cli.main(["predict", str(run), str(videos / "test" / "v0"), "--out", str(out)]) == 0
    assert sorted(file.name for file in out.iterdir()) == [
        "classes.csv",
        *(f"f_{i}.ply" for i in range(6)),
        "timeline.png",
    ]
    found = json.loads((run / "evaluation.json").read_text())
    assert found["miou_labelled"] == pytest.approx(found["miou"])  # both classes are in the test
    source, labelled = (read_scan(folder / "f_2.ply") for folder in (videos / "test" / "v0", out))
    assert np.array_equal(source.coord, labelled.coord)
    classes = read_scan(out / "f_2.ply", "class").label
    assert set(classes.tolist()) <= {3, 4}
    assert float(table(out / "classes.csv")[2]["high"]) == pytest.approx(np.mean(classes == 4))
    assert "exists already" in refused(capsys, "predict", run, videos / "test" / "v0", "--out", out)


def test_new_frames_need_no_field_of_labels(tmp_path):
    """A data set that names its label field labels recordings that have none, or another."""
    videos = write_point_classes(tmp_path / "videos")
    content = yaml.safe_load((videos / "dataset.yaml").read_text())
    (videos / "dataset.yaml").write_text(yaml.safe_dump({**content, "label_field": "label"}))
    run = video_run(tmp_path, data=videos, steps=1, val_share=0.0, select="last")
    train(run)
    files = predict(run, write_video(tmp_path / "new", moving(0), ".ply"), tmp_path / "out", quiet=True)
    assert tmp_path / "out" / "timeline.png" in files
    assert set(read_scan(tmp_path / "out" / "frame_2.ply", "class").label.tolist()) <= {3, 4}


def test_dense_frames_through_a_pyramid(tmp_path, capsys, monkeypatch):
    """--head slim: trained with Stage 1, evaluated, kept and predicted with; the number of points belongs to it."""
    monkeypatch.setattr(alignment, "SOURCE", 32)
    videos, run, out = write_point_classes(tmp_path / "videos", 150), tmp_path / "run", tmp_path / "labelled"
    stage = {"method.align": "procedural", "method.align-epochs": 1, "method.align-steps": 2, "method.rank": 4}
    told = flags(tmp_path, head="slim", points=144, **stage)
    assert cli.main(["adapt", str(videos), "--out", str(run), *told]) == 0
    said = capsys.readouterr()
    assert "mIoU" in said.out and "5-NN accuracy from" in said.err
    assert json.loads((run / "align.json").read_text())["epochs"] == 1
    model = load_model(open_domain(Run.load(run)))
    pyramid = model.get_base_model().backbone.pyramid
    assert pyramid.sizes == (36, 9, 2, 1)
    stored = weights(run)
    assert any(".pyramid." in key for key in stored) and not any(".pae." in key for key in stored)
    found = evaluate(Run.load(run))
    assert 0 <= found["miou"] <= 1 and evaluate(Run.load(run)) == found
    assert cli.main(["predict", str(run), str(videos / "test" / "v0"), "--out", str(out)]) == 0
    assert len(list(out.glob("f_*.ply"))) == 6 and set(read_scan(out / "f_2.ply", "class").label.tolist()) <= {3, 4}
    line = refused(capsys, "adapt", videos, "--out", tmp_path / "few", *flags(tmp_path, head="pyramid", points=99))
    assert "at least 128 points, not 99" in line


def test_dense_frames_have_more_groups(tmp_path):
    videos = write_point_classes(tmp_path / "videos", 400)
    run = video_run(tmp_path, data=videos, points=320)
    backbone = open_domain(run).task(load_backbone(run.backbone)).backbone
    assert backbone.tokenizer.groups == backbone.config.groups == 10  # 320 / 32
    for changes, groups in (
        ({"points": 100}, 6),
        ({"points": 320, "groups": 7}, 7),
        ({"points": 320, "head": "slim"}, 6),
    ):
        domain = open_domain(video_run(tmp_path, data=videos, **changes))
        assert build_model(domain).get_base_model().backbone.config.groups == groups


def test_labelled_points_without_a_file_to_copy(tmp_path):
    coord = np.arange(12.0).reshape(4, 3)
    write_ply(tmp_path / "a.ply", coord, np.array([1, 0, 2, 1]), np.full(4, 0.5))
    assert np.array_equal(read_scan(tmp_path / "a.ply").coord, coord)
    assert read_scan(tmp_path / "a.ply", "class").label.tolist() == [1, 0, 2, 1]


# --- pictures --------------------------------------------------------------------------------------------------------


def test_timeline(tmp_path):
    assert runs(np.array([2, 2, 0, 1, 1])) == [(0, 2), (2, 3), (3, 5)]
    values = np.random.default_rng(0).random((5000, 3))
    assert bins(values, 1600).shape == (1600, 3) and np.array_equal(bins(values[:9], 1600), values[:9])
    assert bins(np.arange(8.0)[:, None], 4).ravel().tolist() == [0.5, 2.5, 4.5, 6.5]
    seen = np.array([[0.5, 1.5], [0, 0], [2, 0]], np.float32)  # no clip showed the second frame
    assert averaged(seen).tolist() == [[0.25, 0.75], [0, 0], [1, 0]]
    many = np.random.default_rng(0).random((300, 60))
    names = [f"class {i} with a long name indeed" for i in range(60)]
    assert draw_timeline(tmp_path / "t.png", many, names, "title", 3).stat().st_size > 5000
    svg = bands({"truth": np.array([0, 0, -1, 1]), "predicted": np.array([0, 1, 1, 1])}, ["a<b", "c"])
    assert svg.count("<rect") == 5 and "a&lt;b, frames 0 to 1" in svg and "not labelled, frames 2 to 2" in svg


# --- what a user can mend --------------------------------------------------------------------------------------------


def damage(folder: Path, kind: str) -> str:
    """Spoil one training video; returns what the message must name."""
    video = folder / "train" / "left" / "v1"
    if kind == "missing frame":
        (video / "frame_3.ply").unlink()
        return "a frame is missing between frame_2.ply and frame_4.ply"
    if kind == "one frame":
        for number in range(1, 6):
            (video / f"frame_{number}.ply").unlink()
        return "a video of one frame"
    if kind == "empty frame":
        write_frame(video / "frame_2.ply", np.zeros((0, 3)))
        return "has no points"
    if kind == "unknown label":
        shutil.move(video, folder / "train" / "up" / "v1")
        return "unknown label"
    write_text(video / "frame_2.ply", "ply\nformat ascii 1.0\n")
    return "frame_2.ply"


@pytest.mark.parametrize("kind", ["missing frame", "one frame", "empty frame", "unknown label", "damaged"])
def test_bad_videos(tmp_path, capsys, kind):
    videos = write_actions(tmp_path / "videos", 3, 1, ending=".ply")
    action_set(videos)
    named = damage(videos, kind)
    line = refused(capsys, "adapt", videos, "--out", tmp_path / "run", *flags(tmp_path, steps=20, select="last"))
    assert named in line


@pytest.mark.parametrize("kind", ["missing frame", "one frame", "empty frame", "damaged"])
def test_bad_videos_to_predict(trained, tmp_path, capsys, kind):
    videos = write_actions(tmp_path / "videos", 2, 1, ending=".ply")
    named = damage(videos, kind)
    source = videos / "train" / "left" / "v1"
    before = sorted(tmp_path.rglob("*"))
    assert named in refused(capsys, "predict", trained.folder, source)
    assert sorted(tmp_path.rglob("*")) == before


def test_where_one_video_goes(trained, tmp_path):
    dataset, source = open_domain(trained).dataset, tmp_path / "take.two"
    shutil.copytree(trained.data / "test" / "left" / "v0", source)
    (tmp_path / "there.csv").mkdir()
    for out, ending, expected in (
        (None, ".csv", "take.two_labelled.csv"),
        (None, "", "take.two_labelled"),
        ("a.csv", ".csv", "a.csv"),
        ("a", ".csv", "a/take.two.csv"),
        ("there.csv", ".csv", "there.csv/take.two.csv"),
        ("a", "", "a"),
    ):
        ((_, target, _),) = video_jobs(dataset, source, tmp_path / out if out else None, False, ending)
        assert target == tmp_path / expected
    with pytest.raises(UserError, match="give --out a folder$"):
        video_jobs(dataset, source, tmp_path / "a.ply", False, "")


def test_bad_arguments(trained, tmp_path, capsys):
    base = ["adapt", trained.data, "--out", tmp_path / "run", *flags(tmp_path)]
    run = trained.folder
    for message, arguments in {
        "head 'mlp3' is not for videos": [*base, "--head", "mlp3"],
        "labels 20pts is for scenes": [*base, "--labels", "20pts"],
        "mix3d merges crops of scenes": [*base, "--mix3d", "0.5"],
        "there are 0 test-time views": ["evaluate", run, "--tta", "2"],
        "corruptions are for single objects": ["evaluate", run, "--corruption", "jitter"],
        "there is no video": ["predict", run, tmp_path / "nothing"],
        "give --out a folder": ["predict", run, trained.data / "test", "--out", tmp_path / "x.csv"],
        "is the name of a file: give --out a folder": [
            "predict",
            run,
            trained.data / "test",
            "--out",
            tmp_path / "x.mp4",
        ],
        "a folder, or a name in .csv": [
            *("predict", run, trained.data / "test" / "left" / "v0", "--out", tmp_path / "x.off"),
        ],
        "lies in the source": ["predict", run, trained.data / "test", "--out", trained.data / "test" / "out"],
        "nothing to align": [*base, "--method", "pointata", "--method.align", "procedural", "--method.pae", "none"],
    }.items():
        assert message in refused(capsys, *arguments), arguments
    assert not (tmp_path / "run").exists()


def test_arms_are_compared(tmp_path, monkeypatch):
    """Each arm with its own Stage 1; what they cost; scores per class."""
    from pointadapt.compare.compare import compare

    monkeypatch.setattr(alignment, "SOURCE", 32)
    run = video_run(tmp_path)
    arms = ["probe = linear", "PointATA = pointata[rank=4,align=procedural,align_epochs=1,align_steps=1]"]
    settings = {"backbone": run.backbone, "steps": 1, "batch_size": 4, "head": "linear", "threads": 1, "val_share": 0.0}
    result = compare(run.data, tmp_path / "grid", arms, seeds=1, factors=(1.0,), **settings)
    assert result["finished"] == result["runs"] == 2
    text = (tmp_path / "grid" / "compare.csv").read_text()
    assert "probe" in text and "video_accuracy" in text
    page = (tmp_path / "grid" / "compare.html").read_text()
    assert "video acc." in page and "left" in page


def test_stage_one_is_for_videos(tmp_path, capsys):
    from tiny_objects import write_shapes

    shapes = write_shapes(tmp_path / "shapes", train=2, test=1)
    arguments = ["adapt", shapes, "--out", tmp_path / "run", *flags(tmp_path), "--method", "pointata"]
    assert "align is for videos" in refused(capsys, *arguments, "--method.align", "procedural")
    assert not (tmp_path / "run").exists()


def test_rare_classes_weigh_more(tmp_path):
    videos = write_point_classes(tmp_path / "videos")
    for file in (videos / "train").rglob("*.ply"):
        coord = read_scan(file).coord
        write_frame(file, coord, np.where(np.arange(len(coord)) < 2, 3, 4))
    run = video_run(tmp_path, data=videos, val_share=0.0, select="last")
    domain = open_domain(run)
    model = build_model(domain)
    assert model.get_base_model().weights is None
    domain.first_stage(model, False, True)
    low, high = model.get_base_model().weights.tolist()
    assert high == 1 and 2 < low < 5
