"""The grid: one cell per arm, share of labels and seed; run by any number of processes, each cell once.

A folder is the whole state:

    grid.json           what is compared (record.py); a resumed grid must ask for the same
    hashes.json         hash of each file of the data, with its size and time: what is unchanged is read once
    cells/KEY.json      a finished cell; never run again
    cells/KEY.claim     a process is at it (claim.py)
    runs/KEY/           the run of a cell in work, which goes on where it was stopped

The learning rate of an arm is chosen first, at each share of labels, by trial cells: a shorter run with each factor on
the recipe's rates, scored on validation data. All arms have the same trials.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pointadapt.compare.arms import Arm
from pointadapt.compare.claim import claimed
from pointadapt.compare.record import file_hashes, join
from pointadapt.data.labels import ALL, parse_labels
from pointadapt.errors import Diverged, UserError
from pointadapt.files import read_json, write_text
from pointadapt.run import Run

TRIAL_SEED = 0
#: Fields of Run that are a cell's own, or change no result.
NOT_SHARED = ("data", "out", "method", "options", "weights", "labels", "seed", "cache", "threads", "num_workers")


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
    data         record.fingerprint of the data
    split        what final cells are scored on
    holdout      trials are scored on a share of train, not on the val that is listed
    sizes        share of labels -> training items it leaves; "100%" -> all of them
    """

    out: Path
    arms: list[Arm]
    labels: list[str]
    seeds: int
    settings: dict[str, Any]
    factors: list[float] = field(default_factory=lambda: [0.3, 1.0, 3.0])
    trial_share: float = 0.25
    refused: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    split: str = "test"
    holdout: bool = False
    sizes: dict[str, int] = field(default_factory=dict)

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
        """What a finished cell found. Raises UserError for a file that holds something else."""
        file = self.file(cell)
        if not file.is_file():
            return None
        cure = "delete it and start the same command again, which makes this run anew"
        found = read_json(file, cure)
        keys = found.keys() if isinstance(found, dict) else set()
        of_final = set() if cell.is_trial or "diverged" in keys else {"scores", "seconds"}
        if not {"score", "factor"} | of_final <= keys:
            raise UserError(f"{file}: it holds no result of a run; {cure}")
        return found

    def factor(self, cell: Cell) -> float | None:
        """The learning rate's factor for a cell; None while its trials are not all finished."""
        if cell.factor is not None:
            return cell.factor
        if len(self.factors) == 1:
            return self.factors[0]
        found = self.trials(cell.arm, cell.labels)
        if found is None:
            return None
        if all_diverged(found):
            return min(found)  # if any rate gets through, this one does

        def rank(factor: float) -> tuple[bool, float, float]:
            return "diverged" not in found[factor], found[factor]["score"], -abs(math.log(factor))

        return max(found, key=rank)  # of equal ones the recipe's own, or what is next to it

    def trials(self, arm: Arm, labels: str) -> dict[float, dict[str, Any]] | None:
        """Factor -> what its trial found; None while they are not all finished."""
        results = {factor: self.result(Cell(arm, labels, TRIAL_SEED, factor)) for factor in self.factors}
        found = {factor: result for factor, result in results.items() if result is not None}
        return found if len(found) == len(results) else None

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
            if run.epochs is not None:  # which decides the steps
                run.epochs = max(1, round(run.epochs * self.trial_share))
            run.eval_every = run.steps
            run.select, run.holdout = "val", self.holdout
        return run

    def items(self, labels: str) -> str:
        """ "1 of 12": training items that a share of the labels leaves; "" where that is not known."""
        return f"{self.sizes[labels]} of {self.sizes[ALL]}" if {labels, ALL} <= self.sizes.keys() else ""

    def describe(self) -> dict[str, Any]:
        """What must not change between processes of one grid; more seeds, arms and shares may join."""
        run = Run(**self.settings)
        settings = {name: value for name, value in run.as_dict().items() if name not in NOT_SHARED}
        trials = {"trial_share": self.trial_share} if len(self.factors) > 1 else {}
        return {
            "grid": {"settings": settings, "factors": self.factors, **trials},
            "arms": {arm.name: arm.meaning for arm in self.arms},
            "files": file_hashes([run.backbone, *self.labels]),
            "data": self.data,
        }

    def open(self, to_run: bool = True) -> None:
        """Make the folder, or check that it holds this grid; ``to_run``: what is new joins it. Raises UserError
        otherwise."""
        join(self.out, self.describe(), to_run)
        (self.out / "cells").mkdir(parents=True, exist_ok=True)


def work(grid: Grid, do: Callable[[Run, Cell], dict[str, Any]], told: Callable[[str], None] = print) -> None:
    """Run every cell that nobody has run; returns when all are finished, whoever finished them.

    do  trains and scores one cell; returns at least {"score": ...}. Where it raises Diverged, that is the result, with
        the worst score; any other UserError ends the grid, with the cell's name in front.
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
                if mine is None or grid.file(cell).is_file():
                    continue
                done = len(cells) - len(left) + 1
                told(f"{done}/{len(cells)}  {cell.key}" + ("" if cell.is_trial else f"  rates x{factor:g}"))
                run = grid.run_of(cell, factor)
                try:
                    result = do(run, cell)
                except Diverged as error:
                    told(f"{cell.key} diverged: {error}")
                    result = {"score": 0.0, "diverged": str(error)}
                except (UserError, OSError) as error:
                    if not mine.held():
                        break
                    if isinstance(error, UserError):
                        raise UserError(f"{cell.key}: {error}") from error
                    raise
                if not mine.held():  # another process took it over while this one slept, and will finish it
                    break
                about = {"arm": cell.arm.name, "labels": cell.labels, "seed": cell.seed, "factor": factor}
                write_text(grid.file(cell), json.dumps({**about, **result}, indent=1) + "\n")
                shutil.rmtree(run.folder, ignore_errors=True)
                break  # what is left may have changed
        else:
            time.sleep(2)  # all that is left is in other hands


def all_diverged(trials: dict[float, dict[str, Any]]) -> bool:
    return all("diverged" in result for result in trials.values())


def check_shares(labels: Sequence[str]) -> list[str]:
    """The shares as a Run takes them, without repetition. Raises UserError for one that is no share, or none."""
    if not labels:
        raise UserError("labels is empty: give shares of the training items, as in --labels 10%,100%")
    for share in labels:
        parse_labels(share)
    return list(dict.fromkeys(labels))
