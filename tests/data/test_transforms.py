"""Each transform against its definition, and the presets against the published order."""

import numpy as np
import pytest

from pointadapt.data import presets as P
from pointadapt.data import transforms as T


def sample(num=3000, seed=0, color=True):
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((num, 3))
    return {
        "coord": (rng.random((num, 3)) * [4, 3, 2.5] + [10, -20, 1]).astype(np.float32),
        "color": rng.integers(1 if color else 0, 256 if color else 1, (num, 3)).astype(np.float32),
        "normal": (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(np.float32),
        "segment": rng.integers(-1, 5, num),
        "name": "a",
    }


def run(transform, made=None, seed=0):
    return transform(sample() if made is None else made, np.random.default_rng(seed))


ALL = {
    "center": T.CenterShift(),
    "unit": T.NormalizeCoord(),
    "scale": T.Scale(0.5),
    "rotate": T.Rotate(0.3, "x", None),
    "random_rotate": T.RandomRotate(np.pi, p=1),
    "random_scale": T.RandomScale(),
    "flip": T.Flip(),
    "random_flip": T.RandomFlip(1),
    "jitter": T.RandomJitter(),
    "elastic": T.ElasticDistortion(p=1),
    "contrast": T.ChromaticAutoContrast(1),
    "translation": T.ChromaticTranslation(1),
    "chroma_jitter": T.ChromaticJitter(1),
    "dropout": T.RandomDropout(),
    "crop": T.SphereCrop(500),
    "column": T.SphereCrop(500, column=True),
    "grid": T.GridSample(0.2),
    "keep": T.KeepOriginal(),
    "color": T.NormalizeColor(),
    "collect": T.Collect(),
    "indoor": P.indoor_train(0.1, 400),
    "outdoor": P.outdoor_train(0.1, 400),
    "aerial": P.aerial_train(0.1, 400),
    "eval": P.eval_transform(0.1),
    "sonata": P.sonata_default(),
    "utonia": P.utonia_default(0.5),
    "utonia_object": P.utonia_default(normalize_coord=True),
}


@pytest.mark.parametrize("name", ALL)
def test_input_stays_and_result_repeats(name):
    made = sample()
    before = {k: np.copy(v) for k, v in made.items()}
    for value in made.values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    first, second, other = (run(ALL[name], made, seed) for seed in (1, 1, 2))
    for key, value in before.items():
        np.testing.assert_array_equal(made[key], value)
    assert first.keys() == second.keys() == other.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    for key in ("coord", "color", "normal", "feat"):
        assert key not in first or first[key].dtype == np.float32, key
    assert len({len(first[key]) for key in T.PER_POINT if key in first}) == 1


@pytest.mark.parametrize("name", ["random_rotate", "random_scale", "jitter", "elastic", "dropout", "crop", "indoor"])
def test_seeds_differ(name):
    a, b = run(ALL[name], seed=1)["coord"], run(ALL[name], seed=2)["coord"]
    assert a.shape != b.shape or np.abs(a - b).max() > 1e-4


def test_center_shift():
    coord = run(T.CenterShift())["coord"]
    np.testing.assert_allclose((coord.min(0) + coord.max(0))[:2], 0, atol=1e-5)
    assert coord[:, 2].min() == 0
    flat = run(T.CenterShift(apply_z=False))["coord"]
    np.testing.assert_array_equal(flat[:, 2], sample()["coord"][:, 2])


def test_unit_sphere():
    coord = run(T.NormalizeCoord())["coord"]
    np.testing.assert_allclose(coord.mean(0), 0, atol=1e-5)
    assert np.linalg.norm(coord, axis=1).max() == pytest.approx(1, abs=1e-5)
    assert T.unit_sphere(np.full((3, 3), 5.0)).tolist() == [[0] * 3] * 3  # one place, and no division by zero


@pytest.mark.parametrize(("axis", "start", "end"), [("z", 0, 1), ("x", 1, 2), ("y", 2, 0)])
def test_quarter_turns(axis, start, end):
    turned = T.rotation(axis, np.pi / 2) @ np.eye(3)[start]
    np.testing.assert_allclose(turned, np.eye(3)[end], atol=1e-12)
    assert np.linalg.det(T.rotation(axis, 1.0)) == pytest.approx(1)


def test_rotation_turns_normals_with_points():
    made = sample()
    made["coord"] = made["normal"] * 3 + 5  # a ball around 5: normals are its radii
    out = run(T.Rotate(1.1, "y", (5.0, 5.0, 5.0)), made)
    np.testing.assert_allclose(out["coord"], out["normal"] * 3 + 5, atol=1e-5)
    np.testing.assert_allclose(run(T.Flip((0,)), made)["normal"][:, 0], -made["normal"][:, 0])


def test_random_rotation_stays_within_its_limit_and_probability():
    angles = []
    for seed in range(200):
        made = {"coord": np.array([[1, 0, 0], [-1, 0, 0]], np.float32)}
        coord = run(T.RandomRotate(0.5, "z", (0.0, 0.0, 0.0)), made, seed)["coord"]
        angles.append(np.arctan2(coord[0, 1], coord[0, 0]))
    moved = np.abs(angles) > 0
    assert 0.38 < moved.mean() < 0.62 and 0.4 < np.abs(angles).max() <= 0.5


def test_scale_and_jitter_bounds():
    ratios = [run(T.RandomScale(), seed=s)["coord"][0, 0] / sample()["coord"][0, 0] for s in range(100)]
    assert 0.9 <= min(ratios) < 0.92 and 1.08 < max(ratios) <= 1.1001
    moved = run(T.RandomJitter(sigma=0.01, clip=0.02))["coord"] - sample()["coord"]
    assert np.abs(moved).max() <= 0.02 + 2e-6
    assert moved.std() == pytest.approx(0.0096, abs=5e-4)  # clipped at two sigma


def test_flip_probability():
    flips = np.array([run(T.RandomFlip(), seed=s)["coord"][0] / sample()["coord"][0] for s in range(300)])
    np.testing.assert_allclose((flips[:, :2] < 0).mean(0), 0.5, atol=0.1)
    assert (flips[:, 2] == 1).all()
    assert abs(np.corrcoef(flips[:, 0], flips[:, 1])[0, 1]) < 0.15  # independently


def test_elastic_distortion_is_smooth_and_as_in_pointcept():
    from scipy.interpolate import RegularGridInterpolator
    from scipy.ndimage import convolve

    made, granularity, magnitude = sample(), 0.2, 0.4
    got = run(T.ElasticDistortion(((granularity, magnitude),), p=2), made, seed=4)["coord"]
    rng = np.random.default_rng(4)
    rng.random()
    coord = made["coord"].astype(float)
    low = made["coord"].min(0)
    dims = ((made["coord"] - low).max(0) // granularity).astype(int) + 3
    noise = np.moveaxis(rng.standard_normal((3, *dims), np.float32), 0, -1)
    for _ in range(2):
        for shape in ((3, 1, 1, 1), (1, 3, 1, 1), (1, 1, 3, 1)):
            noise = convolve(noise, np.ones(shape, np.float32) / 3, mode="constant", cval=0)
    axes = [
        np.linspace(a, b, d) for a, b, d in zip(low - granularity, low + granularity * (dims - 2), dims, strict=True)
    ]
    want = coord + RegularGridInterpolator(axes, noise, bounds_error=False, fill_value=0)(coord) * magnitude
    np.testing.assert_allclose(got, want, atol=2e-4)
    assert np.abs(got - coord).max() > 0.05


def test_colour_transforms_stay_in_range_and_leave_missing_colour_alone():
    for transform in (T.ChromaticAutoContrast(1), T.ChromaticTranslation(1, 0.5), T.ChromaticJitter(1, 0.5)):
        color = run(transform)["color"]
        assert color.min() >= 0 and color.max() <= 255 and (color != sample()["color"]).any()
        assert not run(transform, sample(color=False))["color"].any()
    made = sample()
    made["color"][:, 1] = 40  # a channel without contrast has nothing to stretch
    assert (run(T.ChromaticAutoContrast(1), made)["color"][:, 1] == 40).all()


def grey(low=100, high=150, num=3000):
    """Colours far from both ends of the range, where nothing is clipped."""
    return {**sample(num), "color": np.random.default_rng(1).integers(low, high + 1, (num, 3)).astype(np.float32)}


def test_contrast_is_a_blend_with_the_full_range():
    shares = []
    for seed in range(20):
        made = grey()
        change = run(T.ChromaticAutoContrast(1), made, seed)["color"] - made["color"]
        full = (made["color"] - 100) * (255 / 50) - made["color"]
        shares.append((change * full).sum() / (full * full).sum())
        np.testing.assert_allclose(change, shares[-1] * full, atol=1e-3)  # one share for all points and channels
    assert 0 <= min(shares) < 0.3 and 0.7 < max(shares) <= 1


def test_translation_moves_a_channel_and_jitter_each_value():
    made = grey()
    shift = run(T.ChromaticTranslation(1, 0.1), made)["color"] - made["color"]
    assert (np.ptp(shift, axis=0) < 1e-4).all() and np.ptp(shift[0]) > 1 and np.abs(shift).max() <= 25.5
    noise = run(T.ChromaticJitter(1, 0.05), made)["color"] - made["color"]
    assert noise.std() == pytest.approx(0.05 * 255, rel=0.03) and np.abs(np.corrcoef(noise.T)[0, 1]) < 0.1


def test_dropout_keeps_the_exact_share():
    out = run(T.RandomDropout(0.2, 1))
    assert len(out["coord"]) == len(out["segment"]) == 2400
    assert len(np.unique(out["coord"], axis=0)) == 2400
    assert len(run(T.RandomDropout(0.2, 1), sample(1))["coord"]) == 1


def test_sphere_crop_takes_the_nearest():
    made = sample()
    for column in (False, True):
        dims = 2 if column else 3
        out = run(T.SphereCrop(300, column=column), made, seed=3)
        center = made["coord"][np.random.default_rng(3).integers(3000), :dims]
        distance = np.linalg.norm(made["coord"][:, :dims] - center, axis=1)
        inside = np.linalg.norm(out["coord"][:, :dims] - center, axis=1)
        assert len(inside) == 300 and inside.max() == pytest.approx(np.sort(distance)[299], abs=1e-5)
    assert len(run(T.SphereCrop(rate=0.6), made)["coord"]) == 1800
    assert len(run(T.SphereCrop(10_000), made)["coord"]) == 3000


def test_grid_sample_and_back():
    made = sample()
    for pick in ("random", "fixed"):
        out = run(T.GridSample(0.3, pick), made)
        cell = np.floor(made["coord"].astype(float) / 0.3).astype(int)
        cell -= cell.min(0)
        np.testing.assert_array_equal(out["grid_coord"][out["inverse"]], cell)
        assert len(out["coord"]) == len(np.unique(cell, axis=0)) < 3000
    a, b = (run(T.GridSample(0.3, "fixed"), made, seed)["coord"] for seed in (1, 2))
    np.testing.assert_array_equal(a, b)


def few_labels(count=20):
    made = sample()
    made["segment"] = np.where(np.arange(3000) % (3000 // count) == 7, np.arange(3000) % 3, -1)
    return made, np.flatnonzero(made["segment"] >= 0)


@pytest.mark.parametrize("seed", range(5))
def test_dropout_spares_few_labelled_points(seed):
    made, known = few_labels()
    plain, out = (run(T.RandomDropout(0.5, 1), {**made, "few_labels": few}, seed) for few in (False, True))
    assert len(out["coord"]) == len(plain["coord"]) + 20 - (plain["segment"] >= 0).sum() < 1520
    np.testing.assert_array_equal(out["coord"][out["segment"] >= 0], made["coord"][known])
    np.testing.assert_array_equal(out["coord"][out["segment"] < 0], plain["coord"][plain["segment"] < 0])


@pytest.mark.parametrize("rng", [np.random.default_rng, np.random.RandomState])
def test_a_voxel_with_one_of_few_labels_is_represented_by_it(rng):
    made, known = few_labels(60)
    taken = set()
    for seed in range(20):
        plain, out = (T.GridSample(0.5)({**made, "few_labels": few}, rng(seed)) for few in (False, True))
        labelled = np.isin(np.arange(len(out["coord"])), out["inverse"][known])
        np.testing.assert_array_equal(out["segment"] >= 0, labelled)
        np.testing.assert_array_equal(out["coord"][~labelled], plain["coord"][~labelled])
        np.testing.assert_array_equal(out["grid_coord"], plain["grid_coord"])
        taken |= set(map(bytes, out["coord"][labelled]))
    assert len(taken) == 60  # of several in one voxel each has its turn


def test_rows_taken_after_grid_sampling_drop_the_stale_inverse():
    assert "inverse" not in run(T.Compose([T.GridSample(0.2), T.SphereCrop(50)]))


def test_fragments_hold_every_point():
    made = sample()
    parts = T.fragments(made, 0.3, np.random.default_rng(0))
    assert len(parts) > 1
    np.testing.assert_array_equal(np.unique(np.concatenate([p["index"] for p in parts])), np.arange(3000))
    for part in parts:
        np.testing.assert_array_equal(part["coord"], made["coord"][part["index"]])
        assert len(np.unique(part["grid_coord"], axis=0)) == len(part["grid_coord"])


def test_thirteen_views():
    views = P.tta_views()
    centred = run(T.CenterShift())
    seen = [run(view, centred)["coord"] for view in views]
    assert len(seen) == 13
    np.testing.assert_allclose(seen[0], centred["coord"], atol=1e-6)
    spans = np.array([np.ptp(coord, axis=0) for coord in seen]) / np.ptp(centred["coord"], axis=0)[2]
    np.testing.assert_allclose(spans[:, 2], [1] * 4 + [0.95] * 4 + [1.05] * 4 + [1], atol=1e-4)
    np.testing.assert_allclose(seen[12], centred["coord"] * [-1, -1, 1])
    assert len({np.round(coord[:5], 3).tobytes() for coord in seen}) == 12  # a half turn is the double flip


def test_features_are_coordinates_colour_and_normals():
    made = sample()
    out = run(P.eval_transform(0.1), made)
    np.testing.assert_array_equal(out["feat"][:, :3], out["coord"])
    np.testing.assert_allclose(out["feat"][:, 6:], out["normal"])
    assert out["feat"].shape[1] == 9
    np.testing.assert_array_equal(out["origin_segment"], made["segment"])
    np.testing.assert_array_equal(out["feat"][:, 3:6], out["color"])
    voxel = np.flatnonzero(np.bincount(out["inverse"]) == 1)  # of one point each: it is known which
    alone = out["inverse"].argsort()[np.searchsorted(np.sort(out["inverse"]), voxel)]
    np.testing.assert_allclose(out["color"][voxel], made["color"][alone] / 255, rtol=1e-6)


def test_indoor_preset_is_the_published_recipe():
    steps = P.indoor_train().steps[1:]  # the first only spares work on very large scans
    assert " ".join(type(step).__name__ for step in steps) == (
        "CenterShift RandomDropout RandomRotate RandomRotate RandomRotate RandomScale RandomFlip RandomJitter "
        "ElasticDistortion ChromaticAutoContrast ChromaticTranslation ChromaticJitter GridSample SphereCrop "
        "CenterShift NormalizeColor Collect"
    )
    assert steps[1] == T.RandomDropout(0.2, 1.0)
    assert steps[2] == T.RandomRotate(np.pi, "z", (0.0, 0.0, 0.0), 0.5)
    assert steps[3:5] == [T.RandomRotate(np.pi / 64, axis, None, 0.5) for axis in "xy"]
    assert (steps[5], steps[6], steps[7]) == (T.RandomScale(0.9, 1.1), T.RandomFlip(0.5), T.RandomJitter(0.005, 0.02))
    assert steps[8] == T.ElasticDistortion(((0.2, 0.4), (0.8, 1.6)), 0.95)
    assert steps[9:12] == [
        T.ChromaticAutoContrast(0.2),
        T.ChromaticTranslation(0.95, 0.05),
        T.ChromaticJitter(0.95, 0.05),
    ]
    assert (steps[12], steps[13]) == (T.GridSample(0.02), T.SphereCrop(102_400))
    rate = [step for step in P.indoor_train(0.02, 204_800, rate=0.6).steps if isinstance(step, T.SphereCrop)]
    assert rate[1:] == [T.SphereCrop(rate=0.6), T.SphereCrop(204_800)]


def test_presets_respect_the_number_of_points():
    for preset in P.TRAIN_TRANSFORMS.values():
        out = run(preset(0.05, 200))
        assert len(out["feat"]) == 200
        assert np.abs(out["coord"][:, :2].min(0) + out["coord"][:, :2].max(0)).max() < 1e-4
