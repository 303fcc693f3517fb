"""What a look at a folder of objects or videos found, and the steps from there to its dataset.yaml."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from pointadapt.data.object_set import YAML, ObjectSet
from pointadapt.data.video_set import VideoSet
from pointadapt.errors import UserError, few
from pointadapt.files import write_text

Set = TypeVar("Set", ObjectSet, VideoSet)
#: Share of each class held out where a data set comes without test and val.
HOLDOUT = 0.2
UP_NOTE = "which axis is up cannot be seen from the files: check `up`"


@dataclass(frozen=True)
class Layout(Generic[Set]):
    """A data set found in a folder, what it is called, what the user should know, and which others are there."""

    dataset: Set
    title: str
    notes: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()


def first_found(
    finders: Iterable[Callable[[Path, str | None], Layout[Set] | None]], folder: Path, variant: str | None
) -> Layout[Set] | None:
    """What the first finder that knows the folder says."""
    return next((found for finder in finders if (found := finder(folder, variant)) is not None), None)


def refuse_others(found: Layout[Set], task: str | None, variant: str | None) -> None:
    """Raises UserError where the user asked for another task, or a variant of what has none."""
    folder = found.dataset.folder
    if task is not None and found.dataset.task != task:
        raise UserError(f"{folder}: this is {found.title}, a data set for {found.dataset.task}, not for {task}")
    if variant is not None and not found.variants:
        raise UserError(f"{folder}: there are no variants of {found.title}; leave the variant out")


def adjusted(found: Layout[Set], up: str | None, val: float | None, **changes: Any) -> Layout[Set]:
    """The layout with the user's choices, and a part of train held out where that makes sense.

    changes  further fields of the data set, None: as they are. Raises UserError for values out of range.
    """
    dataset, notes = found.dataset, list(found.notes)
    if not dataset.splits.get("train"):
        notes.append("no train split: it can be evaluated on, not learned from")
    elif not dataset.splits.get("val"):
        has_test = bool(dataset.splits.get("test"))
        share = (0.0 if has_test else HOLDOUT) if val is None else val
        changes["holdout"] = share
        if share == 0 and has_test:
            notes.append("no val split: adapt holds out a tenth of train by itself (--val-share, --select)")
    if up is not None:
        changes["up"], notes = up, [note for note in notes if note != UP_NOTE]
    dataset = replace(dataset, **{key: value for key, value in changes.items() if value is not None})
    # the checks of a file read back: choices may be out of range
    dataset = type(dataset).from_dict(dataset.as_dict(), dataset.folder, dataset.folder)
    return replace(found, dataset=dataset, notes=tuple(notes))


def write_yaml(
    folder: Path | str,
    layout: Layout[Set] | None,
    find: Callable[[Path], Layout[Set] | None],
    describe: Callable[[Layout[Set]], str],
    overwrite: bool,
    missing: str,
) -> Path:
    """Write ``folder/dataset.yaml`` as ``describe`` words the layout, which ``find`` looks for where it is None.

    missing  what the folder lacks if there is none
    Raises UserError then, and when dataset.yaml exists already (unless ``overwrite``).
    """
    folder = Path(folder)
    target = folder / YAML
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already; edit it, or remove it to start anew")
    layout = layout or find(folder)
    if layout is None:
        raise UserError(f"{folder}: {missing}; check the path")
    write_text(target, describe(layout))
    return target


def heading(layout: Layout[Set], total: int, counts: dict[str, int], what: str) -> list[str]:
    """The first lines of a dataset.yaml: how many shapes or videos each split has."""
    several = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    return [
        f"# How to read the {total:,} {what} of this folder ({layout.title}): {several}.",
        "# pointadapt init wrote it; change what you know better. Paths are relative to this file.",
        "",
    ]


def lacking(what: str, names: list[str]) -> list[str]:
    """A note that train has none of these classes; nothing where there is no such class."""
    return [f"train has no {what} of {few(names)}"] if names else []


def listing(key: str, splits: dict[str, list[str]]) -> list[str]:
    lines = [f"{key}:"] if splits else [f"{key}: {{}}"]
    for split, sources in splits.items():
        lines += [f"  {flow(split)}:" if sources else f"  {flow(split)}: []", *(f"    - {flow(s)}" for s in sources)]
    return lines


def flow(value: Any) -> str:
    return yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True
    ).splitlines()[0]


def line(key: str, value: Any) -> str:
    return f"{key}: {flow(value)}\n"
