"""Names of frames: their order, and the numbers in them, of which none should be missing or there twice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pointadapt.data.object_files import SHAPES


def natural(path: Path) -> list[Any]:
    """Sorting key in which frame 10 comes after frame 9; a name that is a decimal number is one: 0.5 after 0.25."""
    if is_decimal(path):
        whole, _, fraction = path.stem.partition(".")
        return [*natural(path.parent), (0, int(whole), fraction)]
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.as_posix())]


def is_decimal(path: Path) -> bool:
    return re.fullmatch(r"\d+\.\d+", path.stem) is not None


def misnumbered(frames: Sequence[Path], instead: str = "") -> str:
    """A sentence where two frames have one number or a number is missing, "" where all is well.

    instead  what may be done about a missing one but to add it
    """
    twins = (pair for pair in pairwise(frames) if numbered(pair[0]) == numbered(pair[1]) and not is_decimal(pair[0]))
    if pair := next(twins, None):
        return f"{pair[1]}: this frame has the same number as {pair[0].name}; rename or remove one"
    if pair := gap(frames):
        before, after = pair
        return f"{before.parent}: a frame is missing between {before.name} and {after.name}; add it{instead}"
    return ""


def gap(frames: Sequence[Path]) -> tuple[Path, Path] | None:
    """The first neighbours that are two of the usual steps apart, or more; None where numbers do not rise evenly.

    Only frames are compared whose names are the same up to the last number that changes at all: neither s1_f9 with
    s2_f0, nor times of day with those of the next minute.
    """
    names = [numbered(frame) for frame in frames]
    if len({len(name) for name in names}) != 1 or any(map(is_decimal, frames)):
        return None
    changing = [at for at in range(1, len(names[0]), 2) if len({name[at] for name in names}) > 1]
    if not changing:
        return None
    last = changing[-1]
    steps = [b[last] - a[last] if a[:last] == b[:last] else 0 for a, b in pairwise(names)]
    often = Counter(step for step in steps if step > 0)
    step, times = max(often.items(), key=lambda one: (one[1], -one[0]), default=(0, 0))
    if 2 * times < often.total() or not times:  # times of day rather than numbers
        return None
    return next((pair for pair, wide in zip(pairwise(frames), steps, strict=True) if wide >= 2 * step), None)


def numbered(frame: Path) -> list[Any]:
    """Text and numbers of a frame's name by turns: frame_07.ply is ["frame_", 7, ""]."""
    name = frame.stem if frame.suffix.lower() in SHAPES else frame.name
    return [int(part) if at % 2 else part for at, part in enumerate(re.split(r"(\d+)", name))]
