"""What the benchmark programs share: procedural voxels, interleaved timing, the floor, counted operations, memory."""

from __future__ import annotations

import argparse
import ctypes
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointadapt.backbones.ptv3 import Attention
from pointadapt.ops.sparse_conv import SubMConv3d, neighbors
from pointadapt.ops.tap_map import TapMap
from pointadapt.point import Point

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def arguments(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """The options all programs have; ``defaults`` adds options by name, lists take several values."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: the process's own time, on a busy machine"
    )
    for name, value in defaults.items():
        first, many = (value[0], "+") if isinstance(value, list) else (value, None)
        parser.add_argument("--" + name.replace("_", "-"), type=type(first), nargs=many, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    return args


def machine(args: argparse.Namespace) -> str:
    """One line: processor, threads, clock, versions."""
    found = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    )
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return (
        f"{name}, {args.threads} threads of torch {torch.__version__}, {args.clock} time, "
        f"medians of {args.repeats} interleaved rounds after one to warm up"
    )


def room(voxels: int, seed: int = 0, channels: int = 9) -> Point:
    """Floor, four walls and boxes as voxel surfaces one to two voxels thick, about ``voxels`` of them; 2 cm grid.

    As in scans, a tenth of the voxels is missing; a voxel has about 12 neighbours with itself.
    """
    draw = torch.Generator().manual_seed(seed)

    def made(side: int) -> Tensor:
        height = int(0.5 * side)

        def sheet(axis: int, at: int, low: tuple[int, int], high: tuple[int, int]) -> Tensor:
            plane = torch.cartesian_prod(torch.arange(low[0], high[0]), torch.arange(low[1], high[1]))
            # a scanned surface strays over the border of its layer of voxels in patches
            wave = torch.sin(plane[:, 0] / 7.0 + at) + torch.sin(plane[:, 1] / 11.0 + axis)
            flat = at + (wave > 0).long()
            both = torch.rand(len(plane), generator=draw) < 0.45
            layers = [torch.cat([plane[:, :axis], flat[:, None], plane[:, axis:]], 1)]
            other = torch.cat([plane[:, :axis], (2 * at + 1 - flat)[:, None], plane[:, axis:]], 1)
            return torch.cat([*layers, other[both]])

        draw.manual_seed(seed)
        parts = [sheet(2, 0, (0, 0), (side, side))]
        parts += [sheet(axis, at, (0, 0), (side, height)) for axis in (0, 1) for at in (0, side - 1)]
        for _ in range(6):
            x, y = torch.randint(side // 8, side * 6 // 8, (2,), generator=draw).tolist()
            a, b, c = torch.randint(side // 12, side // 6, (3,), generator=draw).tolist()
            parts.append(sheet(2, c, (x, y), (x + a, y + b)))
            parts += [sheet(0, at, (y, 0), (y + b, c)) for at in (x, x + a)]
            parts += [sheet(1, at, (x, 0), (x + a, c)) for at in (y, y + b)]
        grid = torch.unique(torch.cat(parts), dim=0)
        return grid[torch.rand(len(grid), generator=draw) > 0.1]

    side = int((voxels / 4.0) ** 0.5)
    for _ in range(3):
        grid = made(side)
        side = round(side * (voxels / len(grid)) ** 0.5)
    grid = grid[torch.randperm(len(grid), generator=draw)]
    feat = torch.randn(len(grid), channels, generator=draw)
    return Point(0.02 * grid.float(), feat, torch.tensor([len(grid)]), grid, grid_size=0.02)


class Times(dict[str, list[float]]):
    """Case -> its seconds in every round."""

    def median(self, case: str) -> float:
        return statistics.median(self[case])

    def ratio(self, case: str, to: str) -> float:
        """Median of the rounds' quotients: what slows the machine for a while slows both in a round."""
        return statistics.median(mine / other for mine, other in zip(self[case], self[to], strict=True))


def interleaved(cases: dict[str, Callable[[], Any]], args: argparse.Namespace, repeats: int | None = None) -> Times:
    """All cases take turns in one process, ``repeats`` (args.repeats) times; each runs once before to warm up."""
    clock, times = CLOCKS[args.clock], Times({name: [] for name in cases})
    for run in cases.values():
        run()
    for _ in range(repeats or args.repeats):
        for name, run in cases.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return times


def large_product(size: int = 2048, times: int = 4) -> tuple[Callable[[], Any], float]:
    """(a case for :func:`interleaved`, its operations): large float32 matrix products, the floor's rate."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    return lambda: [torch.mm(a, b, out=out) for _ in range(times)], 2.0 * size**3 * times


def visit(model: nn.Module, point: Point, kinds: dict[type, Callable[[Any, Any], None]]) -> None:
    """One forward pass; every module whose type is in ``kinds`` is shown, with its arguments, to the function there."""
    hooks = [m.register_forward_pre_hook(kinds[type(m)]) for m in model.modules() if type(m) in kinds]
    with torch.no_grad():
        model(point.but(cache={}))
    for hook in hooks:
        hook.remove()


def convolution_pairs(module: SubMConv3d, point: Point) -> int:
    """Products of a row and a tap, the centre's included."""
    made = neighbors(point, module.kernel_size)
    if isinstance(made, TapMap):
        return int((made.there.sources >= 0).sum())
    return len(point) + sum(len(written) for _, written, _ in made.pairs)


def attention_pairs(module: Attention, point: Point) -> int:
    """Keys that all rows see; the rows that fill up a cloud's last window are no work that is asked for."""
    return sum(rows * min(rows, module.patch_size) for rows in point.counts)


def operations(model: nn.Module, point: Point) -> dict[str, float]:
    """Operations of one forward pass, counted: 2 per multiply-add of linears, convolutions and attention."""
    count = {"attention": 0.0, "linear": 0.0, "convolution": 0.0}

    def linear(module: nn.Linear, args: tuple[Tensor]) -> None:
        count["linear"] += 2.0 * args[0].shape[0] * module.in_features * module.out_features

    def convolution(module: SubMConv3d, args: tuple[Point]) -> None:
        count["convolution"] += (
            2.0 * convolution_pairs(module, args[0]) * module.weight.shape[0] * module.weight.shape[-1]
        )

    def attention(module: Attention, args: tuple[Point]) -> None:
        count["attention"] += 4.0 * attention_pairs(module, args[0]) * module.channels

    visit(model, point, {nn.Linear: linear, SubMConv3d: convolution, Attention: attention})
    return count


def trim() -> None:
    if platform.system() == "Linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_memory(run: Callable[[], Any]) -> float:
    """GB by which the process's resident memory rises while ``run`` runs (Linux)."""

    def status(key: str) -> float:
        found = re.search(rf"{key}:\s*(\d+)", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) / 1e6

    trim()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    run()
    return max(status("VmHWM") - before, 0.0)


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Markdown; figures to three digits."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    lines = [head, ["---"] * len(head), *([text(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
