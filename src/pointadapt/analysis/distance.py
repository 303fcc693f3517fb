"""How far a data set is from another as a pretrained model sees them, and which model sees yours as the nearest.

    distance("shapenet/", "my_shapes/", backbone="nano-mae", picture="labels.png")
    distance_table({"nano-mae": embedder("nano-mae"), ...}, "shapenet/", "my_shapes/")

Distances are those of analysis/transport.py, in features standardised by the source. One unit of the *relative*
distance is the source's own typical squared distance, so figures of models with other feature spaces can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pointadapt.analysis.transport import (
    DEFAULT,
    Source,
    Transport,
    balanced,
    label_distances,
    neighbour_accuracy,
)
from pointadapt.backbones.backbone import Backbone
from pointadapt.errors import UserError

#: "embedder": mean of the patch tokens before any block, ORCA's choice (inferred for PointATA); "output": of the last.
At = Literal["embedder", "output"]


class Features(NamedTuple):
    """Features [n, D] of n samples and the names of their classes."""

    features: Tensor
    labels: list[str]


Extractor = Callable[[Any], Features]


@dataclass(frozen=True)
class Distance:
    """How far the target is from the source under one model.

    squared     the (debiased, standardised) squared distance
    relative    the same over the median cost between two samples of the source: 0 equal sets, 1 as far as strangers
    floor       the relative distance of another part of the source, of as many samples as the target's: what chance
                leaves. A target at the floor cannot be told from the source
    neighbours  share of target samples whose five nearest others have their class: near is of no use where this is low
    sizes       samples of the source and of the target
    """

    name: str
    squared: float
    relative: float
    floor: float
    neighbours: float
    sizes: tuple[int, int]


def distance_between_features(
    source: Features, target: Features, name: str = "", limit: int = 500, seed: int = 0, how: Transport = DEFAULT
) -> Distance:
    """Half of the source against as many target samples (at most ``limit``), and against its own other half.

    Draws are class-balanced and depend on ``seed`` alone. Raises UserError for fewer than four source samples.
    """
    names = np.asarray(source.labels)
    if len(names) < 4:
        raise UserError(
            f"the source has {len(names)} samples: give at least four, so that one half can judge the other"
        )
    here = balanced(names, min(limit, len(names) // 2), seed)
    rest = np.setdiff1d(np.arange(len(names)), here)
    there = balanced(np.asarray(target.labels), len(here), seed)
    other = rest[balanced(names[rest], len(there), seed + 1)]
    base = Source.of(source.features[here], names[here], how)
    unit = float(base.within.cost.median()) or 1.0
    labels = np.asarray(target.labels)[there]
    squared = float(base.distance(target.features[there], labels))
    floor = float(base.distance(source.features[other], names[other]))
    seen = neighbour_accuracy(target.features, target.labels) if len(target.labels) > 1 else float("nan")
    return Distance(name, squared, squared / unit, floor / unit, seen, (len(here), len(there)))


def distance_table(
    extractors: Mapping[str, Extractor],
    source: Any,
    target: Any,
    limit: int = 500,
    seed: int = 0,
    how: Transport = DEFAULT,
) -> list[Distance]:
    """Which model sees the target nearest to the source, nearest first.

    extractors      model name -> function from a source or target to its :class:`Features`, as :func:`embedder` makes
    source, target  whatever the extractors take. A mapping from model names gives each model its own, such as the data
                    it was pretrained on
    """
    found = []
    for name, extract in extractors.items():
        ours, theirs = (side[name] if isinstance(side, Mapping) else side for side in (source, target))
        found.append(distance_between_features(extract(ours), extract(theirs), name, limit, seed, how))
    return sorted(found, key=lambda row: row.relative)


def distance(
    folder_a: Path | str,
    folder_b: Path | str,
    backbone: str | Backbone = "nano-mae",
    limit: int = 500,
    split: str = "train",
    at: At = "embedder",
    seed: int = 0,
    how: Transport = DEFAULT,
    picture: Path | str | None = None,
) -> Distance:
    """Of two folders with a dataset.yaml, through one backbone; ``picture``: a PNG of the label distances.

    What a sample of shapes, videos and scenes is: analysis/folder_features.py. At most 2 ``limit`` samples of A are
    taken and of B, class-balanced. Raises UserError for a backbone that cannot read what a folder holds.
    """
    extract = embedder(backbone, 2 * limit, split, at, seed)
    a, b = extract(folder_a), extract(folder_b)
    if picture is not None:
        source = Source.of(*a, how)
        target = source.standard(*b)
        table = label_distances(source.data, target, how.inner)
        draw_label_distances(picture, table, source.data.names, target.names, (str(folder_a), str(folder_b)))
    return distance_between_features(a, b, str(backbone if isinstance(backbone, str) else "model"), limit, seed, how)


def embedder(
    backbone: str | Backbone, limit: int = 1000, split: str = "train", at: At = "embedder", seed: int = 0
) -> Extractor:
    """A function from a folder to the features that a backbone (or its name) gives its samples."""
    loaded: list[Backbone] = []

    def extract(folder: Any) -> Features:
        from pointadapt.analysis.folder_features import folder_features
        from pointadapt.backbones.weights import load_backbone

        if not loaded:
            loaded.append(load_backbone(backbone) if isinstance(backbone, str) else backbone)
        return folder_features(loaded[0], folder, limit, split, at, seed)

    return extract


def draw_label_distances(
    file: Path | str,
    table: Any,
    classes_a: Sequence[Any],
    classes_b: Sequence[Any],
    titles: tuple[str, str] = ("source", "target"),
) -> Path:
    """A PNG of distances between the classes of two sets: table [L, M] as ``label_distances`` gives it (squared).

    Colours and figures are the roots, in units of the features; a frame marks each column's nearest class.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from pointadapt.files import written

    roots = np.sqrt(np.asarray(torch.as_tensor(table).detach().cpu(), dtype=float).clip(min=0))
    rows, columns = roots.shape
    if (rows, columns) != (len(classes_a), len(classes_b)):
        raise UserError(f"table is {rows} x {columns}, but there are {len(classes_a)} and {len(classes_b)} class names")
    cell = 0.5 if max(rows, columns) <= 24 else 0.28
    figure = Figure(figsize=(max(cell * columns, 2) + 3.2, max(cell * rows, 2) + 1.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(roots, cmap="viridis_r", vmin=0)
    axes.set_xticks(range(columns), [_short(name) for name in classes_b], rotation=45, ha="right")
    axes.set_yticks(range(rows), [_short(name) for name in classes_a])
    axes.set_xlabel(titles[1]), axes.set_ylabel(titles[0])
    axes.set_title("distance of classes, nearest framed")
    for column, row in enumerate(roots.argmin(0)):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#d55e00", linewidth=2))
    if cell > 0.4:
        dark = roots > 0.55 * roots.max()
        for row, column in np.ndindex(rows, columns):
            color = "white" if dark[row, column] else "black"
            axes.text(column, row, f"{roots[row, column]:.3g}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(image, ax=axes, shrink=0.8)
    with written(file) as temporary:
        figure.savefig(temporary, dpi=130)
    return Path(file)


def _short(name: Any) -> str:
    text = str(name)
    return text if len(text) <= 18 else text[:17] + "…"
