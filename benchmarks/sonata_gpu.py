"""Sonata-base on a GPU: the forward pass and a training step of GEM, part by part against the chip's limits.

python benchmarks/sonata_gpu.py [--voxels 100000] [--repeats 9] [--type bfloat16]

Times are the device's, between events around each part; where the host cannot launch fast enough they hold its waiting,
which shows as a host time as long as the device's. "limit" is the roofline: for every call the larger of its operations
over the rate of one large matrix product and its least bytes (each input, result, weight and index once) over the rate
of one large copy, both measured in the same run. "waits" counts where the host waits for the device.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from common import attention_pairs, convolution_pairs, room, table, visit
from conv_gpu import TYPES, Stopwatch, Work, ceilings
from torch import Tensor, nn

import pointadapt.backbones.ptv3 as ptv3
from pointadapt.backbones.drop_path import DropPath
from pointadapt.backbones.ptv3_parts import LayerNorm
from pointadapt.backbones.weights import load_backbone
from pointadapt.methods import METHODS, adapt
from pointadapt.ops.attention import windows
from pointadapt.ops.sparse_conv import SubMConv3d, neighbors
from pointadapt.point import Point
from pointadapt.tasks.segmentation import Segmentation

PARTS = {
    SubMConv3d: "convolution",
    nn.Linear: "linears",
    LayerNorm: "norms",
    ptv3.MLP: "GELU",
    ptv3.Pooling: "pooling",
}
#: A training step over a forward pass where weights are frozen: inputs have gradients, attention's three inputs.
STEP = {"convolution": 2.0, "linears": 2.0, "attention": 3.5, "norms": 2.0}


def least_work(model: nn.Module, point: Point, size: int) -> dict[str, list[Work]]:
    """Part -> what each of its calls in a forward pass cannot do without; ``size`` bytes a number."""
    found: dict[str, list[Work]] = {"convolution": [], "linears": [], "attention": [], "norms": []}

    def linear(module: nn.Linear, args: tuple[Tensor]) -> None:
        rows, inner, outer = len(args[0]), module.in_features, module.out_features
        numbers = rows * (inner + outer) + inner * outer
        found["linears"].append(Work(2.0 * rows * inner * outer, float(size * numbers)))

    def norm(module: LayerNorm, args: tuple[Point]) -> None:
        found["norms"].append(Work(0.0, 2.0 * size * args[0].feat.numel()))

    def convolution(module: SubMConv3d, args: tuple[Point]) -> None:
        rows, pairs, (outer, *_, inner) = len(args[0]), convolution_pairs(module, args[0]), module.weight.shape
        numbers = rows * (inner + outer) + module.weight.numel()
        found["convolution"].append(Work(2.0 * pairs * inner * outer, size * numbers + 4.0 * pairs))

    def attention(module: ptv3.Attention, args: tuple[Point]) -> None:
        rows = len(args[0])
        where = windows(args[0], args[0].extra["curve"], module.patch_size, module.shrink)
        seen = attention_pairs(module, args[0])
        indices = 8.0 * (rows + sum(members.numel() for members in where.members))
        found["attention"].append(Work(4.0 * seen * module.channels, 4.0 * size * rows * module.channels + indices))

    kinds = {nn.Linear: linear, LayerNorm: norm, SubMConv3d: convolution, ptv3.Attention: attention}
    visit(model, point, kinds)
    return found


class Parts:
    """Seconds by part on ``device``; a part inside another one is taken out of it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.done: list[tuple[str, Any, Any, int]] = []  # part, start, end, how many parts it lies in
        self.open: list[tuple[str, Any]] = []

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def enter(self, name: str) -> None:
        self.open.append((name, self.mark()))

    def leave(self) -> None:
        name, start = self.open.pop()
        self.done.append((name, start, self.mark(), len(self.open)))

    def seconds(self) -> dict[str, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found: dict[str, float] = {}
        inside: dict[int, float] = {}  # time of finished parts that the next one at the level above holds
        for name, start, end, depth in self.done:  # in the order in which they ended
            spent = end - start if self.device.type != "cuda" else start.elapsed_time(end) / 1e3
            found[name] = found.get(name, 0.0) + spent - inside.pop(depth + 1, 0.0)
            inside[depth] = inside.get(depth, 0.0) + spent
        return found

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Every part of ``model`` is timed; "all the rest" is the model but for its parts."""

        def timed(name: str, call: Callable) -> Callable:
            def run(*args: Any, **kwargs: Any) -> Any:
                self.enter(name)
                try:
                    return call(*args, **kwargs)
                finally:
                    self.leave()

            return run

        named = [(m, PARTS[type(m)]) for m in model.modules() if type(m) in PARTS] + [(model, "all the rest")]
        with ExitStack() as stack:
            for module, name in named:
                for hook in (
                    module.register_forward_pre_hook(lambda *_, name=name: self.enter(name)),
                    module.register_forward_hook(lambda *_: self.leave()),
                ):
                    stack.callback(hook.remove)
            for name, label in (("window_attention", "attention"), ("windows", "curves and windows")):
                stack.enter_context(patch.object(ptv3, name, timed(label, getattr(ptv3, name))))
            stack.enter_context(patch("pointadapt.ops.sparse_conv.neighbors", timed("neighbour maps", neighbors)))
            yield


def waits(run: Callable[[], Any]) -> int:
    """How often the host waits for the device in ``run``."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(w.message) for w in told)


def benchmark(device: torch.device, voxels: int, repeats: int, kind: str, backbone: Any, **limits: Any) -> str:
    """The page. ``limits`` are those of :func:`conv_gpu.ceilings`."""
    cuda, dtype = device.type == "cuda", TYPES[kind]
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    point = room(voxels).to(device)
    target = torch.randint(0, 20, (len(point),), generator=torch.Generator().manual_seed(0)).to(device)
    plain = backbone.to(device).eval().requires_grad_(False)
    twin = copy.deepcopy(plain)
    for module in twin.modules():
        if isinstance(module, DropPath):  # off in a frozen backbone
            module.rate = 0.0
    adapted = adapt(Segmentation(twin, 20), METHODS["gem"]()).to(device).train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 1e-4)
    half = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def forward() -> None:
        with torch.no_grad(), half:
            plain(point.but(cache={}))

    def step() -> None:
        with half:
            loss = adapted.get_base_model().loss(adapted(point.but(cache={})), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    watch, parts, spent = Stopwatch(device), Parts(device), []
    product_rate, copy_rate = ceilings(watch, kind, repeats, **limits)
    with half:
        work = least_work(plain, point, dtype.itemsize)
    least = {name: sum(w.seconds(product_rate, copy_rate) for w in calls) for name, calls in work.items()}
    with parts.watching(plain):
        for _ in range(repeats + 2):  # two to warm up: tiles are chosen and kernels compiled
            parts.done = []
            forward()
            spent.append(parts.seconds())
    seconds = {name: statistics.median(s[name] for s in spent[2:]) for name in spent[-1]}
    rows = [
        [name, 1e3 * s, s / sum(seconds.values())]
        + ([1e3 * least[name], f"{least[name] / s:.0%}"] if name in least else ["", ""])
        for name, s in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    limit = {"forward": sum(least.values()), "GEM step": sum(STEP[name] * s for name, s in least.items())}
    whole = []
    for name, run in (("forward", forward), ("GEM step", step)):
        times = statistics.median(watch.interleaved({name: run}, repeats)[name])
        if cuda:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        run()
        host = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated(device) / 1e9 if cuda else "-"
        share = f"{limit[name] / times:.0%}"
        whole.append([name, 1e3 * times, 1e3 * limit[name], share, 1e3 * host, waits(run) if cuda else "-", peak])
    name = torch.cuda.get_device_name(device) if cuda else "the CPU"
    return "\n".join([
        f"## Sonata-base at {len(point):,} voxels on {name}, {kind}\n",
        f"torch {torch.__version__}; medians of {repeats}. Roofline: {product_rate / 1e12:,.3g} TFLOP/s of a matrix "
        f"product, {copy_rate / 1e12:.3g} TB/s of a copy, both measured here.\n",
        table(["", "ms", "limit, ms", "of the limit", "host, ms", "waits", "peak GB"], whole),
        "",
        table(["part of the forward pass", "ms", "share", "limit, ms", "of the limit"], rows),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--type", choices=TYPES, default="bfloat16")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("sonata_gpu.py measures a GPU, and PyTorch finds none here")
    backbone = load_backbone("sonata", weights=None)
    print(benchmark(torch.device("cuda"), args.voxels, args.repeats, args.type, backbone))


if __name__ == "__main__":
    main()
