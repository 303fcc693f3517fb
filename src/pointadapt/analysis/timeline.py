"""A picture of what a model sees when in a video: a band of the predicted classes over their probabilities."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointadapt.analysis.view import PALETTE
from pointadapt.files import written

#: Columns of the picture; longer videos are averaged down to them.
COLUMNS = 1600
#: Classes whose probabilities are drawn: those that are predicted anywhere, then the most probable ones.
ROWS = 24


def draw_timeline(
    file: Path | str, probability: NDArray[Any], classes: Sequence[str], title: str = "", merge: int = 1
) -> Path:
    """A PNG of probability [F, C] of the frames of a video; blank where it is zero for all classes, not known.

    merge  frames of the files in one of F, for the axis
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frames = len(probability)
    columns = bins(np.asarray(probability), COLUMNS)
    best = np.where(columns.any(1), columns.argmax(1), -1)
    rows = drawn_classes(columns, best)
    height = 1.6 + 0.24 * len(rows)
    figure = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasAgg(figure)
    band, heat = figure.subplots(2, 1, sharex=True, height_ratios=[0.6, 0.24 * len(rows) + 0.4])
    extent = (0.0, float(frames * merge))
    scale = extent[1] / len(columns)
    for start, end in runs(best):
        if best[start] < 0:
            continue
        color = PALETTE[best[start] % len(PALETTE)] / 255
        band.axvspan(start * scale, end * scale, color=color, linewidth=0)
        name = classes[best[start]]
        if (end - start) / len(columns) > 0.012 * len(name) + 0.01:
            dark = float(color @ [0.3, 0.59, 0.11]) < 0.5
            at = ((start + end) / 2 * scale, 0.5)
            band.text(*at, name, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    band.set_yticks([]), band.set_ylim(0, 1), band.set_title(title, fontsize=10)
    image = heat.imshow(
        columns[:, rows].T,
        aspect="auto",
        interpolation="nearest",
        cmap="Greys",
        vmin=0,
        vmax=1,
        extent=(*extent, len(rows) - 0.5, -0.5),
    )
    heat.set_yticks(range(len(rows)), [short(classes[row]) for row in rows], fontsize=8)
    for label, row in zip(heat.get_yticklabels(), rows, strict=True):
        label.set_bbox({"facecolor": PALETTE[row % len(PALETTE)] / 255, "alpha": 0.55, "pad": 1, "linewidth": 0})
    heat.set_xlim(*extent), heat.set_xlabel("frame")
    figure.colorbar(image, ax=heat, label="probability", pad=0.01)
    with written(file) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(file)


def bands(labels: Mapping[str, NDArray[Any]], classes: Sequence[str]) -> str:
    """Inline SVG: name -> class index of each frame [F] (-1: none) as coloured bands over each other, and a legend."""
    left, wide, tall = 80, 680, 22
    count = max(len(values) for values in labels.values())
    parts, seen = [], set[int]()
    for row, (name, values) in enumerate(labels.items()):
        top = row * (tall + 4)
        parts.append(f'<text class="name" x="{left - 8}" y="{top + 16}" text-anchor="end">{html.escape(name)}</text>')
        for start, end in runs(np.asarray(values)):
            label = int(values[start])
            seen.add(label)
            told = f"{classes[label] if label >= 0 else 'not labelled'}, frames {start} to {end - 1}"
            x, width = left + start / count * wide, (end - start) / count * wide
            parts.append(
                f'<rect x="{x:.2f}" y="{top}" width="{width:.2f}" height="{tall}" fill="{tint(label)}">'
                f"<title>{html.escape(told)}</title></rect>"
            )
    height = len(labels) * (tall + 4)
    legend = "".join(
        f'<span><span class="key" style="background:{tint(label)}"></span>{html.escape(classes[label])}</span>'
        for label in sorted(seen - {-1})
    )
    size = f'viewBox="0 0 {left + wide} {height}" style="max-width:{left + wide}px"'
    return f'<svg {size} role="img" aria-label="timeline">{"".join(parts)}</svg><div class="keys">{legend}</div>'


def tint(label: int) -> str:
    return "#969696" if label < 0 else "#{:02x}{:02x}{:02x}".format(*PALETTE[label % len(PALETTE)])


def bins(values: NDArray[Any], count: int) -> NDArray[Any]:
    """[min(F, count), C] means of values [F, C] over equal stretches of rows."""
    if len(values) <= count:
        return values
    edges = np.linspace(0, len(values), count + 1).astype(int)[:-1]
    return np.add.reduceat(values, edges) / np.diff([*edges, len(values)])[:, None]


def runs(labels: NDArray[Any]) -> list[tuple[int, int]]:
    """(start, end) of stretches of equal labels, half-open."""
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return list(zip(edges, edges[1:], strict=False))


def drawn_classes(columns: NDArray[Any], best: NDArray[Any]) -> list[int]:
    often = np.bincount(best[best >= 0], minlength=columns.shape[1])
    order = np.lexsort((-columns.mean(0), -often))
    return sorted(order[:ROWS].tolist())


def short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
