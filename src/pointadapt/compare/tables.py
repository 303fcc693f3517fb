"""A grid, finished or not, as numbers: a row per arm and share of labels, as CSV, LaTeX and markdown."""

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


def by_method(grid: Grid, rows: list[Row]) -> tuple[list[str], list[tuple[Arm, dict[str, Row]]]]:
    """(shares of labels that have rows, for each arm its row at each share)."""
    shares = [share for share in grid.labels if any(row.labels == share for row in rows)]
    found = [(arm, {row.labels: row for row in rows if row.arm.name == arm.name}) for arm in grid.arms]
    return shares, [(arm, mine) for arm, mine in found if mine]


def best_means(rows: list[Row], key: str) -> dict[str, float]:
    """Share of labels -> the highest mean."""
    return {share: max(r.mean(key).mean for r in rows if r.labels == share) for share in {r.labels for r in rows}}


def as_latex(grid: Grid, rows: list[Row], key: str, heading: str) -> str:
    """A booktabs table: methods by rows, shares of labels by columns; the best mean of a column in bold."""
    shares, methods = by_method(grid, rows)
    best = best_means(rows, key)
    lines = [
        r"\begin{tabular}{lr" + "r" * len(shares) + "}",
        r"\toprule",
        " & ".join(["method", "trained", *(share.replace("%", r"\%") + f" {heading}" for share in shares)]) + r" \\",
        r"\midrule",
    ]
    for arm, mine in methods:
        cost = next(iter(mine.values())).cost
        cells = [escape(arm.name), f"{cost.parameters['trained']:,}".replace(",", r"\,") if cost else "--"]
        for share in shares:
            cells.append(figure(mine[share].mean(key), best[share]) if share in mine else "--")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def as_markdown(grid: Grid, rows: list[Row], key: str, heading: str) -> str:
    """The same table for a README, with what a method costs; the best mean of a column in bold."""
    shares, methods = by_method(grid, rows)
    best = best_means(rows, key)
    head = ["method", *(f"{heading}, {share}" if len(grid.labels) > 1 else heading for share in shares)]
    head += ["trained", "without head", "adapter MB", "step, ms", "memory, MB"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for arm, mine in methods:
        cells = [arm.name]
        for share in shares:
            mean = mine[share].mean(key) if share in mine else None
            text = "–" if mean is None else f"{mean.mean:.1f}" + ("" if mean.sd is None else f" ± {mean.sd:.1f}")
            cells.append(f"**{text}**" if mean is not None and mean.mean == best[share] else text)
        cost = next(iter(mine.values())).cost
        spent = ["–"] * 5
        if cost:
            counts = [f"{cost.parameters[name]:,}" for name in ("trained", "trained_without_head")]
            spent = [*counts, f"{cost.adapter_size / 1e6:.2f}", f"{1e3 * cost.train_seconds:.0f}"]
            spent.append(f"{cost.train_memory / 1e6:.0f}")
        lines.append([*cells, *spent])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def figure(mean: Mean, best: float) -> str:
    text = f"{mean.mean:.1f}"
    text = rf"\textbf{{{text}}}" if mean.mean == best else text
    return text if mean.sd is None else rf"{text} $\pm$ {mean.sd:.1f}"


def escape(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")
