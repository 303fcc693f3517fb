"""Charts as inline SVG: lines, grouped bars, a confusion matrix. Colours are CSS variables, so dark pages work."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

SERIES = 8  # colours --series-0 .. of report.css
Curve = Sequence[tuple[float, float]]


def lines(curves: Sequence[tuple[str, int, Curve]], title: str, unit: str = "", dots: bool = False) -> str:
    """A line chart of (name, colour index, [(x, y), ...]); several curves may share a name and colour."""
    curves = [(name, tint, [(x, y) for x, y in curve if math.isfinite(y)]) for name, tint, curve in curves]
    curves = [curve for curve in curves if curve[2]]
    if not curves:
        return ""
    width, height, left, right, top, bottom = 560, 280, 46, 12, 14, 34
    x = np.array([p[0] for _, _, curve in curves for p in curve])
    y = np.array([p[1] for _, _, curve in curves for p in curve])
    low, high = float(y.min()), float(y.max())
    if unit == " %" and low == high == 100:  # no ticks above what there can be
        low = 0.0
    x_ticks, y_ticks = ticks(float(min(x.min(), 0)), float(x.max()), 6), ticks(low, high, 5)
    x_low, x_high = x_ticks[0], max(x_ticks[-1], float(x.max()))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def at(px: float, py: float) -> tuple[float, float]:
        across = left + (px - x_low) / max(x_high - x_low, 1e-12) * (width - left - right)
        return across, top + (y_high - py) / max(y_high - y_low, 1e-12) * (height - top - bottom)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">']
    for tick in y_ticks:
        _, level = at(0, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{level + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        if tick <= x_high:
            across, _ = at(tick, y_low)
            parts.append(
                f'<text class="tick" x="{across:.1f}" y="{height - bottom + 17}" text-anchor="middle">{tick:g}</text>'
            )
    parts.append(f'<text class="tick" x="{width - right}" y="{height - 2}" text-anchor="end">step</text>')
    for name, tint, curve in curves:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(*point) for point in curve))
        style = f"stroke:var(--series-{tint % SERIES})"
        parts.append(
            f'<polyline class="curve" points="{path}" style="{style}"><title>{html.escape(name)}</title></polyline>'
        )
        for px, py in curve if dots else ():
            a, b = at(px, py)
            hint = f"{html.escape(name)}, step {px:g}: {py:.3g}{unit}"
            fill = f"fill:var(--series-{tint % SERIES})"
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" style="{fill}"><title>{hint}</title></circle>')
    return "".join(parts) + "</svg>"


def bars(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], title: str) -> str:
    """Horizontal bars 0-100: per group (class) one bar per series (method), with its figure at the end."""
    thick, gap, left, width = 15, 12, 130, 760
    row = len(series) * thick + gap
    height = row * len(groups) + 24
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}" style="max-width:{width}px">'
    ]
    scale = (width - left - 48) / 100
    for tick in range(0, 101, 20):
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 20}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 5}" text-anchor="middle">{tick}</text>')
    for index, group in enumerate(groups):
        top = index * row + gap / 2
        middle = top + len(series) * thick / 2 + 4
        parts.append(
            f'<text class="name" x="{left - 10}" y="{middle:.1f}" text-anchor="end">{_short(group, 18)}</text>'
        )
        for tint, (name, values) in enumerate(series.items()):
            value, y = values[index], top + tint * thick
            if value is None:
                parts.append(f'<text class="tick" x="{left + 4}" y="{y + 11:.1f}">none</text>')
                continue
            hint = f"{html.escape(name)}, {html.escape(group)}: {value:.1f}"
            parts.append(
                f'<rect x="{left}" y="{y + 1:.1f}" width="{max(value * scale, 0.5):.1f}" height="{thick - 2}" rx="2" '
                f'style="fill:var(--series-{tint % SERIES})"><title>{hint}</title></rect>'
                f'<text class="tick" x="{left + value * scale + 5:.1f}" y="{y + 11:.1f}">{value:.1f}</text>'
            )
    return "".join(parts) + "</svg>"


def matrix(confusion: Sequence[Sequence[float]], classes: Sequence[str], title: str, counted: str = "points") -> str:
    """Confusion matrix, rows = truth, in percent of the row; a cell's tooltip gives the number of ``counted``."""
    counts = np.asarray(confusion, dtype=float)
    share = counts / counts.sum(1, keepdims=True).clip(1)
    cell, left, top = (44, 120, 96) if len(classes) <= 16 else (28, 120, 96)
    size = cell * len(classes)
    width = left + max(size, 240) + 10  # room for the caption
    parts = [
        f'<svg viewBox="0 0 {width} {top + size + 22}" role="img" aria-label="{html.escape(title)}" '
        f'style="max-width:{width}px">'
    ]
    for index, name in enumerate(classes):
        middle = index * cell + cell / 2
        label, slanted = _short(name, 17), f"translate({left + middle + 4} {top - 8}) rotate(-45)"
        parts.append(f'<text class="name" x="{left - 8}" y="{top + middle + 4}" text-anchor="end">{label}</text>')
        parts.append(f'<text class="name" transform="{slanted}">{_short(name, 14)}</text>')
    for row, column in np.ndindex(counts.shape):
        x, y, value = left + column * cell, top + row * cell, share[row, column]
        kind = "hit" if row == column else "miss"
        taken = f"{html.escape(classes[row])} taken for {html.escape(classes[column])}"
        hint = f"{taken}: {int(counts[row, column]):,} {counted}"
        parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
            f'style="fill-opacity:{value**0.7:.3f}"><title>{hint} ({100 * value:.1f} %)</title></rect>'
        )
        if value >= 0.005 and cell > 30:
            tone = "over" if value > 0.45 else "cell"
            figure = f"{100 * value:.0f}" if value >= 0.01 else f"{100 * value:.1f}"
            parts.append(f'<text class="{tone}" x="{x + cell / 2}" y="{y + cell / 2 + 4}">{figure}</text>')
    parts.append(
        f'<text class="tick" x="{left}" y="{top + size + 16}">rows: ground truth, columns: prediction, %</text>'
    )
    return "".join(parts) + "</svg>"


def ticks(low: float, high: float, number: int) -> list[float]:
    """Round values from at or below ``low`` to at or above ``high``, about ``number`` of them."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / max(number - 1, 1)
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if raw <= unit * m * 1.0001)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def smooth(curve: Curve, window: int) -> list[tuple[float, float]]:
    """Moving mean over ``window`` neighbours of [(x, y), ...], shorter at the ends."""
    y = np.array([p[1] for p in curve], dtype=float)
    half = window // 2
    means = [float(y[max(0, i - half) : i + half + 1].mean()) for i in range(len(y))]
    return [(x, mean) for (x, _), mean in zip(curve, means, strict=True)]


def _short(text: str, length: int) -> str:
    return html.escape(text if len(text) <= length else text[: length - 1] + "…")
