"""The order of frames by their names, and which numbers are missing or there twice."""

from pathlib import Path

import pytest

from pointadapt.data.frame_names import gap, misnumbered, natural


def files(*stems):
    return [Path("v") / f"{stem}.ply" for stem in stems]


def test_natural_order():
    names = ["f10.ply", "f9.ply", "f100.ply", "a2/f1.ply", "a10/f0.ply"]
    assert [p.as_posix() for p in sorted(map(Path, names), key=natural)] == [
        "a2/f1.ply", "a10/f0.ply", "f9.ply", "f10.ply", "f100.ply",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "stems, missing",
    [
        (("f_0", "f_2", "f_3"), ("f_0", "f_2")),
        (("f_0", "f_2", "f_4", "f_5", "f_6"), ("f_0", "f_2")),
        (("f_0", "f_10", "f_20", "f_40", "f_50"), ("f_20", "f_40")),
        (("s1_f0", "s1_f1", "s1_f3", "s2_f0", "s2_f1"), ("s1_f1", "s1_f3")),
        (("12-00-57", "12-00-58", "12-01-00", "12-01-01", "12-01-04"), ("12-01-01", "12-01-04")),
        (("9_camera2", "10_camera2", "12_camera2"), ("10_camera2", "12_camera2")),
    ],
)
def test_missing_frames(stems, missing):
    assert gap(files(*stems)) == tuple(files(*missing))
    assert misnumbered(files(*stems)) == (
        f"v: a frame is missing between {missing[0]}.ply and {missing[1]}.ply; add it"
    )


@pytest.mark.parametrize(
    "stems",
    [
        ("12-00-58", "12-00-59", "12-01-00"),
        ("s1_f0", "s1_f1", "s1_f2", "s2_f0", "s2_f1"),
        ("left_1", "left_2", "right_1", "right_2"),
        ("17000", "17033", "17066", "17100", "17133"),  # milliseconds at 30 Hz
        ("17", "50", "86", "117", "151", "180"),
        ("0.5", "0.25", "0.125"),
        ("a", "b", "c"),
        ("f_0", "f_7"),
        (),
    ],
)
def test_nothing_is_missing(stems):
    assert misnumbered(files(*stems)) == ""


def test_one_number_twice():
    assert misnumbered(files("f_1", "f_02", "f_2", "f_3")) == (
        f"{Path('v/f_2.ply')}: this frame has the same number as f_02.ply; rename or remove one"
    )
    assert "same number" in misnumbered([Path("f_1.npy"), Path("f_1.ply")])
