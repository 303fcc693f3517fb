"""A grid, finished or not, as numbers: a row per arm and share of labels, as CSV, LaTeX and markdown."""

from __future__ import annotations

import csv
import io
import itertools
from dataclasses import dataclass
from typing import Any

from pointadapt.compare.arms import Arm, meanings
from pointadapt.compare.cost import Cost
from pointadapt.compare.grid import Grid
from pointadapt.compare.stats import Difference, Mean, paired


@dataclass(frozen=True)
class Row:
    """What one arm reached with one share of labels: seed -> scores, of those that did not diverge; and its costs.

    missing   seeds whose runs are not finished
    items     training items that the share leaves
    """

    arm: Arm
    labels: str
    scores: dict[int, dict[str, float]]
    diverged: int
    factor: float | None
    cost: Cost | None
    seconds: Mean | None
    missing: int = 0
    items: int | None = None

    def mean(self, key: str) -> Mean | None:
        """In percent; None where every run diverged."""
        return Mean(tuple(self.by_seed(key).values())) if self.scores else None

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
            sound = {seed: result for seed, result in cells.items() if "diverged" not in result}
            scores = {seed: result["scores"] for seed, result in sound.items()}
            seconds = Mean(tuple(result["seconds"] for result in sound.values())) if sound else None
            factor = next(iter(cells.values()))["factor"]
            lost, missing, items = len(cells) - len(sound), grid.seeds - len(cells), grid.sizes.get(share)
            rows.append(Row(arm, share, scores, lost, factor, costs.get(arm.name), seconds, missing, items))
    return rows


def differences(rows: list[Row], key: str) -> dict[tuple[str, str], Difference]:
    """(arm, other arm) -> paired difference of rows with the same labels."""
    return {
        (a.arm.name, b.arm.name): found
        for a in rows
        for b in rows
        if a is not b and (found := paired(a.by_seed(key), b.by_seed(key))) is not None
    }


#: Said under tables whose numbers are partly bold.
BOLD = (
    "Bold: all that are not clearly worse than the best mean (95 % interval of the paired difference over seeds), so "
    "of two means the lower one may be bold whose runs scatter more."
)


def leaders(rows: list[Row], key: str) -> set[str]:
    """Of rows with the same labels, the arms not clearly worse than the one of the best mean; none of which a single
    seed cannot tell, and none of which a run diverged."""
    means = {row.arm.name: mean.mean for row in rows if not row.diverged and (mean := row.mean(key)) is not None}
    if not means:
        return set()
    best = next(row for row in rows if row.arm.name == max(means, key=lambda name: means[name]))
    if len(best.scores) < 2:
        return set()
    against = differences(rows, key)
    worse = {name for name in means if name != best.arm.name and is_worse(against.get((best.arm.name, name)))}
    return set(means) - worse


def is_worse(lead: Difference | None) -> bool:
    return lead is None or lead.half is None or lead.is_clear


COLUMNS = (
    "labels", "method", "trained", "trained_without_head", "adapter_bytes", "train_step_seconds", "inference_seconds",
    "train_memory_bytes", "inference_memory_bytes", "rate_factor", "seeds", "diverged", "run_seconds", "train_items",
)  # fmt: skip


def as_csv(rows: list[Row], keys: list[str]) -> str:
    """One line per row; scores in percent, mean and standard deviation over the seeds that did not diverge."""
    lines: list[list[Any]] = [[*COLUMNS, *(f"{key}_{what}" for key in keys for what in ("mean", "sd"))]]
    for row in rows:
        cost = row.cost
        spent: list[Any] = [""] * 7
        if cost:
            counts = [cost.parameters["trained"], cost.parameters["trained_without_head"], cost.adapter_size]
            times = [f"{seconds:.4f}" for seconds in (cost.train_seconds, cost.infer_seconds)]
            spent = [*counts, *times, cost.train_memory, cost.infer_memory]
        seconds = f"{row.seconds.mean:.1f}" if row.seconds else ""
        means = [row.mean(key) for key in keys]
        values = [number(value) for mean in means for value in ((mean.mean, mean.sd) if mean else (None, None))]
        ran: list[Any] = [row.factor, len(row.scores), row.diverged, seconds, row.items]
        lines.append([row.labels, row.arm.name, *spent, *ran, *values])
    return written(lines)


