"""compare.html: the table of a grid, accuracy against cost, and which differences are larger than the noise."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pointadapt.analysis.charts import SERIES, ticks
from pointadapt.analysis.report import write_page
from pointadapt.compare.grid import Grid
from pointadapt.compare.stats import Difference
from pointadapt.compare.tables import BOLD, Row, differences, leaders, reached


def write_compare_page(
    path: Path,
    grid: Grid,
    rows: list[Row],
    headings: dict[str, str],
    lead: str,
    notes: Sequence[str],
    sources: str = "items",
) -> Path:
    """Write the page (atomically). ``headings``: score key -> heading, the leading one first; ``sources``: what the
    training items are called."""
    key, heading = next(iter(headings.items()))
    body = ["<h1>Comparison</h1>", f'<p class="lead">{html.escape(lead)}</p>']
    for share in grid.labels:
        mine = [row for row in rows if row.labels == share]
        if not mine:
            continue
        items = f": {left} {sources} to learn from" if (left := grid.items(share)) else ""
        body.append(f"<h2>{html.escape(share)} of the labels{items}</h2>")
        body.append(table(mine, headings))
        charts = [scatter(mine, key, heading, *axis) for axis in AXES]
        body.append('<div class="cards">' + "".join(f'<div class="card">{c}</div>' for c in charts if c) + "</div>")
        body.append(f"<h3>Differences in {heading}, row minus column</h3>")
        body.append(difference_table(mine, key))
    if grid.refused:
        reasons = "".join(f"<li>{html.escape(name)}: {html.escape(why)}</li>" for name, why in grid.refused.items())
        body.append(f"<h2>Methods that cannot work on this backbone</h2><ul>{reasons}</ul>")
    body += [f'<p class="note">{html.escape(note)}</p>' for note in notes]
    return write_page(path, "Comparison", "\n".join(body))


def numbered(index: int, row: Row) -> str:
    return f"<small>{index + 1}</small> {html.escape(row.arm.name)}"


def table(rows: Sequence[Row], headings: dict[str, str]) -> str:
    best = {key: leaders(list(rows), key) for key in headings}
    head = ["method", *headings.values(), "trained", "without<br>head", "adapter<br>file", "training<br>step",
            "inference", "memory<br>training", "memory<br>inference", "rates", "seeds"]  # fmt: skip
    lines = []
    for tint, row in enumerate(rows):
        mark = f'<span class="key" style="background:var(--series-{tint % SERIES})"></span>'
        cells = [f"<td>{mark}{numbered(tint, row)}</td>"]
        for key in headings:
            cells.append(f"<td{' class=best' if row.arm.name in best[key] else ''}>{reached(row, key)}</td>")
        cost = row.cost
        spent = ["–"] * 7
        if cost:
            counts = [f"{cost.parameters[key]:,}" for key in ("trained", "trained_without_head")]
            times = [f"{1000 * seconds:.0f} ms" for seconds in (cost.train_seconds, cost.infer_seconds)]
            memory = [size(peak) for peak in (cost.train_memory, cost.infer_memory)]
            spent = [*counts, size(cost.adapter_size), *times, *memory]
        cells += [f"<td>{value}</td>" for value in spent]
        cells += [
            f"<td>×{row.factor:g}</td>" if row.factor is not None else "<td>–</td>",
            f"<td>{len(row.scores)}</td>",
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="wide"><table><tr>{heads}</tr>{"".join(lines)}</table></div><p class="note">{BOLD}</p>'


def difference_table(rows: Sequence[Row], key: str) -> str:
    """Arm against arm; a difference whose 95 % interval holds zero is grey."""
    found = differences(list(rows), key)
    head = "".join(f'<th title="{html.escape(row.arm.name)}">{number}</th>' for number, row in enumerate(rows, 1))
    lines = []
    for index, row in enumerate(rows):
        cells = [f"<td>{numbered(index, row)}</td>"]
        cells += [difference_cell(found.get((row.arm.name, other.arm.name))) for other in rows]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    note = (
        '<p class="note">Mean of the paired differences over seeds ± half of the 95 % interval (Student). '
        "Grey: the interval holds zero, so these runs do not tell the two apart. All seeds are scored on the same test "
        "data, at the rates that were chosen once: how much others of either would change is not in the interval. "
        f"Were all arms equal, one in twenty of the {math.comb(len(rows), 2)} pairs would be clear by chance: the "
        "intervals are not corrected for their number.</p>"
    )
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(lines)}</table></div>{note}'


def difference_cell(difference: Difference | None) -> str:
    if difference is None:
        return "<td></td>"
    half = "" if difference.half is None else f"<br><small>± {difference.half:.1f}</small>"
    text = f"{difference.mean:+.1f}{half}"
    return f"<td>{text}</td>" if difference.is_clear else f'<td style="color:var(--soft)">{text}</td>'


def trained_parameters(row: Row) -> float | None:
    return row.cost.parameters["trained"] if row.cost else None


def step_seconds(row: Row) -> float | None:
    return 1000 * row.cost.train_seconds if row.cost else None


#: (axis title, value of a row) of the accuracy-against-cost charts
AXES = (("trained parameters", trained_parameters), ("training step, ms", step_seconds))


def scatter(rows: Sequence[Row], key: str, heading: str, axis: str, value: Any) -> str:
    """Score over cost (logarithmic), a numbered point per arm with a bar of one standard deviation."""
    points = [
        (tint, row, float(value(row)), mean)
        for tint, row in enumerate(rows)
        if value(row) and (mean := row.mean(key)) is not None
    ]
    if len(points) < 2:
        return ""
    width, height, left, right, top, bottom = 560, 340, 46, 24, 16, 40
    low, high = (f(math.log10(x) for _, _, x, _ in points) for f in (min, max))
    low, high = low - 0.05 * (high - low) - 0.02, high + 0.05 * (high - low) + 0.02
    ends = [mean.mean + side * (mean.sd or 0.0) for _, _, _, mean in points for side in (-1, 1)]
    y_ticks = ticks(min(ends), max(ends), 6)

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + (math.log10(x) - low) / (high - low) * (width - left - right)
        return across, top + (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]) * (height - top - bottom)

    title = f"{heading} against {axis}"
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">']
    for tick in y_ticks:
        _, y = at(10**low, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in decades(low, high):
        x, _ = at(tick, y_ticks[0])
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - bottom + 17}" text-anchor="middle">{short(tick)}</text>'
        )
    parts.append(
        f'<text class="tick" x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">{axis}</text>'
    )
    taken: list[tuple[float, float]] = []
    for tint, row, cost, mean in sorted(points, key=lambda p: -p[3].mean):
        x, y = at(cost, mean.mean)
        colour = f"var(--series-{tint % SERIES})"
        if mean.sd:
            above, below = (at(cost, mean.mean + s * mean.sd)[1] for s in (1, -1))
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{above:.1f}" y2="{below:.1f}" style="stroke:{colour}"/>')
        hint = f"{html.escape(row.arm.name)}: {mean.mean:.1f} at {cost:,.0f}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" style="fill:{colour}"><title>{hint}</title></circle>')
        label = y
        while any(abs(label - other) < 11 and abs(x - across) < 16 for across, other in taken):
            label += 11
        taken.append((x, label))
        parts.append(f'<text class="name" x="{x + 6:.1f}" y="{label + 4:.1f}">{tint + 1}</text>')
    return f"<h3>{html.escape(title)}</h3>" + "".join(parts) + "</svg>"


def decades(low: float, high: float) -> list[float]:
    """Ticks between 10^low and 10^high: powers of ten, with 2 and 5 times them where there are fewer than three, and
    even steps where those are fewer than two."""
    found: list[float] = []
    for factors in ((1,), (1, 2, 5)):
        if len(found) < 3:
            found = [f * 10.0**p for p in range(math.floor(low), math.ceil(high)) for f in factors]
            found = [tick for tick in found if low <= math.log10(tick) <= high]
    count = 4
    while len(found) < 2 and count < 64:
        found = [tick for tick in ticks(10**low, 10**high, count) if 10**low <= tick <= 10**high]
        count *= 2
    return found


def short(value: float) -> str:
    for unit, factor in (("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g}"


def size(value: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.2f} {unit}" if value < 10 * factor else f"{value / factor:.0f} {unit}"
    return f"{value:.0f} B"
