"""Every method under one protocol, as one command that can be stopped, resumed and shared out over processes.

pointadapt compare --data rooms/ --backbone nano --methods all --seeds 3 --labels 1%,10%,100% --out compare/rooms
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pointadapt.compare.arms import choose_arms, meanings
from pointadapt.compare.claim import claimed
from pointadapt.compare.cost import Cost, measure
from pointadapt.compare.grid import Cell, Grid, all_diverged, check_shares, work
from pointadapt.compare.page import write_compare_page
from pointadapt.compare.record import fingerprint, known_arms
from pointadapt.compare.tables import Row, as_csv, as_latex, as_markdown, paired_csv, rows_of
from pointadapt.data.labels import ALL
from pointadapt.domains.domain import Domain, open_domain
from pointadapt.errors import UserError, few
from pointadapt.files import read_json, write_text
from pointadapt.run import Run


def compare(
    data: Path | str,
    out: Path | str,
    methods: Sequence[str] = ("all",),
    seeds: int = 3,
    labels: Sequence[str] = ("100%",),
    factors: Sequence[float] = (0.3, 1.0, 3.0),
    trial_share: float = 0.25,
    report_only: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Run or resume the grid of methods x labels x seeds, then write compare.html, .csv, .tex and .md into ``out``.

    methods   names, name[option=value,...], random:name, or "all" = all that can work on the backbone
    labels    shares of the training items ("10%") or labelled points per scan ("200pts")
    factors   learning rates to try, as factors on the recipe's; the best on validation data is taken, for each method
              and share. One alone is taken as it is
    settings  fields of Run that all runs share (backbone, steps, ...)
    The last step of a run counts (select="last" unless said otherwise), scored on the test split. Without one val is
    scored, and rates are chosen on a share of the training items.
    Raises UserError for what cannot be compared: nothing to score, or rates to choose and no validation data.
    """
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; it must be at least 1")
    if not 0 < trial_share <= 1:
        raise UserError(f"trial_share is {trial_share}; it must be above 0 and at most 1")
    if not factors or not all(0 < factor < math.inf for factor in factors):
        raise UserError(f"factors is {list(factors)}; it needs numbers above 0, as in --factors 0.3,1,3")
    labels, out = check_shares(labels), Path(out)
    if out.is_file():
        raise UserError(f"{out} is a file: give --out a folder")
    if report_only and not (out / "grid.json").is_file():
        raise UserError(f"{out} holds no comparison to report on: start it without --report-only, or check --out")
    settings = {"select": "last", **settings, "data": Path(data)}
    probe = open_domain(Run(**settings))
    split = scored_split(probe)
    validated = open_domain(Run(**{**settings, "select": "val"})).dataset.paths("val")
    arms, refused = choose_arms(methods, probe)
    grid = Grid(
        out, arms, labels, seeds, settings, list(dict.fromkeys(factors)), trial_share, refused,
        split=split, holdout=split == "val" or not validated,
        sizes={share: open_domain(Run(**{**settings, "labels": share})).train_size() for share in {*labels, ALL}},
    )  # fmt: skip
    if len(grid.factors) > 1:
        check_trials(grid)
    known = out / "hashes.json"
    if not known.is_file():
        print("reading all files of the data once, to know later that they are the same", flush=True)
    grid.data = fingerprint(probe.dataset, known)
    grid.open(to_run=not report_only)
    if not report_only:
        for line in same_shares(grid):
            print(line)
        work(grid, train_and_score)
    return write_outputs(grid)


def scored_split(domain: Domain) -> str:
    """What final runs are scored on: test, or val where there is none. Raises UserError where neither is of use."""
    if domain.dataset.paths("test"):
        return "test"
    if not domain.dataset.paths("val"):
        raise UserError(f"{domain.dataset.file} lists no test split and no val to score in its place: list one")
    if domain.run.select == "val":
        raise UserError(f"{domain.dataset.file} lists no test split, so val is scored and cannot choose the step as "
                        "well: use --select last")  # fmt: skip
    return "val"


