"""The dataset distance: closed forms, invariances, gradients, and agreement with POT and geomloss."""

import geomloss
import numpy as np
import ot
import pytest
import torch

from pointadapt.analysis.transport import (
    DEFAULT,
    Source,
    Transport,
    balanced,
    costs,
    dataset_distance,
    label_distances,
    labelled,
    minibatch_distance,
    neighbour_accuracy,
)
from pointadapt.errors import UserError
from pointadapt.ops.bures import gaussian_distances, nuclear_norm
from pointadapt.ops.sinkhorn import entropic, entropic_self, exact, softmin

EXACT = Transport(eps=0)


def classes(count, seed=0, dim=6, kinds=4, spread=3.0):
    """count features [count, dim] around ``kinds`` random centres, unevenly many of each, and their labels."""
    rng = torch.Generator().manual_seed(seed)
    middle = spread * torch.randn(kinds, dim, dtype=torch.float64, generator=rng)
    labels = (torch.rand(count, generator=rng) ** 1.5 * kinds).long()
    return middle[labels] + torch.randn(count, dim, dtype=torch.float64, generator=rng), labels


def rotation(dim, seed=5):
    rng = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=rng))[0]


@pytest.fixture
def sets():
    """Sizes, class counts and label names of the two sets all differ."""
    (a, la), (b, lb) = classes(48), classes(37, 1, kinds=3)
    return a, la, b + 1, [f"kind {y}" for y in lb.tolist()]


# --- value -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0, 1e-3, 0.1, 2.0, 20.0, None])
def test_a_set_is_at_zero_from_itself(eps):
    a, la = classes(48)
    how = Transport(eps=eps)
    assert 0 <= float(dataset_distance(a, la, a, la, how)) < 1e-10
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    assert float(dataset_distance(a, la, a[order], la[order], how)) < 1e-10


def test_without_debiasing_a_set_is_not_at_zero_from_itself():
    a, la = classes(48)
    small, large = (float(dataset_distance(a, la, a, la, Transport(eps=e, debiased=False))) for e in (2.0, 20.0))
    assert 0.5 < small < large


@pytest.mark.parametrize("how", [DEFAULT, EXACT, Transport(eps=3.0), Transport(inner="diag")])
def test_symmetric(sets, how):
    a, la, b, lb = sets
    there, back = dataset_distance(a, la, b, lb, how), dataset_distance(b, lb, a, la, how)
    torch.testing.assert_close(there, back, rtol=1e-9, atol=0)
    assert there > 1


@pytest.mark.parametrize("eps", [0, 1e-2, 2.0, 20.0, None])
@pytest.mark.parametrize("lam_x, lam_y", [(1, 1), (0.5, 2)])
def test_translation_costs_the_shift_for_every_eps(eps, lam_x, lam_y):
    a, la = classes(48)
    shift = torch.linspace(-1, 2, 6, dtype=torch.float64)
    found = dataset_distance(a, la, a + shift, la, Transport(lam_x, lam_y, eps=eps))
    torch.testing.assert_close(found, (lam_x + lam_y) * shift.square().sum(), rtol=1e-8, atol=0)


def test_a_large_offset_costs_no_digits():
    a, la = classes(48)
    found = dataset_distance(a + 1e4, la, a + 1e4 + 1, la)
    torch.testing.assert_close(found, torch.tensor(12.0, dtype=torch.float64), rtol=1e-8, atol=0)


def test_scaling_closed_form():
    a, la = classes(48)
    want = 2 * (1 - 1.7) ** 2 * a.square().sum(1).mean()
    torch.testing.assert_close(dataset_distance(a, la, 1.7 * a, la, EXACT), want, rtol=1e-9, atol=0)
    small = Transport(eps=1e-2)
    torch.testing.assert_close(dataset_distance(a, la, 1.7 * a, la, small), want, rtol=2e-3, atol=0)


def test_diracs():
    """Sets of one sample, and sets of one point repeated: |delta|^2 for the features and again for the labels."""
    delta = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    for n, m in [(1, 1), (1, 5), (4, 3)]:
        a, b = torch.zeros(n, 2, dtype=torch.float64), delta.repeat(m, 1)
        for how in (DEFAULT, EXACT, Transport(eps=0.3)):
            assert float(dataset_distance(a, [0] * n, b, ["x"] * m, how)) == pytest.approx(50, rel=1e-9)
    assert float(dataset_distance(a, [0] * 4, a, [1] * 4)) == 0


