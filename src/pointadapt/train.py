"""Training: one visible loop on accelerate, from a laptop's CPU to several machines.

    pointadapt adapt scans/ --method gem                       # or: import pointadapt as pa; pa.train(pa.Run("scans"))
    accelerate launch --num_processes 4 -m pointadapt.cli adapt scans/ --batch-size 8       # four GPUs
    torchrun --nproc_per_node 2 -m pointadapt.cli adapt scans/                              # two processes on CPUs

Everything random depends on (seed, step, place in the batch) alone: data order, transforms, dropout, shuffled curves.
So a killed run that resumes from its last state does exactly what the uninterrupted one would have done.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pointadapt.checkpoint import (
    Log,
    Progress,
    check_folder,
    check_resumable,
    clear_folder,
    has_state,
    load_state,
    save,
)
from pointadapt.data.transforms import Sample
from pointadapt.domains.domain import Asked, Domain, open_domain
from pointadapt.domains.models import build_model
from pointadapt.errors import Diverged, UserError
from pointadapt.files import write_text
from pointadapt.ops.devices import enough_memory
from pointadapt.ops.levels import Levels
from pointadapt.optim import make_optimizer, make_schedule, parameter_groups
from pointadapt.run import Run

LOG_EVERY = 10


#: Random streams that share a seed.
ORDER, DRAW, MIX, MODEL = range(4)


class Batches(Dataset):
    """The training batches of one process: item ``i`` is the batch of its i-th forward pass since step 0.

    Sample number k of the run (k = step * batch_size + place) is item ``order[k]`` under the transform's draws for k,
    where ``order`` strings together one permutation of the items per epoch; so no batch is ever smaller than others.
    """

    def __init__(self, domain: Domain, accelerator: Accelerator) -> None:
        self.domain, self.run = domain, domain.run
        self.items = domain.items("train", train=True)
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        self.size = self.run.batch_size // (self.processes * self.run.grad_accum)

    def __getitem__(self, index: int) -> dict[str, Any]:
        first = (index * self.processes + self.rank) * self.size
        samples = [self.sample(number) for number in range(first, first + self.size)]
        return self.domain.collate(samples, np.random.default_rng([self.run.seed, MIX, first]))

    def sample(self, number: int) -> Sample:
        epoch, place = divmod(number, len(self.items))
        return self.domain.draw(
            self.items, int(self.order(epoch)[place]), np.random.default_rng([self.run.seed, DRAW, number])
        )

    def order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.run.seed, ORDER, epoch]).permutation(len(self.items))

    def loader(self, start: int) -> Any:
        """Batches from optimiser step ``start`` to the end."""
        return DataLoader(self, batch_size=None, sampler=self.passes(start), num_workers=self.run.num_workers)

    def passes(self, start: int) -> range:
        return range(start * self.run.grad_accum, self.run.steps * self.run.grad_accum)


class KeptBatches(Batches):
    """Batches of features of the frozen backbone, each computed once, in eval mode, and kept in memory.

    An item has ``run.cache_features`` augmented views, one after the other in the epochs: sample k shows view
    ``epoch % cache_features``. What is kept is the features of each resolution, not of each point.
    Raises UserError where more than the head is trained, or crops are merged.
    """

    def __init__(self, domain: Domain, accelerator: Accelerator, task: Any) -> None:
        super().__init__(domain, accelerator)
        trained = [name for name, p in task.named_parameters() if p.requires_grad]
        if not hasattr(task, "frozen") or any(not name.startswith("head.") for name in trained):
            raise UserError(
                f"cache_features keeps what is frozen, and method {self.run.method} trains more than the head of "
                f"{self.run.kind} here: use it with scenes, method linear and a backbone without a new decoder"
            )
        if self.run.mix3d:
            raise UserError(f"mix3d is {self.run.mix3d}: merged crops have no features to keep; set cache_features 0")
        self.task, self.accelerator = task, accelerator
        self.kept: dict[tuple[int, int], tuple[Levels, Tensor]] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        first = (index * self.processes + self.rank) * self.size
        parts = [self.features(number) for number in range(first, first + self.size)]
        features, target = zip(*parts, strict=True)
        return {"point": Levels.pack(list(features)), self.domain.target: torch.cat(target)}

    def features(self, number: int) -> tuple[Levels, Tensor]:
        epoch, place = divmod(number, len(self.items))
        key = int(self.order(epoch)[place]), epoch % self.run.cache_features
        if key not in self.kept:
            self.kept[key] = self.compute(*key)
        return self.kept[key]

    @torch.no_grad()
    def compute(self, item: int, view: int) -> tuple[Levels, Tensor]:
        rng = np.random.default_rng([self.run.seed, DRAW, item, view])
        batch = self.domain.collate([self.domain.draw(self.items, item, rng)], rng)
        backbone, device = self.task.backbone, self.accelerator.device
        training = backbone.training
        backbone.eval()
        with self.accelerator.autocast():
            found = self.task.frozen(batch["point"].to(device)).to("cpu")
        backbone.train(training)
        return found, batch[self.domain.target]

    def loader(self, start: int) -> Any:
        return map(self.__getitem__, self.passes(start))


@enough_memory("lower points or batch_size, raise grad_accum, or set checkpointing")
def train(run: Run, resume: bool = False, overwrite: bool = False, validate: bool = True) -> dict[str, Any]:
    """Adapt a backbone as ``run`` says; returns scores, seconds, peak memory and parameter counts.

    What it writes into ``run.out`` is listed in checkpoint.py. ``resume`` goes on from the last state saved there;
    without it an earlier run in the same folder is refused, or removed with ``overwrite``. Without ``validate`` the
    data held out are not scored, and the last step is the best. Raises UserError for anything the user can mend, of
    them Diverged when the loss is no number any more.
    """
    if run.threads:
        torch.set_num_threads(run.threads)
    check_folder(run, resume, overwrite)
    domain = open_domain(run)
    accelerator = make_accelerator(run)
    run, out = domain.run, run.folder
    if resume:
        check_resumable(run, domain.settled(Run.load(out)), domain.dataset)
    split = domain.held_out() if validate else None
    model = build_model(domain)
    task = model.get_base_model()
    batches = KeptBatches(domain, accelerator, task) if run.cache_features else Batches(domain, accelerator)
    check_batch_norm(model, batches.size)
    check_mix(run, batches.size)
    held_out = domain.items(split) if split else None

    rates = {"lr": run.lr, "head_lr": run.head_lr, "backbone_lr": run.backbone_lr}
    groups = parameter_groups(model, **rates, weight_decay=run.weight_decay, fresh=task.backbone.fresh)
    check_trained(model, groups)
    optimizer = make_optimizer(groups)
    schedule = make_schedule(optimizer, run.steps, run.schedule, run.warmup)
    model = model.to(accelerator.device)
    if accelerator.is_main_process and not resume:
        clear_folder(out)
        run.save(domain.dataset)
    accelerator.wait_for_everyone()
    aligned = domain.first_stage(model, resume, accelerator.is_main_process)
    model, optimizer = accelerator.prepare(model, optimizer)

    now = load_state(out, accelerator, model, optimizer, schedule) if resume and has_state(out) else Progress()
    log = Log(out, now.step) if accelerator.is_main_process else None
    started = time.perf_counter() - now.seconds
    loaded = iter(batches.loader(start=now.step))
    with progress_bar(run, now, accelerator.is_main_process) as show:
        while now.step < run.steps:
            model.train()
            lr = max(schedule.get_last_lr())
            for part in range(run.grad_accum):
                batch = next(loaded)
                torch.manual_seed(model_seed(run, now.step, part, accelerator.process_index))
                with accelerator.accumulate(model):
                    logits = model(batch["point"].to(accelerator.device))
                    loss = task.loss(logits, batch[domain.target].to(accelerator.device))
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(optimizer_parameters(optimizer), run.clip)
                    optimizer.step()
                    optimizer.zero_grad()
                now.losses.append(loss.detach().float())
            if not accelerator.optimizer_step_was_skipped:  # fp16 skips a step whose gradients overflow
                schedule.step()
            now.step += 1
            now.seconds = time.perf_counter() - started

            if now.step % LOG_EVERY == 0 or now.step == run.steps:
                now.loss = mean_loss(now, accelerator)
                if log:
                    log.write(step=now.step, loss=now.loss, lr=lr, seconds=now.seconds)
            if now.step % run.eval_every == 0 or now.step == run.steps:
                if held_out is not None:
                    model.eval()
                    share_buffers(model, accelerator)
                    found = domain.evaluate(accelerator.unwrap_model(model), held_out, accelerator.device, Asked())
                    now.scores = found.scores
                    if log:
                        log.write(step=now.step, split=split, **now.scores, seconds=now.seconds)
                judge(now, run)
                save(out, accelerator, model, optimizer, schedule, now)
            show(now)
    if log:
        log.close()
    return finish(run, accelerator, model, now, aligned)


def judge(now: Progress, run: Run) -> None:
    """Whether this step is the best: of the highest score that leads, the last where nothing is scored or asked for."""
    lead = run.of_kind.headline
    if run.select == "last" or not (now.scores and now.best) or now.scores[lead] > now.best[lead]:
        now.best, now.best_step = now.scores, now.step


def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the first one's BatchNorm statistics, which are saved; after a step each has its own."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


def check_batch_norm(model: nn.Module, size: int) -> None:
    """Raises UserError where the head's BatchNorm is trained on batches of one item: one row, which has no variance.

    That of other parts is over the rows of points, groups or edges, and of scenes there are many in one crop.
    """
    norms = (n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    names = (n for n in norms if ".head." in n)
    if size < 2 and any(p.requires_grad for n in names for p in model.get_submodule(n).parameters()):
        raise UserError(
            "BatchNorm is trained here and needs at least 2 items at once: raise batch_size, lower grad_accum, "
            "or choose head linear where the task has one"
        )


def check_mix(run: Run, size: int) -> None:
    """Raises UserError where crops are to be merged in pairs, but computed one by one."""
    if run.mix3d and size < 2:
        raise UserError(
            f"mix3d is {run.mix3d}, but crops are computed one by one, which leaves none to merge: raise batch_size, "
            "lower grad_accum, or set mix3d 0"
        )


def model_seed(run: Run, step: int, part: int, rank: int) -> int:
    """Seed of dropout, drop path and shuffled curves for one forward pass."""
    return int(np.random.SeedSequence([run.seed, MODEL, step, part, rank]).generate_state(1)[0])


def make_accelerator(run: Run) -> Accelerator:
    """CPU, GPU or processes, whatever ``accelerate launch`` or the machine offers."""
    on_gpu = torch.cuda.is_available()
    precision = ("bf16" if on_gpu else "no") if run.precision == "auto" else run.precision
    if precision == "fp16" and not on_gpu:
        raise UserError("precision fp16 needs a GPU, and there is none: choose bf16 or no with --precision")
    AcceleratorState._reset_state()  # one process may train several runs, of different precision
    GradientState._reset_state()
    accelerator = Accelerator(
        cpu=not on_gpu,
        mixed_precision=precision,
        gradient_accumulation_steps=run.grad_accum,
        # a method may leave a parameter out of a pass (a gate that is closed, a token nobody reads any more)
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(accelerator.device)  # of this process's GPU: known from here on
    parts = accelerator.num_processes * run.grad_accum
    if run.batch_size % parts:
        raise UserError(
            f"batch_size {run.batch_size} cannot be split into equal parts for {accelerator.num_processes} processes "
            f"and grad_accum {run.grad_accum}: choose a multiple of {parts}"
        )
    return accelerator


def check_trained(model: nn.Module, groups: list[dict]) -> None:
    """The head is trained; the optimiser holds all that requires gradients, once, and nothing that is frozen."""
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    held = [id(p) for group in groups for p in group["params"]]
    if not any(group["name"].startswith("head") for group in groups):
        raise RuntimeError("the head is not trainable: the method's modules_to_save lacks it")
    if len(held) != len(set(held)) or set(held) != wanted:
        raise RuntimeError("the optimiser's parameters are not exactly the trainable ones")


def optimizer_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def mean_loss(now: Progress, accelerator: Accelerator) -> float:
    """Mean over the passes since the last call and over processes. Raises Diverged when it is no number."""
    value = float(accelerator.reduce(torch.stack(now.losses).mean(), "mean"))
    now.losses.clear()
    if not math.isfinite(value):
        raise Diverged(f"the loss is {value} at step {now.step}: lower lr and head_lr, or use precision no")
    return value


@contextmanager
def progress_bar(run: Run, now: Progress, shown: bool) -> Iterator[Any]:
    """Yields ``show(now)``: a bar with loss, last and best score, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(run.method, total=run.steps, completed=now.step)

        def show(now: Progress) -> None:
            text = f"{run.method}  loss {now.loss:.3f}"
            if now.scores and now.best:
                lead, heading = run.of_kind.headline, run.of_kind.heading
                text += f"  {heading} {100 * now.scores[lead]:.1f} (best {100 * now.best[lead]:.1f})"
            bar.update(task, completed=now.step, description=text)

        yield show


