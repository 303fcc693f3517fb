"""Corruptions: deterministic in name, severity and seed; each does what it says; scores against DGCNN."""

import numpy as np
import pytest

from pointadapt.data.corruption_scores import DGCNN, corruption_scores
from pointadapt.data.corruptions import CORRUPTIONS, MODELNET40_C, MODELNET_C, PARAMETERS, SEVERITIES, corrupt
from pointadapt.data.transforms import unit_sphere
from pointadapt.errors import UserError


def ball(points=1024, seed=0):
    coord = np.random.default_rng(seed).standard_normal((points, 3))
    return unit_sphere((coord / np.linalg.norm(coord, axis=1, keepdims=True) * [1, 0.5, 0.7]).astype(np.float32))


def test_names():
    assert len(MODELNET_C) == 7 and len(MODELNET40_C) == 13 and set(PARAMETERS) == set(CORRUPTIONS)
    assert all(len(values) == 5 for values in PARAMETERS.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_each_is_deterministic_and_finite(name, severity):
    coord = ball()
    before = coord.copy()
    out = corrupt(coord, name, severity, 7)
    assert out.dtype == np.float32 and out.shape[1] == 3 and np.isfinite(out).all() and len(out) >= 128
    assert np.array_equal(out, corrupt(coord, name, severity, 7)) and np.array_equal(coord, before)
    other = corrupt(coord, name, severity, 8)
    assert other.shape != out.shape or not np.allclose(other, out)
    assert np.abs(out).max() < 1.5


COUNTS = {
    "dropout_global": (768, 640, 512, 384, 256),
    "dropout_local": (924, 824, 724, 624, 524),
    "add_global": (1034, 1044, 1054, 1064, 1074),
    "add_local": (1124, 1224, 1324, 1424, 1524),
    "background": (1046, 1049, 1053, 1058, 1075),
    "upsampling": (1228, 1280, 1365, 1536, 2048),
    "density": (949, 874, 799, 724, 649),
    "density_inc": (512,) * 5,
    "cutout": (964, 934, 874, 814, 724),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_counts(name):
    got = [len(corrupt(ball(), name, severity, 3)) for severity in SEVERITIES]
    assert got == list(COUNTS.get(name, (1024,) * 5))


@pytest.mark.parametrize("name", ["jitter", "uniform", "gaussian", "distortion", "distortion_rbf", "distortion_rbf_inv",
                                  "rotation", "rotate", "shear", "impulse"])  # fmt: skip
def test_higher_severities_move_points_further(name):
    coord = ball()
    moved = [
        np.mean([np.linalg.norm(corrupt(coord, name, severity, seed) - coord, axis=1).mean() for seed in range(12)])
        for severity in (1, 5)
    ]
    assert moved[1] > 1.5 * moved[0] > 0


def test_noise_has_its_size():
    coord = ball(20_000)
    assert (corrupt(coord, "jitter", 4) - coord).std() == pytest.approx(0.04, rel=0.02)


def test_rotations_keep_distances():
    coord = ball()
    for name in ("rotate", "rotation"):
        out = corrupt(coord, name, 5, 1)
        gaps = [np.linalg.norm(x[:50, None] - x[None, :50], axis=-1) for x in (coord, out)]
        ratio = gaps[1][gaps[0] > 0.1] / gaps[0][gaps[0] > 0.1]
        assert np.ptp(ratio) < 1e-4


def test_dropping_keeps_the_others_as_they_are():
    coord = ball()
    rows = {tuple(row) for row in coord.tolist()}
    for name in ("dropout_global", "dropout_local", "density", "density_inc", "cutout"):
        out = corrupt(coord, name, 3, 2)
        assert {tuple(row) for row in out.tolist()} <= rows and len(set(map(tuple, out.tolist()))) == len(out), name


def test_adding_keeps_all_points_and_stays_inside():
    coord = ball()
    for name in ("add_global", "add_local"):
        out = corrupt(coord, name, 5, 2)
        assert np.array_equal(out[:1024], coord) and np.linalg.norm(out, axis=1).max() < 1 + 1e-5


def test_local_dropout_leaves_holes():
    """The points lost lie close together, unlike those of global dropout."""
    coord = ball()

    def spread(name, severity):
        kept = {tuple(row) for row in corrupt(coord, name, severity, 5).tolist()}
        lost = np.array([row for row in coord.tolist() if tuple(row) not in kept])
        gaps = np.linalg.norm(lost[:, None] - lost[None], axis=-1)
        return np.median(np.sort(gaps, axis=1)[:, 5])

    assert spread("cutout", 5) < 0.8 * spread("dropout_global", 1)


@pytest.mark.parametrize(
    "name, severity, coord, said",
    [
        ("fog", 1, ball(), "there is no corruption 'fog'; there are scale, jitter"),
        ("jitter", 0, ball(), "severity 0 of corruption 'jitter'"),
        ("jitter", 6, ball(), "severity 6"),
        ("jitter", 1, ball(10), "10 points cannot be corrupted"),
    ],
)
def test_refusals(name, severity, coord, said):
    with pytest.raises(UserError, match=said):
        corrupt(coord, name, severity)


@pytest.mark.parametrize("suite", DGCNN)
def test_dgcnn_scores_exactly_one(suite):
    reference = DGCNN[suite]
    seven = {name: reference[name] for name in MODELNET_C}
    got = corruption_scores(reference["clean"], seven, suite)
    assert got["mCE"] == pytest.approx(1, abs=1e-12) and got["RmCE"] == pytest.approx(1, abs=1e-12)
    assert got["mOA"] == pytest.approx(np.mean(list(seven.values())))


def test_scores_by_hand():
    accuracy = {name: [0.5, 0.7] for name in MODELNET_C}
    got = corruption_scores(0.9, accuracy)
    reference = [DGCNN["ModelNet-C"][name] for name in MODELNET_C]
    assert got["mOA"] == pytest.approx(0.6)
    assert got["mCE"] == pytest.approx(np.mean([0.4 / (1 - r) for r in reference]))
    assert got["RmCE"] == pytest.approx(np.mean([0.3 / (0.926 - r) for r in reference]))
    with pytest.raises(UserError, match="not per cent"):
        corruption_scores(90.0, accuracy)
    with pytest.raises(UserError, match="jitter is missing"):
        corruption_scores(0.9, {name: v for name, v in accuracy.items() if name != "jitter"})
    with pytest.raises(UserError, match="no reference for 'X'"):
        corruption_scores(0.9, accuracy, "X")