def test_invariances(sets):
    a, la, b, lb = sets
    want = dataset_distance(a, la, b, lb)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(2))
    turn = rotation(6)
    same = {
        "order of samples": dataset_distance(a[order], la[order], b, lb),
        "names of labels": dataset_distance(a, 17 - 3 * la, b, [name[::-1] for name in lb]),
        "common rotation": dataset_distance(a @ turn, la, b @ turn, lb),
        "common shift": dataset_distance(a + 5, la, b + 5, lb),
    }
    for name, found in same.items():
        torch.testing.assert_close(found, want, rtol=1e-9, atol=0, msg=name)
    assert abs(float(dataset_distance(a, la, b @ turn, lb) - want)) > 0.5


def test_labels_matter_only_through_lam_y():
    a, la = classes(48)
    shuffled = la[torch.randperm(48, generator=torch.Generator().manual_seed(3))]
    assert float(dataset_distance(a, la, a, shuffled, Transport(lam_y=0))) < 1e-10
    assert float(dataset_distance(a, la, a, shuffled)) > 5


def test_disjoint_classes_single_samples_and_uneven_counts():
    a, b = classes(40, dim=30)[0], classes(31, 1, dim=30)[0]
    la, lb = [0] * 35 + [1, 2, 3, 4, 4], list(range(100, 131))  # classes of 35, 1, 1, 1, 2; and 31 of one sample each
    found = dataset_distance(a, la, b, lb)
    assert found.isfinite() and found > 1
    with pytest.raises(UserError, match="features_b have no class of at least 2"):
        dataset_distance(a, la, b, lb, Transport(min_count=2))
    kept = labelled(a, la, Transport(min_count=2))
    assert kept.names == [0, 4] and len(kept) == 37 and kept.index.tolist() == [0] * 35 + [1] * 2


def test_half_is_the_convention_of_geomloss():
    """The reference package's |x - y|^2 / 2: half of a translation's value, and geomloss' own figure on other sets."""
    a, la = classes(48)
    half = dataset_distance(a, la, a + 1, la, Transport(half=True, eps=1.0))
    torch.testing.assert_close(half, torch.tensor(6.0, dtype=torch.float64), rtol=1e-8, atol=0)
    b, lb = classes(37, 1, kinds=3, spread=0.5)
    a, la = classes(48, spread=0.5)
    loss = geomloss.SamplesLoss("sinkhorn", p=2, blur=1.0, scaling=0.99, debias=True, backend="tensorized")
    ours = dataset_distance(a, la, b, lb, Transport(lam_y=0, half=True, eps=1.0))
    torch.testing.assert_close(ours, loss(a, b).squeeze(), rtol=1e-4, atol=0)


def test_agrees_with_pot(sets):
    """Values of whole labelled distances: exact against the network simplex, entropic against POT's Sinkhorn."""
    a, la, b, lb = sets
    ours, theirs = labelled(a, la), labelled(b, lb)
    table = label_distances(ours, theirs).numpy()  # against POT below
    full = ot.dist(a.numpy(), b.numpy()) + table[ours.index][:, theirs.index]
    weights = ot.unif(len(a)), ot.unif(len(b))
    assert float(dataset_distance(a, la, b, lb, EXACT)) == pytest.approx(ot.emd2(*weights, full), rel=1e-7)
    plan = ot.sinkhorn(*weights, full, 4.0, method="sinkhorn_log", numItermax=20000, stopThr=1e-13)
    entropy = (plan * np.log(plan / np.outer(*weights))).sum()
    found = dataset_distance(a, la, b, lb, Transport(eps=4.0, debiased=False))
    assert float(found) == pytest.approx((plan * full).sum() + 4.0 * entropy, rel=1e-7)


def _pot_gaussian(x, y):
    moments = [z.mean(0).numpy() for z in (x, y)] + [np.cov(z.T.numpy(), bias=True) for z in (x, y)]
    return ot.gaussian.bures_wasserstein_distance(*moments) ** 2


# --- distances of labels ---------------------------------------------------------------------------------------------


