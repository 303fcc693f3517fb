"""Fewer labels of scans: shares that nest and follow the seed, labelled points, scans held out."""

from pathlib import Path

import numpy as np
import pytest

from pointadapt.data.labels import fewer_items, hold_out, keep_labels, keep_points, listed_scans, named, parse_labels
from pointadapt.data.scans import DataSet
from pointadapt.errors import UserError

SPLITS = {"train": tuple(f"train{i}.ply" for i in range(20)), "val": ("val.ply",), "test": ("test.ply",)}


@pytest.fixture
def dataset(tmp_path):
    for entry in sum(SPLITS.values(), ()):
        (tmp_path / entry).touch()
    return DataSet(tmp_path, {0: "a", 1: "b"}, splits=SPLITS)


@pytest.mark.parametrize(
    "text, found", [("10%", (0.1, None)), (" 2.5 % ", (0.025, None)), ("100%", (1.0, None)), ("200pts", (1.0, 200))]
)
def test_shares_and_numbers_of_points(text, found):
    assert parse_labels(text) == pytest.approx(found)


@pytest.mark.parametrize("text", ["0%", "101%", "-5%", "0pts", "10", "ten%", "10 %pts"])
def test_what_is_neither(text):
    with pytest.raises(UserError, match="write a share"):
        parse_labels(text)


def test_a_smaller_share_is_part_of_a_larger_one_and_the_seed_says_which(dataset):
    few, more = (fewer_items(dataset, share, seed=0).scans("train") for share in (0.2, 0.5))
    assert len(few) == 4 and len(more) == 10 and set(few) < set(more) < set(SPLITS["train"])
    assert more == tuple(scan for scan in SPLITS["train"] if scan in more)  # in their order
    assert few == fewer_items(dataset, 0.2, seed=0).scans("train") != fewer_items(dataset, 0.2, seed=1).scans("train")
    assert len(fewer_items(dataset, 0.001, seed=0).scans("train")) == 1
    for split in ("val", "test"):
        assert fewer_items(dataset, 0.2, seed=0).scans(split) == SPLITS[split]


def test_scans_held_out_are_not_learned_from(dataset):
    held = hold_out(dataset, 0.2, seed=0)
    assert len(held.scans("val")) == 4 and held.scans("test") == SPLITS["test"]
    assert set(held.scans("train")) | set(held.scans("val")) == set(SPLITS["train"])  # and the listed val is left out
    assert not set(held.scans("train")) & set(held.scans("val"))
    assert held.scans("val") != hold_out(dataset, 0.2, seed=1).scans("val")
    assert len(hold_out(dataset, 1.0, seed=0).scans("train")) == 1 and not hold_out(dataset, 0.0, seed=0).scans("val")


def test_as_many_labels_as_asked_are_kept():
    segment = np.arange(300) % 4 - 1
    few, more, other = (keep_labels(segment, *asked) for asked in ((10, 0), (50, 0), (10, 1)))
    assert [(kept >= 0).sum() for kept in (few, more, other)] == [10, 50, 10]
    for kept in (few, more, other):
        np.testing.assert_array_equal(kept[kept >= 0], segment[kept >= 0])
    assert (more[few >= 0] >= 0).all() and ((few >= 0) != (other >= 0)).any()
    assert (keep_labels(segment, 10, 0, "a.ply") != keep_labels(segment, 10, 0, "b.ply")).any()
    np.testing.assert_array_equal(keep_labels(segment, 1000, 0), segment)
    np.testing.assert_array_equal(keep_points(segment, np.array([3, 4]), "a"), [-1] * 3 + [2, -1] + [-1] * 295)


AREAS = [Path(f"s3dis/Area_{area}/{room}") for area in (1, 2) for room in ("office_1", f"hallway_{area}")]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("Area_2/office_1", "s3dis/Area_2/office_1"),
        ("s3dis/Area_1/office_1", "s3dis/Area_1/office_1"),
        ("hallway_2", "s3dis/Area_2/hallway_2"),
        ("hallway_2.ply", "s3dis/Area_2/hallway_2"),
        (str(Path("s3dis/Area_1/office_1").absolute()), "s3dis/Area_1/office_1"),
        ("Area_3/office_1", None),
        ("ffice_1", None),
    ],
)
def test_a_name_in_a_list_is_an_end_of_a_scan_s_path(name, path):
    assert named([name], AREAS, "list.txt") == ({name: Path(path)} if path else {})


def test_a_name_of_several_scans_is_refused(tmp_path):
    with pytest.raises(UserError, match="list.txt lists 'office_1', which may be Area_1/office_1 or Area_2/office_1"):
        named(["office_1"], AREAS, "list.txt")
    frames = tuple(f"sequences/{number}/velodyne/000000.bin" for number in ("00", "10"))
    for frame in frames:
        (tmp_path / frame).parent.mkdir(parents=True)
        (tmp_path / frame).touch()
    dataset = DataSet(tmp_path, {0: "a"}, splits={"train": frames})
    file = tmp_path / "few.txt"
    file.write_text("00/velodyne/000000.bin\n")
    assert listed_scans(dataset, str(file)).scans("train") == frames[:1]
    file.write_text(f"{frames[1]}\n{frames[1]}\n")
    assert listed_scans(dataset, str(file)).scans("train") == frames[1:]
    file.write_text("000000\n")
    with pytest.raises(UserError, match="write more of its path"):
        listed_scans(dataset, str(file))
