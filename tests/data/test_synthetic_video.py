"""Generated videos: reproducible, and within a pair of classes only the order of the frames tells."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pointadapt.data.synthetic_video import VIDEO_CLASSES, clip, clips, frames_of, partner

PAIRS = range(0, len(VIDEO_CLASSES), 2)


def looks(coord):
    """[T, F] what each frame looks like: mean, spread and correlations of its points, quantiles."""
    centred = coord - coord.mean(1, keepdims=True)
    second = np.einsum("tni,tnj->tij", centred, centred)[:, *np.triu_indices(3)] / coord.shape[1]
    third = np.einsum("tni,tnj->tij", centred, centred**2).reshape(len(coord), -1) / coord.shape[1]
    return np.concatenate([coord.mean(1), second, third, *np.quantile(coord, [0.02, 0.5, 0.98], axis=1)], 1)


def blind(coord):
    """Does not depend on the order of frames."""
    found = np.sort(looks(coord), axis=0)
    return np.concatenate([found.mean(0), found.std(0), found[0], found[-1]])


def ordered(coord):
    """How the second half differs from the first, and the turn of the principal axis."""
    found = looks(coord)
    half = len(coord) // 2
    flat = coord[..., :2] - coord[..., :2].mean(1, keepdims=True)
    double = np.einsum("tn,tnk->tk", *(lambda z: (np.abs(z), np.stack([(z**2).real, (z**2).imag], -1)))(flat @ [1, 1j]))
    angle = np.unwrap(np.angle(double @ [1, 1j])) / 2
    return np.concatenate([found[half:].mean(0) - found[:half].mean(0), [angle[-1] - angle[0]]])


def accuracy(features, labels, cut):
    scale = StandardScaler().fit(features[:cut])
    model = LogisticRegression(max_iter=2000, C=0.3).fit(scale.transform(features[:cut]), labels[:cut])
    return model.score(scale.transform(features[cut:]), labels[cut:])


@pytest.mark.parametrize("label", PAIRS)
def test_a_pair_has_the_same_frames_in_reverse_order(label):
    for seed in range(5):
        there, back = clip(seed, label), clip(seed, partner(label))
        assert np.array_equal(there, back[::-1]) and not np.array_equal(there, back)
        assert {frame.tobytes() for frame in there} == {frame.tobytes() for frame in back}
        assert np.array_equal(blind(there), blind(back))


def test_an_order_blind_model_gets_half_and_an_ordered_one_most():
    """Trained on clips of their own things, judged on both directions of others."""
    seen = []
    for label in PAIRS:
        data = [(clip(seed, y, points=128), y) for seed in range(90) for y in (label, partner(label))]
        labels = np.array([y for _, y in data])
        scores = [accuracy(np.stack([read(c) for c, _ in data]), labels, 120) for read in (blind, ordered)]
        assert scores[0] == 0.5, VIDEO_CLASSES[label]  # whatever it answers, it is right for one of the two
        assert scores[1] > 0.75, (VIDEO_CLASSES[label], scores)
        seen.append(scores[1])
    assert np.mean(seen) > 0.9, seen


def test_independent_clips_do_not_tell_their_direction_either():
    """No thing is seen in both directions here: the law of the frames is the same."""
    coord, label = clips(3, 12 * 60, frames=6, points=64)
    features = np.stack([blind(c) for c in coord])
    shares = []
    for pair in PAIRS:
        rows = label // 2 == pair // 2
        shares.append(accuracy(features[rows], label[rows], 60))
    assert 0.4 < np.mean(shares) < 0.6, shares


def test_the_motions_are_what_they_are_called():
    first_last = {VIDEO_CLASSES[y]: [clip(s, y, points=2000)[[0, -1]] for s in range(6)] for y in range(12)}

    def change(name, measure):
        return np.array([measure(last) - measure(first) for first, last in first_last[name]])

    for name, axis, sign in [("move right", 0, 1), ("move left", 0, -1), ("rise", 2, 1), ("fall", 2, -1),
                             ("recede", 1, 1), ("approach", 1, -1)]:  # fmt: skip
        assert (sign * change(name, lambda c, axis=axis: c[:, axis].mean()) > 0.5).all(), name
    spread = lambda c: c.std(0).mean()  # noqa: E731
    assert (change("grow", spread) > 0.05).all() and (change("shrink", spread) < -0.05).all()
    height = lambda c: np.quantile(c[:, 2], 0.99) - np.quantile(c[:, 2], 0.5)  # noqa: E731
    assert (change("open", height) > 0.1).all() and (change("close", height) < -0.1).all()
    for name in ("turn left", "turn right"):
        assert (np.abs(change(name, lambda c: c[:, 2].mean())) < 0.05).all()


def test_reproducible_and_extended_by_more():
    coord, label = clips(7, 15, frames=4, points=32)
    assert coord.shape == (15, 4, 32, 3) and coord.dtype == np.float32 and np.isfinite(coord).all()
    assert label.tolist() == [*range(12), 0, 1, 2] and np.abs(coord).max() < 2.5
    again, _ = clips(7, 5, frames=4, points=32, first=10)
    assert np.array_equal(coord[10:], again)
    assert not np.array_equal(coord[0], coord[12]) and not np.array_equal(coord[:5], clips(8, 5, 4, 32)[0])
    assert clips(0, 0, 4, 32)[0].shape == (0, 4, 32, 3)


def test_points_are_drawn_anew_and_may_vary_in_number():
    still = clip(0, 2, noise=0.0)
    assert len(np.unique(still.reshape(-1, 3), axis=0)) == 16 * 256
    frames = frames_of(1, 5, frames=12, points=100, vary=0.4)
    counts = [len(frame) for frame in frames]
    assert len(set(counts)) > 3 and min(counts) >= 60 and max(counts) <= 100
    back = frames_of(1, 4, frames=12, points=100, vary=0.4)[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(frames, back, strict=True))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="label must be 0..11"):
        clip(0, 12)
    for wrong in ({"frames": 1}, {"points": 0}, {"vary": 1.0}):
        with pytest.raises(ValueError, match="a clip needs"):
            frames_of(0, 0, **wrong)
