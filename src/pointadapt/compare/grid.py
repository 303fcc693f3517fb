"""The grid: one cell per arm, share of labels and seed; run by any number of processes, each cell once.

A folder is the whole state:

    grid.json           what is compared; a resumed grid must ask for the same
    cells/KEY.json      a finished cell; never run again
    cells/KEY.claim     a process is at it; without a sign of life for CLAIM seconds it is anybody's
    runs/KEY/           the run of a cell in work, which goes on where it was stopped

The learning rate of an arm is chosen first, at each share of labels, by trial cells: a shorter run with each factor on
the recipe's rates, scored on validation data. All arms have the same trials.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pointadapt.compare.arms import Arm
from pointadapt.errors import UserError
from pointadapt.files import write_text
from pointadapt.run import Run, made

#: Seconds between signs of life of a claim, and after how many it is void.
BEAT, CLAIM = 20, 180
TRIAL_SEED = 0


@dataclass(frozen=True)
class Cell:
    """One run: ``factor`` on the recipe's learning rates; a trial chooses it, a final cell gets the chosen one."""

    arm: Arm
    labels: str
    seed: int
    factor: float | None = None

    @property
    def is_trial(self) -> bool:
        return self.factor is not None

    @property
    def key(self) -> str:
        share = re.sub(r"[^\w.=-]+", "_", self.labels.replace("%", "pc"))  # it may be the path of a list
        end = f"trial-x{self.factor:g}" if self.is_trial else f"seed{self.seed}"
        return f"{self.arm.slug}--{share}--{end}"


@dataclass
class Grid:
    """What is compared.

    settings     Run fields that all cells share (data, backbone, steps, ...)
    factors      learning rates to try, as factors on the recipe's; one alone is taken without a trial
    trial_share  steps of a trial, as a share of a run's
    """

    out: Path
    arms: list[Arm]
    labels: list[str]
    seeds: int
    settings: dict[str, Any]
    factors: list[float] = field(default_factory=lambda: [0.3, 1.0, 3.0])
    trial_share: float = 0.25
    refused: dict[str, str] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """Trials before finals, seeds outermost: an unfinished grid still has every arm."""
        trials = [
            Cell(arm, share, TRIAL_SEED, factor)
            for share in self.labels
            for arm in self.arms
            for factor in (self.factors if len(self.factors) > 1 else ())
        ]
        finals = [Cell(arm, share, seed) for seed in range(self.seeds) for share in self.labels for arm in self.arms]
        return trials + finals

    def file(self, cell: Cell) -> Path:
        return self.out / "cells" / f"{cell.key}.json"

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What a finished cell found."""
        file = self.file(cell)
        return json.loads(file.read_text()) if file.is_file() else None

    def factor(self, cell: Cell) -> float | None:
        """The learning rate's factor for a cell; None while its trials are not all finished."""
        if cell.factor is not None:
            return cell.factor
        if len(self.factors) == 1:
            return self.factors[0]
        found = [self.result(Cell(cell.arm, cell.labels, TRIAL_SEED, factor)) for factor in self.factors]
        if any(result is None for result in found):
            return None
        return max(zip(self.factors, found, strict=True), key=lambda pair: pair[1]["score"])[0]  # type: ignore[index]

    def run_of(self, cell: Cell, factor: float) -> Run:
        run = Run(
            **{
                **self.settings,
                "method": cell.arm.method,
                "options": cell.arm.options,
                "weights": cell.arm.weights,
                "labels": cell.labels,
                "seed": cell.seed,
                "out": self.out / "runs" / cell.key,
            }
        )
        for name in ("lr", "head_lr", "backbone_lr"):
            setattr(run, name, getattr(run, name) * factor)
        if cell.is_trial:
            run.steps = max(1, round(run.steps * self.trial_share))
            run.eval_every = run.steps
        return run

    def describe(self) -> dict[str, Any]:
        """What must not change between processes of one grid; more seeds, arms and shares may join."""
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in self.settings.items()}
        settings = {k: v for k, v in settings.items() if k not in ("data", "cache", "threads", "num_workers")}
        return {"settings": settings, "factors": self.factors, "trial_share": self.trial_share}

    def open(self) -> None:
        """Make the folder, or check that it holds this grid. Raises UserError otherwise."""
        file = self.out / "grid.json"
        if file.is_file():
            before = json.loads(file.read_text())["grid"]
            now = json.loads(json.dumps(self.describe()))
            if before != now:
                names = [k for k in now["settings"] if now["settings"][k] != before["settings"].get(k)]
                names += [k for k in ("factors", "trial_share") if now[k] != before[k]]
                raise UserError(f"{self.out} holds a comparison with other settings ({', '.join(names)}): "
                                "give --out another folder, or the same settings to go on")  # fmt: skip
            return
        (self.out / "cells").mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"grid": self.describe(), "made": made()}, indent=2) + "\n")


def work(grid: Grid, do: Callable[[Run, Cell], dict[str, Any]], told: Callable[[str], None] = print) -> None:
    """Run every cell that nobody has run; returns when all are finished, whoever finished them.

    do  trains and scores one cell; returns at least {"score": ...}. What it raises as UserError ends the grid.
    """
    cells = grid.cells()
    while True:
        left = [cell for cell in cells if not grid.file(cell).is_file()]
        if not left:
            return
        for cell in left:
            factor = grid.factor(cell)
            if factor is None:
                continue
            with claimed(grid.file(cell).with_suffix(".claim")) as mine:
                if not mine or grid.file(cell).is_file():
                    continue
                done = len(cells) - len(left) + 1
                told(f"{done}/{len(cells)}  {cell.key}" + ("" if cell.is_trial else f"  rates x{factor:g}"))
                run = grid.run_of(cell, factor)
                result = do(run, cell)
                about = {"arm": cell.arm.name, "labels": cell.labels, "seed": cell.seed, "factor": factor}
                write_text(grid.file(cell), json.dumps({**about, **result}, indent=1) + "\n")
                shutil.rmtree(run.folder, ignore_errors=True)
                break  # what is left may have changed
        else:
            time.sleep(2)  # all that is left is in other hands


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Yields whether the claim is ours; while it is, the file's time is kept fresh."""
    if not take(file):
        yield False
        return
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT):
            file.touch()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        stop.set()
        thread.join()
        file.unlink(missing_ok=True)


def take(file: Path) -> bool:
    """Make the claim file, or take over one that shows no sign of life."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            try:
                if time.time() - file.stat().st_mtime < CLAIM and not is_dead(file):
                    return False
                aside = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
                os.rename(file, aside)  # one of several that try succeeds
                aside.unlink()
            except FileNotFoundError:
                pass
            continue
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        os.close(descriptor)
        return True
    return False


def is_dead(file: Path) -> bool:
    """Whether the claim's process ran on this machine and is gone."""
    import psutil

    try:
        owner = json.loads(file.read_text())
    except (ValueError, OSError):
        return False
    return owner["host"] == socket.gethostname() and not psutil.pid_exists(owner["pid"])


def check_shares(labels: Sequence[str]) -> list[str]:
    """The shares as a Run takes them, without repetition. Raises UserError for one that is no share."""
    from pointadapt.data.labels import parse_labels

    for share in labels:
        parse_labels(share)
    return list(dict.fromkeys(labels))
