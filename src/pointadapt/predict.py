"""Prediction: a scan of any size in, the same file with a class and a confidence per point out.

pointadapt predict runs/site-a new_scan.laz --out new_scan_labelled.laz
pointadapt predict runs/site-a new_scans/ --out labelled/
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pointadapt.data.io import is_scan, kind, read_scan, write_labels
from pointadapt.data.loader import collate_batch
from pointadapt.data.scan import Scan
from pointadapt.data.scans import UP, DataSet
from pointadapt.data.survey import find_scans
from pointadapt.data.tiles import tiles
from pointadapt.data.transforms import CenterShift, Compose, Sample, eval_transform, finish, fragments, tta_views
from pointadapt.errors import UserError
from pointadapt.run import Run, dataset_of, load_model

#: Context around a tile's core in voxels.
MARGIN = 25


def predict(
    run: Run | Path | str,
    source: Path | str,
    out: Path | str | None = None,
    checkpoint: str = "best",
    overwrite: bool = False,
    tta: int | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Label one file, or every scan in a folder; returns the files written.

    run    a Run or its folder
    out    file, or folder for a folder. Default: beside the source, ``_labelled`` behind its name
    tta    test-time views, default the run's (Run.tta);  quiet: no progress bar
    Memory stays bounded: a scan is computed in tiles of at most ``Run.tile`` voxels. Raises UserError before anything
    is computed when a target exists already; scans of a folder that cannot be read are named after all others are done.
    """
    run = with_views(run if isinstance(run, Run) else Run.load(run), tta)
    jobs = list_jobs(Path(source), Path(out) if out else None, overwrite)
    dataset = dataset_of(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(run, dataset.names, checkpoint).to(device)
    failed: list[str] = []
    with progress_bar(hidden=quiet) as show:
        for number, (scan, target) in enumerate(jobs, 1):
            show(0, f"{scan.name} ({number}/{len(jobs)})")
            try:
                found, confidence = classify(model, dataset, read_scan(scan), run, device, show)
                write_labels(scan, target, dataset.raw_ids[found], confidence)
            except UserError as error:
                if len(jobs) == 1:
                    raise
                failed.append(str(error))
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} scans were not labelled: {'; '.join(failed)}")
    return [target for _, target in jobs]


def with_views(run: Run, tta: int | None) -> Run:
    """The run with other test-time views. Raises UserError for a number that does not exist."""
    return run if tta is None else replace(run, tta=tta)


def list_jobs(source: Path, out: Path | None, overwrite: bool) -> list[tuple[Path, Path]]:
    """(scan, target) pairs. Raises UserError when there is nothing to read, or a target must not be written."""
    if not source.exists():
        raise UserError(f"there is no scan {source}: check the path")
    if source.is_dir() and not is_scan(source):
        scans = find_scans(source)
        files = {file for file in source.rglob("*") if file.is_file() and file.parent not in scans}
        if others := sorted(str(file.relative_to(source)) for file in files - set(scans)):
            print(f"left alone, no scans: {', '.join(others)}", file=sys.stderr)
        out = out or source.with_name(f"{source.name}_labelled")
        jobs = [(scan, out / scan.relative_to(source)) for scan in scans]
    else:
        jobs = [(source, out or source.with_name(f"{source.stem}_labelled{source.suffix}"))]
    for scan, target in jobs:
        if target.exists() and target.samefile(scan):
            raise UserError(f"{target} is the scan itself: give --out another name, the input is never written to")
        if kind(target) != kind(scan) and not scan.is_dir():
            raise UserError(f"{target} has another format than {scan.name}: end its name with {scan.suffix}")
        if target.is_dir() and not scan.is_dir():
            raise UserError(f"{target} is a folder: give --out a file name")
        if target.exists() and not overwrite:
            raise UserError(f"{target} exists already: --overwrite replaces it")
    return jobs


def classify(
    model: nn.Module,
    dataset: DataSet,
    scan: Scan,
    run: Run,
    device: torch.device,
    show: Callable[[float, str | None], None] = lambda share, name: None,
) -> tuple[np.ndarray, np.ndarray]:
    """(class index [N] int64, confidence [N] float32 = its mean probability) of a scan, tile by tile."""
    size, done = len(scan), 0
    found, confidence = np.zeros(size, np.int64), np.zeros(size, np.float32)
    for rows, core in tiles(upright(scan, dataset), dataset.grid_size, run.tile, MARGIN * dataset.grid_size):
        probability = vote(model, dataset.prepare(scan, rows), dataset.voxel, run, device, run.tta)
        best, index = probability[torch.from_numpy(core)].max(1)
        found[rows[core]], confidence[rows[core]] = index.numpy(), best.numpy()
        done += int(core.sum())
        show(done / size, None)
        give_back_memory()
    return found, confidence


def give_back_memory() -> None:
    """Hand freed memory to the system: glibc's heap grows with tensors of ever new sizes, by GiBs in 200 tiles."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def upright(scan: Scan, dataset: DataSet) -> np.ndarray:
    """[N, 3] float32 coordinates from the scan's corner, z up: tiles are cut in x and y."""
    corner = scan.coord.min(0)
    return ((scan.coord - corner) @ UP[dataset.up].T).astype(np.float32)


@torch.inference_mode()
def vote(model: nn.Module, sample: Sample, voxel: float, run: Run, device: torch.device, views: int) -> Tensor:
    """[N, classes] float32 on the CPU: class probabilities of every point of a sample small enough for one pass.

    0 views: one point per voxel speaks for all in it. Otherwise the mean over the published test-time views, each
    cut into fragments that together hold every point.
    """
    rng = np.random.default_rng(0)  # transforms want one; those of evaluation draw nothing
    if views == 0:
        sample = eval_transform(voxel)(sample, rng)
        return probabilities(model, sample, voxel, run, device)[torch.from_numpy(sample["inverse"])]
    centred = CenterShift()(sample, rng)
    total: Tensor | None = None
    last = Compose(finish())
    for view in tta_views()[:views]:
        for part in fragments(view(centred, rng), voxel, rng):
            probability = probabilities(model, last(part, rng), voxel, run, device)
            if total is None:
                total = torch.zeros(len(sample["coord"]), probability.shape[1])
            total.index_add_(0, torch.from_numpy(part["index"]), probability)
    assert total is not None
    return total / total.sum(1, keepdim=True)


def probabilities(model: nn.Module, sample: Sample, voxel: float, run: Run, device: torch.device) -> Tensor:
    """[M, classes] float32 on the CPU, softmax of one forward pass."""
    point = collate_batch([sample], grid_size=voxel)["point"].to(device)
    with autocast(run, device):
        logits = model(point)
    return logits.float().softmax(1).cpu()


def autocast(run: Run, device: torch.device) -> AbstractContextManager:
    """The precision of training also outside of it: adapters are float32 whatever the backbone is."""
    precision = ("bf16" if device.type == "cuda" else "no") if run.precision == "auto" else run.precision
    if precision == "no":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


@contextmanager
def progress_bar(hidden: bool) -> Iterator[Callable[[float, str | None], None]]:
    """Yields ``show(share done, name)``, a bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as bar:
        task = bar.add_task("", total=1.0)

        def show(share: float, name: str | None) -> None:
            bar.update(task, completed=share, description=name)

        yield show
