"""Triton's sparse convolutions against PyTorch's and float64: on a GPU where there is one, else in the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from pointadapt.errors import UserError
from pointadapt.ops import sparse_conv
from pointadapt.ops.sparse_conv import make_neighbors, subm_conv
from pointadapt.ops.strided_conv import DownConv3d, UpConv3d
from pointadapt.ops.tap_map import TapTable
from pointadapt.ops.tap_pairs import TapPairs
from pointadapt.point import Point, collate
from scenes import cloud, tiny

pytest.importorskip("triton", reason="Triton kernels need triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
with pytest.MonkeyPatch.context() as patch:
    if DEVICE == "cpu":
        patch.setitem(os.environ, "TRITON_INTERPRET", "1")  # read where kernels are defined, so only this import
    from pointadapt.ops import triton_conv
    from pointadapt.ops.triton_conv import Tile, gather_product, make_subm_map, tap_conv, weight_gradient

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def error(value, exact):
    """Relative error in the Frobenius norm."""
    return float((value.detach().double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-300))


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def with_duplicates():
    """Three clouds, one empty; some voxels have two and three rows."""
    one = cloud(60, 5)
    grid = torch.cat([one.grid_coord, one.grid_coord[:20], one.grid_coord[:4]])
    twice = Point(grid.float(), torch.randn(len(grid), 9), torch.tensor([len(grid)]), grid)
    return collate([twice, cloud(0), cloud(40, 4, seed=1)]).to(DEVICE)


def points():
    return {
        "several": collate([cloud(80, 6), cloud(0), cloud(40, 5, seed=1), cloud(1, 2)]).to(DEVICE),
        "one row": cloud(1, 2).to(DEVICE),
        "two rows": cloud(2, 9).to(DEVICE),
        "far apart": cloud(30, 1000).to(DEVICE),
        "a line": Point(torch.zeros(20, 3), torch.zeros(20, 9), torch.tensor([20]),
                        torch.arange(20)[:, None] * torch.tensor([0, 0, 1])).to(DEVICE),
        "duplicates": with_duplicates(),
    }  # fmt: skip


def as_set(pairs):
    return {(tap, *pair) for tap, written, read in pairs for pair in zip(written.tolist(), read.tolist(), strict=True)}


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("name", points())
def test_neighbours_are_those_of_the_reference(name, kernel):
    point = points()[name]
    found = make_subm_map(point, kernel)
    assert as_set(found.as_pairs()) == as_set(make_neighbors(point, kernel).pairs)
    centre = found.there.sources[kernel**3 // 2]
    assert torch.equal(centre, found.there.order) and sorted(centre.tolist()) == list(range(len(point)))
    assert bool(found.same) == (name == "duplicates")


@pytest.mark.parametrize("block", [16, 64])
def test_tiles_list_exactly_the_taps_their_rows_have(block):
    table = make_subm_map(points()["several"], 3).there
    taps, count, sources, heavy = table.tiles(block)
    for tile, (listed, length) in enumerate(zip(taps, count, strict=True)):
        rows = table.sources[:, tile * block : (tile + 1) * block]
        assert listed[:length].tolist() == (rows >= 0).any(1).nonzero()[:, 0].tolist()
        assert torch.equal(sources[tile, :length, : rows.shape[1]], rows[listed[:length].long()])
        assert (sources[tile, :length, rows.shape[1] :] == -1).all()
    assert count[heavy.long()].tolist() == sorted(count.tolist(), reverse=True)
    assert table.tiles(block) is table.tiles(block)


def test_sorted_rows_leave_less_to_compute():
    table = make_subm_map(cloud(600, 14).to(DEVICE), 3).there
    unsorted = torch.empty_like(table.sources).index_copy_(1, table.order.long(), table.sources)
    as_given = TapTable(unsorted, torch.arange(unsorted.shape[1], dtype=torch.int32, device=DEVICE))
    needed = int((unsorted >= 0).sum())
    computed, as_it_lies = (int(t.tiles(16)[1].sum()) * 16 for t in (table, as_given))
    assert needed <= computed < 0.8 * as_it_lies


def exact(point, feat, weight, bias, grad, kernel):
    """Output and gradients by the reference, in float64."""
    leaves = [t.detach().double().requires_grad_() for t in (feat, weight, bias)]
    out = subm_conv(*leaves, make_neighbors(point, kernel))
    out.backward(grad.double())
    return out.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize(
    ("name", "channels", "kernel", "dtype"),
    [
        ("several", (9, 5), 3, torch.float32),
        ("several", (20, 48), 3, torch.float32),
        ("several", (20, 48), 3, torch.bfloat16),
        ("several", (20, 48), 3, torch.float16),
        ("several", (7, 7), 1, torch.float32),
        ("two rows", (6, 17), 5, torch.float32),
        ("one row", (33, 3), 3, torch.bfloat16),
        ("two rows", (1, 1), 3, torch.float32),
        ("far apart", (16, 16), 3, torch.float32),
        ("a line", (8, 24), 5, torch.bfloat16),
        ("duplicates", (12, 20), 3, torch.float32),
        ("duplicates", (12, 20), 3, torch.bfloat16),
    ],
)
def test_output_and_gradients(name, channels, kernel, dtype):
    point = points()[name]
    feat, weight = draw(len(point), channels[0]), draw(channels[1], *[kernel] * 3, channels[0], seed=1)
    bias, grad = draw(channels[1], seed=2), draw(len(point), channels[1], seed=3)
    feat, weight, bias, grad = (t.to(dtype) for t in (feat, weight, bias, grad))
    leaves = [t.clone().requires_grad_() for t in (feat, weight, bias)]
    out = tap_conv(*leaves, make_subm_map(point, kernel))
    out.backward(grad)
    assert out.dtype == dtype
    for value, truth in zip((out, *(leaf.grad for leaf in leaves)), exact(point, *[feat, weight, bias], grad, kernel),
                            strict=True):  # fmt: skip
        assert value.dtype == dtype and error(value, truth) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("tile", "splits"), [(Tile(16, 32, 16), 3), (Tile(32, 16, 64), 1), (Tile(64, 64, 32), 8)])
def test_no_size_of_tile_and_no_split_changes_the_result(tile, splits):
    point = points()["duplicates"].split()[2]
    feat, weight, bias = draw(len(point), 21), draw(19, 27, 21, seed=1), draw(19, seed=2)
    grad = draw(len(point), 19, seed=3)
    table = make_subm_map(point, 3).there
    cube = weight.view(19, 3, 3, 3, 21)
    truth, in_feat, in_weight, _ = exact(point, feat, cube, bias, grad, 3)
    assert error(gather_product(feat, weight, bias, table, tile=tile, splits=splits), truth) < 1e-5
    back = gather_product(grad, weight, None, table, back=True, mirrored=True, tile=tile, splits=splits)
    assert error(back, in_feat) < 1e-5
    assert error(weight_gradient(feat, grad, weight, table, tile, splits), in_weight.flatten(1, 3)) < 1e-5


def test_types_mix_as_under_autocast():
    """Half-precision features meet float32 weights, below and above the size where the weight is cast beforehand."""
    point = points()["several"]
    feat, weight = draw(len(point), 9).half(), draw(5, 3, 3, 3, 9, seed=1).requires_grad_()
    taps = make_subm_map(point, 3)
    out = tap_conv(feat, weight, None, taps)
    out.sum().backward()
    assert out.dtype == torch.float16 and weight.grad.dtype == torch.float32
    keys, choose = [], triton_conv.choose
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_conv, "choose", lambda key, *rest: keys.append(key) or choose(key, *rest))
        tap_conv(feat, weight, None, taps)
        patch.setattr(triton_conv, "CAST_ROWS", 0)
        assert torch.equal(tap_conv(feat, weight, None, taps), out)
    assert keys[0] != keys[1]  # another kernel, which needs more shared memory: no tile is taken over


def test_what_is_frozen_costs_nothing(monkeypatch):
    point = points()["several"]
    taps, called = make_subm_map(point, 3), []
    for name in ("gather_product", "weight_gradient"):
        made = getattr(triton_conv, name)
        monkeypatch.setattr(triton_conv, name, lambda *a, _f=made, _n=name, **k: (called.append(_n), _f(*a, **k))[1])
    feat, weight = draw(len(point), 9), draw(4, 3, 3, 3, 9, seed=1)

    out = tap_conv(feat.requires_grad_(), weight, None, taps)
    assert all(saved is None or saved.shape == weight.shape for saved in out.grad_fn.saved_tensors)
    out.sum().backward()
    assert called == ["gather_product"] * 2 and feat.grad is not None

    called.clear()
    tap_conv(feat.detach(), weight.requires_grad_(), None, taps).sum().backward()
    assert called == ["gather_product", "weight_gradient"] and weight.grad is not None

    called.clear()
    assert not tap_conv(feat.detach(), weight.detach(), None, taps).requires_grad
    assert called == ["gather_product"]


def test_no_rows():
    point = cloud(0).to(DEVICE)
    feat, weight = draw(0, 9).requires_grad_(), draw(4, 3, 3, 3, 9).requires_grad_()
    out = tap_conv(feat, weight, None, make_subm_map(point, 3))
    out.sum().backward()
    assert out.shape == (0, 4) and not weight.grad.any() and feat.grad.shape == (0, 9)


def test_a_cloud_does_not_see_its_batch_mates():
    one, other = cloud(50, 5), cloud(90, 6, seed=1)
    weight = draw(8, 3, 3, 3, 9)
    alone = tap_conv(one.feat.to(DEVICE), weight, None, make_subm_map(one.to(DEVICE), 3))
    both = collate([other, one]).to(DEVICE)
    together = tap_conv(both.feat, weight, None, make_subm_map(both, 3))[len(other) :]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)  # numpy's product, too, rounds by a row's place


def test_refusals():
    point = points()["one row"]
    with pytest.raises(ValueError, match="odd"):
        triton_conv.subm_map(point, 2)
    with pytest.raises(TypeError, match="float64"):
        tap_conv(point.feat.double(), draw(4, 3, 3, 3, 9, dtype=torch.float64), None, make_subm_map(point, 3))


def test_a_layer_runs_on_triton_where_it_is_asked_to(monkeypatch):
    point, conv = points()["several"], sparse_conv.SubMConv3d(9, 4).to(DEVICE)
    monkeypatch.setenv("POINTADAPT_CONV", "torch")
    expected, pairs = conv(point), sparse_conv.neighbors(point)
    assert isinstance(pairs, TapPairs)
    monkeypatch.setenv("POINTADAPT_CONV", "triton")
    out, taps = conv(point), sparse_conv.neighbors(point)
    assert type(out.grad_fn).__name__ == "TapConvolutionBackward" and taps is sparse_conv.neighbors(point)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)

    wide = (point.feat.double(), conv.weight.double(), None)
    torch.testing.assert_close(subm_conv(*wide, taps), subm_conv(*wide, pairs))  # float64: PyTorch's, either way
    with torch.autocast(DEVICE, torch.bfloat16):
        low = conv(point)
    assert low.dtype == torch.bfloat16 and error(low, expected.detach()) < 1e-2
    monkeypatch.setenv("POINTADAPT_CONV", "cuda")
    with pytest.raises(UserError, match="POINTADAPT_CONV=cuda"):
        conv(point)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["several", "duplicates", "one row"])
def test_convolutions_between_resolutions(name, dtype, monkeypatch):
    """Down and up again with all gradients, against PyTorch's in float64; duplicates count on the way down."""
    point, grad = points()[name], draw(len(points()[name]), 7)
    results = []
    for backend, kind in (("torch", torch.float64), ("triton", dtype)):
        monkeypatch.setenv("POINTADAPT_CONV", backend)
        torch.manual_seed(0)
        down, up = (conv.to(DEVICE, dtype).to(kind) for conv in (DownConv3d(9, 12), UpConv3d(12, 7)))
        feat = point.feat.to(dtype).to(kind).requires_grad_()
        out = up(down(point.but(feat=feat, cache={})))
        out.backward(grad.to(dtype).to(kind))
        results.append([out, feat.grad, *(p.grad for m in (down, up) for p in m.parameters())])
    for value, truth in zip(*reversed(results), strict=True):
        assert value.dtype == dtype and error(value, truth.detach()) <= TOLERANCE.get(dtype, 1e-12)


