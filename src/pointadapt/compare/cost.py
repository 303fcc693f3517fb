"""What methods cost, measured side by side in one process: training step, inference, memory, adapter file.

Rounds go over all methods in turn, so that whatever else the machine does falls on all of them alike; medians of the
rounds are given. Precision and threads are those of the runs. Memory on a CPU is the largest sum of live tensors that
torch's own allocator reports during a step; on a GPU it is the allocator's peak. The optimizer's state is part of it.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointadapt.compare.arms import Arm
from pointadapt.domains.domain import Domain, autocast, open_domain
from pointadapt.domains.models import adapted, build_task, copied
from pointadapt.ops.devices import enough_memory
from pointadapt.run import Run
from pointadapt.train import count_parameters

ROUNDS = 5


@dataclass(frozen=True)
class Cost:
    """parameters: total, trained, trained_without_head; seconds per training step and per inference of one batch, and
    the peak of either in bytes; adapter_size in bytes; CPU threads it was measured with."""

    parameters: dict[str, int]
    adapter_size: int
    train_seconds: float
    infer_seconds: float
    train_memory: int
    infer_memory: int
    threads: int


@dataclass
class Entry:
    """One arm on its bench."""

    model: Any
    domain: Domain
    optimizer: torch.optim.Optimizer
    batch: dict[str, Any]


@enough_memory("measure costs where there is more, by the same command with --report-only")
def measure(runs: Sequence[tuple[Arm, Run]], rounds: int = ROUNDS) -> dict[str, Cost]:
    """Arm's name -> Cost, all on the same batch of training data."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler tells the terminal when it starts and stops
    if threads := runs[0][1].threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    entries = benches(runs, device)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in entries}
    for number in range(rounds + 1):
        for name, entry in entries.items():
            for kind, do in enumerate((step, infer)):
                seconds = clock(partial(do, entry), device)
                if number:  # the first round warms up
                    times[name][kind].append(seconds)
    costs = {}
    for name, entry in entries.items():
        costs[name] = Cost(
            count_parameters(entry.model),
            adapter_size(entry.model),
            statistics.median(times[name][0]),
            statistics.median(times[name][1]),
            peak(partial(step, entry), device) + state_size(entry.optimizer),
            peak(partial(infer, entry), device),
            torch.get_num_threads(),
        )
    return costs


def benches(runs: Sequence[tuple[Arm, Run]], device: torch.device) -> dict[str, Entry]:
    """The arms on one batch. Those on pretrained weights, and those on random ones, share what is frozen: two dozen
    copies of a large backbone are more than most machines hold."""
    tasks: dict[str, tuple[Domain, Any]] = {}
    for _, run in runs:
        if run.weights not in tasks:
            domain = open_domain(run)
            tasks[run.weights] = domain, build_task(domain).to(device)
    batch = first_batch(next(iter(tasks.values()))[0], device)
    entries = {}
    for arm, run in runs:
        domain, task = tasks[run.weights]
        model = adapted(copied(task), run).to(device)
        trained = [p for p in model.parameters() if p.requires_grad]
        entries[arm.name] = Entry(model, domain, torch.optim.AdamW(trained, lr=1e-6), batch)
    return entries


def first_batch(domain: Domain, device: torch.device) -> dict[str, Any]:
    items = domain.items("train", train=True)
    rng = np.random.default_rng(0)
    size = domain.run.batch_size // domain.run.grad_accum
    samples = [domain.draw(items, index % len(items), rng) for index in range(size)]
    batch = domain.collate(samples, rng)
    return {k: batch[k].to(device) for k in ("point", domain.target)}


def step(entry: Entry) -> None:
    entry.model.train()
    for _ in range(entry.domain.run.grad_accum):
        logits = forward(entry)
        entry.model.get_base_model().loss(logits.float(), entry.batch[entry.domain.target]).backward()
    entry.optimizer.step()
    entry.optimizer.zero_grad()


def infer(entry: Entry) -> None:
    entry.model.eval()
    with torch.inference_mode():
        forward(entry)


def forward(entry: Entry) -> torch.Tensor:
    device = entry.batch["point"].coord.device
    with autocast(entry.domain.run, device):
        return entry.model(entry.batch["point"].to(device))  # a new Point: nothing is remembered


def clock(do: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak(do: Callable[[], Any], device: torch.device) -> int:
    """Bytes above what is held before: the largest sum of tensors alive at once while ``do`` runs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        do()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        do()
    results = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in results if e.name() == "[memory]")
    return int(np.cumsum([size for _, size in changes]).max(initial=0))


def state_size(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer's state, which a step finds there already."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def adapter_size(model: Any) -> int:
    """Bytes of the adapter's weights as save_pretrained writes them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        return sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
