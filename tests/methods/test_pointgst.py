"""PointGST: counts, the graphs and their bases, the branch against its formula, and what a cloud may depend on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from contracts import batch, cloud, logits, on_a_curve, tiny, train, zero
from pointadapt.backbones.point_gpt import PointGPT
from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.backbones.ptv3 import PTv3, PTv3Config
from pointadapt.backbones.recon import ReCon
from pointadapt.errors import UserError
from pointadapt.methods import adapt
from pointadapt.methods.pointgst import (
    PointGSTConfig,
    Settings,
    SpectralAdapter,
    chunks,
    cosines,
    laplacian,
    make_basis,
    make_token_basis,
    morton_order,
    point_basis,
    released_laplacian,
    token_basis,
    upright,
)
from pointadapt.ops.order import curve_order
from pointadapt.point import collate
from pointadapt.tasks.classification import Classification
from pointadapt.tasks.segmentation import Segmentation
from pointadapt.tokens import Tokens

#: Published trainable parameters of the twelve adapters at official size.
PUBLISHED = {"norm_ly1": 864, "norm_ly2": 864, "down": 166320, "up": 170496, "adapt1": 15984}


def drawn(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def perturbed(module: nn.Module, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def tokens(groups=40, clouds=2, channels=6, cls=1, seed=0) -> Tokens:
    center = drawn((clouds, groups, 3), seed) * 0.4
    return Tokens(drawn((clouds, cls + groups, channels), seed), (("cls", cls), ("patch", groups)), center=center)


def counts(model) -> dict[str, int]:
    return {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------------------------------------------------- counts


def test_counts_on_point_mae():
    with torch.device("meta"):
        found = counts(adapt(Classification(PointViT(PointViTConfig()), 15), PointGSTConfig()))
    assert sum(found.values()) == 622_831
    assert sum(n for name, n in found.items() if ".head." in name) == 267_535
    assert sum(n for name, n in found.items() if ".cls." in name) == 768
    parts = {"norms.0": "norm_ly1", "norms.1": "norm_ly2", "mix": "adapt1", "down": "down", "up": "up"}
    for ours, theirs in parts.items():
        assert sum(n for name, n in found.items() if f".default.{ours}." in name) == PUBLISHED[theirs]


def test_counts_on_sonata_base():
    def sonata(config):
        with torch.device("meta"):
            return counts(adapt(Segmentation(PTv3(PTv3Config()), 20), config))

    found = sonata(PointGSTConfig())
    widths = 3 * 48 + 3 * 96 + 3 * 192 + 12 * 384 + 3 * 512
    assert sum(found.values()) - 24_660 == 2 * 64 * widths + widths + 24 * (64**2 + 6 * 64) == 1_030_128
    assert sum(sonata(PointGSTConfig(graphs=[32])).values()) - 24_660 == 1_027_056


# ---------------------------------------------------------------------------------------------------------- graphs


def literal_laplacian(coord):
    """Section 2.5 with loops, one graph [L, 3]."""
    length = len(coord)
    distance = torch.tensor([[(a - b).norm().item() for b in coord] for a in coord], dtype=torch.float64)
    smallest = min(distance[i, j].item() for i in range(length) for j in range(length) if i != j)
    weight = 1 / (distance / smallest + torch.eye(length))
    scale = torch.diag((weight.sum(1) + 1e-6).rsqrt())
    return torch.eye(length) - scale @ weight @ scale


def test_clean_laplacian_is_the_formula_with_exact_distances():
    coord = drawn((3, 128, 3)) * 0.4
    found = laplacian(coord, torch.ones(3, 128, dtype=torch.bool), 0.0)
    for one, ours in zip(coord, found, strict=True):
        torch.testing.assert_close(ours, literal_laplacian(one.double()), atol=2e-6, rtol=0)
    values = torch.linalg.eigvalsh(found)
    assert values.min() > -1e-6 and values.max() < 1.1  # released: [0, 0.093]
    weak = torch.linalg.eigvalsh(released_laplacian(coord))
    assert weak.max() < 0.2


def test_released_scale_is_of_the_whole_batch_and_the_clean_one_of_a_graph():
    coord = drawn((2, 20, 3)) * 0.4
    alone, together = released_laplacian(coord[:1])[0], released_laplacian(torch.cat([coord[:1], coord[1:] * 0.01]))[0]
    assert not torch.allclose(alone, together, atol=1e-2)
    real = torch.ones(2, 20, dtype=torch.bool)
    alone, together = (
        laplacian(coord[:1], real[:1], 0.0),
        laplacian(torch.cat([coord[:1], coord[1:] * 0.01]), real, 0.0),
    )
    assert torch.equal(alone[0], together[0])
    torch.testing.assert_close(together[1], laplacian(coord[1:], real[1:], 0.0)[0])  # and it knows no unit


def test_basis_of_a_short_graph_is_that_of_its_nodes_alone():
    coord, settings = drawn((1, 32, 3)), Settings((32,))
    short = make_basis(coord, torch.tensor([20]), settings)[0]
    alone = make_basis(coord[:, :20], torch.tensor([20]), settings)[0]
    assert not short[20:].any() and not short[:, 20:].any()
    torch.testing.assert_close(short[:20, :20], alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(alone.T @ alone, torch.eye(20), atol=1e-5, rtol=0)


def test_duplicate_points_have_a_finite_basis():
    coord = drawn((2, 16, 3))
    coord[0, 5:] = coord[0, 5]
    coord[1] = coord[1, 0]
    for nearest in (0.0, 0.01):
        basis = make_basis(coord, torch.tensor([16, 16]), Settings((16,)), nearest)
        torch.testing.assert_close(basis.mT @ basis, torch.eye(16).expand(2, -1, -1), atol=1e-5, rtol=0)


def test_distances_below_half_a_voxel_count_as_that():
    coord = torch.tensor([[[0.0, 0, 0], [1e-4, 0, 0], [1, 0, 0]]])
    real = torch.ones(1, 3, dtype=torch.bool)
    wide = laplacian(coord, real, 0.5)[0]
    weight = torch.tensor([[1, 1, 0.5], [1, 1, 0.5], [0.5, 0.5, 1]], dtype=torch.float64)
    scale = torch.diag((weight.sum(1) + 1e-6).rsqrt())
    torch.testing.assert_close(wide, torch.eye(3) - scale @ weight @ scale, atol=1e-4, rtol=0)


def test_basis_does_not_hang_on_signs_or_symmetry():
    vectors = torch.linalg.qr(drawn((4, 12, 12)))[0]
    flips = drawn((4, 1, 12), 1).sign()
    assert torch.equal(upright(vectors), upright(vectors * flips))
    grid = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0), torch.arange(2.0))[None]  # many equal distances
    count, settings = torch.tensor([32]), Settings((32,))
    shifted = make_basis(grid * 0.02 + 7.3, count, settings)
    torch.testing.assert_close(make_basis(grid * 0.02, count, settings), shifted, atol=1e-3, rtol=0)


def test_every_node_is_in_one_graph():
    order = torch.cat([torch.randperm(70), 70 + torch.randperm(3), 73 + torch.randperm(64)])
    index, position, sizes = chunks(order, [70, 0, 3, 64], 32)
    assert sizes.tolist() == [32, 32, 6, 3, 32, 32]
    assert torch.equal(index.flatten()[position], torch.arange(137))
    assert torch.equal(index[1], order[32:64]) and torch.equal(index[3, :3], order[70:73])


def test_morton_curves():
    cells = torch.cartesian_prod(*[torch.arange(4.0)] * 3)[None] / 100 + 0.001
    released = cells[0][morton_order(cells, True)[0]]
    assert released[0].tolist() == cells[0, 0].tolist()
    assert (released[:32, 1] < 0.02).all() and (released[:16, 0] < 0.02).all() and (released[:8, 2] < 0.02).all()
    center = drawn((2, 50, 3))
    assert torch.equal(morton_order(center, False), morton_order(center * 4 + 2, False))
    below_zero = morton_order(center, True)[0]
    assert (center[0, below_zero[0]] > -0.01).all()  # negative coordinates come after positive ones


def test_cosines_are_orthonormal_for_every_length():
    basis = cosines(torch.tensor([1, 5, 16]), 16)
    for count, one in zip((1, 5, 16), basis, strict=True):
        own = one[:count, :count]
        torch.testing.assert_close(own.T @ own, torch.eye(count, dtype=torch.float64), atol=1e-9, rtol=0)
        assert (own[:, 0] - own[0, 0]).abs().max() < 1e-12  # the smooth one first


# ---------------------------------------------------------------------------------------------------------- branch


@pytest.mark.parametrize("transpose", [False, True])
def test_branch_is_the_formula(transpose):  # one cloud and chunk at a time
    adapter, x = perturbed(SpectralAdapter(6, 4, Settings((0, 8)), transpose)), tokens()
    low = adapter.down(x.feat)
    hidden = F.silu(low)
    basis = token_basis(x, Settings((0, 8)))
    order = morton_order(x.center, False)
    for b in range(2):
        nodes, change = low[b, 1:], torch.zeros(40, 4)

        def spectral(g, u, norm):
            u = u.T if transpose else u
            f = u @ g
            return u.T @ (f + F.silu(adapter.mix(norm(f))))

        change += spectral(nodes, basis[0].basis[b], adapter.norms[0])
        for c in range(5):
            rows = order[b, 8 * c : 8 * c + 8]
            change[rows] += spectral(nodes[rows], basis[1].basis[5 * b + c], adapter.norms[1])
        hidden[b, 1:] += change
    torch.testing.assert_close(adapter(zero, x).feat, adapter.up(hidden), atol=1e-5, rtol=1e-5)


def test_basis_is_made_once_for_a_cloud():
    x, settings = tokens(), Settings((0, 8))
    first = token_basis(x, settings)
    assert token_basis(x.but(feat=x.feat + 1), settings) is first
    assert token_basis(x.but(center=x.center.clone()), settings) is not first  # centres of another tokenizer


@pytest.mark.parametrize("groups", [5, 32, 40])
def test_any_number_of_centres_and_duplicates(groups):
    x = tokens(groups)
    x.center[0, 1:4] = x.center[0, 0]
    adapter = perturbed(SpectralAdapter(6, 4, Settings((0, 32))))
    out = adapter(zero, x).feat
    assert out.isfinite().all()
    alone = x.but(feat=x.feat[1:], center=x.center[1:], cache={})
    torch.testing.assert_close(adapter(zero, alone).feat, out[1:], atol=1e-5, rtol=1e-5)


def test_released_basis_depends_on_the_batch_and_needs_whole_graphs():
    x, settings = tokens(), Settings((0, 8), released=True)
    basis = token_basis(x, settings)[0].basis
    other = torch.cat([x.center[:1], x.center[1:] * 0.01])
    assert not torch.allclose(make_token_basis(other, settings)[0].basis[0], basis[0], atol=1e-3)
    with pytest.raises(UserError, match="divides"):
        token_basis(x, Settings((0, 32), released=True))


def test_points_of_a_scene_see_their_stretch_of_the_curve_alone():
    adapter = perturbed(SpectralAdapter(9, 4, Settings((8,))))
    point = on_a_curve(collate([cloud(43, 1), cloud(50, 2)]))
    out = adapter(zero, point).feat
    feat = point.feat.clone()
    feat[17, 0] += 1
    change = (adapter(zero, point.but(feat=feat)).feat - out).abs().amax(1) > 1e-7
    order, inverse = curve_order(point, "z")
    first = int(inverse[17]) // 8 * 8
    assert set(change.nonzero().flatten().tolist()) <= set(order[first : min(first + 8, 43)].tolist())
    assert change[17]
    other = adapter(zero, on_a_curve(point.but(cache={}), "hilbert")).feat
    assert not torch.allclose(other, out, atol=1e-3)
    alone = on_a_curve(cloud(50, 2))
    torch.testing.assert_close(adapter(zero, alone).feat, out[43:], atol=1e-5, rtol=1e-5)


def test_points_in_one_place():
    point = on_a_curve(cloud(40, 1))
    same = point.but(coord=point.coord[:1].expand(40, -1).clone(), extra=point.extra)
    assert perturbed(SpectralAdapter(9, 4, Settings((16, 32))))(zero, same).feat.isfinite().all()


def test_basis_of_a_level_is_shared_by_its_blocks():
    point = on_a_curve(cloud(40, 1))
    assert point_basis(point, Settings((8,))) is point_basis(point.but(feat=point.feat + 1), Settings((8,)))


@pytest.mark.parametrize(
    "options",
    [{"basis": "dct"}, {"transpose_basis": True}, {"graphs": [8]}, {"rank": 4, "graphs": [4, 8, 16]}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["m2", "vit"])
def test_every_option_trains_and_starts_as_identity(kind, options):
    plain = tiny(kind)
    point = batch(plain)
    model = adapt(tiny(kind), PointGSTConfig(**options)).eval()
    assert torch.equal(logits(model, point), logits(plain, point))
    train(model, 3)
    assert not torch.equal(logits(model.eval(), point), logits(plain, point))


@pytest.mark.parametrize("family", [ReCon, PointGPT])
def test_other_transformers(family):
    sizes = dict(groups=12, group_size=8, channels=32, depth=2, heads=2, embed_channels=32, embed_hidden=(8, 16, 32))
    torch.manual_seed(0)
    plain = Classification(family(PointViTConfig(**sizes, cls_tokens=3 if family is ReCon else 1)), 4).eval()
    point = batch(plain)
    expected = logits(plain, point)
    model = adapt(plain, PointGSTConfig()).eval()
    torch.testing.assert_close(logits(model, point), expected, atol=1e-6, rtol=1e-6)
    train(model, 2)
    together = logits(model.eval(), point)
    assert not torch.equal(together, expected)
    for one, row in zip(point.split(), together, strict=True):
        torch.testing.assert_close(logits(model, one)[0], row, atol=1e-5, rtol=1e-5)


def test_released_mode_on_objects_only():
    model = adapt(tiny("vit"), PointGSTConfig(graphs=[0, 4], compat="released"))
    train(model, 2)
    with pytest.raises(UserError, match="released"):
        adapt(tiny("m2"), PointGSTConfig(compat="released"))
    with pytest.raises(UserError, match="too many points"):
        adapt(tiny("m2"), PointGSTConfig(graphs=[0, 32]))


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"graphs": [1]}, {"graphs": []}, {"basis": "fft"}, {"compat": "old"}], ids=str
)
def test_wrong_options_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        PointGSTConfig(**options)


def test_tokens_without_centres_are_refused():
    with pytest.raises(UserError, match="centres"):
        token_basis(tokens().but(center=None), Settings((0,)))


def test_chunks_are_cut_without_asking_the_device():
    """Meta stands for a GPU: what would wait for values fails on it."""
    order, counts = torch.arange(11), [5, 0, 6]
    expected = chunks(order, counts, 4)
    assert expected[2].tolist() == [4, 1, 4, 2]
    assert [t.shape for t in chunks(order.to("meta"), counts, 4)] == [t.shape for t in expected]