def finish(
    run: Run, accelerator: Accelerator, model: nn.Module, now: Progress, aligned: dict[str, Any] | None
) -> dict[str, Any]:
    """The result, also written to result.json."""
    bare = accelerator.unwrap_model(model)
    result = {
        "out": str(run.folder),
        "kind": run.kind,
        "steps": now.step,
        "loss": now.loss,
        "val": now.best,
        "best_step": now.best_step,
        "last": now.scores,
        "select": run.select,
        "seconds": now.seconds,
        "peak_memory": peak_memory(accelerator.device),
        "parameters": count_parameters(bare),
        "processes": accelerator.num_processes,
        "device": torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        **({"align": aligned} if aligned else {}),
    }
    if accelerator.is_main_process:
        write_text(run.folder / "result.json", json.dumps(result, indent=2) + "\n")
    accelerator.wait_for_everyone()
    return result


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of weights: of the network, trained with and without the head. peft's frozen copy of the head is none."""
    real = {n: p for n, p in model.named_parameters() if ".original_module." not in n}
    trained = {n: p.numel() for n, p in real.items() if p.requires_grad}
    head = sum(size for name, size in trained.items() if ".head.modules_to_save." in name)
    total = sum(p.numel() for p in real.values())
    return {"total": total, "trained": sum(trained.values()), "trained_without_head": sum(trained.values()) - head}


def peak_memory(device: torch.device) -> int:
    """Bytes: CUDA's largest allocation, or the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import psutil

    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return memory.peak_wset
    import resource

    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo
