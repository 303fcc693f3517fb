"""report.html: one self-contained page that compares runs: table, curves, IoU per class, confusions, 3D views."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pointadapt.analysis.charts import SERIES, bars, lines, matrix, smooth
from pointadapt.analysis.scene import scene_html, scene_script
from pointadapt.errors import UserError
from pointadapt.files import read_json, read_text, write_text
from pointadapt.kinds import KINDS, SCENES, Kind

#: Key -> heading of all kinds of data, the leading ones first.
LEADS = {kind.headline: kind.heading for kind in KINDS.values()}
SCORES = LEADS | {key: heading for kind in KINDS.values() for key, heading in kind.scores.items()}


@dataclass
class Result:
    """One run of a method. Results of one name are runs with other seeds: the report gives their mean and spread.

    kind of data: a name of KINDS. miou, macc and the other scores in 0-1; per_class {class: score} in 0-1 (for scenes
    its IoU; None: the class does not occur); confusion [C, C] counts; parameters: total, trained,
    trained_without_head; adapter_size and peak_memory in bytes; history = the rows of metrics.jsonl. What is not known
    stays None and is left out.
    """

    name: str
    miou: float | None = None
    macc: float | None = None
    allacc: float | None = None
    oa: float | None = None
    instance_miou: float | None = None
    class_miou: float | None = None
    video_accuracy: float | None = None
    clip_accuracy: float | None = None
    frame_accuracy: float | None = None
    edit: float | None = None
    f1_10: float | None = None
    f1_25: float | None = None
    f1_50: float | None = None
    kind: str = SCENES.name
    per_class: dict[str, float | None] = field(default_factory=dict)
    confusion: Sequence[Sequence[float]] | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    adapter_size: int | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, evaluation: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> Result:
        """From what ``evaluate`` and ``train`` return; scores per class may be {class: value} or a list beside
        ``classes``."""
        kind = evaluation.get("kind") or SCENES.name
        scores = evaluation.get(next(iter(KINDS[kind].per_class))) or {}
        if not isinstance(scores, Mapping):
            names = evaluation.get("classes") or [f"class {index}" for index in range(len(scores))]
            scores = dict(zip(names, scores, strict=True))
        training = training or {}
        result = cls(name, kind=kind, per_class=dict(scores), parameters=dict(training.get("parameters") or {}))
        of_training = ("seconds", "peak_memory", "adapter_size")
        for source, keys in ((evaluation, (*SCORES, "confusion")), (training, of_training)):
            for key in keys:
                setattr(result, key, source.get(key))
        return result

    @classmethod
    def from_run(cls, folder: Path | str, name: str | None = None) -> Result:
        """From a run folder: run.json, result.json, evaluation.json (else the last validation), metrics.jsonl.

        Raises UserError where the folder holds neither an evaluation nor a validation.
        """
        folder = Path(folder)
        history = read_metrics(folder / "metrics.jsonl")
        training, run = _read(folder / "result.json"), _read(folder / "run.json")
        validations = [row for row in history if row.keys() & LEADS.keys()]
        evaluation = _read(folder / "evaluation.json") or (validations[-1] if validations else {})
        if not evaluation:
            raise UserError(f"{folder}: nothing to report, it has neither evaluation.json nor scores in metrics.jsonl")
        if "classes" not in evaluation:
            names = run.get("dataset", {}).get("classes", {})
            names = dict.fromkeys(names.values() if isinstance(names, Mapping) else names)
            evaluation = {"kind": run.get("run", {}).get("kind"), **evaluation, "classes": list(names)}
        result = cls.of(name or run.get("run", {}).get("method") or folder.name, evaluation, training)
        adapter = next(
            (folder / "adapter" / kind for kind in ("best", "last") if (folder / "adapter" / kind).is_dir()), None
        )
        if adapter is not None:
            result.adapter_size = sum(file.stat().st_size for file in adapter.glob("*.safetensors"))
        result.history = history
        return result


def write_report(
    path: Path | str,
    title: str,
    results: Sequence[Result],
    scenes: Sequence[Mapping[str, Any]] = (),
    lead: str = "",
    notes: Sequence[str] = (),
    pictures: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the page to ``path`` (atomically) and return it.

    scenes  keyword arguments of :func:`~pointadapt.analysis.scene.scene_html`: name, coord [N, 3], color, segment,
            predicted (labels [N], or name -> labels), classes
    lead    a sentence under the title; ``notes`` at the foot; ``pictures``: titles with inline SVG
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.name, []).append(result)
    body = [f"<h1>{html.escape(title)}</h1>"]
    body += [f'<p class="lead">{html.escape(lead)}</p>'] if lead else []
    kind = KINDS[results[0].kind] if results else SCENES
    for heading, content in (
        ("Results", _table(groups)),
        (kind.sources.capitalize(), "".join(scene_html(**scene) for scene in scenes)),
        ("Timelines", "".join(f'<div class="card"><h3>{html.escape(name)}</h3>{svg}</div>' for name, svg in pictures)),
        ("Training", _curves(groups)),
        (_per_class_heading(kind), _per_class(groups, _per_class_heading(kind))),
        ("Confusions", _confusions(groups)),
    ):
        if content:
            body.append(f"<h2>{heading}</h2>{content}")
    body += [f'<p class="note">{html.escape(note)}</p>' for note in notes]
    return write_page(path, title, "\n".join(body), scenes=bool(scenes))


def write_page(path: Path | str, title: str, body: str, scenes: bool = False) -> Path:
    """Write a self-contained page around ``body``; with ``scenes`` the script of the 3D views."""
    style = read_text(Path(__file__).with_name("report.css"))
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
{scene_script() if scenes else ""}
</body>
</html>
"""
    target = Path(path)
    write_text(target, page)
    return target


def read_metrics(file: Path | str) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut off by a kill is skipped."""
    file = Path(file)
    rows = []
    for line in read_text(file).splitlines() if file.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _key(tint: int) -> str:
    return f'<span class="key" style="background:var(--series-{tint % SERIES})"></span>'


def _keys(groups: Mapping[str, list[Result]]) -> str:
    items = "".join(f"<span>{_key(tint)}{html.escape(name)}</span>" for tint, name in enumerate(groups))
    return f'<div class="keys">{items}</div>' if len(groups) > 1 else ""


def _table(groups: Mapping[str, list[Result]]) -> str:
    """Methods by rows; columns without any value are left out, the best score of a column is marked."""

    def share(result: Result, key: str) -> float | None:
        part, total = result.parameters.get(key), result.parameters.get("total")
        return None if part is None or not total else 100 * part / total

    def score_of(key: str, result: Result) -> float | None:
        return _percent(getattr(result, key))

    columns: list[tuple[str, Any, Any, bool]] = [  # heading, value of a result, format, a score
        *((heading, partial(score_of, key), "{:.1f}".format, True) for key, heading in SCORES.items()),
        ("trained<br>parameters", lambda r: r.parameters.get("trained"), _count, False),
        ("without<br>head", lambda r: r.parameters.get("trained_without_head"), _count, False),
        ("% of<br>network", lambda r: share(r, "trained"), "{:.2f}".format, False),
        ("file", lambda r: r.adapter_size, _size, False),
        ("training<br>time", lambda r: r.seconds, _time, False),
        ("peak<br>memory", lambda r: r.peak_memory, _size, False),
    ]
    cells: dict[str, list[str]] = {name: [] for name in groups}
    headings = ["method"]
    for heading, value, form, score in columns:
        found = {name: [v for v in map(value, runs) if v is not None] for name, runs in groups.items()}
        means = {name: float(np.mean(values)) for name, values in found.items() if values}
        if not means:
            continue
        headings.append(heading)
        for name, row in cells.items():
            text = form(means[name]) if name in means else "–"
            if score and len(found[name]) > 1:
                text += f" <small>± {np.std(found[name], ddof=1):.1f}</small>"
            best = score and len(means) > 1 and means.get(name) == max(means.values())
            row.append(f"<td{' class=best' if best else ''}>{text}</td>")
    rows = ""
    for tint, (name, row) in enumerate(cells.items()):
        runs = f" <small>({len(groups[name])} runs)</small>" if len(groups[name]) > 1 else ""
        rows += f"<tr><td>{_key(tint)}{html.escape(name)}{runs}</td>{''.join(row)}</tr>"
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    several = any(len(runs) > 1 for runs in groups.values())
    note = '<p class="note">Mean ± standard deviation over runs.</p>' if several else ""
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>{note}' if groups else ""


def _curves(groups: Mapping[str, list[Result]]) -> str:
    loss, score = [], []
    for tint, (name, runs) in enumerate(groups.items()):
        for result in runs:
            points = [(row["step"], row["loss"]) for row in result.history if _number(row, "step", "loss")]
            loss.append((name, tint, smooth(points, max(1, len(points) // 40))))
            lead = KINDS[result.kind].headline
            points = [(row["step"], 100 * row[lead]) for row in result.history if _number(row, "step", lead)]
            score.append((name, tint, points))
    heading = next((KINDS[runs[0].kind].heading for runs in groups.values()), "")
    held_out = {row["split"] for runs in groups.values() for run in runs for row in run.history if "split" in row}
    where = "Test" if held_out == {"test"} else "Validation"
    charts = (
        ("Training loss", lines(loss, "training loss")),
        (f"{where} {heading}, %", lines(score, heading, " %", True)),
    )
    cards = "".join(f'<div class="card"><h3>{heading}</h3>{chart}</div>' for heading, chart in charts if chart)
    return f'{_keys(groups)}<div class="cards">{cards}</div>' if cards else ""


def _per_class_heading(kind: Kind) -> str:
    heading = next(iter(kind.per_class.values()))
    return f"{heading[0].upper()}{heading[1:]} per class"


def _per_class(groups: Mapping[str, list[Result]], heading: str) -> str:
    names = list(dict.fromkeys(label for runs in groups.values() for result in runs for label in result.per_class))
    if not names:
        return ""
    series: dict[str, list[float | None]] = {}
    for name, runs in groups.items():
        found = [[v for v in (result.per_class.get(label) for result in runs) if v is not None] for label in names]
        series[name] = [100 * float(np.mean(values)) if values else None for values in found]
    return f'{_keys(groups)}<div class="card">{bars(names, series, heading)}</div>'


def _confusions(groups: Mapping[str, list[Result]]) -> str:
    """One matrix per method, summed over its runs; the last one open (methods are listed from weak to strong)."""
    parts = []
    for name, runs in groups.items():
        counts = [np.asarray(result.confusion, dtype=float) for result in runs if result.confusion is not None]
        if not counts or len({c.shape for c in counts}) > 1:
            continue
        total = np.sum(counts, axis=0)
        named = list(runs[0].per_class)
        classes = named if len(named) == len(total) else [f"class {i}" for i in range(len(total))]
        chart = matrix(total.tolist(), classes, f"confusion matrix of {name}", KINDS[runs[0].kind].counted)
        parts.append((name, f'<div class="card wide">{chart}</div>'))
    return "".join(
        f"<details{' open' if index == len(parts) - 1 else ''}><summary>{html.escape(name)}</summary>{chart}</details>"
        for index, (name, chart) in enumerate(parts)
    )


def _number(row: Mapping[str, Any], *keys: str) -> bool:
    return all(isinstance(row.get(key), int | float) for key in keys)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _count(value: float) -> str:
    return f"{round(value):,}"


def _size(value: float) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} B"


def _time(value: float) -> str:
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
