"""Every method under one protocol, as one command that can be stopped, resumed and shared out over processes.

pointadapt compare --data rooms/ --backbone nano --methods all --seeds 3 --labels 1%,10%,100% --out compare/rooms
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pointadapt.compare.arms import choose_arms
from pointadapt.compare.cost import Cost, measure
from pointadapt.compare.grid import Cell, Grid, check_shares, work
from pointadapt.compare.page import write_compare_page
from pointadapt.compare.tables import as_csv, as_latex, as_markdown, rows_of
from pointadapt.errors import UserError
from pointadapt.files import write_text
from pointadapt.kinds import Kind
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
    The last step of a run counts (select="last" unless said otherwise), scored on the test split.
    Raises UserError for what cannot be compared: no test split, or rates to choose and no validation data.
    """
    from pointadapt.domains.domain import open_domain
    from pointadapt.domains.models import build_task

    if seeds < 1:
        raise UserError(f"seeds is {seeds}; it must be at least 1")
    settings = {"select": "last", **settings, "data": Path(data)}
    probe = open_domain(Run(**settings))
    if not probe.dataset.paths("test"):
        raise UserError(
            f"{probe.dataset.file} lists no test split: a comparison needs shapes or scans that chose nothing"
        )
    trial = open_domain(Run(**{**settings, "select": "val"}))  # holds out a share where no val split is listed
    if len(factors) > 1 and not trial.dataset.paths("val"):
        raise UserError(f"{probe.dataset.file} has no validation data to choose learning rates on: list a val split, "
                        "or give one factor with --factors 1")  # fmt: skip
    arms, refused = choose_arms(methods, build_task(probe).backbone)
    grid = Grid(Path(out), arms, check_shares(labels), seeds, settings, list(factors), trial_share, refused)
    grid.open()
    if not report_only:
        work(grid, train_and_score)
    return write_outputs(grid)


def train_and_score(run: Run, cell: Cell) -> dict[str, Any]:
    """A trial is scored on validation data, a final run on the test split."""
    from pointadapt.checkpoint import can_resume
    from pointadapt.evaluate import evaluate
    from pointadapt.train import train

    if cell.is_trial:
        run.select = "val"
    resume = can_resume(run.folder)
    result = train(run, resume=resume, overwrite=not resume)
    headline = run.of_kind.headline
    about = {"seconds": result["seconds"], "steps": result["steps"], "threads": result["threads"],
             "device": result["device"], "loss": result["loss"]}  # fmt: skip
    if cell.is_trial:
        return {"score": result["last"][headline], **about}
    found = evaluate(run, "test", "last" if run.select == "last" else "best")
    scores = {key: found[key] for key in run.of_kind.scores}
    values = next(iter(run.of_kind.per_class))
    about |= {"per_class": found.get(values), "classes": found["classes"]}
    return {"score": scores[headline], "scores": scores, **about}


def write_outputs(grid: Grid) -> dict[str, Any]:
    """Measure what the arms cost (once), then write the page and the tables from the cells that are finished."""
    kind: Kind = Run(**grid.settings).of_kind
    costs = costs_of(grid)
    rows = rows_of(grid, costs)
    finals = [cell for cell in grid.cells() if not cell.is_trial]
    done = sum(grid.file(cell).is_file() for cell in finals)
    run = Run(**grid.settings)
    lead = (
        f"{len(grid.arms)} methods on {run.backbone}, {run.data.resolve().name}: {run.steps} steps of "
        f"{run.batch_size}, test split, mean ± standard deviation over {grid.seeds} seeds. "
        f"{done} of {len(finals)} runs are finished."
    )
    chosen = (
        f"Learning rates: the recipe's (lr {run.lr:g}, head {run.head_lr:g}, pretrained weights {run.backbone_lr:g}) "
        f"times the factor given, the best of {', '.join(f'{f:g}' for f in grid.factors)} on validation data after "
        f"{grid.trial_share:g} of the steps with seed 0, for each method and share of labels."
        if len(grid.factors) > 1
        else f"Learning rates: the recipe's times {grid.factors[0]:g}, for all methods."
    )
    spent = (
        "Seconds and memory: medians of side-by-side rounds in one process on one training batch; memory is the "
        "largest sum of live tensors beyond the weights. Data order, new weights and the labelled items differ "
        "with the seed."
    )
    if rows:
        write_compare_page(grid.out / "compare.html", grid, rows, dict(kind.scores), lead, [chosen, spent])
        write_text(grid.out / "compare.csv", as_csv(rows, list(kind.scores)))
        write_text(grid.out / "compare.tex", as_latex(grid, rows, kind.headline, kind.heading))
        write_text(grid.out / "compare.md", as_markdown(grid, rows, kind.headline, kind.heading))
    return {"finished": done, "runs": len(finals), "rows": rows, "out": str(grid.out)}


def costs_of(grid: Grid) -> dict[str, Cost]:
    """Measured once per set of arms and kept in cost.json: a report written again shows the same figures."""
    file = grid.out / "cost.json"
    names = [arm.name for arm in grid.arms]
    if file.is_file():
        stored = json.loads(file.read_text())
        if list(stored) == names:
            return {name: Cost(**values) for name, values in stored.items()}
    costs = measure([(arm, grid.run_of(Cell(arm, grid.labels[-1], 0), 1.0)) for arm in grid.arms])
    write_text(file, json.dumps({name: asdict(cost) for name, cost in costs.items()}, indent=1) + "\n")
    return costs