def test_both_routes_to_the_gaussian_distance_agree_with_covariances():
    """Fewer samples than dimensions (cross-Gram), more (rotated), and one of each, against POT and against eigh."""
    draw = lambda n, seed: classes(n, seed, dim=12)[0]  # noqa: E731
    few, many, other = draw(7, 0), draw(60, 1) * 1.5, draw(45, 2) + 1
    table = gaussian_distances([few, many], [other, few])
    for i, x in enumerate([few, many]):
        for j, y in enumerate([other, few]):
            if (i, j) != (0, 1):
                root = torch.linalg.eigh(torch.cov(x.T, correction=0))
                half = root[1] * root[0].clamp(min=0).sqrt() @ root[1].T
                cross = torch.linalg.eigvalsh(half @ torch.cov(y.T, correction=0) @ half).clamp(min=0).sqrt().sum()
                traces = x.var(0, correction=0).sum() + y.var(0, correction=0).sum()
                want = (x.mean(0) - y.mean(0)).square().sum() + traces - 2 * cross
                assert float(table[i, j]) == pytest.approx(float(want), rel=1e-5)  # eigh's own noise: singular
    assert float(table[1, 0]) == pytest.approx(_pot_gaussian(many, other), rel=1e-8)
    assert float(table[0, 1]) == pytest.approx(0, abs=1e-9)
    own = gaussian_distances([few, many, other])
    assert torch.equal(own, own.T) and bool((own.diagonal() == 0).all())
    torch.testing.assert_close(own[:2, 2], table[:, 0])


def test_gaussian_distances_in_closed_form():
    """Diagonal covariances: sum (s - s')^2; a scaled class: (1 - c)^2 tr S; a point: tr S."""
    box = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)  # covariance 1
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.5, 3.0])
    found = gaussian_distances([box * a, box * 0], [box * b + 1, 2 * box * a])
    want = torch.tensor([[1 + 2.25 + 3, 14.0], [3 + 4 + 0.25 + 9, 4 * 14.0]], dtype=torch.float64)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_gradients_of_few_samples_in_many_dimensions_are_finite(n):
    rng = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n, 384, generator=rng).requires_grad_() for _ in range(2))
    gaussian_distances([x, x * 2], [y]).sum().backward()
    assert x.grad.isfinite().all() and y.grad.isfinite().all() and (n == 1 or y.grad.abs().max() > 0)
    same = gaussian_distances([x.detach()], [x.detach().clone()])
    assert 0 <= float(same) < 1e-3


@pytest.mark.parametrize("n, m", [(4, 5), (9, 5), (9, 11)])
def test_gradient_of_the_gaussian_distance(n, m):
    """Against finite differences, on both routes (6 dimensions)."""
    x, y = (classes(k, s)[0].requires_grad_() for s, k in enumerate((n, m)))
    assert torch.autograd.gradcheck(lambda x, y: gaussian_distances([x, y], [y]), (x, y), atol=1e-6)
    assert torch.autograd.gradcheck(lambda x, y: gaussian_distances([x, y]), (x, y), atol=1e-6)


def test_nuclear_norm_of_a_zero_matrix_has_a_zero_gradient():
    zero = torch.zeros(3, 4, requires_grad=True)
    nuclear_norm(zero).backward()
    assert bool((zero.grad == 0).all())


def test_other_label_distances(sets):
    a, la, b, lb = sets
    ours, theirs = labelled(a, la), labelled(b, lb)
    tables = {inner: label_distances(ours, theirs, inner) for inner in ("means", "diag", "gaussian", "exact")}
    means = torch.stack([x.mean(0) for x in ours.classes]), torch.stack([y.mean(0) for y in theirs.classes])
    torch.testing.assert_close(tables["means"], torch.cdist(*means) ** 2)
    assert bool((tables["means"] <= tables["diag"]).all() and (tables["gaussian"] <= tables["exact"] + 1e-9).all())
    x, y = ours.classes[1].numpy(), theirs.classes[0].numpy()
    assert float(tables["exact"][1, 0]) == pytest.approx(ot.emd2([], [], ot.dist(x, y)), rel=1e-7)
    values = [float(dataset_distance(a, la, b, lb, Transport(inner=inner))) for inner in tables]
    assert len({round(value, 3) for value in values}) == 4


# --- the solver ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps, error", [(1e-3, 1e-8), (0.1, 1e-12), (5.0, 1e-12), (1e4, 1e-12)])
def test_plans_have_their_marginals_and_the_value_is_the_primal(sets, eps, error):
    a, la, b, lb = sets
    cost = costs(labelled(a, la), labelled(b, lb))
    found = entropic(cost, eps)
    assert (found.plan.sum(1) - 1 / 48).abs().max() < error and (found.plan.sum(0) - 1 / 37).abs().max() < 1e-12
    primal = (found.plan * cost).sum() + eps * torch.special.xlogy(found.plan, found.plan * cost.numel()).sum()
    torch.testing.assert_close(found.value, primal, rtol=1e-8, atol=0)


def test_small_eps_goes_to_exact_transport(sets):
    a, la, b, lb = sets
    cost = costs(labelled(a, la), labelled(b, lb))
    best = exact(cost)
    gaps = [float(entropic(cost, eps).value - best.value) for eps in (1.0, 0.1, 1e-2, 1e-3)]
    assert gaps == sorted(gaps, reverse=True) and 0 <= gaps[-1] < 1e-2 and best.error < 1e-12