def check_trials(grid: Grid) -> None:
    """Raises UserError where a share of the labels leaves nothing to choose learning rates on."""
    for share in grid.labels:
        trial = open_domain(grid.run_of(Cell(grid.arms[0], share, 0, 1.0), 1.0))
        if not trial.dataset.paths("val"):
            cure = "a test split, so that val is free for it" if grid.split == "val" else "a val split"
            raise UserError(f"{trial.dataset.file} leaves no validation data to choose learning rates on with {share} "
                            f"of the labels: list {cure}, or give one factor with --factors 1")  # fmt: skip


def train_and_score(run: Run, cell: Cell) -> dict[str, Any]:
    """A trial is scored on validation data; a final run on test, or on val without one, at its end: on the way only
    where that chooses the step."""
    from pointadapt.checkpoint import can_resume
    from pointadapt.evaluate import evaluate
    from pointadapt.train import train

    resume = can_resume(run.folder)
    result = train(run, resume=resume, overwrite=not resume, validate=run.select != "last")
    headline = run.of_kind.headline
    about = {"seconds": result["seconds"], "steps": result["steps"], "threads": result["threads"],
             "device": result["device"], "loss": result["loss"]}  # fmt: skip
    if cell.is_trial:
        return {"score": result["last"][headline], **about}
    found = evaluate(run, None, "last" if run.select == "last" else "best")
    scores = {key: found[key] for key in run.of_kind.scores}
    values = next(iter(run.of_kind.per_class))
    about |= {"per_class": found.get(values), "classes": found["classes"]}
    return {"score": scores[headline], "scores": scores, **about}


def write_outputs(grid: Grid) -> dict[str, Any]:
    """Measure what the arms cost (once), then write the page and the tables from the cells that are finished."""
    run = Run(**grid.settings)
    kind = run.of_kind
    finals = [cell for cell in grid.cells() if not cell.is_trial]
    done = sum(grid.file(cell).is_file() for cell in finals)
    result: dict[str, Any] = {"finished": done, "runs": len(finals), "rows": [], "out": str(grid.out)}
    if not done:
        return result
    rows = rows_of(grid, costs_of(grid))
    lead = (
        f"{len(grid.arms)} methods on {run.backbone}, {run.data.resolve().name}: {run.steps} steps of "
        f"{run.batch_size}, {grid.split} split, mean ± standard deviation over {grid.seeds} seeds. "
        f"{done} of {len(finals)} runs are finished."
    )
    notes = notes_on(grid, run, rows)
    write_compare_page(grid.out / "compare.html", grid, rows, dict(kind.scores), lead, notes, kind.sources)
    write_text(grid.out / "compare.csv", as_csv(rows, list(kind.scores)))
    write_text(grid.out / "compare_paired.csv", paired_csv(rows, list(kind.scores)))
    write_text(grid.out / "compare.tex", as_latex(grid, rows, kind.headline, kind.heading))
    write_text(grid.out / "compare.md", as_markdown(grid, rows, kind.headline, kind.heading))
    return {**result, "rows": rows}


