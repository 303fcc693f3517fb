"""A finished (or unfinished) grid as numbers: one row per arm and share of labels, as CSV and as a LaTeX table."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from pointadapt.compare.arms import Arm
from pointadapt.compare.cost import Cost
from pointadapt.compare.grid import Grid
from pointadapt.compare.stats import Difference, Mean, paired


@dataclass(frozen=True)
class Row:
    """What one arm reached with one share of labels: seed -> score (0-100), and what it cost."""

    arm: Arm
    labels: str
    scores: dict[int, dict[str, float]]
    factor: float | None
    cost: Cost | None
    seconds: Mean | None

    def mean(self, key: str) -> Mean:
        return Mean(tuple(100 * scores[key] for scores in self.scores.values()))

    def by_seed(self, key: str) -> dict[int, float]:
        return {seed: 100 * scores[key] for seed, scores in self.scores.items()}


def rows_of(grid: Grid, costs: dict[str, Cost]) -> list[Row]:
    """Rows in the grid's order; arms without a finished cell are left out."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for cell in grid.cells():
        result = None if cell.is_trial else grid.result(cell)
        if result is not None:
            found.setdefault((cell.labels, cell.arm.name), {})[cell.seed] = result
    rows = []
    for share in grid.labels:
        for arm in grid.arms:
            cells = found.get((share, arm.name))
            if not cells:
                continue
            scores = {seed: result["scores"] for seed, result in cells.items()}
            seconds = Mean(tuple(result["seconds"] for result in cells.values()))
            factor = next(iter(cells.values()))["factor"]
            rows.append(Row(arm, share, scores, factor, costs.get(arm.name), seconds))
    return rows


def differences(rows: list[Row], key: str) -> dict[tuple[str, str], Difference]:
    """(arm, other arm) -> paired difference of rows with the same labels."""
    return {
        (a.arm.name, b.arm.name): found
        for a in rows
        for b in rows
        if a is not b and (found := paired(a.by_seed(key), b.by_seed(key))) is not None
    }


COLUMNS = (
    "labels", "method", "trained", "trained_without_head", "adapter_bytes", "train_step_seconds", "inference_seconds",
    "train_memory_bytes", "inference_memory_bytes", "rate_factor", "seeds", "run_seconds",
)  # fmt: skip


def as_csv(rows: list[Row], keys: list[str]) -> str:
    """One line per row; scores in percent, mean and standard deviation."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"{key}_{what}" for key in keys for what in ("mean", "sd"))])
    for row in rows:
        cost = row.cost
        spent: list[Any] = [""] * 7
        if cost:
            counts = [cost.parameters["trained"], cost.parameters["trained_without_head"], cost.adapter_size]
            times = [f"{seconds:.4f}" for seconds in (cost.train_seconds, cost.infer_seconds)]
            spent = [*counts, *times, cost.train_memory, cost.infer_memory]
        seconds = f"{row.seconds.mean:.1f}" if row.seconds else ""
        values = [f"{value:.2f}" if value is not None else "" for key in keys for value in both(row.mean(key))]
        writer.writerow([row.labels, row.arm.name, *spent, row.factor, len(row.scores), seconds, *values])
    return out.getvalue()


def both(mean: Mean) -> tuple[float, float | None]:
    return mean.mean, mean.sd


def as_latex(grid: Grid, rows: list[Row], key: str, heading: str) -> str:
    """A booktabs table: methods by rows, shares of labels by columns; the best mean of a column in bold."""
    shares = [share for share in grid.labels if any(row.labels == share for row in rows)]
    best = {share: max(row.mean(key).mean for row in rows if row.labels == share) for share in shares}
    lines = [
        r"\begin{tabular}{lr" + "r" * len(shares) + "}",
        r"\toprule",
        " & ".join(["method", "trained", *(share.replace("%", r"\%") + f" {heading}" for share in shares)]) + r" \\",
        r"\midrule",
    ]
    for arm in grid.arms:
        mine = {row.labels: row for row in rows if row.arm.name == arm.name}
        if not mine:
            continue
        cost = next(iter(mine.values())).cost
        cells = [escape(arm.name), f"{cost.parameters['trained']:,}".replace(",", r"\,") if cost else "--"]
        for share in shares:
            cells.append(figure(mine[share].mean(key), best[share]) if share in mine else "--")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def figure(mean: Mean, best: float) -> str:
    text = f"{mean.mean:.1f}"
    text = rf"\textbf{{{text}}}" if mean.mean == best else text
    return text if mean.sd is None else rf"{text} $\pm$ {mean.sd:.1f}"


def escape(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")
