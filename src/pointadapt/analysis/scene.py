"""Linked 3D views of a cloud to turn in a browser: an HTML fragment with its data inside, and the script for a page."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointadapt.analysis.view import PALETTE, RIGHT, UNLABELLED, WRONG, height_colors
from pointadapt.files import read_text

NONE = 255  # a point without a label, in the page's bytes


def scene_script() -> str:
    """The script element that brings all scenes of a page to life; put it once, at the end of the body."""
    return f"<script>\n{read_text(Path(__file__).with_name('scene.js'))}</script>"


def scene_html(
    coord: NDArray[Any],
    color: NDArray[Any] | None = None,
    segment: NDArray[Any] | None = None,
    predicted: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None,
    classes: Sequence[str] = (),
    name: str = "",
    limit: int = 120_000,
    cut: float | None = None,
) -> str:
    """Views of coord [N, 3] side by side: colour (or height), ground truth, prediction(s) and their errors.

    color [N, 3] 0-255; segment and predicted [N] class indices, -1 unlabelled; several predictions as name -> [N].
    Clouds above ``limit`` points are thinned to one point per voxel. ``cut`` (0-1) hides what is above that part of
    the height at first, by default the ceiling of rooms.
    """
    if predicted is None:
        many: dict[str, NDArray[Any]] = {}
    else:
        many = dict(predicted) if isinstance(predicted, Mapping) else {"prediction": predicted}
    rows = thin(coord, limit)
    place = np.asarray(coord, dtype=np.float64)[rows]
    low = place.min(0) if len(rows) else np.zeros(3)
    span = (place.max(0) - low).clip(1e-6) if len(rows) else np.ones(3)
    if color is not None and not np.any(color):  # as files without colour are read
        color = None
    shade = height_colors(place) if color is None else np.asarray(color)[rows]
    layers: list[dict[str, Any]] = [
        dict(name="height" if color is None else "colour", color=_text(shade, np.uint8), shown=True)
    ]
    truth = None if segment is None else _labels(segment, rows)
    if truth is not None:
        layers.append(dict(name="ground truth", label=truth, shown=True))
    last = list(many)[-1] if many else None
    for title, labels in many.items():
        layers.append(dict(name=title, label=_labels(labels, rows), shown=title == last))
    for title, labels in many.items() if truth is not None else ():
        heading = "errors" if len(many) == 1 else f"errors of {title}"
        layers.append(dict(name=heading, label=_labels(labels, rows), truth=truth, shown=title == last))
    if cut is None:
        cut = 0.65 if "ceiling" in classes else 1.0
    data = dict(
        place=_text((place - low) / span * 65535, "<u2"),
        low=low.tolist(),
        span=span.tolist(),
        spacing=_spacing(span, len(rows)),
        layers=layers,
        palette=PALETTE.tolist(),
        marks=dict(none=UNLABELLED.tolist(), right=RIGHT.tolist(), wrong=WRONG.tolist()),
    )
    legend = "".join(
        f'<button type="button" data-label="{index}" aria-pressed="false">'
        f'<i style="background:rgb{tuple(PALETTE[index % len(PALETTE)].tolist())}"></i>{html.escape(label)}</button>'
        for index, label in enumerate(classes)
    )
    content = json.dumps(data).replace("<", "\\u003c")
    size = f"{len(rows):,} of {len(coord):,} points" if len(rows) < len(coord) else f"{len(coord):,} points"
    return f"""<div class="scene" role="group" aria-label="3D view of {html.escape(name or "a scan")}">
<div class="scene-bar"><strong>{html.escape(name)}</strong><span class="scene-layers"></span>
<label>cut <input type="range" name="cut" min="0.02" max="1" step="0.01" value="{cut}" title="hide from above"></label>
<label>size <input type="range" name="size" min="0.3" max="3" step="0.05" value="1" title="size of the points"></label>
<button type="button" class="scene-home">reset</button></div>
<div class="scene-stage"><canvas tabindex="0"></canvas></div>
<div class="scene-legend">{legend}</div>
<p class="note">{size}. Drag to turn, shift-drag to move, pinch or click and wheel to zoom;
a class in the legend shows it alone.</p>
<script type="application/json" class="scene-data">{content}</script>
</div>"""


def thin(coord: NDArray[Any], limit: int) -> NDArray[np.int64]:
    """Rows [M <= limit] of a cloud: one per voxel, the voxels as small as the limit allows; all if it is small."""
    count = len(coord)
    if count <= limit:
        return np.arange(count)
    coord = np.asarray(coord, dtype=np.float64)
    coord = coord - coord.min(0)
    edge = float(np.sqrt((np.sort(coord.max(0))[1:].prod() + 1e-9) / limit)) / 4
    while True:
        cell = np.floor(coord / edge).astype(np.int64)
        size = cell.max(0) + 1
        key = (cell[:, 0] * size[1] + cell[:, 1]) * size[2] + cell[:, 2]
        rows = np.sort(np.unique(key, return_index=True)[1])
        if len(rows) <= limit:
            return rows
        edge *= min(1.5, max(1.03, (len(rows) / limit) ** 0.5))


def _labels(segment: NDArray[Any], rows: NDArray[np.int64]) -> str:
    values = np.asarray(segment)[rows]
    return _text(np.where(values < 0, NONE, values % NONE), np.uint8)


def _text(values: NDArray[Any], kind: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(values.round().astype(kind)).tobytes()).decode("ascii")


def _spacing(span: NDArray[Any], count: int) -> float:
    """Edge of a point's splat in metres, so that ``count`` of them about cover the faces of the bounding box."""
    x, y, z = span
    return float(1.6 * np.sqrt((x * y + x * z + y * z) / max(count, 1)))