def test_the_symmetric_solver_agrees_with_the_general_one():
    cost = costs(labelled(*classes(48)))
    for eps in (0.05, 1.0, 30.0):
        ours, theirs = entropic_self(cost, eps), entropic(cost, eps)
        torch.testing.assert_close(ours.value, theirs.value, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.plan, theirs.plan, rtol=1e-6, atol=1e-11)
        assert ours.error < 1e-10


def test_assignment_of_equal_counts_is_the_linear_programs():
    cost = costs(labelled(*classes(20)), labelled(*classes(20, 1)))
    doubled = exact(cost.repeat_interleave(2, 0))  # 40 x 20: the linear program
    assert float(exact(cost).value) == pytest.approx(float(doubled.value), rel=1e-9)


def test_softmin_lies_between_minimum_and_mean():
    cost = torch.rand(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(softmin(cost, 1e6), cost.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(softmin(cost, 1e-7), cost.amin(1), atol=1e-5, rtol=0)


def test_float32_is_close_and_keeps_the_dtype():
    (a, la), (b, lb) = classes(60, dim=40), classes(50, 1, dim=40)
    want = dataset_distance(a, la, b, lb)
    found = dataset_distance(a.float(), la, b.float(), lb)
    assert found.dtype == torch.float32 and want.dtype == torch.float64 and found.shape == ()
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=0)
    single = dataset_distance(a, la, b, lb, Transport(dtype=torch.float32))
    torch.testing.assert_close(single, want, rtol=1e-3, atol=0)
    assert torch.equal(found, dataset_distance(a.float(), la, b.float(), lb))  # deterministic


# --- gradient --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [DEFAULT, Transport(eps=2.0, inner="diag"), Transport(eps=1.0, debiased=False)])
def test_gradient_against_finite_differences(sets, how):
    """eps is held fixed, as in an alignment: the default's dependence on the sets is not part of the gradient."""
    a, la, b, lb = sets
    source = Source.of(a, la, how, standardise=False)
    b.requires_grad_()
    source.distance(b, lb).backward()
    step = 1e-4
    for row, column in [(0, 0), (11, 3), (36, 5)]:
        sides = []
        for sign in (1, -1):
            moved = b.detach().clone()
            moved[row, column] += sign * step
            sides.append(float(source.distance(moved, lb)))
        assert float(b.grad[row, column]) == pytest.approx((sides[0] - sides[1]) / 2 / step, rel=1e-5, abs=1e-7)


def test_gradient_equals_that_of_the_unrolled_loop():
    """Plain Sinkhorn with the graph through all its updates."""
    (a, la), (b, lb) = classes(16, spread=1), classes(13, 1, spread=1)
    eps, how = 4.0, Transport(eps=4.0, debiased=False)
    leaf = b.clone().requires_grad_()
    dataset_distance(a, la, leaf, lb, how).backward()
    other = b.clone().requires_grad_()
    cost = costs(labelled(a, la), labelled(other, lb))
    f, g = cost.new_zeros(16), cost.new_zeros(13)
    for _ in range(500):
        f = softmin(cost - g, eps)
        g = softmin((cost - f[:, None]).T, eps)
    (f.mean() + g.mean()).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=0, atol=1e-12)


def test_gradient_reaches_both_sets_and_pulls_them_together(sets):
    a, la, b, lb = sets
    a.requires_grad_(), b.requires_grad_()
    before = dataset_distance(a, la, b, lb)
    before.backward()
    torch.testing.assert_close(a.grad.sum(0), -b.grad.sum(0), rtol=1e-8, atol=1e-8)  # a common shift changes nothing
    with torch.no_grad():
        after = dataset_distance(a - a.grad, la, b - b.grad, lb)
    assert after < 0.95 * before


# --- a fixed source, batches -----------------------------------------------------------------------------------------


def test_a_source_standardises_by_itself_alone(sets):
    a, la, b, lb = sets
    source = Source.of(100 + 7 * a, la)
    feats = source.data.features
    torch.testing.assert_close(feats.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-9, rtol=0)
    assert float(feats.var(0, correction=0).mean()) == pytest.approx(1)
    assert source.how.eps == pytest.approx(0.05 * float(costs(source.data).median()))
    found = source.distance(100 + 7 * b, lb)
    torch.testing.assert_close(found, Source.of(a, la).distance(b, lb), rtol=1e-8, atol=0)
    unit = a.var(0, correction=0).mean().sqrt()
    raw = Source.of(a, la, standardise=False)
    torch.testing.assert_close(raw.distance(b, lb), found * unit**2, rtol=1e-8, atol=0)
    constant = Source.of(torch.ones(4, 2), [0, 0, 1, 1])
    assert float(constant.distance(torch.ones(3, 2) + 1, [0, 0, 0])) == pytest.approx(4)