def test_the_cpu_stays_with_pytorch():
    assert not sparse_conv.uses_triton(torch.zeros(1, 1))


def test_a_gpu_has_triton_from_ampere_on_and_where_it_works(monkeypatch):
    """On a stand-in for a GPU's tensor: the kernel that is tried runs where this test runs."""
    feat = SimpleNamespace(dtype=torch.bfloat16, is_cuda=True, device=torch.device(DEVICE))
    sparse_conv.triton_works.cache_clear()
    monkeypatch.delenv("POINTADAPT_CONV", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not sparse_conv.uses_triton(feat)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert sparse_conv.uses_triton(feat)
    assert not sparse_conv.uses_triton(SimpleNamespace(**vars(feat) | {"dtype": torch.float64}))

    def no_compiler(*_):
        raise RuntimeError("no C compiler")

    sparse_conv.triton_works.cache_clear()
    monkeypatch.setattr(triton_conv, "make_subm_map", no_compiler)
    with pytest.warns(RuntimeWarning, match="no C compiler"):
        assert not sparse_conv.uses_triton(feat)
    assert not sparse_conv.uses_triton(feat)  # tried and told once
    sparse_conv.triton_works.cache_clear()


@pytest.mark.parametrize("generation", ["m1", "m2"])
def test_a_network_gives_the_same_on_triton(generation, monkeypatch):
    point, results = collate([cloud(60, 8), cloud(20, 4, seed=1)]).to(DEVICE), []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("POINTADAPT_CONV", backend)
        model = tiny(generation=generation).to(DEVICE).requires_grad_(False)
        model.embedding.norm.requires_grad_(True)
        out = model(point.but(cache={})).feat
        (out**2).sum().backward()
        results.append([out, *(p.grad for p in model.embedding.norm.parameters())])
    for value, truth in zip(*reversed(results), strict=True):
        assert error(value, truth.detach()) < 1e-4


COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from pointadapt.ops import triton_kernels

def built(kernel, capability, tile, number="fp16", **constants):
    names = kernel.arg_names
    kinds = {"key_ptr": "*i64", "sorted_ptr": "*i64", "row_ptr": "*i64", "stride_ptr": "*i64", "out_ptr": "*fp32"}
    kinds |= dict.fromkeys(("x_ptr", "w_ptr", "bias_ptr", "grad_ptr"), "*" + number)
    types = {n: kinds.get(n, "*i32" if n.endswith("_ptr") else "i32") for n in names}
    aligned = [i for i, name in enumerate(names) if name.endswith("_ptr") or name in ("inner", "outer")]
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"),
                       constexprs={(names.index(n),): value for n, value in constants.items()},
                       attrs={(i,): [["tt.divisibility", 16]] for i in aligned})
    return compile(source, target=GPUTarget("cuda", capability, 32), options=tile)