def paired_csv(rows: list[Row], keys: list[str]) -> str:
    """One line per pair of arms, share of labels and score: the mean of ``method - other`` over the seeds both have, in
    percent, and half of its 95 % interval."""
    lines: list[list[Any]] = [["labels", "score", "method", "other", "difference", "half_interval", "seeds", "clear"]]
    for share, key in itertools.product(dict.fromkeys(row.labels for row in rows), keys):
        mine = [row for row in rows if row.labels == share]
        found = differences(mine, key)
        for pair in itertools.combinations([row.arm.name for row in mine], 2):
            if pair in found:
                of = found[pair]
                lines.append([share, key, *pair, number(of.mean), number(of.half), of.seeds, int(of.is_clear)])
    return written(lines)


def written(lines: list[list[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def summary(grid: Grid, rows: list[Row], key: str, heading: str) -> list[list[tuple[str, bool]]]:
    """The table of LaTeX and markdown, lines of (text, is bold): methods by rows; scores of each share, and costs."""
    shares = [share for share in grid.labels if any(row.labels == share for row in rows)]
    bold = {share: leaders([row for row in rows if row.labels == share], key) for share in shares}
    head = ["method", *(f"{heading}, {share}" if len(grid.labels) > 1 else heading for share in shares)]
    head += ["trained", "without head", "adapter MB", "step, ms", "inference, ms", "step, MB", "inference, MB"]
    lines = [[(text, False) for text in head]]
    for arm in grid.arms:
        mine = {row.labels: row for row in rows if row.arm.name == arm.name}
        if not mine:
            continue
        cells = [(arm.name, False)]
        for share in shares:
            cells.append((reached(mine[share], key), arm.name in bold[share]) if share in mine else ("–", False))
        cost = next(iter(mine.values())).cost
        spent = ["–"] * 7
        if cost:
            spent = [f"{cost.parameters[name]:,}" for name in ("trained", "trained_without_head")]
            spent.append(f"{cost.adapter_size / 1e6:.2f}")
            spent += [f"{1e3 * seconds:.0f}" for seconds in (cost.train_seconds, cost.infer_seconds)]
            spent += [f"{peak / 1e6:.0f}" for peak in (cost.train_memory, cost.infer_memory)]
        lines.append([*cells, *((text, False) for text in spent)])
    return lines


def reached(row: Row, key: str) -> str:
    """71.2 ± 0.4, and how many runs diverged or are not finished."""
    mean = row.mean(key)
    lost = {"diverged": row.diverged if mean else 0, "unfinished": row.missing}
    told = ", ".join(f"{count} {what}" for what, count in lost.items() if count)
    text = f"{mean.mean:.1f}" + ("" if mean.sd is None else f" ± {mean.sd:.1f}") if mean else "diverged"
    return f"{text} ({told})" if told else text


def as_latex(grid: Grid, rows: list[Row], key: str, heading: str) -> str:
    """A booktabs table for a paper."""
    head, *body = [
        " & ".join(rf"\textbf{{{escape(text)}}}" if bold else escape(text) for text, bold in line) + r" \\"
        for line in summary(grid, rows, key, heading)
    ]
    columns = "l" + "r" * head.count(" & ")
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", "", rf"{{\footnotesize {escape(footnote(grid))}}}"]) + "\n"


def as_markdown(grid: Grid, rows: list[Row], key: str, heading: str) -> str:
    """The same table for a README."""
    head, *body = [
        [f"**{text}**" if bold else text.replace("|", r"\|") for text, bold in line]
        for line in summary(grid, rows, key, heading)
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{footnote(grid)}\n"


def footnote(grid: Grid) -> str:
    """What bold numbers and names stand for."""
    bold = [BOLD] if grid.seeds > 1 else []
    return " ".join([*bold, *meanings(grid.arms)])


#: Characters that LaTeX reads as commands.
LATEX = {
    **{char: f"\\{char}" for char in "_%&#${}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--"},
}


def escape(text: str) -> str:
    return "".join(LATEX.get(char, char) for char in text)
