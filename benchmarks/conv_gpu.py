"""Sparse convolution on a GPU: against spconv, the Triton implementations that are installed, and the chip's limits.

    pip install spconv-cu126 spconv-triton            # and FlexGEMM from its repository: each is compared if it imports
    python benchmarks/conv_gpu.py [--voxels 100000] [--repeats 9] [--types float16 bfloat16 tf32] [--out conv_gpu.json]

Shapes are those of Sonata-base at every resolution of one room, of the 5^3 stem of PTv3 and of SparseUNet. For every
shape and type: the tables of neighbours, the forward pass, the backward pass of a frozen weight (gradient of the input)
and of a trained one (both gradients). All implementations take turns in one process; a figure is the median over the
repeats, each a mean of many launches. Before that, each has to agree with PyTorch in float64. The roofline takes the
least bytes (each input, result, weight and neighbour once) and the operations that the neighbours ask for; its two
ceilings, a large matrix product and a copy, are measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import room, table
from torch import Tensor

from pointadapt.ops.sparse_conv import make_neighbors, subm_conv
from pointadapt.point import Point

PHASES = ("neighbours", "forward", "input gradient", "both gradients")
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
#: Largest relative error against float64 that is accepted.
TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2, "tf32": 2e-3, "float32": 1e-5}


@dataclass(frozen=True)
class Shape:
    """A convolution of the networks; ``level`` halvings of the room's resolution."""

    name: str
    level: int
    inner: int
    outer: int
    kernel: int = 3


SHAPES = (
    Shape("Sonata enc0", 0, 48, 48),
    Shape("Sonata enc1", 1, 96, 96),
    Shape("Sonata enc2", 2, 192, 192),
    Shape("Sonata enc3", 3, 384, 384),
    Shape("Sonata enc4", 4, 512, 512),
    Shape("PTv3 stem", 0, 6, 32, 5),
    Shape("SparseUNet dec0", 0, 96, 96),
)


@dataclass(frozen=True)
class Work:
    """Least operations and bytes of one phase."""

    operations: float
    bytes: float

    def seconds(self, product_rate: float, copy_rate: float) -> float:
        """The roofline: neither ceiling can be passed."""
        return max(self.operations / product_rate, self.bytes / copy_rate)


def work(phase: str, rows: int, pairs: int, shape: Shape, size: int) -> Work:
    """What ``phase`` asks for; ``pairs`` of neighbours over all taps, ``size`` bytes a number."""
    taps = shape.kernel**3
    sources = 4.0 * rows * taps
    weight = float(taps * shape.inner * shape.outer * size)
    features = float(rows * (shape.inner + shape.outer) * size)
    if phase == "neighbours":
        return Work(0.0, 12.0 * rows + sources)  # three int32 coordinates in, the table out
    products = 2 if phase == "both gradients" else 1  # of the same size, over the same rows
    return Work(products * 2.0 * pairs * shape.inner * shape.outer, products * (features + weight) + sources)