for capability in (80, 90):
    tile = {"num_warps": 4, "num_stages": 5}
    built(triton_kernels.find_neighbors, capability, {}, KERNEL=3, BLOCK=256)
    for number, precision, depth in (("fp16", "ieee", 64), ("bf16", "ieee", 64), ("fp32", "tf32", 32)):
        common = {"WIDEN": False, "PRECISION": precision, "number": number}
        forward = built(triton_kernels.tap_product, capability, tile, BIAS=True, MIRROR=False, w_inner=1,
                        BLOCK_M=64, BLOCK_N=64, BLOCK_K=depth, **common)
        backward = built(triton_kernels.tap_weight_gradient, capability, tile, BLOCK_O=64, BLOCK_I=64, BLOCK_R=depth,
                         **common)
        for kernel in (forward, backward):
            ptx = kernel.asm["ptx"]
            assert kernel.asm["cubin"] and "cp.async" in ptx, f"loads of {number} are not pipelined"
            assert "wgmma" in ptx or "mma.sync" in ptx, f"no tensor cores for {number}"
            assert number == "fp32" or ("wgmma" if capability == 90 else "mma.sync") in ptx, "not this chip's"
"""


@pytest.mark.slow
def test_kernels_compile_for_ampere_and_hopper(tmp_path):
    """To machine code, which needs no GPU: with loads in flight during products, and products on tensor cores."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tables_are_made_without_the_host():
    """On the meta device every operation fails whose result's shape depends on values."""
    table = TapTable.sort(torch.empty(125, 1000, dtype=torch.int32, device="meta"))
    taps, count, sources, heavy = table.tiles(64)
    assert (taps.shape, count.shape, sources.shape, heavy.shape) == ((16, 125), (16,), (16, 125, 64), (16,))
    assert [t.shape for t in table.pairs()] == [(125, 1000), (125, 1000), (125,)]