def notes_on(grid: Grid, run: Run, rows: list[Row]) -> list[str]:
    """How rates were chosen, what was scored and how costs were measured, for the foot of the page."""
    if len(grid.factors) > 1:
        on = f"{run.val_share:.0%} of the training items, held out for it" if grid.holdout else "validation data"
        chosen = (
            f"Learning rates: the recipe's (lr {run.lr:g}, head {run.head_lr:g}, pretrained weights "
            f"{run.backbone_lr:g}) times the factor given, the best of {', '.join(f'{f:g}' for f in grid.factors)} on "
            f"{on} after {grid.trial_share:g} of the steps with seed 0, for each method and share of labels."
        )
        if grid.trial_share < 1:
            chosen += " Runs shorter than the final ones favour high rates."
        ends = sum(row.factor in (min(grid.factors), max(grid.factors)) for row in rows)
        if ends:
            chosen += f" {ends} of {len(rows)} took the lowest or highest tried: better ones may lie beyond."
        if equal := sum(best_are_equal(grid, row) for row in rows):
            chosen += f" {equal} of {len(rows)} had several best ones, and took of these the one nearest the recipe's."
    else:
        chosen = f"Learning rates: the recipe's times {grid.factors[0]:g}, for all methods."
    scored = ["Scored is val: the data lists no test split."] if grid.split == "val" else []
    lost = [
        f"All trials of {arm.name} with {share} of the labels diverged; its runs took the lowest rates."
        for share in grid.labels
        for arm in grid.arms
        if len(grid.factors) > 1 and (found := grid.trials(arm, share)) and all_diverged(found)
    ]
    threads = next((row.cost.threads for row in rows if row.cost), None)
    spent = (
        "Seconds: medians of side-by-side rounds in one process on one training batch, in the runs' "
        f"precision, CPU threads {threads}. Memory, of one round, is the largest sum of live tensors beyond the "
        "weights, in training with the optimizer's state. Data order, new weights and the labelled items differ with "
        "the seed."
    )
    devices = sorted({done["device"] for cell in grid.cells() if "device" in (done := grid.result(cell) or {})})
    mixed = f"Runs were made on {', '.join(devices)}: with them differ their seconds and, without --precision, that."
    mixture = [mixed] if len(devices) > 1 else []
    return [*scored, *same_shares(grid), *names_of(grid), chosen, *lost, *mixture, spent]


def best_are_equal(grid: Grid, row: Row) -> bool:
    """Whether validation could not tell apart the best rates of a row's trials."""
    found = [trial["score"] for trial in (grid.trials(row.arm, row.labels) or {}).values() if "diverged" not in trial]
    return found.count(max(found, default=0)) > 1


def names_of(grid: Grid) -> list[str]:
    """Sentences on what names stand for, and on the runs in the folder that were not asked for."""
    others = [name for name in known_arms(grid.out) if name not in {arm.name for arm in grid.arms}]
    return meanings(grid.arms) + ([f"The folder also holds {few(others)}, not asked for here."] if others else [])


def same_shares(grid: Grid) -> list[str]:
    """A sentence on each two shares that leave equally many items, and so the same ones."""
    shares = [share for share in grid.labels if share.endswith("%") and share in grid.sizes]
    return [
        f"{one} and {other} of the labels are the same here: {grid.items(one)} training items."
        for one, other in itertools.combinations(shares, 2)
        if grid.sizes[one] == grid.sizes[other]
    ]


def costs_of(grid: Grid) -> dict[str, Cost]:
    """Measured once per set of arms, by one process, and kept in cost.json: a report written again shows the same."""
    file = grid.out / "cost.json"
    while (costs := stored_costs(file, grid)) is None:
        with claimed(file.with_suffix(".claim")) as mine:
            if mine is not None and stored_costs(file, grid) is None:
                print(f"measuring what {len(grid.arms)} methods cost, side by side", flush=True)
                found = measure([(arm, grid.run_of(Cell(arm, grid.labels[-1], 0), 1.0)) for arm in grid.arms])
                write_text(file, json.dumps({name: asdict(cost) for name, cost in found.items()}, indent=1) + "\n")
        if mine is None:
            time.sleep(2)
    return costs


def stored_costs(file: Path, grid: Grid) -> dict[str, Cost] | None:
    """None where an arm is missing, or was measured by a version that measured otherwise."""
    stored = read_json(file, "delete it: costs are then measured anew") if file.is_file() else {}
    known = {f.name for f in fields(Cost)}
    entries = [stored.get(arm.name) if isinstance(stored, dict) else None for arm in grid.arms]
    if not all(isinstance(entry, dict) and entry.keys() == known for entry in entries):
        return None
    return {arm.name: Cost(**stored[arm.name]) for arm in grid.arms}
