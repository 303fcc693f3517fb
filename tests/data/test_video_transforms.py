"""Augmentations of clips: one change for all frames, time untouched; released ones do what the published loaders do."""

import numpy as np
import pytest

from pointadapt.data.video_transforms import VIDEO_TRANSFORMS

T, N = 4, 30


def clip(seed=0):
    coord = np.random.default_rng(seed).standard_normal((T * N, 3)).astype(np.float32)
    return {"coord": coord, "counts": np.full(T, N), "frames": np.arange(T), "label": 1}


def changed(name, seed=0, sample=None):
    return VIDEO_TRANSFORMS[name]()(sample or clip(), np.random.default_rng(seed))


def linear(before, after):
    """The [3, 3] matrix that turns one into the other, and how far it is from doing so."""
    matrix, *_ = np.linalg.lstsq(before.astype(float), after.astype(float), rcond=None)
    return matrix, np.abs(before @ matrix - after).max()


@pytest.mark.parametrize("name", VIDEO_TRANSFORMS)
def test_inputs_stay_and_randomness_is_the_generators(name):
    sample, before = clip(), clip()
    out = changed(name, 3, sample)
    assert np.array_equal(sample["coord"], before["coord"]) and out["label"] == 1
    assert np.array_equal(out["coord"], changed(name, 3)["coord"]) and out["coord"].dtype == np.float32
    assert np.array_equal(out["frames"], np.arange(T)) and np.array_equal(out["counts"], before["counts"])


@pytest.mark.parametrize("name", ["scale", "scale_turn", "scale_mirror", "synthia", "none"])
def test_all_frames_change_alike(name):
    before = clip()["coord"].reshape(T, N, 3)
    for seed in range(8):
        after = changed(name, seed)["coord"].reshape(T, N, 3)
        matrix, off = linear(before[0], after[0])
        assert off < 1e-4
        assert np.abs(before @ matrix - after).max() < 1e-4  # the same matrix for every frame, in the same order


def test_scale_is_per_axis():
    factors = np.array([np.diag(linear(clip()["coord"], changed("scale", seed)["coord"])[0]) for seed in range(200)])
    assert factors.min() >= 0.9 and factors.max() <= 1.1 and factors.std(0).min() > 0.04
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.25


def test_turns_are_about_the_upward_axis():
    matrix, _ = linear(clip()["coord"], changed("scale_turn", 1)["coord"])
    assert (
        np.abs(matrix[1, [0, 2]]).max() < 1e-5 and np.abs(matrix[[0, 2], 1]).max() < 1e-5 and abs(matrix[0, 2]) > 1e-2
    )


@pytest.mark.parametrize("name", ["scale_mirror", "hoi4d", "synthia"])
def test_mirror_is_a_mirror(name):
    signs = {np.sign(np.linalg.det(linear(clip()["coord"], changed(name, seed)["coord"])[0])) for seed in range(20)}
    assert signs == {-1, 1}


def test_jitter_is_small_and_differs_between_points():
    before, after = clip()["coord"], changed("jitter")["coord"]
    matrix, off = linear(before, after)
    assert 1e-3 < np.abs(before @ matrix - after).std() < 0.02 and off < 0.1


@pytest.mark.parametrize("name", ["hoi4d_released", "synthia_released"])
def test_released_flip_negates_one_point_of_every_frame(name):
    before = clip()["coord"].reshape(T, N, 3)
    seen = set()
    for seed in range(20):
        after = changed(name, seed)["coord"].reshape(T, N, 3)
        matrix, off = linear(before[:, 1:].reshape(-1, 3), after[:, 1:].reshape(-1, 3))
        assert off < 1e-4 and np.linalg.det(matrix) > 0  # never a mirror
        flipped = [bool(np.allclose(before[t, 0] @ matrix, -after[t, 0], atol=1e-4)) for t in range(T)]
        assert len(set(flipped)) == 1
        seen.add(flipped[0])
    assert seen == {True, False}


def test_released_synthia_never_turns_a_little():
    angles = []
    for seed in range(100):
        matrix, _ = linear(clip()["coord"][1:N], changed("synthia_released", seed)["coord"][1:N])
        angles.append(np.arctan2(matrix[2, 0], matrix[0, 0]) % (2 * np.pi))
    assert 1 < min(angles) < 1.4 and max(angles) > 6
