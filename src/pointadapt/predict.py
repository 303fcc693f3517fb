"""Prediction: scans, shapes and videos in, classes and confidences out; the input is never written to.

pointadapt predict runs/site-a new_scan.laz --out new_scan_labelled.laz
pointadapt predict runs/site-a new_scans/ --out labelled/
pointadapt predict runs/shapes new_shapes/ --out predictions.csv
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pointadapt.data.io import left_out
from pointadapt.domains.domain import Show, remembered_domain
from pointadapt.domains.models import load_model
from pointadapt.errors import UserError
from pointadapt.kinds import SCENES
from pointadapt.ops.devices import enough_memory
from pointadapt.run import Run

#: Files that could not be read, told one by one; of the others the number.
TOLD = 5


def predict(
    run: Run | Path | str,
    source: Path | str,
    out: Path | str | None = None,
    checkpoint: str = "best",
    overwrite: bool = False,
    tta: int | None = None,
    quiet: bool = False,
    **told: Any,
) -> list[Path]:
    """Label one file, or every scan or shape in a folder; returns the files written.

    run    a Run or its folder
    out    file, or folder for a folder, never one in the source. Default: beside the source, ``_labelled`` behind its
           name. A classifier of shapes writes one table, ``out`` if that ends in .csv, else predictions.csv in the
           folder ``out``; a video gets a table and beside it a picture of its timeline
    tta    test-time views, default the run's (Run.tta);  quiet: no progress bar
    told   what single kinds understand: probabilities=True (shapes and actions: a column per class too), gaps=True
           (videos: frames may be missing or empty), category="chair" (parts: what the shapes are, where no folder
           says it)
    Memory stays bounded: a scan is computed in tiles of at most ``Run.tile`` voxels. Raises UserError before anything
    is computed when a target exists already; files of a folder that cannot be read are named after all others are done.
    """
    domain = remembered_domain(with_views(run if isinstance(run, Run) else Run.load(run), tta))
    domain.tell(told)
    source = Path(source)
    source = source.resolve() if source.name in ("", "..") else source  # what is written beside it is called after it
    jobs = domain.jobs(source, Path(out) if out else None, overwrite)
    if sentence := left_out(source):
        print(sentence, file=sys.stderr)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(domain, checkpoint).to(device)
    failed: list[str] = []
    answers: dict[Path, list[tuple[Path, Any]]] = {}
    with progress_bar(hidden=quiet) as show:
        for number, (file, target) in enumerate(jobs, 1):
            show(0, f"{file.name} ({number}/{len(jobs)})")
            try:
                with memory_of(domain.run):
                    answer = domain.label(model, file, target, device, show)
                answers.setdefault(target, []).append((file, answer))
            except UserError as error:
                if len(jobs) == 1:
                    raise
                failed.append(str(error))
    for target, labelled in answers.items():
        domain.conclude(target, labelled)
    more = domain.about_all(answers) if answers else []
    if failed:
        sentence = "; ".join(failed[:TOLD]) + (f"; and {len(failed) - TOLD} more" if len(failed) > TOLD else "")
        if answers:
            target = next(iter(answers))
            sentence += f"; the others are in {target if len(answers) == 1 else target.parent}"
        raise UserError(f"{len(failed)} of {len(jobs)} {domain.kind.sources} were not labelled: {sentence}")
    return [*answers, *more]


def with_views(run: Run, tta: int | None) -> Run:
    """The run with other test-time views. Raises UserError for a number that does not exist."""
    return run if tta is None else replace(run, tta=tta)


def memory_of(run: Run) -> AbstractContextManager[None]:
    """Around evaluation and prediction: raises UserError where memory is full, with the setting that takes less."""
    setting = "tile" if run.kind == SCENES.name else "batch_size"
    return enough_memory(f"lower {setting} in {run.folder / 'run.json'}")


@contextmanager
def progress_bar(hidden: bool) -> Iterator[Show]:
    """Yields ``show(share done, name)``, a bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as bar:
        task = bar.add_task("", total=1.0)

        def show(share: float, name: str | None) -> None:
            bar.update(task, completed=share, description=name)

        yield show