def test_the_fastest_tile_is_chosen_once(monkeypatch):
    slow, fast, huge, refused = Tile(64, 64, 64), Tile(32, 32, 32), Tile(128, 128, 128), Tile(16, 16, 16)
    errors = triton_conv.triton.runtime.errors
    timed = []

    def do_bench(run, **_):
        timed.append(run())
        if timed[-1] == huge:
            raise errors.OutOfResources(2, 1, "shared memory")
        if timed[-1] == refused:
            raise errors.PTXASError("too many registers")
        return timed[-1].rows

    monkeypatch.setattr(triton_conv, "INTERPRETED", False)
    monkeypatch.setattr(triton_conv, "chosen", {})
    monkeypatch.setattr(triton_conv.triton.testing, "do_bench", do_bench)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tiles = [slow, huge, refused, fast]
    with monkeypatch.context() as patch:
        patch.setenv("POINTADAPT_TUNE", "0")
        assert triton_conv.choose("product", tiles, lambda tile: tile) == slow and not timed
    assert triton_conv.choose("product", tiles, lambda tile: tile) == fast and timed == tiles
    assert triton_conv.choose("product", tiles, lambda tile: tile) == fast and timed == tiles
    with pytest.raises(RuntimeError, match="POINTADAPT_CONV=torch"):
        triton_conv.choose("other", [huge], lambda tile: tile)


def test_tiles_and_parts_fit_the_product(monkeypatch):
    half = triton_conv.fitted(triton_conv.PRODUCT_TILES, None, 48, 9, torch.float16)
    assert {(t.columns, t.depth) for t in half} == {(64, 16)} and {t.rows for t in half} == {32, 64, 128}
    full = triton_conv.fitted(triton_conv.WEIGHT_TILES, 3, 512, None, torch.float32)
    assert {t.rows for t in full} == {16} and {t.depth for t in full} == {16, 32}
    monkeypatch.setattr(triton_conv, "processors", lambda device: 132)
    assert [triton_conv.parts(n, torch.device("cpu"), 16) for n in (1, 16, 100, 132, 1000)] == [16, 16, 2, 2, 1]


def test_deterministic_algorithms_fix_tile_and_parts(monkeypatch):
    monkeypatch.setattr(triton_conv, "processors", lambda device: 132)
    monkeypatch.setattr(triton_conv, "INTERPRETED", False)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert triton_conv.parts(1, torch.device("cpu"), 16) == 1
    assert triton_conv.choose("unseen", list(triton_conv.WEIGHT_TILES), pytest.fail) == triton_conv.WEIGHT_TILES[0]