def levels(point: Point, count: int) -> list[Point]:
    """The room at ``count`` resolutions, each half as fine as the one before, in the order of x, y, z."""
    found = [point]
    for _ in range(count - 1):
        assert found[-1].grid_coord is not None
        grid = torch.unique(found[-1].grid_coord // 2, dim=0)
        offset = torch.tensor([len(grid)], device=grid.device)
        found.append(Point(grid.float(), grid.new_zeros(len(grid), 1).float(), offset, grid))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Implementations: name -> function of (point, weight) -> (make tables, tables -> convolve(feat, weight))
# ---------------------------------------------------------------------------------------------------------------------

Convolve = Callable[[Tensor, Tensor, Any], Tensor]
Implementation = Callable[[Point, Shape], tuple[Callable[[], Any], Convolve]]


def of_torch(point: Point, shape: Shape) -> tuple[Callable[[], Any], Convolve]:
    """Pairs, gather, product, index_add: what runs without Triton."""
    return lambda: make_neighbors(point.but(cache={}), shape.kernel), lambda f, w, made: subm_conv(f, w, None, made)


def of_triton(point: Point, shape: Shape) -> tuple[Callable[[], Any], Convolve]:
    """This library's kernels."""
    from pointadapt.ops.triton_conv import make_subm_map, tap_conv

    return lambda: make_subm_map(point, shape.kernel), lambda f, w, made: tap_conv(f, w, None, made)


def of_spconv(package: str) -> Implementation:
    """spconv 2, or a package with its interface."""
    spconv = importlib.import_module(f"{package}.pytorch")
    constants = importlib.import_module(f"{package}.constants")

    def implementation(point: Point, shape: Shape) -> tuple[Callable[[], Any], Convolve]:
        assert point.grid_coord is not None
        layer = spconv.SubMConv3d(shape.inner, shape.outer, shape.kernel, bias=False, indice_key="k")
        layer = layer.to(point.coord.device)
        index = torch.cat([point.batch[:, None], point.grid_coord], 1).int()
        size = (point.grid_coord.amax(0) + 1).tolist()

        def tensor(feat: Tensor) -> Any:
            return spconv.SparseConvTensor(feat, index, size, point.num_clouds)

        def make() -> Any:
            constants.SPCONV_ALLOW_TF32 = torch.get_float32_matmul_precision() != "highest"
            with torch.no_grad():  # tables come into being with a first convolution, a narrow one
                narrow = spconv.SubMConv3d(8, 8, shape.kernel, bias=False, indice_key="k").to(index.device).half()
                return narrow(tensor(torch.zeros(len(index), 8, dtype=torch.float16, device=index.device))).indice_dict

        def convolve(feat: Tensor, weight: Tensor, made: Any) -> Tensor:
            given = tensor(feat)
            given.indice_dict = made
            return torch.func.functional_call(layer, {"weight": weight}, (given,)).features

        return make, convolve

    return implementation


def of_flex_gemm() -> Implementation:
    """FlexGEMM's masked implicit GEMM."""
    spconv = importlib.import_module("flex_gemm.ops.spconv")
    algorithm = getattr(spconv, "Algorithm", None)
    if algorithm is not None:
        spconv.set_algorithm(algorithm.MASKED_IMPLICIT_GEMM_SPLITK)

    def implementation(point: Point, shape: Shape) -> tuple[Callable[[], Any], Convolve]:
        assert point.grid_coord is not None
        index = torch.cat([point.batch[:, None], point.grid_coord], 1).int()
        size = (point.grid_coord.amax(0) + 1).tolist()

        def convolve(feat: Tensor, weight: Tensor, made: Any) -> Tensor:
            whole = torch.Size([point.num_clouds, feat.shape[1], *size])
            return spconv.sparse_submanifold_conv3d(feat, index, whole, weight, None, made)[0]

        def make() -> Any:
            feat = torch.zeros(len(index), 16, dtype=torch.float16, device=index.device)
            weight = feat.new_zeros(16, *[shape.kernel] * 3, 16)
            whole = torch.Size([point.num_clouds, 16, *size])
            return spconv.sparse_submanifold_conv3d(feat, index, whole, weight, None)[1]

        return make, convolve

    return implementation


def implementations() -> tuple[dict[str, Implementation], dict[str, str]]:
    """(those that import here, why the others do not), by name; "pointadapt" is this library's."""
    found: dict[str, Implementation] = {"torch": of_torch}
    missing = {}
    makers: dict[str, Callable[[], Implementation]] = {
        "pointadapt": lambda: importlib.import_module("pointadapt.ops.triton_conv") and of_triton,
        "spconv": lambda: of_spconv("spconv"),
        "spconv-triton": lambda: of_spconv("spconv_triton"),
        "FlexGEMM": of_flex_gemm,
    }
    for name, make in makers.items():
        try:
            found[name] = make()
        except Exception as error:  # a wheel for another CUDA fails in its own ways, and the others still count
            missing[name] = f"{type(error).__name__}: {error}"
    return found, missing


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Seconds a call takes on ``device``: the mean over as many launches as fill ``span`` seconds."""

    def __init__(self, device: torch.device, span: float = 0.02) -> None:
        self.device, self.span = device, span

    def once(self, run: Callable[[], Any], launches: int) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(launches):
                run()
            return (time.perf_counter() - start) / launches
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        for _ in range(launches):
            run()
        end_event.record()
        end_event.synchronize()
        return start_event.elapsed_time(end_event) / 1e3 / launches

    def interleaved(self, cases: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
        """``repeats`` times of every case, by turns, after a warm-up in which tiles are chosen and kernels compiled."""
        launches = {}
        for name, run in cases.items():
            run(), run()
            launches[name] = max(1, min(1000, int(self.span / max(self.once(run, 3), 1e-9))))
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(repeats):
            for name, run in cases.items():
                times[name].append(self.once(run, launches[name]))
        return times


def ceilings(watch: Stopwatch, kind: str, repeats: int, side: int = 8192, size: int = 2**30) -> tuple[float, float]:
    """(operations a second of a large matrix product, bytes a second of a large copy), medians."""
    a, b = (torch.randn(side, side, device=watch.device).to(TYPES[kind]) for _ in range(2))
    source = torch.empty(size, dtype=torch.uint8, device=watch.device)
    target = torch.empty_like(source)
    times = watch.interleaved({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, repeats)
    return 2.0 * side**3 / statistics.median(times["product"]), 2.0 * size / statistics.median(times["copy"])


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float((value.detach().double() - exact).norm() / exact.norm())


def measure(
    point: Point, shape: Shape, kind: str, found: dict[str, Implementation], watch: Stopwatch, repeats: int
) -> dict[str, Any]:
    """One shape and type: seconds and errors by phase and implementation, and what they ask for.

    An implementation that fails or disagrees is left out of the times; ``failed`` says why.
    """
    draw = torch.Generator(point.coord.device).manual_seed(0)
    dtype, device = TYPES[kind], point.coord.device

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, device=device).to(dtype)

    feat, grad = random(len(point), shape.inner), random(len(point), shape.outer)
    weight = random(shape.outer, *[shape.kernel] * 3, shape.inner) / math.sqrt(shape.kernel**3 * shape.inner)
    links = make_neighbors(point, shape.kernel)
    exact_in = [t.double().requires_grad_() for t in (feat, weight)]
    exact_out = subm_conv(*exact_in, None, links)
    exact_grads = torch.autograd.grad(exact_out, exact_in, grad.double())
    exact = {"forward": [exact_out.detach()], "input gradient": exact_grads[:1], "both gradients": exact_grads}

    cases: dict[str, dict[str, Callable[[], Any]]] = {phase: {} for phase in PHASES}
    errors: dict[str, dict[str, float]] = {phase: {} for phase in PHASES}
    failed = {}
    for name, implementation in found.items():
        try:
            make, convolve = implementation(point, shape)
            made = make()
            leaves = [t.clone().requires_grad_() for t in (feat, weight)]
            frozen, trained = convolve(leaves[0], weight, made), convolve(*leaves, made)

            def forward(convolve=convolve, made=made) -> tuple[Tensor]:
                with torch.no_grad():
                    return (convolve(feat, weight, made),)

            def backward(out=frozen, of=leaves[:1]) -> tuple[Tensor, ...]:
                return torch.autograd.grad(out, of, grad, retain_graph=True)

            runs = {"forward": forward, "input gradient": backward,
                    "both gradients": lambda run=backward, out=trained, of=leaves: run(out, of)}  # fmt: skip
            found_errors = {
                phase: max(relative_error(*pair) for pair in zip(run(), exact[phase], strict=True))
                for phase, run in runs.items()
            }
            wrong = {phase: e for phase, e in found_errors.items() if not e <= TOLERANCE[kind]}
            if wrong:
                failed[name] = "disagrees with float64: " + ", ".join(f"{p} {e:.1e}" for p, e in wrong.items())
                continue
            for phase, run in {"neighbours": make, **runs}.items():
                cases[phase][name] = run
            for phase, value in found_errors.items():
                errors[phase][name] = value
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    connected = len(point) + sum(len(written) for _, written, _ in links.pairs)
    return {
        "shape": asdict(shape),
        "type": kind,
        "rows": len(point),
        "pairs": connected,
        "errors": errors,
        "failed": failed,
        "seconds": {phase: watch.interleaved(runs, repeats) for phase, runs in cases.items()},
        "work": {phase: asdict(work(phase, len(point), connected, shape, feat.element_size())) for phase in PHASES},
    }


# ---------------------------------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------------------------------


def report(result: dict[str, Any]) -> str:
    """Markdown: one table a type, its ceilings, the ratio to the best other implementation, and what is missing."""
    lines = [f"## Sparse convolution on {result['device']}", "", f"{result['versions']}, {result['voxels']:,} voxels, "
             f"medians of {result['repeats']} by turns. Times in microseconds."]  # fmt: skip
    for kind, (product_rate, copy_rate) in result["ceilings"].items():
        lines += ["", f"### {kind}", "", f"Roofline: {product_rate / 1e12:,.0f} TFLOP/s of a matrix product, "
                  f"{copy_rate / 1e12:.2f} TB/s of a copy, both measured here.", ""]  # fmt: skip
        measured = [m for m in result["measurements"] if m["type"] == kind]
        names = list(dict.fromkeys(n for m in measured for times in m["seconds"].values() for n in times))
        rows, ratios = [], []
        for m in measured:
            for phase in PHASES:
                medians = {name: statistics.median(times) for name, times in m["seconds"][phase].items()}
                ours = medians.get("pointadapt", math.nan)
                best = min((t for name, t in medians.items() if name not in ("pointadapt", "torch")), default=math.nan)
                limit = Work(**m["work"][phase]).seconds(product_rate, copy_rate)
                ratio = best / ours
                ratios += [ratio] if phase != "neighbours" and not math.isnan(ratio) else []
                shape = m["shape"]
                rows.append(
                    [f"{shape['name']} {shape['inner']}->{shape['outer']} k{shape['kernel']}", m["rows"], phase]
                    + [1e6 * medians[n] if n in medians else "-" for n in names]
                    + [ratio if not math.isnan(ratio) else "-", 1e6 * limit]
                    + [f"{limit / ours:.0%}" if not math.isnan(ours) else "-"]
                )
        lines.append(table(["layer", "voxels", "phase", *names, "best other / ours", "limit", "of the limit"], rows))
        if ratios:
            mean = math.exp(statistics.fmean(math.log(r) for r in ratios))
            lines += [
                "",
                f"Best other over ours, without neighbours: geometric mean {mean:.2f}, least {min(ratios):.2f}.",
            ]
    absent = [f"- {name}: {why}" for name, why in result["missing"].items()]
    absent += [f"- {name}, {m['shape']['name']} in {m['type']}: {why}" for m in result["measurements"]
               for name, why in m["failed"].items()]  # fmt: skip
    if absent:
        lines += ["", "Not compared:", "", *absent]
    return "\n".join(lines) + "\n"


def benchmark(
    device: torch.device, voxels: int, repeats: int, kinds: list[str], shapes: tuple[Shape, ...] = SHAPES, **limits: Any
) -> dict[str, Any]:
    """All measurements, as what is written to the JSON file. ``limits`` are those of :func:`ceilings`."""
    found, missing = implementations()
    watch = Stopwatch(device)
    points = levels(room(voxels).to(device), 1 + max(shape.level for shape in shapes))
    before = torch.get_float32_matmul_precision()
    rates, measurements = {}, []
    for kind in kinds:
        torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
        rates[kind] = ceilings(watch, kind, repeats, **limits)
        for shape in shapes:
            measurements.append(measure(points[shape.level], shape, kind, found, watch, repeats))
    torch.set_float32_matmul_precision(before)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    return {
        "device": name,
        "versions": f"torch {torch.__version__}, CUDA {torch.version.cuda}",
        "voxels": len(points[0]),
        "repeats": repeats,
        "ceilings": rates,
        "missing": missing,
        "measurements": measurements,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--types", choices=TYPES, nargs="+", default=["float16", "bfloat16", "tf32"])
    parser.add_argument("--out", type=Path, default=Path("conv_gpu.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("conv_gpu.py measures a GPU, and PyTorch finds none here")
    result = benchmark(torch.device("cuda"), args.voxels, args.repeats, args.types)
    args.out.write_text(json.dumps(result, indent=1))
    print(report(result))


if __name__ == "__main__":
    main()
