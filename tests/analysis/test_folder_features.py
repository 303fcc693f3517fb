"""Distances of any two folders: what a sample of shapes, clips, frames, groups and voxels is; the command."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tiny_objects
import tiny_runs
import tiny_videos
from moving import CLASSES, action_set, moving, write_actions, write_frame, write_video
from pointadapt import cli
from pointadapt.analysis.folder_features import dense_means, folder_features
from pointadapt.backbones.weights import load_backbone
from pointadapt.data.scans import DataSet
from pointadapt.data.videos import VideoItems, collate_videos
from pointadapt.errors import UserError


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return str(tiny_videos.write_backbone(tmp_path_factory.mktemp("backbone") / "tokens.safetensors"))


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    return str(tiny_runs.write_backbone(tmp_path_factory.mktemp("backbone") / "points.safetensors"))


def test_clips(tmp_path, tokens):
    write_actions(tmp_path, 3, 1, frames=8)
    dataset, backbone = action_set(tmp_path), load_backbone(tokens)
    found = folder_features(backbone, tmp_path, limit=100)
    assert found.features.shape == (2 * 3 * 2, 24) and sorted(set(found.labels)) == list(CLASSES)
    items = VideoItems(dataset, "train", train=False, need=6)
    with torch.no_grad():
        feat = backbone.eval().tokenizer(collate_videos([items.clip(0)])["point"]).part("patch")
    torch.testing.assert_close(found.features[0], feat.mean((0, 1)), atol=1e-5, rtol=1e-5)
    few = folder_features(backbone, tmp_path, limit=4)
    assert sorted(few.labels) == ["left"] * 2 + ["right"] * 2
    again = folder_features(backbone, tmp_path, limit=4)
    assert torch.equal(few.features, again.features)
    other = folder_features(backbone, tmp_path, limit=4, at="output")
    assert other.features.shape == few.features.shape and not torch.allclose(other.features, few.features)


def test_frames_and_groups(tmp_path, tokens):
    backbone = load_backbone(tokens)
    for seed in range(3):
        video = write_video(tmp_path / "a" / "train" / f"v{seed}", moving(0, seed))
        (video / "labels.csv").write_text("\n".join(["left"] * 4 + ["right"] * 2) + "\n")
        for number, coord in enumerate(moving(0, seed)):
            label = np.full(len(coord), 3 + (number > 2))
            write_frame(tmp_path / "b" / "train" / f"v{seed}" / f"f_{number}.ply", coord, label)
    action_set(tmp_path / "a", task="action_segmentation", splits={"train": ["train"]})
    keys = {"task": "video_segmentation", "classes": ["low", "high"], "ids": {3: "low", 4: "high"}, "frames": 3}
    action_set(tmp_path / "b", splits={"train": ["train"]}, **keys)
    frames = folder_features(backbone, tmp_path / "a", limit=8)
    assert frames.features.shape == (8, 24) and frames.labels.count("left") == 4
    groups = folder_features(backbone, tmp_path / "b", limit=20)
    assert groups.features.shape == (20, 24) and groups.labels.count("low") == 10


def test_voxels(tmp_path, points):
    folder = tiny_runs.write_scans(tmp_path / "scans")
    found = folder_features(load_backbone(points), folder, limit=60)
    names = DataSet.open(folder).names
    assert found.features.shape[0] == 60 and {name: found.labels.count(name) for name in names} == dict.fromkeys(
        names, 20
    )
    shapes = folder_features(load_backbone(points), tiny_objects.write_shapes(tmp_path / "shapes"), limit=6)
    assert shapes.features.shape[1] == found.features.shape[1] and len(shapes.labels) == 6


def test_videos_through_a_backbone_over_points(tmp_path, points):
    """So that videos can be measured against scenes."""
    backbone = load_backbone(points)
    scenes = folder_features(backbone, tiny_runs.write_scans(tmp_path / "scans"), limit=6)
    clips = write_actions(tmp_path / "clips", 2, 1)
    dataset = action_set(clips)
    found = folder_features(backbone, clips, limit=20)
    assert found.features.shape == (len(found.labels), scenes.features.shape[1])
    point = collate_videos([VideoItems(dataset, "train", train=False).clip(0)])["point"]
    first = [dense_means(backbone.eval(), cloud).detach() for cloud in point.split()]
    torch.testing.assert_close(found.features[0], torch.cat(first).mean(0), atol=1e-4, rtol=1e-4)
    keys = {"task": "video_segmentation", "classes": ["low", "high"], "ids": {3: "low", 4: "high"}, "frames": 3}
    for number, coord in enumerate(moving(0)):
        label = np.where(np.arange(len(coord)) < 9, 3, 4)
        write_frame(tmp_path / "b" / "train" / "v" / f"f_{number}.ply", coord, label)
    action_set(tmp_path / "b", splits={"train": ["train"]}, **keys)
    rows = folder_features(backbone, tmp_path / "b", limit=20)
    assert rows.features.shape == (20, scenes.features.shape[1]) and rows.labels.count("low") == 10


def test_refused(tmp_path, tokens, points):
    scans, videos = tiny_runs.write_scans(tmp_path / "scans"), write_actions(tmp_path / "videos", 2, 1)
    action_set(videos)
    with pytest.raises(UserError, match="holds scenes: measure them with a backbone over single points"):
        folder_features(load_backbone(tokens), scans)
    with pytest.raises(UserError, match="lists no videos"):
        folder_features(load_backbone(tokens), videos, split="val")


def test_the_command(tmp_path, tokens, capsys):
    shapes, videos = tiny_objects.write_shapes(tmp_path / "shapes"), write_actions(tmp_path / "videos", 4, 1)
    action_set(videos)
    other = str(tiny_videos.write_backbone(tmp_path / "other.safetensors", seed=1))
    arguments = ["distance", str(shapes), str(videos), "--backbone", f"{tokens},{other}", "--picture"]
    assert cli.main([*arguments, str(tmp_path / "p.png")]) == 0
    said = capsys.readouterr().out
    assert "chance floor" in said and "9 + 9" in said and "5-NN" in said
    assert (tmp_path / "p-tokens.png").is_file() and (tmp_path / "p-other.png").is_file()
    assert cli.main(["distance", str(shapes), str(tmp_path / "none"), "--backbone", tokens]) == 2
    assert cli.main(["distance", str(shapes), str(videos), "--backbone", tokens, "--limit", "1"]) == 2
    errors = capsys.readouterr().err
    assert "there is no" in errors and "limit is 1" in errors


def test_the_command_looks_at_folders_without_a_yaml(tmp_path, tokens, capsys):
    videos, others = (write_actions(tmp_path / name, 4, 1) for name in ("videos", "others"))
    assert cli.main(["distance", str(videos), str(others), "--backbone", tokens]) == 0
    said = capsys.readouterr().out
    assert "others has no dataset.yaml: wrote" in said and "chance floor" in said
    assert (videos / "dataset.yaml").is_file() and (others / "dataset.yaml").is_file()


def test_procedural_shapes_by_name(tokens):
    found = folder_features(load_backbone(tokens), "procedural", limit=20)
    assert found.features.shape == (20, 24) and len(set(found.labels)) == 16
    assert F.pdist(found.features).min() > 0