def test_classwise_objective_does_not_vanish_on_equal_sets():
    a, la = classes(48)
    source = Source.of(a, la)
    leaf = a.clone().requires_grad_()
    value = source.classwise(leaf, la)
    value.backward()
    assert float(source.distance(a, la)) < 1e-10 and float(value.detach()) > 1 and leaf.grad.abs().max() > 0
    one = source.classwise(a[la == 1], la[la == 1])
    torch.testing.assert_close(one, source.distance(a[la == 1], la[la == 1]))


def test_batches_are_balanced_and_biased_upwards():
    a, la = classes(400)
    rows = balanced(la, 40, seed=0)
    assert len(np.unique(rows)) == 40 and np.array_equal(rows, balanced(la, 40, seed=0))
    assert np.bincount(la[rows]).tolist() == [10] * 4 and not np.array_equal(rows, balanced(la, 40, seed=1))
    assert np.array_equal(balanced(la, 1000, seed=0), np.arange(400))
    rare = np.array([0] * 30 + [1] * 3)
    assert np.bincount(rare[balanced(rare, 12, seed=0)]).tolist() == [9, 3]
    source = Source.of(a, la)
    small, spread = minibatch_distance(source, a, la, sizes=(40, 20))
    large, _ = minibatch_distance(source, a, la, sizes=(160, 120))
    assert float(source.distance(a, la)) < 1e-9 < large < small and spread > 0
    assert source.batch(40, 0).how.eps == source.how.eps


def test_alignment_of_a_toy_source_and_target():
    """Invariant 10: a linear map trained on batches brings the distance on a fixed part below 0.3 of the start."""
    a, la = classes(240, dim=8, kinds=6)
    b, lb = classes(200, 1, dim=8, kinds=5)
    source = Source.of(a, la, Transport(min_count=2))
    report = balanced(lb, 100, seed=99)
    torch.manual_seed(0)
    embed = torch.nn.Linear(8, 8).double()
    torch.nn.init.eye_(embed.weight)
    optimizer = torch.optim.Adam(embed.parameters(), lr=0.1)
    curve = []
    for step in range(60):
        with torch.no_grad():
            curve.append(float(source.distance(embed(b[report]), lb[report])))
        rows = balanced(lb, 60, seed=step)
        optimizer.zero_grad()
        source.batch(120, step).distance(embed(b[rows]), lb[rows]).backward()
        optimizer.step()
    mean = np.convolve(curve, np.ones(10) / 10, "valid")
    assert curve[-1] < 0.3 * curve[0] and bool((np.diff(mean) < 0.01 * curve[0]).all()), curve


def test_neighbour_accuracy():
    a, la = classes(80, spread=20)
    assert neighbour_accuracy(a, la) == 1
    shuffled = la[torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    assert neighbour_accuracy(a, shuffled) < 0.6
    line = np.array([[0.0], [1.0], [3.0], [6.0]])
    assert neighbour_accuracy(line, ["x", "x", "y", "y"], neighbours=1) == 0.75  # 3 is nearest to 1
    assert neighbour_accuracy(line, ["x", "x", "y", "y"], neighbours=2) == 0.75  # a tie goes to the nearer


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, text",
    [
        ((np.zeros((3, 2)), [0, 1], np.zeros((3, 2)), [0] * 3), r"features_a must be \[n, D\].*2 labels"),
        ((np.zeros((3, 2)), [0] * 3, np.zeros(3), [0] * 3), r"features_b must be \[n, D\]"),
        ((np.zeros((3, 2)), [0] * 3, np.zeros((3, 4)), [0] * 3), "take both from the same model"),
        ((np.full((3, 2), np.nan), [0] * 3, np.zeros((3, 2)), [0] * 3), "features_a hold values that are not finite"),
        ((np.zeros((3, 2)), [0] * 3, np.zeros((0, 2)), []), "features_b have no class"),
    ],
)
def test_what_cannot_be_measured_is_said(args, text):
    with pytest.raises(UserError, match=text):
        dataset_distance(*args)


def test_wrong_settings_are_said():
    with pytest.raises(UserError, match="Transport.inner"):
        Transport(inner="bures")
    with pytest.raises(UserError, match="must not be negative"):
        Transport(eps=-1)
